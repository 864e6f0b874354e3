"""The PostgreSQL store: works applied in one transaction with their cursor, under the version guard.

How it writes (decision record 0016): each column of a batch is one binary array, and one ``INSERT ... ON CONFLICT`` (or
``DELETE``) takes them all. Rows are updated in place, so what is not ours in them, and what refers to them, stays.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import msgspec
import psycopg
import pyarrow as pa

from syncline.bookkeeping import bookkept
from syncline.change import Cursor, TableSchema
from syncline.cursors import Left
from syncline.errors import Misconfigured, Rejected, SynclineError
from syncline.stores import Limits, TableWork, Work
from syncline.stores.postgres.meeting import met
from syncline.stores.postgres.reading import fetch_rows, scan_rows
from syncline.stores.postgres.server import (
    IDENTITY,
    Connection,
    PostgresConfig,
    connect_reader,
    connect_writer,
    describe,
    evict,
    failed,
    hang_up,
    mark,
    refuses_values,
)
from syncline.stores.postgres.sql import FORMAT, Statements, bookkeeping, quote, shown
from syncline.stores.postgres.tables import Setting, TableState, migrate_table, table_state
from syncline.stores.postgres.writing import (
    TableWriter,
    incoming_keys,
    inexact_rows,
    keys_of,
    refused_positions,
    subset,
)

if TYPE_CHECKING:
    from syncline.finding import Finding
    from syncline.stores.postgres.copy import PostgresCopy

__all__ = ["PostgresStore"]

# A truncation of more than this is done in pieces before the work itself (correctness rule 19).
_LARGE_BLOCKS = 8192
_BLOCK_BYTES = 8192
_PATIENCE_S = 2.0
_FENCED = "SL-POSTGRES-FENCED"
_SETUP_LOCK = 0x53594E43
# What may be refused for the order of the rows, and not for what they hold.
_ORDER = (
    psycopg.errors.UniqueViolation,
    psycopg.errors.ExclusionViolation,
    psycopg.errors.ForeignKeyViolation,
    psycopg.errors.RestrictViolation,
)


class PostgresStore:
    """The contract of :class:`syncline.stores.Store` in a PostgreSQL database.

    Tables stand where the mapping says (by default under their own names), with one more column, ``_syncline_version``.
    Everything else of Syncline's is in a schema of its own.
    """

    config_class = PostgresConfig
    form = "rows"
    limits = Limits()

    def __init__(self, config: PostgresConfig, name: str) -> None:
        self.config = config
        self.name = name
        self._own = quote(config.schema_name)
        self._lock = threading.RLock()
        self._connection: Connection | None = None
        self._acting = False
        self._marked = False
        self._source = ""
        self._epoch = 0
        self._at_home = False
        self._states: dict[str, TableState] = {}
        self._left = Left(f"PostgreSQL at {describe(config)}")
        self._overruled = 0

    @staticmethod
    def check(config: PostgresConfig) -> Iterator[Finding]:
        """What stands in the way at the server, for `syncline doctor`. Changes nothing."""
        from syncline.stores.postgres.check import check

        return check(config)

    @staticmethod
    def check_source(
        config: PostgresConfig, system_identifier: str, timeline: int, database: str, schemas: Sequence[TableSchema]
    ) -> Iterator[Finding]:
        """Tables that would be copied onto themselves, for `syncline doctor`. Changes nothing."""
        from syncline.stores.postgres.check import check_source

        return check_source(config, (system_identifier, timeline, database), schemas)

    @staticmethod
    def statements(schema: TableSchema) -> list[str]:
        """What changed rows of the table become, to be shown to people."""
        return shown(schema)

    @staticmethod
    def reader(config: PostgresConfig) -> PostgresCopy:
        """A read-only look at the copy, whether or not an engine writes to it."""
        from syncline.stores.postgres.copy import PostgresCopy

        return PostgresCopy(config)

    # ------------------------------------------------------------------------------------------ open and close

    def open(self, source: str) -> Cursor | None:
        """Connect, prepare the bookkeeping, shut out whoever wrote before, and return the durable cursor of ``source``.

        Raises:
            Misconfigured: the server refuses the login or a right, or is a standby, or a newer Syncline wrote here.
            Unavailable: the server is away.
        """
        self.close()
        self._source = source
        with self._session() as connection, connection.transaction():
            self._prepare(connection)
            row = connection.execute(
                f"insert into {self._own}.cursors as c values ($1, 1) on conflict (source)"
                " do update set epoch = c.epoch + 1 returning epoch, body",
                [source],
            ).fetchone()
        assert row is not None
        self._epoch = row[0]
        self._left.opened(row[1])
        return bookkept(row[1], Cursor) if row[1] else None

    def _prepare(self, connection: Connection) -> None:
        """Make our own schema if it is not there. A lock, because ``if not exists`` does not wait for its twin."""
        connection.execute("select pg_advisory_xact_lock($1)", [_SETUP_LOCK])
        known = connection.execute("select to_regclass($1)", [f"{self._own}.format"]).fetchone()
        if known is None or known[0] is None:
            there = connection.execute("select 1 from pg_namespace where nspname = $1", [self.config.schema_name])
            if there.fetchone() is None:
                connection.execute(f"create schema {self._own}")
            for statement in bookkeeping(self._own):
                connection.execute(statement)
            connection.execute(f"insert into {self._own}.format values ({FORMAT})")
            return
        row = connection.execute(f"select max(version) from {self._own}.format").fetchone()
        if row is not None and (row[0] or 0) > FORMAT:
            raise Misconfigured(
                f"Schema {self.config.schema_name} at {describe(self.config)} was written by a newer Syncline (format"
                f" {row[0]}, this one knows {FORMAT}).",
                remedy="Upgrade Syncline.",
            )

    def source_is(self, system_identifier: str, timeline: int, database: str) -> None:
        """Hear who the source is, before the first ``migrate``: a table is never copied onto itself.

        Raises:
            Unavailable, Misconfigured: as for ``open``.
        """
        with self._session() as connection:
            row = connection.execute(IDENTITY).fetchone()
        self._at_home = row is not None and tuple(row) == (system_identifier, timeline, database)

    def close(self) -> None:
        """End the session. Idempotent; a work that hangs in another thread is given up."""
        if not self._lock.acquire(timeout=_PATIENCE_S):
            hang_up(self._connection)
            self._lock.acquire()
        try:
            self._let_go()
        finally:
            self._lock.release()

    def _let_go(self) -> None:
        """Close the session, which rolls back, and forget what is known of the tables."""
        self._states.clear()
        self._marked = False
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    @contextmanager
    def _session(self) -> Iterator[Connection]:
        """The session that writes, which one thread has at a time.

        Raises:
            Unavailable, Misconfigured: the server failed; its error is the cause.
        """
        with self._lock:
            try:
                if self._connection is None:
                    self._connection, self._acting = connect_writer(self.config, self._source)
                yield self._connection
            except psycopg.Error as error:
                if not refuses_values(error):
                    self._let_go()  # a commit that failed may or may not have happened
                raise failed(error, self.config) from error
            except SynclineError as error:
                if error.code == _FENCED:
                    self._let_go()  # and with it of the replication origin
                raise
            except BaseException:
                self._let_go()
                raise

    @contextmanager
    def _transaction(self, cursor: Cursor | None = None) -> Iterator[Connection]:
        """One transaction that nobody else's can overtake: the source's row is locked, and ours, before anything else.

        ``cursor`` is written with it (Guarantee 3).

        Raises:
            Misconfigured: another engine has taken over.
        """
        with self._session() as connection:
            if not self._marked:
                self._mark(connection)
            with connection.transaction():
                self._fence(connection, cursor)
                yield connection

    def _fence(self, connection: Connection, cursor: Cursor | None) -> None:
        mine: list[Any] = [self._source, self._epoch]
        query = f"select body from {self._own}.cursors where source = $1 and epoch = $2 for no key update"
        if cursor is not None:
            query = (
                f"with left_there as ({query}) update {self._own}.cursors c set body = $3 from left_there"
                " where c.source = $1 and c.epoch = $2 returning left_there.body"
            )
            mine.append(msgspec.json.encode(cursor).decode())
        found = connection.execute(query, mine).fetchone()
        if found is None:
            if not connection.execute(f"select from {self._own}.cursors where source = $1", [self._source]).rowcount:
                self._left.check(None)
            raise Misconfigured(
                f"Target {self.name} was opened by another engine (or its database was restored) meanwhile.",
                remedy="Run one engine for a source and a target; restart this one if it is the one.",
                code=_FENCED,
            )
        self._left.check(found[0])
        if cursor is not None:
            self._left.writing(mine[-1])

    def _mark(self, connection: Connection) -> None:
        """Take the replication origin, of which one session at a time can have the use, if need be from the session of
        an engine before us that has not ended yet. No transaction is open here that a refusal would end."""
        try:
            mark(connection, self.config, self._source)
        except psycopg.errors.ObjectInUse:
            self._fence(connection, None)  # never from one that came after us
            evict(connection)
            mark(connection, self.config, self._source)  # still in use: by somebody else, or one that doesn't end
        self._marked = True

    # ------------------------------------------------------------------------------------------ migrate and apply

    def migrate(self, schema: TableSchema) -> TableSchema | None:
        """Make the table fit the schema; see the contract.

        Raises:
            Misconfigured: an existing table can't be adopted, or its name, place or owner is another's.
        """
        with self._transaction() as connection:
            unwanted = self._acting and self.config.session_replication_role == "replica"
            setting = Setting(self._own, self._source, unwanted, self._at_home)
            state, former = migrate_table(connection, setting, schema)
        self._states[schema.qualified] = state
        return former

    def apply(self, work: Work) -> None:
        """Write the work and its cursor in one transaction, durable on return.

        Raises:
            Rejected: the server refuses values. Positions count the upserts, then the partials.
            Unavailable, Misconfigured: as the contract says.
        """
        with self._lock:
            for table in work.tables:
                bad = inexact_rows(table.schema, table.rows)
                if bad:
                    raise Rejected(table.schema.qualified, bad, "a decimal has more places than its column")
                self._sweep_ahead(table)
            try:
                self._write(work.tables, work.cursor)
            except SynclineError as error:
                if not refuses_values(error.__cause__):
                    raise
                self._write(self._without_refused(work, error.__cause__), work.cursor)

    @property
    def overruled(self) -> int:
        """Changes that were not written, because what they rest on was changed here meanwhile."""
        return self._overruled

    def _write(self, tables: Sequence[TableWork], cursor: Cursor | None) -> None:
        """One transaction, and another with more care where constraints of the target stand in the way of the order."""
        try:
            self._attempt(tables, cursor)
        except SynclineError as error:
            if not isinstance(error.__cause__, _ORDER):
                raise
            self._states.clear()  # somebody may have added the constraint just now
            self._attempt(tables, cursor, careful=True)

    def _attempt(
        self,
        tables: Sequence[TableWork],
        cursor: Cursor | None,
        *,
        careful: bool = False,
        aside: Sequence[pa.RecordBatch] = (),
    ) -> None:
        overruled = 0
        with self._transaction(cursor) as connection:
            states = [self._state(connection, t.schema) for t in tables]
            judged = [met(connection, t, s) for t, s in zip(tables, states, strict=True)]
            tables, overruled = [t for t, _ in judged], sum(n for _, n in judged)
            if self._acting and any(s.deferrable for s in states):
                connection.execute("set constraints all deferred")
            writers = [
                TableWriter(connection, t, s, careful, self._acting, aside) for t, s in zip(tables, states, strict=True)
            ]
            (_in_order if careful and self._acting else _one_by_one)(writers)
            if cursor is None:  # a trial
                raise psycopg.Rollback
        self._overruled += overruled
        if cursor is not None:
            self._left.written(msgspec.json.encode(cursor).decode())
            self._states.update((w.work.schema.qualified, w.behind) for w in writers)

    def _state(self, connection: Connection, schema: TableSchema) -> TableState:
        state = self._states.get(schema.qualified)
        if state is None or state.fingerprint != schema.fingerprint:
            state = self._states[schema.qualified] = table_state(connection, self._own, schema)
        return state

    def _without_refused(self, work: Work, error: BaseException | None) -> list[TableWork]:
        """The server refused values without saying which: find them by halves, rolling everything back.

        A key that it refuses was never stored, so its deletion is done.

        Raises:
            Rejected: rows are refused.
            Misconfigured: it takes each of them alone.
        """
        kind, left, found = type(error).__name__, [], False
        for table in work.tables:
            upserts, partials = (0 if b is None else b.num_rows for b in (table.rows.upserts, table.rows.partials))
            everything = range(len(table.rows))
            bad = refused_positions(everything, partial(self._refuses, table))
            rows = [p for p in bad if p < upserts + partials]
            if rows:
                rows = self._to_blame(table, rows)
                raise Rejected(table.schema.qualified, rows, f"PostgreSQL does not take a value ({kind})")
            found |= bool(bad)
            good = subset(table, sorted(set(range(len(table.rows))) - set(bad))) if bad else table
            left.append(replace(good, bases=table.bases))
        if not found:
            raise Misconfigured(
                f"PostgreSQL at {describe(self.config)} refused changes of"
                f" {', '.join(t.schema.qualified for t in work.tables)} ({kind}), though it takes each of them alone.",
                remedy="Make the constraints of the target DEFERRABLE, or drop them: the source keeps them.",
            ) from error
        return left

    def _to_blame(self, table: TableWork, rows: list[int]) -> list[int]:
        """Of rows that are refused alone those that are to blame: not one whose unique value is free once another row
        of the work has given it up. So each is tried while the others are out of the way."""
        if len(rows) == 1 or self._acting:  # foreign keys may forbid that a row is away
            return rows
        return refused_positions(rows, partial(self._refuses, table, alone=False)) or rows

    def _refuses(self, work: TableWork, chosen: Sequence[int], *, alone: bool = True) -> bool:
        """Whether these rows of the work are refused: beside the others as they are stored, or while those are away."""
        table = subset(work, chosen)
        others = () if alone else keys_of(subset(work, sorted(set(range(len(work.rows))) - set(chosen))))
        try:
            if alone:
                self._write([table], None)
            else:
                self._attempt([table], None, careful=True, aside=others)
        except SynclineError as error:
            if not refuses_values(error.__cause__):
                raise
            return True
        return False

    def _sweep_ahead(self, table: TableWork) -> None:
        """A large truncation goes in pieces ahead of the cursor (correctness rule 19): a crash between them only means
        that it is done again. Partial rows may still need what it removes, so with them it is left to the work."""
        if table.truncated is None or table.rows.partials is not None:
            return
        with self._transaction() as connection:
            state = self._state(connection, table.schema)
            row = connection.execute("select pg_relation_size($1::oid)", [state.oid]).fetchone()
        blocks = 0 if row is None or state.partitioned else int(row[0]) // _BLOCK_BYTES
        if blocks <= _LARGE_BLOCKS:
            return
        for first in range(0, blocks + 1, _LARGE_BLOCKS):
            span = f" and t.ctid >= '({first},0)' and t.ctid < '({first + _LARGE_BLOCKS},0)'"
            with self._transaction() as connection:
                connection.execute(Statements(state.target).sweep(table.truncated, span))

    # ------------------------------------------------------------------------------------------ read and purge

    def fetch(self, schema: TableSchema, keys: pa.RecordBatch) -> pa.Table:
        """The stored rows of these keys, in one look. A row without a version has version 0."""
        with self._session() as connection:
            state = self._state(connection, schema)
            given, wires = incoming_keys(state, keys)
            return fetch_rows(connection, state, given, wires)

    def scan(self, schema: TableSchema) -> Iterator[pa.RecordBatch]:
        """All rows in one consistent view, streamed. A row without a version has version 0."""
        with reading(self.config) as connection:
            yield from scan_rows(connection, table_state(connection, self._own, schema))

    def purge(self, source: str, below: int) -> int:
        """Forget tombstones below ``below`` of the tables of ``source``, and record the horizon, in one transaction."""
        forgotten = 0
        with self._transaction() as connection:
            mine = connection.execute(f"select name, number from {self._own}.tables where source = $1", [source])
            for name, number in mine.fetchall():
                gone = connection.execute(f"delete from {self._own}.deleted_{number} where version < $1", [below])
                forgotten += gone.rowcount
                connection.execute(f"delete from {self._own}.moved where name = $1 and version < $2", [name, below])
            connection.execute(
                f"update {self._own}.tables set horizon = $1 where source = $2 and horizon < $1", [below, source]
            )
        self._states = {n: replace(s, horizon=max(s.horizon, below)) for n, s in self._states.items()}
        return forgotten

    def forget(self, schema: TableSchema, keys: pa.RecordBatch, above: int) -> None:
        """Rows and tombstones of these keys with a version above ``above`` lose it, in one transaction. A row stays
        where it is: other tables may refer to it."""
        with self._transaction() as connection:
            state = self._state(connection, schema)
            given, wires = incoming_keys(state, keys)
            for statement in Statements(state.target).forget(given, above):
                connection.execute(statement, list(wires))
            for noted in ("truncated", "horizon"):
                connection.execute(
                    f"update {self._own}.tables set {noted} = 0 where name = $1 and {noted} > $2",
                    [schema.qualified, above],
                )
        self._states.pop(schema.qualified, None)

    def back_up(self, schema: TableSchema, label: int, keep: int) -> str:
        """Copy the table as it is; the name of the copy, which is in our own schema. See the capability."""
        with self._transaction() as connection:
            state = self._state(connection, schema)
            row = connection.execute(
                f"select number from {self._own}.tables where name = $1", [schema.qualified]
            ).fetchone()
            assert row is not None
            prefix = f"backup_{row[0]}_"
            name = f"{self._own}.{quote(f'{prefix}{label}')}"
            connection.execute(f"create table if not exists {name} as table {Statements(state.target).table}")
            old = connection.execute(
                "select tablename from pg_tables where schemaname = $1 and starts_with(tablename, $2)"
                " order by substr(tablename, length($2) + 1)::bigint desc offset $3",
                [self.config.schema_name, prefix, keep],
            )
            for (gone,) in old.fetchall():
                connection.execute(f"drop table {self._own}.{quote(gone)}")
        return f"{self.config.schema_name}.{prefix}{label}"


def _one_by_one(writers: Sequence[TableWriter]) -> None:
    for writer in writers:
        for step in (writer.look, writer.sweep, writer.delete, writer.put, writer.record):
            step()


def _in_order(writers: Sequence[TableWriter]) -> None:
    """Where foreign keys act: what is referred to comes first and goes last."""
    parents_first = _sorted(writers)
    for writer in writers:
        writer.look()
    for writer in reversed(parents_first):
        writer.sweep()
    for step in (TableWriter.put, TableWriter.record):
        for writer in parents_first:
            step(writer)
    for writer in reversed(parents_first):
        writer.delete()


def _sorted(writers: Sequence[TableWriter]) -> list[TableWriter]:
    """Tables behind those that they refer to; in a circle, as they come."""
    left, done = list(writers), []
    while left:
        waiting = {w.state.oid for w in left}
        free = [w for w in left if not w.state.parents & waiting] or left[:1]
        done += free
        left = [w for w in left if w not in free]
    return done


@contextmanager
def reading(config: PostgresConfig) -> Iterator[Connection]:
    """A session of its own in one consistent view, closed behind the block.

    Raises:
        Unavailable, Misconfigured: the server failed; its error is the cause.
    """
    try:
        with connect_reader(config) as connection:
            connection.execute("begin isolation level repeatable read, read only")
            yield connection
            connection.execute("commit")
    except psycopg.Error as error:
        raise failed(error, config) from error
