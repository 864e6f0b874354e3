"""`syncline migrate`, `pause`, `resume` and `resync`: what operators ask for, by way of the control schema."""

from __future__ import annotations

import getpass
from typing import Annotated

import typer

from syncline.config import Config
from syncline.service.session import chosen, control_schema, session_of, talk

__all__ = ["migrate", "pause", "resume", "resync"]

Source = Annotated[str | None, typer.Option("--source", metavar="NAME", help="Only this source (default: all).")]
Target = Annotated[str | None, typer.Option("--target", metavar="NAME", help="Only this target (default: all).")]
Table = Annotated[str | None, typer.Option("--table", metavar="SCHEMA.TABLE", help="Only this table (default: all).")]


def migrate(
    context: typer.Context,
    sql: Annotated[bool, typer.Option("--sql", help="Print the SQL for a new schema; connect nowhere.")] = False,
) -> None:
    """Create or update the control schema in PostgreSQL."""
    config = session_of(context).config()
    with control_schema(config) as control:
        if sql:
            typer.echo(control.migration_sql(), nl=False)
            return
        revision = control.migrate(talk.print)
    talk.print(f"Control schema {config.control.schema_name} is up to date ({revision}).")


def pause(context: typer.Context, source: Source = None, target: Target = None, table: Table = None) -> None:
    """Hold back changes, of all tables or one; they stay in the log until `resume`."""
    config = session_of(context).config()
    _check(config, source, target)
    with control_schema(config) as control:
        control.pause(source or "", target or "", table or "", requested_by=_user())
    talk.print(f"Paused: {_scope(source, target, table)}. The log keeps what happens meanwhile, within its budget.")


def resume(context: typer.Context, source: Source = None, target: Target = None, table: Table = None) -> None:
    """End a pause; what was held back is applied."""
    config = session_of(context).config()
    _check(config, source, target)
    with control_schema(config) as control:
        ended = control.resume(source or "", target or "", table or "")
    talk.print(f"Resumed: {_scope(source, target, table)}." if ended else "Nothing of that was paused.")


def resync(
    context: typer.Context,
    source: Source = None,
    table: Annotated[
        list[str] | None, typer.Option("--table", metavar="SCHEMA.TABLE", help="Only this table; may be repeated.")
    ] = None,
) -> None:
    """Ask the running engine to read tables again from the source: what differs is repaired, also after a gap."""
    config = session_of(context).config()
    _check(config, source, None)
    with control_schema(config) as control:
        for name in [source] if source else config.sources:
            number = control.request_resync(name, table or None)
            what = ", ".join(table) if table else "all tables"
            talk.print(f"Request {number}: source {name}, {what} will be read again. `syncline status` shows how far.")


def _check(config: Config, source: str | None, target: str | None) -> None:
    chosen("source", source, config.sources)
    chosen("target", target, config.targets)


def _scope(source: str | None, target: str | None, table: str | None) -> str:
    return ", ".join(
        f"{kind} {name}" if name else f"all {kind}s"
        for kind, name in (("source", source), ("target", target), ("table", table))
    )


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        return ""
