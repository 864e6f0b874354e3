"""The source's rows at a point, as a target should hold them."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from syncline.capture.tables import TableInfo
from syncline.errors import Rejected
from syncline.mapping import MappedTable
from syncline.verify.checks.at import At, Copy

__all__ = ["MappedRows", "mapped_rows"]


@dataclass(frozen=True, slots=True)
class MappedRows:
    """Some rows as ``mapped`` makes them, and how many were ``refused``, which are parked instead."""

    mapped: MappedTable
    rows: pa.RecordBatch
    refused: int


def mapped_rows(at: At, copy: Copy, info: TableInfo) -> Iterator[MappedRows]:
    """All rows of a table, some at a time. Raises as :meth:`syncline.capture.Source.rows`."""
    for batch in at.looked.rows(info, copy.point, 0, threading.Event(), lambda _: None):
        yield _made(copy.mapping.table(batch.schema), batch.data())


def _made(mapped: MappedTable, rows: pa.RecordBatch) -> MappedRows:
    if mapped.trivial:
        return MappedRows(mapped, rows, 0)
    refused = 0
    while True:
        try:
            return MappedRows(mapped, mapped.whole(rows).rows, refused)
        except Rejected as error:
            keep = np.ones(rows.num_rows, np.bool_)
            keep[list(error.rows)] = False
            rows, refused = rows.filter(pa.array(keep)), refused + len(error.rows)
