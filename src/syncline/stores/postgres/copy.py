"""Reading a copy in PostgreSQL for verification: the contract's optional ``CopyReader``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import psycopg
import pyarrow as pa

from syncline.bookkeeping import bookkept
from syncline.change import Cursor, TableSchema
from syncline.errors import SynclineError, Unavailable
from syncline.stores.postgres.reading import fetch_rows, scan_rows, scan_tombstones
from syncline.stores.postgres.server import PostgresConfig
from syncline.stores.postgres.sql import VERSION_COLUMN, place_of, quote, soft_delete_of
from syncline.stores.postgres.store import reading
from syncline.stores.postgres.tables import table_state
from syncline.stores.postgres.writing import incoming_keys

__all__ = ["PostgresCopy"]

_FETCHED = 1_000  # rows of an answer at a time


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
        return bookkept(found[0], Cursor) if found and found[0] else None

    def recorded(self, table: str) -> TableSchema | None:
        found = self._row("tables", "select body from {} where name = $1", table)
        return bookkept(found[0], TableSchema) if found else None

    def held(self, source: str) -> list[TableSchema]:
        rows = self._rows("tables", "select body from {} where source = $1 order by name", source)
        return [bookkept(body, TableSchema) for (body,) in rows]

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

    def fetch(self, schema: TableSchema, keys: pa.RecordBatch) -> pa.Table:
        with reading(self._config) as connection:
            state = table_state(connection, self._own, schema)
            given, wires = incoming_keys(state, keys)
            return fetch_rows(connection, state, given, wires)

    def counted(self, schema: TableSchema, since: int) -> tuple[int, int]:
        mark, (namespace, name) = soft_delete_of(schema), place_of(schema)
        where = f" where {quote(mark)} is null" if mark else ""
        with reading(self._config) as connection:
            found = connection.execute(
                f"select count(*), count(*) filter (where {quote(VERSION_COLUMN)} >= $1)"
                f" from {quote(namespace)}.{quote(name)}{where}",
                [since],
            ).fetchone()
        assert found is not None
        return int(found[0]), int(found[1])

    def ask(self, query: str, timeout_s: float) -> Iterator[tuple[Any, ...]]:
        """Through a cursor, in a transaction that only reads: what nobody fetches is not computed."""
        try:
            with reading(self._config) as connection:
                connection.execute(f"set local statement_timeout = {int(timeout_s * 1000)}")
                # The extended protocol, which `binary` asks for, takes one statement: another could commit, and write.
                connection.execute(f"declare asked no scroll cursor for {query.strip().rstrip(';')}", binary=True)
                while rows := connection.execute(f"fetch forward {_FETCHED} from asked").fetchall():
                    yield from rows
        except SynclineError as error:
            if isinstance(error.__cause__, psycopg.errors.QueryCanceled):
                raise Unavailable(f"The query took PostgreSQL longer than {timeout_s:g} s.") from None
            raise

    def dangling(
        self, schema: TableSchema, columns: Sequence[str], to: TableSchema, key: Sequence[str], timeout_s: float
    ) -> Iterator[tuple[Any, ...]] | None:
        mine, theirs = (".".join(quote(part) for part in place_of(s)) for s in (schema, to))
        mark, marked = (
            f" and {alias}.{quote(soft_delete_of(s))} is null" if soft_delete_of(s) else ""
            for alias, s in (("t", schema), ("p", to))
        )
        told = ", ".join(f"t.{quote(c.name)}" for c in schema.key)
        given = " and ".join(f"t.{quote(c)} is not null" for c in columns)
        match = " and ".join(f"p.{quote(k)} = t.{quote(c)}" for c, k in zip(columns, key, strict=True))
        return self.ask(
            f"select {told} from {mine} as t where {given}{mark}"
            f" and not exists (select from {theirs} as p where {match}{marked})",
            timeout_s,
        )

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
