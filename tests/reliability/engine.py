"""A program that runs the engine in processes which may be killed: a nursery that forks a child per run.

The nursery imports everything once and has no threads, so a child is ready in milliseconds. It reads one JSON object a
line (a run), and writes one a line: ``{"pid": ...}`` when the child runs, ``{"status": ...}`` when it ended (negative:
by that signal). A child kills itself at the n-th pass of a named point; the points are put around the engine's methods
here, the engine knows nothing of them.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg2  # noqa: F401 - imported before the fork, as all that follows
import pyarrow  # noqa: F401

import syncline.stores.duckdb.store as duckdb_store
from syncline.apply.worker import Worker
from syncline.capture import wal
from syncline.capture.horizon.stream import HorizonStream
from syncline.catalog.repository import ControlSchema
from syncline.config import load_config
from syncline.log import embedded
from syncline.pipeline import SyncService, housekeeping, loads

Act = Callable[[], None]


def _around(owner: Any, name: str, *, before: Act | None = None, after: Act | None = None) -> None:
    """Call ``before`` and ``after`` around a method."""
    original = getattr(owner, name)

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        if before:
            before()
        result = original(*args, **kwargs)
        if after:
            after()
        return result

    setattr(owner, name, wrapped)


def _each(owner: Any, name: str, act: Act) -> None:
    """Call ``act`` with each thing that a generator yields, before its consumer sees it."""
    original = getattr(owner, name)

    def wrapped(*args: Any, **kwargs: Any) -> Iterator[Any]:
        for item in original(*args, **kwargs):
            act()
            yield item

    setattr(owner, name, wrapped)


def _between_parts(act: Act) -> None:
    original = embedded.EmbeddedLog.append

    def append(self: Any, entries: Any) -> Any:
        position = original(self, entries)
        if any(e.part is not None and not e.part.last for e in entries):
            act()
        return position

    embedded.EmbeddedLog.append = append  # type: ignore[method-assign]


# What is done now and then is done more often here.
housekeeping._EVERY_S = housekeeping._REFRESH_S = housekeeping._WATCH_S = 0.2

POINTS: dict[str, Callable[[Act], None]] = {
    "after receive": lambda act: _each(wal.WalCapture, "entries", act),
    "before append": lambda act: _around(embedded.EmbeddedLog, "append", before=act),
    "after append": lambda act: _around(embedded.EmbeddedLog, "append", after=act),
    "between parts": _between_parts,
    "before confirm": lambda act: _around(wal.WalCapture, "confirm", before=act),
    "after confirm": lambda act: _around(wal.WalCapture, "confirm", after=act),
    "before telling the server": lambda act: _around(wal.Receiver, "_feedback", before=act),
    "after telling the server": lambda act: _around(wal.Receiver, "_feedback", after=act),
    "before apply": lambda act: _around(duckdb_store.DuckDBStore, "apply", before=act),
    "inside apply": lambda act: _around(duckdb_store, "_write_cursor", after=act),
    "after apply": lambda act: _around(duckdb_store.DuckDBStore, "apply", after=act),
    "before migrating": lambda act: _around(duckdb_store.DuckDBStore, "migrate", before=act),
    "after migrating": lambda act: _around(duckdb_store.DuckDBStore, "migrate", after=act),
    "after the cursor is noted": lambda act: _around(Worker, "_advance", after=act),
    "amid the load": lambda act: _each(loads, "load", act),
    "after parking": lambda act: _around(ControlSchema, "park", after=act),
}


# The same places in a capture that polls, and its own.
POLLING_POINTS: dict[str, Callable[[Act], None]] = {
    "after polling": lambda act: _each(HorizonStream, "_poll", act),
    "before confirming events": lambda act: _around(HorizonStream, "confirm", before=act),
    "before purging": lambda act: _around(HorizonStream, "_tidy", before=act),
    "after purging": lambda act: _around(HorizonStream, "_tidy", after=act),
    **{
        name: POINTS[name]
        for name in ("before append", "after append", "between parts", "inside apply", "after apply", "amid the load")
    },
}


def _die_at(point: str, nth: int) -> None:
    lock, passed = threading.Lock(), [0]

    def act() -> None:
        with lock:
            passed[0] += 1
            if passed[0] == nth:
                os.kill(os.getpid(), signal.SIGKILL)

    {**POINTS, **POLLING_POINTS}[point](act)


def reached(source: Any, target: dict[str, Any]) -> int:
    """The LSN that a target has come to; of a source that is polled the number that it is through with."""
    if source.log.incarnation() is None:
        return 0
    if source.kind in ("triggers", "outbox"):
        return int(target.get("through", 0)) - int(source.log.incarnation().base)
    return int(target.get("place", 0))


def arrived(service: SyncService, until: int) -> bool:
    """Whether everything up to the LSN ``until`` is at every target, and nothing is being read again."""
    for name, one in service.status()["sources"].items():
        if one["state"] != "streaming" or service.sources[name].busy:
            return False
        for target in one["targets"].values():
            if reached(service.sources[name], target) < until or set(target["loaded"]) < set(one["tables"]):
                return False
    return True


def _run(job: dict[str, Any]) -> int:
    """One run of the engine: until SIGTERM, until it has ``until``, or until it ends by itself; its exit code."""
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])  # one that came since the fork is seen now
    if job.get("point"):
        _die_at(job["point"], job["nth"])
    service = SyncService(load_config(Path(job["config"])), talk=lambda line: print(line, flush=True))
    try:
        service.start()
        while not stop.wait(0.01):
            if service.sources and all(s.ended for s in service.sources.values()):
                break
            if job.get("until") and arrived(service, job["until"]):
                break
    finally:
        service.stop()
    for error in service.errors():
        print(f"ended: {type(error).__name__} {error.code} {error}", file=sys.stderr)
    return service.exit_code()


def _child(job: dict[str, Any]) -> None:
    code = 70
    try:
        log = os.open(job["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        code = _run(job)
    except BaseException as error:  # noqa: BLE001 - the child must never come back into the nursery
        traceback.print_exc()
        code = {"Unavailable": 3, "Misconfigured": 2}.get(type(error).__name__, 70)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def main() -> None:
    """Fork a child for each line of the input. One that ended keeps its process id until the next line comes, so that
    a signal to it is never one to nobody, or to somebody else."""
    previous = 0
    for line in sys.stdin:
        job = json.loads(line)
        if previous:
            os.waitpid(previous, 0)
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])  # the child takes it once it has a handler for it
        previous = pid = os.fork()
        if pid == 0:
            _child(job)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])
        print(json.dumps({"pid": pid}), flush=True)
        end = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        assert end is not None
        status = end.si_status if end.si_code == os.CLD_EXITED else -end.si_status
        print(json.dumps({"status": status}), flush=True)
    if previous:
        os.waitpid(previous, 0)


if __name__ == "__main__":
    main()
