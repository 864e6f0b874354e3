"""Reading a DuckDB copy for verification, from any process of this machine: the contract's optional ``CopyReader``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import msgspec
import pyarrow as pa

from syncline.change import Cursor, TableSchema
from syncline.digests import Chosen, whole_key
from syncline.errors import Misconfigured, Unavailable
from syncline.stores.duckdb.database import DuckDBConfig
from syncline.stores.duckdb.door import Deadline, QueryError, open_reader
from syncline.stores.duckdb.sql import VERSION_COLUMN, Statements, literal, quote
from syncline.stores.duckdb.store import as_contract, contract_schema

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
        return None if body is None else msgspec.json.decode(body, type=Cursor)

    def recorded(self, table: str) -> TableSchema | None:
        body = self._value("tables", f"select body from syncline.tables where name = {literal(table)}")
        return None if body is None else msgspec.json.decode(body, type=TableSchema)

    def held(self, source: str) -> list[TableSchema]:
        if self._value("tables", "select 1") is None:
            return []
        found = self._reader.query(f"select body from syncline.tables where source = {literal(source)} order by name")
        return [msgspec.json.decode(body, type=TableSchema) for body in found.column(0).to_pylist()]

    def scan(self, schema: TableSchema) -> Iterator[pa.RecordBatch]:
        for batch in self._reader.batches(Statements(schema).select()):
            yield as_contract(schema, batch)

    def buried(self, schema: TableSchema, since: int) -> pa.Table:
        keys = TableSchema(schema.namespace, schema.name, schema.key)
        shown = [f"{quote(c.name)}{'::BLOB' if c.type == 'uuid' else ''} as k{i}" for i, c in enumerate(schema.key)]
        found = self._reader.query(
            f"select {', '.join(shown)}, {quote(VERSION_COLUMN)} from {Statements(schema).tombstones}"
            f" where {quote(VERSION_COLUMN)} >= {since}"
        )
        return pa.Table.from_batches([as_contract(keys, b) for b in found.to_batches()], contract_schema(keys))

    def swept(self, table: str) -> tuple[int, int]:
        found = self._reader.query(f"select truncated, horizon from syncline.tables where name = {literal(table)}")
        return (found["truncated"][0].as_py(), found["horizon"][0].as_py()) if found.num_rows else (0, 0)

    def spread(self, schema: TableSchema) -> tuple[int, int | None, int | None]:
        position = whole_key(schema)
        key = "null" if position is None else quote(schema.columns[position].name)
        found = self._reader.query(
            f"select count(*) as n, min({key})::BIGINT as l, max({key})::BIGINT as g from {Statements(schema).target}"
        )
        rows, least, greatest = (found.column(name)[0].as_py() for name in ("n", "l", "g"))
        return rows, least, greatest

    def chosen(self, schema: TableSchema, chosen: Chosen) -> Iterator[pa.RecordBatch]:
        for batch in self._reader.batches(Statements(schema).chosen(chosen)):
            yield as_contract(schema, batch)

    def fetch(self, schema: TableSchema, keys: pa.RecordBatch) -> pa.Table:
        lists = [[_text(v, c.type) for v in keys.column(j).to_pylist()] for j, c in enumerate(schema.key)]
        rows = [f"({', '.join(map(literal, row))})" for row in zip(*lists, strict=True)]
        names = ", ".join(f"c{j}" for j in range(len(lists)))
        view = f"(select distinct * from (values {', '.join(rows)}) as k({names}))"  # may come twice, its row must not
        statements = Statements(schema, keys=(pa.string(),) * len(schema.key))
        found = self._reader.query(statements.select(view)) if rows else pa.table({})
        return pa.Table.from_batches([as_contract(schema, b) for b in found.to_batches()], contract_schema(schema))

    def counted(self, schema: TableSchema, since: int) -> tuple[int, int]:
        found = self._reader.query(f"select count(*), count_if(v >= {since}) from ({Statements(schema).select()})")
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

    def _value(self, table: str, query: str) -> Any:
        """The first value of a query on the bookkeeping; None without one, also in a file that has none yet."""
        known = f"select 1 from duckdb_tables() where schema_name = 'syncline' and table_name = {literal(table)}"
        if not self._reader.query(known).num_rows:
            return None
        found = self._reader.query(query)
        return found.column(0)[0].as_py() if found.num_rows else None


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
