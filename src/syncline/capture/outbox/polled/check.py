"""What stands in the way of polling an outbox, found before anything is changed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import psycopg

from syncline.capture.horizon.check import as_looked_at, check_horizon, check_key
from syncline.capture.outbox.polled.installed import installation
from syncline.capture.outbox.polled.settings import PolledOutboxSettings
from syncline.capture.preflight.look import Look, look_at
from syncline.capture.preflight.outbox import check_entities, check_installed
from syncline.capture.preflight.server import check_server
from syncline.capture.preflight.tables import check_tables
from syncline.finding import Finding

__all__ = ["preflight"]


def preflight(
    settings: PolledOutboxSettings, connection: psycopg.Connection[Any], never: Sequence[str]
) -> list[Finding]:
    """Findings about the server, each table, the outbox, and transactions that hold up the horizon."""
    looked = look_at(as_looked_at(settings), connection, *never)
    found = [f for f in check_server(looked) if f.code != "SL-WAL-LEVEL"]
    found += check_tables(looked, identity=check_key)
    found += _check_told(settings, looked)
    there = list(check_installed(looked, settings.outbox))
    found += there
    if not there:
        found += _check_version(settings, connection)
        found += check_entities(looked, settings.outbox)
    found += check_horizon(looked)
    return found


def _check_told(settings: PolledOutboxSettings, looked: Look) -> Iterator[Finding]:
    for table in looked.tables:
        if table.qualified not in settings.outbox.tables:
            yield Finding(
                "SL-OUTBOX",
                "error",
                table.qualified,
                "No event tells of it, and nothing else is captured of a source of type outbox.",
                "Name it in outbox.entities, exclude it, or let another source have it (type: triggers).",
            )


def _check_version(settings: PolledOutboxSettings, connection: psycopg.Connection[Any]) -> Iterator[Finding]:
    if installation(connection, settings.outbox.schema_name) is None:
        yield Finding(
            "SL-NO-OUTBOX",
            "error",
            settings.outbox.table,
            "It was made by an older version, and can't be polled.",
            "Run `syncline outbox install`, which brings it up to date.",
        )
