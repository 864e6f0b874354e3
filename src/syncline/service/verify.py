"""`syncline verify`: is what the targets hold what the sources hold?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from syncline.bars import RowBars
from syncline.errors import Misconfigured
from syncline.patterns import qualified
from syncline.service.figures import amount
from syncline.service.moments import moment
from syncline.service.record import tell_record
from syncline.service.repair import DryRun, Force, MaxShare, limits_of, repair_and_tell
from syncline.service.session import DIFFERENT, chosen, print_json, session_of, stdout, talk
from syncline.verify.report import BROKEN, CHECKS, KINDS, NOT_CHECKED

if TYPE_CHECKING:
    from syncline.verify import Report

__all__ = ["tell", "verify"]

_CLASHES = (
    ("--key", "--repair"),
    ("--key", "--checks"),
    ("--key", "--full"),
    ("--key", "--since"),
    ("--key", "--show-keys"),
    ("--repair", "--checks"),
    ("--repair", "--full"),
    ("--full", "--since"),
    ("--checks", "--since"),
    ("--force", "--max-share"),
)


def verify(
    context: typer.Context,
    tables: Annotated[
        list[str] | None,
        typer.Argument(metavar="TABLE...", help="[schema.]table (default: all)."),
    ] = None,
    target: Annotated[
        str | None, typer.Option("--target", metavar="NAME", help="Only this target (default: all).")
    ] = None,
    checks: Annotated[
        str | None,
        typer.Option("--checks", metavar="LIST", help=f"Check types, separated by commas: {', '.join(CHECKS)}."),
    ] = None,
    key: Annotated[
        list[str] | None,
        typer.Option("--key", metavar="VALUE", help="Show one record everywhere: its key, or COLUMN=VALUE for each."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON on stdout.")] = False,
    show_keys: Annotated[bool, typer.Option("--show-keys", help="Name the keys of some rows that differ.")] = False,
    full: Annotated[
        bool, typer.Option("--full", help="Read every row, also where digests say that rows are equal.")
    ] = False,
    since: Annotated[
        str | None,
        typer.Option("--since", metavar="TIME", help="Only rows that changed since then: 15m, 2h, 1d, or a time."),
    ] = None,
    repair: Annotated[bool, typer.Option("--repair", help="Write what differs once more, from the source.")] = False,
    dry_run: DryRun = False,
    force: Force = False,
    max_share: MaxShare = None,
) -> None:
    """Compare sources and targets by content; rows in flight are no differences.

    Exit code 4 if there are any (with --repair: if some are left), if a check does not hold, if a target is away while
    others could be compared, or if nothing of what was asked for could be.
    """
    from syncline.pipeline import SyncService
    from syncline.pipeline.memory import return_freed_memory
    from syncline.verify import verify as compare

    return_freed_memory()
    config = session_of(context).config(quiet=True)
    chosen("target", target, config.targets)
    names = [qualified(name) for name in tables or ()]
    _refuse_together(
        {
            "--key": bool(key),
            "--repair": repair,
            "--checks": checks is not None,
            "--full": full,
            "--since": since is not None,
            "--show-keys": show_keys,
            "--force": force,
            "--max-share": max_share is not None,
        }
    )
    if not repair and (dry_run or force or max_share is not None):
        raise Misconfigured("--dry-run, --force and --max-share go with --repair.", remedy="Add --repair.")
    from_then = None if since is None else moment(since, "--since")
    if key:
        if len(names) != 1:
            example = "For example: syncline verify orders --key 5"
            raise Misconfigured("--key shows one record of one table.", remedy=example)
        raise typer.Exit(tell_record(config, names[0], key, target, as_json=as_json))
    kinds = None if checks is None else [kind.strip() for kind in checks.split(",")]
    if repair:
        limits = limits_of(config, max_share, dry_run=dry_run, force=force)
        done = repair_and_tell(config, names, target, limits, since=from_then, as_json=as_json, show_keys=show_keys)
        raise typer.Exit(done)
    with RowBars(talk) as bars:
        report = compare(
            config,
            names,
            target,
            bars.show,
            engine=SyncService,
            talk=talk.print,
            full=full,
            checks=kinds,
            since=from_then,
        )
    if as_json:
        print_json(report.to_dict(show_keys=show_keys))
    else:
        tell(report.to_dict(show_keys=show_keys))
    raise typer.Exit(DIFFERENT if report.differences or report.broken or _unproven(report, names) else 0)


def _unproven(report: Report, names: Sequence[str]) -> bool:
    """Whether something that was asked for by name, or all there is, could not be looked at."""
    if report.not_checked or report.away:
        return True
    looked_at = bool(report.tables or report.checks)
    return not looked_at or bool(report.not_compared and (names or report.not_compared == len(report.tables)))


def _refuse_together(given: Mapping[str, bool]) -> None:
    """Raise ``Misconfigured`` if two options are given of which one would be passed over in silence."""
    for one, other in _CLASHES:
        if given[one] and given[other]:
            raise Misconfigured(f"{one} and {other} don't go together.", remedy="Run `syncline verify` with each.")


def tell(report: Mapping[str, Any]) -> None:
    """A line for each table: what was compared, then what is other than nothing; then a line for each check."""
    for table in report["tables"]:
        _tell_table(table)
    for check in report["checks"]:
        _tell_check(check)
    if not report["tables"] and not report["checks"]:
        stdout.print("Nothing was looked at: there are no tables, rules or foreign keys of these names.")
    left = f", {report['not_compared']} table(s) not compared" if report["not_compared"] else ""
    left += f", {report['broken']} check(s) broken" if report["broken"] else ""
    left += f", {report['not_checked']} not checked" if report["not_checked"] else ""
    number = f" Report {report['report']}." if report.get("report") else ""
    since = f" Only what changed since {report['since'][:19]} UTC." if report.get("since") else ""
    score = f"{report['score'] * 100:.4f}".rstrip("0").rstrip(".")
    counts = f"{amount(report['differences'])} difference(s){left} in {report['seconds']:.1f} s."
    stdout.print(f"{counts} Score {score} %.{since}{number}")


def _tell_table(table: Mapping[str, Any]) -> None:
    counts = {kind: table[kind] for kind in (*KINDS, "in_flight", "parked") if table[kind]}
    notes = [f"{amount(count)} {kind.replace('_', ' ')}" for kind, count in counts.items()]
    notes += [f"columns differ: {', '.join(table['columns'])}"] if table.get("columns") else []
    compared = table["state"] in ("compared", "gap")
    state = "" if table["state"] == "compared" else f" ({table['state']})"
    verdict = "equal" if compared else f"not compared. {table.get('reason', '')}".rstrip(". ")
    what = f"{amount(table['rows'])} rows  {', '.join(notes) or verdict}" if compared else verdict
    stdout.print(f"{table['source']} -> {table['target']}  {table['table']}{state}  {what}")
    digests = table.get("digests")
    if digests:
        stdout.print(f"    {digests['algorithm']} source {digests['source']}")
        stdout.print(f"    {digests['algorithm']} target {digests['target']}")
    for kind, keys in table.get("keys", {}).items():
        stdout.print(f"    {kind}: {'; '.join(keys)}")


def _tell_check(check: Mapping[str, Any]) -> None:
    where = f"{check['source']} -> {check['target']}" if check["target"] else check["source"]
    what = "  ".join(part for part in (where, check["table"], f"{check['kind']} {check['name']}".rstrip()) if part)
    told = check["state"]
    if told == BROKEN:
        told = f"broken: {'at least ' if check.get('at_least') else ''}{amount(check['violations'])}"
    if "source_rows" in check:
        told += f" ({amount(check['source_rows'])} at the source, {amount(check['target_rows'])} at the target)"
    if check.get("not_valid"):
        told += " (NOT VALID at the source)"
    if check["state"] == NOT_CHECKED:
        told = f"not checked. {check['reason']}".rstrip(". ")
    stdout.print(f"{what}  {told}")
    if check.get("keys"):
        stdout.print(f"    violating: {'; '.join(check['keys'])}")
