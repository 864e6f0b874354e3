"""Example tables, batches and entries, deterministic and shaped like captured ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from syncline.change import Batch, Column, Entry, Item, Op, Part, TableSchema, arrow_type, make_batch

__all__ = ["example_batch", "example_entry", "example_schema"]

# 2026-01-01 00:00:00 UTC in microseconds since 1970.
_EPOCH_US = 1_767_225_600_000_000

_PERSON = (
    Column("id", "int8", "bigint", key=True),
    Column("name", "text", "text"),
    Column("email", "text", "character varying(200)"),
    Column("balance", "numeric(12,2)", "numeric(12,2)"),
    Column("active", "bool", "boolean"),
    Column("created_at", "timestamptz", "timestamp with time zone"),
    Column("note", "text", "text"),
)


def example_schema(name: str = "person", *, namespace: str = "public") -> TableSchema:
    """A table of seven columns with the key ``id``: ``id name email balance active created_at note``."""
    return TableSchema(namespace, name, _PERSON)


def example_batch(
    rows: int = 3,
    *,
    first: int = 1,
    keys: Sequence[int] | None = None,
    op: Op | Sequence[Op] = Op.INSERT,
    version: int | Sequence[int] = 100,
    ordinal: int = 0,
    commit_time: int = _EPOCH_US,
    xid: int = 0,
    schema: TableSchema | None = None,
    note: str | None = None,
    width: int = 0,
    unchanged: Sequence[str] = (),
    old_keys: Sequence[int] | None = None,
) -> Batch:
    """``rows`` changes of :func:`example_schema` at the keys ``first``, ``first + 1``, ... (or at ``keys``).

    The values follow from key and version: ``note`` (unless given) is ``written at <version>``, padded to ``width``
    characters. ``op`` and ``version`` are one for all or one a row; rows that are deletes carry their key alone.
    ``unchanged`` names columns that no row carries; ``old_keys`` are the former keys of rows whose op is ``REKEY``
    (its other entries are ignored). ``ordinal`` is the first row's.
    """
    schema = schema or example_schema()
    ids = np.arange(first, first + rows) if keys is None else np.asarray(keys, dtype=np.int64)
    n = len(ids)
    versions = np.full(n, version, dtype=np.int64) if isinstance(version, int) else np.asarray(version, np.int64)
    ops = np.full(n, op, dtype=np.int8) if isinstance(op, Op) else np.asarray(op, dtype=np.int8)
    hidden = pa.array(ops == Op.DELETE)
    columns = [
        column if name == "id" else pc.if_else(hidden, pa.scalar(None, column.type), column)
        for name, column in _values(pa.array(ids), pa.array(versions), note, width).items()
    ]
    for i, column in enumerate(schema.columns):
        if column.name in unchanged:
            columns[i] = pa.nulls(n, arrow_type(column.type))
    return make_batch(
        schema,
        columns,
        op=pa.array(ops),
        version=pa.array(versions),
        ordinal=pa.array(np.arange(ordinal, ordinal + n)),
        commit_time=pa.array(np.full(n, commit_time)).cast(pa.timestamp("us", "UTC")),
        xid=pa.array(np.full(n, xid)),
        unchanged=_mask(schema, unchanged, ops) if unchanged else None,
        old_key=_old_keys(old_keys, ops) if old_keys is not None else None,
    )


def example_entry(
    *items: Item,
    rows: int = 3,
    first: int = 1,
    version: int = 100,
    place: int | None = None,
    through: int | None = None,
    incarnation: int = 1,
    commit_time: int = _EPOCH_US,
    targets: tuple[str, ...] | None = None,
    part: Part | None = None,
    origin: str = "",
) -> Entry:
    """An entry of ``items``, or of one :func:`example_batch` (``rows``, ``first``, ``version``) when there are none.

    ``place`` and ``through`` are by default right behind ``version`` (0 for a part that is not the last).
    """
    behind = 0 if part and not part.last else version + 1
    return Entry(
        items or (example_batch(rows, first=first, version=version, commit_time=commit_time),),
        behind if place is None else place,
        behind if through is None else through,
        incarnation,
        commit_time,
        targets,
        part,
        origin,
    )


def _values(ids: pa.Array, versions: pa.Array, note: str | None, width: int) -> dict[str, Any]:
    texts = ids.cast(pa.string())
    if note is None:
        notes = pc.binary_join_element_wise("written at ", versions.cast(pa.string()), "")
    else:
        notes = pa.array([note] * len(ids), pa.string())
    cents = pc.add(pc.multiply(ids, 100), pc.bit_wise_and(versions, 63))
    return {
        "id": ids,
        "name": pc.binary_join_element_wise("person ", texts, ""),
        "email": pc.binary_join_element_wise("person", texts, "@example.org", ""),
        "balance": pc.multiply(cents.cast(pa.decimal128(19, 0)), pa.scalar("0.01").cast(pa.decimal128(3, 2))).cast(
            pa.decimal128(12, 2)
        ),
        "active": pc.equal(pc.bit_wise_and(ids, 1), 0),
        "created_at": pc.add(pc.multiply(ids, 1_000_000), _EPOCH_US).cast(pa.timestamp("us", "UTC")),
        "note": pc.utf8_rpad(notes, width, ".") if width else notes,
    }


def _mask(schema: TableSchema, unchanged: Sequence[str], ops: np.ndarray[Any, Any]) -> pa.Array:
    mask = bytearray(schema.mask_bytes)
    for i, column in enumerate(schema.columns):
        if column.name in unchanged:
            mask[i // 8] |= 1 << (i % 8)
    return pa.array([None if op == Op.DELETE else bytes(mask) for op in ops.tolist()], pa.binary())


def _old_keys(old_keys: Sequence[int], ops: np.ndarray[Any, Any]) -> pa.Array:
    values = [{"id": key} if op == Op.REKEY else None for key, op in zip(old_keys, ops.tolist(), strict=True)]
    return pa.array(values, pa.struct([("id", pa.int64())]))
