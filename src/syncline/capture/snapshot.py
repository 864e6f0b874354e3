"""Loads: existing rows, read under an exact consistent point and written to the log like any other change.

Method: DBLog (Andreakis and Papapanagiotou, 2020) without its watermarks. A temporary logical slot gives a pair of LSN
and snapshot that belong together; rows read under the point S carry the version S - 1, so that the stream's own rows at
or behind S win (correctness rule 3), and ``Truncate(S - 2)`` at the end sweeps out what the load did not find.
"""

from __future__ import annotations

import contextlib
import secrets
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import psycopg
import psycopg2
import pyarrow as pa
from psycopg import sql

from syncline.capture import LoadProgress, Source
from syncline.capture.heal import key_lists
from syncline.capture.pgoutput import decode_copy
from syncline.capture.schema import table_schema
from syncline.capture.settings import PostgresSettings
from syncline.capture.slot import Talk, snapshot_point
from syncline.capture.source import Dsn, SourceConfig, connect, connect_plain, describe, printed, translated
from syncline.capture.tables import TableInfo
from syncline.change import Batch, Entry, Item, Loaded, Marker, Truncate
from syncline.errors import SCHEMA_DRIFT, Damaged, Gap, Misconfigured, Unavailable
from syncline.pgvalues.pgtypes import binary_exact

__all__ = [
    "Load",
    "Reshaped",
    "Rewritten",
    "TableReader",
    "consistent_point",
    "count_table",
    "load",
    "read_keys",
    "read_table",
    "unframed",
]

_COPY_SIGNATURE = b"PGCOPY\n\xff\r\n\0"
_COPY_HEADER = 19
_COPY_TRAILER = b"\xff\xff"
# Three such entries are the 122,880 rows that columnar stores write as one piece.
_ENTRY_ROWS = 40_960
_ENTRY_BYTES = 24 * 1024 * 1024
# A role's own limits must not cut a long read off; the server's version decides which of them there are.
_PATIENT = (
    "select set_config(name, case name when 'statement_timeout' then %s else '0' end, false) from pg_settings"
    " where name in ('statement_timeout', 'transaction_timeout', 'idle_in_transaction_session_timeout')"
)
# Not the view pg_publication_tables: it looks at every published table to tell of one.
_PUBLISHED = """
select (select array_agg(a.attname::text order by a.attnum) from pg_attribute a
        where a.attrelid = r.prrelid and a.attnum = any(r.prattrs) and not a.attisdropped),
       pg_get_expr(r.prqual, r.prrelid)
from pg_publication_rel r join pg_publication p on p.oid = r.prpubid
where p.pubname = %s and r.prrelid = %s
"""
_SNAPSHOT_GONE = (
    psycopg.errors.UndefinedObject,
    psycopg.errors.InvalidParameterValue,
    psycopg2.errors.UndefinedObject,
    psycopg2.errors.InvalidParameterValue,
)
# Of relations that are read, or were dropped meanwhile, whether each is still the one that the snapshot shows.
_SAME_FILES = """
select coalesce(bool_and(coalesce(c.relfilenode = pg_relation_filenode(c.oid), false)), true)
from unnest(%s::oid[]) as wanted(oid) left join pg_class c on c.oid = wanted.oid
"""
_TYPES = """
select coalesce(json_agg(json_build_array(attname, atttypid::int8)), '[]') from pg_attribute
where attrelid = %s and attnum > 0 and not attisdropped
"""
_RESTARTS = 5


@dataclass(frozen=True, slots=True)
class Load:
    """What to load, as which versions, for which targets (None: all); ``rows_of`` is the one whose rows they are, where
    each has its own."""

    tables: Sequence[TableInfo]
    base: int
    incarnation: int
    targets: tuple[str, ...] | None = None
    rows_of: str = ""


def load(
    source: Source,
    what: Load,
    stop: threading.Event,
    talk: Talk,
    progress: Callable[[LoadProgress], None],
) -> Iterator[Entry]:
    """Yield the entries of a load: per table a start marker, rows, and the sweep with its end marker.

    A load that is cut off leaves rows that the next one overwrites or sweeps out: start again from the beginning.

    Raises:
        Unavailable: the source went away, or ``stop`` was set.
        Gap: a table was rewritten again and again under the load.
    """
    for attempt in range(_RESTARTS):
        try:
            yield from _load_once(source, what, stop, talk, progress)
            return
        except Rewritten as error:
            talk(f"table {error} was truncated or rewritten while it was read; the load starts again")
            if attempt == _RESTARTS - 1:
                raise Gap(
                    f"Table {error} was rewritten during each of {_RESTARTS} attempts to read it.",
                    remedy="Run `syncline resync` when the rewriting is over.",
                ) from error


class Reshaped(Unavailable):
    """A table that was altered since it was described; it can be read by a new description."""

    def __init__(self, table: str) -> None:
        super().__init__(f"Table {table} changed its shape while it was read.")


class Rewritten(Exception):
    """TRUNCATE and rewriting ALTER are not MVCC-safe: an older snapshot reads an empty table (correctness rule 18)."""


def _load_once(
    source: Source, what: Load, stop: threading.Event, talk: Talk, progress: Callable[[LoadProgress], None]
) -> Iterator[Entry]:
    def entry(*items: Item) -> Entry:
        return Entry(items, incarnation=what.incarnation, targets=what.targets)

    # Before the point: from here on no partial change may rest on what the table held.
    yield entry(*(Marker("reading", info.qualified) for info in what.tables))
    with source.point("load", talk) as found:
        point = replace(found, target=what.rows_of)
        version = what.base + point.number - 1
        for info in what.tables:
            schema = table_schema(info)
            yield entry(Marker("load_started", info.qualified, Loaded(info.shape, version - 1)))
            for batch in source.rows(info, point, version, stop, progress):
                schema = batch.schema
                yield entry(batch)
            known = Loaded(info.shape, version - 1, schema.outline)
            yield entry(Truncate(schema, version - 1), Marker("loaded", info.qualified, known))


@contextmanager
def consistent_point(config: SourceConfig, purpose: str, talk: Talk) -> Iterator[tuple[int, str]]:
    """An LSN, and the name of a snapshot that sees precisely what was committed before it, held for the block.

    ``purpose`` becomes part of the temporary slot's name, and of the name of the connection that holds the snapshot.

    Raises:
        Unavailable, Misconfigured: the source can't be reached, or has no slot to spare.
    """
    point, exported, slot = snapshot_point(config, f"{config.slot[:50]}_{purpose}_{secrets.token_hex(2)}", talk)
    with contextlib.closing(slot):
        # The holder keeps the snapshot from here on, so a long read retains no WAL (correctness rule 25).
        application = f"syncline-{purpose}-holder"
        holder = connect(config.replication, timeout_s=config.connect_timeout_s, application=application)
        try:
            snapshot = _hold(config, holder, exported)
        except BaseException:
            holder.close()
            raise
    try:
        yield point, snapshot
    finally:
        holder.close()


def _hold(config: SourceConfig, holder: psycopg.Connection[Any], exported: str) -> str:
    try:
        with translated(config.replication):
            holder.execute(_PATIENT, ["0"])
            holder.execute("begin isolation level repeatable read, read only")
            holder.execute(sql.SQL("set transaction snapshot {}").format(sql.Literal(exported)))
            row = holder.execute("select pg_export_snapshot()").fetchone()
    except Misconfigured as error:
        if isinstance(error.__cause__, _SNAPSHOT_GONE):
            raise _snapshot_gone(config) from error.__cause__
        raise
    assert row is not None
    return str(row[0])


def _snapshot_gone(config: PostgresSettings) -> Unavailable:
    """A snapshot lives as long as the session that exported it."""
    return Unavailable(f"A session at {describe(config.replication)} that held the snapshot of a load ended.")


def read_table(
    config: PostgresSettings,
    info: TableInfo,
    snapshot: str,
    version: int,
    stop: threading.Event,
    progress: Callable[[LoadProgress], None],
) -> Iterator[Batch]:
    """All rows of one table, leaf by leaf, chunk by chunk of its heap (Guarantee 10), one chunk read ahead."""
    leaves = TableReader.leaves(info)
    total = sum(size for _, _, size in leaves)
    rows = done = 0
    reader = TableReader(config, info, snapshot)
    try:
        with ThreadPoolExecutor(1, thread_name_prefix="load") as pool:
            spans, gathered = deque(reader.spans(leaves)), _Gathered()
            ahead = pool.submit(reader.copy, spans[0]) if spans else None
            while ahead is not None:
                raw, span = ahead.result(), spans.popleft()
                ahead = pool.submit(reader.copy, spans[0]) if spans and not stop.is_set() else None
                for piece in gathered.add(raw, last=ahead is None):
                    yield reader.decoded(piece, version, rows)
                    rows += len(piece)
                done += span.nbytes
                progress(LoadProgress(info.qualified, rows, min(done, total), total))
            if stop.is_set():
                raise Unavailable("The load was asked to stop.")
    finally:
        reader.close()


def read_keys(config: PostgresSettings, info: TableInfo, snapshot: str, keys: pa.RecordBatch, version: int) -> Batch:
    """The rows of one table with these keys; see :meth:`syncline.capture.Source.rows_of`."""
    reader = TableReader(config, info, snapshot)
    try:
        return reader.decoded(reader.copy_keys(keys), version, 0)
    finally:
        reader.close()


def count_table(config: PostgresSettings, info: TableInfo, snapshot: str) -> int:
    """How many rows :func:`read_table` would give. Raises as it does."""
    reader = TableReader(config, info, snapshot)
    try:
        return sum(reader.count(oid, name) for oid, name, _ in TableReader.leaves(info))
    finally:
        reader.close()


class _Gathered:
    """Raw rows on their way from spans to entries: the spans are even in bytes, the entries in rows."""

    def __init__(self) -> None:
        self._rows: list[bytes] = []
        self._bytes = 0

    def add(self, rows: list[bytes], *, last: bool) -> Iterator[list[bytes]]:
        """Take rows in; yields the entries that are full, and behind the last span what is left."""
        self._rows += rows
        self._bytes += sum(map(len, rows))
        while len(self._rows) >= _ENTRY_ROWS or self._bytes >= _ENTRY_BYTES:
            yield self._take(max(1, min(_ENTRY_ROWS, len(self._rows) * _ENTRY_BYTES // self._bytes)))
        if last and self._rows:
            yield self._take(len(self._rows))

    def _take(self, count: int) -> list[bytes]:
        taken, self._rows = self._rows[:count], self._rows[count:]
        self._bytes -= sum(map(len, taken))
        return taken


@dataclass(frozen=True, slots=True)
class _Span:
    """Blocks ``start`` to ``end`` (None: all that follow) of one leaf."""

    oid: int
    name: str
    start: int
    end: int | None
    nbytes: int


def unframed(rows: list[bytes], where: str) -> list[bytes]:
    """The rows of a binary COPY as libpq hands them on, without header and trailer; ``where`` it comes from."""
    if not rows or not rows[0].startswith(_COPY_SIGNATURE) or not rows[-1].endswith(_COPY_TRAILER):
        raise Damaged(f"COPY from {where} lacks its signature or its trailer.")
    # The signature comes with the first row, the trailer alone (or, without rows, with the signature).
    rows[0] = rows[0][_COPY_HEADER:]
    rows.pop()
    return rows


class TableReader:
    """Reads one table under a snapshot with COPY, in the binary format."""

    def __init__(self, config: PostgresSettings, info: TableInfo, snapshot: str) -> None:
        self._config = config
        self._info = info
        self._snapshot = snapshot
        self._connection = connect_plain(config.replication, timeout_s=config.connect_timeout_s)
        with self._cursor() as cursor:
            cursor.execute(_PATIENT, [str(int(config.read_timeout_s * 1000))])
        names, self.filter = self._published()
        self.schema = table_schema(info, names)
        self.columns = [c for s in self.schema.columns if (c := info.column(s.name)) is not None]
        self._binary = [binary_exact(c.type_oid, c.typmod) for c in self.columns]

    def close(self) -> None:
        self._connection.close()

    @staticmethod
    def leaves(info: TableInfo) -> list[tuple[int, str, int]]:
        """Oid, name as SQL, and bytes of the heap of each table that holds rows of this one."""
        if info.relkind == "r":
            return [(info.oid, info.sql_name, info.heap_bytes)]
        return [(leaf.oid, leaf.sql_name, leaf.heap_bytes) for leaf in info.partition_leaves]

    def spans(self, leaves: Sequence[tuple[int, str, int]]) -> Iterator[_Span]:
        """Pieces of about ``load_chunk_bytes`` with what TOAST holds for them."""
        with self._cursor() as cursor:
            cursor.execute("select current_setting('block_size')::int8")
            block = cursor.fetchone()[0]
        toasted = max(1, self._info.size_bytes // max(1, self._info.heap_bytes))
        step = max(1, self._config.load_chunk_bytes // block // toasted)
        for oid, name, size in leaves:
            blocks = size // block
            for start in range(0, blocks + 1, step):
                # The last span is open-ended: the heap may have grown since its size was read.
                end = start + step if start + step <= blocks else None
                yield _Span(oid, name, start, end, min(step, max(0, blocks - start)) * block)

    def copy(self, span: _Span) -> list[bytes]:
        """The raw rows of one span."""
        return self.copied(span.oid, self._statement(span))

    def copied(self, oid: int, statement: str, settings: Sequence[str] = ()) -> list[bytes]:
        """The raw rows that a COPY of the leaf ``oid`` gives."""
        return self._copied([oid], statement, settings)

    def copy_keys(self, keys: pa.RecordBatch) -> list[bytes]:
        """The raw rows of these keys."""
        if keys.schema.names != [c.name for c in self.schema.key]:
            raise Gap(f"Table {self._info.qualified} has another key by now.", code=SCHEMA_DRIFT)
        leaves = [self._info.oid]
        if self._info.relkind != "r":
            leaves = [leaf.oid for leaf in self._info.partition_leaves]
        return self._copied(leaves, self._with_keys(key_lists(self.schema, keys)))

    def _copied(self, oids: Sequence[int], statement: str, settings: Sequence[str] = ()) -> list[bytes]:
        """Raw rows of these relations."""
        sink = _Rows()
        with self._seen(oids, settings) as cursor:
            cursor.copy_expert(statement, sink)
        return unframed(sink.rows, describe(self._config.replication))

    def count(self, oid: int, name: str) -> int:
        """How many rows one leaf has, of those that are published."""
        with self._seen([oid]) as cursor:
            cursor.execute(f"select count(*) from only {name} where true{self.filter}")
            counted = int(cursor.fetchone()[0])
        return counted

    @contextmanager
    def _seen(self, oids: Sequence[int], settings: Sequence[str] = ()) -> Iterator[Any]:
        """A transaction in the snapshot, in which leaves are read; one of its own, so that no table lock outlives it.

        Raises:
            Rewritten: what was read is not what the snapshot should show.
            Reshaped: its columns are not those that it was described with.
        """
        with self._cursor() as cursor:
            cursor.execute("begin isolation level repeatable read, read only")
            try:
                cursor.execute(f"set transaction snapshot '{self._snapshot}'; set local row_security = off")
                for setting in settings:
                    cursor.execute(setting)
            except _SNAPSHOT_GONE as error:
                raise _snapshot_gone(self._config) from error
            try:
                yield cursor
            except (psycopg2.errors.UndefinedTable, psycopg2.errors.UndefinedColumn) as error:
                raise Reshaped(self._info.qualified) from error
            cursor.execute(_SAME_FILES, [list(oids)])
            same = cursor.fetchone()
            cursor.execute(_TYPES, [self._info.oid])
            types = dict(cursor.fetchone()[0])
            cursor.execute("commit")
        if not same[0]:
            raise Rewritten(self._info.qualified)
        if any(types.get(c.name) != c.type_oid for c in self.columns):
            raise Reshaped(self._info.qualified)

    def decoded(self, rows: list[bytes], version: int, first_ordinal: int) -> Batch:
        """The batch of raw COPY rows."""
        oids = [(c.base_type_oid, c.base_typmod) for c in self.columns]
        return decode_copy(
            self.schema, oids, rows, self._binary, version=version, commit_time=0, first_ordinal=first_ordinal
        )

    def selected(self, *alias: str) -> str:
        """The columns as they are copied."""
        columns = sql.SQL(", ").join(
            sql.Identifier(*alias, c.name) if exact else printed(sql.Identifier(*alias, c.name))
            for c, exact in zip(self.columns, self._binary, strict=True)
        )
        return columns.as_string(None)

    def cancel(self) -> None:
        """End what runs, from another thread."""
        self._connection.cancel()

    def _cursor(self) -> Any:
        return _cursor(self._connection, self._config.replication)

    def _statement(self, span: _Span) -> str:
        upper = f" and ctid < '({span.end},0)'" if span.end is not None else ""
        where = f"ctid >= '({span.start},0)'{upper}{self.filter}"
        return f"copy (select {self.selected()} from only {span.name} where {where}) to stdout (format binary)"

    def _with_keys(self, values: Sequence[Sequence[str]]) -> str:
        """The keys stand in a query of their own, whose names can't be taken for those in the row filter."""
        names = [f"k{i}" for i in range(len(values))]
        typed = ", ".join(f"{name}::{c.source_type}" for name, c in zip(names, self.schema.key, strict=True))
        with self._cursor() as cursor:
            lists = ", ".join(cursor.mogrify("%s::text[]", [list(column)]).decode() for column in values)
        own = sql.SQL(", ").join(sql.Identifier(c.name) for c in self.schema.key).as_string(None)
        only = "only " if self._info.relkind == "r" else ""
        wanted = f"select {typed} from unnest({lists}) as wanted({', '.join(names)})"
        where = f"({own}) in ({wanted}){self.filter}"
        relation = f"{only}{self._info.sql_name}"
        return f"copy (select {self.selected()} from {relation} where {where}) to stdout (format binary)"

    def _published(self) -> tuple[list[str] | None, str]:
        """Column list and row filter of the publication: what they leave out must not come in by the load (rule 22)."""
        with self._cursor() as cursor:
            cursor.execute(_PUBLISHED, [self._config.published_by, self._info.oid])
            row = cursor.fetchone()
        if row is None:
            return None, ""
        names = None
        if row[0] is not None:
            generated = {c.name for c in self._info.columns if c.generated}
            names = [n for n in row[0] if n not in generated]
        return names, f" and ({row[1]})" if row[1] else ""


@contextmanager
def _cursor(connection: Any, dsn: Dsn) -> Iterator[Any]:
    with translated(dsn), connection.cursor() as cursor:
        yield cursor


class _Rows:
    """What ``copy_expert`` writes into: each call brings one row."""

    def __init__(self) -> None:
        self.rows: list[bytes] = []
        self.write = self.rows.append
