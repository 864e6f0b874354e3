"""The engine in a process of its own, so that its time and memory are its own; one JSON object a line each way.

The child (``python -m syncline.bench.engine``) is told a configuration and when its clock starts, then what to wait
for; it keeps the time itself, so that nothing of the conversation is measured. It ends with its standard input.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, TYPE_CHECKING, Any, Literal, Self

import msgspec

from syncline.bench.accounting import child_pids, cpu_seconds, peak_rss_bytes, thread_cpu
from syncline.errors import SynclineError, Unavailable

if TYPE_CHECKING:
    from syncline.verify.rolling import RollingVerification

__all__ = ["Engine", "Figures", "TargetFigures", "duckdb_target", "engine_config"]

_POLL_S = 0.004
Since = Literal["start", "streaming"]


class TargetFigures(msgspec.Struct, frozen=True):
    """One target so far: seconds until it had what was waited for (0 if nothing was), rows written, and
    commit-to-visible latencies."""

    seconds: float
    rows: int
    latency_ms: dict[str, float]


class Figures(msgspec.Struct, frozen=True):
    """A run so far: seconds since the clock started, processor seconds since then by thread, peak memory of the whole
    life, and each target's own figures."""

    seconds: float
    cpu: dict[str, float]
    peak_rss_bytes: int
    targets: dict[str, TargetFigures]

    @property
    def rows(self) -> int:
        """Rows written by all targets."""
        return sum(found.rows for found in self.targets.values())

    @property
    def latency_ms(self) -> dict[str, float]:
        """The latencies of an engine with one target."""
        (found,) = self.targets.values()
        return found.latency_ms


def engine_config(
    dsn: str,
    folder: Path,
    slot: str,
    *,
    binary: bool | None = None,
    initial_load: bool = True,
    targets: Mapping[str, Mapping[str, Any]] | None = None,
) -> dict[str, Any]:
    """A configuration with the defaults of a user's, its files in ``folder``, its control schema named as its slot.

    ``targets`` is by default one DuckDB file in the folder, called main.
    """
    return {
        "sources": {
            "main": {
                "dsn": dsn,
                "slot": slot,
                "publication": "bench",
                "monitored_tables": ["public.chunks"],
                "binary": binary,
                "initial_load": initial_load,
            }
        },
        "targets": {name: dict(one) for name, one in (targets or {"main": duckdb_target(folder)}).items()},
        "log": {"path": str(folder / "log")},
        "control": {"schema": f"syncline_{slot}"},
    }


def duckdb_target(folder: Path) -> dict[str, Any]:
    """A DuckDB file in the folder."""
    return {"type": "duckdb", "path": str(folder / "copy.duckdb")}


class Engine:
    """Runs the engine in a child process. ``since`` says when its clock starts: at the engine's start, or when its
    stream does. Leaving the context stops it.

    Raises:
        Unavailable: the engine failed, with what it said.
    """

    def __init__(self, config: dict[str, Any], since: Since) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "syncline.bench.engine"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.pid = self._process.pid
        try:
            self._ask(config=config, since=since)
        except BaseException:
            self._process.kill()
            self._process.wait()
            raise

    def wait(
        self, *, place: int = 0, loaded: bool = False, timeout_s: float = 3600, targets: Sequence[str] = ()
    ) -> Figures:
        """Wait until everything below ``place`` is committed in the copies (or those of ``targets``), or their table is
        loaded."""
        asked = {"place": place, "loaded": loaded, "timeout_s": timeout_s, "targets": list(targets)}
        return msgspec.convert(self._ask(do="wait", **asked), Figures)

    def reset(self) -> None:
        """Start the clock again, and forget the latencies so far."""
        self._ask(do="reset")

    def figures(self) -> Figures:
        """As :meth:`wait`, now."""
        return msgspec.convert(self._ask(do="figures"), Figures)

    def _ask(self, **what: Any) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(what) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise Unavailable(f"The measured engine ended with code {self._process.wait()}.")
        answer = json.loads(line)
        if "error" in answer:
            raise Unavailable(f"The measured engine failed: {answer['error']}")
        return answer

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.close()
        except BrokenPipeError:
            pass  # it is gone already
        try:
            self._process.wait(60)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()


# ------------------------------------------------------------------------------------------------------- the child


def _cpu() -> dict[str, float]:
    """Processor seconds by thread, and of the processes that a store has started (Qdrant Edge's own)."""
    return {**thread_cpu(), "processes": sum(map(cpu_seconds, child_pids()))}


class _Child:
    """The other end: builds the service, answers, stops."""

    def __init__(self, config: dict[str, Any], since: Since) -> None:
        from syncline.catalog.repository import ControlSchema
        from syncline.config import Config
        from syncline.pipeline import SyncService

        tree = Config.model_validate(config)
        # Made once in a deployment's life, not at every start.
        control = ControlSchema(tree.control_dsn, tree.control.schema_name)
        control.migrate()
        control.close()
        self._since = since
        self._began = 0.0
        self._cpu: dict[str, float] = {}
        self._rows: dict[str, int] = {}
        self._arrived: dict[str, float] = {}
        self._service = SyncService(tree, talk=self._heard)
        self._verification: RollingVerification | None = None
        self._start_clock()
        self._service.start()
        if tree.verify.rolling is not None:
            from syncline.verify.rolling import RollingVerification

            self._verification = RollingVerification(tree, self._service.status)
            self._verification.start()

    def _heard(self, text: str) -> None:
        if self._since == "streaming" and text.startswith(("streaming from slot", "polling ")):
            self._start_clock()

    def _start_clock(self) -> None:
        self._cpu = _cpu()
        self._began = time.perf_counter()

    def _targets(self) -> dict[str, Any]:
        return dict(self._service.sources["main"].targets)

    def _check(self) -> None:
        if self._service.errors():
            raise self._service.errors()[0]

    def wait(self, *, place: int, loaded: bool, timeout_s: float, targets: Sequence[str]) -> Figures:
        def arrived(name: str) -> bool:
            worker = self._targets()[name].worker
            if worker is None:
                return False
            return bool(worker.cursor.loaded) if loaded else worker.cursor.place > place

        self._arrived = {}
        deadline = time.monotonic() + timeout_s
        missing = set(targets or self._targets())
        while True:
            for name in [n for n in missing if arrived(n)]:
                self._arrived[name] = time.perf_counter() - self._began
                missing.remove(name)
            if not missing:
                return self.figures()
            if time.monotonic() > deadline:
                raise Unavailable(f"{', '.join(sorted(missing))} did not get there in {timeout_s:.0f} s.")
            self._check()
            time.sleep(_POLL_S)

    def reset(self) -> None:
        for name, target in self._targets().items():
            target.worker.progress.reset_latencies()
            self._rows[name] = target.worker.progress.rows
        self._start_clock()

    def figures(self) -> Figures:
        self._check()
        seconds = time.perf_counter() - self._began
        spent = {name: used - self._cpu.get(name, 0.0) for name, used in _cpu().items()}
        return Figures(
            seconds,
            {name: used for name, used in spent.items() if used > 0},
            peak_rss_bytes() + sum(map(peak_rss_bytes, child_pids())),
            {n: self._target(n, t.worker) for n, t in self._targets().items() if t.worker is not None},
        )

    def _target(self, name: str, worker: Any) -> TargetFigures:
        rows = worker.progress.rows - self._rows.get(name, 0)
        return TargetFigures(self._arrived.get(name, 0.0), rows, worker.progress.latency_ms())

    def stop(self) -> None:
        if self._verification is not None:
            self._verification.stop()
        self._service.stop()


def _answer(child: _Child, asked: dict[str, Any]) -> Any:
    do = asked.pop("do")
    if do == "wait":
        return child.wait(**asked)
    return child.reset() if do == "reset" else child.figures()


def _serve(lines: IO[str], out: IO[str]) -> None:
    import structlog

    # Warnings only; standard output has become standard error.
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(30))
    child: _Child | None = None
    try:
        for line in lines:
            asked = json.loads(line)
            answer: Any = None
            try:
                if child is None:
                    child = _Child(**asked)
                else:
                    answer = _answer(child, asked)
                reply = msgspec.to_builtins(answer) or {}
            except SynclineError as error:
                reply = {"error": str(error)}
            out.write(json.dumps(reply) + "\n")
            out.flush()
    finally:
        if child is not None:
            child.stop()


if __name__ == "__main__":
    # What anybody prints goes to standard error: standard output is the conversation.
    with os.fdopen(os.dup(1), "w") as answers:
        os.dup2(2, 1)
        _serve(sys.stdin, answers)
