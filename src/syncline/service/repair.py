"""What `syncline verify --repair` and `syncline reconcile` share: the limits, and what is said of a repair."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from typing import TYPE_CHECKING, Annotated

import typer

from syncline.bars import RowBars
from syncline.service.figures import amount
from syncline.service.session import DIFFERENT, print_json, stdout, talk, tell_error

if TYPE_CHECKING:
    from syncline.config import Config
    from syncline.verify.repair import Limits, Repaired

__all__ = ["DryRun", "Force", "MaxShare", "limits_of", "repair_and_tell", "tell_repaired"]

DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would be repaired, and write nothing.")]
Force = Annotated[bool, typer.Option("--force", help="Repair however much of a table differs.")]
MaxShare = Annotated[
    float | None,
    typer.Option("--max-share", min=0, max=1, metavar="SHARE", help="Share of a table that may differ, 0 to 1."),
]


def limits_of(config: Config, max_share: float | None, *, dry_run: bool, force: bool) -> Limits:
    """The limits of the configuration, and what the options say instead."""
    from syncline.verify.repair import limits_of as configured

    limits = replace(configured(config), dry_run=dry_run)
    share = float("inf") if force else max_share
    return limits if share is None else replace(limits, max_share=share)


def repair_and_tell(
    config: Config,
    tables: Sequence[str],
    target: str | None,
    limits: Limits,
    *,
    since: datetime | None,
    as_json: bool,
    show_keys: bool,
) -> int:
    """Repair, say what was done, and return the exit code."""
    from syncline.pipeline import SyncService
    from syncline.verify.repair import repair
    from syncline.verify.scope import Scope

    with RowBars(talk) as bars:
        done = repair(
            config, tables, target, bars.show, engine=SyncService, talk=talk.print, limits=limits, scope=Scope(since)
        )
    if as_json:
        print_json(done.to_dict(show_keys=show_keys))
    return tell_repaired(done, quiet=as_json)


def tell_repaired(done: Repaired, *, quiet: bool = False) -> int:
    """Say what was repaired and what stays (``quiet``: only what a person has to decide); the exit code."""
    if not quiet:
        _tell_tables(done)
    if done.refusal is not None and not done.dry_run:
        tell_error(done.refusal)
    not_compared = not done.last.tables or done.last.not_compared == len(done.last.tables)
    return 0 if done.clean and not not_compared and not done.last.away else DIFFERENT


def _tell_tables(done: Repaired) -> None:
    for table in done.tables:
        kinds = {"missing": table.missing, "different": table.different, "extra": table.extra}
        counted = ", ".join(f"{amount(count)} {kind}" for kind, count in kinds.items() if count)
        said = "would be repaired" if done.dry_run else "repaired"
        line = f"{table.source} -> {table.target}  {table.table}  {f'{counted} {said}' if counted else 'not repaired'}"
        stdout.print(f"{line}. {table.reason}".rstrip(". "))
    for target in done.last.away:
        stdout.print(f"Target {target} is away: nothing of it was compared or repaired.")
    before, after = sum(done.before.values()), done.left
    counts = f"{amount(before)} difference(s)"
    if not done.dry_run:
        counts += f", {amount(after)} left after {done.passes} pass(es)"
    number = f" Report {done.last.number}." if done.last.number else ""
    stdout.print(f"{counts}; {amount(done.last.not_compared)} table(s) not compared.{number}")
