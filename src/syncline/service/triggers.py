"""`syncline triggers`: install, remove and look at the triggers of sources that are captured by them."""

from __future__ import annotations

from typing import Annotated, Any, cast

import typer

from syncline.capture.triggers.source import TriggerSource
from syncline.config import Config
from syncline.errors import Misconfigured
from syncline.service.session import chosen, print_json, session_of, stdout, talk

__all__ = ["app"]

app = typer.Typer(
    help="Install, remove and look at the triggers of a source of `type: triggers`.", no_args_is_help=True
)

Named = Annotated[str | None, typer.Option("--source", metavar="NAME", help="One source instead of all by triggers.")]
AsJson = Annotated[bool, typer.Option("--json", help="As JSON on stdout.")]


@app.command()
def install(
    context: typer.Context,
    source: Named = None,
    as_sql: Annotated[bool, typer.Option("--sql", help="Print the script instead of running it.")] = False,
) -> None:
    """Make the table of events, and functions and triggers for each table that the patterns choose. What is there
    stays, and what is outdated is replaced."""
    for name, found in _sources(session_of(context).config(), source).items():
        if as_sql:
            stdout.print(f"-- source {name}\n{found.script()}", end="")
            continue
        added = found.install()
        done = f"triggers made for {', '.join(added)}" if added else "everything is there"
        talk.print(f"source {name}: {done}")


@app.command()
def remove(
    context: typer.Context,
    source: Named = None,
    everything: Annotated[bool, typer.Option("--events", help="Drop the schema with all events, too.")] = False,
) -> None:
    """Remove the triggers and their functions. Changes are not captured from then on; what was recorded stays."""
    for name, found in _sources(session_of(context).config(), source).items():
        count = found.remove(everything=everything)
        talk.print(f"source {name}: removed from {count} table(s){' with all events' if everything else ''}")


@app.command()
def status(context: typer.Context, source: Named = None, as_json: AsJson = False) -> None:
    """Show what is installed on each table, and who has read how far."""
    found = {name: one.installed() for name, one in _sources(session_of(context).config(), source).items()}
    if as_json:
        print_json({"sources": found})
        return
    for name, one in found.items():
        for line in _lines(name, one):
            stdout.print(line)


def _lines(name: str, found: dict[str, Any]) -> list[str]:
    if not found["exists"]:
        return [f"source {name}: nothing is installed; `syncline triggers install` does"]
    lines = [f"source {name}: {found['events']} events, {found['kept_bytes']} bytes"]
    lines += [f"  {table}: {state}" for table, state in found["tables"].items()]
    lines += [
        f"  reader {one['name']}: has all before {one['place']}, seen {one['seen_s']} s ago" for one in found["readers"]
    ]
    return lines


def _sources(config: Config, wanted: str | None) -> dict[str, TriggerSource]:
    """The sources that are captured by triggers, or the one that is named.

    Raises:
        Misconfigured: there is none.
    """
    found = {name: config.source(name) for name in config.sources}
    known = {name: one for name, one in found.items() if isinstance(one, TriggerSource)}
    chosen("source by triggers", wanted, known)
    if not known:
        raise Misconfigured("No source is captured by triggers.", remedy="Set `type: triggers` below `source:`.")
    return cast("dict[str, TriggerSource]", known if wanted is None else {wanted: known[wanted]})
