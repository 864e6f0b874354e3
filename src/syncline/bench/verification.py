"""Verification of a copy, equal and with differences that lie anywhere; of a DuckDB file beside reladiff on the same
tables."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from syncline.bench.accounting import Sampler, child_pids, cpu_seconds
from syncline.bench.engine import Engine, engine_config
from syncline.bench.peers import Peers, Reladiff
from syncline.bench.places import Address, Place, place_of
from syncline.bench.planting import plant
from syncline.bench.report import Talk, environment, median, spread
from syncline.bench.workload import SLOT, TABLE, Source, digest_of_copy
from syncline.errors import SynclineError, Unavailable

__all__ = ["Copied", "Look", "await_streaming", "look", "verification", "write_config"]

_DIFFERENT = 4
_GRAPH = {TABLE: {"node": "Chunk", "references": {"previous": "FOLLOWS"}}}


@dataclass(frozen=True, slots=True)
class Copied:
    """So many rows in a copy, in so many of which a difference is planted. ``dimensions`` are those of the vectors of a
    kind that has them."""

    kind: str
    rows: int
    differences: int
    dimensions: int = 128

    @property
    def keys(self) -> Sequence[int]:
        """Keys of the rows that are made to differ: they lie evenly over all of them."""
        return range(0, self.rows // self.differences * self.differences, self.rows // self.differences)


@dataclass(frozen=True, slots=True)
class Look:
    """One look: seconds, the report, peak bytes of the process that looked, and processor seconds by process."""

    seconds: float
    report: Mapping[str, Any]
    peak_rss: int
    cpu: Mapping[str, float]

    @property
    def differences(self) -> int:
        """How many rows differ."""
        return int(self.report["differences"])


def verification(
    copied: Copied, repeat: int, address: Address | None, peers: Peers, talk: Talk, folder: Path | None
) -> dict[str, Any]:
    """Measure; see the command's help. What either side finds is held against what was planted.

    Raises:
        SynclineError: a side failed, or found something else.
    """
    kind = copied.kind
    reladiff = peers.reladiff() if kind == "duckdb" else None
    with ExitStack() as stack:
        dimensions = copied.dimensions if kind == "qdrant" else 0
        source = stack.enter_context(Source.started(folder, dimensions, edges=kind == "neo4j"))
        # Before the rows are made: a server that can't be used is told at once.
        place = stack.enter_context(place_of(kind, source.folder, address, dimensions=copied.dimensions))
        bench = _Bench(source, place, copied, reladiff, talk)
        bench.begin()
        result: dict[str, Any] = {
            "benchmark": "verify",
            **environment(source),
            "target": kind,
            "server": place.server,
            "rows": copied.rows,
            "dimensions": place.dimensions,
            "edges": source.value("select count(previous) from chunks") if source.edges else 0,
            "repeat": repeat,
            "equal": bench.measure(repeat, {}),
        }
        with talk.doing(f"planting {copied.differences:,} differences"):
            planted = plant(place, copied.keys)
        result[f"{copied.differences}_differences"] = bench.measure(repeat, planted)
        if reladiff is not None:
            result["versions"]["reladiff"] = reladiff.version()
        elif kind == "duckdb":
            result["peer_error"] = "reladiff is not installed: run `make peers`."
        return result


class _Bench:
    """A source, a copy, and who compares them."""

    def __init__(self, source: Source, place: Place, copied: Copied, reladiff: Reladiff | None, talk: Talk) -> None:
        self._source = source
        self._place = place
        self._copied = copied
        self._reladiff = reladiff
        self._talk = talk
        target = {**place.target, "tables": _GRAPH} if source.edges else place.target
        self._config = engine_config(source.dsn, source.folder, SLOT, targets={"main": target})

    def begin(self) -> None:
        """Rows, and a copy of them."""
        source, rows = self._source, self._copied.rows
        with self._talk.filling(rows) as wrote:
            source.fill(rows, 100_000, wrote)
            source.execute(f"create publication bench for table {TABLE}")
            source.settle()
        with self._talk.doing("copying them"), Engine(self._config, "start") as engine:
            engine.wait(loaded=True)
        # By other means than what is measured, where there are some.
        if self._place.kind == "duckdb" and digest_of_copy(self._place.target["path"]) != source.digest():
            raise SynclineError("The copy differs from its source before anything was planted.")
        write_config(source, self._config)

    def measure(self, repeat: int, planted: Mapping[str, int]) -> dict[str, Any]:
        """Look so often."""
        ours: list[Look] = []
        theirs: list[dict[str, Any]] = []
        for turn in range(repeat):
            with self._talk.doing(f"run {turn + 1} of {repeat}: syncline verify"):
                ours.append(self._look(sum(planted.values())))
            self._talk(f"syncline: {ours[-1].differences:,} differences in {ours[-1].seconds:.1f} s")
            if self._reladiff is not None:
                with self._talk.doing(f"run {turn + 1} of {repeat}: reladiff"):
                    theirs.append(self._reladiff.compare(self._source))
                self._talk(f"reladiff: {theirs[-1]['differences']:,} differences in {theirs[-1]['seconds']:.1f} s")
                _hold(theirs[-1]["differences"], sum(planted.values()))
        return self._result(ours, theirs) | ({"planted": dict(planted)} if planted else {})

    def _look(self, planted: int) -> Look:
        with Engine(self._config, "start") as engine:
            engine.wait(loaded=True)
            await_streaming(self._source)
            # Qdrant Edge has a process of its own, which the engine starts.
            servers = [self._place.pid] if self._place.pid else child_pids(engine.pid)
            found = look(self._source, engine=[engine.pid], server=servers)
        _hold(found.differences, planted)
        (table,) = found.report["tables"]
        # Whatever is planted makes rows different: that none is missing or extra says that the same rows were found.
        if table["rows"] != self._copied.rows or table["different"] != planted:
            raise SynclineError(f"{planted} of {self._copied.rows} rows were made to differ, found was {table}.")
        return found

    def _result(self, ours: Sequence[Look], theirs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        seconds = {"syncline": [one.seconds for one in ours]}
        peak = {"syncline": max(one.peak_rss for one in ours)}
        if theirs:
            seconds["reladiff"] = [one["seconds"] for one in theirs]
            peak["reladiff"] = max(one["peak_rss"] for one in theirs)
        result: dict[str, Any] = {
            "seconds": {side: median(found) for side, found in seconds.items()},
            "seconds_spread": {side: spread(found) for side, found in seconds.items()},
            "rows_per_s": {side: round(self._copied.rows / median(found)) for side, found in seconds.items()},
            "peak_rss_mb": {side: round(found / 2**20) for side, found in peak.items()},
            # Of the command, of the engine (through which some copies are read), and of the store's server.
            "cpu_s": {name: median([one.cpu[name] for one in ours], 2) for name in ours[0].cpu},
        }
        if theirs:
            pairs = zip(seconds["reladiff"], seconds["syncline"], strict=True)
            result["times_faster"] = median([their / our for their, our in pairs])
        return result


def _hold(found: int, planted: int) -> None:
    if found != planted:
        raise SynclineError(f"{planted} differences were planted, {found} found.")


def write_config(source: Source, config: Mapping[str, Any]) -> None:
    """For the command; the folder is nobody's but ours."""
    _file(source).write_bytes(msgspec.json.encode(config))


def _file(source: Source) -> Path:
    return source.folder / "syncline.json"


def await_streaming(source: Source, timeout_s: float = 60) -> None:
    """Verification would wait for an engine that is only starting."""
    deadline = time.monotonic() + timeout_s
    while not source.value(
        "select coalesce(bool_or(active), false) from pg_replication_slots where slot_name = %s", SLOT
    ):
        if time.monotonic() > deadline:
            raise Unavailable(f"The engine does not stream after {timeout_s:.0f} s.")
        time.sleep(0.05)


def look(source: Source, **beside: Sequence[int]) -> Look:
    """`syncline verify` as a user runs it, its own start counted; an engine streams. The processor time of other
    processes is accounted for under the names that they are given by."""
    began = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", "syncline", "--config", str(_file(source)), "verify", "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "NO_COLOR": "1"},
        text=True,
    )
    before = {name: sum(map(cpu_seconds, pids)) for name, pids in beside.items()}
    with Sampler(source.dsn, verify=process.pid) as sampler:
        out, _ = process.communicate()
        seconds = time.perf_counter() - began
    if process.returncode not in (0, _DIFFERENT):
        raise Unavailable(f"syncline verify ended with code {process.returncode}.")
    spent = {name: sum(map(cpu_seconds, pids)) - before[name] for name, pids in beside.items() if pids}
    cpu = {"command": sampler.cpu.get("verify", 0.0), **spent}
    return Look(seconds, json.loads(out), sampler.rss.get("verify", 0), cpu)
