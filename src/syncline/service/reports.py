"""`syncline reports`: what earlier verifications found."""

from __future__ import annotations

from datetime import UTC
from typing import Annotated, Any

import typer

from syncline.errors import Misconfigured
from syncline.service.figures import amount
from syncline.service.session import print_json, session_of, stdout, talk
from syncline.service.verify import tell

__all__ = ["reports"]

_COUNTS = {"differences": "difference(s)", "broken": "check(s) broken", "unknown": "not looked at"}


def reports(
    context: typer.Context,
    number: Annotated[int | None, typer.Argument(metavar="NUMBER", help="Show this one (default: list them).")] = None,
    last: Annotated[int, typer.Option("--last", metavar="N", min=1, help="How many are listed.")] = 20,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON on stdout.")] = False,
) -> None:
    """List the kept reports of verifications, the newest first, or show one of them. They hold no keys."""
    from syncline.catalog.reports import ReportRecords

    config = session_of(context).config()
    with ReportRecords(config.control_dsn, config.control.schema_name) as records:
        if number is None:
            found = records.latest(last)
        else:
            one = records.read(number)
            if one is None:
                raise Misconfigured(f"There is no report {number}.", remedy="`syncline reports` lists what is kept.")
            found = [one]
    if number is not None:
        whole = found[0]["report"] | {"report": number}
        if as_json:
            print_json(whole | {"finished_at": found[0]["finished_at"].isoformat()})
        else:
            tell(whole)
    elif as_json:
        print_json([row | {"finished_at": row["finished_at"].isoformat()} for row in found])
    else:
        _list(found)


def _list(found: list[dict[str, Any]]) -> None:
    """A line for each."""
    if not found:
        talk.print("No report is kept.")
    for row in found:
        finished = row["finished_at"].astimezone(UTC)
        counts = [f"{amount(row[name])} {what}" for name, what in _COUNTS.items() if row[name]]
        score = f"{row['score'] * 100:.4f}".rstrip("0").rstrip(".")
        told = f"score {score} %  {', '.join(counts) or 'nothing differs'}"
        stdout.print(f"{row['id']}  {finished:%Y-%m-%d %H:%M:%S} UTC  {', '.join(row['checks'])}  {told}")
