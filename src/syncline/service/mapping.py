"""`syncline mapping show`: what a target makes of a table, before anything is written."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer

from syncline.capture.captured import captured
from syncline.config import Config, store_class
from syncline.errors import Misconfigured
from syncline.patterns import qualified
from syncline.service.session import chosen, print_json, session_of, stdout, talk

if TYPE_CHECKING:
    from syncline.mapping import MappedTable

__all__ = ["app"]

app = typer.Typer(help="How tables are mapped.", no_args_is_help=True)


@app.callback()
def _group() -> None:
    """Keeps `show` a command of its own."""


@app.command()
def show(
    context: typer.Context,
    table: Annotated[str, typer.Argument(metavar="SCHEMA.TABLE", help="A table that is captured.")],
    target: Annotated[str | None, typer.Option("--target", metavar="NAME", help="Only this target.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Show what each target makes of a table: columns, shape, and the statements that it becomes."""
    config = session_of(context).config()
    chosen("target", target, config.targets)
    looked = {name: captured(config.source(name)) for name in config.sources}
    known = {source: found.facts for source, found in looked.items()}
    name = qualified(table)
    reason = next((found.left_out[name] for found in looked.values() if name in found.left_out), None)
    if reason is not None and not any(name in facts for facts in known.values()):
        raise Misconfigured(f"Table {name} is left out. {reason.message}", remedy=reason.remedy, code=reason.code)
    chosen("captured table", name, sorted({t for facts in known.values() for t in facts}))
    found: dict[str, Any] = {}
    for wanted in [target] if target else list(config.targets):
        facts = next((known[s] for s in config.followed_by(wanted) if name in known[s]), None)
        mapping = config.targets[wanted].mapping(facts) if facts else None
        if facts is None or mapping is None or not mapping.takes(name):
            talk.print(f"Target {wanted} does not take table {name}.")
            continue
        mapped = mapping.table(facts[name].schema)
        found[wanted] = {**_described(mapped), "statements": _statements(config, wanted, mapped)}
    if as_json:
        print_json({"table": name, "targets": found})
    else:
        for wanted, described in found.items():
            _print(wanted, described)


def _described(mapped: MappedTable) -> dict[str, Any]:
    shape = mapped.schema.shape
    columns = [{"name": c.name, "type": c.type, "key": c.key} for c in mapped.schema.columns]
    return {
        "columns": columns,
        "shape": msgspec.to_builtins(shape) if shape is not None else None,
        "fingerprint": mapped.digest,
    }


def _statements(config: Config, target: str, mapped: MappedTable) -> list[str]:
    """What the store says it would run (an optional capability of stores)."""
    kind = config.targets[target].type
    told = getattr(store_class(kind), "statements", None)
    return list(told(mapped.schema)) if told is not None else []


def _print(target: str, described: Mapping[str, Any]) -> None:
    stdout.print(f"target {target}")
    for column in described["columns"]:
        stdout.print(f"  {column['name']:<28} {column['type']}{'  key' if column['key'] else ''}")
    if described["shape"] is not None:
        stdout.print(f"  becomes: {msgspec.json.encode(described['shape']).decode()}")
    for statement in described["statements"]:
        stdout.print(f"  {statement}")
