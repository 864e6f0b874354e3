"""`syncline alerts`: what an operator should know, as the engine has raised it."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any

import typer

from syncline.service.figures import span
from syncline.service.session import control_schema, print_json, session_of, stdout, talk

__all__ = ["alerts"]


def alerts(
    context: typer.Context,
    every: Annotated[bool, typer.Option("--all", help="Those that are over, too.")] = False,
    code: Annotated[str | None, typer.Option("--code", metavar="SL-...", help="Only these.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON on stdout.")] = False,
) -> None:
    """List the alerts that are open, the newest first: what is wrong, since when, and what to do."""
    config = session_of(context).config()
    with control_schema(config) as control:
        found = control.alerts(open_only=not every) if control.version() is not None else []
    chosen = [alert for alert in found if code in (None, alert["code"])]
    if as_json:
        print_json({"alerts": [_as_json(alert) for alert in chosen]})
        return
    if not chosen:
        talk.print("No alert." if every else "No alert is open.")
        return
    for alert in chosen:
        stdout.print(_head(alert))
        stdout.print(f"  {alert['message']}")
        if alert["remedy"]:
            stdout.print(f"  {alert['remedy']}")


def _head(alert: dict[str, Any]) -> str:
    """One line: severity, code and subject, since when, how often, and whether it is over."""
    now = datetime.now(UTC)
    times = f"opened {span((now - alert['opened_at']).total_seconds())} ago, seen {alert['occurrences']:,} time(s)"
    over = alert["resolved_at"] or (alert["expires_at"] if alert["expires_at"] and alert["expires_at"] <= now else None)
    state = f", over since {span((now - over).total_seconds())}" if over else ""
    return "  ".join((alert["severity"], alert["code"], alert["subject"], times + state))


def _as_json(alert: dict[str, Any]) -> dict[str, Any]:
    return {
        name: value.isoformat() if isinstance(value, datetime) else value
        for name, value in alert.items()
        if name != "id"
    }
