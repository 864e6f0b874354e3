"""Reading a Neo4j copy for verification, from any process: the contract's optional ``CopyReader``."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa

from syncline.bookkeeping import bookkept
from syncline.change import Cursor, TableSchema
from syncline.errors import Unavailable
from syncline.stores.neo4j.cypher import CURSOR, TABLE, TOMBSTONE, slot
from syncline.stores.neo4j.database import Database, Neo4jConfig
from syncline.stores.neo4j.layout import layout_of
from syncline.stores.neo4j.reading import contract_schema, read_all, read_keys, waiting_rows
from syncline.stores.neo4j.tables import recorded
from syncline.stores.neo4j.values import exact, read_values, shown, store

__all__ = ["Neo4jCopy"]

_FETCHED = 1_000  # rows of an answer at a time


class Neo4jCopy:
    """A :class:`syncline.stores.CopyReader` that holds nobody up.

    Neo4j reads what is committed at the moment, so a scan beside a writer shows each row as it was when it was read.
    Verification needs no more: a row that changed meanwhile has a version that says so, and what a relationship was
    caught in the middle of is looked at a second time.

    Raises:
        Misconfigured, Unavailable: as ``Neo4jStore.open``.
    """

    def __init__(self, config: Neo4jConfig) -> None:
        self._database = Database(config)
        try:
            self._database.greet()
        except BaseException:
            self._database.close()
            raise

    def cursor(self, source: str) -> Cursor | None:
        found = self._database.run(f"MATCH (c:{CURSOR} {{source: $source}}) RETURN c.body", source=source)
        return bookkept(found[0][0], Cursor) if found else None

    def recorded(self, table: str) -> TableSchema | None:
        found = recorded(self._database).get(table)
        return found[1] if found else None

    def held(self, source: str) -> list[TableSchema]:
        return [schema for _, (owner, schema) in sorted(recorded(self._database).items()) if owner == source]

    def scan(self, schema: TableSchema) -> Iterator[pa.RecordBatch]:
        with self._database.reading() as tx:
            yield from read_all(tx, layout_of(schema))

    def buried(self, schema: TableSchema, since: int) -> pa.Table:
        columns = ", ".join(shown(f"t.{slot(j)}", c) for j, c in enumerate(schema.key))
        rows = self._database.run(
            f"MATCH (t:{TOMBSTONE}) WHERE t.table = $table AND t.version >= $since RETURN {columns}, t.version",
            table=schema.qualified,
            since=since,
        )
        keys = TableSchema(schema.namespace, schema.name, schema.key)
        arrays = [read_values([row[j] for row in rows], c)[0] for j, c in enumerate(schema.key)]
        arrays.append(pa.array([row[-1] for row in rows], pa.int64()))
        return pa.Table.from_arrays(arrays, schema=contract_schema(keys))

    def swept(self, table: str) -> tuple[int, int]:
        found = self._database.run(f"MATCH (t:{TABLE} {{name: $table}}) RETURN t.truncated, t.horizon", table=table)
        return (int(found[0][0]), int(found[0][1])) if found else (0, 0)

    def fetch(self, schema: TableSchema, keys: pa.RecordBatch) -> pa.Table:
        columns = [store(exact(keys.column(j), c)[0], c) for j, c in enumerate(schema.key)]
        with self._database.reading() as tx:
            _, batch = read_keys(tx, layout_of(schema), columns)
        return pa.Table.from_batches([batch], contract_schema(schema))

    def ask(self, query: str, timeout_s: float) -> Iterator[tuple[Any, ...]]:
        """In Cypher."""
        return self._asked(query, {}, timeout_s)

    def _asked(self, query: str, parameters: Mapping[str, Any], timeout_s: float) -> Iterator[tuple[Any, ...]]:
        began = time.monotonic()
        try:
            with self._database.asking(timeout_s) as tx:
                for rows in tx.stream(query, parameters, _FETCHED):
                    yield from map(tuple, rows)
        except Unavailable:
            if time.monotonic() - began < timeout_s:
                raise
            raise Unavailable(f"The query took Neo4j longer than {timeout_s:g} s.") from None

    def dangling(
        self, schema: TableSchema, columns: Sequence[str], to: TableSchema, key: Sequence[str], timeout_s: float
    ) -> Iterator[tuple[Any, ...]] | None:
        """Rows whose relationship waits at a stub (decision record 0014): of a node those with a waiting relationship
        of this reference, of a join table those whose end on this side is a stub. Neo4j itself keeps no relationship
        without its ends."""
        found = waiting_rows(layout_of(schema), columns)
        return None if found is None else self._asked(*found, timeout_s)

    def close(self) -> None:
        self._database.close()
