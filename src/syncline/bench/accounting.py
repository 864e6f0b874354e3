"""What a run cost: processor time by thread and by process, and peak memory, as Linux accounts for them."""

from __future__ import annotations

import contextlib
import os
import re
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Self

import psycopg

__all__ = ["Sampler", "child_pids", "cpu_seconds", "forget_peak", "peak_rss_bytes", "thread_cpu"]

_TICK_S = 1 / os.sysconf("SC_CLK_TCK")


def thread_cpu() -> dict[str, float]:
    """Processor seconds of the threads of this process that live now, by name.

    Python's threads by their names; those that a library started (DuckDB's and Arrow's pools) as ``native``.
    """
    names = {t.native_id: t.name for t in threading.enumerate()}
    spent: dict[str, float] = {}
    for task in Path("/proc/self/task").iterdir():
        name = names.get(int(task.name), "native")
        spent[name] = spent.get(name, 0.0) + _seconds(task)
    return spent


def child_pids(pid: int | str = "self") -> list[int]:
    """The processes that this one (or that of ``pid``) has started and that live now."""
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(OSError):  # the thread ended meanwhile
            found += map(int, (task / "children").read_text().split())
    return found


def cpu_seconds(pid: int) -> float:
    """Processor seconds of all threads of a process so far, those that ended included; 0 when it is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) * _TICK_S


def forget_peak() -> None:
    """Let the peak of this process begin anew (proc(5), ``clear_refs``); where that may not be done, it goes on."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_rss_bytes(pid: int | str = "self") -> int:
    """The most memory that a process had resident so far; 0 when it is gone."""
    try:
        found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    except OSError:
        return 0
    return int(found[1]) * 1024 if found else 0


def _seconds(task: Path) -> float:
    """By the scheduler's own account in nanoseconds where the kernel keeps one, else in clock ticks."""
    try:
        return int((task / "schedstat").read_text().split()[0]) / 1e9
    except FileNotFoundError:
        pass
    except OSError:
        return 0.0  # it ended meanwhile
    try:
        fields = (task / "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) * _TICK_S


class Sampler:
    """Follows processes that may end before they can be asked: the last sample of each is kept.

    ``slot`` names the replication slot whose walsender is followed, ``application`` the session whose backend is;
    ``pids`` are followed too. ``cpu`` and ``rss`` hold processor seconds and peak bytes, under ``walsender``,
    ``backend`` and each given name.
    """

    def __init__(self, dsn: str, slot: str | None = None, application: str | None = None, **pids: int) -> None:
        self._dsn = dsn
        self._slot = slot
        self._application = application
        self._pids = dict(pids)
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, name="sampler", daemon=True)
        self.cpu: dict[str, float] = {}
        self.rss: dict[str, int] = {}

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end.set()
        self._thread.join()

    def _run(self) -> None:
        if self._slot is not None:
            self._find("walsender", "select active_pid from pg_replication_slots where slot_name = %s", self._slot)
        if self._application is not None:
            self._find(
                "backend", "select max(pid) from pg_stat_activity where application_name = %s", self._application
            )
        while True:
            last = self._end.wait(0.02)
            for name, pid in self._pids.items():
                self.cpu[name] = max(self.cpu.get(name, 0.0), cpu_seconds(pid))
                self.rss[name] = max(self.rss.get(name, 0), peak_rss_bytes(pid))
            if last:
                return

    def _find(self, name: str, query: str, value: str) -> None:
        """Wait until the server has such a process."""
        with psycopg.connect(self._dsn, autocommit=True) as connection:
            while not self._end.is_set():
                row = connection.execute(query, [value]).fetchone()
                if row and row[0]:
                    self._pids[name] = row[0]
                    return
                time.sleep(0.005)
