"""Members of Redis keys as a source: one table that its settings describe, whose state is what was last told of it.

Redis has no snapshot and says nothing of what changed, so its rows are taken as a run found them: that is what targets
are loaded from and compared with. A comparison has a run done first.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import ClassVar

import pyarrow as pa

from syncline.capture import Identity, LoadProgress, Point, Seen, Stream
from syncline.capture.described import described, inserted
from syncline.capture.one_table import OneTableSource
from syncline.capture.outbox.expand import EventParking
from syncline.capture.redis.connection import Connection, describe
from syncline.capture.redis.meeting import Meeting
from syncline.capture.redis.reading import KeyReader
from syncline.capture.redis.run import Files, Found, Run
from syncline.capture.redis.settings import RedisSettings, groups_of, schema_of
from syncline.capture.redis.stream import RedisStream, Runs
from syncline.capture.redis.told import LOST, State, Told
from syncline.capture.runs import RunRecords, Wish
from syncline.capture.schema import table_schema
from syncline.capture.settings import SourceSettings
from syncline.capture.tables import TableInfo
from syncline.change import Batch, Entry, TableSchema, arrow_type
from syncline.errors import Gap, Misconfigured, SynclineError, Unavailable
from syncline.finding import Finding

__all__ = ["RedisSource"]

Talk = Callable[[str], None]

_ROWS = 20_000


class RedisSource(OneTableSource[State]):
    """A :class:`~syncline.capture.Source` over keys of a Redis or Valkey server. ``folder`` is where it keeps what was
    told, beside its log."""

    config_class: ClassVar[type[SourceSettings]] = RedisSettings
    seen_as: ClassVar[str] = "runs"

    def __init__(self, settings: RedisSettings, control_schema: str, folder: Path) -> None:
        self.settings = settings
        info = _described(schema_of(settings))
        self.told = Told(folder / "told", f"table {info.qualified}")
        self._records: RunRecords | None = None
        super().__init__(info, self.told.state)

    def record_runs(self, records: RunRecords) -> None:
        self._records = records

    # ------------------------------------------------------------------------------------------------------------- who

    def identify(self) -> Identity:
        """Whatever server it is: a run compares it with what was told, so a replica, or a restored one, serves."""
        return Identity("redis", 1, "members", "redis")

    def number(self) -> int:
        return self.told.latest()

    def preflight(self) -> list[Finding]:
        where = f"Redis {describe(self.settings.url)}"
        try:
            with Connection(self.settings) as connection:
                reader = KeyReader(self.settings, connection, threading.Event())
                for group in groups_of(self.settings):
                    reader.try_out(group)
                missing = sorted(reader.missing(groups_of(self.settings)))
        except Misconfigured as error:
            return [Finding(error.code, "error", self._schema.qualified, error.message, error.remedy)]
        found = [Finding("SL-REDIS-KEYS", "ok", where, "the keys can be read")]
        if missing:
            said = f"keys that are not there now, which deletes nobody: {', '.join(missing)}"
            found.append(Finding("SL-REDIS-KEYS", "info", where, said))
        return found

    # ---------------------------------------------------------------------------------------------------------- stream

    def attach(self, identity: Identity, durable: int, talk: Talk) -> int:
        """See :class:`~syncline.capture.Source`. With 0 everything is read, which makes the first state. A gap: what
        was told is lost.

        Raises:
            Misconfigured: it is lost, and keys are gone too, so that nobody knows which rows stay.
        """
        if self.told.is_locked:
            raise self.told.in_use()
        if durable:
            self._refuse_lost(durable)
            return durable
        self._read_first(talk)
        return self.told.latest()

    def _refuse_lost(self, durable: int) -> None:
        try:
            self.told.refuse_lost(durable)
        except Gap:
            with Connection(self.settings) as connection:
                missing = KeyReader(self.settings, connection, threading.Event()).missing(groups_of(self.settings))
            if missing and self.settings.deletes != "gone":
                raise Misconfigured(
                    f"What was told of table {self._schema.qualified} is lost, and keys are not there now "
                    f"({', '.join(sorted(missing))}): read again, rows would go, or columns become their defaults.",
                    remedy="If that is right, run `syncline resync`; else put the folder of the log back.",
                    code=LOST,
                ) from None
            raise

    def _read_first(self, talk: Talk) -> None:
        records = self._recorded()
        talk(f"reading members of {self._schema.qualified} from Redis {describe(self.settings.url)}")
        stop = threading.Event()
        with self.told.lock():
            records.take()
            try:
                self.told.clear()
                if self.settings.base_key:
                    self._begin_with_nothing()
                    return
                asked = records.asked()
                runs = Runs(self.settings, self.told, records, stop)
                for _ in runs.run(asked[0] if asked else None, Wish("full"), 0, self._first):
                    raise AssertionError("the first state is not told by the stream, but loaded")
            finally:
                with suppress(Unavailable):
                    records.release()

    def _begin_with_nothing(self) -> None:
        """Where rows are edited on both sides, each row of the first run is judged like any other."""
        with self.told.scratch() as scratch, Meeting(self.settings, None, scratch) as difference:
            difference.compare()
            difference.write(self.told.next_path(1))
        self.told.keep(1)
        self.told.settle(1)

    def _first(self, run: Run, found: Found, number: int) -> Iterator[Entry]:
        """The first state is there even where there are no members."""
        if not found.differs:
            run.write(self.told.next_path(1))
            self.told.keep(1)
        self.told.settle(1)
        return iter(())

    def try_run(self, wish: Wish, stop: threading.Event) -> tuple[Found, bool]:
        """What a run would find, whoever does runs meanwhile; and whether anything was told before."""
        kind = ("full" if wish.members is None else "members", None)
        with self.told.scratch() as scratch:
            files = Files(self.told.pinned(scratch), scratch)
            with Run(self.settings, files, wish, kind, stop, lambda: None) as run:
                return run.look(), files.told is not None

    def retire(self, identity: Identity) -> None:
        if self.told.is_locked:
            raise self.told.in_use()
        self.told.clear()

    def capture(
        self, tables: list[TableInfo], base: int, incarnation: int, lost: Callable[[str, SynclineError], None]
    ) -> Stream:
        return RedisStream(self.settings, self.told, self._recorded(), base=base, incarnation=incarnation)

    def _recorded(self) -> RunRecords:
        assert self._records is not None  # Source.record_runs
        return self._records

    def park_events(self, parking: EventParking) -> None:
        """It has no outbox."""

    # ----------------------------------------------------------------------------------------------------------- rows

    def catch_up(self) -> None:
        """A run is done, so that the newest state is what Redis has."""
        self.told.have_run()

    def rows(
        self,
        info: TableInfo,
        point: Point,
        version: int,
        stop: threading.Event,
        progress: Callable[[LoadProgress], None],
    ) -> Iterator[Batch]:
        state, schema, first = self._held[point.snapshot], table_schema(info), 0
        total = state.rows
        for columns in state.batches(schema, _ROWS):
            if stop.is_set():
                raise Unavailable("The load was asked to stop.")
            yield inserted(schema, columns, version, first)
            first += len(columns[0])
            progress(LoadProgress(info.qualified, first, first, total))

    def rows_of(self, info: TableInfo, point: Point, keys: pa.RecordBatch, version: int) -> Batch:
        schema = table_schema(info)
        found = _with_keys(self._held[point.snapshot], schema, keys)
        return inserted(schema, found.columns, version, 0)

    def heal(
        self, schema: TableSchema, keys: pa.RecordBatch, xids: Sequence[int], stop: threading.Event
    ) -> pa.RecordBatch:
        """The rows with these keys. Every change carries its whole row, so that nobody asks."""
        with self.told.state() as state:
            return _with_keys(state, schema, keys)

    def advance(self) -> None:
        """Nothing has to be done for it: each run yields something, and one was done for the :class:`Point`."""

    # -------------------------------------------------------------------------------------------------------- looking

    def reader(self) -> int | None:
        return self.told.latest() if self.told.is_locked else None

    def refuse_in_use(self) -> None:
        if self.told.is_locked:
            raise self.told.in_use()

    def look(self, place: int | None) -> Seen:
        number, reading = self.told.latest(), self.told.is_locked
        state = "comparing" if reading else "idle"
        return Seen({"state": state, "number": number}, f"{state}, state {number} was told")

    def shown(self, number: int) -> str:
        return f"state {number}"

    def close(self) -> None:
        """Nothing is kept open."""


def _with_keys(state: State, schema: TableSchema, keys: pa.RecordBatch) -> pa.RecordBatch:
    names = [c.name for c in schema.columns]
    batches = [pa.record_batch(columns, names=names) for columns in state.batches(schema, _ROWS)]
    empty = pa.schema([(c.name, arrow_type(c.type)) for c in schema.columns])
    rows = pa.Table.from_batches(batches, batches[0].schema if batches else empty)
    found = rows.join(pa.Table.from_batches([keys]), keys=keys.schema.names, join_type="left semi").combine_chunks()
    return pa.record_batch([found.column(n).combine_chunks() for n in names], names=names)


def _described(schema: TableSchema) -> TableInfo:
    """The table as a catalogue would have it."""
    columns = [(column.name, column.source_type) for column in schema.columns]
    return described(schema.namespace, schema.name, schema.columns[0].name, columns)
