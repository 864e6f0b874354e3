"""Reading a log's files: entries with what they are checked by, and where the log stands."""

from __future__ import annotations

from pathlib import Path

import msgspec

from syncline.change import Entry
from syncline.log.bodies import read_body
from syncline.log.frontier import Frontier
from syncline.log.rows import Row, Rows, damaged
from syncline.wire import decode_entry

__all__ = ["frontier_of", "read_entry"]


def frontier_of(rows: Rows, folder: Path, *, verify: bool = True) -> Frontier:
    """Where a log stands, from its last entry or, without entries, its own record; parts count as entries."""
    frontier = rows.frontier()
    if frontier.last == frontier.head:
        return frontier
    last = _verified(rows, folder, frontier.last)[0] if verify else rows.fetch(frontier.last)
    if last is None:
        raise damaged(folder, f"entry {frontier.last} is missing")
    return msgspec.structs.replace(
        frontier, place=last.place, incarnation=last.incarnation, max_version=last.max_version, total=last.total
    )


def _verified(rows: Rows, folder: Path, n: int) -> tuple[Row, bytes]:
    """The row and the body of an entry, checked."""
    row = rows.fetch(n)
    if row is None:
        raise damaged(folder, f"entry {n} is missing")
    body = row.body if row.extent is None else read_body(folder, row.extent, row.size - len(row.head))
    if body is None:
        raise damaged(folder, f"the body of entry {n} is missing")
    if row.digest(body) != row.checksum:
        raise damaged(folder, f"entry {n} fails its checksum")
    return row, body


def read_entry(rows: Rows, folder: Path, n: int) -> Entry:
    """An entry of the log in this folder, checked. Raises ``Damaged`` if it is not there, or not what was written."""
    row, body = _verified(rows, folder, n)
    return decode_entry(row.head, body)
