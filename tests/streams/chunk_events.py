"""A stream of a test's own, what applications publish into it, and an engine that follows it into three targets."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import duckdb
import redis
import yaml

from servers import Database, eventually
from syncline.capture.stream.source import StreamSource
from syncline.config import Config, load_config
from syncline.embedded import EmbeddedValkey
from syncline.events import SyncEvent
from syncline.pipeline import SyncService
from syncline.verify import Report, verify

__all__ = ["STREAM", "Chunks", "chunks_of"]

STREAM = "chunk:sync:stream"
_COLUMNS = {
    "content": {},
    "dense": {"type": "real[]", "field": "embeddings.dense"},
    "metadata": {"type": "jsonb"},
    "position": {"type": "integer"},
}


@dataclass
class Chunks:
    """Publishes, and looks at what became of it at the targets: the DuckDB files one and two, and PostgreSQL."""

    client: Any
    database: Database
    folder: Path
    settings: dict[str, Any]

    def publish(
        self, kind: str, ident: str, *, targets: tuple[str, ...] = (), source: str = "claude", **fields: Any
    ) -> str:
        """An event as :class:`SyncEvent` writes it; its event id."""
        event_id = fields.pop("event_id", str(uuid4()))
        given = {"event_id": event_id, "type": kind, "source": source, "targets": list(targets)}
        event = SyncEvent.from_dict(given | {"chunk": {"id": ident, **fields}})
        self.client.xadd(STREAM, event.to_chunk_dict())
        return event_id

    def configure(self, **changed: Any) -> Config:
        """Write the configuration; what it says."""
        tree = {
            "sources": {"main": self.settings | changed},
            "targets": {
                "one": {"type": "duckdb", "path": str(self.folder / "one.duckdb")},
                "two": {"type": "duckdb", "path": str(self.folder / "two.duckdb")},
                "copy": {"type": "postgres", "dsn": self.database.dsn},
            },
            "control": {"dsn": self.database.dsn},
            "log": {"path": str(self.folder / "log")},
        }
        file = self.folder / "syncline.yaml"
        text = yaml.safe_dump(tree)
        if not file.exists() or file.read_text() != text:  # an engine may be reading it
            file.write_text(text)
        return load_config(file, variables_from={})

    @contextmanager
    def engine(self, **changed: Any) -> Iterator[SyncService]:
        """An engine that streams, for the block."""
        service = SyncService(self.configure(**changed))
        service.start()
        try:
            eventually(lambda: _streams(service), 60)
            yield service
        finally:
            service.stop()

    @contextmanager
    def killed_engines(self) -> Iterator[Callable[[Callable[[], Any]], None]]:
        """What runs an engine in a process of its own until something is done, and then kills it."""
        command = [sys.executable, str(Path(__file__).with_name("forked_engines.py"))]
        with subprocess.Popen(
            command, cwd=self.folder, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        ) as parent:
            assert parent.stdin is not None
            assert parent.stdout is not None
            told, says = parent.stdin, parent.stdout

            def run(until: Callable[[], Any]) -> None:
                told.write("start\n")
                pid = int(says.readline())
                try:
                    until()
                finally:
                    os.kill(pid, signal.SIGKILL)
                    told.write("killed\n")
                    assert says.readline() == "gone\n"

            yield run
            told.close()

    @property
    def source(self) -> StreamSource:
        found = self.configure().source("main")
        assert isinstance(found, StreamSource)
        return found

    def compare(self, **changed: Any) -> Report:
        """Source and copies by content; waits until everything that was published is there."""
        return verify(self.configure(**changed), engine=SyncService)

    def rows(self, target: str) -> list[tuple[Any, ...]]:
        query = "select id, content, position from chunks order by id"
        if target == "copy":
            return self.database.execute(query)
        with duckdb.connect(str(self.folder / f"{target}.duckdb"), read_only=True) as connection:
            return connection.execute(query).fetchall()

    def parked(self) -> list[tuple[str, str]]:
        """Code and reason of what is parked, in the order in which it came."""
        query = "select code, reason from syncline.sync_dead_letters where state = 'parked' order by version"
        return self.database.execute(query)


def _streams(service: SyncService) -> bool:
    for error in service.errors():
        raise error
    return bool(service.status()["sources"]["main"]["state"] == "streaming")


@contextmanager
def chunks_of(valkey: EmbeddedValkey, database: Database, folder: Path) -> Iterator[Chunks]:
    """A stream without entries."""
    given = {"type": "stream", "url": valkey.url(), "table": "chunks", "columns": _COLUMNS, "ignore": ["draft"]}
    with redis.Redis.from_url(valkey.url(), protocol=2) as client:
        yield Chunks(client, database, folder, given)
