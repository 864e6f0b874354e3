"""Foreign keys: at the source, those that PostgreSQL has not checked included, and the same ones within each copy.

In a graph a reference is a relationship, and what breaks it is one that waits at a stub: its other end never came.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from syncline.stores import Referring
from syncline.verify.checks.asking import Rows, answered
from syncline.verify.checks.at import At, Copy, not_checked
from syncline.verify.report import Check

__all__ = ["look"]

KIND = "referential_integrity"


def look(at: At) -> Iterator[Check]:
    """A check for each foreign key of the tables that are asked for."""
    declared = getattr(at.looked, "constraints", None)
    if declared is None:
        begun = at.begun(KIND, "", "") if not at.target else None
        if begun is not None:
            yield not_checked(begun, f"A source of type {at.looked.settings.type} declares no foreign keys.")
        return
    for constraint in declared(at.tables):
        begun = at.begun(KIND, constraint.qualified, constraint.name)
        if begun is None:
            continue
        found = _at_target(at, begun, constraint) if at.target else _at_source(at, begun, constraint)
        if found is not None:
            yield found


def _at_source(at: At, begun: Check, constraint: Any) -> Check:
    found = answered(begun, lambda: at.looked.orphans(constraint, at.timeout_s), boolean=False)  # type: ignore[attr-defined]
    return found if constraint.valid else replace(found, figures={"not_valid": 1})


def _at_target(at: At, begun: Check, constraint: Any) -> Check | None:
    """None where the copy has not both ends of the reference as the source has them."""
    apart = at.apart(constraint.qualified) or at.apart(constraint.parent)
    if at.copy is None or apart:
        return not_checked(begun, f"Its tables can't be looked at: {apart}.")
    ends = _ends(at, at.copy, constraint)
    if ends is None:
        return None
    reader = at.copy.reader
    if not isinstance(reader, Referring):
        kind = at.wanted.config.targets[at.target].type
        return not_checked(begun, f"A target of type {kind} can't be asked for references.")
    schemas = [reader.recorded(table) for table in (constraint.qualified, constraint.parent)]
    if None in schemas:
        return not_checked(begun, "Its tables are not at the target yet.")
    asked = reader.dangling(schemas[0], ends[0], schemas[1], ends[1], at.timeout_s)  # type: ignore[arg-type]
    if asked is None:
        return None
    rows: Rows = asked
    return answered(begun, lambda: rows, boolean=False)


def _ends(at: At, copy: Copy, constraint: Any) -> tuple[list[str], list[str]] | None:
    """What the columns of both ends are called at the target. None where a row may lack its other end by design: that
    table is not taken, or not whole (`where`, a transform, a row filter of the publication)."""
    infos = {info.qualified: info for info in at.known}
    if not {constraint.qualified, constraint.parent} <= set(infos) or not copy.mapping.takes(constraint.parent):
        return None
    if constraint.parent in at.looked.filtered([infos[constraint.parent]]):  # type: ignore[attr-defined]
        return None
    child, parent = (copy.mapped(infos[table]) for table in (constraint.qualified, constraint.parent))
    if not parent.of_every_row:
        return None
    mine, theirs = child.names, parent.names
    if not (set(constraint.columns) <= set(mine) and set(constraint.key) <= set(theirs)):
        return None
    return [mine[c] for c in constraint.columns], [theirs[k] for k in constraint.key]
