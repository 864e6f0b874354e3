"""WAL to DuckDB, end to end, against ``pg_recvlogical`` into nothing: the same WAL, alternating, in one run."""

from __future__ import annotations

import shutil
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from syncline.bench.accounting import Sampler
from syncline.bench.engine import Engine, Figures, engine_config
from syncline.bench.peers import Peers
from syncline.bench.report import Talk, environment, median, per_row, spread
from syncline.bench.workload import PUBLICATION, SLOT, Digest, Filled, Source, digest_of_copy
from syncline.capture.slot import format_lsn
from syncline.errors import SynclineError, Unavailable

__all__ = ["Changes", "wal_duckdb"]

_SIDES = ("pg_recvlogical", "text", "binary")


@dataclass(frozen=True, slots=True)
class _Run:
    """One pass over the WAL by one side."""

    seconds: float
    cpu: dict[str, float]
    peak_rss_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Changes:
    """What waits in the slot: inserted rows, or, with ``table_rows``, a mix on a table of so many loaded rows."""

    rows: int
    table_rows: int = 0


def wal_duckdb(changes: Changes, repeat: int, peers: Peers | None, talk: Talk, folder: Path | None) -> dict[str, Any]:
    """Measure; see the command's help. Every run of Syncline ends with its copy compared by content.

    Raises:
        SynclineError: a side failed, or a copy is not equal.
    """
    with Source.started(folder) as source:
        bench = _Bench(source, talk)
        filled = bench.prepare_mix(changes) if changes.table_rows else bench.prepare(changes.rows)
        runs: dict[str, list[_Run]] = {side: [] for side in _SIDES}
        for turn in range(repeat):
            for side in _SIDES[turn % 3 :] + _SIDES[: turn % 3]:
                with talk.doing(f"run {turn + 1} of {repeat}: {side}"):
                    runs[side].append(bench.run(side, filled))
                talk(f"{side}: {filled.changes / runs[side][-1].seconds:,.0f} rows/s")
        result = _result(source, filled, runs, changes)
        if peers is not None and not changes.table_rows:
            result |= _peer(source, peers, changes.rows, result["rows_per_s"]["pg_recvlogical"], talk)
        return result


class _Bench:
    def __init__(self, source: Source, talk: Talk) -> None:
        self._source = source
        self._talk = talk
        self._master: Path | None = None
        self._digest: Digest | None = None
        self._number = 0

    def prepare(self, rows: int) -> Filled:
        self._source.prepare_slot()
        with self._talk.filling(rows) as wrote:
            filled = self._source.fill(rows, wrote=wrote)
        return self._settled(filled)

    def prepare_mix(self, changes: Changes) -> Filled:
        """A table that is loaded in a copy, from which every run starts."""
        with self._talk.filling(changes.table_rows) as wrote:
            self._source.fill(changes.table_rows, 100_000, wrote)
            self._source.prepare_slot()
        self._master = self._source.folder / "master"
        self._master.mkdir()
        with self._talk.doing("loading them into DuckDB"):
            config = engine_config(self._source.dsn, self._master, SLOT, binary=None, initial_load=True)
            with Engine(config, "start") as engine:
                engine.wait(loaded=True)
        with self._talk.doing(f"making {changes.rows:,} changes"):
            return self._settled(self._source.mix(changes.rows))

    def _settled(self, filled: Filled) -> Filled:
        self._source.settle()
        self._digest = self._source.digest()
        return filled

    def run(self, side: str, filled: Filled) -> _Run:
        self._number += 1
        with self._source.copied_slot(f"run{self._number}") as slot:
            if side == "pg_recvlogical":
                return self._receive(slot, filled)
            return self._sync(slot, filled, binary=side == "binary")

    def _receive(self, slot: str, filled: Filled) -> _Run:
        """``pg_recvlogical`` writes text format to /dev/null and ends at the last transaction's commit."""
        command = [
            *(str(self._source.server.bin("pg_recvlogical")), "-d", self._source.dsn, "--slot", slot, "--start"),
            *("--endpos", format_lsn(filled.place), "-f", "/dev/null", "--no-loop"),
            *("-o", "proto_version=1", "-o", f"publication_names={PUBLICATION}"),
        ]
        began = time.perf_counter()
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        with Sampler(self._source.dsn, slot, pg_recvlogical=process.pid) as sampler:
            _, said = process.communicate()
            seconds = time.perf_counter() - began
        if process.returncode:
            raise Unavailable(f"pg_recvlogical ended with code {process.returncode}: {said.strip()}")
        return _Run(seconds, sampler.cpu, sampler.rss.get("pg_recvlogical", 0))

    def _sync(self, slot: str, filled: Filled, *, binary: bool) -> _Run:
        folder = self._source.folder / slot
        try:
            if self._master is not None:
                shutil.copytree(self._master, folder)
            else:
                folder.mkdir()
            config = engine_config(self._source.dsn, folder, slot, binary=binary, initial_load=False)
            with Sampler(self._source.dsn, slot) as sampler, Engine(config, "streaming") as engine:
                figures = engine.wait(place=filled.place)
            self._check(folder / "copy.duckdb", figures)
            return _Run(figures.seconds, {**sampler.cpu, **_threads(figures)}, figures.peak_rss_bytes)
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _check(self, copy: Path, figures: Figures) -> None:
        found = digest_of_copy(copy)
        if found != self._digest:
            raise SynclineError(
                f"The copy has {found.rows} rows where the source has {self._digest and self._digest.rows}, "
                f"or other contents, after {figures.rows} applied changes."
            )


def _threads(figures: Figures) -> dict[str, float]:
    """Processor time of the engine by stage; the threads are named for what they do."""
    stages = {"receive": "receive", "capture-main": "decode and log", "apply-main": "apply", "native": "native"}
    spent: dict[str, float] = {}
    for name, used in figures.cpu.items():
        stage = stages.get(name, "other")
        spent[stage] = spent.get(stage, 0.0) + used
    return {**spent, "syncline": sum(figures.cpu.values())}


def _result(source: Source, filled: Filled, runs: dict[str, list[_Run]], changes: Changes) -> dict[str, Any]:
    rates = {side: [filled.changes / run.seconds for run in found] for side, found in runs.items()}
    # A ratio belongs to the runs of one turn: noise that lasts longer than a turn hits both sides.
    ratios = {
        side: [r / base for r, base in zip(rates[side], rates["pg_recvlogical"], strict=True)]
        for side in ("text", "binary")
    }
    return {
        "benchmark": "wal-duckdb --mix" if changes.table_rows else "wal-duckdb",
        **environment(source),
        "changes": filled.changes,
        "table_rows": changes.table_rows,
        "repeat": len(runs["text"]),
        "ratio": median(ratios["text"]),
        "ratio_text": median(ratios["text"]),
        "ratio_binary": median(ratios["binary"]),
        "ratio_text_spread": spread(ratios["text"]),
        "ratio_binary_spread": spread(ratios["binary"]),
        "rows_per_s": {side: median(found, 0) for side, found in rates.items()},
        "rows_per_s_spread": {side: spread(found) for side, found in rates.items()},
        "cpu_us_per_row": {side: _median_cpu(found, filled.changes) for side, found in runs.items()},
        "peak_rss_mb": {side: round(max(r.peak_rss_bytes for r in found) / 2**20) for side, found in runs.items()},
        "copies_equal": True,
    }


def _peer(source: Source, peers: Peers, rows: int, base: float, talk: Talk) -> dict[str, Any]:
    """The one other program that takes the WAL to DuckDB, on the same rows in another database of the server."""
    ingestr = peers.ingestr()
    if ingestr is None:
        return {"peer_error": "ingestr is not installed: run `make peers`."}
    with talk.doing("ingestr"), source.another("peer") as another:
        try:
            found = ingestr.stream(another, rows)
        except Unavailable as error:
            return {"peer_error": str(error)}
    return {"peer": {"name": "ingestr --stream", **found, "ratio": round(found["rows_per_s"] / base, 3)}}


def _median_cpu(runs: list[_Run], rows: int) -> dict[str, float]:
    names = {name for run in runs for name in run.cpu}
    return per_row({name: median([run.cpu.get(name, 0.0) for run in runs], 9) for name in names}, rows)
