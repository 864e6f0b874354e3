"""Reading a Qdrant copy for verification, from any process: the contract's optional ``CopyReader``."""

from __future__ import annotations

from collections.abc import Iterator

import pyarrow as pa

from syncline.change import Cursor, TableSchema
from syncline.stores.qdrant.books import read_cursor, read_table, read_tables
from syncline.stores.qdrant.reader import readable
from syncline.stores.qdrant.reading import buried_rows, fetch_rows, scan_rows, swept_table
from syncline.stores.qdrant.store import QdrantConfig

__all__ = ["QdrantCopy"]


class QdrantCopy:
    """A :class:`syncline.stores.CopyReader`: of a server, through the door of an engine's folder, or of a folder that
    no engine has open.

    A scan is no snapshot: Qdrant has none. Each row is as it is when its page is read, and one that is there throughout
    comes exactly once.

    Raises:
        Misconfigured: there is no such folder yet, or its engine has no door.
        Unavailable: the server does not answer.
    """

    def __init__(self, config: QdrantConfig) -> None:
        self._points = readable(config)

    def cursor(self, source: str) -> Cursor | None:
        return read_cursor(self._points, source)

    def recorded(self, table: str) -> TableSchema | None:
        found = read_table(self._points, table)
        return found.schema if found else None

    def held(self, source: str) -> list[TableSchema]:
        return [table.schema for table in read_tables(self._points) if table.source == source]

    def scan(self, schema: TableSchema) -> Iterator[pa.RecordBatch]:
        return scan_rows(self._points, schema)

    def fetch(self, schema: TableSchema, keys: pa.RecordBatch) -> pa.Table:
        return fetch_rows(self._points, schema, keys)

    def buried(self, schema: TableSchema, since: int) -> pa.Table:
        return buried_rows(self._points, schema, since)

    def swept(self, table: str) -> tuple[int, int]:
        return swept_table(self._points, table)

    def close(self) -> None:
        self._points.close()
