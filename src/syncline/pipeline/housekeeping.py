"""What has to be done now and then: status rows, pauses, requests, trimming, lag."""

from __future__ import annotations

import threading
import time
from typing import Any

import psycopg
import structlog

from syncline.capture.source import connect, translated
from syncline.catalog.repository import ControlSchema, Request, StatusRow
from syncline.errors import SynclineError, Unavailable
from syncline.pipeline.pauses import apply_pauses
from syncline.pipeline.reports import Reports
from syncline.pipeline.source import SourcePipeline

__all__ = ["Housekeeping"]

_log = structlog.get_logger()
_EVERY_S = 1.0
_REFRESH_S = 10.0


class Housekeeping:
    """One thread for all sources. Nothing here is on the path of a change; what fails is done at the next tick."""

    def __init__(self, sources: dict[str, SourcePipeline], control: ControlSchema, reports: Reports) -> None:
        self._sources = sources
        self._control = control
        self._reports = reports
        self._requests: dict[str, list[Request]] = {}
        self._connections: dict[str, psycopg.Connection[Any]] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="housekeeping", daemon=True)
        self._refreshed: dict[str, float] = {}
        self.lags: dict[str, int] = {}

    def prepare(self) -> None:
        """Before any source runs: requests left by earlier runs."""
        for name in self._sources:
            self._requests[name] = self._control.take_requests(name, again=True)

    def take_resync(self, source: str) -> bool:
        """Whether a whole resync of the source is waiting; narrower requests are handed on once it streams."""
        return any(r.tables is None for r in self._requests[source])

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Write the last status and end."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(10)
        for connection in self._connections.values():
            connection.close()

    def _run(self) -> None:
        while not self._stop.is_set():
            self._tick()
            self._stop.wait(_EVERY_S)
        self._tick()

    def _tick(self) -> None:
        try:
            for name, source in self._sources.items():
                self._measure(name, source)
                source.log.trim()
                self._reports.status(_rows(name, source, self.lags.get(name)))
            self._apply_pauses()
            for name, source in self._sources.items():
                self._serve(name, source)
                self._refresh(source)
            self._reports.flush()
        except Unavailable as error:
            _log.debug("housekeeping waits", error=str(error))
        except SynclineError as error:
            _log.warning("housekeeping failed", error=str(error))

    def _refresh(self, source: SourcePipeline) -> None:
        """Look for new tables now and then, and at once when a load is due."""
        now = time.monotonic()
        if source.loads.due or now - self._refreshed.get(source.name, 0.0) >= _REFRESH_S:
            self._refreshed[source.name] = now
            source.refresh()

    def _measure(self, name: str, source: SourcePipeline) -> None:
        """How many bytes of WAL the log is behind the source."""
        dsn = source.settings.dsn.get_secret_value()
        try:
            if name not in self._connections or self._connections[name].closed:
                self._connections[name] = connect(dsn, application="syncline-housekeeping")
            with translated(dsn):
                row = self._connections[name].execute("select (pg_current_wal_lsn() - '0/0'::pg_lsn)::int8").fetchone()
        except SynclineError:
            self.lags.pop(name, None)  # unknown while the source is away; its own thread raises the alert
            return
        place = source.log.status().place
        if row and place:
            self.lags[name] = max(0, int(row[0]) - place)

    def _serve(self, name: str, source: SourcePipeline) -> None:
        """Hand on requests: whole resyncs at once, single tables to the next load."""
        self._requests[name] += self._control.take_requests(name)
        for request in self._requests[name]:
            source.resync(None if request.tables is None else list(request.tables))
            self._control.finish_request(request.id, "handed to the engine")
        self._requests[name] = []

    def _apply_pauses(self) -> None:
        pauses = self._control.pauses()
        for name, source in self._sources.items():
            for target in source.targets.values():
                if target.worker is not None:
                    apply_pauses(self._control, name, target, source.log, target.worker.cursor, pauses)


def _rows(name: str, source: SourcePipeline, lag: int | None) -> list[StatusRow]:
    log = source.log.status()
    message = str(source.error) if source.error else ""
    rows = [
        StatusRow(name, state=source.state, log=log.log, n=log.end, place=log.place, lag_bytes=lag, message=message)
    ]
    for target in source.targets.values():
        worker = target.worker
        if worker is None:
            failed = str(target.error) if target.error else ""
            rows.append(StatusRow(name, target.name, state="failed" if failed else "starting", message=failed))
            continue
        progress, cursor = worker.progress, worker.cursor
        behind = log.end > cursor.position.n
        rows.append(
            StatusRow(
                name,
                target.name,
                state=progress.state,
                log=cursor.position.log,
                n=cursor.position.n,
                place=cursor.place,
                through=cursor.through,
                rows_applied=progress.rows,
                rows_per_s=progress.rate(),
                lag_s=max(0.0, time.time() - progress.last_commit_us / 1e6) if behind else 0.0,
                message=progress.message,
            )
        )
    return rows
