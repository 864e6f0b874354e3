"""`syncline periodic`: the runs of sources of `type: redis`, by the clock, now, or for a trial."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import closing, contextmanager
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any

import typer

from syncline.errors import Misconfigured
from syncline.service.session import DIFFERENT, print_json, session_of, stdout, talk

if TYPE_CHECKING:
    from syncline.periodic.result import Result
    from syncline.periodic.service import PeriodicSync

__all__ = ["app"]

app = typer.Typer(help="Have runs of a source of `type: redis` done, and look at them.", no_args_is_help=True)

Name = Annotated[str | None, typer.Option("--name", metavar="NAME", help="Which one; needed where there are several.")]
AsJson = Annotated[bool, typer.Option("--json", help="As one JSON object.")]


@contextmanager
def _sync(context: typer.Context, name: str | None, *, quiet: bool = False) -> Iterator[PeriodicSync]:
    config = session_of(context).config(quiet=quiet)
    if not any(source.makes_runs for source in config.sources.values()):
        raise Misconfigured(
            "No source's stream is made of runs.", remedy="Add one of `type: redis`: see docs/captures/redis.md."
        )
    from syncline.periodic.service import PeriodicSync

    with closing(PeriodicSync(config, name, talk=talk.print)) as found:
        yield found


@app.command()
def start(context: typer.Context, name: Name = None) -> None:
    """Run an engine for the source in the foreground, which does its runs when they are due, until a signal or
    `stop`."""
    with _sync(context, name) as sync, _signals(sync):
        when = sync.settings.cron or f"every {sync.settings.every_s:g} s"
        talk.print(f"Starting runs of {sync.name} ({when}).")
        sync.serve()
    talk.print("Stopped.")


@contextmanager
def _signals(sync: PeriodicSync) -> Iterator[None]:
    def ask(_: int, __: FrameType | None) -> None:
        sync.stop()

    before = {number: signal.signal(number, ask) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@app.command()
def stop(context: typer.Context, name: Name = None) -> None:
    """End what `start` began, in whatever process it is."""
    with _sync(context, name, quiet=True) as sync:
        talk.print("Stopped." if sync.ask_to_stop() else "No service was there.")


@app.command()
def status(context: typer.Context, name: Name = None, as_json: AsJson = False) -> None:
    """Whether something does the runs, when the next one is, and what the latest found."""
    with _sync(context, name, quiet=True) as sync:
        found = sync.status()
    if as_json:
        print_json(found)
        return
    who = f"service {found['service']}" if found["serving"] else f"engine {found['holder']}"
    doing = f"{who}, next run {found['next_run'] or 'now'}" if found["following"] else "nothing does the runs"
    stdout.print(f"{found['name']}: {doing}" + ("; a run is under way" if found["running"] else ""))
    for run in found["runs"]:
        stdout.print("  " + _line(run))


def _line(run: dict[str, Any]) -> str:
    kind = f"{run['kind']}{', dry' if run['dry_run'] else ''}"
    counted = ", ".join(
        f"{run[name]} {name.replace('_', ' ')}" for name in ("created", "updated", "deleted", "set_aside")
    )
    why = f": {run['code']} {run['message']}" if run["message"] else ""
    return f"{run['started_at']:%Y-%m-%d %H:%M:%S} {run['state']} ({kind}): {run['members']} members, {counted}{why}"


@app.command()
def sync(
    context: typer.Context,
    name: Name = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be done, and do nothing.")] = False,
    period: Annotated[
        list[str] | None,
        typer.Option(
            "--period", metavar="NAME", help="Only this column or sorted set, deleting nobody; may be repeated."
        ),
    ] = None,
    full: Annotated[bool, typer.Option("--full", help="Look at all members, also where changes are noted.")] = False,
    allow_deletes: Annotated[
        bool, typer.Option("--allow-deletes", help="Delete whatever has no member any more, however much it is.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Have one run done now, by the engine that is there or one of its own, and wait until the targets have it."""
    with _sync(context, name, quiet=True) as found:
        from syncline.capture.runs import Wish

        columns = tuple(period) if period else None
        wish = Wish("full" if full else "auto", columns, dry_run=dry_run, allow_deletes=allow_deletes)
        result = found.run(wish)
    if as_json:
        print_json(result.to_dict())
    else:
        _tell(result)
    if result.state == "asking":
        raise typer.Exit(DIFFERENT)


def _tell(result: Result) -> None:
    would = " (dry run: nothing was changed)" if result.dry_run else ""
    stdout.print(f"{result.members:,} members in {result.seconds:.2f} s{would}")
    counted = ("Updated", result.updated), ("Created", result.created), ("Deleted", result.deleted)
    for label, figure in (*counted, ("Errors", result.set_aside)):
        stdout.print(f"  {label}: {figure:,}")
    if result.kept:
        stdout.print(f"  Kept without a member: {result.kept:,}")
    for reason, count in result.reasons.items():
        stdout.print(f"  {count:,} set aside: {reason}")
    for who, reason in result.members_aside:
        stdout.print(f"    {who}: {reason}")
    if result.missing_keys:
        stdout.print(f"  Keys that are not there: {', '.join(result.missing_keys)}")
    if result.message:
        talk.print(f"{result.code} {result.message}".strip())
    if result.state == "asking":
        talk.print("If that is right, run it again with --allow-deletes.")


@app.command("test")
def try_out(context: typer.Context, name: Name = None) -> None:
    """Send three marked members through your own servers, and remove every trace of them."""
    with _sync(context, name, quiet=True) as sync:
        from syncline.periodic.trial import trial

        steps = trial(sync, stdout.print)
    if not all(step.good for step in steps):
        raise typer.Exit(DIFFERENT)
    stdout.print("The source and its targets work, and nothing is left of the test.")
