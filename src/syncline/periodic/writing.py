"""Handing changes to a store, without those that it refuses: one bad member does not stop the rest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from syncline.apply.fold import fold
from syncline.change import Batch, Cursor, Op
from syncline.errors import Rejected
from syncline.stores import Folded, Store, TableWork, Work

__all__ = ["Refused", "write"]


@dataclass(frozen=True, slots=True)
class Refused:
    """Members that a store refused: of new and of changed ones how many, the reasons, and who."""

    created: int = 0
    updated: int = 0
    reasons: dict[str, int] = field(default_factory=dict)
    members: tuple[tuple[str, str], ...] = ()

    def __add__(self, other: Refused) -> Refused:
        reasons = {n: self.reasons.get(n, 0) + other.reasons.get(n, 0) for n in {**self.reasons, **other.reasons}}
        return Refused(
            self.created + other.created, self.updated + other.updated, reasons, self.members + other.members
        )


def write(store: Store, batch: Batch, cursor: Cursor) -> Refused:
    """Fold a batch and apply it with the cursor; what the store refuses is left out and told.

    Raises:
        Unavailable, Misconfigured: as the store says.
    """
    refused = Refused()
    for work in fold([batch]):
        while True:
            try:
                store.apply(Work((work,), cursor))
                break
            except Rejected as error:
                refused += _who(batch, work, error)
                work = _without(work, error.rows)
    return refused


def _who(batch: Batch, work: TableWork, error: Rejected) -> Refused:
    """The refused rows, by place in the upserts and then the partials; with what they were in the batch."""
    at = batch.schema.key_positions[0]
    parts = [b.column(at) for b in (work.rows.upserts, work.rows.partials) if b is not None]
    members = pa.concat_arrays(parts).take(pa.array(error.rows))
    ops = batch.ints("op")[pc.index_in(members, batch.rows.column(at)).to_numpy()]
    created = int((ops == Op.INSERT).sum())
    names = tuple((str(name), error.reason) for name in members.to_pylist())
    return Refused(created, len(error.rows) - created, {error.reason: len(error.rows)}, names)


def _without(work: TableWork, rows: Sequence[int]) -> TableWork:
    first = work.rows.upserts.num_rows if work.rows.upserts is not None else 0
    upserts = _left(work.rows.upserts, [n for n in rows if n < first])
    partials = _left(work.rows.partials, [n - first for n in rows if n >= first])
    return TableWork(work.schema, Folded(upserts, partials, work.rows.deletes), work.truncated)


def _left(batch: pa.RecordBatch | None, without: Sequence[int]) -> pa.RecordBatch | None:
    if batch is None or not without:
        return batch
    keep = np.ones(batch.num_rows, np.bool_)
    keep[list(without)] = False
    return batch.filter(pa.array(keep)) if keep.any() else None
