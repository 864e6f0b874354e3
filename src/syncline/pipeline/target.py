"""One target of one source: its store, its worker's thread, and the state that status shows."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from syncline.apply.heal import Healer
from syncline.apply.parking import Parking
from syncline.apply.worker import Surroundings, Worker
from syncline.change import Cursor, Marker, TableSchema
from syncline.config import ApplyConfig
from syncline.errors import Gap, SynclineError, defect
from syncline.log import Log
from syncline.mapping import MappedTable, TargetMapping
from syncline.pipeline.board import Board
from syncline.stores import Store

__all__ = ["Target", "TargetEvents"]


@dataclass(frozen=True, slots=True)
class TargetEvents:
    """What a target tells its source, and asks of it.

    ``failed`` answers whether the target begins anew by itself. ``retrying`` with None: it works again. ``caught_up``
    answers whether that is recorded; if not, the target does it again. ``purge_below`` answers None while older changes
    could still come. ``overruled``: so many edits lost against another; ``began_at``: whether changes of an origin
    began at the target.
    """

    failed: Callable[[str, SynclineError], bool]
    retrying: Callable[[str, SynclineError | None], None]
    schema_changed: Callable[[str, TableSchema], None]
    purge_below: Callable[[str], int | None]
    caught_up: Callable[[str, str], bool]
    refused: Callable[[str, str, SynclineError], None]
    loaded: Callable[[str, str], None]
    overruled: Callable[[str, int], None]
    began_at: Callable[[str, str], bool]


class Target:
    """Runs a :class:`~syncline.apply.worker.Worker` in a thread. ``mapping`` says which tables it takes, and what
    becomes of them, ``board`` which of them it takes just now."""

    def __init__(self, name: str, store: Store, mapping: TargetMapping, events: TargetEvents) -> None:
        self.name = name
        self.store = store
        self.mapping = mapping
        self.board = Board()
        self.error: SynclineError | None = None
        self._events = events
        self._thread: threading.Thread | None = None
        self._abandoned: Worker | None = None
        self.worker: Worker | None = None

    def start(self, log: Log, cursor: Cursor, config: ApplyConfig, parking: Parking, healer: Healer) -> None:
        """Apply from this cursor on."""
        self.error = None
        events, name = self._events, self.name
        around = Surroundings(self, parking, healer, partial(events.began_at, name), partial(events.overruled, name))
        self.worker = Worker(self.name, log, self.store, cursor, config, around)
        self.board.begin(cursor.loaded)
        log.advance(self.name, cursor.position)
        self._thread = threading.Thread(target=self._run, args=(self.worker,), name=f"apply-{self.name}", daemon=True)
        self._thread.start()

    @property
    def running(self) -> bool:
        """Whether changes are applied, or wait to be."""
        return self._thread is not None and self._thread.is_alive()

    def ask_to_stop(self) -> None:
        """Have it end behind the step in progress; ``running`` tells when it did."""
        if self.worker:
            self.worker.stop()

    def stop(self, timeout_s: float) -> None:
        """End behind the step in progress. After ``timeout_s`` nobody waits any more: that step may find its store
        closed, and is done again from the target's own cursor."""
        self.ask_to_stop()
        if self._thread:
            self._thread.join(timeout_s)
        self._abandoned = self.worker if self.running else None

    def _run(self, worker: Worker) -> None:
        try:
            worker.run()
            worker.progress.state = "stopped"
        except SynclineError as error:
            self._fail(worker, error)
        except Exception as error:  # noqa: BLE001 - Guarantee 8: a defect stops this target only, and says so
            self._fail(worker, defect(f"Target {self.name}", error))

    def _fail(self, worker: Worker, error: SynclineError) -> None:
        if worker is self._abandoned:
            worker.progress.state = "stopped"
            return
        worker.progress.state = "gap" if isinstance(error, Gap) else "failed"
        worker.progress.message = str(error)
        if not self._events.failed(self.name, error):
            self.error = error

    # ------------------------------------------------------------------------------------------ Host, for the worker

    def paused(self) -> bool:
        return self.board.paused()

    def wanted(self, table: str) -> bool:
        return self.mapping.takes(table) and self.board.wanted(table)

    def mapped(self, schema: TableSchema) -> MappedTable:
        return self.mapping.table(schema)

    def mapping_digest(self, table: str) -> str:
        return self.mapping.digest(table)

    def since(self, table: str) -> int:
        return self.board.since(table)

    def passing(self, marker: Marker) -> bool:
        return self.board.passing(marker)

    def resumed(self) -> list[tuple[str, int]]:
        return self.board.resumed()

    def caught_up(self, table: str) -> None:
        if self._events.caught_up(self.name, table):
            self.board.caught_up(table)

    def purge_below(self) -> int | None:
        return self._events.purge_below(self.name)

    def loaded(self, table: str) -> None:
        self._events.loaded(self.name, table)

    def schema_changed(self, schema: TableSchema) -> None:
        self._events.schema_changed(self.name, schema)

    def refused(self, table: str, error: SynclineError) -> None:
        self.board.open_gap(table)
        self._events.refused(self.name, table, error)

    def retrying(self, error: SynclineError | None) -> None:
        if self.worker:
            self.worker.progress.message = str(error) if error else ""
        self._events.retrying(self.name, error)
