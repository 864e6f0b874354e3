"""How much of a table a comparison reads: all of it, some buckets of its rows, or the rows of some keys."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import pyarrow as pa

from syncline.apply.keys import key_bytes
from syncline.capture import Digesting, LoadProgress, Source
from syncline.capture import Point as Place
from syncline.capture.tables import TableInfo
from syncline.change import Batch, TableSchema, arrow_type
from syncline.digests import Chosen
from syncline.pgvalues.digests import numbers_of
from syncline.stores import Choosing, CopyReader, Fetching

__all__ = ["OfBuckets", "OfKeys", "Part", "Whole", "distinct", "fits"]

_KEYS = 5_000  # looked up with one request


class Part(Protocol):
    """What is read of both sides; they hold the same keys of it. ``rows`` is how many, None where that comes out."""

    @property
    def rows(self) -> int | None:
        """How many rows of the source it stands for, None before they are read."""

    def published(
        self, source: Source, info: TableInfo, place: Place, progress: Callable[[LoadProgress], None]
    ) -> Iterator[Batch]:
        """The source's rows of it at the place; raises as :meth:`syncline.capture.Source.rows`."""

    def stored(self, reader: CopyReader, schema: TableSchema) -> Iterator[pa.RecordBatch]:
        """The copy's rows of it, as :meth:`syncline.stores.CopyReader.scan`."""


@dataclass(frozen=True, slots=True)
class Whole:
    """All rows."""

    rows: int | None = None

    def published(
        self, source: Source, info: TableInfo, place: Place, progress: Callable[[LoadProgress], None]
    ) -> Iterator[Batch]:
        return source.rows(info, place, 0, threading.Event(), progress)

    def stored(self, reader: CopyReader, schema: TableSchema) -> Iterator[pa.RecordBatch]:
        return reader.scan(schema)


@dataclass(frozen=True, slots=True)
class OfBuckets:
    """Those buckets whose digests differ, of a table of so many ``rows``."""

    chosen: Chosen
    rows: int

    def published(
        self, source: Source, info: TableInfo, place: Place, progress: Callable[[LoadProgress], None]
    ) -> Iterator[Batch]:
        """Without progress: the table's was told with the digests."""
        assert isinstance(source, Digesting)
        return source.chosen(info, place, self.chosen, threading.Event(), lambda _: None)

    def stored(self, reader: CopyReader, schema: TableSchema) -> Iterator[pa.RecordBatch]:
        if isinstance(reader, Choosing) and self.chosen.buckets.shift is not None:
            yield from reader.chosen(schema, self.chosen)
            return
        wanted = self.chosen.numbers.to_numpy()
        for batch in reader.scan(schema):
            taken = np.isin(numbers_of(batch, schema, self.chosen.buckets), wanted)
            for position in schema.key_positions:  # the bucket of a row without a key is any
                taken |= batch.column(position).is_null().to_numpy(zero_copy_only=False)
            yield batch.filter(pa.array(taken))


@dataclass(frozen=True, slots=True)
class OfKeys:
    """The rows of some keys, under the names of the source's key columns; each of them once (:func:`distinct`).
    ``alone``: somebody named them, so nothing else is looked at in their stead."""

    keys: pa.RecordBatch
    rows: int
    alone: bool = False

    def published(
        self, source: Source, info: TableInfo, place: Place, progress: Callable[[LoadProgress], None]
    ) -> Iterator[Batch]:
        """Also raises ``Gap`` where the keys are not those of the table any more."""
        done = 0
        for page in self._pages():
            batch = source.rows_of(info, place, page, 0)
            yield batch
            done += page.num_rows
            progress(LoadProgress(info.qualified, done, 0, 0))

    def stored(self, reader: CopyReader, schema: TableSchema) -> Iterator[pa.RecordBatch]:
        assert isinstance(reader, Fetching)
        for page in self._pages():
            yield from reader.fetch(schema, page.rename_columns([c.name for c in schema.key])).to_batches()

    def _pages(self) -> Iterator[pa.RecordBatch]:
        for start in range(0, self.keys.num_rows, _KEYS):
            yield self.keys.slice(start, _KEYS)


def distinct(keys: pa.RecordBatch) -> pa.RecordBatch:
    """Each key once, those without a value in some column left out: they can't be looked up."""
    keys = pa.Table.from_batches([keys]).drop_null().combine_chunks()
    if not keys.num_rows:
        return pa.RecordBatch.from_pylist([], keys.schema)
    (batch,) = keys.to_batches()
    codes = key_bytes(batch.columns).dictionary_encode().indices.to_numpy()
    return batch.take(pa.array(np.unique(codes, return_index=True)[1]))


def fits(keys: pa.Table, schema: TableSchema) -> bool:
    """Whether these are keys of the table, by number and type, whatever their columns are called."""
    return [f.type for f in keys.schema] == [arrow_type(c.type) for c in schema.key]
