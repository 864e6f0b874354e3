"""A leaderboard of a test's own: four sorted sets and a hash for each member, and the source that reads them."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import redis

from servers import Database
from syncline.capture.redis.source import RedisSource
from syncline.capture.runs import Wish
from syncline.capture.schema import table_schema
from syncline.catalog import ControlSchema
from syncline.catalog.periodic import PeriodicRecords
from syncline.change import Batch, Entry, Op
from syncline.config import Config
from syncline.embedded import EmbeddedValkey
from syncline.periodic.result import Result
from syncline.pipeline.reports import Reports
from syncline.pipeline.runs import RecordedRuns

__all__ = ["PERIODS", "Board", "board_of"]

PERIODS = ("daily", "weekly", "monthly", "yearly")


@dataclass
class Board:
    """The keys, and runs that compare them: ``entries`` are those of the last one. ``settings`` are the source's as
    they stand in a file."""

    client: Any
    database: Database
    folder: Path
    settings: dict[str, Any]
    entries: list[Entry] = field(default_factory=list)

    def put(self, member: str, score: float, **details: str) -> None:
        """A member with this score in every period, and what its hash holds."""
        for period in PERIODS:
            self.client.zadd(f"leaderboard:{period}", {member: score})
        if details:
            self.client.hset(f"user:{member}", mapping=details)

    def remove(self, member: str) -> None:
        for period in PERIODS:
            self.client.zrem(f"leaderboard:{period}", member)
        self.client.delete(f"user:{member}")

    def config(self, **changed: Any) -> Config:
        given: dict[str, Any] = {
            "sources": {"board": self.settings | changed},
            "control": {"dsn": self.database.dsn},
            "log": {"path": str(self.folder)},
        }
        return Config.model_validate(given)

    @contextmanager
    def source(self, **changed: Any) -> Iterator[RedisSource]:
        """The source with its records, without an engine."""
        config = self.config(**changed)
        with ControlSchema(self.database.dsn) as control:
            control.migrate()
            records = RecordedRuns(config, "board", control, Reports(control))
            source = config.source("board")
            assert isinstance(source, RedisSource)
            source.record_runs(records)
            try:
                yield source
            finally:
                records.close()

    def run(self, wish: Wish | None = None, **changed: Any) -> Result:
        """One run, as the engine does it; the first one is that which attaching does."""
        records = self.records
        with self.source(**changed) as source:
            asked = records.ask(wish or Wish())
            try:
                self.entries = list(_run(source))
            finally:
                records.withdraw(asked)
                row = records.one(asked)
                records.close()
        assert row is not None
        return Result.of_record(row)

    @property
    def records(self) -> PeriodicRecords:
        return PeriodicRecords(self.database.dsn, "syncline", "board")

    def runs(self) -> list[dict[str, Any]]:
        """The latest runs as they are recorded."""
        records = self.records
        try:
            return records.runs(100)
        finally:
            records.close()

    def rows(self, *columns: str) -> list[tuple[Any, ...]]:
        """What was told, by member; of these columns."""
        names = columns or ("user_id", "daily_pomo", "weekly_pomo", "name")
        with self.source() as source, source.point("load", print) as point:
            (info,) = source.tables()
            assert [c.name for c in table_schema(info).columns]
            batches = list(source.rows(info, point, 7, threading.Event(), lambda _: None))
        return sorted(tuple(row[n] for n in names) for batch in batches for row in batch.data().to_pylist())

    def told(self) -> list[tuple[str, str, Any]]:
        """The changes of the last run: operation, member and score of the day."""
        batches = [item for entry in self.entries for item in entry.items if isinstance(item, Batch)]
        rows = [(row["op"], row["user_id"], row["daily_pomo"]) for b in batches for row in b.rows.to_pylist()]
        return sorted((Op(op).name, member, score) for op, member, score in rows)


def _run(source: RedisSource) -> Iterator[Entry]:
    """The entries of one run, each durable at once."""
    identity, number = source.identify(), source.number()
    if not number:
        source.attach(identity, 0, print)
        return
    stream = source.capture(source.tables(), 0, 1, _lost)
    boundaries = 0
    for entry in stream.entries(number):
        yield entry
        if entry.place:
            stream.confirm(entry.place)
            boundaries += 1
        if boundaries == 2:  # the first one says where it begins
            stream.close()


def _lost(table: str, error: Exception) -> None:
    raise AssertionError(f"{table} was lost: {error}")


@contextmanager
def board_of(valkey: EmbeddedValkey, database: Database, folder: Path, **settings: Any) -> Iterator[Board]:
    """A board with no members."""
    scores = {
        f"{period}_pomo": {"sorted_set": f"leaderboard:{period}", "type": "int4", "default": 0} for period in PERIODS
    }
    details = {"name": {"hash": "user:{member}"}, "updated_at": {"hash": "user:{member}", "type": "timestamptz"}}
    given = {"type": "redis", "url": valkey.url(), "table": "pomo_leaderboard", "member": "user_id", "hints": False}
    given |= {"columns": {**scores, **details}, "delete_share": 0.5, "sooner_s": 0.0}
    with redis.Redis.from_url(valkey.url(), protocol=2) as client:
        yield Board(client, database, folder, given | settings)
