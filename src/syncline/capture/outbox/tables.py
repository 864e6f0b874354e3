"""Which tables a source with an outbox streams: the outbox, and those that no event is about."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import psycopg

from syncline.capture.outbox.expand import Entity
from syncline.capture.outbox.install import table_oid
from syncline.capture.outbox.settings import OutboxConfig
from syncline.capture.schema import table_schema
from syncline.capture.tables import TableInfo, tables_info
from syncline.errors import Misconfigured

__all__ = ["as_captured", "entities_of", "newly_captured", "outbox_table", "streamed"]


def outbox_table(connection: psycopg.Connection[Any], config: OutboxConfig) -> TableInfo:
    """The table of events as the catalogue has it.

    Raises:
        Misconfigured: the outbox is not installed.
    """
    oid = table_oid(connection, config)
    found = tables_info(connection, [oid]) if oid is not None else []
    if not found:
        raise Misconfigured(
            f"The source has no outbox {config.table}.", remedy="Run `syncline outbox install`.", code="SL-NO-OUTBOX"
        )
    return found[0]


def as_captured(config: OutboxConfig | None, tables: Sequence[TableInfo]) -> list[TableInfo]:
    """The tables, with events in place of the publication for those that events tell of: a table that comes in the
    other way from now on has another shape, so it is read again, whatever was passed over in between."""
    told = config.tables if config is not None else frozenset()
    return [replace(t, published="events") if t.qualified in told else t for t in tables]


def streamed(config: OutboxConfig, outbox: TableInfo, tables: Sequence[TableInfo]) -> list[TableInfo]:
    """The tables whose rows are in the stream, hence in the publication."""
    return [outbox, *(t for t in tables if t.qualified not in config.tables)]


def newly_captured(config: OutboxConfig, tables: Sequence[TableInfo], published: Sequence[str]) -> list[str]:
    """The tables whose changes up to now are not in the stream, where these were ``published`` only now."""
    if config.table not in published:
        return list(published)
    told = [t.qualified for t in tables if t.qualified in config.tables]
    return [*(name for name in published if name != config.table), *told]


def entities_of(config: OutboxConfig, tables: Sequence[TableInfo]) -> dict[str, Entity | None]:
    """By entity type, what its events become. One whose table is not captured just now is not among them, so its events
    are parked."""
    schemas = {t.qualified: table_schema(t) for t in tables if t.qualified in config.tables}
    return {
        name: None if given is None else Entity(schemas[given.table], frozenset(given.ignore))
        for name, given in config.entities.items()
        if given is None or given.table in schemas
    }
