from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from chunk_events import Chunks, chunks_of

from servers import Database
from syncline.embedded import EmbeddedValkey


@pytest.fixture
def chunks(valkey: EmbeddedValkey, database: Database, tmp_path: Path) -> Iterator[Chunks]:
    with chunks_of(valkey, database, tmp_path) as found:
        yield found
