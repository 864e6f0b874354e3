"""Commit to visible: small transactions at a steady rate into a table that is already large."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from syncline.bench.accounting import Sampler, cpu_seconds
from syncline.bench.engine import Engine, Figures, engine_config
from syncline.bench.places import Address, Place, place_of
from syncline.bench.report import Talk, environment
from syncline.bench.stores import check_copies
from syncline.bench.workload import SLOT, Source
from syncline.errors import Unavailable

__all__ = ["WARM_UP_S", "Steady", "Writer", "latency"]

_CLIENTS = 16
WARM_UP_S = 5
_DIMENSIONS = 128

# Half of the transactions change rows at random keys, half add some.
_UPDATE = """\\set id random(0, {top})
update chunks set score = random() * 100, updated_at = clock_timestamp() where id between :id and :id + {more};
"""
_INSERT = "insert into chunks select nextval('chunks_id'), {values} from generate_series(0, {more}) as g;\n"


@dataclass(frozen=True, slots=True)
class Steady:
    """Single-row transactions a second, for how long, on a table of so many rows."""

    rate: int
    seconds: int
    table_rows: int


def latency(kind: str, steady: Steady, address: Address | None, talk: Talk, folder: Path | None) -> dict[str, Any]:
    """Measure; see the command's help. The copy is compared by content at the end.

    Raises:
        SynclineError: the engine failed, or the copy is not equal.
    """
    rate, seconds, table_rows = steady.rate, steady.seconds, steady.table_rows
    with ExitStack() as stack:
        source = stack.enter_context(Source.started(folder, _DIMENSIONS if kind == "qdrant" else 0))
        # Before the rows are made: a server that can't be used is told at once.
        place = stack.enter_context(place_of(kind, source.folder, address, dimensions=_DIMENSIONS))
        with talk.filling(table_rows) as wrote:
            source.fill(table_rows, 100_000, wrote)
            source.prepare_slot()
            source.settle()
        config = engine_config(source.dsn, source.folder, SLOT, targets={"main": place.target})
        with Engine(config, "start") as engine:
            with talk.doing(f"loading them into {kind}"):
                engine.wait(loaded=True)
            writer = Writer(source, rate, table_rows)
            with talk.doing(f"warming up for {WARM_UP_S} s"):
                writer.run(WARM_UP_S)
            with talk.doing(f"{rate:,} transactions a second for {seconds} s"), Sampler(source.dsn, SLOT) as sampler:
                engine.reset()
                before = _servers_cpu(sampler, place)
                achieved = writer.run(seconds)
                engine.wait(place=source.mark())  # what is not there yet when the last row is written counts, too
                figures = engine.figures()
                spent = {name: used - before[name] for name, used in _servers_cpu(sampler, place).items()}
            rows = int(source.value("select count(*) from chunks"))
            with talk.doing("comparing with the source"):
                check_copies(config, rows)
        measured = {"rate": rate, "achieved_per_s": round(achieved, 1), "table_rows": table_rows}
        return _result(source, place, figures, spent) | measured | {"rows_in_copy": rows, "copy_equal": True}


def _servers_cpu(sampler: Sampler, place: Place) -> dict[str, float]:
    """Processor seconds so far of the walsender, and of the store's server if it has a process here."""
    server = {"server": cpu_seconds(place.pid)} if place.pid else {}
    return {"walsender": sampler.cpu.get("walsender", 0.0), **server}


class Writer:
    """``pgbench`` with a few connections: a process of its own that costs little."""

    def __init__(self, source: Source, rate: int, table_rows: int, rows: int = 1) -> None:
        """``rate`` transactions a second, of so many rows each."""
        self._source = source
        self._rate = rate
        self._scripts = [source.folder / "update.sql", source.folder / "insert.sql"]
        self._scripts[0].write_text(_UPDATE.format(top=max(0, table_rows - rows), more=rows - 1))
        self._scripts[1].write_text(_INSERT.format(values=source.values.replace("\n", " "), more=rows - 1))
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


def _result(source: Source, place: Place, figures: Figures, servers: Mapping[str, float]) -> dict[str, Any]:
    seconds = figures.seconds
    return {
        "benchmark": "latency",
        **environment(source),
        "target": place.kind,
        "server": place.server,
        "seconds": round(seconds, 1),
        **figures.latency_ms,
        "rows_applied": figures.rows,
        # Cores that were busy on average, by thread of the engine, of the walsender and of the store's server.
        "cpu_cores": {
            "syncline": round(sum(figures.cpu.values()) / seconds, 3),
            **{name: round(used / seconds, 3) for name, used in servers.items()},
            **{name: round(used / seconds, 3) for name, used in figures.cpu.items()},
        },
        "peak_rss_mb": round(figures.peak_rss_bytes / 2**20),
    }
