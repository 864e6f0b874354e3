"""Reading what a Redis target holds, for verification: the contract's optional ``CopyReader``."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyarrow as pa

from syncline.bookkeeping import bookkept
from syncline.change import Cursor, TableSchema, arrow_type
from syncline.stores.redis.config import RedisConfig
from syncline.stores.redis.layout import Layout, layout_of
from syncline.stores.redis.reading import Keyspace, as_rows, key_texts, read
from syncline.stores.redis.scan import companion, rows_of
from syncline.stores.redis.server import Connection
from syncline.stores.redis.tables import recorded
from syncline.stores.redis.text import from_text
from syncline.stores.redis.writing import ids_of

__all__ = ["RedisCopy"]


class RedisCopy:
    """A :class:`syncline.stores.CopyReader` with a connection of its own.

    Raises:
        Unavailable, Misconfigured: the server is away, or refuses this user.
    """

    def __init__(self, config: RedisConfig) -> None:
        self._config = config
        self._keys = Keyspace(config.prefix)
        self._connection = Connection(config)

    def cursor(self, source: str) -> Cursor | None:
        body = self._connection.call("HGET", self._keys.cursors, source)
        return None if body is None else bookkept(body, Cursor)

    def recorded(self, table: str) -> TableSchema | None:
        found = recorded(self._connection, self._keys, table)
        return None if found is None else found.schema

    def held(self, source: str) -> list[TableSchema]:
        names = sorted(name.decode() for name in self._connection.call("SMEMBERS", self._keys.tables))
        found = [recorded(self._connection, self._keys, name) for name in names]
        return [table.schema for table in found if table is not None and table.source == source]

    def scan(self, schema: TableSchema) -> Iterator[pa.RecordBatch]:
        layout = layout_of(schema, self._config.prefix)
        yield from rows_of(self._connection, self._keys, layout, self._config.mode)

    def fetch(self, schema: TableSchema, keys: pa.RecordBatch) -> pa.Table:
        layout = layout_of(schema, self._config.prefix)
        ids = ids_of(layout, keys)
        slices = [ids.slice(begin, 5_000) for begin in range(0, max(1, len(ids)), 5_000)]
        found = [read(self._connection, self._keys, layout, page, self._config.mode) for page in slices]
        return pa.Table.from_batches([as_rows(layout, page) for page in found])

    def buried(self, schema: TableSchema, since: int) -> pa.Table:
        """Tombstones; of a cache also the rows that were evicted or have expired, which are no differences."""
        layout = layout_of(schema, self._config.prefix)
        gone = [*self._tombstones(layout, since)]
        if self._config.mode == "cache":
            gone += self._expired(layout, since)
        fields = [*((c.name, arrow_type(c.type)) for c in schema.key), ("version", pa.int64())]
        batches = []
        for ids, versions in gone:
            texts = key_texts(layout, ids)
            keys = [from_text(texts[p], schema.columns[p].type)[0] for p in schema.key_positions]
            batches.append(pa.RecordBatch.from_arrays([*keys, versions], schema=pa.schema(fields)))
        return pa.Table.from_batches(batches, pa.schema(fields))

    def _tombstones(self, layout: Layout, since: int) -> Iterator[tuple[pa.Array, pa.Array]]:
        place = b"0"
        while True:
            dead = self._keys.dead(layout.schema.qualified)
            place, found = self._connection.call("HSCAN", dead, place, "COUNT", 1_000)
            versions = np.array([int(v) for v in found[1::2]], np.int64)
            chosen = pa.array(versions >= since)
            yield pa.array(found[::2], pa.binary()).filter(chosen), pa.array(versions).filter(chosen)
            if place == b"0":
                return

    def _expired(self, layout: Layout, since: int) -> Iterator[tuple[pa.Array, pa.Array]]:
        for ids, _ in companion(self._connection, self._keys, layout.schema.qualified, 1_000):
            stored = read(self._connection, self._keys, layout, pa.array(ids, pa.binary()))
            chosen = pa.array(stored.expired)
            yield stored.ids.filter(chosen), pa.array(stored.versions.clip(min=since)).filter(chosen)

    def swept(self, table: str) -> tuple[int, int]:
        found = recorded(self._connection, self._keys, table)
        return (found.truncated, found.horizon) if found else (0, 0)

    def close(self) -> None:
        self._connection.close()
