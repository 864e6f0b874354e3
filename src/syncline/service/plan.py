"""`syncline plan` and `syncline apply`: what a changed configuration does to the targets, before it is done."""

from __future__ import annotations

import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from syncline.errors import Misconfigured
from syncline.service.loads import LoadBars
from syncline.service.session import print_json, session_of, stdout, talk

if TYPE_CHECKING:
    from syncline.pipeline.plan import Plan

__all__ = ["apply", "plan"]

_VERBS = {"load": "load", "reload": "read again", "remove": "remove"}


def plan(
    context: typer.Context,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Show what the configuration asks of the targets: tables to load, to read again, to remove. Changes nothing."""
    from syncline.pipeline.plan import make_plan

    found = make_plan(session_of(context).config())
    if as_json:
        print_json(_as_json(found))
    else:
        _tell(found)


def apply(
    context: typer.Context,
    plan_hash: Annotated[
        str | None, typer.Option("--plan-hash", metavar="HASH", help="Only if the plan is still this one.")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask before rows are removed.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print what was done as one JSON object.")] = False,
) -> None:
    """Do what `syncline plan` shows, with an engine of its own, and end."""
    from syncline.pipeline.plan import carry_out, make_plan

    config = session_of(context).config(quiet=True)
    found = make_plan(config)
    if plan_hash is not None and plan_hash != found.hash:
        raise Misconfigured(
            f"The plan is another one now: its hash is {found.hash}.", remedy="Look at it with `syncline plan`."
        )
    if not as_json:
        _tell(found)
    removing = any(change.kind == "remove" for change in found.changes)
    if removing and plan_hash is None and not yes and not _agreed():
        raise Misconfigured("Nothing was done: rows would be removed.", remedy="Say --yes, or --plan-hash.")
    with LoadBars(talk) as bars:
        carry_out(config, found, bars.show, talk.print)
    if as_json:
        print_json(_as_json(found))
    elif found.changes:
        stdout.print("Done.")


def _agreed() -> bool:
    return sys.stdin.isatty() and typer.confirm("Do that?", err=True)


def _as_json(found: Plan) -> dict[str, object]:
    return {
        "hash": found.hash,
        "changes": [asdict(change) for change in found.changes],
        "former_targets": list(found.former),
    }


def _tell(found: Plan) -> None:
    for target in found.former:
        stdout.print(
            f"Target {target} is not in the configuration any more: what it holds stays as it is, and is out of step "
            "from now on. Remove it by hand, or take the target in again.",
            soft_wrap=True,
        )
    if not found.changes:
        stdout.print("The targets hold what the configuration says: nothing to do.")
        return
    table = Table("", "table", "target", "because", box=None, header_style="bold", pad_edge=False)
    for change in found.changes:
        table.add_row(_VERBS[change.kind], change.table, f"{change.source} -> {change.target}", change.reason)
    stdout.print(table)
    stdout.print(f"Hash of this plan: {found.hash}")
