"""`syncline verify`: is what the targets hold what the sources hold?"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from syncline.bars import RowBars
from syncline.errors import Misconfigured
from syncline.service.figures import amount
from syncline.service.repair import DryRun, Force, MaxShare, limits_of, repair_and_tell
from syncline.service.session import DIFFERENT, chosen, print_json, session_of, stdout, talk
from syncline.verify.report import KINDS

if TYPE_CHECKING:
    from syncline.verify import Report

__all__ = ["verify"]


def verify(
    context: typer.Context,
    tables: Annotated[
        list[str] | None,
        typer.Argument(metavar="TABLE...", help="[schema.]table (default: all)."),
    ] = None,
    target: Annotated[
        str | None, typer.Option("--target", metavar="NAME", help="Only this target (default: all).")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON on stdout.")] = False,
    show_keys: Annotated[bool, typer.Option("--show-keys", help="Name the keys of some rows that differ.")] = False,
    full: Annotated[
        bool, typer.Option("--full", help="Read every row, also where digests say that rows are equal.")
    ] = False,
    repair: Annotated[bool, typer.Option("--repair", help="Write what differs once more, from the source.")] = False,
    dry_run: DryRun = False,
    force: Force = False,
    max_share: MaxShare = None,
) -> None:
    """Compare sources and targets by content; rows in flight are no differences.

    Exit code 4 if there are any (with --repair: if some are left), or if nothing of what was asked for could be
    compared.
    """
    from syncline.pipeline import SyncService
    from syncline.verify import verify as compare

    config = session_of(context).config(quiet=True)
    chosen("target", target, config.targets)
    names = [name if "." in name else f"public.{name}" for name in tables or ()]
    if repair:
        limits = limits_of(config, max_share, dry_run=dry_run, force=force)
        raise typer.Exit(repair_and_tell(config, names, target, limits, as_json=as_json, show_keys=show_keys))
    if dry_run or force or max_share is not None:
        raise Misconfigured("--dry-run, --force and --max-share go with --repair.", remedy="Add --repair.")
    with RowBars(talk) as bars:
        report = compare(config, names, target, bars.show, engine=SyncService, talk=talk.print, full=full)
    if as_json:
        print_json(report.to_dict(show_keys=show_keys))
    else:
        _tell(report, show_keys=show_keys)
    unproven = not report.tables or (report.not_compared and (tables or report.not_compared == len(report.tables)))
    raise typer.Exit(DIFFERENT if report.differences or unproven else 0)


def _tell(report: Report, *, show_keys: bool) -> None:
    """A line for each table: what was compared, then what is other than nothing."""
    for table in report.tables:
        found = table.to_dict(show_keys=show_keys)
        counts = {kind: found[kind] for kind in (*KINDS, "in_flight", "parked") if found[kind]}
        notes = [f"{amount(count)} {kind.replace('_', ' ')}" for kind, count in counts.items()]
        notes += [f"columns differ: {', '.join(table.columns)}"] if table.columns else []
        state = "" if table.state == "compared" else f" ({table.state})"
        verdict = "equal" if table.compared else f"not compared. {table.reason}".rstrip(". ")
        what = f"{amount(table.rows)} rows  {', '.join(notes) or verdict}" if table.compared else verdict
        stdout.print(f"{table.source} -> {table.target}  {table.table}{state}  {what}")
        for kind, keys in found.get("keys", {}).items():
            stdout.print(f"    {kind}: {'; '.join(keys)}")
    left = f", {report.not_compared} table(s) not compared" if report.not_compared else ""
    stdout.print(f"{amount(report.differences)} difference(s){left} in {report.seconds:.1f} s.")
