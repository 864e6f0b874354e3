"""The targets of one source: opening and starting them, mending the gap of one alone, and acting on what they tell."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any, Protocol

import msgspec

from syncline.apply.parking import Parking
from syncline.capture import Identity
from syncline.capture.tables import TableInfo
from syncline.change import Cursor, Position, TableSchema
from syncline.errors import Damaged, Gap, Receded, SynclineError, Unavailable
from syncline.log import Incarnation, Log
from syncline.logs import logger
from syncline.pipeline.context import Context
from syncline.pipeline.pauses import apply_pauses, hold_name
from syncline.pipeline.target import Target, TargetEvents
from syncline.stores import Store

_log = logger()

__all__ = ["Owner", "Targets"]

# How long a target may take for the step it is in before it begins anew.
_STOP_S = 30.0


class Owner(Protocol):
    """What the targets ask of their source."""

    log: Log
    stopping: threading.Event

    @property
    def tables(self) -> list[TableInfo]:
        """The tables that are captured."""

    def read_again(self, tables: Sequence[str], target: str | None = None) -> None:
        """Have tables read again beside the stream, for one target or for all. Any thread."""

    def start_over(self) -> None:
        """Read everything again, from a new log on. Any thread."""

    @property
    def loading(self) -> bool:
        """Whether tables, or rows to repair, are being read, or are about to be."""


class Targets:
    """All targets of one source, ``by_name``.

    A target's gap is its own (Guarantee 8): it begins anew at the end of the log and has its tables read again, while
    the others go on. Only what damages the log itself concerns all of them.
    """

    def __init__(self, context: Context, stores: dict[str, Store], owner: Owner) -> None:
        self._context = context
        self._owner = owner
        events = TargetEvents(
            failed=self._failed,
            retrying=self._retrying,
            schema_changed=self._schema_changed,
            purge_below=self._purge_below,
            caught_up=self._caught_up,
            refused=self._refused,
            loaded=self._loaded,
            overruled=self._overruled,
            began_at=context.config.began_at,
        )
        mappings = {name: context.config.targets[name].mapping({}) for name in stores}
        self.by_name = {name: Target(name, store, mappings[name], events) for name, store in stores.items()}
        self._starting = threading.Lock()  # the capture's thread starts targets, and housekeeping does
        self._cursors: dict[str, Cursor | None] = {}
        self._renewing: set[str] = set()
        self._receded: set[str] = set()  # stand before where we left them: opened anew, and go on from there
        self._from_scratch: set[str] = set()  # behind a reset: tables in a gap are tried again too
        self._identity: Identity | None = None

    @property
    def cursors(self) -> list[Cursor | None]:
        """What the targets that could be opened had."""
        return list(self._cursors.values())

    @property
    def renewing(self) -> bool:
        """Whether a target is about to begin anew, or to go on from where it went back to."""
        return bool(self._renewing or self._receded)

    @property
    def all_failed(self) -> bool:
        return bool(self.by_name) and all(t.error is not None for t in self.by_name.values())

    def missing(self, name: str) -> list[str]:
        """Tables that a running target does not have and will not get: those in a gap and the paused ones can wait."""
        target = self.by_name[name]
        if target.worker is None or not target.running:
            return []
        waiting = target.board.gaps | set(target.board.held())
        taken = {t.qualified for t in self._owner.tables if target.mapping.takes(t.qualified)}
        return sorted(taken - set(target.worker.cursor.loaded) - waiting)

    # ----------------------------------------------------------------------------------------------- open and start

    def open(self) -> None:
        """Open the stores that are not open yet, and learn where they stand.

        Raises:
            Unavailable: a store is away, and the log is new: its versions have to be above those of every target
                (correctness rule 1).
        """
        with self._starting:
            for name in self.by_name:
                self._open(name)

    def _open(self, name: str) -> None:
        target = self.by_name[name]
        if name in self._cursors or target.error is not None:
            return
        try:
            self._cursors[name] = target.store.open(self._context.name)
        except Unavailable as error:
            if self._owner.log.incarnation() is None:
                raise
            self._retrying(name, error)
        except SynclineError as error:
            if not self._failed(name, error):
                target.error = error

    def start(self, incarnation: Incarnation, identity: Identity) -> None:
        """Start the targets that are open and not in a gap."""
        self._identity = identity
        with self._starting:
            for name in self.by_name:
                self._start(name, incarnation, identity)
            self._forget_removed()

    def start_late(self) -> None:
        """Start targets that were away when the source started, or that begin anew. What they lack is read for them."""
        with self._starting:
            again = self._renewing | self._receded
            late = [name for name in self.by_name if name in again or name not in self._cursors]
            incarnation = self._owner.log.incarnation() if late else None
            if incarnation is None or self._identity is None:
                return
            for name in late:
                anew = name in self._renewing
                if name in again:
                    self._let_go(name)
                back = name in self._receded
                self._receded.discard(name)
                self._open(name)
                self._start(name, incarnation, self._identity)
                if back and self.by_name[name].running:
                    self._context.reports.recovered([f"{self._context.name}/{name}"])
                if anew and name not in self._renewing:
                    self._owner.read_again([t.qualified for t in self._owner.tables], name)

    def _start(self, name: str, incarnation: Incarnation, identity: Identity) -> None:
        target = self.by_name[name]
        if target.worker is not None or target.error is not None or name not in self._cursors:
            return
        if not self._introduced(target, identity):
            return
        cursor = self._beginning(target, incarnation)
        if cursor is None:
            return
        monitored = {t.qualified for t in self._owner.tables if target.mapping.takes(t.qualified)}
        left = sorted(set(cursor.loaded) - monitored)
        if left:
            self._context.talk(f"target {name} takes no more: {', '.join(left)}; their rows stay (see `syncline plan`)")
        cursor = msgspec.structs.replace(
            cursor,
            loaded={t: known for t, known in cursor.loaded.items() if t in monitored},
            incarnation=incarnation.number,
            base=incarnation.base,
            system_identifier=identity.system_identifier,
        )
        self._restore(target, cursor)
        parking = Parking(self._context.control, self._context.name, name)
        target.start(self._owner.log, cursor, self._context.config.apply, parking, self._heal)
        self._renewing.discard(name)

    def _introduced(self, target: Target, identity: Identity) -> bool:
        """Whether the target knows its source, if its store asks for that: it must never copy a table onto itself."""
        introduce = getattr(target.store, "source_is", None)
        try:
            if introduce is not None:
                introduce(identity.system_identifier, identity.timeline, identity.database)
        except Unavailable as error:
            del self._cursors[target.name]  # opened again with the next start_late
            self._retrying(target.name, error)
            return False
        except SynclineError as error:
            if not self._failed(target.name, error):
                target.error = error
            return False
        return True

    def _beginning(self, target: Target, incarnation: Incarnation) -> Cursor | None:
        """Where a target begins: at its own cursor, or at the end of the log with nothing loaded. None: it is in a gap,
        and a person decides."""
        log, cursor = self._owner.log, self._cursors[target.name]
        end = Position(log.uuid, log.status().end)
        if cursor is None:
            return Cursor(self._context.name, end, incarnation=incarnation.number)
        anew = msgspec.structs.replace(cursor, position=end, loaded={}, through=0, place=0, amid="")
        if target.name in self._renewing:
            return anew
        if self._reachable(target, cursor):
            return cursor
        return anew if self._context.resyncs or not cursor.loaded else None

    def _reachable(self, target: Target, cursor: Cursor) -> bool:
        """Whether the log continues where the target stands; else a gap (correctness rule 9)."""
        try:
            self._owner.log.read(cursor.position, 1)
        except Gap as gap:
            if cursor.loaded:
                self._context.reports.gap(self._context.name, gap, target=target.name, ends=not self._context.resyncs)
                target.error = None if self._context.resyncs else gap
            return False
        return True

    def _restore(self, target: Target, cursor: Cursor) -> None:
        """Take over what an earlier run recorded, before anything is applied: pauses, and gaps of single tables."""
        context = self._context
        apply_pauses(context.control, context.name, target, self._owner.log, cursor, context.control.pauses())
        again = context.resyncs or target.name in self._from_scratch or target.name in self._renewing
        for gap in context.control.gaps():
            table = gap["table_name"]
            if gap["source"] != context.name or not table or gap["target"] not in ("", target.name):
                continue
            target.board.open_gap(table)
            if again:
                self._owner.read_again([table], target.name)
            else:
                context.talk(
                    f"table {table} is still in a gap at target {target.name}: {gap['reason']} "
                    f"When that is mended: `syncline resync --table {table} --target {target.name}`."
                )
        self._from_scratch.discard(target.name)

    def _forget_removed(self) -> None:
        """Targets that are no longer configured must not hold back trimming. Brought back later, they are in a gap."""
        for noted in self._owner.log.status().cursors:
            if noted.partition("/")[0] not in self.by_name:
                self._context.talk(f"target {noted} is no longer configured; the log keeps nothing for it")
                self._owner.log.forget(noted)

    # ------------------------------------------------------------------------------------------------ beginning anew

    def renew(self, name: str) -> None:
        """Have one target begin anew, whatever it is in: from the end of the log, with every table read for it alone.
        Any thread; done with the next :meth:`start_late`."""
        self._renewing.add(name)

    def _let_go(self, name: str) -> None:
        """Close one target's store: what is damaged in it is put aside by that, and opening it begins a new one."""
        target = self.by_name[name]
        if target.worker is None and target.error is None and name not in self._cursors:
            return  # let go already, and away since
        target.stop(_STOP_S)
        target.worker = None
        target.error = None
        self._cursors.pop(name, None)
        target.store.close()

    def reset(self) -> None:
        """Stop all targets and open them again as if nothing was loaded, for a new log.

        Raises:
            SynclineError: a store could not be opened. To be called again.
        """
        with self._starting:
            for target in self.by_name.values():
                target.stop(_STOP_S)
                target.worker = None
                target.error = None
                target.store.close()
                cursor = target.store.open(self._context.name)
                if cursor is not None:
                    cursor = msgspec.structs.replace(cursor, loaded={})
                self._cursors[target.name] = cursor
            self._renewing.clear()
            self._from_scratch = set(self.by_name)

    def ask_to_stop(self) -> None:
        """Have each target end behind the step it is in."""
        for target in self.by_name.values():
            target.ask_to_stop()

    def close(self) -> None:
        """Release the stores. Nobody waits any more for a target that has not ended."""
        for target in self.by_name.values():
            target.stop(0)
            target.store.close()

    # ---------------------------------------------------------------------------------------------- what targets tell

    def mended(self) -> None:
        """The log continues those that run, and whatever had to be read is in it: their gaps are closed."""
        context = self._context
        working = [n for n, t in self.by_name.items() if t.worker is not None and t.error is None]
        for name in working:
            context.reports.gap_closed(context.name, target=name)
        context.reports.recovered([context.name, *(f"{context.name}/{name}" for name in working)])

    def _failed(self, name: str, error: SynclineError) -> bool:
        """Record what ended a target; whether it is mended without a person."""
        context = self._context
        if not isinstance(error, Gap):
            context.reports.alert(error.code, "critical", f"{context.name}/{name}", error, ends=True)
            return False
        if isinstance(error, Receded):
            context.reports.alert(error.code, "warning", f"{context.name}/{name}", error)
            self._receded.add(name)
            return True
        context.reports.gap(context.name, error, target=name, ends=not context.resyncs)
        if context.resyncs and isinstance(error, Damaged):
            self._owner.start_over()  # the log is damaged, which other targets have yet to find
        elif context.resyncs:
            context.talk(f"target {name} is in a gap; every table is read again for it")
            self.renew(name)
        return context.resyncs

    def _retrying(self, name: str, error: SynclineError | None) -> None:
        subject = f"{self._context.name}/{name}"
        if error is None:
            self._context.reports.resolve("SL-TARGET-AWAY", subject)
        else:
            self._context.reports.alert("SL-TARGET-AWAY", "warning", subject, error)

    def _schema_changed(self, name: str, schema: TableSchema) -> None:
        """A new shape arrived at a target: rows may have changed without a row event; read them again."""
        self._context.talk(f"table {schema.qualified} changed its columns; it is read again")
        self._owner.read_again([schema.qualified], name)

    def _overruled(self, name: str, count: int) -> None:
        _log.warning("edits overruled", source=self._context.name, target=name, edits=count)

    def _refused(self, name: str, table: str, error: SynclineError) -> None:
        """A target can't take one table: a gap of that table there, until someone mends it and asks for a resync."""
        self._context.reports.gap(self._context.name, error, target=name, table=table)

    def _loaded(self, name: str, table: str) -> None:
        """What was read is at the target: whatever it refused or missed of the table before is mended; with the last
        table, the target."""
        context = self._context
        context.reports.gap_closed(context.name, target=name, table=table)
        if not self.missing(name):
            context.reports.gap_closed(context.name, target=name)
            context.reports.recovered([f"{context.name}/{name}"])
        workers = [t.worker for t in self.by_name.values()]
        if all(w is not None and table in w.cursor.loaded for w in workers):
            context.reports.gap_closed(context.name, table=table)

    def _purge_below(self, name: str) -> int | None:
        worker = self.by_name[name].worker
        if worker is None or self._owner.loading:
            return None
        try:
            parked = self._context.control.oldest_dead_letter(self._context.name, name)
        except Unavailable:
            return None
        # A stream may still bring a change below the greatest that came; one that it is through with, never.
        oldest = min(worker.cursor.version, worker.cursor.through)
        if self.by_name[name].board.held():
            return None
        return oldest if parked is None else min(oldest, parked)  # a letter may be sent once more (rule 17)

    def _caught_up(self, name: str, table: str) -> bool:
        try:
            self._context.control.release(self._context.name, name, table)
        except Unavailable:
            return False
        self._owner.log.forget(hold_name(name, table))
        return True

    def _heal(self, schema: TableSchema, keys: Any, xids: Sequence[int]) -> Any:
        return self._context.source.heal(schema, keys, xids, self._owner.stopping)
