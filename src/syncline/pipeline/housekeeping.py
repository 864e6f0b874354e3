"""What has to be done now and then: status rows, pauses, requests, trimming, lag."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import replace

from syncline.capture import IN_USE, PRESSURES
from syncline.capture.settings import PostgresSettings
from syncline.catalog.repository import ControlSchema, Request
from syncline.errors import SynclineError, Unavailable, defect
from syncline.logs import logger
from syncline.pipeline.outbox import EventStatus
from syncline.pipeline.pauses import apply_pauses
from syncline.pipeline.reports import Reports
from syncline.pipeline.source import SourcePipeline
from syncline.pipeline.status import source_status, status_rows

__all__ = ["Housekeeping"]

_log = logger()
_EVERY_S = 1.0
_REFRESH_S = 3.0
_WATCH_S = 10.0
_UNSEEN_S = 600.0  # what a source is pressed by is looked at again long before; an engine that is gone can't
_PARKED = "SL-PARKED"


class Housekeeping:
    """One thread for all sources. Nothing here is on the path of a change; what fails is done at the next tick."""

    def __init__(self, sources: dict[str, SourcePipeline], control: ControlSchema, reports: Reports) -> None:
        self._sources = sources
        self._control = control
        self._reports = reports
        self._requests: dict[str, list[Request]] = {}
        self._begun: set[int] = set()
        self._looks = {name: source.another_look() for name, source in sources.items()}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="housekeeping", daemon=True)
        self._refreshed: dict[str, float] = {}
        self._parked: dict[str, dict[str, str]] = {}  # what was said of parked changes, by source and subject
        self._count_at: dict[str, float] = {}
        self._pressing: dict[str, set[tuple[str, str]]] = {}  # alerts of the source's own state, by source
        self._watch_at: dict[str, float] = {}
        self._failed: dict[tuple[str, str], SynclineError] = {}
        self._events: dict[str, EventStatus] = {}
        self.lags: dict[str, int] = {}

    def prepare(self) -> None:
        """Before any source runs: requests left by earlier runs."""
        for name in self._sources:
            self._requests[name] = self._control.take_requests(name, again=True)

    def take_resync(self, source: str) -> bool:
        """Whether a whole resync of the source was waiting, which its caller begins; narrower requests are handed on
        once it streams."""
        waiting = self._requests[source]
        whole = {r.id for r in waiting if r.tables is None and not r.target}
        self._begun |= whole
        return bool(whole)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """End with a last round: what was done until now is noted as done, so that the next start does not do it again.
        For sources that are at rest but not noted as stopped yet."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(10)

    def close(self) -> None:
        """Write the last status of the sources, and release the connections. One that never started says nothing: it
        might be about another engine's sources."""
        if self._thread.ident is not None:
            for name, source in self._sources.items():
                self._attempt(self._tell, name, source)
            self._reports.flush()
        for events in self._events.values():
            events.close()
        for look in self._looks.values():
            look.close()

    def _run(self) -> None:
        while not self._stop.is_set():
            self._tick()
            self._stop.wait(_EVERY_S)
        self._tick()

    def _tick(self) -> None:
        """What fails holds up neither a source's other chores nor other sources (Guarantee 8)."""
        for name, source in self._sources.items():
            for chore in (
                self._measure,
                self._trim,
                self._tell,
                self._apply_pauses,
                self._serve,
                self._refresh,
                self._count_parked,
                self._watch,
                self._note_events,
            ):
                self._attempt(chore, name, source)
        self._reports.flush()

    def _attempt(self, chore: Callable[[str, SourcePipeline], bool | None], name: str, source: SourcePipeline) -> None:
        """Do one chore; one that returns False had nothing to do, and says nothing of what failed before."""
        key = (chore.__name__, name)
        failed: SynclineError | None = None
        try:
            if chore(name, source) is False:
                return
        except Unavailable as error:
            _log.debug("housekeeping waits", source=name, error=str(error))
            return
        except SynclineError as error:
            failed = error
        except Exception as error:  # noqa: BLE001 - a defect in one chore must end neither trimming nor requests
            failed = defect("Housekeeping", error)
        self._tell_failure(key, failed)

    def _tell_failure(self, key: tuple[str, str], failed: SynclineError | None) -> None:
        """Alert of what a person has to mend, once, and close the alert when the chore is done again."""
        before = self._failed.pop(key, None)
        if failed is not None:
            self._failed[key] = failed
        if str(before or "") == str(failed or ""):
            return
        subject = "/".join(reversed(key)).replace("/_", "/")
        if before is not None and (failed is None or failed.code != before.code):
            self._reports.resolve(before.code, subject)
        if failed is not None:
            self._reports.alert(failed.code, "error", subject, failed)

    def _trim(self, _: str, source: SourcePipeline) -> None:
        source.log.trim()

    def _tell(self, name: str, source: SourcePipeline) -> None:
        new = source.error is None and source.state == "starting"
        if new or (source.error is not None and source.error.code == IN_USE):
            return  # the status is that of an engine which has the slot
        status = source_status(source, self.lags.get(name), latencies=False)
        self._reports.status(status_rows(name, status))

    def _refresh(self, _: str, source: SourcePipeline) -> bool:
        """Look for new tables now and then, and at once when a load or a target is due; whether it looked."""
        now = time.monotonic()
        if not source.due and now - self._refreshed.get(source.name, 0.0) < _REFRESH_S:
            return False
        self._refreshed[source.name] = now
        return source.refresh()

    def _count_parked(self, name: str, source: SourcePipeline) -> bool:
        """Alert of tables with parked changes, and close the alerts of those that have none; whether it looked.

        Counting many takes a while, so the control schema is not asked more than a twentieth of the time.
        """
        began = time.monotonic()
        if began < self._count_at.get(name, 0.0):
            return False
        found = [p for p in self._control.parked() if p.source == name and (p.of_events or p.target in source.targets)]
        now = time.monotonic()
        self._count_at[name] = now + max(_REFRESH_S, 20 * (now - began))
        said, before = {f"{name}/{p.target}/{p.table_name}": p.message for p in found}, self._parked.get(name)
        if said == before:
            return True
        for subject, parked in zip(said, found, strict=True):
            if before is None or before.get(subject) != parked.message:
                error = SynclineError(parked.message, remedy=parked.remedy, code=_PARKED)
                self._reports.alert(_PARKED, "warning", subject, error)
        self._reports.still(_PARKED, f"{name}/", said)
        self._parked[name] = said
        return True

    def _measure(self, name: str, source: SourcePipeline) -> None:
        """How many bytes the log is behind the source."""
        try:
            lag = self._looks[name].lag(source.log.status().place)
        except SynclineError:
            lag = None  # unknown while the source is away; its own thread raises the alert
        if lag is None:
            self.lags.pop(name, None)
        else:
            self.lags[name] = lag

    def _watch(self, name: str, source: SourcePipeline) -> bool:
        """Alert of what will hurt at the source before long, and close the alerts of what is over."""
        now = time.monotonic()
        if now < self._watch_at.get(name, 0.0):
            return False
        self._watch_at[name] = now + _WATCH_S
        found = {(p.code, f"{name}/{p.subject}"): p for p in self._looks[name].pressures()}
        for (code, subject), pressure in found.items():
            error = SynclineError(pressure.message, remedy=pressure.remedy, code=code)
            self._reports.alert(code, pressure.severity, subject, error, expires_s=_UNSEEN_S)
        if found.keys() != self._pressing.get(name):  # also at the start: of earlier runs' alerts nobody knows
            for code in PRESSURES:
                self._reports.still(code, f"{name}/", {subject for one, subject in found if one == code})
        self._pressing[name] = set(found)
        return True

    def _note_events(self, name: str, source: SourcePipeline) -> bool:
        """Note how far the events of an outbox are; whether there is one, in a source that streams."""
        status = self._events_of(name)
        if status is None or source.state != "streaming":  # before the log is asked, which may be damaged
            return False
        incarnation = source.log.incarnation()
        if incarnation is None:
            return False
        # What is held back has not arrived, wherever the cursor is.
        held = any(pause.source in ("", name) for pause in self._control.pauses())
        reached = source.reached(incarnation)
        status.note(replace(reached, applied=0) if held else reached)
        return True

    def _events_of(self, name: str) -> EventStatus | None:
        settings = self._looks[name].settings
        if isinstance(settings, PostgresSettings) and settings.events_from is not None:
            return self._events.setdefault(name, EventStatus(self._control, name, settings, settings.events_from))
        return None

    def _serve(self, name: str, source: SourcePipeline) -> None:
        """Hand on requests: whole resyncs at once, single tables to the next load, keys to the next repair.

        One is finished when all that was read is at the targets; killed before, the next start takes it again. Finished
        when it is in the log, a target whose cursor is still of the log before would be in a gap then.
        """
        self._requests[name] += self._control.take_requests(name)
        for request in [r for r in self._requests[name] if r.id not in self._begun]:
            if request.kind == "repair":
                source.repairs.request(request)
            elif request.target in source.targets or not request.target:
                source.resync(None if request.tables is None else list(request.tables), request.target or None)
            self._begun.add(request.id)
        self._finish_repairs(name, source)
        if not source.busy and source.has_applied_loads:
            for request in [r for r in self._requests[name] if r.kind != "repair"]:
                self._control.finish_request(request.id, "done")
            self._requests[name] = [r for r in self._requests[name] if r.kind == "repair"]

    def _finish_repairs(self, name: str, source: SourcePipeline) -> None:
        """Each as its target has it: one target that is away keeps no repair of another waiting."""
        for request in [r for r in self._requests[name] if r.kind == "repair"]:
            outcome = source.repairs.outcome(request.id)
            if outcome is not None:
                self._control.finish_request(request.id, outcome)
                source.repairs.forget(request.id)
                self._requests[name].remove(request)

    def _apply_pauses(self, name: str, source: SourcePipeline) -> None:
        pauses = self._control.pauses()
        for target in source.targets.values():
            if target.worker is not None:
                apply_pauses(self._control, name, target, source.log, target.worker.cursor, pauses)
