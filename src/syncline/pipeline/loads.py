"""Which tables have to be read, for whom, and doing it: before streaming, or beside it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence

from syncline.capture import LoadProgress
from syncline.capture.schema import table_schema
from syncline.capture.snapshot import Load, load
from syncline.capture.tables import TableInfo, reshaped
from syncline.change import Entry, Loaded, Marker
from syncline.errors import SynclineError, defect
from syncline.log import Incarnation
from syncline.pipeline.context import Context
from syncline.pipeline.target import Target

__all__ = ["Loads"]

# The tables to read, by the targets that need them.
Wanted = dict[tuple[str, ...], list[TableInfo]]

# A load that failed is tried again after this time.
_AGAIN_S = 3.0


class Loads:
    """The loads of one source. ``append`` writes to the log; ``progress`` tells how far the tables being read are;
    ``finished`` counts the loads that came to an end, good or bad.

    A load is for the targets that need it: its entries name them, and the others pass them over (correctness rule 10).
    """

    def __init__(
        self,
        context: Context,
        targets: dict[str, Target],
        append: Callable[[list[Entry]], None],
        stop: threading.Event,
    ) -> None:
        self._context = context
        self._targets = targets
        self._append = append
        self._stop = stop
        self._lock = threading.Lock()
        self._due: dict[str, set[str]] = {}  # tables, and the targets that need them
        self._thread: threading.Thread | None = None
        self.progress: dict[str, LoadProgress] = {}
        self.finished = 0

    @property
    def busy(self) -> bool:
        """Whether tables are being read, or are about to be."""
        with self._lock:
            return bool(self._due or self.progress) or self.running

    @property
    def due(self) -> bool:
        """Whether a load beside the stream can and should start."""
        with self._lock:
            return bool(self._due) and not self.running

    @property
    def running(self) -> bool:
        """Whether a load beside the stream is under way; it ends soon once the engine stops."""
        return self._thread is not None and self._thread.is_alive()

    def request(self, tables: Iterable[str], target: str | None = None) -> None:
        """Have these tables read again beside the stream, for one target or for all. Any thread."""
        with self._lock:
            for table in tables:
                self._due.setdefault(table, set()).update([target] if target is not None else self._targets)

    def load_missing(self, tables: Sequence[TableInfo], incarnation: Incarnation, stale: Sequence[str]) -> None:
        """Read tables that a target does not have yet, and the stale ones. Before streaming, so that partial rows find
        their rows."""
        wanted: Wanted = {}
        running = {n: t.worker.cursor.loaded for n, t in self._targets.items() if t.worker is not None}
        for info in tables:
            old = info.qualified in stale
            takers = {n: loaded for n, loaded in running.items() if self._targets[n].mapping.takes(info.qualified)}
            names = tuple(n for n, loaded in takers.items() if old or self._is_missing(n, info, loaded))
            for some in self._apart(names):
                wanted.setdefault(some, []).append(info)
        try:
            for names, infos in wanted.items():
                self._load(infos, names, incarnation)
        finally:
            self.progress.clear()  # a table that was dropped meanwhile is being read no more

    def _apart(self, names: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
        """The targets that are loaded at once: all of them, but each alone where each has rows of its own."""
        if self._context.settings.routes:
            yield from ((name,) for name in names)
        elif names:
            yield names

    def _is_missing(self, target: str, info: TableInfo, loaded: dict[str, Loaded]) -> bool:
        """Whether a target needs the table read: it never was, or its rows may have changed without a row event."""
        known, mapping = loaded.get(info.qualified), self._targets[target].mapping
        if known is None:
            waits = info.qualified in self._targets[target].board.gaps and not self._context.resyncs
            return not waits
        # A changed mapping is a gap of the table at this target (correctness rule 21).
        return reshaped(known.shape, info.shape) or known.mapping != mapping.digest(info.qualified)

    def start_due(self, tables: Sequence[TableInfo], incarnation: Incarnation) -> None:
        """Begin to read what was requested, as these tables are now, in a thread of its own."""
        wanted: Wanted = {}
        with self._lock:
            for info in tables:
                due = self._due.get(info.qualified, ())
                names = tuple(n for n, t in self._targets.items() if n in due and t.mapping.takes(info.qualified))
                for some in self._apart(names):
                    wanted.setdefault(some, []).append(info)
            if wanted:  # before nothing is due any more: what was requested is at all times due or running
                self._thread = threading.Thread(
                    target=self._reload, args=(wanted, incarnation), name=f"load-{self._context.name}", daemon=True
                )
                self._thread.start()
            self._due.clear()

    def _reload(self, wanted: Wanted, incarnation: Incarnation) -> None:
        """What fails is due again."""
        try:
            while wanted:
                names = next(iter(wanted))
                self._load(wanted[names], names, incarnation)
                del wanted[names]
        except SynclineError as error:
            self._failed(wanted, error)
        except Exception as error:  # noqa: BLE001 - a defect must not leave the load undone without a word
            self._failed(wanted, defect(f"The load of source {self._context.name}", error))
        else:
            self._context.reports.resolve("SL-RELOAD", self._context.name)
        finally:
            self.finished += 1
            self.progress.clear()

    def _failed(self, wanted: Wanted, error: SynclineError) -> None:
        self._stop.wait(_AGAIN_S)
        for names, infos in wanted.items():
            for name in names:
                self.request([info.qualified for info in infos], name)
        if not self._stop.is_set():
            self._context.reports.alert("SL-RELOAD", "error", self._context.name, error)

    def _load(self, tables: Sequence[TableInfo], names: tuple[str, ...], incarnation: Incarnation) -> None:
        context = self._context
        only = None if len(names) == len(self._targets) else names
        if not context.settings.initial_load:
            markers = tuple(
                Marker("loaded", t.qualified, Loaded(t.shape, columns=table_schema(t).outline)) for t in tables
            )
            self._append([Entry(markers, incarnation=incarnation.number, targets=only)])
            return
        rows_of = names[0] if context.settings.routes else ""
        what = Load(tables, incarnation.base, incarnation.number, only, rows_of)
        for entry in load(context.source, what, self._stop, context.talk, self._note):
            self._append([entry])
            for item in entry.items:
                if isinstance(item, Marker) and item.kind == "loaded":
                    self.progress.pop(item.table, None)
                    if only is None:
                        context.reports.gap_closed(context.name, table=item.table)

    def _note(self, progress: LoadProgress) -> None:
        self.progress[progress.table] = progress
