"""`syncline outbox install`, `status` and `remove`: the outbox at the source."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import psycopg
import typer

from syncline.capture.outbox.install import Installed, install_sql, look
from syncline.capture.outbox.install import install as make
from syncline.capture.outbox.install import remove as drop
from syncline.capture.outbox.settings import OutboxConfig
from syncline.capture.settings import PostgresSettings
from syncline.capture.source import connect, describe, translated
from syncline.config import Config
from syncline.errors import Misconfigured
from syncline.service.figures import span
from syncline.service.session import chosen, print_json, session_of, stdout, talk

__all__ = ["app"]

app = typer.Typer(help="The outbox at the source, into which applications publish.", no_args_is_help=True)

Source = Annotated[str | None, typer.Option("--source", metavar="NAME", help="Which source, where several have one.")]


@app.command("install")
def install(
    context: typer.Context,
    source: Source = None,
    grant: Annotated[
        list[str] | None, typer.Option("--grant", metavar="ROLE", help="Let this role publish; may be repeated.")
    ] = None,
    sql: Annotated[bool, typer.Option("--sql", help="Print the script; connect nowhere.")] = False,
) -> None:
    """Make the table of events and the function that writes to it, or bring them up to date."""
    name, settings, outbox = _chosen(session_of(context).config(), source)
    roles = tuple(grant or ())
    if sql:
        typer.echo(install_sql(outbox, roles), nl=False)
        return
    with _connected(settings) as connection:
        make(connection, outbox, roles)
    talk.print(f"The outbox of source {name} is {outbox.table} at {describe(settings.plain)}.")


@app.command("status")
def status(
    context: typer.Context,
    source: Source = None,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON on stdout.")] = False,
) -> None:
    """Show how many events are in the outbox, and how far they are."""
    name, settings, outbox = _chosen(session_of(context).config(), source)
    with _connected(settings) as connection:
        found = _found(connection, outbox)
    if as_json:
        figures = {"events": found.events, "partitions": found.partitions, "oldest_s": found.oldest_s}
        print_json({"source": name, "table": outbox.table, **figures, "statuses": found.statuses})
        return
    oldest = "" if found.oldest_s is None else f", the oldest {span(found.oldest_s)} old"
    stdout.print(f"{outbox.table}: {found.events} events in {found.partitions} partitions{oldest}")
    for state, count in sorted(found.statuses.items()):
        stdout.print(f"  {state:9}  {count}")


@app.command("remove")
def remove(
    context: typer.Context,
    source: Source = None,
    yes: Annotated[bool, typer.Option("--yes", help="Also where events in it have not arrived everywhere.")] = False,
) -> None:
    """Drop the outbox with the events in it."""
    name, settings, outbox = _chosen(session_of(context).config(), source)
    with _connected(settings) as connection:
        found = _found(connection, outbox)
        waiting = found.events - found.statuses.get("COMPLETED", 0)
        if waiting and not yes:
            message = f"{waiting} events of {outbox.table} have not arrived at every target."
            raise Misconfigured(message, remedy="Wait until `syncline outbox status` shows none, or give --yes.")
        drop(connection, outbox)
    how = "by another type of the source" if settings.polls_events else "from the WAL once outbox is taken out"
    talk.print(f"The outbox of source {name} is gone. Its tables are captured {how}.")


def _chosen(config: Config, source: str | None) -> tuple[str, PostgresSettings, OutboxConfig]:
    databases = {name: one for name, one in config.sources.items() if isinstance(one, PostgresSettings)}
    having = {name: (one, one.events_from) for name, one in databases.items() if one.events_from is not None}
    chosen("source with an outbox", source, having)
    if source is None and len(having) != 1:
        found = f"{len(having)} sources have an outbox." if having else "No source has an outbox."
        raise Misconfigured(
            found,
            remedy="Name one by --source." if having else "Say which entities it tells of: source.outbox.entities.",
        )
    name = source if source is not None else next(iter(having))
    settings, outbox = having[name]
    assert outbox is not None
    return name, settings, outbox


def _found(connection: psycopg.Connection[Any], outbox: OutboxConfig) -> Installed:
    """What is there. Raises ``Misconfigured`` where nothing is."""
    found = look(connection, outbox)
    if found is None:
        raise Misconfigured(
            f"There is no outbox {outbox.table}.", remedy="Run `syncline outbox install`.", code="SL-NO-OUTBOX"
        )
    return found


@contextmanager
def _connected(settings: PostgresSettings) -> Iterator[psycopg.Connection[Any]]:
    dsn = settings.plain
    with translated(dsn), connect(dsn, timeout_s=settings.connect_timeout_s) as connection:
        yield connection
