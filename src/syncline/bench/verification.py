"""Verification of a DuckDB copy, equal and with differences that lie anywhere, beside reladiff on the same tables."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import msgspec

from syncline.bench.accounting import Sampler
from syncline.bench.engine import Engine, engine_config
from syncline.bench.peers import Peers, Reladiff
from syncline.bench.report import Talk, environment, median, spread
from syncline.bench.workload import Source, digest_of_copy
from syncline.errors import SynclineError, Unavailable

__all__ = ["verification"]

_DIFFERENT = 4


@dataclass(frozen=True, slots=True)
class _Looked:
    """One look: seconds, differences found, peak bytes of the process that looked."""

    seconds: float
    differences: int
    peak_rss: int


def verification(
    rows: int, differences: int, repeat: int, peers: Peers, talk: Talk, folder: Path | None
) -> dict[str, Any]:
    """Measure; see the command's help. What either side finds is held against what was planted.

    Raises:
        SynclineError: a side failed, or found something else.
    """
    reladiff = peers.reladiff()
    with Source.started(folder) as source:
        config = _copied(source, rows, talk)
        result: dict[str, Any] = {
            "benchmark": "verify",
            **environment(source),
            "rows": rows,
            "repeat": repeat,
            "equal": _measured(source, config, 0, repeat, reladiff, talk),
        }
        _damage(source.folder / "copy.duckdb", rows, differences)
        result[f"{differences}_differences"] = _measured(source, config, differences, repeat, reladiff, talk)
        if reladiff is None:
            result["peer_error"] = "reladiff is not installed: run `make peers`."
        else:
            result["versions"]["reladiff"] = reladiff.version()
        return result


def _copied(source: Source, rows: int, talk: Talk) -> dict[str, Any]:
    """Rows, and a copy of them that is proven by other means; its configuration."""
    with talk.filling(rows) as wrote:
        source.fill(rows, 100_000, wrote)
        source.execute("create publication bench for table public.chunks")
        source.settle()
    config = engine_config(source.dsn, source.folder, "bench")
    with talk.doing("copying them"), Engine(config, "start") as engine:
        engine.wait(loaded=True)
    if digest_of_copy(source.folder / "copy.duckdb") != source.digest():
        raise SynclineError("The copy differs from its source before anything was planted.")
    (source.folder / "syncline.json").write_bytes(msgspec.json.encode(config))
    return config


def _damage(path: Path, rows: int, differences: int) -> None:
    """Change one column of rows that lie evenly over the keys."""
    step = rows // differences
    with duckdb.connect(str(path)) as connection:
        connection.execute(
            "update chunks set tags = tags || '!' where id % ? = 0 and id < ?", [step, step * differences]
        )


def _measured(
    source: Source, config: dict[str, Any], planted: int, repeat: int, reladiff: Reladiff | None, talk: Talk
) -> dict[str, Any]:
    ours: list[_Looked] = []
    theirs: list[dict[str, Any]] = []
    for turn in range(repeat):
        with talk.doing(f"run {turn + 1} of {repeat}: syncline verify"), Engine(config, "start") as engine:
            engine.wait(loaded=True)
            _await_streaming(source)
            ours.append(_verify(source))
        talk(f"syncline: {ours[-1].differences:,} differences in {ours[-1].seconds:.1f} s")
        if reladiff is not None:
            with talk.doing(f"run {turn + 1} of {repeat}: reladiff"):
                theirs.append(reladiff.compare(source))
            talk(f"reladiff: {theirs[-1]['differences']:,} differences in {theirs[-1]['seconds']:.1f} s")
        for found in (ours[-1].differences, *(t["differences"] for t in theirs[-1:])):
            if found != planted:
                raise SynclineError(f"{planted} differences were planted, {found} found.")
    seconds = [one.seconds for one in ours]
    result: dict[str, Any] = {
        "seconds": {"syncline": median(seconds)},
        "seconds_spread": {"syncline": spread(seconds)},
        "peak_rss_mb": {"syncline": round(max(one.peak_rss for one in ours) / 2**20)},
    }
    if theirs:
        result["seconds"]["reladiff"] = median([t["seconds"] for t in theirs])
        result["seconds_spread"]["reladiff"] = spread([t["seconds"] for t in theirs])
        result["peak_rss_mb"]["reladiff"] = round(max(t["peak_rss"] for t in theirs) / 2**20)
        result["times_faster"] = median([t["seconds"] / s for t, s in zip(theirs, seconds, strict=True)])
    return result


def _await_streaming(source: Source, timeout_s: float = 60) -> None:
    """Verification would wait for an engine that is only starting."""
    deadline = time.monotonic() + timeout_s
    while not source.value(
        "select coalesce(bool_or(active), false) from pg_replication_slots where slot_name = 'bench'"
    ):
        if time.monotonic() > deadline:
            raise Unavailable(f"The engine does not stream after {timeout_s:.0f} s.")
        time.sleep(0.05)


def _verify(source: Source) -> _Looked:
    """`syncline verify` as a user runs it, its own start counted; an engine streams."""
    began = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", "syncline", "--config", str(source.folder / "syncline.json"), "verify", "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "NO_COLOR": "1"},
        text=True,
    )
    with Sampler(source.dsn, verify=process.pid) as sampler:
        out, _ = process.communicate()
        seconds = time.perf_counter() - began
    if process.returncode not in (0, _DIFFERENT):
        raise Unavailable(f"syncline verify ended with code {process.returncode}.")
    return _Looked(seconds, json.loads(out)["differences"], sampler.rss.get("verify", 0))
