"""Exports: stores that give their copy to readers in files are asked for them now and then, beside the stream."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence

from syncline.errors import SynclineError, defect
from syncline.pipeline.reports import Reports
from syncline.stores import Exporting, Store

__all__ = ["Exports"]

_TICK_S = 0.2
_SOON_S = 1.0  # until a target that had nothing to export just then is asked again


class Exports:
    """One thread for all targets that export; none without any. ``stores`` has a store for each source of a target, by
    the target's name: the copy is one, so the first that can export does it for all.

    A failed export is an alert of its target and is tried again at its next time; it ends nothing.
    """

    def __init__(self, stores: Mapping[str, Sequence[Store]], reports: Reports) -> None:
        exporting = {name: _exporting(many) for name, many in stores.items()}
        self._stores = {name: many for name, many in exporting.items() if many}
        self._silent = [f"{name}/export" for name, many in exporting.items() if not many]
        self._due: dict[str, float] = {}
        self._reports = reports
        self._failed: dict[str, str] = {}  # the code of what failed last, '' if nothing did
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="exports", daemon=True)

    def start(self) -> None:
        """Begin, and close what an earlier run said of targets that do not export any more."""
        if self._silent:
            self._reports.recovered(self._silent)
        if self._stores:
            self._thread.start()

    def stop(self) -> None:
        """Cut off the export that is under way: one that was not finished is not seen by anybody. None runs on
        return. Idempotent."""
        self._stop.set()
        while self._thread.is_alive():  # a store that is just being opened is asked again
            for many in self._stores.values():
                for store in many:
                    store.stop_export()
            self._thread.join(_TICK_S)

    def _run(self) -> None:
        while not self._stop.wait(_TICK_S):
            for name, many in self._stores.items():
                if time.monotonic() >= self._due.get(name, 0.0) and not self._stop.is_set():
                    self._due[name] = time.monotonic() + self._export(name, many)

    def _export(self, name: str, stores: Sequence[Exporting]) -> float:
        """Export, and tell how that went; seconds until the next time."""
        every_s = stores[0].export_every_s or 0.0
        try:
            if all(store.export() is None for store in stores):
                return min(_SOON_S, every_s)
            error = None
        except SynclineError as failed:
            error = failed
        except Exception as failed:  # noqa: BLE001 - a defect in an export must not end those of others without a word
            error = defect("The export", failed)
        self._tell(name, error)
        return every_s

    def _tell(self, name: str, error: SynclineError | None) -> None:
        subject, before = f"{name}/export", self._failed.get(name)
        if error is None and before != "":
            self._reports.recovered([subject])  # what earlier runs said of it too
        elif error is not None and error.code != before:
            self._reports.alert(error.code, "error", subject, error)
        self._failed[name] = error.code if error is not None else ""


def _exporting(stores: Sequence[Store]) -> list[Exporting]:
    return [store for store in stores if isinstance(store, Exporting) and store.export_every_s]
