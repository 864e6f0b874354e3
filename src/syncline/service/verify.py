"""`syncline verify`: is what the targets hold what the sources hold?"""

from __future__ import annotations

from typing import Annotated, Any

import typer

from syncline.bars import RowBars
from syncline.service.figures import amount
from syncline.service.session import chosen, print_json, session_of, stdout, talk

__all__ = ["verify"]

_DIFFERENT = 4


def verify(
    context: typer.Context,
    tables: Annotated[
        list[str] | None,
        typer.Argument(metavar="TABLE...", help="[schema.]table (default: all)."),
    ] = None,
    target: Annotated[
        str | None, typer.Option("--target", metavar="NAME", help="Only this target (default: all).")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON on stdout.")] = False,
    show_keys: Annotated[bool, typer.Option("--show-keys", help="Name the keys of some rows that differ.")] = False,
) -> None:
    """Compare sources and targets by content; rows in flight are no differences. Exit code 4 if there are any."""
    from syncline.pipeline import SyncService
    from syncline.verify import verify as compare

    config = session_of(context).config()
    chosen("target", target, config.targets)
    names = [name if "." in name else f"public.{name}" for name in tables or ()]
    with RowBars(talk) as bars:
        report = compare(
            config,
            names,
            target,
            bars.show,
            engine=SyncService,
            talk=talk.print,
        )
    found = report.to_dict(show_keys=show_keys)
    if as_json:
        print_json(found)
    else:
        _tell(found, report.differences)
    raise typer.Exit(_DIFFERENT if report.differences else 0)


def _tell(found: dict[str, Any], differences: int) -> None:
    """A line for each table: what was compared, then what is other than nothing."""
    for table in found["tables"]:
        counts = {k: v for k, v in table.items() if isinstance(v, int) and k != "rows" and v}
        notes = [f"{amount(count)} {kind.replace('_', ' ')}" for kind, count in counts.items()]
        notes += [f"columns differ: {', '.join(table['columns'])}"] if "columns" in table else []
        state = "" if table["state"] == "compared" else f" ({table['state']})"
        where = f"{table['source']} -> {table['target']}  {table['table']}{state}"
        stdout.print(f"{where}  {amount(table['rows'])} rows  {', '.join(notes) or _verdict(table['state'])}")
        for kind, keys in table.get("keys", {}).items():
            stdout.print(f"    {kind}: {'; '.join(keys)}")
    stdout.print(f"{amount(differences)} difference(s) in {found['seconds']:.1f} s.")


def _verdict(state: str) -> str:
    return "not compared" if state in ("paused", "loading") else "equal"
