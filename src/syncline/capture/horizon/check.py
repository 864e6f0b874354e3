"""What stands in the way of reading events by the horizon, whatever writes them."""

from __future__ import annotations

from collections.abc import Iterator

from syncline.capture.identity import key_columns
from syncline.capture.preflight.look import Look
from syncline.capture.settings import PostgresSettings
from syncline.capture.source import SourceConfig
from syncline.capture.tables import TableInfo
from syncline.capture.transactions import open_transactions
from syncline.finding import Finding

__all__ = ["as_looked_at", "check_horizon", "check_key"]

# Older transactions end by themselves before anyone could act on the message.
_LONG_S = 60


def as_looked_at(settings: PostgresSettings) -> SourceConfig:
    """The part of the settings that says which tables, as the checks know it."""
    wanted = SourceConfig(
        dsn=settings.dsn, monitored_tables=settings.patterns, excluded_tables=settings.excluded_tables
    )
    wanted.called(settings.plain.setting.rpartition(".")[0])
    return wanted


def check_key(table: TableInfo) -> tuple[str, str] | None:
    """What is wrong with a table whose changes come as whole rows; None if nothing is."""
    if key_columns(table):
        return None
    return (
        "it has no primary key, so its rows can't be told apart",
        f"ALTER TABLE {table.sql_name} ADD PRIMARY KEY (...);",
    )


def check_horizon(looked: Look) -> Iterator[Finding]:
    """Open transactions hold up whatever committed after they began."""
    for one in open_transactions(looked.connection, _LONG_S):
        held = "What began after it is not read before it ends."
        yield Finding("SL-OPEN-TRANSACTION", "warning", one.subject, f"{one.words} {held}", one.remedy)
