"""pgoutput messages made by hand, and batches compared by content."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from syncline.capture.messages import Relation, RelationColumn, Run
from syncline.change import Batch, Column, TableSchema
from syncline.pgvalues.pgtypes import logical_type

OID = 16_400

# A value of a tuple: (kind, bytes), kind as on the wire.
Value = tuple[bytes, bytes]
NULL: Value = (b"n", b"")
UNCHANGED: Value = (b"u", b"")


def text(value: str) -> Value:
    return b"t", value.encode()


def binary(value: bytes) -> Value:
    return b"b", value


def row(values: Iterable[Value]) -> bytes:
    found = list(values)
    parts = [kind + (struct.pack(">I", len(raw)) + raw if kind in (b"t", b"b") else b"") for kind, raw in found]
    return struct.pack(">H", len(found)) + b"".join(parts)


def insert(new: Iterable[Value], oid: int = OID) -> bytes:
    return b"I" + struct.pack(">I", oid) + b"N" + row(new)


def update(new: Iterable[Value], *, key: Iterable[Value] | None = None, old: Iterable[Value] | None = None) -> bytes:
    before = b"K" + row(key) if key is not None else b"O" + row(old) if old is not None else b""
    return b"U" + struct.pack(">I", OID) + before + b"N" + row(new)


def delete(*, key: Iterable[Value] | None = None, old: Iterable[Value] | None = None) -> bytes:
    before = b"K" + row(key) if key is not None else b"O" + row(old or [])
    return b"D" + struct.pack(">I", OID) + before


@dataclass(frozen=True)
class Table:
    """A relation and the schema that goes with it. ``columns`` are (name, type oid, modifier, part of the key)."""

    columns: tuple[tuple[str, int, int, bool], ...]
    identity: str = "d"

    @property
    def relation(self) -> Relation:
        columns = tuple(RelationColumn(name, oid, typmod, key) for name, oid, typmod, key in self.columns)
        return Relation(OID, "public", "t", self.identity, columns)

    @property
    def schema(self) -> TableSchema:
        columns = (Column(name, logical_type(oid, typmod), "x", key) for name, oid, typmod, key in self.columns)
        return TableSchema("public", "t", tuple(columns))


def one_run(count: int) -> list[Run]:
    return [Run(version=700, commit_time=1_700_000_000_000_000, xid=9, first_ordinal=3, count=count)]


def plain(array: pa.Array) -> list[Any]:
    """Python values by which arrays can be compared and shown: dates and times as their numbers."""
    if pa.types.is_temporal(array.type):
        return array.view(pa.int32() if array.type == pa.date32() else pa.int64()).to_pylist()
    if pa.types.is_struct(array.type):
        fields = [plain(array.field(i)) for i in range(array.type.num_fields)]
        return [tuple(f[i] for f in fields) if valid else None for i, valid in enumerate(array.is_valid().to_pylist())]
    return array.to_pylist()


def content(batch: Batch) -> list[tuple[str, str, str]]:
    """Name, type and values of all columns; ``repr`` tells NaN from NULL and -0 from 0."""
    rows = batch.rows
    rows.validate()
    columns = zip(rows.schema.names, rows.columns, strict=True)
    return [(name, str(array.type), repr(plain(array))) for name, array in columns]


def values(batch: Batch, name: str) -> list[Any]:
    return plain(batch.rows.column(list(batch.rows.schema.names).index(name)))


def copy_row(values: Sequence[bytes | None]) -> bytes:
    parts = [struct.pack(">i", -1) if v is None else struct.pack(">i", len(v)) + v for v in values]
    return struct.pack(">H", len(values)) + b"".join(parts)
