"""`syncline migrate`, `pause`, `resume` and `resync`: what operators ask for, by way of the control schema.

What they name must be there: a request for a table that nobody has would wait for ever without a word.
"""

from __future__ import annotations

import getpass
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from syncline.config import Config, hint
from syncline.errors import Misconfigured, SynclineError
from syncline.patterns import qualified
from syncline.service.session import chosen, control_schema, session_of, talk

if TYPE_CHECKING:
    from syncline.catalog import ControlSchema

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
    sources = _sources(config, source, target)
    with control_schema(config) as control:
        name = _table(config, control, sources, table)
        if name:
            _tell_left_out(config, {source: [name] for source in sources})
        control.pause(source or "", target or "", name, requested_by=_user())
    talk.print(f"Paused: {_scope(source, target, name)}. The log keeps what happens meanwhile, within its budget.")


def resume(context: typer.Context, source: Source = None, target: Target = None, table: Table = None) -> None:
    """End a pause; what was held back is applied."""
    config = session_of(context).config()
    sources = _sources(config, source, target)
    with control_schema(config) as control:
        name = _table(config, control, sources, table)
        ended = control.resume(source or "", target or "", name)
    talk.print(f"Resumed: {_scope(source, target, name)}." if ended else "Nothing of that was paused.")


def resync(
    context: typer.Context,
    source: Source = None,
    target: Target = None,
    table: Annotated[
        list[str] | None, typer.Option("--table", metavar="SCHEMA.TABLE", help="Only this table; may be repeated.")
    ] = None,
) -> None:
    """Ask the running engine to read tables again from the source: what differs is repaired, also after a gap."""
    config = session_of(context).config()
    sources = _sources(config, source, target)
    wanted = _at_their_sources(config, sources, table) if table else dict.fromkeys(sources)
    with control_schema(config) as control:
        for name, tables in wanted.items():
            _tell_left_out(config, {name: tables or []})
            number = control.request_resync(name, tables, target=target or "")
            what = (", ".join(tables) if tables else "all tables") + (f" for target {target}" if target else "")
            talk.print(f"Request {number}: source {name}, {what} will be read again. `syncline status` shows how far.")


def _sources(config: Config, source: str | None, target: str | None) -> tuple[str, ...]:
    """The sources that are meant.

    Raises:
        Misconfigured: one of the names is unknown, or the target does not follow the source.
    """
    chosen("source", source, config.sources)
    chosen("target", target, config.targets)
    followed = config.followed_by(target) if target else tuple(config.sources)
    if source is None:
        return followed
    if source not in followed:
        raise Misconfigured(f"Target {target} does not follow source {source}.", remedy=hint(source, followed))
    return (source,)


def _table(config: Config, control: ControlSchema, sources: Sequence[str], given: str | None) -> str:
    """The table that is meant, ``''`` for all. What is recorded counts too: a table that was paused, or fell into a
    gap, and was then dropped at the source can still be resumed.

    Raises:
        Misconfigured: there is no such table.
        Unavailable: a source can't be asked.
    """
    if given is None:
        return ""
    recorded = {p.table_name for p in control.pauses() if p.source in ("", *sources)}
    recorded |= {g["table_name"] for g in control.gaps() if g["source"] in sources}
    if given in recorded:
        return given
    captured = {name for source in sources for name in config.source(source).names()}
    return _known(given, captured | recorded - {""})


def _at_their_sources(config: Config, sources: Sequence[str], given: Sequence[str]) -> dict[str, list[str] | None]:
    """These tables, each at the sources that have it. Raises as :func:`_table`."""
    captured = {source: config.source(source).names() for source in sources}
    everywhere = {name for names in captured.values() for name in names}
    wanted = [_known(name, everywhere) for name in given]
    found = {source: [name for name in wanted if name in names] for source, names in captured.items()}
    return {source: names for source, names in found.items() if names}


def _tell_left_out(config: Config, wanted: Mapping[str, Sequence[str]]) -> None:
    """Say of tables that the engine leaves out, and why, so that nobody waits for them. A source that can't be asked
    keeps nobody from asking for what is done when it can."""
    for source, tables in wanted.items():
        try:
            found = config.source(source).preflight() if tables else []
        except SynclineError:
            continue
        for finding in found:
            if finding.severity == "error" and finding.subject in tables:
                talk.print(f"Table {finding.subject} is left out until that is mended: {finding.message}")
                talk.print(f"  {finding.remedy}")


def _known(given: str, names: Collection[str]) -> str:
    """The name as it is known: without a schema it is of ``public``, as in the configuration."""
    name = given if given in names else qualified(given)
    chosen("captured table", name, sorted(names))
    return name


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
