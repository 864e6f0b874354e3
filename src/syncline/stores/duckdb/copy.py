"""Reading a DuckDB copy for verification, from any process of this machine: the contract's optional ``CopyReader``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec
import pyarrow as pa

from syncline.change import Cursor, TableSchema
from syncline.digests import Chosen, whole_key
from syncline.stores.duckdb.database import DuckDBConfig
from syncline.stores.duckdb.door import open_reader
from syncline.stores.duckdb.sql import VERSION_COLUMN, Statements, literal, quote
from syncline.stores.duckdb.store import as_contract, contract_schema

__all__ = ["DuckDBCopy"]


class DuckDBCopy:
    """A :class:`syncline.stores.CopyReader`: through the door while an engine runs, else of the file itself.

    Raises:
        Misconfigured: there is no such file yet, or its engine has no door.
    """

    def __init__(self, config: DuckDBConfig) -> None:
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

    def close(self) -> None:
        self._reader.close()

    def _value(self, table: str, query: str) -> Any:
        """The first value of a query on the bookkeeping; None without one, also in a file that has none yet."""
        known = f"select 1 from duckdb_tables() where schema_name = 'syncline' and table_name = {literal(table)}"
        if not self._reader.query(known).num_rows:
            return None
        found = self._reader.query(query)
        return found.column(0)[0].as_py() if found.num_rows else None
