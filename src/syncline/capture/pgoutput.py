"""pgoutput's bytes as values: control messages one at a time, row messages as columnar batches. Pure.

:func:`decode` turns the row messages of one relation into a :class:`~syncline.change.Batch` without a loop over rows
or values (``tuples`` walks, ``pgtypes`` casts). A handful of rows costs less row by row. When anything in a batch is
odd, the row-wise decoder goes through the same messages again and names the wrong one: malformed bytes are an error,
never a wrong row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from operator import attrgetter
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from syncline.capture import rowwise
from syncline.capture.messages import (
    Relation,
    Run,
)
from syncline.change import Batch, Op, TableSchema, make_batch
from syncline.pgvalues.pgtypes import binary_cells, binary_exact, text_cells
from syncline.pgvalues.tuples import (
    BINARY,
    MISSING,
    NULL,
    TEXT,
    Bools,
    Cells,
    Field,
    Ints,
    Joined,
    Malformed,
    walk,
    walk_copy,
)

__all__ = ["decode", "decode_copy"]

# What the columnar decoder may meet in malformed bytes. IndexError: a read beyond the buffer; ValueError: a cast.
_ODD = (Malformed, IndexError, ValueError, pa.ArrowException)
# Arrow's offsets have 32 bits. One row may have a gigabyte, so such a batch has few or is worth the time.
_COLUMNAR_BYTES = 2**31 - 2**16
# Lone changes: up to so many rows, going through them costs less (80-180 us) than setting the columns up (240 us).
_FEW = 4

_INSERT, _UPDATE, _DELETE = b"IUD"
_NEW, _KEY, _OLD = b"NKO"


def decode(
    schema: TableSchema,
    relation: Relation,
    payloads: Sequence[bytes],
    runs: Sequence[Run],
    binary: bool = False,
) -> Batch:
    """The batch of one relation's row messages (``I``, ``U``, ``D``), in their order.

    ``runs`` say which transactions they belong to; their counts add up to the number of payloads. ``schema`` has the
    relation's columns in the same order, with the key that Syncline uses. ``binary``: the stream was started with
    binary values. A key column that the new tuple leaves unchanged is taken from the old one, and so is any column
    under REPLICA IDENTITY FULL; what stays unchanged is masked (Guarantee 6). An update is a ``REKEY`` only if the old
    key differs in value.

    Raises:
        Damaged: a message doesn't follow the format, names another relation, has a value its column's type doesn't
            have, or lacks a key; the error says which message, and at which byte.
        ValueError: the counts of the arguments don't match.
    """
    if len(schema.columns) != len(relation.columns) or sum(r.count for r in runs) != len(payloads):
        raise ValueError("columns of schema and relation, or messages and counts of the runs, don't match")
    if len(payloads) > _FEW and sum(map(len, payloads)) < _COLUMNAR_BYTES:
        try:
            return _decode_columnar(schema, relation, payloads, runs, binary)
        except _ODD:
            pass  # the row-wise decoder says what is wrong with which message
    return rowwise.decode(schema, relation, payloads, runs, binary=binary)


def decode_copy(
    schema: TableSchema,
    oids: Sequence[tuple[int, int]],
    payloads: Sequence[bytes],
    binary_flags: Sequence[bool],
    *,
    version: int,
    commit_time: int,
    first_ordinal: int,
    xid: int = 0,
) -> Batch:
    """The batch of rows of a binary COPY (one payload a row, header and trailer stripped), all of them inserts.

    ``oids`` are type oid and modifier of each column; ``binary_flags`` say which columns are in their type's binary
    form, which must be exact (``pgtypes.binary_exact``); the others were selected as text.

    Raises:
        Damaged: a row doesn't follow the format, or has a value its column's type doesn't have.
        ValueError: the counts of the arguments don't match.
    """
    if not len(schema.columns) == len(oids) == len(binary_flags):
        raise ValueError("columns of schema, types and flags don't match")
    run = Run(version, commit_time, xid, first_ordinal, len(payloads))
    if sum(map(len, payloads)) < _COLUMNAR_BYTES:
        try:
            return _decode_copy_columnar(schema, oids, payloads, binary_flags, run)
        except _ODD:
            pass  # the row-wise decoder says what is wrong with which row
    return rowwise.decode_copy(schema, oids, payloads, binary_flags, run)


def _decode_copy_columnar(
    schema: TableSchema,
    oids: Sequence[tuple[int, int]],
    payloads: Sequence[bytes],
    binary_flags: Sequence[bool],
    run: Run,
) -> Batch:
    cells = walk_copy(Joined(payloads), len(schema.columns))
    arrays = [
        _cast(values, BINARY if binary else TEXT, oid, typmod, column.type)
        for values, column, (oid, typmod), binary in zip(cells, schema.columns, oids, binary_flags, strict=True)
    ]
    return make_batch(schema, arrays, op=_constant(Op.INSERT, len(payloads)), **_transactions([run]))


def _cast(cells: Cells, form: int, oid: int, typmod: int, logical: str, *, as_text: bool = False) -> pa.Array:
    if form != BINARY:
        return text_cells(cells, logical, as_text=as_text)
    if not binary_exact(oid, typmod):
        raise Malformed("binary value of a type without a known layout")
    return binary_cells(cells, oid, logical, as_text=as_text)


# ------------------------------------------------------------------------------------------------- row messages


@dataclass(slots=True)
class _Walked:
    """The walked messages: fields of the new tuples (the only ones of deletes) and of the old tuples of updates."""

    joined: Joined
    tags: np.ndarray[Any, np.dtype[np.uint8]] | None  # None: all of them inserts
    new: list[Field]
    rows: Ints  # the rows with an old tuple
    old: list[Field]
    full: Bools  # which of these are whole old rows

    @property
    def deletes(self) -> Bools | None:
        if self.tags is None:
            return None
        found = self.tags == _DELETE
        return found if found.any() else None


_NO_ROWS: Ints = np.empty(0, np.int64)
_NO_FLAGS: Bools = np.empty(0, np.bool_)


def _walk_messages(relation: Relation, payloads: Sequence[bytes]) -> _Walked:
    joined, columns = Joined(payloads), len(relation.columns)
    heads = joined.words(joined.starts)  # tag, relation, kind of tuple, number of columns
    at = joined.starts + 8
    insert = _INSERT << 56 | relation.oid << 24 | _NEW << 16 | columns
    if (heads == np.uint64(insert)).all():
        walked = _Walked(joined, None, [], _NO_ROWS, [], _NO_FLAGS)
    else:
        tags, kinds = (heads >> np.uint64(56)).astype(np.uint8), (heads >> np.uint64(16)).astype(np.uint8)
        _check_heads(tags, kinds, heads, relation.oid << 24 | columns)
        rows = np.flatnonzero((tags == _UPDATE) & (kinds != _NEW))
        old: list[Field] = []
        if len(rows):
            old, behind = walk(joined, at[rows], columns)
            if ((joined.words(behind) >> np.uint64(40)) != (_NEW << 16 | columns)).any():
                raise Malformed("no new tuple behind the old one")
            at[rows] = behind + 3
        walked = _Walked(joined, tags, [], rows, old, kinds[rows] == _OLD)
    walked.new, end = walk(joined, at, columns)
    if (end != joined.ends).any():
        raise Malformed("values do not fill the message")
    return walked


def _check_heads(tags: Any, kinds: Any, heads: Any, expected: int) -> None:
    if ((heads & np.uint64(0x00FFFFFFFF00FFFF)) != np.uint64(expected)).any():
        raise Malformed("another relation or number of columns")
    new, old = kinds == _NEW, (kinds == _KEY) | (kinds == _OLD)
    known = ((tags == _INSERT) & new) | ((tags == _UPDATE) & (new | old)) | ((tags == _DELETE) & old)
    if not known.all():
        raise Malformed("unknown tag or kind of tuple")


def _decode_columnar(
    schema: TableSchema, relation: Relation, payloads: Sequence[bytes], runs: Sequence[Run], binary: bool
) -> Batch:
    walked = _walk_messages(relation, payloads)
    deletes, n = walked.deletes, len(payloads)
    columns: list[pa.Array] = []
    masks: list[tuple[int, Bools]] = []  # column, the rows that leave it unchanged
    olds: list[pa.Array] = []
    for i, (column, source) in enumerate(zip(schema.columns, relation.columns, strict=True)):
        new, old = walked.new[i], walked.old[i] if walked.old else None
        form = _form(new, old, binary)
        if old is not None:
            _fill(new, old, walked, key=column.key)
        missing = new.is_kind(MISSING)
        types = (form, source.type_oid, source.typmod, column.type)
        if column.key:
            _check_key(new, deletes, relation.replica_identity, flagged=source.key)
            if old is not None:
                _check_key(old, None, relation.replica_identity, flagged=True)
            array, former = _cast_key(walked, new, old, types)
            if former is not None:
                olds.append(former)
        else:
            array = _cast(_cells(walked.joined, new, deletes), *types)
            if missing is not None and deletes is not None:
                missing &= ~deletes
            if missing is not None and missing.any():
                masks.append((i, missing))
        columns.append(array)
    op, old_key = _operations(schema, walked, columns, olds, n)
    unchanged = _masks(schema, masks, n) if masks else None
    return make_batch(schema, columns, op=op, unchanged=unchanged, old_key=old_key, **_transactions(runs))


def _form(new: Field, old: Field | None, binary: bool) -> int:
    forms = {new.form, old.form if old else 0} - {0}
    if len(forms) > 1 or (BINARY in forms and not binary):
        raise Malformed("a value in a format that was not asked for")
    return forms.pop() if forms else TEXT


def _fill(new: Field, old: Field, walked: _Walked, *, key: bool) -> None:
    """Take what the new tuples leave unchanged from the old ones where they have it."""
    if new.kind is None:
        return
    wanted = new.kind[walked.rows] == MISSING
    if not key:
        wanted &= walked.full
    if not wanted.any():
        return
    rows = walked.rows[wanted]
    new.begin[rows], new.end[rows] = old.begin[wanted], old.end[wanted]
    new.kind[rows] = old.form if old.kind is None else old.kind[wanted]


def _check_key(field: Field, deletes: Bools | None, identity: str, *, flagged: bool) -> None:
    if field.kind is None:
        return
    if (field.kind == MISSING).any():
        raise Malformed("a key is missing")
    # DEFAULT and INDEX promise a key that is not NULL, and that deletes and old tuples hold all of it.
    null = field.kind == NULL
    if identity in "di" and null.any() and (flagged or (deletes is not None and (null & deletes).any())):
        raise Malformed("a key is NULL")


def _cells(joined: Joined, field: Field, deletes: Bools | None) -> Cells:
    null = None if field.kind is None else (field.kind == NULL) | (field.kind == MISSING)
    if deletes is not None:  # they carry their key only
        null = deletes if null is None else null | deletes
    return Cells(joined, field.begin, field.end, null if null is not None and null.any() else None)


def _cast_key(
    walked: _Walked, new: Field, old: Field | None, types: tuple[int, int, int, str]
) -> tuple[pa.Array, pa.Array | None]:
    """A key column and its former values (of the rows that have an old tuple), both of one type."""
    cells = _cells(walked.joined, new, None)
    array = _cast(cells, *types)
    if old is None:
        return array, None
    former_cells = _cells(walked.joined, old, None)
    former = _cast(former_cells, *types)
    if array.type != former.type:
        array, former = _cast(cells, *types, as_text=True), _cast(former_cells, *types, as_text=True)
    return array, former


def _operations(
    schema: TableSchema, walked: _Walked, columns: list[pa.Array], olds: list[pa.Array], n: int
) -> tuple[pa.Array, pa.Array | None]:
    """The system columns ``op`` and ``old_key``."""
    if walked.tags is None:
        return _constant(Op.INSERT, n), None
    codes = np.zeros(128, np.int8)
    codes[[_INSERT, _UPDATE, _DELETE]] = Op.INSERT, Op.UPDATE, Op.DELETE
    op = codes[walked.tags]
    if not olds:
        return pa.array(op), None
    taken = pa.array(walked.rows)
    moved = np.zeros(len(walked.rows), np.bool_)
    for position, former in zip(schema.key_positions, olds, strict=True):
        moved |= _differ(columns[position].take(taken), former)
    if not moved.any():
        return pa.array(op), None
    op[walked.rows[moved]] = Op.REKEY
    index = np.full(n, -1, np.int64)
    index[walked.rows[moved]] = np.flatnonzero(moved)
    absent = index < 0
    places = pa.array(index, mask=absent)
    keys = [former.take(places) for former in olds]
    return pa.array(op), pa.StructArray.from_arrays(keys, names=[c.name for c in schema.key], mask=pa.array(absent))


def _differ(a: pa.Array, b: pa.Array) -> Bools:
    """Where two arrays of one type differ; NULL equals NULL and NaN equals NaN."""
    differ = pc.fill_null(pc.not_equal(a, b), False)
    if pa.types.is_floating(a.type):
        differ = pc.and_not(differ, pc.fill_null(pc.and_(pc.is_nan(a), pc.is_nan(b)), False))
    if a.null_count or b.null_count:
        differ = pc.or_(differ, pc.xor(a.is_null(), b.is_null()))
    return np.asarray(differ.to_numpy(zero_copy_only=False))


def _masks(schema: TableSchema, masks: list[tuple[int, Bools]], n: int) -> pa.Array:
    """The system column ``unchanged``: a bit per column, null for whole rows."""
    bits = np.zeros((n, 8 * schema.mask_bytes), np.bool_)
    for position, rows in masks:
        bits[:, position] = rows
    whole = ~bits.any(axis=1)
    data = pa.py_buffer(np.packbits(bits, axis=1, bitorder="little"))
    packed = pa.Array.from_buffers(pa.binary(schema.mask_bytes), n, [None, data]).cast(pa.binary())
    return pc.if_else(pa.array(whole), pa.scalar(None, pa.binary()), packed)


# ----------------------------------------------------------------------------------------------- system columns


_RUN = attrgetter("version", "commit_time", "xid", "first_ordinal", "count")


def _constant(value: int, n: int) -> pa.Array:
    return pa.array(np.full(n, value, np.int8))


def _transactions(runs: Sequence[Run]) -> dict[str, pa.Array]:
    """The system columns that the runs tell."""
    table = np.fromiter(chain.from_iterable(map(_RUN, runs)), np.int64, 5 * len(runs))
    version, commit_time, xid, first, count = table.reshape(-1, 5).T
    ends = np.cumsum(count)
    ordinal = np.arange(ends[-1] if len(ends) else 0) + np.repeat(first - (ends - count), count)
    return {
        "version": pa.array(np.repeat(version, count)),
        "ordinal": pa.array(ordinal),
        "commit_time": pa.array(np.repeat(commit_time, count)).view(pa.timestamp("us", "UTC")),
        "xid": pa.array(np.repeat(xid, count)),
    }
