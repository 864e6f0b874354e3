"""A store of one's own: tables in a SQLite file. The page beside it, adding.md, walks through it."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from decimal import Decimal
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
from pydantic import BaseModel, ConfigDict, Field

from syncline.change import Column, Cursor, TableSchema, arrow_type
from syncline.errors import Misconfigured, Rejected, Unavailable
from syncline.pgvalues.values import Inexact, from_text
from syncline.shape import Rows
from syncline.stores import FROM_KEY, UNCHANGED, Limits, TableWork, Work, stored_columns

Key, Values = bytes, list[Any]

# A row without a body is a tombstone: what is left of a deleted one.
_TABLES = """
create table if not exists syncline_cursors (source text primary key, cursor blob not null);
create table if not exists syncline_tables (
  name text primary key, source text not null, schema blob not null,
  truncated integer not null default 0, horizon integer not null default 0);
create table if not exists syncline_rows (
  "table" text, key blob, version integer not null, body blob, primary key ("table", key)) without rowid;
create table if not exists syncline_moved (
  "table" text, key blob, origin blob, version integer, primary key ("table", key, origin, version)) without rowid;
"""


class SqliteConfig(BaseModel):
    """A SQLite file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: Path = Field(description="The file; made if it is missing.")


class SqliteReader:
    """What the file holds, read by connections that see one commit each."""

    def __init__(self, config: SqliteConfig) -> None:
        self._path = config.path

    def cursor(self, source: str) -> Cursor | None:
        found = self._all("select cursor from syncline_cursors where source = ?", source)
        return msgspec.json.decode(found[0][0], type=Cursor) if found else None

    def recorded(self, table: str) -> TableSchema | None:
        found = self._all("select schema from syncline_tables where name = ?", table)
        return msgspec.json.decode(found[0][0], type=TableSchema) if found else None

    def held(self, source: str) -> list[TableSchema]:
        found = self._all("select schema from syncline_tables where source = ?", source)
        return [msgspec.json.decode(body, type=TableSchema) for (body,) in found]

    def scan(self, schema: TableSchema) -> Iterator[pa.RecordBatch]:
        with _reading(self._path) as connection:
            query = 'select body, version from syncline_rows where "table" = ? and body is not null'
            cursor = connection.execute(query, [schema.qualified])
            while rows := cursor.fetchmany(10_000):
                yield from _arrow(schema, rows).to_batches()

    def fetch(self, schema: TableSchema, keys: pa.RecordBatch) -> pa.Table:
        query = 'select body, version from syncline_rows where "table" = ? and key = ? and body is not null'
        with _reading(self._path) as connection:
            found = [connection.execute(query, [schema.qualified, k]).fetchone() for k in _keys(schema, keys) if k]
        return _arrow(schema, [row for row in found if row])

    def buried(self, schema: TableSchema, since: int) -> pa.Table:
        query = 'select key, version from syncline_rows where "table" = ? and body is null and version >= ?'
        found = self._all(query, schema.qualified, since)
        keys = [_decoded(schema.key, key) for key, _ in found]
        arrays = [_array([key[i] for key in keys], column) for i, column in enumerate(schema.key)]
        arrays.append(pa.array([version for _, version in found], pa.int64()))
        return pa.Table.from_arrays(arrays, names=[*(c.name for c in schema.key), "version"])

    def swept(self, table: str) -> tuple[int, int]:
        found = self._all("select truncated, horizon from syncline_tables where name = ?", table)
        return found[0] if found else (0, 0)

    def close(self) -> None:
        """Nothing stays open between two looks."""

    def _all(self, query: str, *given: Any) -> list[Any]:
        with _reading(self._path) as connection:
            return connection.execute(query, given).fetchall()


class SqliteStore(SqliteReader):
    """The contract of :class:`syncline.stores.Store` in one SQLite file."""

    config_class = SqliteConfig
    form = "rows"
    limits = Limits(max_rows=20_000, load_rows=20_000)

    def __init__(self, config: SqliteConfig, name: str) -> None:
        super().__init__(config)
        self.name = name
        self._source = ""
        self._connection: sqlite3.Connection | None = None  # while open

    @staticmethod
    def reader(config: SqliteConfig) -> SqliteReader:
        return SqliteReader(config)

    def open(self, source: str) -> Cursor | None:
        self.close()
        self._source = source
        with _told(self._path):
            self._connection = sqlite3.connect(self._path, 30, isolation_level=None, check_same_thread=False)
            self._connection.executescript(f"pragma journal_mode = wal; pragma synchronous = full; {_TABLES}")
        return self.cursor(source)

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
        self._connection = None

    def migrate(self, schema: TableSchema) -> TableSchema | None:
        if isinstance(schema.shape, Rows) and schema.shape != Rows(schema.namespace, schema.name):
            raise Misconfigured(
                f"A SQLite file holds {schema.qualified} under no other name, and without soft deletion.",
                remedy="Leave table and soft_delete out of its mapping.",
            )
        with self._writing() as connection:
            former = self.recorded(schema.qualified)
            if former is not None and former != schema:
                _reshape(connection, former, schema)
            connection.execute(
                "insert into syncline_tables (name, source, schema) values (?, ?, ?)"
                " on conflict (name) do update set source = excluded.source, schema = excluded.schema",
                [schema.qualified, self._source, msgspec.json.encode(schema)],
            )
        return former

    def apply(self, work: Work) -> None:
        with self._writing() as connection:
            for part in work.tables:
                _Table(connection, part.schema).apply(part)
            connection.execute(
                "insert or replace into syncline_cursors values (?, ?)",
                [work.cursor.source, msgspec.json.encode(work.cursor)],
            )

    def purge(self, source: str, below: int) -> int:
        mine = '"table" in (select name from syncline_tables where source = ?) and version < ?'
        with self._writing() as connection:
            forgotten = connection.execute(f"delete from syncline_rows where body is null and {mine}", [source, below])
            connection.execute(f"delete from syncline_moved where {mine}", [source, below])
            horizon = "update syncline_tables set horizon = max(horizon, ?) where source = ?"
            connection.execute(horizon, [below, source])
            return forgotten.rowcount

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        """One transaction, durable when this is left, or none of it."""
        assert self._connection is not None, "open comes first"
        with _told(self._path):
            self._connection.execute("begin immediate")
            try:
                yield self._connection
                self._connection.execute("commit")
            finally:
                if self._connection.in_transaction:
                    self._connection.execute("rollback")


class _Table:
    """One table while a work is applied to it."""

    def __init__(self, connection: sqlite3.Connection, schema: TableSchema) -> None:
        found = connection.execute(
            "select truncated, horizon from syncline_tables where name = ?", [schema.qualified]
        ).fetchone()
        if found is None:
            raise Misconfigured(f"Table {schema.qualified} is not in this file.", remedy="Migrate first.")
        self.truncated, self.horizon = found
        self.connection, self.schema, self.name = connection, schema, schema.qualified

    def apply(self, work: TableWork) -> None:
        whole, partial, deletes = work.rows.upserts, work.rows.partials, work.rows.deletes
        bad: list[int] = []
        upserts = _values(self.schema.columns, whole, bad, 0)
        partials = _values(self.schema.columns, partial, bad, len(upserts))
        if bad:
            raise Rejected(self.name, sorted(set(bad)), "a value has no exact form in its column's type")
        completed = self._completed(partials, partial)  # from the rows before this work, so before anything is written
        if work.truncated is not None:
            self._truncate(work.truncated)
        for values, version in zip(upserts, _versions(self.schema.columns, whole), strict=True):
            self._put(_key(self.schema, values), version, values)
        for key, origin, version, values in completed:
            if self._wins(key, version) and self._moves(key, origin, version):
                self._put(key, version, values)
        if deletes is not None:
            for gone, version in zip(_keys(self.schema, deletes), _versions(self.schema.key, deletes), strict=True):
                if gone is not None:  # a key without an exact form was never stored
                    self._put(gone, version, None)

    def _completed(self, partials: list[Values], batch: pa.RecordBatch | None) -> list[tuple[Key, Key, int, Values]]:
        """Key, the key to take from, version and all values of the partial rows that there is a row to take from."""
        if batch is None:
            return []
        names = [c.name for c in self.schema.key]
        origins = _keys(self.schema, pa.RecordBatch.from_arrays(batch.column(FROM_KEY).flatten(), names))
        masks = batch.column(UNCHANGED).to_pylist()
        found = []
        for values, version, mask, origin in zip(
            partials, _versions(self.schema.columns, batch), masks, origins, strict=True
        ):
            key, stored = _key(self.schema, values), self._stored(origin)
            if stored is None or stored[1] is None or (key != origin and stored[0] > version):
                continue
            base = _decoded(self.schema.columns, stored[1])
            filled = [base[i] if mask[i // 8] >> (i % 8) & 1 else v for i, v in enumerate(values)]
            found.append((key, origin, version, filled))
        return found

    def _moves(self, key: Key, origin: Key, version: int) -> bool:
        """A row that moves takes its values once: when the work comes again, another row may stand at the origin."""
        statement = "insert or ignore into syncline_moved values (?, ?, ?, ?)"
        return key == origin or self.connection.execute(statement, [self.name, key, origin, version]).rowcount == 1

    def _truncate(self, version: int) -> None:
        self.truncated = max(self.truncated, version)
        statement = 'delete from syncline_rows where "table" = ? and body is not null and version <= ?'
        self.connection.execute(statement, [self.name, version])
        statement = "update syncline_tables set truncated = ? where name = ?"
        self.connection.execute(statement, [self.truncated, self.name])

    def _put(self, key: Key, version: int, values: Values | None) -> None:
        """Write a row, or a tombstone for None, unless what is there is newer (Guarantee 5)."""
        if self._wins(key, version):
            body = None if values is None else _encoded(values)
            self.connection.execute(
                "insert or replace into syncline_rows values (?, ?, ?, ?)", [self.name, key, version, body]
            )

    def _wins(self, key: Key, version: int) -> bool:
        stored = self._stored(key)
        if version < self.truncated:
            return False
        return version >= self.horizon if stored is None else stored[0] <= version

    def _stored(self, key: Key | None) -> tuple[int, bytes | None] | None:
        """Version and body of what stands at a key."""
        query = 'select version, body from syncline_rows where "table" = ? and key = ?'
        return self.connection.execute(query, [self.name, key]).fetchone()


def _reshape(connection: sqlite3.Connection, former: TableSchema, schema: TableSchema) -> None:
    """Rows in the new columns: values of a column whose type stays are kept."""
    old = {(c.name, c.type): i for i, c in enumerate(former.columns)}
    taken = [old.get((c.name, c.type)) for c in schema.columns]
    query = 'select key, version, body from syncline_rows where "table" = ? and body is not null'
    rows = connection.execute(query, [former.qualified]).fetchall()
    rekeyed = former.key != schema.key
    kept = "" if rekeyed else " and body is not null"  # tombstones of another key tell nothing
    connection.execute(f'delete from syncline_rows where "table" = ?{kept}', [former.qualified])
    for key, version, body in rows:
        values = _decoded(former.columns, body)
        values = [None if i is None else values[i] for i in taken]
        key = _key(schema, values) if rekeyed else key
        row = [schema.qualified, key, version, _encoded(values)]
        connection.execute("insert or replace into syncline_rows values (?, ?, ?, ?)", row)
    if rekeyed:
        connection.execute('delete from syncline_moved where "table" = ?', [schema.qualified])


# ------------------------------------------------------------------------------------------------------------- values


def _values(columns: Sequence[Column], batch: pa.RecordBatch | None, bad: list[int], offset: int) -> list[Values]:
    """The rows of a batch; ``bad`` gets the positions of those with a value that can't be held exactly."""
    if batch is None:
        return []
    found = [_plain(batch.column(i), column, bad, offset) for i, column in enumerate(columns)]
    return [list(row) for row in zip(*found, strict=True)]


def _plain(array: pa.Array, column: Column, bad: list[int], offset: int) -> list[Any]:
    """Plain values; temporal ones as the integers that store them, which hold infinities too."""
    wanted = arrow_type(column.type)
    if array.type == wanted:
        return (array.view(_integers(wanted)) if pa.types.is_temporal(wanted) else array).to_pylist()
    values: list[Any] = []
    for row, text in enumerate(array.to_pylist()):  # a column comes as PostgreSQL's text where a value is inexact
        try:
            values.append(None if text is None else from_text(column.type, text))
        except (Inexact, ValueError):
            values.append(None)
            bad.append(offset + row)
    return values


def _integers(temporal: pa.DataType) -> pa.DataType:
    return pa.int32() if temporal == pa.date32() else pa.int64()


def _versions(columns: Sequence[Column], batch: pa.RecordBatch | None) -> list[int]:
    return [] if batch is None else batch.column(len(columns)).to_pylist()


def _keys(schema: TableSchema, batch: pa.RecordBatch) -> list[Key | None]:
    return [None if None in key else _encoded(key) for key in _values(schema.key, batch, [], 0)]


def _key(schema: TableSchema, values: Values) -> Key:
    return _encoded([values[i] for i in schema.key_positions])


def _encoded(values: Values) -> bytes:
    return msgspec.msgpack.encode(values)


def _decoded(columns: Sequence[Column], body: bytes) -> Values:
    values = msgspec.msgpack.decode(body)
    exact = [c.type.startswith("numeric(") for c in columns]
    return [Decimal(v) if e and v is not None else v for e, v in zip(exact, values, strict=True)]


def _arrow(schema: TableSchema, rows: list[tuple[bytes, int]]) -> pa.Table:
    values = [_decoded(schema.columns, body) for body, _ in rows]
    arrays = [_array([row[i] for row in values], column) for i, column in enumerate(schema.columns)]
    arrays.append(pa.array([version for _, version in rows], pa.int64()))
    return pa.Table.from_arrays(arrays, names=list(stored_columns(schema)))


def _array(values: list[Any], column: Column) -> pa.Array:
    wanted = arrow_type(column.type)
    return (
        pa.array(values, _integers(wanted)).view(wanted) if pa.types.is_temporal(wanted) else pa.array(values, wanted)
    )


# --------------------------------------------------------------------------------------------------------- connection


@contextmanager
def _reading(path: Path) -> Iterator[sqlite3.Connection]:
    """A connection that sees one commit, whoever writes meanwhile."""
    if not path.exists():
        raise Misconfigured(f"There is no file {path}.", remedy="Run `syncline run`, which makes it, or correct path.")
    uri = f"{path.absolute().as_uri()}?mode=ro"
    with _told(path), closing(sqlite3.connect(uri, 30, isolation_level=None, uri=True)) as connection:
        connection.execute("begin")
        yield connection


@contextmanager
def _told(path: Path) -> Iterator[None]:
    """SQLite's errors as what the engine knows: try again, or stop and say why."""
    try:
        yield
    except sqlite3.OperationalError as error:  # locked, full, away
        raise Unavailable(f"SQLite can't use {path}: {error}.") from error
    except sqlite3.Error as error:
        raise Misconfigured(f"SQLite can't use {path}: {error}.", remedy="Name another file in path.") from error
