"""One source into a graph, vectors and DuckDB at once; and what one of them costs the others when it is slow or stands.

Two setups follow the source with slots of their own: ``all`` has the three targets, ``rest`` the last two. What a graph
that stands costs the others is the difference between the two.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from syncline.bench.accounting import Sampler, cpu_seconds
from syncline.bench.engine import Engine, Figures, engine_config
from syncline.bench.latency import WARM_UP_S, Writer
from syncline.bench.places import Address, place_of
from syncline.bench.report import Talk, environment, median, per_row, spread
from syncline.bench.stores import check_copies
from syncline.bench.workload import SLOT, Filled, Source
from syncline.errors import Unavailable

__all__ = ["Stream", "fanout"]

_DIMENSIONS = 128
_REST = ("duckdb", "vectors")
_CONFIRM_S = 60.0


@dataclass(frozen=True, slots=True)
class Stream:
    """Changes that come at a steady rate: transactions a second, rows in each, and for how long."""

    rate: int
    rows: int
    seconds: int


@dataclass(frozen=True, slots=True)
class _Standing:
    """A turn with a graph that is slow or stands: seconds of each of the others, with it and in a setup without it, and
    how long the source then waited until its WAL was confirmed."""

    beside: Mapping[str, float]
    alone: Mapping[str, float]
    confirmed_s: float


def fanout(
    rows: int, repeat: int, stream: Stream, address: Address | None, talk: Talk, folder: Path | None
) -> dict[str, Any]:
    """Measure; see the command's help. All copies are compared with the source in the end.

    Raises:
        SynclineError: the engine failed, or a copy is not equal.
    """
    with ExitStack() as stack:
        source = stack.enter_context(Source.started(folder, _DIMENSIONS))
        bench = stack.enter_context(_Bench.prepared(source, address, talk))
        runs = [bench.flood(rows) for _ in range(repeat)]
        found = _throughput(runs, rows)
        found |= {"stream": bench.stream(stream)}
        if bench.pid is not None:
            found |= {f"{kind}_graph": bench.disturbed(kind, rows, repeat) for kind in _DISTURBED}
        found |= {"rows_in_copies": bench.compare(), "copies_equal": True}
        return {"benchmark": "fanout", **environment(source), "graph": bench.graph, **found}


class _Bench:
    def __init__(self, source: Source, graph: str, pid: int | None, setups: Mapping[str, dict[str, Any]]) -> None:
        self.graph = graph
        self.pid = pid
        self._source = source
        self._setups = setups
        self._talk: Talk = Talk()

    @staticmethod
    @contextmanager
    def prepared(source: Source, address: Address | None, talk: Talk) -> Iterator[_Bench]:
        """Servers, and both setups with all the tables in them."""
        with ExitStack() as stack:

            def target(kind: str, folder: Path) -> Any:
                folder.mkdir(exist_ok=True)
                return stack.enter_context(place_of(kind, folder, dimensions=_DIMENSIONS)).target

            with talk.doing("starting the servers"):
                graph = stack.enter_context(place_of("neo4j", source.folder, address))
            source.prepare_slot()
            setups = {}
            for name in ("all", "rest"):
                folder = source.folder / name
                targets = {"duckdb": target("duckdb", folder), "vectors": target("qdrant", folder)}
                if name == "all":
                    targets |= {"graph": {**graph.target, "tables": {"public.chunks": {"exclude": ["embedding"]}}}}
                setups[name] = engine_config(source.dsn, folder, _slot(name), targets=targets)
            bench = _Bench(source, graph.server, graph.pid, setups)
            bench._talk = talk
            for name in setups:
                if name != "all":
                    source.execute("select pg_copy_logical_replication_slot(%s, %s)", SLOT, _slot(name))
                with talk.doing("making the tables"), bench._engine(name, "start") as engine:
                    engine.wait(loaded=True)
            yield bench

    def _engine(self, setup: str, since: Any = "streaming") -> Engine:
        return Engine(self._setups[setup], since)

    def _fill(self, rows: int) -> Filled:
        with self._talk.filling(rows) as wrote:
            filled = self._source.fill(rows, wrote=wrote)
        self._source.settle()
        return filled

    # ----------------------------------------------------------------------------------------- everything in order

    def flood(self, rows: int) -> tuple[Figures, Mapping[str, float]]:
        """New rows that wait in the slot, until the last target has them."""
        filled = self._fill(rows)
        before = cpu_seconds(self.pid) if self.pid else 0.0
        with self._talk.doing("all three"), Sampler(self._source.dsn, SLOT) as sampler, self._engine("all") as engine:
            figures = engine.wait(place=filled.place)
            graph = cpu_seconds(self.pid) - before if self.pid else 0.0
        self._talk(f"all three: {rows / figures.seconds:,.0f} rows/s")
        return figures, {**figures.cpu, "engine": sum(figures.cpu.values()), **sampler.cpu, "graph server": graph}

    def stream(self, stream: Stream) -> dict[str, Any]:
        """Latencies while changes come at a steady rate."""
        top = int(self._source.value("select max(id) + 1 from chunks"))
        writer = Writer(self._source, stream.rate, top, stream.rows)
        with self._engine("all") as engine, self._talk.doing(f"{stream.rate * stream.rows:,} changes a second"):
            writer.run(WARM_UP_S)
            engine.reset()
            achieved = writer.run(stream.seconds)
            figures = engine.figures()
            behind = engine.wait(place=self._source.mark())
        return {
            "changes_per_s": round(achieved * stream.rows),
            "rows_a_transaction": stream.rows,
            "caught_up_after_s": round(behind.seconds - figures.seconds, 2),
            **{name: found.latency_ms for name, found in sorted(figures.targets.items())},
            "cpu_cores": round(sum(figures.cpu.values()) / figures.seconds, 2),
        }

    # ------------------------------------------------------------------------------------------ a graph in the way

    def disturbed(self, kind: str, rows: int, repeat: int) -> dict[str, Any]:
        """What the others and the source notice of it."""
        self._catch_up("rest")
        turns = [self._disturb(kind, rows, turn) for turn in range(repeat)]
        cost = {n: [turn.beside[n] / turn.alone[n] - 1 for turn in turns] for n in _REST}
        return {
            "cost_to_others": {name: median(found) for name, found in cost.items()},
            "cost_spread": {name: spread(found) for name, found in cost.items()},
            "source_confirmed_after_s": median([turn.confirmed_s for turn in turns], 2),
        }

    def _catch_up(self, setup: str) -> None:
        with self._engine(setup) as engine:
            engine.wait(place=self._source.mark())

    def _disturb(self, kind: str, rows: int, turn: int) -> _Standing:
        filled = self._fill(rows)
        if turn % 2:
            alone, (beside, confirmed) = self._alone(filled), self._beside(kind, filled)
        else:
            (beside, confirmed), alone = self._beside(kind, filled), self._alone(filled)
        self._talk(f"{kind} graph: {_told(beside)}; without it: {_told(alone)}")
        return _Standing(beside, alone, confirmed)

    def _alone(self, filled: Filled) -> Mapping[str, float]:
        with self._talk.doing("without the graph"), self._engine("rest") as engine:
            return _seconds(engine.wait(place=filled.place))

    def _beside(self, kind: str, filled: Filled) -> tuple[Mapping[str, float], float]:
        """Seconds of the others while the graph is in the way, and of the source until its WAL is confirmed; behind it
        the graph catches up."""
        assert self.pid is not None
        with self._talk.doing(f"beside a {kind} graph"), self._engine("all") as engine:
            with _DISTURBED[kind](self.pid):
                found = _seconds(engine.wait(place=filled.place, targets=_REST))
                confirmed = self._confirmed(filled.place)
            engine.wait(place=filled.place)
        return found, confirmed

    def _confirmed(self, place: int) -> float:
        began = time.monotonic()
        while time.monotonic() - began < _CONFIRM_S:
            if self._source.value(
                "select confirmed_flush_lsn - '0/0'::pg_lsn > %s from pg_replication_slots where slot_name = %s",
                place,
                SLOT,
            ):
                return time.monotonic() - began
            time.sleep(0.02)
        raise Unavailable(f"The source's WAL was not confirmed in {_CONFIRM_S:.0f} s while the graph was in the way.")

    def compare(self) -> int:
        """All copies with the source; how many rows each has."""
        rows = int(self._source.value("select count(*) from chunks"))
        with self._engine("all") as engine, self._talk.doing("comparing with the source"):
            engine.wait(place=self._source.mark())
            check_copies(self._setups["all"], rows)
        return rows


def _slot(setup: str) -> str:
    return SLOT if setup == "all" else setup


@contextmanager
def _stopped(pid: int) -> Iterator[None]:
    """A server that stands: it takes connections, for the system does, and answers nothing."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


@contextmanager
def _slow(pid: int) -> Iterator[None]:
    """A server that runs a tenth of the time."""
    end = threading.Event()

    def run() -> None:
        while not end.is_set():
            with _stopped(pid):
                end.wait(0.09)
            end.wait(0.01)

    thread = threading.Thread(target=run, name="slow", daemon=True)
    thread.start()
    try:
        yield
    finally:
        end.set()
        thread.join()


_DISTURBED = {"slow": _slow, "stopped": _stopped}


def _seconds(figures: Figures) -> dict[str, float]:
    return {name: figures.targets[name].seconds for name in _REST}


def _told(seconds: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {found:.2f} s" for name, found in seconds.items())


def _throughput(runs: Sequence[tuple[Figures, Mapping[str, float]]], rows: int) -> dict[str, Any]:
    until_last = [rows / figures.seconds for figures, _ in runs]
    each = {n: median([rows / f.targets[n].seconds for f, _ in runs], 0) for n in runs[0][0].targets}
    names = {name for _, cpu in runs for name in cpu}
    cpu = {name: median([cpu.get(name, 0.0) for _, cpu in runs], 9) for name in names}
    return {
        "rows": rows,
        "dimensions": _DIMENSIONS,
        "repeat": len(runs),
        "rows_per_s": {"until_the_last": median(until_last, 0), **dict(sorted(each.items()))},
        "rows_per_s_spread": spread(until_last),
        "cpu_us_per_row": per_row(cpu, rows),
        "peak_rss_mb": round(max(figures.peak_rss_bytes for figures, _ in runs) / 2**20),
    }
