"""What of a source is captured as its catalogue is now, for commands that run beside an engine or without one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from syncline.capture.facts import table_facts
from syncline.capture.preflight import preflight
from syncline.capture.slot import with_publication
from syncline.capture.source import SourceConfig, connect, translated
from syncline.capture.tables import TableInfo, matching_tables
from syncline.finding import Finding
from syncline.mapping import Facts

__all__ = ["Captured", "captured"]


@dataclass(frozen=True, slots=True)
class Captured:
    """The ``tables`` with their ``facts``, and what was found against each one that is ``left_out``, by name."""

    tables: tuple[TableInfo, ...]
    facts: Mapping[str, Facts]
    left_out: Mapping[str, Finding]


def captured(settings: SourceConfig, control_schema: str) -> Captured:
    """Look at the tables that the patterns choose. One that can't be captured hinders no other (Guarantee 8): it is
    taken out before anything is asked of its columns.

    Raises:
        Unavailable: the source can't be reached.
        Misconfigured: it refuses the login, or a pattern can't be read.
    """
    found = {f.subject: f for f in reversed(preflight(settings, control_schema)) if f.severity == "error"}
    dsn, never = settings.plain, (control_schema,)
    with translated(dsn), connect(dsn, timeout_s=settings.connect_timeout_s) as connection:
        chosen = matching_tables(connection, settings.monitored_tables, settings.excluded_tables, never)
        usable = [info for info in chosen if info.qualified not in found]
        tables = tuple(with_publication(connection, settings.publication, usable))
        facts = table_facts(connection, tables)
    return Captured(tables, facts, {i.qualified: found[i.qualified] for i in chosen if i.qualified in found})
