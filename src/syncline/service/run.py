"""`syncline run`: the engine in the foreground, until a signal or a fatal error ends it."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any

import typer

from syncline.errors import Misconfigured, SynclineError
from syncline.logs import logger
from syncline.service.figures import source_line
from syncline.service.loads import LoadBars
from syncline.service.session import session_of, talk, tell_error

if TYPE_CHECKING:
    from syncline.pipeline import SyncService

__all__ = ["run"]

_log = logger()

_ABORTED = 130  # 128 + SIGINT: ended without draining; nothing is lost, the next start replays
_STOP_S = 30.0
_GIVE_UP_S = 2.0  # for a comparison that is under way: what is to be drained must not wait for it


class _AskedWhileStarting(BaseException):
    """A signal came before the engine ran: nothing is there to be drained yet."""


class _Signals:
    """SIGTERM and SIGINT ask once; the second time they end the process at once."""

    def __init__(self, json_lines: bool = False) -> None:
        self._json = json_lines
        self.asked = False
        self.starting = True

    def __enter__(self) -> _Signals:
        self._before = {number: signal.signal(number, self._on_signal) for number in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _on_signal(self, number: int, _: FrameType | None) -> None:
        if self.asked:
            self._say("Aborted. Nothing is lost: the next start goes on from the durable place.")
            os._exit(_ABORTED)
        self.asked = True
        self._say(f"Stopping ({signal.Signals(number).name}); once more to abort.")
        if self.starting:
            raise _AskedWhileStarting

    def _say(self, text: str) -> None:
        """Straight to stderr: the thread that a signal interrupts may hold the lock of the stream."""
        stamp = datetime.now(UTC).isoformat().replace("+00:00", "Z")
        line = json.dumps({"event": text, "level": "info", "timestamp": stamp}) if self._json else text
        with suppress(OSError):
            os.write(2, f"{line}\n".encode())


def run(
    context: typer.Context,
    status_every_s: Annotated[
        float,
        typer.Option("--status-every", min=0, metavar="SECONDS", help="How often to say how far it is; 0: never."),
    ] = 10.0,
) -> None:
    """Keep the targets in step with the sources, until stopped (SIGTERM and Ctrl-C drain first)."""
    from syncline.pipeline import SyncService
    from syncline.verify.rolling import RollingVerification

    config = session_of(context).config()
    if not config.targets:
        raise Misconfigured("There is no target: changes would fill the log for nobody.", remedy="Configure `target:`.")
    tell = _log.info if config.logging.json_lines else talk.print
    for one in config.overruled:
        tell(f"Warning: {one.message} {one.remedy}")
    service = SyncService(config, talk=tell, ended=tell_error)
    verification = RollingVerification(config, lambda: _status(service))
    with _Signals(config.logging.json_lines) as signals:
        try:
            service.start()
            signals.starting = False
        except _AskedWhileStarting:
            _stop(service)
            raise typer.Exit(0) from None
        tell(f"Syncline runs ({', '.join(config.sources)} -> {', '.join(config.targets)}). Ctrl-C stops it.")
        verification.start()
        try:
            code = _watch(service, signals, status_every_s, tell)
        finally:
            verification.stop(_GIVE_UP_S)
            _stop(service)
    if signals.asked:
        tell("Stopped.")
        raise typer.Exit(0)
    raise typer.Exit(code)


def _stop(service: SyncService) -> None:
    """Drain in a thread of its own, for this one has to hear a second signal: inside a store's own code, such as a
    checkpoint, no handler runs."""
    with ThreadPoolExecutor(1, thread_name_prefix="stop") as pool:
        pool.submit(service.stop, _STOP_S).result()


def _watch(service: SyncService, signals: _Signals, every_s: float, tell: Callable[[str], object]) -> int:
    """Wait for the end, telling now and then how far it is; the exit code."""
    due = time.monotonic() + min(every_s, 2.0)
    with LoadBars(talk) as bars:
        while not signals.asked:
            code = service.wait(0.25)
            if code is not None:
                return code
            if signals.asked:
                break
            status = _status(service)
            bars.show(status)
            if every_s and time.monotonic() >= due:
                due = time.monotonic() + every_s
                for name, source in status["sources"].items():
                    tell(source_line(name, source))
    return 0


def _status(service: SyncService) -> dict[str, Any]:
    """The status, or nothing while a log can't say: the engine's own threads decide what that means."""
    try:
        return service.status()
    except SynclineError:
        return {"sources": {}}
