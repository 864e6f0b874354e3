"""The service that starts runs: by an interval, by a request, and sooner when something was heard of."""

from __future__ import annotations

import os
import socket
import threading
import time
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

from syncline.capture.redis.reading import Stopped
from syncline.catalog import ControlSchema
from syncline.catalog.periodic import PeriodicRecords
from syncline.config import Config, hint
from syncline.errors import Misconfigured, SynclineError, Unavailable
from syncline.logs import logger
from syncline.periodic.hints import Hints
from syncline.periodic.run import DELETES, Place, Result, Wish, perform

__all__ = ["PeriodicSync"]

_log = logger()
FAILED = "SL-PERIODIC-FAILED"
_BEAT_S = 1.0
_STOP_S = 60.0


class PeriodicSync:
    """One periodic synchronisation of a configuration: runs, the service that starts them, and what became of them.

    ``name`` may be left out where there is one. Nothing connects before the first call; close it.

    Raises:
        Misconfigured: there is no such synchronisation.
    """

    def __init__(self, config: Config, name: str | None = None) -> None:
        known = config.periodic
        if name is None and len(known) == 1:
            name = next(iter(known))
        if name is None or name not in known:
            raise Misconfigured(
                f"There is no periodic synchronisation {name}." if name else "Which periodic synchronisation?",
                remedy=hint(name or "", known) if known else "Add one: see docs/captures/redis.md.",
            )
        self.name, self.config = name, known[name]
        self._control = ControlSchema(config.control_dsn, config.control.schema_name)
        records = PeriodicRecords(config.control_dsn, config.control.schema_name, name)
        self._place = Place(name, self.config, config.targets[self.config.target], records)
        self._ident = f"{socket.gethostname()}:{os.getpid()}:{uuid4().hex[:8]}"
        self._ready = False

    @property
    def place(self) -> Place:
        """What runs work on."""
        return self._place

    def close(self) -> None:
        """Give the connections back."""
        self._place.records.close()
        self._control.close()

    def prepare(self) -> None:
        """Make the control schema ready, once. Raises ``Unavailable``, ``Misconfigured``."""
        if not self._ready:
            self._control.migrate()
            self._control.check()
            self._ready = True

    # ---------------------------------------------------------------------------------------------------------- runs

    def run(self, wish: Wish | None = None) -> Result:
        """Do one run now, and raise or resolve its alerts. Raises as :func:`~syncline.periodic.run.perform`."""
        self.prepare()
        try:
            result = perform(self._place, wish or Wish())
        except SynclineError as error:
            if error.code not in ("SL-PERIODIC-RUNNING", "SL-PERIODIC-FENCED"):
                self._control.raise_alert(FAILED, "error", self._subject, error.message, error.remedy)
            raise
        if not result.dry_run:
            self._tell(result)
        return result

    def _tell(self, result: Result) -> None:
        self._control.resolve_alert(FAILED, self._subject)
        if result.state == "asking":
            remedy = f"If that is right: syncline periodic sync --name {self.name} --allow-deletes"
            self._control.raise_alert(DELETES, "error", self._subject, result.message, remedy)
        elif result.kind != "members":
            self._control.resolve_alert(DELETES, self._subject)

    @property
    def _subject(self) -> str:
        return f"periodic {self.name}"

    # ------------------------------------------------------------------------------------------------------- service

    def serve(self) -> None:
        """Start runs until :meth:`stop`, or until somebody asks for the end. One that fails is tried at the next time.

        Raises:
            Unavailable: another service does this, or the control schema is away at the start.
        """
        self.prepare()
        if not self._place.records.serve(self._ident):
            raise Unavailable(
                f"Another service starts the runs of {self.name}.",
                remedy="`syncline periodic status` says which; `syncline periodic stop` ends it.",
                code="SL-PERIODIC-SERVED",
            )
        hints = Hints(self.config) if self.config.hints else None
        try:
            self._loop(hints)
        finally:
            if hints is not None:
                hints.close()
            self._place.records.leave(self._ident)

    def stop(self) -> None:
        """Let :meth:`serve` of this object end soon; a run stops between two batches. Any thread."""
        self._place.stop.set()

    def _loop(self, hints: Hints | None) -> None:
        while not self._place.stop.is_set():
            began = time.monotonic()
            self._attempt()
            self._wait(hints, began)

    def _attempt(self) -> None:
        try:
            self.run()
        except Stopped:
            return
        except SynclineError as error:
            _log.warning("periodic sync failed", name=self.name, code=error.code, message=error.message)

    def _wait(self, hints: Hints | None, began: float) -> None:
        due, told = began + self.config.every_s, False
        while not self._place.stop.is_set():
            now = time.monotonic()
            if now >= due or not self._seen(due - now):
                return
            wait_s = min(_BEAT_S, due - now)
            if hints is None or told:
                self._place.stop.wait(wait_s)
            elif hints.heard(wait_s, self._place.stop):
                due, told = min(due, max(began + self.config.sooner_s, time.monotonic())), True

    def _seen(self, left_s: float) -> bool:
        """Say that we are here, and when the next run is; False, and stopping, when somebody asked for the end."""
        try:
            here = self._place.records.beat(self._ident, datetime.now(UTC) + timedelta(seconds=left_s))
        except Unavailable:
            return True  # the runs will say so
        if not here:
            self.stop()
        return here

    def ask_to_stop(self, wait_s: float = _STOP_S) -> bool:
        """End the service, in whatever process it is; whether there was one.

        Raises:
            Unavailable: it does not end within ``wait_s``.
        """
        self.prepare()
        if not self._place.records.ask_to_stop():
            return False
        deadline = time.monotonic() + wait_s
        while (state := self._place.records.state()) is not None and state["serving"]:
            if time.monotonic() > deadline:
                raise Unavailable(
                    f"The service of {self.name} does not end: {state['service']}.",
                    remedy="It ends after the run that is under way; end its process if it hangs.",
                )
            threading.Event().wait(0.1)
        return True

    # -------------------------------------------------------------------------------------------------------- status

    def status(self) -> dict[str, Any]:
        """Whether a service and a run are there, and the latest runs, for JSON."""
        self.prepare()
        state = self._place.records.state() or {}
        return {
            "name": self.name,
            "serving": bool(state.get("serving")),
            "service": state.get("service") or None,
            "next_run": state.get("next_at") if state.get("serving") else None,
            "running": bool(state.get("running")),
            "holder": state.get("holder") or None,
            "every_s": self.config.every_s,
            "runs": self._place.records.runs(10),
        }
