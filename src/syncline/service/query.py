"""`syncline query`: ask a target while it runs."""

from __future__ import annotations

import csv
import math
import sys
from importlib import import_module
from typing import Annotated, Any

import typer
from rich.table import Table

from syncline.config import Config, TargetConfig
from syncline.errors import Misconfigured, SynclineError, Unavailable
from syncline.service.session import chosen, print_json, session_of, stdout
from syncline.stores import STORES

__all__ = ["query"]


def query(
    context: typer.Context,
    sql: Annotated[str, typer.Argument(help="A query in the target's own language.")],
    target: Annotated[str | None, typer.Option("--target", metavar="NAME", help="Which target to ask.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Rows as JSON objects.")] = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Rows as CSV.")] = False,
) -> None:
    """Run a query against a target, whether or not the engine runs."""
    if as_json and as_csv:
        raise Misconfigured("--json and --csv are both given.", remedy="Choose one of them.")
    chosen_target = _target(session_of(context).config(), target)
    with _reader(chosen_target) as reader:
        result = _ask(reader, sql)
    names = list(result.column_names)
    if as_json:
        print_json([{name: _as_json(value) for name, value in row.items()} for row in result.to_pylist()])
        return
    rows = (row for batch in result.to_batches() for row in zip(*(c.to_pylist() for c in batch.columns), strict=True))
    if as_csv:
        writer = csv.writer(sys.stdout, lineterminator="\n")
        writer.writerow(names)
        writer.writerows(rows)
        return
    table = Table(*names, box=None, header_style="bold", pad_edge=False)
    for row in rows:
        table.add_row(*("" if value is None else str(value) for value in row))
    stdout.print(table)


def _as_json(value: Any) -> Any:
    """What JSON has no form for, as PostgreSQL writes it in text: bytes, and floats that are no number."""
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, bytes):
        return f"\\x{value.hex()}"
    if isinstance(value, list):
        return [_as_json(item) for item in value]
    return {name: _as_json(item) for name, item in value.items()} if isinstance(value, dict) else value


def _ask(reader: Any, sql: str) -> Any:
    """The result of the query; one that the target refuses is the caller's mistake."""
    try:
        return reader.query(sql)
    except SynclineError as error:
        if isinstance(error, (Misconfigured, Unavailable)):
            raise
        raise Misconfigured(error.message, remedy=error.remedy, code=error.code) from error


def _target(config: Config, name: str | None) -> TargetConfig:
    chosen("target", name, config.targets)
    if name is None and len(config.targets) != 1:
        raise Misconfigured("Which target?", remedy=f"Say --target: {', '.join(config.targets) or 'there is none'}.")
    return config.targets[name] if name else next(iter(config.targets.values()))


def _reader(target: TargetConfig) -> Any:
    """What the store offers to readers of its copy."""
    module = import_module(STORES.get(target.type, target.type).partition(":")[0])
    open_reader = getattr(module, "open_reader", None)
    if open_reader is None:
        raise Misconfigured(
            f"Targets of type {target.type} have no reader here.", remedy="Use the client of the store."
        )
    return open_reader(getattr(target.store, "path"))  # noqa: B009 - settings of the store's own class
