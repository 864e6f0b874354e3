"""Pauses, from the control schema to a target's board.

A paused table's changes stay in the log behind the position that is noted for it, first in the control schema and then
on the board: whatever is skipped was noted before, so that a crash in between replays more and never less.
"""

from __future__ import annotations

from collections.abc import Sequence

from syncline.catalog.repository import ControlSchema, Pause
from syncline.change import Cursor, Position
from syncline.log import Log
from syncline.pipeline.target import Target

__all__ = ["apply_pauses", "hold_name"]


def hold_name(target: str, table: str) -> str:
    """The name under which the log keeps what a paused table has yet to see."""
    return f"{target}/{table}"


def apply_pauses(
    control: ControlSchema, source: str, target: Target, log: Log, cursor: Cursor, pauses: Sequence[Pause]
) -> None:
    """Make the board of one target show what is paused now; ``cursor`` is where the target stands, or stood lately."""
    mine = [p for p in pauses if p.source in ("", source) and p.target in ("", target.name)]
    target.board.pause_target(any(not p.table_name and p.resumed_at is None for p in mine))
    held = target.board.held()
    tables = {p.table_name for p in mine if p.table_name}
    for table in tables:
        # The most specific pause of a table comes first and holds its position.
        pause = next(p for p in mine if p.table_name == table)
        if table not in held:
            _hold(control, source, target, log, cursor, pause)
        if pause.resumed_at is not None:
            target.board.resume(table)
    for table in set(held) - tables:
        target.board.resume(table)


def _hold(control: ControlSchema, source: str, target: Target, log: Log, cursor: Cursor, pause: Pause) -> None:
    after: int | None = cursor.position.n
    if pause.held_after is not None and pause.log == log.uuid:
        after = pause.held_after
    elif pause.resumed_at is None:
        after = control.hold(source, target.name, pause.table_name, log.uuid, cursor.position.n)
    else:
        return  # resumed before it held anything back
    if after is not None:
        log.advance(hold_name(target.name, pause.table_name), Position(log.uuid, after))
        target.board.hold(pause.table_name, after)
