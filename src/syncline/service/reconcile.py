"""`syncline reconcile`: compare and repair as a job whose runs are recorded."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

import typer

from syncline.bars import RowBars
from syncline.errors import Misconfigured
from syncline.service.repair import DryRun, Force, MaxShare, limits_of, tell_repaired
from syncline.service.session import chosen, print_json, session_of, talk

__all__ = ["reconcile"]


def reconcile(
    context: typer.Context,
    types: Annotated[
        list[str] | None, typer.Argument(metavar="TYPE...", help="Entity types, or [schema.]table (default: all).")
    ] = None,
    ids: Annotated[
        list[str] | None, typer.Option("--ids", metavar="ID", help="Only these keys of one type; may be repeated.")
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option("--batch-size", min=1, max=100_000, metavar="N", help="Keys repaired at a time.")
    ] = None,
    target: Annotated[
        str | None, typer.Option("--target", metavar="NAME", help="Only this target (default: all).")
    ] = None,
    dry_run: DryRun = False,
    force: Force = False,
    max_share: MaxShare = None,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON on stdout.")] = False,
) -> None:
    """Compare copies with their sources, repair what differs, and record the run in reconciliation_runs.

    Exit code 4 if differences are left. One runs at a time.
    """
    from syncline.pipeline import SyncService
    from syncline.verify.reconcile import Wanted
    from syncline.verify.reconcile import reconcile as run

    config = session_of(context).config(quiet=True)
    chosen("target", target, config.targets)
    if ids and len(types or ()) != 1:
        raise Misconfigured("--ids are keys of one type.", remedy="Name it: syncline reconcile TYPE --ids ID")
    limits = limits_of(config, max_share, dry_run=dry_run, force=force)
    if batch_size is not None:
        limits = replace(limits, batch_size=batch_size)
    wanted = Wanted(types or None, frozenset(ids) if ids else None, target, "command")
    with RowBars(talk) as bars:
        done = run(config, wanted, limits, bars.show, engine=SyncService, talk=talk.print)
    if as_json:
        print_json(done.to_dict())
    raise typer.Exit(tell_repaired(done, quiet=as_json))
