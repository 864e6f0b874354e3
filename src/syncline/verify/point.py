"""Bringing a target to a point of its source: progress is emitted, and the target's cursor waited for."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

from syncline.capture import Source
from syncline.change import Cursor
from syncline.config import Config, TargetConfig, store_class
from syncline.errors import Misconfigured, SynclineError, Unavailable
from syncline.log.folder import is_held
from syncline.stores import CopyReader

__all__ = ["Engine", "engine_running", "open_copy", "reach"]

Talk = Callable[[str], None]
_POLL_S = 0.05
_PATIENCE_S = 60.0
_LEAVING_S = 5.0


class Engine(Protocol):
    """What runs a configuration: :class:`syncline.pipeline.SyncService`."""

    def __init__(self, config: Config, *, talk: Talk | None = None) -> None: ...
    def start(self) -> None: ...
    def stop(self) -> None: ...
    def errors(self, target: str | None = None) -> list[SynclineError]: ...
    def status(self) -> dict[str, Any]: ...


@contextmanager
def engine_running(
    config: Config, engine: type[Engine] | None, talk: Talk, target: str | None = None
) -> Iterator[Callable[[], None]]:
    """An engine that streams, for the block: one that runs already, else one of our own (if there is a class for it).

    Yields a check that raises what ended our own engine, if something did; what ended other targets than the one that
    is asked for does not matter.

    Raises:
        Unavailable: none runs, and there is no class to run one; or it does not get as far as streaming.
    """
    if _all_stream(config) and not (engine is not None and _is_leaving(config)):
        yield _nothing
        return
    if engine is None:
        raise Unavailable("No engine runs that could bring the targets up to date.", remedy="Start `syncline run`.")
    ours = engine(config, talk=talk)

    def check() -> None:
        for error in ours.errors(target):
            raise error

    try:
        try:
            ours.start()
        except Misconfigured as error:
            if error.code != "SL-LOG-LOCKED":
                raise
            _await_streams(config, _nothing, lambda: False)
            yield _nothing
            return
        talk("no engine runs; bringing the targets up to date first")
        _await_streams(config, check, lambda: any(s["state"] == "loading" for s in ours.status()["sources"].values()))
        yield check
    finally:
        ours.stop()


def _is_leaving(config: Config) -> bool:
    """Whether who streams is an engine that has ended: its log is let go of, and the server sees that a moment later.
    One that streams on has its log elsewhere, and so has one that never had it here."""
    folders = [config.log.folder(name) for name in config.sources]
    if not all(folder.exists() and is_held(folder) is False for folder in folders):
        return False
    deadline = time.monotonic() + _LEAVING_S
    while time.monotonic() < deadline:
        if not _all_stream(config):
            return True
        time.sleep(_POLL_S)
    return False


def _nothing() -> None:
    """Nothing of ours can have failed."""


def _await_streams(config: Config, check: Callable[[], None], loading: Callable[[], bool]) -> None:
    """An engine that streams has opened its targets: before that, a reader could stand in its way."""
    since = time.monotonic()
    while not _all_stream(config):
        check()
        if loading():
            since = time.monotonic()
        if time.monotonic() - since > _PATIENCE_S:
            raise Unavailable("The engine does not stream.", remedy="`syncline status` says why; verify when it does.")
        time.sleep(_POLL_S)


def _all_stream(config: Config) -> bool:
    return all(config.source(name).reader() is not None for name in config.sources)


def open_copy(target: TargetConfig) -> CopyReader:
    """A reader of what the target holds.

    Raises:
        Misconfigured: this type of target can't be read from outside, or there is nothing there yet.
    """
    reader = getattr(store_class(target.type), "reader", None)
    if reader is None:
        raise Misconfigured(f"Targets of type {target.type} can't be read by another process.")
    found: CopyReader = reader(target.store)
    return found


def reach(
    source: Source, name: str, target: tuple[str, TargetConfig], number: int, check: Callable[[], None]
) -> tuple[Cursor, CopyReader]:
    """Wait until the target has every change with a native number below ``number``; its cursor then, and a reader of
    it.

    An idle source is moved on (correctness rule 12).

    Raises:
        Unavailable: the target's cursor does not move.
    """
    source.advance()
    reader = open_copy(target[1])
    try:
        seen, since = -1, time.monotonic()
        while True:
            check()
            cursor = reader.cursor(name)
            if cursor and cursor.through and cursor.through >= cursor.base + number:
                return cursor, reader
            if cursor and cursor.position.n != seen:
                seen, since = cursor.position.n, time.monotonic()
            if time.monotonic() - since > _PATIENCE_S:
                raise Unavailable(
                    f"Target {target[0]} stands still before {source.shown(number)} of source {name}.",
                    remedy="`syncline status` says why: it may be paused, in a gap, or away.",
                )
            time.sleep(_POLL_S)
    except BaseException:
        reader.close()
        raise
