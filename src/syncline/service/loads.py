"""Progress bars of initial loads, on a terminal only."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from syncline.service.figures import amount

__all__ = ["LoadBars"]


class LoadBars:
    """A bar for each table that is being loaded, with rate and remaining time; gone when the load is done.

    Drawn by themselves, or by ``live`` where something else is drawn at other times.
    """

    def __init__(self, console: Console, live: Live | None = None) -> None:
        self._console = console
        self._live = live
        self._progress: Progress | None = None
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> LoadBars:
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    def show(self, status: Mapping[str, Any]) -> None:
        """Draw what the engine's status says is loading."""
        loading = {
            f"{source} {table}": load
            for source, one in status.get("sources", {}).items()
            for table, load in one.get("loading", {}).items()
        }
        if not loading or not self._console.is_terminal:
            self._end()
            return
        progress = self._begin()
        for name, load in loading.items():
            task = self._tasks.get(name)
            if task is None:
                task = self._tasks[name] = progress.add_task(name, total=None, rows="")
            total = max(load["bytes_total"], load["bytes_done"], 1)
            progress.update(task, completed=load["bytes_done"], total=total, rows=f"{amount(load['rows'])} rows")

    def _begin(self) -> Progress:
        if self._progress is None:
            columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[rows]}"))
            rates = (TransferSpeedColumn(), TimeRemainingColumn())
            self._progress = Progress(*columns, *rates, console=self._console, transient=True)
            if self._live is not None:
                self._live.update(self._progress)
            else:
                self._progress.start()
        return self._progress

    def _end(self) -> None:
        if self._progress is not None and self._live is not None:
            self._live.update("")
        elif self._progress is not None:
            self._progress.stop()
        self._progress = None
        self._tasks.clear()
