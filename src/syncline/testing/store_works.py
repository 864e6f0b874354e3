"""Building works for the store suite: tables, rows, and looking at what a store holds."""

from __future__ import annotations

import itertools
import uuid
from collections.abc import Iterator, Sequence
from decimal import Decimal
from typing import Any

import pyarrow as pa
from hypothesis import strategies as st

from syncline.change import Column, Cursor, Position, TableSchema, arrow_type
from syncline.stores import Folded, Store, TableWork, Work

__all__ = [
    "I32",
    "I64",
    "ITEM",
    "KEYS",
    "PAIR",
    "VALUES",
    "Rows",
    "contents",
    "key_batch",
    "random_steps",
    "rows_of",
    "texts",
    "truncated_only",
    "work",
]

ITEM = TableSchema(
    "public",
    "item",
    (
        Column("id", "int8", "bigint", key=True),
        Column("name", "text", "text"),
        Column("amount", "numeric(12,2)", "numeric(12,2)"),
    ),
)
PAIR = TableSchema(
    "shop",
    "pair",
    (
        Column("Region", "text", "text", key=True),
        Column("version", "int4", "integer"),
        Column("code", "uuid", "uuid", key=True),
        Column("note", "text", "text"),
    ),
)
VALUES = TableSchema(
    "public",
    "values",
    (
        Column("id", "int4", "integer", key=True),
        Column("bool", "bool", "boolean"),
        Column("int2", "int2", "smallint"),
        Column("int8", "int8", "bigint"),
        Column("float4", "float4", "real"),
        Column("float8", "float8", "double precision"),
        Column("numeric", "numeric(38,10)", "numeric(38,10)"),
        Column("bytes", "bytes", "bytea"),
        Column("uuid", "uuid", "uuid"),
        Column("date", "date", "date"),
        Column("time", "time", "time"),
        Column("timestamp", "timestamp", "timestamp"),
        Column("timestamptz", "timestamptz", "timestamp with time zone"),
        Column("json", "json", "jsonb"),
        Column("select", "text", "text"),
    ),
)

I64, I32 = 2**63 - 1, 2**31 - 1

# Three values of each type that has an order in PostgreSQL and so can be a key.
KEYS: dict[str, tuple[Any, Any, Any]] = {
    "int2": (-1, 0, 2**15 - 1),
    "int4": (-1, 0, 2**31 - 1),
    "int8": (-(2**63), 0, 2**63 - 1),
    "float4": (-1.5, 0.0, float("inf")),
    "float8": (-1.5, 0.0, float("-inf")),
    "numeric(20,3)": (Decimal("-1.500"), Decimal("0.001"), Decimal("99999999999999999.999")),
    "bytes": (b"\x00", b"'\xff", b""),
    "uuid": (b"\0" * 16, uuid.UUID("00112233-4455-6677-8899-aabbccddeeff").bytes, b"\xff" * 16),
    "date": (-I32, 0, I32),
    "time": (0, 1, 86_400_000_000),
    "timestamp": (-I64, 1, I64),
    "timestamptz": (-I64, 1, I64),
    "json": ('{"a": 1}', "null", "[]"),
    "text": ("", "a'b", "Ä"),
}


def _array(values: Sequence[Any], column: Column, *, text: bool = False) -> pa.Array:
    """Temporal values are given as the integers that store them."""
    if text:
        return pa.array(values, pa.string())
    kind = arrow_type(column.type)
    if pa.types.is_temporal(kind):
        return pa.array(values, pa.int32() if kind == pa.date32() else pa.int64()).view(kind)
    return pa.array(values, kind)


class Rows:
    """Builds a :class:`~syncline.stores.Folded` row by row. A row is the table's values, in the table's order."""

    def __init__(self, schema: TableSchema = ITEM, *, text: Sequence[str] = ()) -> None:
        self.schema = schema
        self.text = text
        self._upserts: list[tuple[Any, ...]] = []
        self._partials: list[tuple[Any, ...]] = []
        self._deletes: list[tuple[Any, ...]] = []

    def upsert(self, version: int, *values: Any) -> Rows:
        """Write a whole row."""
        self._upserts.append((*values, version))
        return self

    def partial(self, version: int, *values: Any, unchanged: Sequence[str], origin: tuple[Any, ...] = ()) -> Rows:
        """Write the columns not named ``unchanged``; the rest comes from the row at ``origin`` (default: itself)."""
        mask = bytearray(self.schema.mask_bytes)
        for i, column in enumerate(self.schema.columns):
            if column.name in unchanged:
                mask[i // 8] |= 1 << (i % 8)
        key = origin or tuple(values[i] for i in self.schema.key_positions)
        self._partials.append((*values, version, bytes(mask), key))
        return self

    def delete(self, version: int, *key: Any) -> Rows:
        """Delete a key."""
        self._deletes.append((*key, version))
        return self

    def folded(self) -> Folded:
        """What was collected."""
        return Folded(
            self._batch(self._upserts, self.schema.columns),
            self._partial_batch(),
            self._batch(self._deletes, self.schema.key),
        )

    def table(self, *, truncated: int | None = None) -> TableWork:
        """It as one table's part of a work."""
        return TableWork(self.schema, self.folded(), truncated)

    def _columns(self, rows: list[tuple[Any, ...]], columns: Sequence[Column]) -> list[pa.Array]:
        return [_array([r[i] for r in rows], c, text=c.name in self.text) for i, c in enumerate(columns)]

    def _batch(self, rows: list[tuple[Any, ...]], columns: Sequence[Column]) -> pa.RecordBatch | None:
        if not rows:
            return None
        arrays = [*self._columns(rows, columns), pa.array([r[len(columns)] for r in rows], pa.int64())]
        return pa.RecordBatch.from_arrays(arrays, names=[*(c.name for c in columns), "version"])

    def _partial_batch(self) -> pa.RecordBatch | None:
        if not self._partials:
            return None
        n = len(self.schema.columns)
        keys = self._columns([r[n + 2] for r in self._partials], self.schema.key)
        arrays = [
            *self._columns(self._partials, self.schema.columns),
            pa.array([r[n] for r in self._partials], pa.int64()),
            pa.array([r[n + 1] for r in self._partials], pa.binary()),
            pa.StructArray.from_arrays(keys, names=[c.name for c in self.schema.key]),
        ]
        names = [*(c.name for c in self.schema.columns), "version", "unchanged", "from_key"]
        return pa.RecordBatch.from_arrays(arrays, names=names)


_numbers = itertools.count(1)


def work(*tables: Rows | TableWork, source: str = "orders", n: int | None = None, truncated: int | None = None) -> Work:
    """A work of these tables, with a cursor behind every former one."""
    parts = tuple(t.table(truncated=truncated) if isinstance(t, Rows) else t for t in tables)
    return Work(parts, Cursor(source, Position("log", next(_numbers) if n is None else n)))


def contents(store: Store, schema: TableSchema = ITEM) -> dict[Any, tuple[Any, ...]]:
    """Key -> (other values..., version) of all rows that ``scan`` returns; fails on duplicate keys.

    Temporal values are the integers that store them. A key of one column is that value, else a tuple.
    """
    found: dict[Any, tuple[Any, ...]] = {}
    for batch in store.scan(schema):
        for key, row in rows_of(schema, batch):
            assert key not in found, f"key {key} is stored twice"
            found[key] = row
    return found


def rows_of(schema: TableSchema, batch: pa.RecordBatch | pa.Table) -> Iterator[tuple[Any, tuple[Any, ...]]]:
    """The key and the other values of each row, as :func:`contents` shows them."""
    columns = []
    for array in batch.columns:
        array = array.combine_chunks() if isinstance(array, pa.ChunkedArray) else array
        if pa.types.is_temporal(array.type):
            array = array.view(pa.int32() if array.type == pa.date32() else pa.int64())
        columns.append(array.to_pylist())
    for values in zip(*columns, strict=True):
        key = tuple(values[i] for i in schema.key_positions)
        rest = tuple(v for i, v in enumerate(values) if i not in schema.key_positions)
        yield (key if len(key) > 1 else key[0]), rest


def key_batch(schema: TableSchema, *keys: tuple[Any, ...]) -> pa.RecordBatch:
    """Keys to ``fetch``."""
    arrays = [_array([k[i] for k in keys], c) for i, c in enumerate(schema.key)]
    return pa.RecordBatch.from_arrays(arrays, names=[c.name for c in schema.key])


def truncated_only(version: int) -> TableWork:
    """A truncation without rows."""
    return TableWork(ITEM, Folded(), version)


def texts(
    key: int, numeric: str | None, date: str | None, time: str | None, stamp: str | None, zoned: str | None
) -> list[Any]:
    """A row of VALUES that carries these columns as text, and NULL elsewhere."""
    values: list[Any] = [None] * len(VALUES.columns)
    names = [c.name for c in VALUES.columns]
    given = {"id": key, "numeric": numeric, "date": date, "time": time, "timestamp": stamp, "timestamptz": zoned}
    for name, value in given.items():
        values[names.index(name)] = value
    return values


@st.composite
def _works(draw: st.DrawFn) -> Work:
    """Any work the contract allows: unique keys, any versions, partials from any key."""
    rows = Rows()
    keys = draw(st.lists(st.integers(1, 5), unique=True, max_size=5))
    for key in keys:
        version = draw(st.integers(1, 12))
        kind = draw(st.sampled_from(["upsert", "upsert", "delete", "partial", "move"]))
        name, amount = draw(st.sampled_from([None, "a", "b"])), draw(st.sampled_from([None, Decimal("1.00")]))
        if kind == "upsert":
            rows.upsert(version, key, name, amount)
        elif kind == "delete":
            rows.delete(version, key)
        else:
            unchanged = draw(st.sampled_from([["name"], ["amount"], ["name", "amount"]]))
            origin = (draw(st.integers(1, 5)),) if kind == "move" else (key,)
            rows.partial(version, key, name, amount, unchanged=unchanged, origin=origin)
    return work(rows, truncated=draw(st.none() | st.integers(1, 12)))


random_steps: st.SearchStrategy[Work | int] = st.one_of(_works(), _works(), _works(), st.integers(1, 10))
