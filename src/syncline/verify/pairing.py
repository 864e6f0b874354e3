"""Finding what differs between two sets of rows, columnar, exactly, and in constant memory.

Both sides are spread over buckets by a hash of the key, on disk when a table is large; then bucket by bucket the rows
are paired by key (a full outer join) and compared column by column. The hash only spreads: what is equal is decided by
the keys and values themselves. Pure but for the temporary files.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import ipc

from syncline.apply.keys import key_bytes
from syncline.verify.exact import INEXACT

__all__ = ["VERSION", "Bounds", "Side", "pair"]

VERSION = "version\0"  # no column of PostgreSQL can have such a name

_Bools = np.ndarray[Any, np.dtype[np.bool_]]
_Ints = np.ndarray[Any, np.dtype[np.int64]]

_PRIME = np.uint64(0x100000001B3)
_MIX = np.uint64(0x9E3779B97F4A7C15)


class Side:
    """The rows of one side, spread over ``buckets`` on disk (Guarantee 10); with one bucket they stay in memory."""

    def __init__(self, folder: Path, schema: pa.Schema, keys: Sequence[int], buckets: int) -> None:
        self.schema = schema
        self.rows = 0
        self._keys = keys
        self._memory: list[pa.RecordBatch] = []
        self._paths = [folder / f"{i}.arrow" for i in range(buckets)] if buckets > 1 else []
        options = ipc.IpcWriteOptions(compression="lz4", use_threads=False)
        self._writers = [ipc.new_stream(str(path), schema, options=options) for path in self._paths]

    def add(self, batch: pa.RecordBatch) -> None:
        """Take rows of this side's schema."""
        self.rows += batch.num_rows
        if not self._paths:
            self._memory.append(batch)
            return
        place = _buckets(key_bytes([batch.column(i) for i in self._keys]), len(self._paths))
        order = np.argsort(place, kind="stable")
        batch = batch.take(pa.array(order))
        ends = np.searchsorted(place[order], np.arange(len(self._paths)), side="right")
        begin = 0
        for writer, end in zip(self._writers, ends.tolist(), strict=True):
            if end > begin:
                writer.write_batch(batch.slice(begin, end - begin))
            begin = end

    def tables(self) -> Iterator[pa.Table]:
        """The rows bucket by bucket; nothing can be added any more."""
        if not self._paths:
            yield pa.Table.from_batches(self._memory, self.schema)
            return
        self.finish()
        for path in self._paths:
            with pa.memory_map(str(path)) as file:
                yield ipc.open_stream(file).read_all()
            path.unlink()

    def close(self) -> None:
        """Let go of everything."""
        self.finish()
        self._memory.clear()

    def finish(self) -> None:
        """All rows were added. Idempotent."""
        for writer in self._writers:
            writer.close()
        self._writers = []


def _buckets(keys: pa.Array, count: int) -> np.ndarray[Any, Any]:
    """FNV-like over the bytes of each key, all keys at once. Keys are never empty (see ``key_bytes``)."""
    _, offsets, data = keys.buffers()
    ends = np.frombuffer(offsets, np.int32)[keys.offset : keys.offset + len(keys) + 1].astype(np.int64)
    if not len(keys):
        return np.empty(0, np.int64)
    values = np.frombuffer(data, np.uint8)[ends[0] : ends[-1]].astype(np.uint64)
    starts = ends[:-1] - ends[0]
    within = np.arange(len(values)) - np.repeat(starts, np.diff(ends))
    powers = np.cumprod(np.full(int(within.max()) + 1, _PRIME, np.uint64))
    hashed = np.add.reduceat((values + np.uint64(1)) * powers[within], starts) * _MIX
    return ((hashed >> np.uint64(33)) % np.uint64(count)).astype(np.int64)


@dataclass(frozen=True, slots=True)
class Bounds:
    """Which stored versions mean what: at or above ``point`` a row is in flight, unless it is above ``greatest``, the
    greatest version ever logged, which no change can have. ``buried`` are the keys (``key_bytes``) of rows that were
    deleted at or behind the point; ``emptied``: rows may be missing because the table was truncated behind it, or
    because their tombstones are forgotten already."""

    point: int
    greatest: int
    buried: pa.Array
    emptied: bool


def pair(
    left: pa.Table, right: pa.Table, keys: Sequence[str], columns: Sequence[str], bounds: Bounds
) -> tuple[int, dict[str, pa.Table]]:
    """Compare one bucket: ``left`` of the source, unique by key, with ``right`` of the target, with :data:`VERSION`
    (Guarantee 9).

    Returns how many keys are in flight, and the key columns of rows that are ``missing``, ``different`` or ``extra``.

    Both may have a column :data:`~syncline.verify.exact.INEXACT`, which is compared like the others.
    """
    left, right = left.combine_chunks(), right.combine_chunks()
    codes, found = _codes(_key_column(left, keys), _key_column(right, keys))
    lcode, rcode = codes[: left.num_rows], codes[left.num_rows :]
    at_left = np.full(len(found), -1, np.int64)
    at_left[lcode] = np.arange(left.num_rows)
    copies = np.bincount(rcode, minlength=len(found))
    newest = np.full(len(found), -1, np.int64)
    np.maximum.at(newest, rcode, right.column(VERSION).to_numpy())
    future = newest > bounds.greatest
    flying = (newest >= bounds.point) & ~future

    partner = at_left[rcode]
    paired = np.flatnonzero((partner >= 0) & ~flying[rcode])
    equal = _equal_rows(left, right, partner[paired], paired, columns)
    alike = np.zeros(len(found), np.bool_)
    alike[rcode[paired[equal]]] = True

    missing = (at_left >= 0) & (copies == 0)
    different = (at_left >= 0) & (copies > 0) & (~alike | future) & ~flying
    surplus = np.where(flying, 0, copies - (at_left >= 0)).clip(min=0)
    suspects = np.flatnonzero(missing | different | (surplus > 0))
    gone = pc.is_in(found.take(pa.array(suspects)), value_set=bounds.buried).to_numpy(zero_copy_only=False)
    spared = np.zeros(len(found), np.bool_)
    spared[suspects[gone]] = True
    if bounds.emptied:
        spared |= missing

    first = np.full(len(found), -1, np.int64)
    first[rcode[::-1]] = np.arange(right.num_rows)[::-1]
    missing &= ~spared
    different &= ~spared
    return int((flying | spared).sum()), {
        "missing": _keys_at(left, keys, at_left[np.flatnonzero(missing)]),
        "different": _keys_at(left, keys, at_left[np.flatnonzero(different)]),
        "extra": _keys_at(right, keys, np.repeat(first, np.where(spared, 0, surplus))),
    }


def _key_column(table: pa.Table, keys: Sequence[str]) -> pa.Array:
    columns = [table.column(k) for k in keys]
    return _flat(key_bytes([_flat(c) for c in columns]))


def _flat(column: pa.ChunkedArray | pa.Array) -> pa.Array:
    if isinstance(column, pa.ChunkedArray):
        return column.chunk(0) if column.num_chunks == 1 else pa.concat_arrays(column.chunks or [_empty(column.type)])
    return column


def _empty(kind: pa.DataType) -> pa.Array:
    return pa.array([], kind)


def _codes(left: pa.Array, right: pa.Array) -> tuple[_Ints, pa.Array]:
    """A number for each distinct key, for the rows of both sides, and the keys by number."""
    encoded = pa.concat_arrays([left, right]).dictionary_encode()
    return encoded.indices.to_numpy(zero_copy_only=False).astype(np.int64), encoded.dictionary


def _keys_at(table: pa.Table, keys: Sequence[str], rows: _Ints) -> pa.Table:
    return table.select(list(keys)).take(pa.array(rows))


def _equal_rows(left: pa.Table, right: pa.Table, lrows: _Ints, rrows: _Ints, columns: Sequence[str]) -> _Bools:
    """For each pair of rows whether all columns hold the same."""
    equal = np.ones(len(lrows), np.bool_)
    lat, rat = pa.array(lrows), pa.array(rrows)
    for name in (*columns, *([INEXACT] if INEXACT in left.schema.names else [])):
        equal &= same(_flat(left.column(name)).take(lat), _flat(right.column(name)).take(rat))
    return equal


def same(left: pa.Array, right: pa.Array) -> _Bools:
    """Value by value: both NULL, or equal; floats by their bits, where every NaN is the same."""
    if pa.types.is_floating(left.type):
        left, right = _bits(left), _bits(right)
    equal = pc.fill_null(pc.equal(left, right), False).to_numpy(zero_copy_only=False)
    if left.null_count and right.null_count:
        both = pc.and_(left.is_null(), right.is_null()).to_numpy(zero_copy_only=False)
        return equal | both
    return equal


def _bits(values: pa.Array) -> pa.Array:
    nan = pa.scalar(float("nan"), values.type)
    plain = pc.if_else(pc.is_nan(values), nan, values)
    return plain.view(pa.int32() if values.type == pa.float32() else pa.int64())
