"""The capture: entries of the stream as entries of the log, told durably first.

The place counts the entries that were read. A batch of them becomes an entry for each audience and writer; all but the
last stand at the place before the batch, so that a log which ends between them has the batch once more, as the same
changes with the same versions, which the version guard takes for what they are (Guarantee 5).
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import replace

import numpy as np
import pyarrow as pa

from syncline.capture.outbox.expand import EventParking
from syncline.capture.redis.connection import Connection
from syncline.capture.schema import table_schema
from syncline.capture.stream.events import Change, Changes, Events
from syncline.capture.stream.reading import Entries, Facts, StreamReader
from syncline.capture.stream.settings import StreamSettings
from syncline.capture.stream.told import ALL, Row, Seat, Told, put_seat
from syncline.capture.tables import TableInfo
from syncline.change import MAX_VERSION, Batch, Entry, Marker, TableSchema, make_batch
from syncline.errors import Misconfigured
from syncline.logs import logger
from syncline.pgvalues.pgtypes import cast_text

__all__ = ["EventStream", "columns_of"]

_log = logger()
_FIRST_COUNT = 100


class EventStream:
    """A :class:`~syncline.capture.Stream` of the events of one stream."""

    def __init__(
        self, settings: StreamSettings, told: Told, parking: EventParking, *, base: int, incarnation: int
    ) -> None:
        self._settings = settings
        self._schema = table_schema(settings.info)
        self._told = told
        self._parking = parking
        self._events = Events(settings, base)
        self._base = base
        self._incarnation = incarnation
        self._stop = threading.Event()
        self._count = _FIRST_COUNT
        self._seat = Seat(0)
        self._confirmed = self._shown = 0
        self._unknown: set[str] = set()

    @property
    def words(self) -> str:
        return f"reading events of stream {self._settings.stream} from entry {self._told_entry()}"

    def _told_entry(self) -> str:
        seat = self._told.seat()
        return seat.entry if seat is not None else "0-0"

    def widen(self, tables: list[TableInfo]) -> None:
        """See :class:`~syncline.capture.Stream`: there is one table, and it is what the settings say."""

    def confirm(self, place: int) -> None:
        """See :class:`~syncline.capture.Capture`. The group follows with the next look at the server."""
        self._told.settle(place, self._settings.remember_events)
        self._confirmed = max(self._confirmed, place)

    def close(self) -> None:
        """See :class:`~syncline.capture.Capture`."""
        self._stop.set()

    def entries(self, after: int) -> Iterator[Entry]:
        """See :class:`~syncline.capture.Capture`."""
        with self._told.alone():
            self._seat = self._told.continue_at(after)
            self._confirmed, self._shown = after, 0
            yield self._entry((Marker("progress"),), self._seat.number)
            with closing(Connection(self._settings)) as connection:
                reader = StreamReader(self._settings, connection)
                reader.join()
                while not self._stop.is_set():
                    yield from self._some(reader)

    def _some(self, reader: StreamReader) -> Iterator[Entry]:
        """The next entries; waits a moment where there are none."""
        if self._confirmed == self._seat.number != self._shown:
            reader.show(self._seat)  # only what is durable in the log
            self._shown = self._confirmed
        found, facts = reader.read(self._seat, self._count)
        if not found:
            if self._seat.read is None:
                self._seat = replace(self._seat, read=facts.added)
            reader.await_more(self._seat)
            return
        self._pace(found)
        yield from self._batch(found, facts)

    def _pace(self, found: Entries) -> None:
        """As many at once as make a batch, whatever the size of events (Guarantee 10)."""
        size = sum(len(value) for _, fields in found for value in fields.values())
        if size > self._settings.max_entry_bytes // 2:
            self._count = max(1, self._count // 2)
        elif len(found) == self._count and size < self._settings.max_entry_bytes // 8:
            self._count = min(self._settings.batch_rows, self._count * 2)

    def _batch(self, found: Entries, facts: Facts) -> Iterator[Entry]:
        before, changes = self._seat, Changes()
        read = facts.gone if before.read is None and facts.is_trimmed_past(before) else before.read
        # Entries that a place was accepted without lie behind what was there: counted once they are all passed.
        read = None if read is None else read + len(found)
        seat = Seat(before.number + len(found), found[-1][0], read, before.deleted)
        if self._base + seat.number >= MAX_VERSION:
            raise Misconfigured("Versions reached 2**53.", remedy="Start over with a new source incarnation.")
        with self._told.writing() as connection:
            for number, (_, fields) in enumerate(found, before.number + 1):
                self._events.take(connection, number, fields, changes)
            put_seat(connection, seat)
        self._settle(changes)
        groups = list(changes.by_group.items())
        for (audience, origin), some in groups[:-1]:
            yield self._entry((self._rows(some),), before.number, audience, origin, some[-1].moment)
        self._seat = seat
        if groups:
            (audience, origin), some = groups[-1]
            yield self._entry((self._rows(some),), seat.number, audience, origin, some[-1].moment)
        else:
            yield self._entry((Marker("progress"),), seat.number)

    def _settle(self, changes: Changes) -> None:
        """Park before the place goes on (Guarantee 7)."""
        if changes.parked or changes.superseded:
            versions = {key: self._base + number for key, number in changes.superseded.items()}
            with self._parking.lock:
                self._parking.settle(changes.parked, versions, self._incarnation)
        if changes.repeated:
            _log.debug("events came again", stream=self._settings.stream, events=changes.repeated)
        for name in sorted(changes.unknown - self._unknown)[:100]:
            _log.warning("events name a target that is none", stream=self._settings.stream, target=name)
            self._unknown.add(name)

    # --------------------------------------------------------------------------------------------------------- entries

    def _rows(self, changes: Sequence[Change]) -> Batch:
        numbers = np.array([change.number for change in changes], np.int64)
        return make_batch(
            self._schema,
            columns_of([change.row for change in changes], self._schema),
            op=pa.array([int(change.op) for change in changes], pa.int8()),
            version=pa.array(numbers + self._base),
            ordinal=pa.array(np.zeros(len(changes), np.int64)),
            commit_time=pa.array([change.moment for change in changes], pa.int64()).cast(pa.timestamp("us", "UTC")),
            xid=pa.array(np.zeros(len(changes), np.int64)),
        )

    def _entry(
        self, items: tuple[Batch | Marker, ...], place: int, audience: str = ALL, origin: str = "", moment: int = 0
    ) -> Entry:
        return Entry(
            items,
            place=place,
            through=self._base + place + 1,
            incarnation=self._incarnation,
            commit_time=moment,
            targets=None if audience == ALL else tuple(audience.split(",")),
            origin=origin,
        )


def columns_of(rows: Sequence[Row], schema: TableSchema) -> list[pa.Array]:
    """The table's columns of rows that were told.

    Raises:
        Misconfigured: a value was told when the column had another type.
    """
    columns = []
    for column in schema.columns:
        texts = pa.array([row.get(column.name) for row in rows], pa.string())
        try:
            columns.append(cast_text(texts, column.type))
        except (ValueError, pa.ArrowInvalid) as error:
            raise Misconfigured(
                f"Column {column.name} of table {schema.qualified} takes {column.source_type} now, and events told of "
                "other values.",
                remedy="Give it its former type, or publish these chunks once more under a new name of the column.",
            ) from error
    return columns
