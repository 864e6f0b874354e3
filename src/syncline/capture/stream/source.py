"""A stream of application events as a source: one table that its settings describe, whose rows are what events told.

The stream itself is no table: it is trimmed, and an update has some fields only. So loads and comparisons read what was
told (:mod:`~syncline.capture.stream.told`), each target the rows that events told it. A comparison waits until all is
read that the stream holds when it begins.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import ClassVar

import pyarrow as pa
import pyarrow.compute as pc

from syncline.capture import Identity, LoadProgress, Point, Seen, Stream
from syncline.capture.described import inserted
from syncline.capture.one_table import OneTableSource
from syncline.capture.outbox.expand import EventParking
from syncline.capture.redis.connection import Connection, describe
from syncline.capture.runs import RunRecords
from syncline.capture.schema import table_schema
from syncline.capture.settings import SourceSettings
from syncline.capture.stream.reading import Facts, StreamReader
from syncline.capture.stream.settings import StreamSettings
from syncline.capture.stream.stream import EventStream, columns_of
from syncline.capture.stream.told import Seat, State, Told
from syncline.capture.tables import TableInfo
from syncline.change import Batch, TableSchema
from syncline.errors import Misconfigured, SynclineError, Unavailable
from syncline.finding import Finding

__all__ = ["StreamSource"]

Talk = Callable[[str], None]
_ROWS = 5000
_POLL_S = 0.02
_PATIENCE_S = 10.0  # so long nobody may read the stream: an engine that begins anew lets go of it for a moment


class StreamSource(OneTableSource[State]):
    """A :class:`~syncline.capture.Source` over one stream of a Redis or Valkey server. What was told is kept beside the
    log's ``folder`` and not in it: a log that is begun anew rests on it."""

    config_class: ClassVar[type[SourceSettings]] = StreamSettings
    seen_as: ClassVar[str] = "stream"

    def __init__(self, settings: StreamSettings, control_schema: str, folder: Path) -> None:
        self.settings = settings
        self.told = Told(folder.with_name(folder.name.removesuffix(".log") + ".told"), f"stream {settings.stream}")
        self._parking: EventParking | None = None
        super().__init__(settings.info, self.told.state)

    def park_events(self, parking: EventParking) -> None:
        self._parking = parking

    def record_runs(self, records: RunRecords) -> None:
        """It makes no runs."""

    # ------------------------------------------------------------------------------------------------------------- who

    def identify(self) -> Identity:
        """Whatever server it is: entries that are missing are seen by their ids and their number."""
        return Identity("stream", 1, self.settings.stream, "stream")

    def number(self) -> int:
        seat = self.told.seat()
        return 0 if seat is None else seat.number

    def preflight(self) -> list[Finding]:
        where = f"Redis {describe(self.settings.url)}"
        try:
            with self._reader() as reader:
                facts, others, evicts = reader.facts(), reader.others(), reader.evicts()
        except Misconfigured as error:
            return [Finding(error.code, "error", self._schema.qualified, error.message, error.remedy)]
        said = f"stream {self.settings.stream} can be read and holds {facts.length:,} of {facts.added:,} entries"
        found = [Finding("SL-STREAM", "ok", where, said)]
        if not facts.added:
            said = f"there is no stream {self.settings.stream}, or it never had an entry: the first one begins it"
            found = [Finding("SL-STREAM", "info", where, said, "See that applications publish to this one.")]
        if evicts:
            said = f"it evicts keys when its memory is full ({evicts}), and an evicted stream is a gap"
            found.append(Finding("SL-STREAM-EVICTION", "warning", where, said, "Set maxmemory-policy to noeviction."))
        if others and self.settings.trim:
            said = f"trim does nothing while the stream has other groups: {', '.join(others)}"
            found.append(Finding("SL-STREAM-TRIM", "warning", where, said, "Set trim: false, or remove these groups."))
        if self.told.seat() is None and facts.gone:
            said = f"{facts.gone:,} entries were taken out of the stream before: what they told is not known"
            found.append(Finding("SL-STREAM-TRIM", "info", where, said))
        return found

    # ---------------------------------------------------------------------------------------------------------- stream

    def attach(self, identity: Identity, durable: int, talk: Talk) -> int:
        """See :class:`~syncline.capture.Source`. With 0 it goes on from what was told, or else from the stream's
        beginning, without what is missing."""
        self.told.refuse_read()
        with self._reader() as reader:
            reader.join()
            facts = reader.facts()
            if durable:
                self.told.refuse_lost(durable)
                return durable
        seat = self.told.seat()
        begin = self._begin(seat, facts)
        if seat is None or begin.number != seat.number:
            talk(f"stream {self.settings.stream} is read behind entry {begin.entry}")
        self.told.begin(begin)
        return begin.number

    def _begin(self, seat: Seat | None, facts: Facts) -> Seat:
        if seat is None:
            return facts.accepted(Seat(0), 1)
        if facts.flaw(seat):
            return facts.accepted(seat, seat.number + 1)
        return replace(seat, read=None)  # counted anew: what was missing may be why a log begins

    def retire(self, identity: Identity) -> None:
        """Nothing else holds what was told: it stays, and the next log rests on it."""
        self.told.refuse_read()

    def capture(
        self, tables: list[TableInfo], base: int, incarnation: int, lost: Callable[[str, SynclineError], None]
    ) -> Stream:
        assert self._parking is not None  # Source.park_events
        return EventStream(self.settings, self.told, self._parking, base=base, incarnation=incarnation)

    @contextmanager
    def _reader(self) -> Iterator[StreamReader]:
        with Connection(self.settings) as connection:
            yield StreamReader(self.settings, connection)

    # ----------------------------------------------------------------------------------------------------------- rows

    def catch_up(self) -> None:
        """Wait until an engine has told everything that is in the stream now."""
        with self._reader() as reader:
            last = reader.facts().newest
        seen = time.monotonic()
        while not self.told.has_read(last):
            if self.told.is_read:
                seen = time.monotonic()
            if time.monotonic() - seen > _PATIENCE_S:
                raise Unavailable(
                    f"No engine reads stream {self.settings.stream} now.", remedy="`syncline status` says why."
                )
            time.sleep(_POLL_S)

    def rows(
        self,
        info: TableInfo,
        point: Point,
        version: int,
        stop: threading.Event,
        progress: Callable[[LoadProgress], None],
    ) -> Iterator[Batch]:
        schema, first = table_schema(info), 0
        told = self._held[point.snapshot].rows(point.target)
        while rows := list(islice(told, _ROWS)):
            if stop.is_set():
                raise Unavailable("The load was asked to stop.")
            yield inserted(schema, columns_of(rows, schema), version, first)
            first += len(rows)
            progress(LoadProgress(info.qualified, first, first, first))

    def rows_of(self, info: TableInfo, point: Point, keys: pa.RecordBatch, version: int) -> Batch:
        """See :class:`~syncline.capture.Source`: those of the point's target. All that was told is gone through."""
        schema = table_schema(info)
        at = schema.key_positions[0]
        wanted = keys.column(0)
        told, parts = self._held[point.snapshot].rows(point.target), [columns_of((), schema)]
        while rows := list(islice(told, _ROWS)):
            columns = columns_of(rows, schema)
            chosen = pc.is_in(columns[at], value_set=wanted.cast(columns[at].type))
            parts.append([column.filter(chosen) for column in columns])
        return inserted(schema, [pa.concat_arrays(column) for column in zip(*parts, strict=True)], version, 0)

    def heal(
        self, schema: TableSchema, keys: pa.RecordBatch, xids: Sequence[int], stop: threading.Event
    ) -> pa.RecordBatch:
        """Every change carries its whole row, so that nobody asks."""
        raise AssertionError("no change of a stream is partial")

    def advance(self) -> None:
        """Nothing has to be done for it: what is read is told with its place, and a point waits for that."""

    # -------------------------------------------------------------------------------------------------------- looking

    def reader(self) -> int | None:
        return self.told.settled() if self.told.is_read else None

    def refuse_in_use(self) -> None:
        self.told.refuse_read()

    def look(self, place: int | None) -> Seen:
        with self._reader() as reader:
            facts = reader.facts()
        seat, reading = self.told.seat(), self.told.is_read
        state = "reading" if reading else "idle"
        behind = facts.added - seat.read if seat is not None and seat.read is not None else None
        words = f"{state}, at entry {seat.entry if seat is not None else '0-0'}"
        return Seen(
            {"state": state, "entries": facts.length, "entries_behind": behind},
            words if behind is None else f"{words}, {behind:,} entries behind",
        )

    def shown(self, number: int) -> str:
        return f"event {number}"

    def close(self) -> None:
        self.told.close()
