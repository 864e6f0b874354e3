"""A database captured by triggers, as the engine sees it: identity, installation, stream and points."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

import psycopg
from psycopg import sql

from syncline.capture import SOURCE_OLDER, Again, Identity, Point, Seen, Stream
from syncline.capture.identity import key_columns
from syncline.capture.postgres import PostgresTables
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
from syncline.capture.triggers.stream import TriggerStream, last_number, refuse_held, register
from syncline.errors import Gap, Misconfigured, SynclineError, Unavailable
from syncline.finding import Finding

__all__ = ["TriggerSource"]

Connection = psycopg.Connection[Any]
Talk = Callable[[str], None]

_TELL_S = 3.0
_RESYNC = "Run `syncline resync` to read the tables again, or set on_gap: resync."

_WHO = """
select system_identifier::text, ('x' || substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8))::bit(32)::int,
  (select datname || ':' || oid from pg_database where datname = current_database())
from pg_control_system()
"""
_MARK = """
select sum(t.xmin::text::int8), count(*), sum(t.oid::int8) from pg_trigger t
where not t.tgisinternal and t.tgname like 'syncline\\_%'
"""
# Whoever has an older id than xmax and still runs, or has prepared its transaction.
_OLDER = """
select coalesce(string_agg(distinct pid::text, ', '), 'a prepared transaction') from pg_locks
where locktype = 'transactionid' and mode = 'ExclusiveLock' and granted and pid is not null
  and pid <> pg_backend_pid()
"""


class TriggerSource(PostgresTables):
    """A :class:`~syncline.capture.Source` over the table ``sync_events``, without a replication slot."""

    config_class: ClassVar[type[SourceSettings]] = TriggerSettings
    seen_as: ClassVar[str] = "events"

    def __init__(self, settings: TriggerSettings, control_schema: str) -> None:
        super().__init__(settings, (control_schema, settings.events_schema))
        self.settings = settings
        self._schema = settings.events_schema

    def identify(self) -> Identity:
        with self.connected() as connection:
            system, timeline, database = _row(connection, _WHO)
            there = installation(connection, self._schema)
        return Identity(system, timeline, database, f"triggers {there[0] if there else '-'}")

    def number(self) -> int:
        with self.connected() as connection:
            self._require(connection)
            return last_number(connection, self._schema)

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
            ours = _row(connection, _MARK)
        return (*super().mark(), *ours)

    # ---------------------------------------------------------------------------------------------------------- stream

    def attach(self, identity: Identity, durable: int, talk: Talk) -> int:
        """See :class:`~syncline.capture.Source`. A gap: events behind the log were purged, or the source is older."""
        with self.connected() as connection:
            there = self._require(connection)
            refuse_held(connection, self.settings)
            low, high = _row(
                connection,
                "select pg_snapshot_xmin(s)::text::int8, pg_snapshot_xmax(s)::text::int8 from pg_current_snapshot() s",
            )
            if durable > high:
                raise Gap(
                    f"The source stands at transaction {high}, but the log holds its changes up to {durable}: it was "
                    "restored from an older copy.",
                    remedy=_RESYNC,
                    code=SOURCE_OLDER,
                )
            if durable and durable < there[1]:
                raise Gap(
                    f"Events up to transaction {there[1]} were purged at {describe(self.settings.plain)}, but the log "
                    f"ends at {durable}: what lies between was never captured.",
                    remedy=_RESYNC,
                )
            if not durable:
                register(connection, self.settings, low)
            return durable or int(low)

    def retire(self, identity: Identity) -> None:
        """Forget our reader, so that nothing is kept for it. Raises ``Unavailable`` when somebody else reads."""
        with self.connected() as connection:
            refuse_held(connection, self.settings)
            if installation(connection, self._schema) is not None:
                readers = sql.Identifier(self._schema, "sync_readers")
                connection.execute(sql.SQL("delete from {} where name = %s").format(readers), [self.settings.reader])

    def capture(
        self, tables: list[TableInfo], base: int, incarnation: int, lost: Callable[[str, SynclineError], None]
    ) -> Stream:
        return TriggerStream(self.settings, tables, base=base, incarnation=incarnation, lost=lost)

    def again(self, error: Again) -> None:
        """Its stream never asks for this."""

    @contextmanager
    def point(self, purpose: str, talk: Talk) -> Iterator[Point]:
        """See :class:`~syncline.capture.Source`. Every number up to the first one that is read here belongs to a
        transaction that has ended before the snapshot is taken (correctness rule 24), so what the snapshot shows holds
        all of them: the point waits for the transactions that are open now, as the making of a slot does."""
        dsn = self.settings.plain
        with self.connected(f"{purpose}-holder") as holder:
            self._require(holder)
            number = last_number(holder, self._schema)
            _await_older(
                holder,
                threading.Event(),
                lambda pids: talk(f"{describe(dsn)}: waiting for open transactions to end (pid {pids})"),
            )
            for name in ("statement_timeout", "transaction_timeout", "idle_in_transaction_session_timeout"):
                holder.execute("select set_config(name, '0', false) from pg_settings where name = %s", [name])
            holder.execute("begin isolation level repeatable read, read only")
            (snapshot,) = _row(holder, "select pg_export_snapshot()")
            with self.connected() as other:  # a sequence is not part of any snapshot, but a number drawn now is behind
                reached = last_number(other, self._schema)
            yield Point(number + 1, reached + 1, str(snapshot))

    def advance(self) -> None:
        """Nothing has to be written for it: the stream is through with every number once its transaction has ended."""

    # -------------------------------------------------------------------------------------------------------- looking

    def reader(self) -> int | None:
        with self.connected("verify") as connection:
            if installation(connection, self._schema) is None:
                return None
            try:
                refuse_held(connection, self.settings)
            except Unavailable:
                return self._place(connection)
        return None

    def refuse_in_use(self) -> None:
        with self.connected() as connection:
            refuse_held(connection, self.settings)

    def look(self, place: int | None) -> Seen:
        name = self.settings.reader
        with self.connected("status") as connection:
            if installation(connection, self._schema) is None:
                return Seen({"name": name, "exists": False}, f"{name}: not there yet")
            try:
                refuse_held(connection, self.settings)
                state = "idle"
            except Unavailable:
                state = "reading"
            events = sql.Identifier(self._schema, "sync_events")
            waiting, kept = connection.execute(
                sql.SQL(
                    "select (select count(*) from {events} where txid >= %s::text::xid8),"
                    " pg_total_relation_size({name}::regclass)"
                ).format(events=events, name=sql.Literal(events.as_string(None))),
                [place or 0],
            ).fetchone() or (0, 0)
            oldest_s = max((one.age_s or 0.0 for one in open_transactions(connection, 0)), default=None)
            at = self._place(connection)
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

    def shown(self, number: int) -> str:
        return f"number {number}"

    def lag(self, place: int) -> int | None:
        return None

    def _place(self, connection: Connection) -> int:
        readers = sql.Identifier(self._schema, "sync_readers")
        query = sql.SQL("select place::text::int8 from {} where name = %s").format(readers)
        row = connection.execute(query, [self.settings.reader]).fetchone()
        return int(row[0]) if row is not None else 0

    def _require(self, connection: Connection) -> tuple[str, int]:
        there = installation(connection, self._schema)
        if there is None:
            raise Misconfigured(
                f"Nothing is installed at {describe(self.settings.plain)}: there is no {self._schema}.sync_events.",
                remedy="Run `syncline triggers install`.",
                code="SL-TRIGGERS",
            )
        return there


def _row(connection: Connection, query: str) -> tuple[Any, ...]:
    row = connection.execute(query.encode()).fetchone()
    assert row is not None
    return tuple(row)


def _await_older(connection: Connection, stop: threading.Event, tell: Callable[[str], None]) -> None:
    """Wait until every transaction that is open now has ended."""
    (horizon,) = _row(connection, "select pg_snapshot_xmax(pg_current_snapshot())::text::int8")
    began, told = time.monotonic(), 0.0
    while True:
        (low,) = _row(connection, "select pg_snapshot_xmin(pg_current_snapshot())::text::int8")
        if low >= horizon:
            return
        now = time.monotonic()
        if now - max(began, told) >= _TELL_S:
            (pids,) = _row(connection, _OLDER)
            tell(pids)
            told = now
        stop.wait(0.05)
