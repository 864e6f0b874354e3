"""A database captured by triggers, as the engine sees it: identity, installation, stream and points."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import psycopg
from psycopg import sql

from syncline.capture import Seen, Stream
from syncline.capture.horizon.lock import ReaderLock
from syncline.capture.horizon.source import HorizonSource, Installation, one
from syncline.capture.identity import key_columns
from syncline.capture.settings import SourceSettings
from syncline.capture.source import describe
from syncline.capture.tables import TableInfo
from syncline.capture.transactions import open_transactions
from syncline.capture.triggers.check import preflight
from syncline.capture.triggers.installed import (
    figures,
    install,
    installation,
    look,
    remove,
    script,
    with_triggers,
)
from syncline.capture.triggers.settings import TriggerSettings
from syncline.capture.triggers.stream import TriggerStream, last_number, reader_lock, register
from syncline.errors import Misconfigured, SynclineError
from syncline.finding import Finding

__all__ = ["TriggerSource"]

Connection = psycopg.Connection[Any]
Talk = Callable[[str], None]

_MARK = """
select sum(t.xmin::text::int8), count(*), sum(t.oid::int8) from pg_trigger t
where not t.tgisinternal and t.tgname like 'syncline\\_%'
"""


class TriggerSource(HorizonSource):
    """A :class:`~syncline.capture.Source` over the table ``sync_events``, without a replication slot."""

    config_class: ClassVar[type[SourceSettings]] = TriggerSettings
    way: ClassVar[str] = "triggers"

    def __init__(self, settings: TriggerSettings, control_schema: str, _: Path | None = None) -> None:
        super().__init__(settings, (control_schema, settings.events_schema))
        self.settings = settings
        self._schema = settings.events_schema

    @property
    def lock(self) -> ReaderLock:
        return reader_lock(self.settings)

    def installation(self, connection: Connection) -> Installation | None:
        there = installation(connection, self._schema)
        return None if there is None else Installation(*there)

    def require(self, connection: Connection) -> Installation:
        there = self.installation(connection)
        if there is None:
            raise Misconfigured(
                f"Nothing is installed at {describe(self.settings.plain)}: there is no {self._schema}.sync_events.",
                remedy="Run `syncline triggers install`.",
                code="SL-TRIGGERS",
            )
        return there

    def last_number(self, connection: Connection) -> int:
        return last_number(connection, self._schema)

    def register(self, connection: Connection, place: int) -> None:
        register(connection, self.settings, place)

    def forget(self, connection: Connection) -> None:
        readers = sql.Identifier(self._schema, "sync_readers")
        connection.execute(sql.SQL("delete from {} where name = %s").format(readers), [self.settings.reader])

    def confirmed(self, connection: Connection) -> int:
        readers = sql.Identifier(self._schema, "sync_readers")
        query = sql.SQL("select place::text::int8 from {} where name = %s").format(readers)
        row = connection.execute(query, [self.settings.reader]).fetchone()
        return int(row[0]) if row is not None else 0

    def preflight(self) -> list[Finding]:
        with self.connected("preflight") as connection:
            return preflight(self.settings, connection, self._never)

    # ---------------------------------------------------------------------------------------------------------- tables

    def described(self, tables: Sequence[TableInfo]) -> list[TableInfo]:
        with self.connected() as connection:
            return with_triggers(connection, self._schema, tables, notify=self.settings.notify)

    def prepare(self, tables: Sequence[TableInfo], talk: Talk) -> list[str]:
        if not self.settings.install:
            return []  # a table that came now has no load yet, and the preflight leaves out what has no triggers
        with self.connected("install") as connection:
            added = install(connection, self._schema, tables, notify=self.settings.notify)
        if added:
            talk(f"triggers: made for {', '.join(added)}")
        return added

    def script(self) -> str:
        """What :meth:`install` runs, for somebody who may."""
        tables = self._capturable()
        with self.connected("install") as connection:
            return script(connection, self._schema, tables, notify=self.settings.notify)

    def install(self) -> list[str]:
        """Install what is not there, for every table that can be captured; the tables that had none until now."""
        tables = self._capturable()
        with self.connected("install") as connection:
            return install(connection, self._schema, tables, notify=self.settings.notify)

    def remove(self, *, everything: bool) -> int:
        """Remove the triggers of all tables, also of those that the patterns choose no more; of how many.
        ``everything``: the schema with all events, too."""
        with self.connected("install") as connection:
            return remove(connection, self._schema, everything=everything)

    def installed(self) -> dict[str, Any]:
        """What is there, as JSON can hold it: by table whether it is captured, the readers, and the events."""
        tables = self._capturable()
        with self.connected("status") as connection:
            if installation(connection, self._schema) is None:
                return {"exists": False}
            states = look(connection, self._schema, tables, notify=self.settings.notify)
            return {
                "exists": True,
                "tables": {t.qualified: states[t.oid].words for t in tables},
                **figures(connection, self._schema),
            }

    def _capturable(self) -> list[TableInfo]:
        return [info for info in self.tables() if key_columns(info)]

    def passed_over(self) -> set[str]:
        with self.connected() as connection:
            names = connection.execute(
                "select distinct n.nspname || '.' || c.relname from pg_trigger t join pg_class c on c.oid = t.tgrelid"
                " join pg_namespace n on n.oid = c.relnamespace join pg_proc f on f.oid = t.tgfoid"
                " where f.pronamespace = to_regnamespace(%s) and not c.relispartition",
                [sql.Identifier(self._schema).as_string(None)],
            )
            return {row[0] for row in names}

    def mark(self) -> tuple[Any, ...]:
        with self.connected() as connection:
            ours = one(connection, _MARK)
        return (*super().mark(), *ours)

    def capture(
        self, tables: list[TableInfo], base: int, incarnation: int, lost: Callable[[str, SynclineError], None]
    ) -> Stream:
        return TriggerStream(self.settings, tables, base=base, incarnation=incarnation, lost=lost)

    def look(self, place: int | None) -> Seen:
        name = self.settings.reader
        with self.connected("status") as connection:
            if installation(connection, self._schema) is None:
                return Seen({"name": name, "exists": False}, f"{name}: not there yet")
            state = "reading" if self.lock.is_held(connection) else "idle"
            events = sql.Identifier(self._schema, "sync_events")
            waiting, kept = connection.execute(
                sql.SQL(
                    "select (select count(*) from {events} where txid >= %s::text::xid8),"
                    " pg_total_relation_size({name}::regclass)"
                ).format(events=events, name=sql.Literal(events.as_string(None))),
                [place or 0],
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
        return Seen(facts, f"{name}: {state}, {waiting} events waiting", None, kept)

    def unseen(self) -> dict[str, Any]:
        return {"name": self.settings.reader}
