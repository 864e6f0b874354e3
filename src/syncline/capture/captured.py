"""What of a source is captured as its catalogue is now, for commands that run beside an engine or without one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from syncline.capture import Source
from syncline.capture.tables import TableInfo
from syncline.finding import Finding
from syncline.mapping import Facts

__all__ = ["Captured", "captured"]


@dataclass(frozen=True, slots=True)
class Captured:
    """The ``tables`` with their ``facts``, and what was found against each one that is ``left_out``, by name."""

    tables: tuple[TableInfo, ...]
    facts: Mapping[str, Facts]
    left_out: Mapping[str, Finding]


def captured(source: Source) -> Captured:
    """Look at the tables that the patterns choose. One that can't be captured hinders no other (Guarantee 8): it is
    taken out before anything is asked of its columns.

    Raises:
        Unavailable: the source can't be reached.
        Misconfigured: it refuses the login, or a pattern can't be read.
    """
    found = {f.subject: f for f in reversed(source.preflight()) if f.severity == "error"}
    chosen = source.tables()
    tables = tuple(source.described([info for info in chosen if info.qualified not in found]))
    facts = source.facts(tables)
    return Captured(tables, facts, {i.qualified: found[i.qualified] for i in chosen if i.qualified in found})
