"""What the demo shows while it runs: a live table on a terminal, a line now and then elsewhere, nothing for JSON."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any, Protocol

from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.table import Table

from syncline.capture.slot import format_lsn
from syncline.service.figures import amount, size, span
from syncline.service.loads import LoadBars

__all__ = ["View", "view_for"]

_LINE_EVERY_S = 5.0


class View(Protocol):
    """A context manager that is told how far the demo is."""

    def say(self, line: str) -> None:
        """A step of the demo."""

    def load(self, status: Mapping[str, Any]) -> None:
        """The engine's whole status while existing rows are read."""

    def show(self, status: Mapping[str, Any], counts: Mapping[str, int], written: int, of: int) -> None:
        """The engine's status of the source, row counts at the copy, and rows written of those planned."""

    def __enter__(self) -> View: ...
    def __exit__(self, *_: object) -> None: ...


def view_for(console: Console, *, as_json: bool) -> View:
    """The view that suits where the output goes."""
    if as_json:
        return _Silent()
    return _Panel(console) if console.is_terminal else _Lines(console)


class _Silent:
    def say(self, line: str) -> None:
        """JSON alone is wanted."""

    def load(self, status: Mapping[str, Any]) -> None:
        """JSON alone is wanted; a file has no use of a bar."""

    def show(self, status: Mapping[str, Any], counts: Mapping[str, int], written: int, of: int) -> None:
        """JSON alone is wanted."""

    def __enter__(self) -> View:
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing was opened."""


class _Lines(_Silent):
    """For files and pipes."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._due = 0.0

    def say(self, line: str) -> None:
        self._console.print(line)

    def show(self, status: Mapping[str, Any], counts: Mapping[str, int], written: int, of: int) -> None:
        if time.monotonic() < self._due:
            return
        self._due = time.monotonic() + _LINE_EVERY_S
        target = next(iter(status["targets"].values()))
        self._console.print(
            f"  written {amount(written)} of {amount(of)}; {amount(target.get('rows_per_s'))} rows/s applied, "
            f"{size(status['lag_bytes'])} and {span(target.get('lag_s'))} behind, "
            f"log {size(status['log']['size_bytes'])}; copy: {amount(sum(counts.values()))} rows"
        )


class _Panel(_Silent):
    """For terminals: one panel that is drawn anew, under the lines that were said."""

    def __init__(self, console: Console) -> None:
        self._live = Live(console=console, refresh_per_second=8, transient=False)
        self._bars = LoadBars(console, self._live)

    def say(self, line: str) -> None:
        self._live.console.print(line)

    def load(self, status: Mapping[str, Any]) -> None:
        self._bars.show(status)

    def show(self, status: Mapping[str, Any], counts: Mapping[str, int], written: int, of: int) -> None:
        self._live.update(_panel(status, counts, written, of))

    def __enter__(self) -> View:
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()


def _panel(status: Mapping[str, Any], counts: Mapping[str, int], written: int, of: int) -> Panel:
    target, log = next(iter(status["targets"].values())), status["log"]
    figures = Table.grid(padding=(0, 3))
    figures.add_row("source", status["state"], "target", target["state"])
    figures.add_row("written", f"{amount(written)} of {amount(of)}", "applied", amount(target.get("rows_applied")))
    figures.add_row("rows/s", amount(target.get("rows_per_s")), "commit to visible, p50", _ms(target.get("p50_ms")))
    figures.add_row(
        "behind", f"{size(status['lag_bytes'])}, {span(target.get('lag_s'))}", "p95", _ms(target.get("p95_ms"))
    )
    figures.add_row("log", f"{size(log['size_bytes'])}, entry {amount(log['end'])}", "p99", _ms(target.get("p99_ms")))
    cursor = f"entry {amount(target.get('cursor'))}, LSN {format_lsn(target.get('place') or 0)}"
    figures.add_row("cursor", cursor)
    tables = Table.grid(padding=(0, 3))
    tables.add_row(*counts, style="dim")
    tables.add_row(*(amount(count) for count in counts.values()))
    note = "rows in DuckDB, counted just now by a reader through the query door"
    return Panel(Group(figures, "", note, tables), title="PostgreSQL → log → DuckDB", expand=False)


def _ms(milliseconds: float | None) -> str:
    return span(None if milliseconds is None else milliseconds / 1000)
