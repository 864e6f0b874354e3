"""What stands in the way of capturing by triggers, found before anything is changed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import psycopg

from syncline.capture.horizon.check import as_looked_at, check_horizon, check_key
from syncline.capture.preflight.look import Look, look_at, name
from syncline.capture.preflight.server import check_server
from syncline.capture.preflight.tables import check_tables
from syncline.capture.tables import TableInfo
from syncline.capture.triggers.installed import Installed, installation, look
from syncline.capture.triggers.settings import TriggerSettings
from syncline.finding import Finding

__all__ = ["preflight"]


def preflight(settings: TriggerSettings, connection: psycopg.Connection[Any], never: Sequence[str]) -> list[Finding]:
    """Findings about the server, each table, its triggers, and transactions that hold up the horizon."""
    looked = look_at(as_looked_at(settings), connection, *never)
    found = [f for f in check_server(looked) if f.code != "SL-WAL-LEVEL"]
    found += check_tables(looked, identity=check_key)
    there = installation(connection, settings.events_schema)
    usable = [t for t in looked.tables if check_key(t) is None]
    states = look(connection, settings.events_schema, usable, notify=settings.notify)
    found += _check_installed(settings, looked, installed=there is not None)
    found += (f for t in usable for f in _check_table(settings, looked, t, states[t.oid]))
    found += check_horizon(looked)
    return found


def _check_installed(settings: TriggerSettings, looked: Look, *, installed: bool) -> Iterator[Finding]:
    subject = f"schema {settings.events_schema}"
    if installed:
        yield Finding("SL-TRIGGERS", "ok", subject, "sync_events is there.")
    elif settings.install and looked.server.may_create:
        yield Finding("SL-TRIGGERS", "ok", subject, "It will be created.")
    else:
        yield Finding(
            "SL-TRIGGERS",
            "error",
            subject,
            f"sync_events is not there, and role {looked.server.role} "
            + ("may not create a schema." if settings.install else "is not to install it (install: false)."),
            "As the owner of the database run what `syncline triggers install --sql` prints.",
        )


_MAY = """
select has_table_privilege(%s::oid, 'trigger') and coalesce(has_schema_privilege(to_regnamespace(%s), 'create'), true)
"""


def _check_table(settings: TriggerSettings, looked: Look, table: TableInfo, state: Installed) -> Iterator[Finding]:
    if state.disabled:
        yield Finding(
            "SL-TRIGGER-DISABLED",
            "error",
            table.qualified,
            f"Its triggers are disabled on {', '.join(state.disabled)}: changes are not recorded.",
            f"ALTER TABLE {state.disabled[0]} ENABLE TRIGGER USER; then it is read again by itself.",
        )
    elif not state.current:
        what = "has no triggers yet" if state.missing else "has triggers of another version, or of a former key"
        row = looked.connection.execute(_MAY, [table.oid, name(settings.events_schema)]).fetchone()
        if settings.install and row is not None and row[0]:
            yield Finding("SL-TRIGGER-MISSING", "ok", table.qualified, f"It {what}; they will be made.")
        else:
            yield Finding(
                "SL-TRIGGER-MISSING",
                "error" if state.missing else "warning",
                table.qualified,
                f"It {what}, and role {looked.server.role} does not make them.",
                "As the owner of the table run what `syncline triggers install --sql` prints.",
            )
