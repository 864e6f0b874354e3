"""A leaderboard of a test's own: four sorted sets and a hash for each member, and the table that follows them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import redis

from servers import Database
from syncline.catalog import ControlSchema
from syncline.catalog.periodic import PeriodicRecords
from syncline.config import TargetConfig
from syncline.config.periodic import PeriodicConfig
from syncline.embedded import EmbeddedValkey
from syncline.periodic.run import Place, Result, Wish, perform

__all__ = ["PERIODS", "Board", "board_of"]

PERIODS = ("daily", "weekly", "monthly", "yearly")


@dataclass
class Board:
    """Both sides, and runs between them."""

    client: Any
    database: Database
    config: PeriodicConfig
    records: PeriodicRecords

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

    def place(self, **changed: Any) -> Place:
        target = TargetConfig.model_validate({"type": "postgres", "dsn": self.database.dsn})
        return Place("board", self.config.model_copy(update=changed), target, self.records)

    def run(self, wish: Wish | None = None, **changed: Any) -> Result:
        return perform(self.place(**changed), wish or Wish())

    def rows(self, columns: str = "user_id, daily_pomo, weekly_pomo, name") -> list[tuple[Any, ...]]:
        return self.database.execute(f"select {columns} from pomo_leaderboard order by 1")


@contextmanager
def board_of(valkey: EmbeddedValkey, database: Database, **settings: Any) -> Iterator[Board]:
    """A board with no members."""
    scores = {
        f"{period}_pomo": {"sorted_set": f"leaderboard:{period}", "type": "int4", "default": 0} for period in PERIODS
    }
    details = {"name": {"hash": "user:{member}"}, "updated_at": {"hash": "user:{member}", "type": "timestamptz"}}
    given = {"url": valkey.url(), "target": "copy", "table": "pomo_leaderboard", "member": "user_id"}
    config = PeriodicConfig.model_validate({**given, "columns": {**scores, **details}, "delete_share": 0.5} | settings)
    with ControlSchema(database.dsn) as control:
        control.migrate()
    records = PeriodicRecords(database.dsn, "syncline", "board")
    try:
        with redis.Redis.from_url(valkey.url(), protocol=2) as client:
            yield Board(client, database, config, records)
    finally:
        records.close()
