"""`syncline periodic`: bring members of Redis keys into a table by the clock, now, or for a trial."""

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
    from syncline.periodic.run import Result
    from syncline.periodic.service import PeriodicSync

__all__ = ["app"]

app = typer.Typer(help="Bring members of Redis keys into a table.", no_args_is_help=True)

Name = Annotated[str | None, typer.Option("--name", metavar="NAME", help="Which one; needed where there are several.")]
AsJson = Annotated[bool, typer.Option("--json", help="As one JSON object.")]


@contextmanager
def _sync(context: typer.Context, name: str | None, *, quiet: bool = False) -> Iterator[PeriodicSync]:
    config = session_of(context).config(quiet=quiet)
    try:
        from syncline.periodic.service import PeriodicSync
    except ModuleNotFoundError as error:
        if error.name != "redis":
            raise
        raise Misconfigured(
            "The driver of Redis is not installed.", remedy="Run `pip install 'syncline[redis]'`."
        ) from error
    with closing(PeriodicSync(config, name)) as found:
        yield found


@app.command()
def start(context: typer.Context, name: Name = None) -> None:
    """Run again and again in the foreground, until a signal or `stop`."""
    with _sync(context, name) as sync, _signals(sync):
        talk.print(f"Starting runs of {sync.name} every {sync.config.every_s:g} s.")
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
    """End the service, in whatever process it is, after the run that is under way."""
    with _sync(context, name, quiet=True) as sync:
        talk.print("Stopped." if sync.ask_to_stop() else "No service was there.")


@app.command()
def status(context: typer.Context, name: Name = None, as_json: AsJson = False) -> None:
    """Whether a service and a run are there, and what the latest runs did."""
    with _sync(context, name, quiet=True) as sync:
        found = sync.status()
    if as_json:
        print_json(found)
        return
    serving = f"service {found['service']}, next run {found['next_run'] or 'now'}" if found["serving"] else "no service"
    stdout.print(f"{found['name']}: {serving}" + (f"; a run by {found['holder']}" if found["running"] else ""))
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
    """Do one run now."""
    with _sync(context, name, quiet=as_json) as found:
        from syncline.periodic.run import Wish

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
    if result.backup:
        stdout.print(f"  The table as it was: {result.backup}")
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
    stdout.print("The periodic synchronisation works, and nothing is left of the test.")
