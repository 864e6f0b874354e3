"""What an outbox knows of itself and of who polls it. Functions over one connection."""

from __future__ import annotations

from typing import Any

import psycopg
from psycopg import sql

from syncline.capture.horizon.source import Installation

__all__ = ["begin", "confirm", "confirmed", "installation"]

Connection = psycopg.Connection[Any]


def _ask(connection: Connection, text: str, schema: str, params: list[Any] | None = None) -> psycopg.Cursor[Any]:
    table = sql.Identifier(schema, "sync_event_installation")
    return connection.execute(sql.SQL(text).format(table), params)


def installation(connection: Connection, schema: str) -> Installation | None:
    """What is installed; None if nothing is, or what an older version made, which can't be polled."""
    there = connection.execute("select to_regclass(%s) is not null", [f'"{schema}".sync_event_installation']).fetchone()
    if there is None or not there[0]:
        return None
    row = _ask(connection, "select id::text, purged::text::int8 from {}", schema).fetchone()
    return Installation(str(row[0]), int(row[1])) if row is not None else None


def begin(connection: Connection, schema: str, place: int | None) -> None:
    """Note where a log begins, None that there is none any more."""
    _ask(connection, "update {} set place = %s::text::xid8, seen_at = now()", schema, [place])


def confirm(connection: Connection, schema: str, place: int) -> None:
    """Note that the log has everything before a place for good. Never goes back."""
    _ask(connection, "update {} set place = greatest(place, %s::text::xid8), seen_at = now()", schema, [place])


def confirmed(connection: Connection, schema: str) -> int:
    """The place that was confirmed last, 0 without one."""
    row = _ask(connection, "select coalesce(place::text::int8, 0) from {}", schema).fetchone()
    return int(row[0]) if row is not None else 0
