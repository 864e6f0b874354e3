"""A database whose outbox is polled, as the engine sees it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import psycopg
from psycopg import sql

from syncline.capture import Seen, Stream
from syncline.capture.horizon.lock import ReaderLock
from syncline.capture.horizon.source import HorizonSource, Installation
from syncline.capture.outbox.polled.check import preflight
from syncline.capture.outbox.polled.installed import begin, confirmed, installation
from syncline.capture.outbox.polled.settings import PolledOutboxSettings
from syncline.capture.outbox.polled.stream import PolledOutboxStream, last_number, reader_lock
from syncline.capture.outbox.progress import begin_anew
from syncline.capture.outbox.tables import as_captured, outbox_table
from syncline.capture.settings import SourceSettings
from syncline.capture.tables import TableInfo
from syncline.capture.transactions import open_transactions
from syncline.errors import Misconfigured, SynclineError
from syncline.finding import Finding

__all__ = ["PolledOutboxSource"]

Connection = psycopg.Connection[Any]

# The events behind a place are counted, but not for long.
_COUNTED = 100_000


class PolledOutboxSource(HorizonSource):
    """A :class:`~syncline.capture.Source` over the table ``sync_event_log``, without a replication slot."""

    config_class: ClassVar[type[SourceSettings]] = PolledOutboxSettings
    way: ClassVar[str] = "outbox"

    def __init__(self, settings: PolledOutboxSettings, control_schema: str, _: Path | None = None) -> None:
        super().__init__(settings, (control_schema, settings.outbox.schema_name))
        self.settings = settings
        self._schema = settings.outbox.schema_name

    @property
    def lock(self) -> ReaderLock:
        return reader_lock(self.settings)

    def installation(self, connection: Connection) -> Installation | None:
        return installation(connection, self._schema)

    def require(self, connection: Connection) -> Installation:
        outbox_table(connection, self.settings.outbox)  # raises where there is none
        there = self.installation(connection)
        if there is None:
            raise Misconfigured(
                f"The outbox {self.settings.outbox.table} was made by an older version, and can't be polled.",
                remedy="Run `syncline outbox install`, which brings it up to date.",
                code="SL-NO-OUTBOX",
            )
        return there

    def last_number(self, connection: Connection) -> int:
        return last_number(connection, self._schema)

    def register(self, connection: Connection, place: int) -> None:
        begin(connection, self._schema, place)
        begin_anew(connection, self._schema)

    def forget(self, connection: Connection) -> None:
        begin(connection, self._schema, None)

    def confirmed(self, connection: Connection) -> int:
        return confirmed(connection, self._schema)

    def preflight(self) -> list[Finding]:
        with self.connected("preflight") as connection:
            return preflight(self.settings, connection, self._never)

    def described(self, tables: Sequence[TableInfo]) -> list[TableInfo]:
        return as_captured(self.settings.outbox, tables)

    def prepare(self, tables: Sequence[TableInfo], talk: Callable[[str], None]) -> list[str]:
        with self.connected() as connection:
            self.require(connection)
        return []  # a table that came now has no load yet

    def passed_over(self) -> set[str]:
        return set()  # events of others are parked, or nobody's

    def capture(
        self, tables: list[TableInfo], base: int, incarnation: int, lost: Callable[[str, SynclineError], None]
    ) -> Stream:
        assert self._parking is not None
        return PolledOutboxStream(self.settings, tables, self._parking, base=base, incarnation=incarnation, lost=lost)

    def look(self, place: int | None) -> Seen:
        name = self.settings.outbox.table
        with self.connected("status") as connection:
            if self.installation(connection) is None:
                return Seen({"name": name, "exists": False}, f"{name}: not there yet")
            state = "reading" if self.lock.is_held(connection) else "idle"
            events = sql.Identifier(self._schema, "sync_event_log")
            waiting, kept = connection.execute(
                sql.SQL(
                    "select (select count(*) from (select from {events} where txid >= %s::text::xid8 limit %s) w), ("
                    " select coalesce(sum(pg_total_relation_size(relid)), 0)::int8 from pg_partition_tree({name}))"
                ).format(events=events, name=sql.Literal(events.as_string(None))),
                [place or 0, _COUNTED],
            ).fetchone() or (0, 0)
            oldest_s = max((one.age_s or 0.0 for one in open_transactions(connection, 0)), default=None)
            at = self.confirmed(connection)
        facts = {
            "name": name,
            "exists": True,
            "state": state,
            "place": at,
            "waiting_events": waiting,
            "kept_bytes": kept,
            "oldest_transaction_s": oldest_s,
        }
        more = " or more" if waiting == _COUNTED else ""
        return Seen(facts, f"{name}: {state}, {waiting}{more} events waiting", None, kept)

    def unseen(self) -> dict[str, Any]:
        return {"name": self.settings.outbox.table}
