"""One transaction larger than memory allows: it passes in parts, and the engine stays small."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from syncline.bench.accounting import Sampler
from syncline.bench.engine import Engine, engine_config
from syncline.bench.report import Talk, environment, per_row
from syncline.bench.workload import Source, digest_of_copy
from syncline.errors import SynclineError

__all__ = ["big_transaction"]


def big_transaction(rows: int, memory_limit: str, talk: Talk, folder: Path | None) -> dict[str, Any]:
    """Measure; see the command's help."""
    with Source.started(folder) as source:
        source.prepare_slot()
        with talk.doing(f"writing {rows:,} rows in one transaction"):
            filled = source.fill(rows, rows)
            source.settle()
        with source.copied_slot("run1") as slot, talk.doing("reading it"):
            config = engine_config(source.dsn, source.folder, slot, binary=None, initial_load=False)
            config["targets"]["main"]["memory_limit"] = memory_limit
            with Sampler(source.dsn, slot) as sampler, Engine(config, "streaming") as engine:
                figures = engine.wait(place=filled.place)
        with talk.doing("comparing"):
            expected, found = source.digest(), digest_of_copy(source.folder / "copy.duckdb")
            if found != expected:
                raise SynclineError(f"The copy differs from the source: {found.rows} of {expected.rows} rows.")
        return {
            "benchmark": "big-transaction",
            **environment(source),
            "rows": rows,
            "memory_limit": memory_limit,
            "seconds": round(figures.seconds, 1),
            "rows_per_s": round(rows / figures.seconds),
            "peak_rss_mb": round(figures.peak_rss_bytes / 2**20),
            "cpu_us_per_row": per_row({**sampler.cpu, **figures.cpu}, rows),
            "rows_in_copy": found.rows,
            "copy_equal": True,
        }
