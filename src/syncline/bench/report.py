"""How results look: one JSON object on stdout, or a table; talk on stderr."""

from __future__ import annotations

import json
import os
import platform
import statistics
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import duckdb
import pyarrow as pa
from rich.console import Console
from rich.table import Table

from syncline import __version__
from syncline.bars import RowBars
from syncline.bench.workload import Source

__all__ = ["Talk", "environment", "median", "per_row", "show", "shown_command", "spread"]


_SECRET = ("--uri", "--password")


class Talk:
    """Progress for a person, on stderr."""

    def __init__(self) -> None:
        self._console = Console(stderr=True, highlight=False)

    def __call__(self, text: str) -> None:
        """Say something that stays."""
        self._console.print(text, markup=False)

    @contextmanager
    def doing(self, text: str) -> Iterator[None]:
        """Say what is being done while it is."""
        with self._console.status(text):
            yield

    @contextmanager
    def filling(self, rows: int) -> Iterator[Callable[[int], None]]:
        """A bar while rows are written into PostgreSQL; what it yields is told how many are."""
        with RowBars(self._console) as bars:
            yield lambda written: bars.show("writing into PostgreSQL", written, rows)


def environment(source: Source, command: Sequence[str] | None = None) -> dict[str, Any]:
    """What the figures were measured on and with."""
    return {
        "command": shown_command(list(sys.argv[1:]) if command is None else list(command)),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "load_average": [round(x, 2) for x in os.getloadavg()],
        "versions": {
            "syncline": __version__,
            "postgres": source.value("select current_setting('server_version')"),
            "duckdb": duckdb.__version__,
            "pyarrow": pa.__version__,
            "python": platform.python_version(),
        },
    }


def shown_command(given: Sequence[str]) -> str:
    """The command line with these arguments, without addresses: they may hold a password (Guarantee 11)."""
    told = [
        f"{option}=..." if sign and option in _SECRET else option + sign + rest
        for option, sign, rest in (part.partition("=") for part in given)
    ]
    told = ["..." if i and told[i - 1] in _SECRET else part for i, part in enumerate(told)]
    return " ".join(["syncline", *(told if "bench" in told else ["bench", *told])])


def median(values: Sequence[float], digits: int = 3) -> float:
    """The median, rounded; 0 of nothing."""
    return round(statistics.median(values), digits) if values else 0.0


def spread(values: Sequence[float]) -> list[float]:
    """Smallest and greatest: how noisy the machine was."""
    return [round(min(values), 3), round(max(values), 3)] if values else []


def per_row(seconds: Mapping[str, float], rows: int) -> dict[str, float]:
    """Processor microseconds a row, by thread or process, the greatest first."""
    if not rows:
        return {}
    found = {name: round(used * 1e6 / rows, 2) for name, used in seconds.items()}
    return dict(sorted(((n, v) for n, v in found.items() if v >= 0.01), key=lambda item: -item[1]))


def show(result: dict[str, Any], *, as_json: bool) -> None:
    """Print the result: the JSON object whole, or its figures as a table."""
    if as_json:
        sys.stdout.write(json.dumps(result, indent=2) + "\n")
        sys.stdout.flush()
        return
    table = Table(show_header=False, box=None)
    for name, value in _flat(result):
        table.add_row(name, value)
    Console(highlight=False, markup=False).print(table)


def _flat(value: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, str]]:
    for name, inner in value.items():
        if isinstance(inner, Mapping):
            yield from _flat(inner, f"{above}{name}.")
        elif isinstance(inner, float):
            yield f"{above}{name}", f"{inner:,.2f}"
        elif isinstance(inner, int) and not isinstance(inner, bool):
            yield f"{above}{name}", f"{inner:,}"
        else:
            yield f"{above}{name}", str(inner)
