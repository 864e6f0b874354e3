"""As many rows at the target as at the source.

Both are counted where they are. The source is counted in the snapshot at the point, the target a moment later, so what
changed in between is allowed for: each row whose version is at or behind the point, and each tombstone there, may have
added or taken away one row, and so may each key that is parked. A count that differs by more than that differs.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from syncline.capture.snapshot import Reshaped, Rewritten
from syncline.capture.tables import TableInfo
from syncline.change import TableSchema
from syncline.errors import Misconfigured
from syncline.stores import Counting
from syncline.verify.checks.at import At, Copy, not_checked
from syncline.verify.checks.mapped import mapped_rows
from syncline.verify.report import BROKEN, Check

__all__ = ["look"]

KIND = "row_count"


def look(at: At) -> Iterator[Check]:
    """A check for each table of a target."""
    for info in at.tables if at.target else ():
        begun, apart = at.begun(KIND, info.qualified, ""), at.apart(info.qualified)
        if begun is None:
            continue
        if at.copy is None or apart:
            yield not_checked(begun, f"It can't be counted: {apart}.")
        else:
            yield _counted(begun, at, at.copy, info)
    for table, reason in at.left_out.items():
        begun = at.begun(KIND, table, "")
        if begun is not None:
            yield not_checked(begun, reason)


def _counted(begun: Check, at: At, copy: Copy, info: TableInfo) -> Check:
    try:
        mine, refused = _source(at, copy, info)
    except (Rewritten, Reshaped):
        return not_checked(begun, "It was truncated, rewritten or altered while it was counted.")
    except Misconfigured:
        reason = at.left_out_now(info.qualified)
        if not reason:
            raise
        return not_checked(begun, reason)
    recorded = copy.reader.recorded(info.qualified)
    theirs, newer = _target(copy, recorded) if recorded is not None else (0, 0)
    figures = {"source_rows": mine, "target_rows": theirs}
    allowed = refused + copy.parked.get(info.qualified, 0)
    if recorded is not None and abs(theirs - mine) > allowed:
        allowed += newer + copy.reader.buried(recorded, copy.version).num_rows
        # Asked last: a purge in between would have forgotten tombstones that are to be allowed for.
        if max(copy.reader.swept(info.qualified)) >= copy.version:
            return not_checked(replace(begun, figures=figures), "It was emptied while it was counted.")
    differ = abs(theirs - mine) - allowed
    state = replace(begun, figures=figures)
    return replace(state, state=BROKEN, violations=differ) if differ > 0 else state


def _source(at: At, copy: Copy, info: TableInfo) -> tuple[int, int]:
    """How many rows the target should have, and how many more the mapping refuses, which are parked."""
    count = getattr(at.looked, "counted", None)
    if count is not None and copy.mapped(info).of_every_row:
        return int(count(info, copy.point)), 0
    rows = refused = 0
    for made in mapped_rows(at, copy, info):
        rows, refused = rows + made.rows.num_rows, refused + made.refused
    return rows, refused


def _target(copy: Copy, schema: TableSchema) -> tuple[int, int]:
    """How many rows the target has, and how many of them are at or behind the point."""
    if isinstance(copy.reader, Counting):
        return copy.reader.counted(schema, copy.version)
    rows = newer = 0
    for batch in copy.reader.scan(schema):
        rows += batch.num_rows
        newer += int((batch.column(batch.num_columns - 1).to_numpy() >= copy.version).sum())
    return rows, newer
