"""`syncline verify`: is what the targets hold what the sources hold?"""

from __future__ import annotations

from typing import Annotated, Any

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from syncline.service.figures import amount
from syncline.service.session import chosen, print_json, session_of, stdout, talk

__all__ = ["verify"]

_DIFFERENT = 4


def verify(
    context: typer.Context,
    tables: Annotated[list[str] | None, typer.Argument(metavar="TABLE...", help="schema.table (default: all).")] = None,
    target: Annotated[
        str | None, typer.Option("--target", metavar="NAME", help="Only this target (default: all).")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON on stdout.")] = False,
) -> None:
    """Compare sources and targets by content; rows in flight are no differences. Exit code 4 if there are any."""
    from syncline.verify.compare import verify as compare

    config = session_of(context).config()
    chosen("target", target, config.targets)
    with _Bars() as bars:
        report = compare(config, tables or (), target, bars.show)
    found = report.to_dict()
    if as_json:
        print_json(found)
    else:
        _tell(found, report.differences)
    raise typer.Exit(_DIFFERENT if report.differences else 0)


def _tell(found: dict[str, Any], differences: int) -> None:
    for table in found.get("tables", []):
        stdout.print("  ".join(f"{key} {amount(v) if isinstance(v, int) else v}" for key, v in table.items()))
    stdout.print(f"{amount(differences)} difference(s).")


class _Bars:
    """A bar for each table that is compared, with the remaining time; on a terminal only."""

    def __init__(self) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self._progress = Progress(*columns, console=talk, transient=True, disable=not talk.is_terminal)
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> _Bars:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def show(self, table: str, rows: int, of: int | None) -> None:
        """``rows`` of about ``of`` rows of a table are compared."""
        if table not in self._tasks:
            self._tasks[table] = self._progress.add_task(table, total=of)
        self._progress.update(self._tasks[table], completed=rows, total=of)
