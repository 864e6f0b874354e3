"""From a table's folded changes to what one target writes of them. Pure, but for healing what a mapping lacks.

Mapping comes behind folding: only the last state of a key is mapped, and a transform's rows are told apart by keys.
Rule 8 of correctness (fold per target key) is kept by keys that keep their values (:mod:`syncline.mapping.table`).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from syncline.apply.heal import Healer, heal
from syncline.apply.keys import key_bytes
from syncline.change import TableSchema
from syncline.errors import Rejected
from syncline.mapping import MappedTable
from syncline.masks import packed_masks, unpacked_masks
from syncline.stores import FROM_KEY, PARTIAL_VERSION, UNCHANGED, VERSION, Folded, TableWork

__all__ = ["MappedHealer", "fill", "map_work"]


def fill(work: TableWork, mapped: MappedTable, healer: Healer, xids: Sequence[int]) -> tuple[list[TableWork], int]:
    """The work with every partial row whole that lacks a value which the mapping computes with; and how many of those.

    A key that is no longer at the source needs nothing: its delete is on the way.

    Raises:
        Unavailable: the source can't be read just now.
        Gap: the source's table has another shape by now.
    """
    partials = work.rows.partials
    if partials is None:
        return [work], 0
    return heal(
        work, pa.array(mapped.incomplete(unpacked_masks(partials.column(UNCHANGED), work.schema))), healer, xids
    )


def map_work(work: TableWork, mapped: MappedTable) -> TableWork:
    """What the target writes. Rows that the filter or the transform leaves out become deletes of their keys.

    Raises:
        Rejected: rows that can't be mapped; positions count the upserts, then the partials.
    """
    if mapped.trivial:
        return work
    upserts, gone = _map_upserts(work.rows.upserts, mapped)
    offset = work.rows.upserts.num_rows if work.rows.upserts is not None else 0
    partials, left = _map_partials(work, mapped, offset)
    absent = [mapped.keys(b) for b in (work.rows.deletes, gone, left) if b is not None and b.num_rows]
    return TableWork(mapped.schema, Folded(upserts, partials, _all_keys(absent)), work.truncated)


def _map_upserts(
    batch: pa.RecordBatch | None, mapped: MappedTable
) -> tuple[pa.RecordBatch | None, pa.RecordBatch | None]:
    """The mapped rows; and key and version of those left out."""
    if batch is None:
        return None, None
    whole = mapped.whole(batch)
    version = batch.column(VERSION) if whole.taken is None else batch.column(VERSION).take(whole.taken)
    rows = pa.RecordBatch.from_arrays([*whole.rows.columns, version], names=[*whole.rows.schema.names, "version"])
    gone = None if whole.gone is None else _keys(batch, mapped.source, VERSION).take(whole.gone)
    return (rows if rows.num_rows else None), gone


def _map_partials(
    work: TableWork, mapped: MappedTable, offset: int
) -> tuple[pa.RecordBatch | None, pa.RecordBatch | None]:
    batch = work.rows.partials
    if batch is None:
        return None, None
    try:
        passing = mapped.passing(batch)
        kept = batch if passing is None else batch.take(passing)
        left = None if passing is None else _without(_keys(batch, mapped.source, PARTIAL_VERSION), passing)
    except Rejected as error:
        raise Rejected(error.table, [offset + row for row in error.rows], error.reason) from error
    try:
        rows, unchanged = mapped.partials(kept, unpacked_masks(kept.column(UNCHANGED), mapped.source))
    except Rejected as error:
        places = error.rows if passing is None else passing.take(pa.array(error.rows)).to_pylist()
        raise Rejected(error.table, [offset + row for row in places], error.reason) from error
    from_key = kept.column(FROM_KEY)
    renamed = pa.StructArray.from_arrays(from_key.flatten(), names=[c.name for c in mapped.schema.key])
    arrays = [*rows.columns, kept.column(PARTIAL_VERSION), packed_masks(unchanged, mapped.schema), renamed]
    mapped_rows = pa.RecordBatch.from_arrays(arrays, names=[*rows.schema.names, "version", "unchanged", "from_key"])
    return (mapped_rows if mapped_rows.num_rows else None), left


def _keys(batch: pa.RecordBatch, schema: TableSchema, version: int) -> pa.RecordBatch:
    """Key columns, and the version, which stands at that place."""
    return batch.select([*schema.key_positions, batch.num_columns + version])


def _without(batch: pa.RecordBatch, positions: pa.Array) -> pa.RecordBatch:
    keep = np.ones(batch.num_rows, np.bool_)
    keep[positions.to_numpy()] = False
    return batch.filter(pa.array(keep))


def _all_keys(batches: Sequence[pa.RecordBatch]) -> pa.RecordBatch | None:
    """Keys and versions in one batch."""
    if len(batches) < 2:
        return batches[0] if batches else None
    return pa.Table.from_batches(batches).combine_chunks().to_batches()[0]


class MappedHealer:
    """A :class:`~syncline.apply.heal.Healer` in a target's words: reads at the source, and maps what it read."""

    def __init__(self, healer: Healer, mapped: MappedTable) -> None:
        self._healer = healer
        self._mapped = mapped

    def __call__(self, schema: TableSchema, keys: pa.RecordBatch, xids: Sequence[int]) -> pa.RecordBatch:
        """Rows that the mapping leaves out by now are missing from the result: their delete is on the way.

        Raises:
            Rejected: rows that can't be mapped; positions among ``keys``.
        """
        wanted = self._mapped.source_keys(keys)
        found = self._healer(self._mapped.source, wanted, xids)
        try:
            return self._mapped.whole(found).rows
        except Rejected as error:
            refused = found.take(pa.array(error.rows, pa.int64())).select(list(self._mapped.source.key_positions))
            at = pc.index_in(key_bytes(refused.columns), value_set=key_bytes(wanted.columns))
            raise Rejected(error.table, at.to_pylist(), error.reason) from error
