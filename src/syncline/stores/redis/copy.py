"""Reading what a Redis target holds, for verification: the contract's optional ``CopyReader``."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec
import numpy as np
import pyarrow as pa

from syncline.change import Cursor, TableSchema, arrow_type
from syncline.stores.redis.config import RedisConfig
from syncline.stores.redis.layout import layout_of
from syncline.stores.redis.reading import Keyspace, key_texts
from syncline.stores.redis.scan import rows_of
from syncline.stores.redis.server import Connection
from syncline.stores.redis.tables import recorded
from syncline.stores.redis.text import from_text

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
        return None if body is None else msgspec.json.decode(body, type=Cursor)

    def recorded(self, table: str) -> TableSchema | None:
        found = recorded(self._connection, self._keys, table)
        return None if found is None else found.schema

    def scan(self, schema: TableSchema) -> Iterator[pa.RecordBatch]:
        yield from rows_of(self._connection, self._keys, layout_of(schema, self._config.prefix))

    def buried(self, schema: TableSchema, since: int) -> pa.Table:
        layout = layout_of(schema, self._config.prefix)
        fields = [*((c.name, arrow_type(c.type)) for c in schema.key), ("version", pa.int64())]
        batches = []
        place = b"0"
        while True:
            place, found = self._connection.call("HSCAN", self._keys.dead(schema.qualified), place, "COUNT", 1_000)
            versions = np.array([int(v) for v in found[1::2]], np.int64)
            ids = pa.array(found[::2], pa.binary()).filter(pa.array(versions >= since))
            texts = key_texts(layout, ids)
            keys = [from_text(texts[p], schema.columns[p].type)[0] for p in schema.key_positions]
            arrays = [*keys, pa.array(versions[versions >= since])]
            batches.append(pa.RecordBatch.from_arrays(arrays, schema=pa.schema(fields)))
            if place == b"0":
                return pa.Table.from_batches(batches)

    def swept(self, table: str) -> tuple[int, int]:
        found = recorded(self._connection, self._keys, table)
        return (found.truncated, found.horizon) if found else (0, 0)

    def close(self) -> None:
        self._connection.close()
