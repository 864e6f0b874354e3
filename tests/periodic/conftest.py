from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from boards import Board, board_of

from servers import Database
from syncline.embedded import EmbeddedValkey


@pytest.fixture
def board(valkey: EmbeddedValkey, database: Database, tmp_path: Path) -> Iterator[Board]:
    with board_of(valkey, database, tmp_path / "log") as found:
        yield found
