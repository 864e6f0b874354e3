"""Rows, tombstones and horizons of a table, from whatever shows its points."""

from __future__ import annotations

from collections.abc import Iterator

import pyarrow as pa

from syncline.change import TableSchema
from syncline.stores.qdrant.books import Marker, read_table
from syncline.stores.qdrant.names import DELETED, collection_of
from syncline.stores.qdrant.points import Readable, Which, scroll
from syncline.stores.qdrant.rows import as_batch, contract_schema, key_ids, tombstones_of
from syncline.stores.qdrant.tables import vectors_of

__all__ = ["buried_rows", "fetch_rows", "scan_rows", "swept_table"]

_FETCH = 1_000


def fetch_rows(points: Readable, schema: TableSchema, keys: pa.RecordBatch) -> pa.Table:
    """The rows of these keys, as the contract says."""
    ids = [found for found in key_ids(schema, keys) if found is not None]
    batches = []
    for start in range(0, len(ids), _FETCH):
        part = ids[start : start + _FETCH]
        found = points.retrieve(collection_of(schema), part, vectors=bool(vectors_of(schema)))
        batches.append(as_batch(schema, [point for point in found if not point.payload.get(DELETED)]))
    return pa.Table.from_batches(batches, contract_schema(schema))


def scan_rows(points: Readable, schema: TableSchema) -> Iterator[pa.RecordBatch]:
    """All rows, a page at a time; vectors are read only where the table has some."""
    wanted = Which(buried=False)
    for page in scroll(points, collection_of(schema), wanted, vectors=bool(vectors_of(schema))):
        yield as_batch(schema, page)


def buried_rows(points: Readable, schema: TableSchema, since: int) -> pa.Table:
    """Tombstones at or above ``since``: the key columns, then ``version``."""
    nothing = tombstones_of(schema, [])
    wanted = Which(buried=True, since=since)
    batches = [tombstones_of(schema, page) for page in scroll(points, collection_of(schema), wanted)]
    return pa.Table.from_batches([nothing, *batches])


def swept_table(points: Readable, table: str) -> tuple[int, int]:
    """Version of the table's last truncation, and its horizon; 0 if none."""
    recorded = read_table(points, table)
    if recorded is None or points.spec(recorded.collection) is None:
        return 0, 0
    marker = Marker.read(points, recorded.collection, table)
    return (marker.truncated, marker.horizon) if marker else (0, 0)
