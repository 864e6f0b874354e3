"""`syncline init`, `check` and `config`: the configuration file, offline."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from syncline.config import DEFAULT_FILE, Config, store_class
from syncline.config.document import Problem, refuse
from syncline.config.settings import settings
from syncline.config.template import template
from syncline.dsn import describe
from syncline.errors import Misconfigured
from syncline.finding import Severity
from syncline.service.session import chosen, print_json, session_of, stdout, talk
from syncline.stores import STORES
from syncline.writable import nearest_present, obstacle

__all__ = ["check", "config", "init", "schemas_of"]


def init(
    context: typer.Context,
    target: Annotated[str, typer.Option(help="Type of the target: " + ", ".join(STORES) + ".")] = "duckdb",
    force: Annotated[bool, typer.Option("--force", help="Overwrite the file if it exists.")] = False,
) -> None:
    """Write a commented syncline.yaml with every setting and its default."""
    chosen("target type", target, STORES)
    file = session_of(context).file or DEFAULT_FILE
    if file.exists() and not force:
        raise Misconfigured(f"{file} exists already.", remedy="Use --force to overwrite it, or --config for another.")
    _write(file, template(target))
    talk.print(f"Wrote {file}. Set DATABASE_URL (or source.dsn in the file), then run `syncline doctor`.")


def _write(file: Path, text: str) -> None:
    """Only its owner may read it: a connection string is likely to get in."""
    try:
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as out:
            out.write(text)
    except OSError as error:
        raise Misconfigured(
            f"{file} can't be written: {error.strerror}.", remedy="Name another by --config."
        ) from error


def check(context: typer.Context) -> None:
    """Validate the configuration without connecting anywhere, and say what it means."""
    found = session_of(context).config()
    problems = list(_offline(found))
    refuse([problem for severity, problem in problems if severity == "error"])
    for _, problem in problems:
        talk.print(f"Warning: {problem}")
    for line in _summary(found):
        stdout.print(line)
    talk.print("The configuration is valid. `syncline doctor` looks at the servers.")


def _offline(config: Config) -> Iterator[tuple[Severity, Problem]]:
    """What overrules the files, and what is wrong with the places on this machine that the configuration names."""
    for one in config.overruled:
        yield "warning", Problem("", f"{one.message} {one.remedy}")
    for name, target in config.targets.items():
        look = getattr(store_class(target.type), "check_offline", None)
        where = config.provenance.get(f"targets.{name}.path", "")
        for found in look(target.store, schemas_of(config, name)) if look else ():
            yield found.severity, Problem(where, f"target {name}: {found.message} {found.remedy}")
    folder = config.log.path.absolute()
    reason = obstacle(folder)
    if reason is not None:
        made = nearest_present(folder) == folder or not nearest_present(folder).is_dir()
        remedy = "Set log.path to a folder that the user who runs Syncline may write."
        where = config.provenance.get("log.path", "")
        yield "error" if made else "warning", Problem(where, f"log.path: {reason}. {remedy}")


def schemas_of(config: Config, target: str) -> set[str]:
    """The schemas that a target surely gets: a mapping may pick tables, and call them otherwise."""
    if config.targets[target].tables is not None:
        return set()
    return {schema for source in config.followed_by(target) for schema in config.sources[source].schemas}


def _summary(config: Config) -> list[str]:
    lines = []
    lines += [f"source {name}: {source.summary}" for name, source in config.sources.items()]
    for name, target in config.targets.items():
        lines.append(f"target {name}: {target.type}, follows {', '.join(config.followed_by(name))}")
    lines.append(f"log: {config.log.path}")
    lines.append(f"control schema: {config.control.schema_name} at {describe(config.control_dsn)}")
    return lines


def config(
    context: typer.Context, as_json: Annotated[bool, typer.Option("--json", help="As JSON on stdout.")] = False
) -> None:
    """Show every setting, its value and where it came from. Secrets are hidden."""
    found = settings(session_of(context).config())
    if as_json:
        print_json({s.name: {"value": s.value, "origin": s.origin} for s in found})
        return
    rows = [(s.name, json.dumps(s.value) if not isinstance(s.value, str) else s.value, s.origin) for s in found]
    name_width, value_width = (max(len(row[n]) for row in rows) for n in (0, 1))
    for name, value, origin in rows:
        stdout.print(f"{name:{name_width}}  {value:{value_width}}  {origin}")
