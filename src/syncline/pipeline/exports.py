"""Exports: stores that give their copy to readers in files are asked for them now and then, beside the stream."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from typing import Any

from syncline.errors import SynclineError, defect
from syncline.pipeline.reports import Reports
from syncline.stores import Store

__all__ = ["Exports"]

_TICK_S = 0.2


class Exports:
    """One thread for all targets that export (``stores``, by the target's name); none without any.

    A failed export is an alert of its target and is tried again at its next time; it ends nothing.
    """

    def __init__(self, stores: Mapping[str, Store], reports: Reports) -> None:
        self._due: dict[str, float] = {}
        self._stores: dict[str, Any] = {n: s for n, s in stores.items() if getattr(s, "export_every_s", None)}
        self._reports = reports
        self._failed: dict[str, str] = {}  # the code of what failed last, '' if nothing did
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="exports", daemon=True)

    def start(self) -> None:
        if self._stores:
            self._thread.start()

    def stop(self, timeout_s: float = 10.0) -> None:
        """End behind the export that is under way, or leave it: one that was not finished is not seen by anybody."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(timeout_s)

    def _run(self) -> None:
        while not self._stop.wait(_TICK_S):
            for name, store in self._stores.items():
                if time.monotonic() >= self._due.get(name, 0.0) and not self._stop.is_set():
                    self._tell(name, self._attempt(store))
                    self._due[name] = time.monotonic() + store.export_every_s

    def _attempt(self, store: Any) -> SynclineError | None:
        try:
            store.export()
        except SynclineError as error:
            return error
        except Exception as error:  # noqa: BLE001 - a defect in an export must not end those of others without a word
            return defect("The export", error)
        return None

    def _tell(self, name: str, error: SynclineError | None) -> None:
        if self._stop.is_set():
            return  # the store was closed under it
        subject, before = f"{name}/export", self._failed.get(name)
        if error is None and before != "":
            self._reports.recovered([subject])  # what earlier runs said of it too
        elif error is not None and error.code != before:
            self._reports.alert(error.code, "error", subject, error)
        self._failed[name] = error.code if error is not None else ""
