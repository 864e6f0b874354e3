"""Commit to visible: single-row transactions at a steady rate into a table that is already large."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

from syncline.bench.accounting import Sampler
from syncline.bench.engine import Engine, Figures, engine_config
from syncline.bench.report import Talk, environment
from syncline.bench.workload import SLOT, Digest, Source, digest_of_copy
from syncline.errors import SynclineError, Unavailable

__all__ = ["latency"]

_CLIENTS = 16
_WARM_UP_S = 5

# Half of the transactions change a row at a random key, half add one.
_UPDATE = """\\set id random(0, {top})
update chunks set score = random() * 100, updated_at = clock_timestamp() where id = :id;
"""
_INSERT = """insert into chunks select nextval('chunks_id'), gen_random_uuid(), repeat(md5(random()::text), 6), 'a,b,c',
  jsonb_build_object('n', 1, 'lang', 'en', 'src', 'doc-1'), random() * 100, clock_timestamp();
"""


def latency(rate: int, seconds: int, table_rows: int, talk: Talk, folder: Path | None) -> dict[str, Any]:
    """Measure; see the command's help. The copy is compared by content at the end.

    Raises:
        SynclineError: the engine failed, or the copy is not equal.
    """
    with Source.started(folder) as source:
        with talk.filling(table_rows) as wrote:
            source.fill(table_rows, 100_000, wrote)
            source.prepare_slot()
            source.settle()
        config = engine_config(source.dsn, source.folder, SLOT, binary=None, initial_load=True)
        with Engine(config, "start") as engine:
            with talk.doing("loading them into DuckDB"):
                engine.wait(loaded=True)
            writer = _Writer(source, rate, table_rows)
            with talk.doing(f"warming up for {_WARM_UP_S} s"):
                writer.run(_WARM_UP_S)
            with talk.doing(f"{rate:,} transactions a second for {seconds} s"), Sampler(source.dsn, SLOT) as sampler:
                engine.reset()
                before = sampler.cpu.get("walsender", 0.0)
                achieved = writer.run(seconds)
                figures = engine.figures()
            engine.wait(place=source.mark())
        expected, found = source.digest(), digest_of_copy(source.folder / "copy.duckdb")
        if found != expected:
            raise SynclineError(f"The copy has {found.rows} rows, the source {expected.rows}, or other contents.")
        return _result(source, figures, sampler, before, achieved, found, rate=rate, table_rows=table_rows)


class _Writer:
    """``pgbench`` with a few connections: a process of its own that costs little."""

    def __init__(self, source: Source, rate: int, table_rows: int) -> None:
        self._source = source
        self._rate = rate
        self._scripts = [source.folder / "update.sql", source.folder / "insert.sql"]
        self._scripts[0].write_text(_UPDATE.format(top=table_rows - 1))
        self._scripts[1].write_text(_INSERT.replace("\n", " ") + "\n")
        source.execute(f"create sequence chunks_id start {table_rows}")

    def run(self, seconds: int) -> float:
        """Write for so long; the transactions a second that were achieved.

        Raises:
            Unavailable: pgbench failed.
        """
        command = [
            *(str(self._source.server.bin("pgbench")), "--no-vacuum", "--protocol", "prepared"),
            *("--client", str(_CLIENTS), "--rate", str(self._rate), "--time", str(seconds)),
            *(part for script in self._scripts for part in ("--file", str(script))),
            self._source.dsn,
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        found = re.search(r"tps = ([\d.]+)", done.stdout)
        if done.returncode or found is None:
            raise Unavailable(f"pgbench ended with code {done.returncode}: {done.stderr.strip()[-500:]}")
        return float(found[1])


def _result(
    source: Source,
    figures: Figures,
    sampler: Sampler,
    before: float,
    achieved: float,
    digest: Digest,
    *,
    rate: int,
    table_rows: int,
) -> dict[str, Any]:
    seconds = figures.seconds
    return {
        "benchmark": "latency",
        **environment(source),
        "rate": rate,
        "achieved_per_s": round(achieved, 1),
        "seconds": round(seconds, 1),
        "table_rows": table_rows,
        **figures.latency_ms,
        "rows_applied": figures.rows,
        # Cores that were busy on average, by thread of the engine and of the walsender.
        "cpu_cores": {
            "syncline": round(sum(figures.cpu.values()) / seconds, 3),
            "walsender": round((sampler.cpu.get("walsender", 0.0) - before) / seconds, 3),
            **{name: round(used / seconds, 3) for name, used in figures.cpu.items()},
        },
        "peak_rss_mb": round(figures.peak_rss_bytes / 2**20),
        "rows_in_copy": digest.rows,
        "copy_equal": True,
    }
