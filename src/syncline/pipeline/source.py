"""One source: its capture into its log, the loads it needs, and its targets."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import structlog

from syncline.apply.parking import Parking
from syncline.apply.retry import Backoff, persist
from syncline.capture.heal import read_rows
from syncline.capture.slot import Identity, ensure_publication, identify, with_publication
from syncline.capture.snapshot import LoadProgress
from syncline.capture.source import connect, translated
from syncline.capture.tables import TableInfo, catalogue_mark, only_lost_columns, reshaped
from syncline.capture.wal import WalCapture
from syncline.catalog.repository import ControlSchema
from syncline.change import Cursor, Entry, Loaded, Marker, Position, TableSchema
from syncline.config import Config
from syncline.errors import Gap, Policy, SynclineError, Unavailable, defect, origin, policy
from syncline.log import Incarnation
from syncline.pipeline.attach import (
    SOURCE_OLDER,
    attach_slot,
    choose_incarnation,
    open_log,
    retire_log,
    retire_slot,
    usable_tables,
)
from syncline.pipeline.loads import Loads
from syncline.pipeline.pauses import apply_pauses, hold_name
from syncline.pipeline.reports import Reports
from syncline.pipeline.target import Target, TargetEvents
from syncline.stores import Store

__all__ = ["SourcePipeline"]

_log = structlog.get_logger()
Talk = Callable[[str], None]


class SourcePipeline:
    """Keeps one source's targets in step. ``start`` returns at once; ``state`` and ``error`` tell how it goes.

    States: starting, loading, streaming, retrying, gap (a person or ``on_gap`` decides), failed, stopped.
    """

    def __init__(
        self,
        name: str,
        config: Config,
        stores: dict[str, Store],
        control: ControlSchema,
        reports: Reports,
        talk: Talk,
        on_load: Callable[[LoadProgress], None],
    ) -> None:
        self.name = name
        self.config = config
        self.settings = config.sources[name]
        self.log = open_log(config.log, name)
        self.state = "starting"
        self.error: SynclineError | None = None
        self.tables: list[TableInfo] = []
        self._control = control
        self._reports = reports
        self._talk = talk
        self._stop = threading.Event()
        self._again = threading.Event()
        self._start_over = False
        self._reset_due = False
        self._renew_slot = False
        self._identity: Identity | None = None
        self._seen: tuple[Any, ...] = ()
        self._loads_seen, self._loads_end = -1, 0
        self._backoff = Backoff(0.2, 10.0)
        events = TargetEvents(
            failed=self._target_failed,
            retrying=self._target_retrying,
            schema_changed=self._schema_changed,
            purge_below=self._purge_below,
            caught_up=self._caught_up,
            refused=self._refused,
            loaded=self._loaded,
        )
        self.targets = {n: Target(n, s, events) for n, s in stores.items()}
        self.loads = Loads(name, self.settings, self.targets, reports, self._append, self._stop, talk, on_load)
        self._cursors: dict[str, Cursor | None] = {}
        self._capture: WalCapture | None = None
        self._thread = threading.Thread(target=self._run, name=f"capture-{name}", daemon=True)

    # ------------------------------------------------------------------------------------------------------ lifecycle

    def start(self, *, start_over: bool = False) -> None:
        """Begin. ``start_over`` reads every table again, whatever the log and the cursors say."""
        self._start_over = start_over
        self._thread.start()

    def stop(self, timeout_s: float) -> None:
        """Stop capturing, and finish the step each target is in."""
        self._stop.set()
        self._again.set()
        self._interrupt()
        if self._thread.is_alive():
            self._thread.join(timeout_s)
        self.loads.join(timeout_s)
        for target in self.targets.values():
            target.stop(timeout_s)
        if self.state not in ("gap", "failed"):
            self.state = "stopped"

    def close(self) -> None:
        """After :meth:`stop`: release the stores and the log."""
        for target in self.targets.values():
            target.store.close()
        self.log.close()

    def resync(self, tables: Sequence[str] | None) -> None:
        """Read these tables again (None: everything, from a new log on). Any thread."""
        if tables is not None and self.state not in ("gap", "failed"):
            self.loads.request(tables)
            return
        self._start_over = True
        self._again.set()
        self._interrupt()

    @property
    def busy(self) -> bool:
        """Whether tables are read, or are about to be: what was asked of :meth:`resync` is not done yet."""
        return self._start_over or self._reset_due or self.state != "streaming" or self.loads.busy

    @property
    def ended(self) -> bool:
        """Whether nothing runs here any more, or waits for a person."""
        if not self._thread.is_alive() and self._thread.ident is not None:
            return True
        idle = self.state in ("gap", "failed")
        return idle or (bool(self.targets) and all(t.error is not None for t in self.targets.values()))

    # ------------------------------------------------------------------------------------------------ capture's thread

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                self._session()
            except SynclineError as error:
                self._handle(error)
            except Exception as error:  # noqa: BLE001 - a defect stops this source and says so, not the process
                self._handle(defect(f"Source {self.name}", error))

    def _handle(self, error: SynclineError) -> None:
        """Decide what happens after the session ended with this error."""
        if self._stop.is_set() or self._start_over:
            return
        self.error = error
        if policy(error) is Policy.RETRY:
            self.state = "retrying"
            self._reports.alert("SL-SOURCE-AWAY", "warning", self.name, error)
            self._stop.wait(self._backoff.next())
            return
        if isinstance(error, Gap):
            self._reports.gap(self.name, error)
            self._reports.flush()
            if self.settings.on_gap == "resync":
                self._start_over = True
                self._stop.wait(self._backoff.next())
                return
            self.state = "gap"
        else:
            self.state = "failed"
            self._reports.alert(error.code, "critical", self.name, error)
            _log.error("source failed", source=self.name, error=str(error), at=origin(error))
        self._again.wait()
        self._again.clear()

    def _session(self) -> None:
        if self._start_over:
            self._start_over, self._reset_due = False, True
        if self._reset_due:
            self._reset()
            self._reset_due = False
        self.log.incarnation()  # a damaged log is a gap, whatever else is away
        identity = self._identity = identify(self.settings)
        self._open_targets()
        if self._futile():
            return
        dsn = self.settings.dsn.get_secret_value()
        with translated(dsn), connect(dsn, timeout_s=self.settings.connect_timeout_s) as connection:
            unpublished = self._choose_tables(connection)
            incarnation = choose_incarnation(
                connection, self.name, identity, self.log.incarnation(), self._cursors.values()
            )
            self.log.start_incarnation(incarnation)
            if self._renew_slot:
                retire_slot(connection, self.settings.slot, identity)
                self._renew_slot = False
            self._attach(connection, identity, incarnation)
        self._start_targets(incarnation, identity)
        self._forget_removed()
        if self.state != "streaming":
            self.state = "loading"
        self.loads.load_missing(self.tables, incarnation, unpublished)
        self._gaps_mended()
        self._stream(incarnation)

    def _futile(self) -> bool:
        """Whether a slot would keep WAL for nobody: none was made yet, and no target can be used. Waits, if so, until a
        person has mended that. A slot that is there already is read on (Guarantee 8)."""
        usable = [t for t in self.targets.values() if t.error is None]
        if usable or not self.targets or self.log.status().place:
            return False
        if not self._start_over:
            self.state = "failed"
            self._again.wait()
            self._again.clear()
        return True

    def _gaps_mended(self) -> None:
        """The slot continues the log, the log continues the targets, and whatever had to be read is in the log."""
        self._reports.gap_closed(self.name)
        for name, target in self.targets.items():
            if target.error is None:
                self._reports.gap_closed(self.name, target=name)
        working = [self.name, *(f"{self.name}/{n}" for n, t in self.targets.items() if t.error is None)]
        self._reports.recovered(working)

    def _choose_tables(self, connection: Any) -> list[str]:
        """Look at the source's tables as they are now; returns those that were not published until now."""
        tables = usable_tables(connection, self.name, self.settings, self.config.control.schema_name, self._reports)
        added = ensure_publication(connection, self.settings.publication, tables)
        # Last: what fails before is looked at again, with the tables as they were.
        self.tables = with_publication(connection, self.settings.publication, tables)
        if added:
            self._talk(f"publication {self.settings.publication}: added {', '.join(added)}")
        return added

    @property
    def _never(self) -> tuple[str, ...]:
        """Schemas that are never captured: our own."""
        return (self.config.control.schema_name,)

    def _attach(self, connection: Any, identity: Identity, incarnation: Incarnation) -> None:
        durable = self.log.status().place
        if durable:
            self._refuse_known_gap()
        place = attach_slot(connection, self.settings, identity, durable, self._talk)
        if place != durable:
            through = incarnation.base + place
            self._append([Entry((Marker("progress"),), place=place, through=through, incarnation=incarnation.number)])

    def _refuse_known_gap(self) -> None:
        """A restored source soon stands behind the log's last place again, and looks sound: the record still knows.

        Raises:
            Gap: an earlier session found the source older than the log, and nothing was read again since.
        """
        for gap in self._control.gaps():
            if (gap["source"], gap["target"], gap["table_name"], gap["code"]) == (self.name, "", "", SOURCE_OLDER):
                raise Gap(gap["reason"], remedy="Run `syncline resync` to read the tables again.", code=SOURCE_OLDER)

    def refresh(self) -> None:
        """Housekeeping: take in tables that came or changed since, and read what is due as it is now.

        PostgreSQL sends nothing for what ALTER TABLE does to rows, and no new shape before the next row changes
        (correctness rule 20), so the catalogue is looked at again and again.
        """
        if self.state != "streaming":
            return
        self._open_late()
        dsn = self.settings.dsn.get_secret_value()
        with translated(dsn), connect(dsn, timeout_s=self.settings.connect_timeout_s) as connection:
            self.loads.request(self._unfinished())
            seen = catalogue_mark(connection, self._never)
            if seen == self._seen and not self.loads.due:
                return
            before = {t.qualified: t for t in self.tables}
            added = self._choose_tables(connection)
        self.loads.request(added)
        self._seen = seen
        self._compare_shapes(before)
        if self._capture is not None:
            self._capture.widen(self.tables)
        incarnation = self.log.incarnation()
        if self.loads.due and incarnation is not None:
            self.loads.start_due(self.tables, incarnation)

    def _open_late(self) -> None:
        """Targets that were away when the source started (Guarantee 8). What they lack of tables is read for them."""
        incarnation = self.log.incarnation()
        if incarnation is not None and self._identity is not None and len(self._cursors) < len(self.targets):
            self._open_targets()
            self._start_targets(incarnation, self._identity)

    def _unfinished(self) -> list[str]:
        """Tables whose load has begun and will not end: it was cut off with the process, and what it wrote to the log
        is applied only now. Known once a target has all that was in the log when the last load was over."""
        if self.loads.busy:
            return []
        if self._loads_seen != self.loads.finished:
            self._loads_seen, self._loads_end = self.loads.finished, self.log.status().end
        found: set[str] = set()
        for target in self.targets.values():
            if target.worker is not None and target.worker.cursor.position.n >= self._loads_end:
                waiting = target.board.gaps | set(target.board.held())
                found |= {t.qualified for t in self.tables} - set(target.worker.cursor.loaded) - waiting
        return sorted(found)

    def _compare_shapes(self, before: dict[str, TableInfo]) -> None:
        """Have tables read again whose rows may have changed without a row event."""
        for now in self.tables:
            was = before.get(now.qualified)
            if was is None:
                self.loads.request([now.qualified])
            elif was.shape == now.shape:
                continue
            elif self._is_settled(was) and (only_lost_columns(was, now) or not reshaped(was.shape, now.shape)):
                incarnation = self.log.incarnation()
                number = incarnation.number if incarnation else 1
                self._append([Entry((Marker("reshaped", now.qualified, Loaded(now.shape)),), incarnation=number)])
            elif only_lost_columns(was, now) or reshaped(was.shape, now.shape):
                self._talk(f"table {now.qualified} changed its shape, or its publication; it is read again")
                self.loads.request([now.qualified])

    def _is_settled(self, table: TableInfo) -> bool:
        """Whether every target has the rows of this very shape: else a newer shape must not be taken for theirs."""
        workers = [t.worker for t in self.targets.values() if t.worker is not None]
        known = [w.cursor.loaded.get(table.qualified) for w in workers]
        return not self.loads.busy and all(k is not None and k.shape == table.shape for k in known)

    def _stream(self, incarnation: Incarnation) -> None:
        capture = WalCapture(
            self.settings, self.tables, base=incarnation.base, incarnation=incarnation.number, lost=self._table_lost
        )
        self._capture = capture
        try:
            self._talk(f"streaming from slot {self.settings.slot}, {'binary' if capture.binary else 'text'} format")
            for entry in capture.entries(self.log.status().place):
                self._append([entry])
                if entry.place:
                    capture.confirm(entry.place)  # Guarantee 1: durable in the log first
                self._streaming()
                if self._stop.is_set() or self._start_over:
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

    def _append(self, entries: list[Entry]) -> None:
        """Append, waiting while the log is full: the slot holds what is not confirmed (Guarantees 1 and 8)."""

        def tell(error: SynclineError | None) -> None:
            if error is None:
                for code in ("SL-LOG-FULL", "SL-DISK-FULL"):
                    self._reports.resolve(code, self.name)
            else:
                self._reports.alert(error.code, "critical", self.name, error)

        persist(lambda: self.log.append(entries), Backoff(0.05, 1.0), self._stop, tell)

    # --------------------------------------------------------------------------------------------------------- set-up

    def _open_targets(self) -> None:
        for name, target in self.targets.items():
            if name in self._cursors or target.error is not None:
                continue
            try:
                self._cursors[name] = target.store.open(self.name)
            except Unavailable as error:
                if self.log.incarnation() is None:
                    raise  # the versions of a new log have to be above those of every target (correctness rule 1)
                self._target_retrying(name, error)
            except SynclineError as error:
                target.error = error
                self._target_failed(name, error)

    def _start_targets(self, incarnation: Incarnation, identity: Identity) -> None:
        for name, target in self.targets.items():
            if target.worker is not None or target.error is not None or name not in self._cursors:
                continue
            cursor = self._cursors[name]
            end = Position(self.log.uuid, self.log.status().end)
            fresh = Cursor(self.name, end, incarnation=incarnation.number)
            if cursor is None:
                cursor = fresh
            elif not self._reachable(target, cursor):
                if self.settings.on_gap != "resync" and cursor.loaded:
                    continue
                cursor = msgspec.structs.replace(cursor, position=end, loaded={}, through=0, place=0)
            monitored = {t.qualified for t in self.tables}
            cursor = msgspec.structs.replace(
                cursor,
                loaded={t: oid for t, oid in cursor.loaded.items() if t in monitored},
                incarnation=incarnation.number,
                base=incarnation.base,
                system_identifier=identity.system_identifier,
            )
            parking = Parking(self._control, self.name, name)
            self._restore(name, target, cursor)
            target.start(self.log, cursor, self.config.apply, parking, self._heal)

    def _forget_removed(self) -> None:
        """Targets that are no longer configured must not hold back trimming. Brought back later, they are in a gap."""
        for noted in self.log.status().cursors:
            if noted.partition("/")[0] not in self.targets:
                self._talk(f"target {noted} is no longer configured; the log keeps nothing for it")
                self.log.forget(noted)

    def _restore(self, name: str, target: Target, cursor: Cursor) -> None:
        """Take over what an earlier run recorded, before anything is applied: pauses, and gaps of single tables."""
        apply_pauses(self._control, self.name, target, self.log, cursor, self._control.pauses())
        for gap in self._control.gaps():
            if gap["source"] == self.name and gap["table_name"] and gap["target"] in ("", name):
                target.board.open_gap(gap["table_name"])
                if self.settings.on_gap == "resync":
                    self.loads.request([gap["table_name"]])

    def _reachable(self, target: Target, cursor: Cursor) -> bool:
        """Whether the log continues where the target stands; else a gap (correctness rule 9)."""
        try:
            self.log.read(cursor.position, 1)
        except Gap as gap:
            if not cursor.loaded:
                return False
            self._reports.gap(self.name, gap, target=target.name)
            target.error = gap if self.settings.on_gap != "resync" else None
            return False
        return True

    def _heal(self, schema: TableSchema, keys: Any, xids: Sequence[int]) -> Any:
        return read_rows(self.settings, schema, keys, xids)

    def _reset(self) -> None:
        """Start over: a new log, a new slot, every table read again. What the old ones hold is superseded by the loads,
        and may be the very transaction that could not be taken."""
        for target in self.targets.values():
            target.stop(30)
            target.worker = None
            target.error = None
            target.store.close()
            cursor = target.store.open(self.name)
            if cursor is not None:
                cursor = msgspec.structs.replace(cursor, loaded={})
            self._cursors[target.name] = cursor
        self._again.clear()
        self._renew_slot = True
        self.log.close()
        retire_log(self.config.log.folder(self.name))
        self.log = open_log(self.config.log, self.name)
        self._talk("starting over: new log, every table is read again")

    # ---------------------------------------------------------------------------------------------- what targets tell

    def _target_failed(self, name: str, error: SynclineError) -> None:
        if isinstance(error, Gap):
            self._reports.gap(self.name, error, target=name)
            if self.settings.on_gap == "resync":
                self.resync(None)
        else:
            self._reports.alert(error.code, "critical", f"{self.name}/{name}", error)
            _log.error("target failed", source=self.name, target=name, error=str(error), at=origin(error))

    def _target_retrying(self, name: str, error: SynclineError | None) -> None:
        subject = f"{self.name}/{name}"
        if error is None:
            self._reports.resolve("SL-TARGET-AWAY", subject)
        else:
            self._reports.alert("SL-TARGET-AWAY", "warning", subject, error)

    def _table_lost(self, table: str, error: SynclineError) -> None:
        self._reports.gap(self.name, error, table=table)
        if self.settings.on_gap == "resync":
            self.resync([table])

    def _schema_changed(self, schema: TableSchema) -> None:
        """A new shape arrived at a target: rows may have changed without a row event; read them again."""
        self._talk(f"table {schema.qualified} changed its columns; it is read again")
        self.loads.request([schema.qualified])

    def _refused(self, name: str, table: str, error: SynclineError) -> None:
        """A target can't take one table: a gap of that table there, until someone mends it and asks for a resync."""
        self._reports.gap(self.name, error, target=name, table=table)

    def _loaded(self, name: str, table: str) -> None:
        """What was read is at the target: whatever it refused or missed of the table before is mended."""
        self._reports.gap_closed(self.name, target=name, table=table)

    def _purge_below(self, name: str) -> int | None:
        worker = self.targets[name].worker
        if worker is None or self.loads.busy:
            return None
        try:
            parked = self._control.open_dead_letters(name)
        except Unavailable:
            return None
        return None if parked or self.targets[name].board.held() else worker.cursor.version

    def _caught_up(self, name: str, table: str) -> bool:
        try:
            self._control.release(self.name, name, table)
        except Unavailable:
            return False
        self.log.forget(hold_name(name, table))
        return True
