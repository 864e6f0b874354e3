"""Ending by signals in programs that are not the command line: SIGTERM, and SIGINT even where it was ignored."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

__all__ = ["interrupted_by_signals"]


@contextmanager
def interrupted_by_signals() -> Iterator[None]:
    """Have SIGTERM raise ``KeyboardInterrupt`` in the block as Ctrl-C does, and SIGINT too where that was ignored when
    the process began: a shell starts so what it runs in the background. In another thread than the main one nothing
    changes."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, interrupt) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
