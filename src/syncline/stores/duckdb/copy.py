"""Reading a DuckDB copy for verification, from any process of this machine: the contract's optional ``CopyReader``."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import msgspec
import pyarrow as pa

from syncline.bookkeeping import bookkept
from syncline.change import Cursor, TableSchema
from syncline.digests import Chosen, whole_key
from syncline.errors import Misconfigured, Unavailable
from syncline.pgvalues.pgtypes import cast_text
from syncline.stores import stored_columns
from syncline.stores.duckdb.database import DuckDBConfig
from syncline.stores.duckdb.door import Deadline, QueryError, open_reader
from syncline.stores.duckdb.sql import VERSION_COLUMN, Statements, duckdb_type, literal, quote, target_name
from syncline.stores.duckdb.store import as_contract, contract_schema
from syncline.stores.duckdb.tables import fits

__all__ = ["DuckDBCopy"]


class DuckDBCopy:
    """A :class:`syncline.stores.CopyReader`: through the door while an engine runs, else of the file itself.

    Raises:
        Misconfigured: there is no such file yet, or its engine has no door.
    """

    def __init__(self, config: DuckDBConfig) -> None:
        self._path = config.path
        self._reader = open_reader(config.path)

    def cursor(self, source: str) -> Cursor | None:
        body = self._value("cursors", f"select body from syncline.cursors where source = {literal(source)}")
        return None if body is None else bookkept(body, Cursor)

    def recorded(self, table: str) -> TableSchema | None:
        """Of the recorded columns those that are in the file in a type that holds their values: what somebody dropped
        or changed there by hand is a column that the copy lacks. A table that is gone was never migrated.

        Raises:
            Misconfigured: rows can't be told apart there any more.
        """
        body = self._value("tables", f"select body from syncline.tables where name = {literal(table)}")
        if body is None:
            return None
        schema = bookkept(body, TableSchema)
        actual = self._actual(schema)
        if not actual:
            return None
        kept = tuple(c for c in schema.columns if fits(actual.get(c.name.lower(), ""), c.type))
        lost = [c.name for c in schema.key if c not in kept]
        if actual.get(VERSION_COLUMN) != "BIGINT":
            lost.append(VERSION_COLUMN)
        if lost:
            raise _unreadable(f"Table {table} in DuckDB lost its column {lost[0]}, or has another type there.")
        return schema if len(kept) == len(schema.columns) else msgspec.structs.replace(schema, columns=kept)

    def held(self, source: str) -> list[TableSchema]:
        if self._value("tables", "select 1") is None:
            return []
        found = self._query(f"select body from syncline.tables where source = {literal(source)} order by name")
        return [bookkept(body, TableSchema) for body in found.column(0).to_pylist()]

    def scan(self, schema: TableSchema) -> Iterator[pa.RecordBatch]:
        wider = self._wider(schema)
        yield from self._rows(schema, Statements(schema).select(wider=wider), wider)

    def _rows(self, schema: TableSchema, query: str, wider: Collection[str]) -> Iterator[pa.RecordBatch]:
        with _refusals():
            for batch in self._reader.batches(query):
                yield _read(schema, batch, wider) if wider else as_contract(schema, batch)

    def _actual(self, schema: TableSchema) -> dict[str, str]:
        """The columns of the table as it is in the file: lower-case name -> type."""
        namespace, name = target_name(schema)
        found = self._query(
            "select lower(column_name) as name, data_type from duckdb_columns()"
            f" where lower(schema_name) = lower({literal(namespace)}) and lower(table_name) = lower({literal(name)})"
            " and database_name = current_database()"
        )
        return dict(zip(found.column(0).to_pylist(), found.column(1).to_pylist(), strict=True))

    def _wider(self, schema: TableSchema) -> frozenset[str]:
        """Columns of an adopted table that hold more than the contract's type does."""
        actual = self._actual(schema)
        return frozenset(c.name for c in schema.columns if actual.get(c.name.lower()) != duckdb_type(c.type))

    def buried(self, schema: TableSchema, since: int) -> pa.Table:
        keys = TableSchema(schema.namespace, schema.name, schema.key)
        shown = [f"{quote(c.name)}{'::BLOB' if c.type == 'uuid' else ''} as k{i}" for i, c in enumerate(schema.key)]
        found = self._query(
            f"select {', '.join(shown)}, {quote(VERSION_COLUMN)} from {Statements(schema).tombstones}"
            f" where {quote(VERSION_COLUMN)} >= {since}"
        )
        return pa.Table.from_batches([as_contract(keys, b) for b in found.to_batches()], contract_schema(keys))

    def swept(self, table: str) -> tuple[int, int]:
        found = self._query(
            "select coalesce(truncated, 0) as truncated, coalesce(horizon, 0) as horizon from syncline.tables"
            f" where name = {literal(table)}"
        )
        return (found["truncated"][0].as_py(), found["horizon"][0].as_py()) if found.num_rows else (0, 0)

    def spread(self, schema: TableSchema) -> tuple[int, int | None, int | None]:
        position = whole_key(schema)
        key = "null" if position is None else quote(schema.columns[position].name)
        found = self._query(
            f"select count(*) as n, min({key})::BIGINT as l, max({key})::BIGINT as g from {Statements(schema).target}"
        )
        rows, least, greatest = (found.column(name)[0].as_py() for name in ("n", "l", "g"))
        return rows, least, greatest

    def chosen(self, schema: TableSchema, chosen: Chosen) -> Iterator[pa.RecordBatch]:
        wider = self._wider(schema)
        yield from self._rows(schema, Statements(schema).chosen(chosen, wider), wider)

    def fetch(self, schema: TableSchema, keys: pa.RecordBatch) -> pa.Table:
        lists = [[_text(v, c.type) for v in keys.column(j).to_pylist()] for j, c in enumerate(schema.key)]
        rows = [f"({', '.join(map(literal, row))})" for row in zip(*lists, strict=True)]
        names = ", ".join(f"c{j}" for j in range(len(lists)))
        view = f"(select distinct * from (values {', '.join(rows)}) as k({names}))"  # may come twice, its row must not
        statements = Statements(schema, keys=(pa.string(),) * len(schema.key))
        found = self._query(statements.select(view)) if rows else pa.table({})
        return pa.Table.from_batches([as_contract(schema, b) for b in found.to_batches()], contract_schema(schema))

    def counted(self, schema: TableSchema, since: int) -> tuple[int, int]:
        found = self._query(f"select count(*), count_if(v >= {since}) from ({Statements(schema).select()})")
        return int(found.column(0)[0].as_py()), int(found.column(1)[0].as_py())

    def ask(self, query: str, timeout_s: float) -> Iterator[tuple[Any, ...]]:
        """On a reader of its own, which is cut off when the time is over, or when nobody wants more of its rows."""
        with open_reader(self._path) as reader, Deadline(reader, timeout_s) as deadline:
            try:
                for batch in reader.batches(query):
                    yield from zip(*(c.to_pylist() for c in batch.columns), strict=True)
            except (QueryError, Unavailable) as error:
                if deadline.passed:
                    raise Unavailable(f"The query took DuckDB longer than {timeout_s:g} s.") from None
                if isinstance(error, Unavailable):
                    raise
                raise Misconfigured(f"DuckDB refused the query: {_said(error.message)}.") from None

    def dangling(
        self, schema: TableSchema, columns: Sequence[str], to: TableSchema, key: Sequence[str], timeout_s: float
    ) -> Iterator[tuple[Any, ...]] | None:
        mine, theirs = Statements(schema), Statements(to)
        told = ", ".join(f"t.{quote(c.name)}" for c in schema.key)
        given = " and ".join(f"t.{quote(c)} is not null" for c in columns)
        match = " and ".join(f"p.{quote(k)} = t.{quote(c)}" for c, k in zip(columns, key, strict=True))
        mark, marked = (f" and {a}.{s.mark} is null" if s.mark else "" for a, s in (("t", mine), ("p", theirs)))
        return self.ask(
            f"select {told} from {mine.target} as t where {given}{mark}"
            f" and not exists (select 1 from {theirs.target} as p where {match}{marked})",
            timeout_s,
        )

    def close(self) -> None:
        self._reader.close()

    def _query(self, query: str) -> pa.Table:
        with _refusals():
            return self._reader.query(query)

    def _value(self, table: str, query: str) -> Any:
        """The first value of a query on the bookkeeping; None without one, also in a file that has none yet."""
        known = f"select 1 from duckdb_tables() where schema_name = 'syncline' and table_name = {literal(table)}"
        if not self._query(known).num_rows:
            return None
        found = self._query(query)
        return found.column(0)[0].as_py() if found.num_rows else None


@contextmanager
def _refusals() -> Iterator[None]:
    """DuckDB refuses queries of ours where somebody changed by hand what they are about."""
    try:
        yield
    except QueryError as error:
        raise _unreadable(f"The copy in DuckDB can't be read: {_said(error.message)}.") from None


def _unreadable(what: str) -> Misconfigured:
    return Misconfigured(
        what, remedy="Undo what was changed there by hand, or drop the table in DuckDB and run `syncline resync`."
    )


def _read(schema: TableSchema, batch: pa.RecordBatch, wider: Collection[str]) -> pa.RecordBatch:
    """As :func:`as_contract`, of a batch in which some columns came as text: they stay so if a value of them has no
    exact form in the contract's type."""
    arrays: list[pa.Array] = []
    for values, field in zip(batch.columns, contract_schema(schema), strict=True):
        if field.name in wider:
            with suppress(ValueError, pa.ArrowInvalid):
                values = cast_text(values, schema.columns[len(arrays)].type)
        elif values.type != field.type:
            values = values.cast(field.type)
        arrays.append(values)
    return pa.RecordBatch.from_arrays(arrays, names=[*stored_columns(schema)])


def _text(value: Any, logical: str) -> str:
    """A key as PostgreSQL writes it, from which the statements make the value that is stored."""
    if isinstance(value, bytes):
        return value.hex() if logical == "uuid" else "\\x" + value.hex()
    return str(value)


def _said(message: str) -> str:
    """What DuckDB says of a query, as long as that can't hold a value of a row (Guarantee 11)."""
    kind, _, text = message.strip().partition(": ")
    about_the_query = kind in ("Parser Error", "Binder Error", "Catalog Error")
    return f"{kind}: {text.splitlines()[0]}".rstrip(". ") if about_the_query and text else kind.splitlines()[0]
