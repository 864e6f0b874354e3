"""Which buckets of a table may differ, by digests that the source computes where its rows are.

A bucket that is equal on both sides needs no more looking at; of the others the rows are read and compared, so whatever
is reported was seen in the rows themselves. Rows in flight make their buckets differ, no more.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from syncline.capture import Digesting, Source
from syncline.capture import Point as Place
from syncline.capture.schema import table_schema
from syncline.capture.tables import TableInfo
from syncline.change import TableSchema
from syncline.digests import Buckets, Chosen, digestible, spread, summed
from syncline.mapping import TargetMapping
from syncline.pgvalues.digests import digest_of
from syncline.stores import Choosing, CopyReader

__all__ = ["Equal", "equal_buckets"]

_WORTH = 10_000  # rows; fewer are read sooner than hashed on both sides


@dataclass(frozen=True, slots=True)
class Equal:
    """What digests tell: of so many ``rows`` of the source, those outside of the ``chosen`` buckets are equal, unless
    the ``newest`` version that the target has is one that no row can have."""

    rows: int
    newest: int
    chosen: Chosen


def equal_buckets(
    source: Source,
    info: TableInfo,
    place: Place,
    reader: CopyReader,
    mapping: TargetMapping,
    progress: Callable[[int], None],
) -> Equal | None:
    """Compare the digests of one table, both sides at once. None where the source computes none, where the mapping
    makes something else of the rows, where a column can't be hashed, or where reading everything is the shorter way.

    Raises:
        Rewritten, Unavailable, Misconfigured: as :meth:`syncline.capture.Source.rows`.
    """
    recorded = reader.recorded(info.qualified)
    if recorded is None or not isinstance(source, Digesting) or not digestible(recorded):
        return None
    if not mapping.table(table_schema(info)).trivial:
        return None
    buckets = _buckets(info, reader, recorded)
    if buckets is None:
        return None
    with ThreadPoolExecutor(1, thread_name_prefix="digests") as pool:
        theirs = pool.submit(_stored, reader, recorded, buckets, progress)
        found = source.digested(info, place, buckets)
        if found is None or not _alike(mapping.table(found[0]).schema, recorded):
            return None
        stored, newest = theirs.result()
    rows = int(np.sum(found[1].column("rows").to_numpy()))
    return Equal(rows, newest, Chosen(buckets, pa.array(_unequal(found[1], stored), pa.int64())))


def _buckets(info: TableInfo, reader: CopyReader, recorded: TableSchema) -> Buckets | None:
    rows, least, greatest = info.estimated_rows, None, None
    if isinstance(reader, Choosing):
        rows, least, greatest = reader.spread(recorded)
    return spread(rows, least, greatest) if rows >= _WORTH else None


def _alike(left: TableSchema, right: TableSchema) -> bool:
    """Whether both have the same columns in the same types and order."""
    return [(c.name, c.type, c.key) for c in left.columns] == [(c.name, c.type, c.key) for c in right.columns]


def _stored(
    reader: CopyReader, schema: TableSchema, buckets: Buckets, progress: Callable[[int], None]
) -> tuple[pa.Table, int]:
    """The digests of what the target has, and the greatest version there."""
    parts: list[pa.Table] = []
    rows = newest = 0
    for batch in reader.scan(schema):
        parts.append(digest_of(batch, schema, buckets))
        newest = max(newest, int(batch.column(-1).to_numpy(zero_copy_only=False).max(initial=0)))
        rows += batch.num_rows
        progress(rows)
        if len(parts) == 64:
            parts = [summed(parts)]
    return summed(parts), newest


def _unequal(mine: pa.Table, theirs: pa.Table) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """Numbers of the buckets that differ, in order."""
    left, right = (table.column("bucket").to_numpy() for table in (mine, theirs))
    both, at_left, at_right = np.intersect1d(left, right, assume_unique=True, return_indices=True)
    equal = np.ones(len(both), np.bool_)
    for name in ("rows", "facts"):
        equal &= mine.column(name).to_numpy()[at_left] == theirs.column(name).to_numpy()[at_right]
    return np.setdiff1d(np.union1d(left, right), both[equal], assume_unique=True)
