"""What capture by triggers costs the writer: ``pgbench``'s tables with triggers and without, in turns."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import SecretStr

from syncline.bench.report import Talk, environment, median, spread
from syncline.bench.workload import Source
from syncline.capture.triggers.settings import TriggerSettings
from syncline.capture.triggers.source import TriggerSource
from syncline.errors import Unavailable

__all__ = ["triggers"]

_SCALE = 10
_ACCOUNTS = 100_000 * _SCALE
# What pgbench runs: one row a transaction, one of its own (three updates, a select, an insert without a key), and bulk.
_WORK = {
    "update_one": (
        1,
        f"\\set aid random(1, {_ACCOUNTS})\nupdate pgbench_accounts set bid = 1 where aid = :aid;\n",
    ),
    "insert_one": (1, "insert into pgbench_accounts select nextval('accounts_aid'), 1, 0, '';\n"),
    "update_1000": (
        1000,
        f"\\set aid random(1, {_ACCOUNTS - 1000})\n"
        "update pgbench_accounts set abalance = abalance + 1 where aid >= :aid and aid < :aid + 1000;\n",
    ),
    "insert_1000": (
        1000,
        "insert into pgbench_accounts select nextval('accounts_aid'), 1, 0, '' from generate_series(1, 1000);\n",
    ),
}


@dataclass(frozen=True, slots=True)
class _Bench:
    source: Source
    seconds: int
    clients: int

    def run(self, work: str) -> float:
        """Transactions a second."""
        path = self.source.folder / f"{work}.sql"
        what = ["--builtin", "tpcb-like"]
        if work in _WORK:
            path.write_text(_WORK[work][1])
            what = ["--file", str(path)]
        command = [
            *(str(self.source.server.bin("pgbench")), "--no-vacuum", "--protocol", "prepared", *what),
            *("--client", str(self.clients), "--time", str(self.seconds), self.source.dsn),
        ]
        return float(_said(command, r"tps = ([\d.]+)"))

    @contextmanager
    def captured(self, *, notify: bool) -> Iterator[None]:
        """With triggers, whose events are dropped afterwards."""
        tables = ("public.pgbench_accounts", "public.pgbench_tellers", "public.pgbench_branches")
        settings = TriggerSettings(dsn=SecretStr(self.source.dsn), monitored_tables=tables, notify=notify)
        by_triggers = TriggerSource(settings, "syncline")
        by_triggers.install()
        try:
            yield
        finally:
            by_triggers.remove(everything=True)


def triggers(seconds: int, clients: int, repeat: int, talk: Talk, folder: Path | None) -> dict[str, Any]:
    """Measure; see the command's help."""
    ways = {"without": None, "with": False, "with_notify": True}
    rates: dict[str, dict[str, list[float]]] = {}
    with Source.started(folder) as source:
        with talk.doing("making pgbench's tables"):
            _said([str(source.server.bin("pgbench")), "-i", "-q", "-s", str(_SCALE), source.dsn], "")
            source.execute(f"create sequence accounts_aid start {_ACCOUNTS + 1}")
        bench = _Bench(source, seconds, clients)
        for turn in range(repeat):
            for work in (*_WORK, "tpcb_like"):
                order = list(ways)[turn % 3 :] + list(ways)[: turn % 3]
                for way in order:
                    with talk.doing(f"{work}, {way.replace('_', ' ')}"):
                        rates.setdefault(work, {}).setdefault(way, []).append(_turn(bench, work, ways[way]))
        return {
            "benchmark": "triggers",
            **environment(source),
            "clients": clients,
            "seconds": seconds,
            **{work: _figures(_WORK[work][0] if work in _WORK else 3, clients, by) for work, by in rates.items()},
        }


def _turn(bench: _Bench, work: str, notify: bool | None) -> float:
    bench.source.execute(f"delete from pgbench_accounts where aid > {_ACCOUNTS}")
    bench.source.execute("vacuum analyze pgbench_accounts")
    bench.source.execute("checkpoint")
    if notify is None:
        return bench.run(work)
    with bench.captured(notify=notify):
        return bench.run(work)


def _figures(rows: int, clients: int, rates: dict[str, list[float]]) -> dict[str, Any]:
    """Rates, and what a row costs more: the time of a transaction (of each client) less that without triggers."""
    per_row = {way: [clients * 1e6 / rate / rows for rate in many] for way, many in rates.items()}
    return {
        "captured_rows": rows,
        "tps": {way: median(many, 1) for way, many in rates.items()},
        "tps_spread": {way: spread(many) for way, many in rates.items()},
        "ratio": {
            way: median([a / b for a, b in zip(many, rates["without"], strict=True)])
            for way, many in rates.items()
            if way != "without"
        },
        "more_us_per_row": {
            way: median([a - b for a, b in zip(many, per_row["without"], strict=True)], 1)
            for way, many in per_row.items()
            if way != "without"
        },
    }


def _said(command: list[str], pattern: str) -> str:
    """What a program printed, where it matches.

    Raises:
        Unavailable: it failed.
    """
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    found = re.search(pattern, done.stdout)
    if done.returncode or found is None:
        raise Unavailable(f"pgbench ended with code {done.returncode}: {done.stderr.strip()[-500:]}")
    return found[1] if found.re.groups else ""
