"""PostgreSQL captured from its WAL, as the engine sees it: publication, slot, stream and points."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import psycopg
import pyarrow as pa
from psycopg import sql

from syncline.capture import SOURCE_OLDER, Again, Identity, LoadProgress, Point, Pressure, Seen, Stream
from syncline.capture.digests import chosen_in, digested
from syncline.capture.facts import table_facts
from syncline.capture.heal import read_rows
from syncline.capture.integrity import Constraint, asked, constraints, orphans, row_filters
from syncline.capture.outbox.expand import EventParking
from syncline.capture.outbox.stream import OutboxCapture
from syncline.capture.outbox.tables import as_captured, newly_captured, outbox_table, streamed
from syncline.capture.patterns import candidates, matching
from syncline.capture.preflight import preflight
from syncline.capture.pressure import long_transactions, slot_budget
from syncline.capture.runs import RunRecords
from syncline.capture.settings import PostgresSettings, SourceSettings
from syncline.capture.slot import (
    check_slot,
    create_slot,
    drop_slot,
    ensure_publication,
    format_lsn,
    identify,
    parse_lsn,
    published_names,
    read_slot,
    refuse_in_use,
    with_publication,
)
from syncline.capture.snapshot import consistent_point, count_table, read_keys, read_table
from syncline.capture.source import SourceConfig, connect, translated
from syncline.capture.tables import TableInfo, catalogue_mark, matching_tables
from syncline.capture.wal import WalCapture, emit_progress
from syncline.change import Batch, TableSchema
from syncline.digests import Buckets, Chosen
from syncline.errors import Gap, SynclineError, Unavailable
from syncline.finding import Finding
from syncline.mapping import Facts

__all__ = ["PostgresTables", "WalSource"]

Talk = Callable[[str], None]

_WAL_AT = "select (pg_current_wal_lsn() - '0/0'::pg_lsn)::int8"
_WAL_END = "select (case when pg_is_in_recovery() then pg_last_wal_replay_lsn() else pg_current_wal_lsn() end)::text"
_WAL_LIMIT = (
    "select case when setting::int8 < 0 then -1 else setting::int8 * 1024 * 1024 end from pg_settings"
    " where name = 'max_slot_wal_keep_size'"
)


class PostgresTables:
    """What sources have in common whose tables are those of a PostgreSQL database: the catalogue's side of a
    :class:`~syncline.capture.Source`. ``never`` are schemas that are never captured."""

    def __init__(self, settings: PostgresSettings, never: Sequence[str]) -> None:
        self._settings = settings
        self._never = tuple(never)
        self._kept: psycopg.Connection[Any] | None = None
        self._parking: EventParking | None = None

    @contextmanager
    def connected(self, purpose: str = "") -> Iterator[psycopg.Connection[Any]]:
        """A connection for the block, whose errors are translated; ``purpose`` becomes part of its name."""
        dsn, name = self._settings.plain, f"syncline-{purpose}" if purpose else "syncline"
        timeout_s = self._settings.connect_timeout_s
        with translated(dsn), connect(dsn, timeout_s=timeout_s, application=name) as connection:
            yield connection

    def names(self) -> list[str]:
        with self.connected("control") as connection:
            found = candidates(connection, self._never)
        chosen = matching(found, self._settings.patterns, self._settings.excluded_tables).chosen
        return [relation.qualified for relation in chosen]

    def tables(self) -> list[TableInfo]:
        settings = self._settings
        with self.connected() as connection:
            return matching_tables(connection, settings.patterns, settings.excluded_tables, self._never)

    def facts(self, tables: Sequence[TableInfo]) -> dict[str, Facts]:
        with self.connected() as connection:
            return table_facts(connection, tables)

    def mark(self) -> tuple[Any, ...]:
        with self.connected() as connection:
            return catalogue_mark(connection, self._never)

    def rows(
        self,
        info: TableInfo,
        point: Point,
        version: int,
        stop: threading.Event,
        progress: Callable[[LoadProgress], None],
    ) -> Iterator[Batch]:
        return read_table(self._settings, info, point.snapshot, version, stop, progress)

    def digested(self, info: TableInfo, point: Point, buckets: Buckets) -> tuple[TableSchema, pa.Table] | None:
        return digested(self._settings, info, point.snapshot, buckets)

    def chosen(
        self,
        info: TableInfo,
        point: Point,
        chosen: Chosen,
        stop: threading.Event,
        progress: Callable[[LoadProgress], None],
    ) -> Iterator[Batch]:
        return chosen_in(self._settings, info, point.snapshot, chosen, stop, progress)

    def rows_of(self, info: TableInfo, point: Point, keys: pa.RecordBatch, version: int) -> Batch:
        return read_keys(self._settings, info, point.snapshot, keys, version)

    def heal(
        self, schema: TableSchema, keys: pa.RecordBatch, xids: Sequence[int], stop: threading.Event
    ) -> pa.RecordBatch:
        return read_rows(self._settings, schema, keys, xids, stop)

    def counted(self, info: TableInfo, point: Point) -> int:
        """How many rows :meth:`rows` would give. An optional capability of a source; raises as it does."""
        return count_table(self._settings, info, point.snapshot)

    def fetch(self, schema: TableSchema, keys: pa.RecordBatch) -> pa.RecordBatch:
        """The rows with these keys as they are now: an optional capability of a source."""
        return read_rows(self._settings, schema, keys, (), threading.Event())

    def ask(self, query: str, timeout_s: float) -> Iterator[tuple[Any, ...]]:
        """The rows of somebody's query, in a transaction that only reads: an optional capability of a source, with the
        errors of :meth:`syncline.stores.Asking.ask`."""
        return self._asked(query, timeout_s)

    def constraints(self, tables: Sequence[TableInfo]) -> list[Constraint]:
        """The foreign keys of the tables: an optional capability of a source."""
        with self.connected("verify") as connection:
            return constraints(connection, tables)

    def filtered(self, tables: Sequence[TableInfo]) -> set[str]:
        """Of these tables those of which the publication leaves out some rows, by name."""
        with self.connected("verify") as connection:
            found = row_filters(connection, self._settings.published_by, [info.oid for info in tables])
        return {info.qualified for info in tables if info.oid in found}

    def orphans(self, constraint: Constraint, timeout_s: float) -> Iterator[tuple[Any, ...]]:
        """What is told of the rows that break a foreign key. Raises as :meth:`ask`."""
        return self._asked(orphans(constraint), timeout_s)

    def _asked(self, query: str | sql.Composed, timeout_s: float) -> Iterator[tuple[Any, ...]]:
        try:
            with self.connected("verify") as connection:
                yield from asked(connection, query, timeout_s)
        except SynclineError as error:
            if isinstance(error.__cause__, psycopg.errors.QueryCanceled):
                raise Unavailable(f"The query took PostgreSQL longer than {timeout_s:g} s.") from None
            raise

    def park_events(self, parking: EventParking) -> None:
        self._parking = parking

    def record_runs(self, records: RunRecords) -> None:
        """Their streams are not made of runs."""

    def kept(self) -> psycopg.Connection[Any]:
        """A connection that stays open until :meth:`close`, for what is asked every second."""
        if self._kept is None or self._kept.closed:
            timeout_s = self._settings.connect_timeout_s
            self._kept = connect(self._settings.plain, timeout_s=timeout_s, application="syncline-housekeeping")
        return self._kept

    def pressures(self) -> list[Pressure]:
        with translated(self._settings.plain):
            return long_transactions(self.kept(), self._settings.long_transaction_s)

    def close(self) -> None:
        if self._kept is not None:
            self._kept.close()


class WalSource(PostgresTables):
    """A :class:`~syncline.capture.Source` over one publication and one replication slot."""

    config_class: ClassVar[type[SourceSettings]] = SourceConfig
    seen_as: ClassVar[str] = "slot"

    def __init__(self, settings: SourceConfig, control_schema: str, _: Path | None = None) -> None:
        super().__init__(settings, settings.never(control_schema))
        self.settings = settings
        self._outbox: TableInfo | None = None
        self._control_schema = control_schema
        self._needs_text = False  # a value that the binary format can't give exactly was met

    def identify(self) -> Identity:
        return identify(self.settings)

    def number(self) -> int:
        with self.connected() as connection:
            return int(_one(connection, _WAL_AT))

    def preflight(self) -> list[Finding]:
        return preflight(self.settings, self._control_schema)

    def described(self, tables: Sequence[TableInfo]) -> list[TableInfo]:
        with self.connected() as connection:
            found = with_publication(connection, self.settings.publication, tables)
        return as_captured(self.settings.outbox, found)

    def prepare(self, tables: Sequence[TableInfo], talk: Talk) -> list[str]:
        publication = self.settings.publication
        with self.connected() as connection:
            added = ensure_publication(connection, publication, self._streamed(connection, tables))
        if added:
            talk(f"publication {publication}: added {', '.join(added)}")
        outbox = self.settings.outbox
        return added if outbox is None else newly_captured(outbox, tables, added)

    def _streamed(self, connection: psycopg.Connection[Any], tables: Sequence[TableInfo]) -> Sequence[TableInfo]:
        """What the stream is to hold. Changes of a table that events tell of are not: they would come twice."""
        outbox = self.settings.outbox
        if outbox is None:
            return tables
        self._outbox = outbox_table(connection, outbox)
        return streamed(outbox, self._outbox, tables)

    def passed_over(self) -> set[str]:
        with self.connected() as connection:
            published = published_names(connection, self.settings.publication)
        return published - ({self._outbox.qualified} if self._outbox is not None else set())

    # ---------------------------------------------------------------------------------------------------------- stream

    def attach(self, identity: Identity, durable: int, talk: Talk) -> int:
        """See :class:`~syncline.capture.Source`; raises ``Gap`` as :func:`~syncline.capture.slot.check_slot` does, or
        because the source is older than the log. Somebody who reads from the slot is looked at first: whatever it shows
        then is not about this log."""
        settings = self.settings
        with self.connected() as connection:
            slot = read_slot(connection, settings.slot)
            refuse_in_use(connection, slot)
            now = int(_one(connection, _WAL_AT))
            if now < durable:
                # Streaming from a place that this WAL has yet to reach would skip whatever commits before it.
                raise Gap(
                    f"The source stands at {format_lsn(now)}, but the log holds its changes up to "
                    f"{format_lsn(durable)}: it was restored from an older copy.",
                    remedy="Run `syncline resync` to read the tables again, or set on_gap: resync.",
                    code=SOURCE_OLDER,
                )
            if durable == 0 and slot is not None and slot.wal_status == "lost":
                drop_slot(connection, slot.name)
                slot = None
            if durable == 0 and slot is None:
                talk(f"creating replication slot {settings.slot}")
                return create_slot(settings, settings.slot, talk)
            check_slot(slot, settings.slot, identity.database.rpartition(":")[0], durable)
            assert slot is not None
            return durable or slot.confirmed

    def retire(self, identity: Identity) -> None:
        """Drop our slot, if it is ours. Raises ``Unavailable`` when somebody else reads from it."""
        with self.connected() as connection:
            slot = read_slot(connection, self.settings.slot)
            refuse_in_use(connection, slot)  # our own former session has hung up; whoever reads now is another engine
            if slot is not None and slot.plugin == "pgoutput" and slot.database == identity.database.rpartition(":")[0]:
                drop_slot(connection, slot.name)

    def capture(
        self, tables: list[TableInfo], base: int, incarnation: int, lost: Callable[[str, SynclineError], None]
    ) -> Stream:
        settings = self.settings.model_copy(update={"binary": False}) if self._needs_text else self.settings
        if self._outbox is None:
            return WalCapture(settings, tables, base=base, incarnation=incarnation, lost=lost)
        assert self._parking is not None
        return OutboxCapture(
            settings, self._outbox, tables, self._parking, base=base, incarnation=incarnation, lost=lost
        )

    def again(self, error: Again) -> None:
        self._needs_text = True

    @contextmanager
    def point(self, purpose: str, talk: Talk) -> Iterator[Point]:
        with consistent_point(self.settings, purpose, talk) as (lsn, snapshot):
            yield Point(lsn, lsn, snapshot)

    def advance(self) -> None:
        with self.connected("verify") as connection:
            emit_progress(connection)

    # -------------------------------------------------------------------------------------------------------- looking

    def reader(self) -> int | None:
        with self.connected("verify") as connection:
            slot = read_slot(connection, self.settings.slot)
        return slot.confirmed if slot is not None and slot.active_pid is not None else None

    def refuse_in_use(self) -> None:
        with self.connected() as connection:
            refuse_in_use(connection, read_slot(connection, self.settings.slot))

    def look(self, place: int | None) -> Seen:
        with self.connected("status") as connection:
            slot = read_slot(connection, self.settings.slot)
            now = parse_lsn(_one(connection, _WAL_END) or "0/0")
        behind = max(0, now - place) if place else None
        if slot is None:
            name = self.settings.slot
            return Seen({"name": name, "exists": False, "wal_lsn_bytes": now}, f"{name}: not there yet", behind)
        retained = max(0, now - slot.restart)
        facts = {
            "name": slot.name,
            "exists": True,
            "active_pid": slot.active_pid,
            "wal_status": slot.wal_status,
            "confirmed": format_lsn(slot.confirmed),
            "retained_bytes": retained,
            "safe_wal_bytes": slot.safe_wal_size,
            "wal_lsn_bytes": now,
        }
        words = f"{slot.name}: {'streaming' if slot.active_pid else 'idle'}, {slot.wal_status}"
        return Seen(facts, words, behind, retained)

    def unseen(self) -> dict[str, Any]:
        return {"name": self.settings.slot}

    def shown(self, number: int) -> str:
        return format_lsn(number)

    def lag(self, place: int) -> int | None:
        with translated(self.settings.plain):
            now = int(_one(self.kept(), _WAL_AT))
        return max(0, now - place) if place else None

    def pressures(self) -> list[Pressure]:
        with translated(self.settings.plain):
            slot, now = read_slot(self.kept(), self.settings.slot), int(_one(self.kept(), _WAL_AT))
            limit = int(_one(self.kept(), _WAL_LIMIT))
        return [*super().pressures(), *slot_budget(slot, now, limit, self.settings)]


def _one(connection: psycopg.Connection[Any], query: str) -> Any:
    row = connection.execute(query.encode()).fetchone()
    return row[0] if row is not None else None
