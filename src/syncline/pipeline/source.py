"""One source: its capture into its log, the loads it needs, and its targets."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import structlog

from syncline.apply.parking import Parking
from syncline.apply.retry import Backoff, persist
from syncline.capture.heal import read_rows
from syncline.capture.slot import Identity, check_slot, create_slot, drop_slot, ensure_publication, identify, read_slot
from syncline.capture.snapshot import Load, LoadProgress, load
from syncline.capture.source import connect, translated
from syncline.capture.tables import TableInfo, matching_tables, usable_identity
from syncline.capture.wal import WalCapture
from syncline.catalog.repository import ControlSchema
from syncline.change import Cursor, Entry, Marker, Position, TableSchema
from syncline.config import Config
from syncline.errors import Gap, Misconfigured, Policy, SynclineError, Unavailable, origin, policy
from syncline.log import Incarnation
from syncline.log.embedded import EmbeddedLog
from syncline.pipeline.reports import Reports
from syncline.pipeline.target import Target, TargetEvents
from syncline.stores import Store

__all__ = ["SourcePipeline", "hold_name"]

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
        self.log = EmbeddedLog(config.log, name)
        self.state = "starting"
        self.error: SynclineError | None = None
        self.tables: list[TableInfo] = []
        self.loading: dict[str, LoadProgress] = {}
        self._control = control
        self._reports = reports
        self._talk = talk
        self._on_load = on_load
        self._stop = threading.Event()
        self._again = threading.Event()
        self._start_over = False
        self._due: set[str] = set()
        self._lock = threading.Lock()
        self._loader: threading.Thread | None = None
        self._backoff = Backoff(0.2, 10.0)
        events = TargetEvents(
            failed=self._target_failed,
            retrying=self._target_retrying,
            schema_changed=self._schema_changed,
            purge_below=self._purge_below,
            caught_up=self._caught_up,
            refused=self._refused,
        )
        self.targets = {n: Target(n, s, events) for n, s in stores.items()}
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
        if self._loader:
            self._loader.join(timeout_s)
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
            with self._lock:
                self._due.update(tables)
            return
        self._start_over = True
        self._again.set()
        self._interrupt()

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
                failure = SynclineError(f"Source {self.name} failed: {type(error).__name__}: {error}.")
                failure.__cause__ = error
                self._handle(failure)

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
            if self.settings.on_gap == "resync":
                self._start_over = True
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
            self._reset()
        identity = identify(self.settings)
        self._open_targets()
        dsn = self.settings.dsn.get_secret_value()
        with translated(dsn), connect(dsn, timeout_s=self.settings.connect_timeout_s) as connection:
            self.tables = self._usable(connection)
            for line in ensure_publication(connection, self.settings.publication, self.tables):
                self._talk(line)
            incarnation = self._incarnation(connection, identity)
            self._ensure_slot(connection, identity, incarnation)
        self._start_targets(incarnation, identity)
        self._forget_removed()
        self._load_missing(incarnation)
        self._stream(incarnation)

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

    def _usable(self, connection: Any) -> list[TableInfo]:
        """The monitored tables that can be captured; the others get an alert and stop nobody (Guarantee 8)."""
        never = (self.config.control.schema_name,)
        found = matching_tables(connection, self.settings.monitored_tables, self.settings.excluded_tables, never)
        usable = []
        for info in found:
            reason = usable_identity(info)
            subject = f"{self.name}/{info.qualified}"
            if reason is None:
                usable.append(info)
                self._reports.resolve("SL-NO-IDENTITY", subject)
                continue
            error = Misconfigured(f"Table {info.qualified} is left out: {reason}", code="SL-NO-IDENTITY")
            self._reports.alert("SL-NO-IDENTITY", "error", subject, error)
            self._talk(str(error))
        if not usable:
            raise Misconfigured(
                f"Source {self.name} has no table to capture: {len(found)} matched, none is usable.",
                remedy="Correct monitored_tables; `syncline doctor` shows what there is.",
            )
        return usable

    def _incarnation(self, connection: Any, identity: Identity) -> Incarnation:
        """The log's incarnation if this is still the same source; a new one for a new log (correctness rule 1)."""
        current = self.log.incarnation()
        if current is not None:
            if (current.system_identifier, current.timeline, current.database) == (
                identity.system_identifier,
                identity.timeline,
                identity.database,
            ):
                return current
            raise Gap(
                f"Source {self.name} is not the server that the log was captured from: it is system "
                f"{identity.system_identifier} timeline {identity.timeline}, the log has {current.system_identifier} "
                f"timeline {current.timeline}.",
                remedy="If that is meant to be, run `syncline resync`; else correct source.dsn.",
                code="SL-SOURCE-CHANGED",
            )
        known = [c for c in self._cursors.values() if c is not None]
        lsn = connection.execute("select (pg_current_wal_lsn() - '0/0'::pg_lsn)::int8").fetchone()[0]
        number, base = 1, 0
        if known:
            newest = max(c.version for c in known)
            number, base = max((c.incarnation, c.base) for c in known)
            same = all(c.system_identifier == identity.system_identifier for c in known)
            if not same or base + lsn <= newest:
                number, base = number + 1, newest + 1
        incarnation = Incarnation(number, identity.system_identifier, identity.timeline, identity.database, base)
        self.log.start_incarnation(incarnation)
        return incarnation

    def _ensure_slot(self, connection: Any, identity: Identity, incarnation: Incarnation) -> None:
        durable = self.log.status().place
        slot = read_slot(connection, self.settings.slot)
        if durable == 0 and slot is not None and slot.wal_status == "lost":
            drop_slot(connection, slot.name)
            slot = None
        if durable == 0 and slot is None:
            self._talk(f"creating replication slot {self.settings.slot}")
            point = create_slot(self.settings, self.settings.slot, self._talk)
        else:
            check_slot(slot, self.settings.slot, identity.database.rpartition(":")[0], durable)
            if durable:
                return
            assert slot is not None
            point = slot.confirmed
        through = incarnation.base + point
        self._append([Entry((Marker("progress"),), place=point, through=through, incarnation=incarnation.number)])

    def _open_targets(self) -> None:
        for name, target in self.targets.items():
            if name in self._cursors or target.error is not None:
                continue
            try:
                self._cursors[name] = target.store.open(self.name)
            except Unavailable:
                raise
            except SynclineError as error:
                target.error = error
                self._target_failed(name, error)

    def _start_targets(self, incarnation: Incarnation, identity: Identity) -> None:
        for name, target in self.targets.items():
            if target.worker is not None or target.error is not None:
                continue
            cursor = self._cursors[name]
            end = Position(self.log.uuid, self.log.status().end)
            fresh = Cursor(self.name, end, incarnation=incarnation.number)
            if cursor is None:
                cursor = fresh
            elif not self._reachable(target, cursor):
                if self.settings.on_gap != "resync" and cursor.loaded:
                    continue
                cursor = msgspec.structs.replace(cursor, position=end, loaded=(), through=0)
            monitored = {t.qualified for t in self.tables}
            cursor = msgspec.structs.replace(
                cursor,
                loaded=tuple(t for t in cursor.loaded if t in monitored),
                incarnation=incarnation.number,
                base=incarnation.base,
                system_identifier=identity.system_identifier,
            )
            parking = Parking(self._control, self.name, name)
            self._restore(name, target)
            target.start(self.log, cursor, self.config.apply, parking, self._heal)

    def _forget_removed(self) -> None:
        """Targets that are no longer configured must not hold back trimming. Brought back later, they are in a gap."""
        for noted in self.log.status().cursors:
            if noted.partition("/")[0] not in self.targets:
                self._talk(f"target {noted} is no longer configured; the log keeps nothing for it")
                self.log.forget(noted)

    def _restore(self, name: str, target: Target) -> None:
        """Take over what an earlier run recorded: gaps of single tables."""
        for gap in self._control.gaps():
            if gap["source"] == self.name and gap["table_name"] and gap["target"] in ("", name):
                target.board.open_gap(gap["table_name"])
                with self._lock:
                    if self.settings.on_gap == "resync":
                        self._due.add(gap["table_name"])

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
        self._reports.gap_closed(self.name, target=target.name)
        return True

    def _heal(self, schema: TableSchema, keys: Any, xids: Sequence[int]) -> Any:
        return read_rows(self.settings, schema, keys, xids)

    def _reset(self) -> None:
        """Start over: a new log, every table read again. The old log's entries are all superseded by the loads."""
        self._start_over = False
        for target in self.targets.values():
            target.stop(30)
            target.worker = None
            target.error = None
            target.store.close()
            cursor = target.store.open(self.name)
            if cursor is not None:
                cursor = msgspec.structs.replace(cursor, loaded=())
            self._cursors[target.name] = cursor
        self.log.close()
        _retire(self.config.log.folder(self.name))
        self.log = EmbeddedLog(self.config.log, self.name)
        self._talk("starting over: new log, every table is read again")

    # ---------------------------------------------------------------------------------------------------------- loads

    def _load_missing(self, incarnation: Incarnation) -> None:
        """Read tables that a target does not have yet, before streaming: so partial rows find their rows."""
        wanted: dict[tuple[str, ...], list[TableInfo]] = {}
        running = [n for n, t in self.targets.items() if t.worker is not None]
        for info in self.tables:
            names = tuple(n for n in running if info.qualified not in self._loaded(n))
            if names:
                wanted.setdefault(names, []).append(info)
        for names, tables in wanted.items():
            self._load(tables, names, incarnation)

    def _loaded(self, target: str) -> tuple[str, ...]:
        worker = self.targets[target].worker
        return worker.cursor.loaded if worker else ()

    def _load(self, tables: Sequence[TableInfo], names: tuple[str, ...], incarnation: Incarnation) -> None:
        only = None if len(names) == len(self.targets) else names
        if not self.settings.initial_load:
            markers = tuple(Marker("loaded", t.qualified) for t in tables)
            self._append([Entry(markers, incarnation=incarnation.number, targets=only)])
            return
        if self.state != "streaming":
            self.state = "loading"
        what = Load(tables, incarnation.base, incarnation.number, only)
        for entry in load(self.settings, what, self._stop, self._talk, self._loading):
            self._append([entry])
            for item in entry.items:
                if isinstance(item, Marker) and item.kind == "loaded":
                    self.loading.pop(item.table, None)
                    for name in ("", *names):
                        self._reports.gap_closed(self.name, target=name, table=item.table)

    def _loading(self, progress: LoadProgress) -> None:
        self.loading[progress.table] = progress
        self._on_load(progress)

    def _reload(self, tables: list[TableInfo]) -> None:
        """Read tables again beside the stream; what fails is due again."""
        incarnation = self.log.incarnation()
        try:
            if incarnation is not None:
                self._load(tables, tuple(self.targets), incarnation)
        except SynclineError as error:
            with self._lock:
                self._due.update(t.qualified for t in tables)
            self._reports.alert("SL-RELOAD", "error", self.name, error)
        else:
            self._reports.resolve("SL-RELOAD", self.name)

    def reload_due(self) -> None:
        """Start reading what is due, unless a load runs already. Called by housekeeping."""
        if self.state != "streaming" or (self._loader and self._loader.is_alive()):
            return
        with self._lock:
            tables = [t for t in self.tables if t.qualified in self._due]
            self._due.clear()
        if tables:
            self._loader = threading.Thread(target=self._reload, args=(tables,), name=f"load-{self.name}", daemon=True)
            self._loader.start()

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

    def _schema_changed(self, before: TableSchema, after: TableSchema) -> None:
        """A new shape: unless it only dropped columns, rows may have changed without a row event; read them again."""
        old = {c.name: c for c in before.columns}
        if all(old.get(c.name) == c for c in after.columns):
            return
        self._talk(f"table {after.qualified} changed its columns; it is read again")
        self.resync([after.qualified])

    def _refused(self, name: str, table: str, error: SynclineError) -> None:
        """A target can't take one table: a gap of that table there, until someone mends it and asks for a resync."""
        self._reports.gap(self.name, error, target=name, table=table)

    def _purge_below(self, name: str) -> int | None:
        worker = self.targets[name].worker
        if worker is None or self.loading or self._due or (self._loader and self._loader.is_alive()):
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


def _retire(folder: Path) -> None:
    """Put a log aside: its damage may want to be looked at. The one before is let go."""
    aside = folder.with_name(folder.name + ".retired")
    shutil.rmtree(aside, ignore_errors=True)
    if folder.exists():
        folder.rename(aside)


def hold_name(target: str, table: str) -> str:
    """The name under which the log keeps what a paused table has yet to see."""
    return f"{target}/{table}"
