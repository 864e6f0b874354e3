"""A pipeline from a fresh database into a DuckDB file, for the tests of verification."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import duckdb

from servers import Database, eventually
from syncline.config import Config
from syncline.pipeline import SyncService
from syncline.verify import Report, verify


@dataclass(frozen=True)
class Pipeline:
    """A source, its copy, and the engine between them when it is asked to run."""

    database: Database
    config: Config
    path: Path

    @contextmanager
    def running(self) -> Iterator[SyncService]:
        service = SyncService(self.config, talk=lambda line: None)
        service.start()
        try:
            eventually(lambda: service.status()["sources"]["main"]["state"] == "streaming", 60)
            yield service
        finally:
            service.stop()

    def damage(self, *statements: str) -> None:
        """Change the copy by hand, while no engine runs."""
        with duckdb.connect(str(self.path)) as connection:
            for statement in statements:
                connection.execute(statement)

    def verify(self, *tables: str) -> Report:
        """Verify with an engine of one's own."""
        return verify(self.config, tables, engine=SyncService, talk=lambda line: None)
