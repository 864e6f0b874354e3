"""Rows as points: the folded changes of a table become what is written, and stored points become rows. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa

from syncline.change import Column, TableSchema, arrow_type
from syncline.errors import Rejected
from syncline.shape import Vector
from syncline.stores import VERSION as VERSION_AT
from syncline.stores import Folded, stored_columns
from syncline.stores.qdrant.names import DELETED, EXACT, KEY, VERSION, point_ids
from syncline.stores.qdrant.points import PointId, Sparse, Stored
from syncline.stores.qdrant.tables import vectors_of
from syncline.stores.qdrant.values import decode, encode
from syncline.stores.qdrant.vectors import decode_vectors, encode_vectors

__all__ = ["Change", "Partial", "Pieces", "Rows", "as_batch", "contract_schema", "key_ids", "rows_of", "tombstones_of"]


@dataclass(slots=True)
class Change:
    """A point to be written at ``version``. ``place`` is its position among upserts, then partials; -1: none."""

    point: Stored
    version: int
    place: int = -1


@dataclass(slots=True)
class Partial:
    """What an update carries; ``kept`` names the columns that it does not, to be taken from the point ``origin``."""

    change: Change
    origin: PointId
    kept: frozenset[str]

    @property
    def moves(self) -> bool:
        return self.origin != self.change.point.id


@dataclass(slots=True)
class Rows:
    """The changes of one table, ready to be guarded. ``bytes_a_row`` is about what one takes."""

    upserts: list[Change] = field(default_factory=list)
    partials: list[Partial] = field(default_factory=list)
    deletes: list[Change] = field(default_factory=list)
    bytes_a_row: int = 1

    @property
    def changes(self) -> list[Change]:
        return [*self.upserts, *(p.change for p in self.partials), *self.deletes]


class Pieces:
    """Whole rows, made into points ``size`` at a time and in the order of their versions, so that some can be written
    while the next are made. ``refused``: places of rows that have no form in Qdrant, and why, of the pieces so far.
    """

    def __init__(self, schema: TableSchema, upserts: pa.RecordBatch, size: int) -> None:
        self.refused: dict[int, str] = {}
        self._schema = schema
        self._rows = upserts
        self._size = size
        versions = upserts.column(upserts.num_columns + VERSION_AT).to_numpy(zero_copy_only=False)
        self._order = np.argsort(versions, kind="stable")

    def __len__(self) -> int:
        return (len(self._order) + self._size - 1) // self._size

    def __getitem__(self, number: int) -> list[Change]:
        if not 0 <= number < len(self):
            raise IndexError(number)
        places = self._order[number * self._size : (number + 1) * self._size]
        refused: dict[int, str] = {}
        changes = _changes(self._schema, self._rows.take(pa.array(places)), 0, refused)
        self.refused |= {int(places[row]): reason for row, reason in refused.items()}
        return [
            Change(change.point, change.version, place) for change, place in zip(changes, places.tolist(), strict=True)
        ]

    def reject(self) -> None:
        """Raise ``Rejected`` if any row is refused, of all the pieces."""
        if self.refused:
            for number in range(len(self)):
                self[number]
            raise _rejected(self._schema, self.refused)


def rows_of(schema: TableSchema, folded: Folded) -> Rows:
    """The changes as points.

    Raises:
        Rejected: values that have no form in Qdrant; positions count the upserts, then the partials.
    """
    refused: dict[int, str] = {}
    rows = Rows()
    if folded.upserts is not None:
        rows.upserts = _changes(schema, folded.upserts, 0, refused)
    if folded.partials is not None:
        rows.partials = _partials(schema, folded.partials, len(rows.upserts), refused)
    if folded.deletes is not None:
        rows.deletes = _deletes(schema, folded.deletes)
    if refused:
        raise _rejected(schema, refused)
    batches = [b for b in (folded.upserts, folded.partials, folded.deletes) if b is not None and b.num_rows]
    rows.bytes_a_row = max((b.nbytes // b.num_rows for b in batches), default=1)
    return rows


def _rejected(schema: TableSchema, refused: dict[int, str]) -> Rejected:
    reasons = sorted(set(refused.values()))
    return Rejected(schema.qualified, sorted(refused), "; ".join(reasons[:3]))


class _Columns:
    """The columns of a batch, encoded: payload values, vectors, and the exact texts beside them."""

    def __init__(self, schema: TableSchema, batch: pa.RecordBatch, offset: int, refused: dict[int, str]) -> None:
        self.names: list[str] = []
        self.values: list[list[Any]] = []
        self.vectors: list[tuple[str, list[list[float] | Sparse | None]]] = []
        self.exact: dict[int, dict[str, str]] = {}
        by_column = {vector.column: vector for vector in vectors_of(schema)}
        for column, array in zip(schema.columns, batch.columns, strict=False):
            vector = by_column.get(column.name)
            bad = self._vector(vector, array) if vector else self._payload(column, array)
            for row, reason in bad.items():
                refused.setdefault(offset + row, reason)

    def _payload(self, column: Column, array: pa.Array) -> dict[int, str]:
        try:
            encoded = encode(column, array)
        except UnicodeDecodeError:
            return _not_utf8(array)
        self.names.append(column.name)
        self.values.append(encoded.values)
        for row, text in encoded.exact.items():
            self.exact.setdefault(row, {})[column.name] = text
        return dict.fromkeys(encoded.bad, f"a value of column {column.name} has no exact form in its column's type")

    def _vector(self, vector: Vector, array: pa.Array) -> dict[int, str]:
        encoded = encode_vectors(vector, array)
        self.vectors.append((vector.name, encoded.values))
        for row, text in encoded.exact.items():
            self.exact.setdefault(row, {})[vector.column] = text
        return encoded.bad


def _not_utf8(array: pa.Array) -> dict[int, str]:
    bad = {}
    for row in range(len(array)):
        try:
            array[row].as_py()
        except UnicodeDecodeError:
            bad[row] = "a text is not UTF-8"
    return bad


def _changes(schema: TableSchema, batch: pa.RecordBatch, offset: int, refused: dict[int, str]) -> list[Change]:
    columns = _Columns(schema, batch, offset, refused)
    if refused:
        return [Change(Stored(0, {}), 0)] * batch.num_rows  # nothing is written, the others are only counted
    versions = batch.column(len(schema.columns)).to_pylist()
    ids = point_ids(schema, [columns.values[columns.names.index(c.name)] for c in schema.key])
    changes = []
    for row, (key, version, values) in enumerate(zip(ids, versions, zip(*columns.values, strict=True), strict=True)):
        payload = dict(zip(columns.names, values, strict=True))
        payload[VERSION] = version
        if row in columns.exact:
            payload[EXACT] = columns.exact[row]
        vectors = {name: found[row] for name, found in columns.vectors if found[row] is not None}
        changes.append(Change(Stored(key, payload, vectors), version, offset + row))  # type: ignore[arg-type]
    return changes


def _partials(schema: TableSchema, batch: pa.RecordBatch, offset: int, refused: dict[int, str]) -> list[Partial]:
    changes = _changes(schema, batch, offset, refused)
    if refused:
        return []
    n = len(schema.columns)
    struct = batch.column(n + 2)
    origins = key_ids(schema, pa.RecordBatch.from_arrays(struct.flatten(), [c.name for c in schema.key]))
    masks = [_names(schema, mask) for mask in batch.column(n + 1).to_pylist()]
    return [Partial(c, o, m) for c, o, m in zip(changes, origins, masks, strict=True) if o is not None]


@lru_cache(maxsize=1024)
def _names(schema: TableSchema, mask: bytes) -> frozenset[str]:
    """The columns that a mask calls unchanged."""
    return frozenset(c.name for i, c in enumerate(schema.columns) if mask[i // 8] >> (i % 8) & 1)


def _encoded_keys(schema: TableSchema, keys: pa.RecordBatch) -> list[list[Any]]:
    return [encode(column, array).values for column, array in zip(schema.key, keys.columns, strict=False)]


def key_ids(schema: TableSchema, keys: pa.RecordBatch) -> list[PointId | None]:
    """The ids of keys; None for one that has no exact form, which was never stored."""
    values = _encoded_keys(schema, keys)
    there = [row for row, key in enumerate(zip(*values, strict=True)) if None not in key]
    ids: list[PointId | None] = [None] * keys.num_rows
    for row, found in zip(there, point_ids(schema, [[v[row] for row in there] for v in values]), strict=True):
        ids[row] = found
    return ids


def _deletes(schema: TableSchema, batch: pa.RecordBatch) -> list[Change]:
    """Tombstones: points without vectors, whose payload no filter on a column meets (correctness rule 16)."""
    keys = list(zip(*_encoded_keys(schema, batch), strict=True))
    versions = batch.column(len(schema.key)).to_pylist()
    return [
        Change(Stored(found, {VERSION: version, DELETED: True, KEY: list(key)}), version)
        for found, version, key in zip(key_ids(schema, batch), versions, keys, strict=True)
        if found is not None
    ]


# ---------------------------------------------------------------------------------------------------------- reading


@lru_cache(maxsize=256)
def contract_schema(schema: TableSchema) -> pa.Schema:
    """What ``scan`` and ``fetch`` return."""
    types = [*(arrow_type(c.type) for c in schema.columns), pa.int64()]
    return pa.schema(list(zip(stored_columns(schema), types, strict=True)))


def as_batch(schema: TableSchema, points: Sequence[Stored]) -> pa.RecordBatch:
    """Points as rows. One whose key can't be read is none of the table's: it was in the collection before."""
    by_column = {vector.column: vector for vector in vectors_of(schema)}
    exact = [point.payload.get(EXACT) or {} for point in points]
    arrays = []
    for column in schema.columns:
        texts = [found.get(column.name) for found in exact]
        vector = by_column.get(column.name)
        if vector:
            arrays.append(decode_vectors(vector, [p.vectors.get(vector.name) for p in points], texts))
        else:
            arrays.append(decode(column, [p.payload.get(column.name) for p in points], texts))
    arrays.append(pa.array([p.payload.get(VERSION) or 0 for p in points], pa.int64()))
    batch = pa.RecordBatch.from_arrays(arrays, schema=contract_schema(schema))
    keys = [batch.column(i) for i in schema.key_positions]
    if any(key.null_count for key in keys):
        whole = [all(values) for values in zip(*(key.is_valid().to_pylist() for key in keys), strict=True)]
        batch = batch.filter(pa.array(whole, pa.bool_()))
    return batch


def tombstones_of(schema: TableSchema, points: Sequence[Stored]) -> pa.RecordBatch:
    """Tombstones as key columns, then ``version``."""
    graves = [point for point in points if KEY in point.payload]
    nothing: list[str | None] = [None] * len(graves)
    keys = [decode(c, [p.payload[KEY][i] for p in graves], nothing) for i, c in enumerate(schema.key)]
    versions = pa.array([p.payload[VERSION] for p in graves], pa.int64())
    return pa.RecordBatch.from_arrays([*keys, versions], names=[*(c.name for c in schema.key), "version"])
