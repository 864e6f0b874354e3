"""Which tables have to be read, for whom, and doing it: before streaming, or beside it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

from syncline.capture.snapshot import Load, LoadProgress, load
from syncline.capture.source import SourceConfig
from syncline.capture.tables import TableInfo, reshaped, table_schema
from syncline.change import Entry, Loaded, Marker
from syncline.errors import SynclineError, defect
from syncline.log import Incarnation
from syncline.pipeline.reports import Reports
from syncline.pipeline.target import Target

__all__ = ["Loads"]

# A load that failed is tried again after this time.
_AGAIN_S = 3.0


class Loads:
    """The loads of one source. ``append`` writes to the log; ``progress`` tells how far the tables being read are;
    ``finished`` counts the loads that came to an end, good or bad."""

    def __init__(
        self,
        name: str,
        settings: SourceConfig,
        targets: dict[str, Target],
        reports: Reports,
        append: Callable[[list[Entry]], None],
        stop: threading.Event,
        talk: Callable[[str], None],
        on_progress: Callable[[LoadProgress], None],
    ) -> None:
        self._name = name
        self._settings = settings
        self._targets = targets
        self._reports = reports
        self._append = append
        self._stop = stop
        self._talk = talk
        self._on_progress = on_progress
        self._lock = threading.Lock()
        self._due: set[str] = set()
        self._thread: threading.Thread | None = None
        self.progress: dict[str, LoadProgress] = {}
        self.finished = 0

    @property
    def busy(self) -> bool:
        """Whether tables are being read, or are about to be."""
        with self._lock:
            return bool(self._due or self.progress) or (self._thread is not None and self._thread.is_alive())

    @property
    def due(self) -> bool:
        """Whether a load beside the stream can and should start."""
        with self._lock:
            return bool(self._due) and not (self._thread is not None and self._thread.is_alive())

    def request(self, tables: Sequence[str]) -> None:
        """Have these tables read again beside the stream. Any thread."""
        with self._lock:
            self._due.update(tables)

    def join(self, timeout_s: float) -> None:
        """Wait for a load beside the stream to end (it does soon once the engine stops)."""
        if self._thread:
            self._thread.join(timeout_s)

    def load_missing(self, tables: Sequence[TableInfo], incarnation: Incarnation, stale: Sequence[str]) -> None:
        """Read tables that a target does not have yet, and the stale ones. Before streaming, so that partial rows find
        their rows."""
        wanted: dict[tuple[str, ...], list[TableInfo]] = {}
        running = {n: t.worker.cursor.loaded for n, t in self._targets.items() if t.worker is not None}
        for info in tables:
            old = info.qualified in stale
            names = tuple(n for n, loaded in running.items() if old or self._is_missing(n, info, loaded))
            if names:
                wanted.setdefault(names, []).append(info)
        for names, infos in wanted.items():
            self._load(infos, names, incarnation)

    def _is_missing(self, target: str, info: TableInfo, loaded: dict[str, Loaded]) -> bool:
        """Whether a target needs the table read: it never was, or its rows may have changed without a row event."""
        known = loaded.get(info.qualified)
        if known is None:
            waits = info.qualified in self._targets[target].board.gaps and self._settings.on_gap != "resync"
            return not waits
        return reshaped(known.shape, info.shape)

    def start_due(self, tables: Sequence[TableInfo], incarnation: Incarnation) -> None:
        """Begin to read what was requested, as these tables are now, in a thread of its own."""
        with self._lock:
            infos = [t for t in tables if t.qualified in self._due]
            self._due.clear()
        if infos:
            self._thread = threading.Thread(
                target=self._reload, args=(infos, incarnation), name=f"load-{self._name}", daemon=True
            )
            self._thread.start()

    def _reload(self, tables: list[TableInfo], incarnation: Incarnation) -> None:
        """What fails is due again."""
        try:
            self._load(tables, tuple(self._targets), incarnation)
        except SynclineError as error:
            self._failed(tables, error)
        except Exception as error:  # noqa: BLE001 - a defect must not leave the load undone without a word
            self._failed(tables, defect(f"The load of source {self._name}", error))
        else:
            self._reports.resolve("SL-RELOAD", self._name)
        finally:
            self.finished += 1
            self.progress.clear()

    def _failed(self, tables: Sequence[TableInfo], error: SynclineError) -> None:
        self._stop.wait(_AGAIN_S)
        self.request([t.qualified for t in tables])
        if not self._stop.is_set():
            self._reports.alert("SL-RELOAD", "error", self._name, error)

    def _load(self, tables: Sequence[TableInfo], names: tuple[str, ...], incarnation: Incarnation) -> None:
        only = None if len(names) == len(self._targets) else names
        if not self._settings.initial_load:
            markers = tuple(
                Marker("loaded", t.qualified, Loaded(t.shape, columns=table_schema(t).outline)) for t in tables
            )
            self._append([Entry(markers, incarnation=incarnation.number, targets=only)])
            return
        what = Load(tables, incarnation.base, incarnation.number, only)
        for entry in load(self._settings, what, self._stop, self._talk, self._note):
            self._append([entry])
            for item in entry.items:
                if isinstance(item, Marker) and item.kind == "loaded":
                    self.progress.pop(item.table, None)
                    self._reports.gap_closed(self._name, table=item.table)

    def _note(self, progress: LoadProgress) -> None:
        self.progress[progress.table] = progress
        self._on_progress(progress)
