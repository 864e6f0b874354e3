"""One source: its capture into its log, the loads it needs, and its targets."""

from __future__ import annotations

import threading
from collections.abc import Sequence

from syncline.apply.retry import Backoff, persist
from syncline.capture import SOURCE_OLDER, Again, Identity, Source, Stream
from syncline.capture.tables import TableInfo
from syncline.change import Entry, Marker, Position
from syncline.errors import Gap, Policy, SynclineError, Unavailable, defect, policy
from syncline.log import Incarnation
from syncline.pipeline.attach import choose_incarnation, open_log, retire_log
from syncline.pipeline.catalogue import Catalogue
from syncline.pipeline.context import Context
from syncline.pipeline.loads import Loads
from syncline.pipeline.outbox import ParkedEvents, Reached
from syncline.pipeline.repairs import Repairs
from syncline.pipeline.runs import RecordedRuns
from syncline.pipeline.targets import Targets
from syncline.stores import Store

__all__ = ["SourcePipeline"]


class SourcePipeline:
    """Keeps one source's targets in step. ``start`` returns at once; ``state`` and ``error`` tell how it goes.

    States: starting, loading, streaming, retrying, gap (a person or ``on_gap`` decides), failed, stopped.
    """

    def __init__(self, context: Context, stores: dict[str, Store]) -> None:
        self.name = context.name
        self._source = context.source
        self.log = open_log(context.config.log, self.name)
        self.state = "starting"
        self.error: SynclineError | None = None
        self._context = context
        self._reports = context.reports
        self._talk = context.talk
        self.stopping = threading.Event()
        self._again = threading.Event()
        self._start_over = False
        self._reset_due = False
        self._renew_stream = False
        self._loads_seen, self._loads_end = -1, 0
        self._read_through = 0  # the last entry of the log that came from a load, 0 if none did
        self._backoff = Backoff(0.2, 10.0)
        self._targets = Targets(context, stores, self)
        self.targets = self._targets.by_name
        self.loads = Loads(context, self.targets, self._append_beside, self.stopping)
        self.repairs = Repairs(context, self.targets, self._append_repair, self.stopping)
        self._catalogue = Catalogue(context, self.targets, self.loads, self._append_beside)
        parks = context.settings.parks_events
        self._parked_events = None if parks is None else ParkedEvents(context.control, self.name, *parks)
        if self._parked_events is not None:
            self._source.park_events(self._parked_events)
        self._runs = None
        if context.settings.makes_runs:
            self._runs = RecordedRuns(context.config, self.name, context.control, context.reports)
            self._source.record_runs(self._runs)
        self._capture: Stream | None = None
        self._thread = threading.Thread(target=self._run, name=f"capture-{self.name}", daemon=True)

    @property
    def tables(self) -> list[TableInfo]:
        """The tables that are captured."""
        return self._catalogue.tables

    @property
    def kind(self) -> str:
        """How it is captured, as the configuration calls it."""
        return self._context.settings.type

    def another_look(self) -> Source:
        """The source once more, for a thread of its own."""
        return self._context.config.source(self.name)

    # ------------------------------------------------------------------------------------------------------ lifecycle

    def start(self, *, start_over: bool = False) -> None:
        """Begin. ``start_over`` reads every table again, whatever the log and the cursors say."""
        self._start_over = start_over
        self._thread.start()

    def ask_to_stop(self) -> None:
        """Have the capture end, the loads, and each target behind the step it is in; :meth:`working` tells when they
        did."""
        self.stopping.set()
        self._again.set()
        self._interrupt()
        self._targets.ask_to_stop()

    def working(self) -> list[str]:
        """After :meth:`ask_to_stop`: what has not come to an end yet, in words. A session that was just beginning may
        have started targets since, so they are asked again."""
        self._targets.ask_to_stop()
        parts = {
            f"the capture of source {self.name}": self._thread.is_alive(),
            f"a load of source {self.name}": self.loads.running,
            f"a repair of source {self.name}": self.repairs.running,
            **{f"target {name}, which is writing": target.running for name, target in self.targets.items()},
        }
        return [what for what, alive in parts.items() if alive]

    def note_stopped(self) -> None:
        """Nothing is waited for any more."""
        if self.state not in ("gap", "failed"):
            self.state = "stopped"

    def close(self) -> None:
        """Release the stores and the log, whether or not everything came to an end: what was not durable with its
        cursor is done again at the next start."""
        self._targets.close()
        self.log.close()
        if self._runs is not None:
            self._runs.close()

    def resync(self, tables: Sequence[str] | None, target: str | None = None) -> None:
        """Read these tables again (None: everything, from a new log on). Any thread.

        For one ``target`` the log goes on as it is: a target that runs gets the tables (None: all) read again, one that
        does not begins anew.
        """
        if target is not None and self.targets[target].running:
            self.read_again([t.qualified for t in self.tables] if tables is None else tables, target)
        elif target is not None:
            self._targets.renew(target)
        elif tables is not None and self.state not in ("gap", "failed"):
            self.read_again(tables)
        else:
            self.start_over()

    def read_again(self, tables: Sequence[str], target: str | None = None) -> None:
        """Have tables read again beside the stream, for one target or for all. Any thread."""
        self.loads.request(tables, target)

    def start_over(self) -> None:
        """Read everything again, from a new log on. Any thread."""
        self._start_over = True
        self._again.set()
        self._interrupt()

    @property
    def loading(self) -> bool:
        """Whether tables, or rows to repair, are being read, or are about to be."""
        return self.loads.busy or self.repairs.busy

    @property
    def busy(self) -> bool:
        """Whether tables are read, or are about to be: what was asked of :meth:`resync` is not done yet."""
        starting = self._start_over or self._reset_due or self._targets.renewing
        return starting or self.state != "streaming" or self.loads.busy

    @property
    def has_applied_loads(self) -> bool:
        """Whether every target that is not in a gap or failed has all that was read of tables up to now."""
        working = [target.worker for target in self.targets.values() if target.error is None]
        cursors = [worker.cursor.position if worker is not None else None for worker in working]
        return all(at is not None and at.log == self.log.uuid and at.n >= self._read_through for at in cursors)

    @property
    def due(self) -> bool:
        """Whether :meth:`refresh` has something to do that should not wait."""
        return self.loads.due or self.repairs.due or self._targets.renewing

    @property
    def ended(self) -> bool:
        """Whether nothing runs here any more, or waits for a person."""
        if not self._thread.is_alive() and self._thread.ident is not None:
            return True
        return self.state in ("gap", "failed") or self._targets.all_failed

    # ------------------------------------------------------------------------------------------------ capture's thread

    def _run(self) -> None:
        while not self.stopping.is_set():
            try:
                self._session()
            except SynclineError as error:
                self._handle(error)
            except Exception as error:  # noqa: BLE001 - a defect stops this source and says so, not the process
                self._handle(defect(f"Source {self.name}", error))

    def _handle(self, error: SynclineError) -> None:
        """Decide what happens after the session ended with this error."""
        if self.stopping.is_set() or self._start_over:
            return
        self.error = error
        if isinstance(error, Again):
            self._source.again(error)
            self._talk(error.message)
            return
        if policy(error) is Policy.RETRY:
            self.state = "retrying"
            self._reports.alert("SL-SOURCE-AWAY", "warning", self.name, error)
            self.stopping.wait(self._backoff.next())
            return
        self._reports.resolve("SL-SOURCE-AWAY", self.name)
        if isinstance(error, Gap):
            self._reports.gap(self.name, error, ends=not self._context.resyncs)
            self._reports.flush()
            if self._context.resyncs:
                self._start_over = True
                self.stopping.wait(self._backoff.next())
                return
            self.state = "gap"
        else:
            self.state = "failed"
            self._reports.alert(error.code, "critical", self.name, error, ends=True)
        self._again.wait()
        self._again.clear()

    def _session(self) -> None:
        if self._start_over:
            # In this order: not busy between the two, a resync would be taken for done that has yet to begin.
            self._reset_due = True
            self._start_over = False
        if self._reset_due:
            self._reset()
            self._reset_due = False
        self.log.incarnation()  # a damaged log is a gap, whatever else is away
        identity = self._source.identify()
        self._targets.open()
        if self._futile():
            return
        uncaptured = self._catalogue.choose(begins=not self.log.status().place)
        identity = self._source.identify()  # what was just made for it is part of it
        known, cursors = self.log.incarnation(), self._targets.cursors
        incarnation = choose_incarnation(self._source, self.name, identity, known, cursors)
        self.log.start_incarnation(incarnation)
        if self._renew_stream:
            self._source.retire(identity)
            self._renew_stream = False
        self._attach(identity, incarnation)
        loaded = {table for cursor in cursors if cursor is not None for table in cursor.loaded}
        self._catalogue.tell_left(loaded, incarnation)
        self._targets.start(incarnation, identity)
        if self.state != "streaming":
            self.state = "loading"
        self.loads.load_missing(self.tables, incarnation, uncaptured)
        self._reports.gap_closed(self.name)  # the stream continues the log
        self._targets.mended()
        self._stream(incarnation)

    def _futile(self) -> bool:
        """Whether the source would keep changes for nobody: none was read yet, and no target can be used. Waits, if
        so, until a person has mended that. A stream that is there already is read on (Guarantee 8)."""
        usable = [t for t in self.targets.values() if t.error is None]
        if usable or not self.targets or self.log.status().place:
            return False
        if not self._start_over:
            self.state = "failed"
            self._again.wait()
            self._again.clear()
        return True

    def _attach(self, identity: Identity, incarnation: Incarnation) -> None:
        durable = self.log.status().place
        if durable:
            self._refuse_known_gap()
        place = self._source.attach(identity, durable, self._talk)
        if place != durable:
            through = incarnation.base + place
            self._append([Entry((Marker("progress"),), place=place, through=through, incarnation=incarnation.number)])

    def _refuse_known_gap(self) -> None:
        """A restored source soon stands behind the log's last place again, and looks sound: the record still knows.

        Raises:
            Gap: an earlier session found the source older than the log, and nothing was read again since.
        """
        for gap in self._context.control.gaps():
            if (gap["source"], gap["target"], gap["table_name"], gap["code"]) == (self.name, "", "", SOURCE_OLDER):
                raise Gap(gap["reason"], remedy="Run `syncline resync` to read the tables again.", code=SOURCE_OLDER)

    def refresh(self) -> bool:
        """Housekeeping: start the targets that are late, take in tables that came or changed since, and read what is
        due as it is now. False while there is nothing to look at."""
        if self.state != "streaming" or self.stopping.is_set():
            return False
        self._targets.start_late()
        self._request_unfinished()
        incarnation = self.log.incarnation()
        changed = self._catalogue.look_again(incarnation)
        if changed and self._capture is not None:
            self._capture.widen(self.tables)
        if changed and self.loads.due and incarnation is not None:
            self.loads.start_due(self.tables, incarnation)
        if self.repairs.due and incarnation is not None:
            self.repairs.start_due(incarnation)
        return True

    def reached(self, incarnation: Incarnation) -> Reached:
        """How far the log and all of the targets are; nowhere, where one of them does not run."""
        captured = self.log.status().place
        workers = [target.worker for target in self.targets.values()]
        applied = min((w.cursor.place if w is not None else 0 for w in workers), default=captured)
        return Reached(captured, applied, incarnation.base, self.tables)

    def _request_unfinished(self) -> None:
        """Tables whose load has begun and will not end: it was cut off with the process, and what it wrote to the log
        is applied only now. Known once a target has all that was in the log when the last load was over."""
        if self.loads.busy:
            return
        if self._loads_seen != self.loads.finished:
            self._loads_seen, self._loads_end = self.loads.finished, self.log.status().end
        for name, target in self.targets.items():
            if target.worker is not None and target.worker.cursor.position.n >= self._loads_end:
                self.loads.request(self._targets.missing(name), name)

    def _stream(self, incarnation: Incarnation) -> None:
        capture = self._source.capture(self.tables, incarnation.base, incarnation.number, self._table_lost)
        self._capture = capture
        try:
            self._talk(capture.words)
            for entry in capture.entries(self.log.status().place):
                self._append([entry])
                if entry.place:
                    capture.confirm(entry.place)  # Guarantee 1: durable in the log first
                self._streaming()
                if self.stopping.is_set() or self._start_over:
                    return
        finally:
            self._capture = None
            capture.close()

    def _interrupt(self) -> None:
        """End the stream soon: its thread may be waiting for the source's next change."""
        capture = self._capture
        if capture is not None:
            capture.close()

    def _streaming(self) -> None:
        if self.state != "streaming":
            self.state, self.error = "streaming", None
            self._backoff.reset()
            self._reports.resolve("SL-SOURCE-AWAY", self.name)

    def _append_beside(self, entries: list[Entry]) -> None:
        """Append what does not come from the stream, and may have been begun for a log that was put aside since.

        Raises:
            Unavailable: the log is a new one, to which the source has yet to be attached.
        """
        if self.log.incarnation() is None:
            raise Unavailable("The source is being started over.")
        self._read_through = self._append(entries).n
        for entry in entries:
            self._settle_events(entry)

    def _append_repair(self, entry: Entry) -> tuple[str, int]:
        """Append a repair; the log, and the number in it. Raises as :meth:`_append_beside`."""
        if self.log.incarnation() is None:
            raise Unavailable("The source is being started over.")
        at = self._append([entry])
        return at.log, at.n

    def _settle_events(self, entry: Entry) -> None:
        """A load that has begun for all who take the table, and is done again until it succeeds, settles what is parked
        of the table's events."""
        for item in entry.items if self._parked_events is not None else ():
            if isinstance(item, Marker) and item.kind == "reading":
                takers = {name for name, target in self.targets.items() if target.mapping.takes(item.table)}
                if self._parked_events is not None and (entry.targets is None or takers <= set(entry.targets)):
                    self._parked_events.settle_table(item.table)

    def _append(self, entries: list[Entry]) -> Position:
        """Append, waiting while the log is full: the source holds what is not confirmed (Guarantees 1 and 8)."""

        def tell(error: SynclineError | None) -> None:
            if error is None:
                for code in ("SL-LOG-FULL", "SL-DISK-FULL"):
                    self._reports.resolve(code, self.name)
            else:
                self._reports.alert(error.code, "critical", self.name, error)

        return persist(lambda: self.log.append(entries), Backoff(0.05, 1.0), self.stopping, tell)

    def _reset(self) -> None:
        """Start over: a new log, a new stream, every table read again. What the old ones hold is superseded by the
        loads, and may be the very transaction that could not be taken."""
        self.state, self._read_through = "loading", 0
        self._targets.reset()
        self._again.clear()
        self._renew_stream = True
        self.log.close()
        retire_log(self._context.config.log.folder(self.name))
        self.log = open_log(self._context.config.log, self.name)
        self._talk("starting over: new log, every table is read again")

    def _table_lost(self, table: str, error: SynclineError) -> None:
        self._reports.gap(self.name, error, table=table)
        if self._context.resyncs:
            self.resync([table])
