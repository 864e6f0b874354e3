from __future__ import annotations

from collections.abc import Iterator

import pytest
from boards import Board, board_of

from servers import Database
from syncline.embedded import EmbeddedValkey


@pytest.fixture
def board(valkey: EmbeddedValkey, database: Database) -> Iterator[Board]:
    with board_of(valkey, database) as found:
        yield found
