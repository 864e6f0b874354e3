"""A source whose stream is made of runs, from outside: a run now, a process that does nothing else, and what became of
them.

Runs are done by an engine, which tells the log what they found. Where one runs it is asked by way of the control
schema; where none does, one is run until the targets have what was found.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from typing import Any
from uuid import uuid4

from syncline.capture.redis.connection import Connection
from syncline.capture.redis.run import refuse_unknown
from syncline.capture.redis.source import RedisSource
from syncline.capture.runs import RunRow, Wish
from syncline.catalog import ControlSchema
from syncline.catalog.periodic import PeriodicRecords
from syncline.change import Cursor
from syncline.config import Config, TargetConfig, hint, store_class
from syncline.errors import Misconfigured, SynclineError, Unavailable
from syncline.log.embedded import EmbeddedLog
from syncline.logs import logger
from syncline.periodic.result import Result
from syncline.pipeline import SyncService
from syncline.stores import CopyReader
from syncline.verify.point import engine_running, reach

__all__ = ["PeriodicSync"]

_log = logger()
_BEAT_S, _POLL_S = 1.0, 0.1
_STOP_S, _PATIENCE_S = 60.0, 60.0
_NOTHING_TOLD = "Nothing was told yet, so that every member counts as new."


class PeriodicSync:
    """One source of a configuration whose stream is made of runs. ``talk`` hears what an engine of its own does.

    ``name`` may be left out where there is one. Nothing connects before the first call; close it.

    Raises:
        Misconfigured: there is no such source.
    """

    def __init__(self, config: Config, name: str | None = None, *, talk: Callable[[str], None] | None = None) -> None:
        self._talk = talk or _log.info
        known = {n: s for n in config.sources if isinstance(s := config.source(n), RedisSource)}
        if name is None and len(known) == 1:
            name = next(iter(known))
        if name is None or name not in known:
            raise Misconfigured(
                f"There is no source {name} whose stream is made of runs." if name else "Which source's runs?",
                remedy=hint(name or "", known) if known else "Add one of `type: redis`: see docs/captures/redis.md.",
            )
        self.name, self.source = name, known[name]
        self.settings = self.source.settings
        self._config = config.narrowed([name])
        self._control = ControlSchema(config.control_dsn, config.control.schema_name)
        self._records = PeriodicRecords(config.control_dsn, config.control.schema_name, name)
        self._ident = f"{socket.gethostname()}:{os.getpid()}:{uuid4().hex[:8]}"
        self._stop = threading.Event()
        self._ready = False

    def close(self) -> None:
        """Give the connections back."""
        self._records.close()
        self._control.close()

    def prepare(self) -> None:
        """Make the control schema ready, once. Raises ``Unavailable``, ``Misconfigured``."""
        if not self._ready:
            self._control.migrate()
            self._control.check()
            self._ready = True

    @property
    def targets(self) -> dict[str, TargetConfig]:
        """The targets that follow the source and can be read from here."""
        mine = {n: t for n, t in self._config.targets.items() if self.name in self._config.followed_by(n)}
        return {n: t for n, t in mine.items() if hasattr(store_class(t.type), "reader")}

    # ---------------------------------------------------------------------------------------------------------- runs

    def run(self, wish: Wish | None = None) -> Result:
        """Have one run done now, and wait until the targets have what it found.

        Raises:
            Unavailable: a server is away, or a target does not get there.
            Misconfigured: a column is unknown, a key is of another kind, or the engine can't run.
        """
        wish = wish or Wish()
        refuse_unknown(self.settings, wish)
        with Connection(self.settings):
            pass  # what is away is said now, and not after a while of trying
        self.prepare()
        if wish.dry_run:
            return self._tried(wish)
        ident = self._records.ask(wish)  # before an engine starts, whose first run may be this one
        try:
            with self.engine() as check:
                result = Result.of_record(self._awaited(ident, check))
                _refuse_failed(result)
                for name in self.targets if result.state == "done" else ():
                    self._arrived(name, result.number, check)
        finally:
            self._records.withdraw(ident)
        return result

    @contextmanager
    def engine(self) -> Iterator[Callable[[], None]]:
        """An engine that does the runs, for the block: one that is there, or one of our own. Yields a check that raises
        what ended our own."""
        self.prepare()
        with engine_running(self._config, SyncService, self._talk) as check:
            yield check

    def _tried(self, wish: Wish) -> Result:
        began = time.monotonic()
        ident = self._records.begin(0, wish.kind, dry_run=True)
        row = RunRow("failed", wish.kind, {})
        try:
            found, told = self.source.try_run(wish, self._stop)
            row = found.row(self.settings.table, self.settings.delete_share, self.source.number())
            if not told:
                row = replace(row, message=_NOTHING_TOLD)
        except SynclineError as error:
            row = replace(row, code=error.code, message=error.message)
            raise
        finally:
            self._records.end(ident, row)
        return Result.of_trial(row, found.aside, time.monotonic() - began)

    def _awaited(self, ident: int, check: Callable[[], None]) -> dict[str, Any]:
        """The record of a run once it is over."""
        seen = time.monotonic()
        while True:
            check()
            row = self._records.one(ident)
            if row is None or row["state"] == "stopped":
                raise Unavailable(f"The run of {self.name} was cut off.", remedy="Ask for it again.")
            if row["finished_at"] is not None:
                return row
            if self.source.reader() is not None:
                seen = time.monotonic()
            if time.monotonic() - seen > _PATIENCE_S:
                raise Unavailable(
                    f"No engine does the runs of {self.name} any more.", remedy="`syncline status` says why."
                )
            self._stop.wait(_POLL_S)

    def _arrived(self, target: str, number: int, check: Callable[[], None]) -> None:
        """Wait until a target has what the run found, and the table's rows where they are read again for it."""
        (table,) = self.source.names()
        taken = self._config.targets[target].mapping({}).takes(table)
        since = time.monotonic()
        while True:
            cursor, reader = self._reached(target, number, check)
            reader.close()
            log = EmbeddedLog.peek(self._config.log, self.name)
            # Numbers begin anew with a log: a place in the former one says nothing.
            if (log is None or cursor.position.log == log.log) and (not taken or table in cursor.loaded):
                return
            if time.monotonic() - since > _PATIENCE_S:
                raise Unavailable(
                    f"Target {target} does not get the rows of {table} that are read again for it.",
                    remedy="`syncline status` says why: it may be paused, in a gap, or away.",
                )
            self._stop.wait(_POLL_S)

    def _reached(self, target: str, number: int, check: Callable[[], None]) -> tuple[Cursor, CopyReader]:
        return reach(self.source, self.name, (target, self._config.targets[target]), number + 1, check)

    def held(self, target: str) -> Iterator[dict[str, Any]]:
        """The rows of the table at a target, as dicts of its columns."""
        reader = store_class(self.targets[target].type).reader(self.targets[target].store)
        with closing(reader):
            schema = reader.recorded(self.source.names()[0])
            for batch in reader.scan(schema) if schema is not None else ():
                yield from batch.to_pylist()

    # ------------------------------------------------------------------------------------------------------- service

    def serve(self) -> None:
        """Run an engine for this source, which does the runs when they are due, until :meth:`stop` or until somebody
        asks for the end.

        Raises:
            Unavailable: another service does this, or the control schema is away at the start.
            SynclineError: what ended the engine.
        """
        self.prepare()
        if not self._records.serve(self._ident):
            raise Unavailable(
                f"Another service does the runs of {self.name}.",
                remedy="`syncline periodic status` says which; `syncline periodic stop` ends it.",
                code="SL-PERIODIC-SERVED",
            )
        service = SyncService(self._config, talk=self._talk)
        try:
            service.start()
            while not self._stop.is_set() and self._is_wanted():
                if service.wait(_BEAT_S) is not None:
                    for error in service.errors():
                        raise error
                    return
        finally:
            service.stop()
            self._records.leave(self._ident)
            self._stop.clear()  # it may be served again

    def stop(self) -> None:
        """Let :meth:`serve` of this object end soon; a run stops between two batches. Any thread."""
        self._stop.set()

    def _is_wanted(self) -> bool:
        """Say that we are here; False when somebody asked for the end."""
        try:
            return self._records.beat(self._ident)
        except Unavailable:
            return True  # the engine goes on without it

    def ask_to_stop(self, wait_s: float = _STOP_S) -> bool:
        """End the service, in whatever process it is; whether there was one.

        Raises:
            Unavailable: it does not end within ``wait_s``.
        """
        self.prepare()
        if not self._records.ask_to_stop():
            return False
        deadline = time.monotonic() + wait_s
        while (state := self._records.state()) is not None and state["serving"]:
            if time.monotonic() > deadline:
                raise Unavailable(
                    f"The service of {self.name} does not end: {state['service']}.",
                    remedy="It ends behind the step that it is in; end its process if it hangs.",
                )
            threading.Event().wait(_POLL_S)
        return True

    # -------------------------------------------------------------------------------------------------------- status

    def status(self) -> dict[str, Any]:
        """Whether a service, or another engine, does runs, and the latest of them, for JSON."""
        self.prepare()
        state, runs = self._records.state() or {}, self._records.runs(10)
        return {
            "name": self.name,
            "serving": bool(state.get("serving")),
            "service": state.get("service") or None,
            "following": bool(state.get("running")),
            "holder": state.get("holder") or None,
            "next_run": state.get("next_at") if state.get("running") else None,
            "running": any(run["state"] == "running" and not run["dry_run"] for run in runs[:3]),
            "every_s": self.settings.every_s,
            "cron": self.settings.cron,
            "runs": runs,
        }


def _refuse_failed(result: Result) -> None:
    """Raise what ended a run that failed."""
    if result.state in ("failed", "refused"):
        kind = Unavailable if result.code == Unavailable.code else Misconfigured
        raise kind(result.message, remedy="`syncline periodic status` shows the latest runs.", code=result.code)
