"""What a demo shows while it runs: a live table on a terminal, a line now and then elsewhere, nothing for JSON."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any, Protocol

from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.table import Table

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
        """The engine's status of the source, counts asked of the copies, and rows written of those planned."""

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
        self._console.print(line, markup=False)

    def show(self, status: Mapping[str, Any], counts: Mapping[str, int], written: int, of: int) -> None:
        if time.monotonic() < self._due:
            return
        self._due = time.monotonic() + _LINE_EVERY_S
        targets = "; ".join(
            f"{name} {amount(target.get('rows_per_s'))} rows/s, {span(target.get('lag_s'))} behind"
            for name, target in status["targets"].items()
        )
        found = ", ".join(f"{amount(count)} {what}" for what, count in counts.items())
        self._console.print(
            f"  written {amount(written)} of {amount(of)}; log {size(status['lag_bytes'])} behind, "
            f"{size(status['log']['size_bytes'])}; {targets}; copies: {found}",
            markup=False,
        )


class _Panel(_Silent):
    """For terminals: one panel that is drawn anew, under the lines that were said."""

    def __init__(self, console: Console) -> None:
        self._live = Live(console=console, refresh_per_second=8, transient=False)
        self._bars = LoadBars(console, self._live)

    def say(self, line: str) -> None:
        self._live.console.print(line, markup=False)

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
    log = status["log"]
    source = Table.grid(padding=(0, 3))
    source.add_row("source", status["state"], "written", f"{amount(written)} of {amount(of)}")
    source.add_row("log", f"entry {amount(log['end'])}, {size(log['size_bytes'])}", "behind", size(status["lag_bytes"]))
    found = Table.grid(padding=(0, 3))
    found.add_row(*counts, style="dim")
    found.add_row(*(amount(count) for count in counts.values()))
    note = "in the copies, asked of them just now as any reader would"
    return Panel(Group(source, "", _targets(status["targets"]), "", note, found), title="PostgreSQL → log → copies")


def _targets(targets: Mapping[str, Mapping[str, Any]]) -> Table:
    """A row a target."""
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0), header_style="dim")
    for title in ("target", "state", "applied", "rows/s", "behind", "commit to visible: p50", "p95", "p99", "cursor"):
        table.add_column(title)
    for name, of in targets.items():
        cursor = f"entry {amount(of.get('cursor'))}"
        table.add_row(
            *(name, str(of["state"]), amount(of.get("rows_applied")), amount(of.get("rows_per_s"))),
            *(span(of.get("lag_s")), *(_ms(of.get(f"p{p}_ms")) for p in (50, 95, 99)), cursor),
        )
    return table


def _ms(milliseconds: float | None) -> str:
    return span(None if milliseconds is None else milliseconds / 1000)
