"""The engine: every source of a configuration, in the caller's process."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

from syncline.catalog.repository import ControlSchema
from syncline.config import Config, store_class
from syncline.errors import Gap, Misconfigured, SynclineError, Unavailable
from syncline.logs import logger
from syncline.pipeline.context import Context
from syncline.pipeline.exports import Exports
from syncline.pipeline.housekeeping import Housekeeping
from syncline.pipeline.memory import return_freed_memory
from syncline.pipeline.reports import Reports
from syncline.pipeline.source import SourcePipeline
from syncline.pipeline.status import source_status
from syncline.stores import Store

__all__ = ["EXIT_GAP", "EXIT_INTERNAL", "EXIT_MISCONFIGURED", "EXIT_UNAVAILABLE", "SyncService"]

_log = logger()

# Stopping says what it waits for after this time.
_PATIENCE_S = 3.0
_POLL_S = 0.01

EXIT_INTERNAL, EXIT_MISCONFIGURED, EXIT_UNAVAILABLE, EXIT_GAP = 1, 2, 3, 4


class SyncService:
    """Keeps the targets of a configuration in step with its sources.

    >>> service = SyncService(load_config())      # doctest: +SKIP
    >>> service.start()                           # doctest: +SKIP
    >>> service.status()["sources"]["main"]["state"]   # doctest: +SKIP
    'streaming'
    >>> service.stop()                            # doctest: +SKIP

    ``talk`` hears what a person starting it wants to know, from any thread; ``ended`` each error that ends a source or
    a target (logged otherwise). What is logged goes to structlog, if that was set up, else to ``logging``.
    """

    def __init__(
        self,
        config: Config,
        *,
        talk: Callable[[str], None] | None = None,
        ended: Callable[[SynclineError], None] | None = None,
    ) -> None:
        self.config = config
        self._talk = talk or _log.info
        self._control = ControlSchema(config.control_dsn, config.control.schema_name)
        self._reports = Reports(self._control, ended)
        self._stopped = threading.Event()
        self._housekeeping: Housekeeping | None = None
        self._exports: Exports | None = None
        self.sources: dict[str, SourcePipeline] = {}

    def start(self) -> None:
        """Make the control schema ready, open logs, and start every source; returns when they run.

        Raises:
            Unavailable: the database of the control schema can't be reached.
            Misconfigured: a setting, a right or a lock stands in the way.
        """
        return_freed_memory()
        self._control.migrate()
        self._control.check()
        try:
            for name in self.config.sources:
                context = Context(name, self.config.source(name), self.config, self._control, self._reports, self._talk)
                self.sources[name] = SourcePipeline(context, self._stores(name))
            self._housekeeping = Housekeeping(self.sources, self._control, self._reports)
            self._housekeeping.prepare()
            for name, source in self.sources.items():
                source.start(start_over=self._housekeeping.take_resync(name))
            self._housekeeping.start()
            self._exports = Exports(
                {
                    name: [s.targets[name].store for s in self.sources.values() if name in s.targets]
                    for name in self.config.targets
                },
                self._reports,
            )
            self._exports.start()
        except BaseException:
            self.stop()
            raise

    def _stores(self, source: str) -> dict[str, Store]:
        return {
            name: store_class(target.type)(target.store, name)
            for name, target in self.config.targets.items()
            if source in self.config.followed_by(name)
        }

    def stop(self, timeout_s: float = 30.0) -> None:
        """Drain: end behind the step each target is in, confirm nothing that is not durable, release everything.

        What has not ended after ``timeout_s`` is not waited for, except for a transaction that a store has under way.
        It loses nothing: its step is done again at the next start.
        """
        for source in self.sources.values():
            source.ask_to_stop()
        if self._exports:
            self._exports.stop()
        self._await_end(timeout_s)
        if self._housekeeping:
            self._housekeeping.stop()
        for source in self.sources.values():
            source.note_stopped()
        if self._housekeeping:
            self._housekeeping.close()
        for source in self.sources.values():
            source.close()
        self._control.close()
        self._stopped.set()

    def _await_end(self, timeout_s: float) -> None:
        """Wait for what was asked to stop, and say what is waited for if that takes long."""
        began, told = time.monotonic(), False
        while working := [what for source in self.sources.values() for what in source.working()]:
            waited_s = time.monotonic() - began
            if waited_s >= timeout_s:
                self._talk(
                    f"not ended after {timeout_s:g} s: {', '.join(working)}; the next start does that step again"
                )
                return
            if waited_s >= _PATIENCE_S and not told:
                self._talk(f"stopping waits, at most {timeout_s:g} s in all, for {', '.join(working)}")
                told = True
            time.sleep(_POLL_S)

    def wait(self, timeout_s: float | None = None) -> int | None:
        """Block until :meth:`stop` was called or nothing runs any more; the exit code (0 done, 1 internal, 2
        misconfigured, 3 unavailable, 4 gap), None when ``timeout_s`` ran out."""
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while not self._stopped.wait(0.2):
            if self.sources and all(s.ended for s in self.sources.values()):
                break
            if deadline is not None and time.monotonic() > deadline:
                return None
        return self.exit_code()

    def exit_code(self) -> int:
        """0, or the code of the gravest error that ended a source or a target."""
        codes = [_code(e) for e in self.errors()]
        return min(codes) if codes else 0

    def errors(self, target: str | None = None) -> list[SynclineError]:
        """What ended sources and targets (or sources and this one target), if anything did."""
        found = [s.error for s in self.sources.values() if s.error is not None and s.state in ("gap", "failed")]
        targets = [(name, t) for s in self.sources.values() for name, t in s.targets.items()]
        return found + [t.error for name, t in targets if t.error is not None and target in (None, name)]

    def resync(self, source: str | None = None, tables: list[str] | None = None, *, target: str | None = None) -> None:
        """Read tables again (all of them by default; for all targets by default), as ``syncline resync`` does."""
        followed = self.config.followed_by(target) if target else tuple(self.sources)
        for name in [source] if source else followed:
            self.sources[name].resync(tables, target)

    def status(self) -> dict[str, Any]:
        """A JSON-able picture: per source its state, place and lag, its log, and each target's cursor and figures."""
        lags = self._housekeeping.lags if self._housekeeping else {}
        return {"sources": {name: source_status(source, lags.get(name)) for name, source in self.sources.items()}}


def _code(error: SynclineError) -> int:
    if isinstance(error, Gap):
        return EXIT_GAP
    if isinstance(error, Misconfigured):
        return EXIT_MISCONFIGURED
    return EXIT_UNAVAILABLE if isinstance(error, Unavailable) else EXIT_INTERNAL
