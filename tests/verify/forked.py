"""``syncline`` in processes that are forked from one that has loaded all of it, to be killed again and again.

Loading takes longer than what a test wants to cut off. The process that forks, this file as a program, has one thread
and no connections; it does as each line of its input says, and kills within itself, where no number of a process can
have become another's.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
import time
from types import TracebackType
from typing import Any, NamedTuple

__all__ = ["Ended", "Forks"]

# What the command loads when it is first needed.
_LOADED = (
    "syncline.service.cli",
    "syncline.pipeline",
    "syncline.verify.repair",
    "syncline.stores.duckdb",
    "syncline.stores.duckdb.copy",
    "alembic.autogenerate.api",
    "alembic.command",
    "mako.ext.pygmentplugin",
)


_ASKED = signal.SIGUSR1  # a repair tells the process that forked it that it is about to ask for rows


class Ended(NamedTuple):
    """How a command ended: killed, else by itself with this exit code; how long it ran, and for how long of that
    before it first asked for rows to be repaired, if it did."""

    killed: bool
    code: int
    seconds: float
    asked: float | None


class Forks:
    """Runs ``syncline`` with arguments, and kills it after a time. A context: the forking process ends with it."""

    def __enter__(self) -> Forks:
        self._process = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        )
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._process.communicate()

    def run(self, *arguments: str, kill_after_s: float | None = None, once_asked: bool = False) -> Ended:
        """Run to the end, or until it is killed (SIGKILL, without a warning); ``once_asked``: so long after it asked
        for rows to be repaired."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps([arguments, kill_after_s, once_asked]) + "\n")
        self._process.stdin.flush()
        return Ended(*json.loads(self._process.stdout.readline()))


def _serve() -> None:
    for module in _LOADED:
        importlib.import_module(module)
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGCHLD, _ASKED])
    for line in sys.stdin:
        print(json.dumps(_one(*json.loads(line))), flush=True)


def _one(arguments: list[str], kill_after_s: float | None, once_asked: bool) -> Ended:
    began = time.monotonic()
    process = os.fork()
    if not process:
        os._exit(_command(arguments))
    asked = None
    wait_s = None if once_asked else kill_after_s
    while True:
        awaited = [signal.SIGCHLD, _ASKED]
        told = signal.sigwaitinfo(awaited) if wait_s is None else signal.sigtimedwait(awaited, max(0.0, wait_s))
        if told is None:
            os.kill(process, signal.SIGKILL)  # ours until it is waited for, also if it has just ended by itself
        if told is None or told.si_signo == signal.SIGCHLD:
            break
        now = time.monotonic() - began
        asked = now if asked is None else asked
        if kill_after_s is not None:
            wait_s = kill_after_s + (asked if once_asked else 0.0) - now
    _, status = os.waitpid(process, 0)
    seconds = time.monotonic() - began
    while signal.sigtimedwait([signal.SIGCHLD, _ASKED], 0) is not None:
        pass  # what was said in its last moment
    return Ended(os.WIFSIGNALED(status), os.waitstatus_to_exitcode(status), seconds, asked)


def _command(arguments: list[str]) -> int:
    """The command in the forked process, whose input and output are its parent's otherwise."""
    from syncline.pipeline import housekeeping
    from syncline.service.cli import main
    from syncline.verify import compare
    from syncline.verify.repair import ControlSchema

    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGCHLD, _ASKED])
    ask = ControlSchema.request_repair

    def asking(*given: Any) -> int:
        os.kill(os.getppid(), _ASKED)
        return ask(*given)

    ControlSchema.request_repair = asking  # type: ignore[method-assign]
    nothing = os.open(os.devnull, os.O_RDWR)
    for stream in range(3):
        os.dup2(nothing, stream)
    # Only waits, in which there is nothing to cut off: before the second look, and between looks for requests.
    compare._AGAIN_S, housekeeping._EVERY_S = 0.0, 0.1
    sys.argv = ["syncline", *arguments]
    try:
        main()
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    return 0


if __name__ == "__main__":
    _serve()
