"""The initial load, end to end, against ``copy ... to stdout`` into nothing and DuckDB's own postgres extension."""

from __future__ import annotations

import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

from syncline.bench.accounting import Sampler
from syncline.bench.engine import Engine, Figures, engine_config
from syncline.bench.peers import DuckDBExtension, Peers
from syncline.bench.report import Talk, environment, median, per_row, spread
from syncline.bench.workload import Digest, Source, digest_of_copy
from syncline.errors import SynclineError, Unavailable

__all__ = ["load"]


def load(rows: int, repeat: int, peers: Peers, talk: Talk, folder: Path | None) -> dict[str, Any]:
    """Measure; see the command's help. Every copy is compared by content.

    Raises:
        SynclineError: a side failed, or a copy is not equal.
    """
    with Source.started(folder) as source:
        with talk.filling(rows) as wrote:
            source.fill(rows, 100_000, wrote)
            source.execute("create publication bench for table public.chunks")
            source.settle()
        expected = source.digest()
        extension = peers.extension()
        plain: list[float] = []
        ours: list[tuple[Figures, float]] = []
        theirs: list[dict[str, Any]] = []
        for turn in range(repeat):
            with talk.doing(f"run {turn + 1} of {repeat}: copy to stdout"):
                plain.append(_copy(source))
            talk(f"copy to stdout: {rows / plain[-1]:,.0f} rows/s")
            with talk.doing(f"run {turn + 1} of {repeat}: syncline"):
                ours.append(_load(source, f"load{turn}", expected))
            talk(f"syncline: {rows / ours[-1][0].seconds:,.0f} rows/s")
            if extension is not None:
                with talk.doing(f"run {turn + 1} of {repeat}: DuckDB's extension"):
                    theirs.append(extension.load(source))
                talk(f"DuckDB's extension: {rows / theirs[-1]['seconds']:,.0f} rows/s")
        return _result(source, rows, plain, ours, theirs, extension)


def _copy(source: Source) -> float:
    command = [str(source.server.bin("psql")), source.dsn, "-qc", "copy chunks to stdout"]
    began = time.perf_counter()
    done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise Unavailable(f"psql ended with code {done.returncode}: {done.stderr.strip()}")
    return time.perf_counter() - began


def _load(source: Source, name: str, expected: Digest) -> tuple[Figures, float]:
    """From the engine's start until the table is loaded; and the processor seconds of the server meanwhile."""
    folder = source.folder / name
    folder.mkdir()
    try:
        config = engine_config(source.dsn, folder, name, binary=None, initial_load=True)
        with Sampler(source.dsn, application="syncline-load") as sampler, Engine(config, "start") as engine:
            figures = engine.wait(loaded=True)
        found = digest_of_copy(folder / "copy.duckdb")
        if found != expected:
            raise SynclineError(f"The copy has {found.rows} rows, the source {expected.rows}, or other contents.")
        return figures, sampler.cpu.get("backend", 0.0)
    finally:
        source.drop_slot(name)
        shutil.rmtree(folder, ignore_errors=True)


def _result(
    source: Source,
    rows: int,
    plain: list[float],
    ours: list[tuple[Figures, float]],
    theirs: list[dict[str, Any]],
    extension: DuckDBExtension | None,
) -> dict[str, Any]:
    seconds = [figures.seconds for figures, _ in ours]
    ratios = [a / b for a, b in zip(plain, seconds, strict=True)]
    names = {name for figures, _ in ours for name in figures.cpu}
    cpu = {name: median([figures.cpu.get(name, 0.0) for figures, _ in ours], 9) for name in names}
    result: dict[str, Any] = {
        "benchmark": "load",
        **environment(source),
        "rows": rows,
        "repeat": len(plain),
        "ratio": median(ratios),
        "ratio_spread": spread(ratios),
        "rows_per_s": {"copy": round(rows / median(plain)), "syncline": round(rows / median(seconds))},
        "cpu_us_per_row": per_row({**cpu, "backend": median([used for _, used in ours], 9)}, rows),
        "peak_rss_mb": {"syncline": round(max(figures.peak_rss_bytes for figures, _ in ours) / 2**20)},
        "copies_equal": True,
    }
    if theirs:
        result["rows_per_s"]["duckdb_extension"] = round(rows / median([t["seconds"] for t in theirs]))
        result["peak_rss_mb"]["duckdb_extension"] = round(max(t["peak_rss_kb"] for t in theirs) / 1024)
        result["ratio_to_extension"] = median([t["seconds"] / s for t, s in zip(theirs, seconds, strict=True)])
        result["versions"]["duckdb_extension"] = theirs[0]["version"]
    elif extension is None:
        result["peer_error"] = "DuckDB's postgres extension is not installed: run `make peers`."
    return result
