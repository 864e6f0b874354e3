"""Healing: a partial change of a key that the target does not have is completed from the source (Guarantee 6).

Correctness rule 6: the row is read in a snapshot that sees the change, and written whole at the change's version. It
may already hold later changes; they come again through the log and win. A key that is no longer at the source needs
nothing: its delete is on the way.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from syncline.apply.keys import key_bytes
from syncline.change import TableSchema
from syncline.errors import Rejected
from syncline.stores import FROM_KEY, PARTIAL_VERSION, VERSION, Folded, Store, TableWork

__all__ = ["Healed", "Healer", "complete", "heal", "with_upserts"]


Healed = tuple[list[TableWork], int]
"""The work, in one or more pieces, and how many of its rows were healed."""


class Healer(Protocol):
    """Reads rows at the source: see :func:`syncline.capture.heal.read_rows`."""

    def __call__(self, schema: TableSchema, keys: pa.RecordBatch, xids: Sequence[int]) -> pa.RecordBatch:
        """The table's columns of the rows with these keys, seen after all of these transactions.

        Raises:
            Rejected: rows that it can't give; positions among ``keys``.
        """


def complete(work: TableWork, store: Store, healer: Healer, xids: Sequence[int], stale: int = -1) -> Healed:
    """The work with every partial row either resting on a row that the store has, or made whole; and how many of those.

    While a table is read again, what it held before is no ground to rest on: rows at or below version ``stale`` count
    as missing. The load can't mend them later, for what it reads is older than the partial row.

    Raises:
        Unavailable: the source can't be read just now.
        Rejected: rows that can't be mapped; positions count the upserts, then the partials.
    """
    partials = work.rows.partials
    if partials is None:
        return [work], 0
    return heal(work, _absent(work.schema, partials.column(FROM_KEY), store, stale), healer, xids)


def heal(work: TableWork, broken: pa.Array, healer: Healer, xids: Sequence[int]) -> Healed:
    """The work with those partial rows whole that ``broken`` is true of; and how many. Two works where a column came in
    another form from the source (see :class:`~syncline.change.Batch`) than the whole rows that are there already.

    Raises:
        Unavailable: the source can't be read just now.
        Rejected: the healer refuses rows; positions count the upserts, then the partials.
    """
    partials, count = work.rows.partials, pc.sum(broken).as_py() or 0
    if partials is None or not count:
        return [work], 0
    rows = partials.filter(broken)
    keys = rows.select(list(work.schema.key_positions))
    try:
        read = healer(work.schema, keys, xids)
    except Rejected as error:
        offset = work.rows.upserts.num_rows if work.rows.upserts is not None else 0
        places = np.flatnonzero(broken.to_numpy(zero_copy_only=False))
        raise Rejected(error.table, [offset + int(places[row]) for row in error.rows], error.reason) from error
    whole = _with_versions(work.schema, read, keys, rows.column(PARTIAL_VERSION))
    rest = partials.filter(pc.invert(broken))
    left = replace(work, rows=replace(work.rows, partials=rest if rest.num_rows else None))
    return with_upserts(left, whole), count


def with_upserts(work: TableWork, more: pa.RecordBatch) -> list[TableWork]:
    """The work with more whole rows, of other keys; apart, where they can't be one batch."""
    there = work.rows.upserts
    if not more.num_rows:
        return [work]
    if there is None or not there.num_rows:
        return [replace(work, rows=replace(work.rows, upserts=more))]
    if there.schema != more.schema:
        return [work, TableWork(work.schema, Folded(more))]
    joined = pa.Table.from_batches([there, more]).combine_chunks().to_batches()[0]
    return [replace(work, rows=replace(work.rows, upserts=joined))]


def _absent(schema: TableSchema, from_key: pa.StructArray, store: Store, stale: int) -> pa.Array:
    """True where the store holds no row under the key above version ``stale``."""
    names = [c.name for c in schema.key]
    keys = pa.RecordBatch.from_arrays([from_key.field(i) for i in range(len(names))], names=names)
    found = store.fetch(schema, keys)
    recent = found.filter(pc.greater(found.column(VERSION), stale))
    stored = recent.select(list(schema.key_positions)).combine_chunks()
    wanted = key_bytes(keys.columns)
    if not stored.num_rows:
        return pa.array([True] * len(wanted))
    have = key_bytes([c.combine_chunks().cast(k.type) for c, k in zip(stored.columns, keys.columns, strict=True)])
    return pc.invert(pc.is_in(wanted, value_set=have))


def _with_versions(
    schema: TableSchema, healed: pa.RecordBatch, keys: pa.RecordBatch, versions: pa.Array
) -> pa.RecordBatch:
    found = key_bytes([healed.column(i) for i in schema.key_positions])
    at = pc.index_in(found, value_set=key_bytes(keys.columns))
    names = [*(c.name for c in schema.columns), "version"]
    return pa.RecordBatch.from_arrays([*healed.columns, versions.take(at)], names=names)
