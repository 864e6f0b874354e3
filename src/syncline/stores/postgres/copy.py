"""Reading a copy in PostgreSQL for verification: the contract's optional ``CopyReader``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec
import pyarrow as pa

from syncline.change import Cursor, TableSchema
from syncline.stores.postgres.reading import scan_rows, scan_tombstones
from syncline.stores.postgres.server import PostgresConfig
from syncline.stores.postgres.sql import quote
from syncline.stores.postgres.store import reading
from syncline.stores.postgres.tables import table_state

__all__ = ["PostgresCopy"]


class PostgresCopy:
    """A :class:`syncline.stores.CopyReader`: each look is a session of its own, in a repeatable-read snapshot.

    Raises:
        Unavailable, Misconfigured: the server can't be read.
    """

    def __init__(self, config: PostgresConfig) -> None:
        self._config = config
        self._own = quote(config.schema_name)
        with reading(config):
            pass  # a wrong address is told at once

    def cursor(self, source: str) -> Cursor | None:
        found = self._row("cursors", "select body from {} where source = $1", source)
        return msgspec.json.decode(found[0], type=Cursor) if found and found[0] else None

    def recorded(self, table: str) -> TableSchema | None:
        found = self._row("tables", "select body from {} where name = $1", table)
        return msgspec.json.decode(found[0], type=TableSchema) if found else None

    def held(self, source: str) -> list[TableSchema]:
        rows = self._rows("tables", "select body from {} where source = $1 order by name", source)
        return [msgspec.json.decode(body, type=TableSchema) for (body,) in rows]

    def scan(self, schema: TableSchema) -> Iterator[pa.RecordBatch]:
        with reading(self._config) as connection:
            yield from scan_rows(connection, table_state(connection, self._own, schema))

    def buried(self, schema: TableSchema, since: int) -> pa.Table:
        with reading(self._config) as connection:
            state = table_state(connection, self._own, schema)
            return pa.Table.from_batches(list(scan_tombstones(connection, state, since)))

    def swept(self, table: str) -> tuple[int, int]:
        found = self._row("tables", "select truncated, horizon from {} where name = $1", table)
        return (found[0], found[1]) if found else (0, 0)

    def close(self) -> None:
        """Nothing is held between two looks."""

    def _row(self, table: str, query: str, value: str) -> tuple[Any, ...] | None:
        """The row of our bookkeeping, None without one, also where there is no bookkeeping yet."""
        return next(iter(self._rows(table, query, value)), None)

    def _rows(self, table: str, query: str, value: str) -> list[tuple[Any, ...]]:
        name = f"{self._own}.{table}"
        with reading(self._config) as connection:
            known = connection.execute("select to_regclass($1)", [name]).fetchone()
            if known is None or known[0] is None:
                return []
            return connection.execute(query.format(name), [value]).fetchall()
