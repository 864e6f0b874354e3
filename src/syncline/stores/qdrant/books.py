"""What the store notes for itself, as points without vectors: cursors, tables, markers, and rows that moved.

The collection ``syncline`` holds a point for the cursor of each source and one for each table. What has to fit a
table's rows is in its own collection, marked like a tombstone so that no reader meets it: its *marker*, which says how
far the collection is, and the moves. A cursor names the stamp that each marker must have; a collection that was put
back from an older snapshot, or that lost its last writes with the machine, has an older one, and :func:`read_cursor`
goes back to that.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from syncline.bookkeeping import bookkept
from syncline.change import Cursor, TableSchema
from syncline.errors import Misconfigured
from syncline.stores.qdrant.names import BOOKS, DELETED, MARKER, MOVE, VERSION, private_id
from syncline.stores.qdrant.points import PointId, Points, Readable, Sparse, Spec, Stored, Which, scroll

__all__ = ["Books", "Kept", "Marker", "Move", "Table", "note_of", "read_cursor", "read_table", "read_tables"]

FORMAT = 1


class Marker(msgspec.Struct, frozen=True):
    """How far a table's collection is: behind which work, and what the guard needs to know.

    ``stamp`` rises with every work of the source; ``cursor`` is the one behind the last work that touched the table.
    """

    table: str
    stamp: int = 0
    truncated: int = 0
    horizon: int = 0
    cursor: Cursor | None = None

    @staticmethod
    def id_of(table: str) -> PointId:
        return private_id("marker", table)

    def point(self) -> Stored:
        """The marker as a point of the table's collection."""
        return Stored(self.id_of(self.table), {DELETED: True, MARKER: _text(self)})

    @classmethod
    def read(cls, points: Readable, collection: str, table: str) -> Marker | None:
        """The marker of a table, None if its collection has none."""
        found = points.retrieve(collection, [cls.id_of(table)], vectors=False)
        return bookkept(found[0].payload[MARKER], cls) if found else None


class Table(msgspec.Struct, frozen=True):
    """A table that a source fills: where, and the schema that it was last migrated to. ``adopted``: the collection was
    there before."""

    source: str
    collection: str
    schema: TableSchema
    adopted: bool = False


class Kept(msgspec.Struct, frozen=True):
    """A point in a note."""

    payload: dict[str, Any]
    dense: dict[str, list[float]]
    sparse: dict[str, tuple[list[int], list[float]]]

    @classmethod
    def of(cls, point: Stored) -> Kept:
        sparse = {n: (v.indices, v.values) for n, v in point.vectors.items() if isinstance(v, Sparse)}
        return cls(point.payload, {n: v for n, v in point.vectors.items() if not isinstance(v, Sparse)}, sparse)

    def point(self, to: PointId) -> Stored:
        return Stored(to, self.payload, {**self.dense, **{n: Sparse(*v) for n, v in self.sparse.items()}})


class Move(msgspec.Struct, frozen=True):
    """A row that took values from another key (a rekey). ``row`` is what it became, until its work is durable.

    Noted in the table's collection, so that whoever puts that back takes the moves back with it.
    """

    table: str
    version: int
    to: PointId
    origin: PointId
    row: Kept | None = None

    @property
    def id(self) -> PointId:
        return private_id("move", self.table, str(self.to), str(self.origin), str(self.version))

    def note(self) -> Stored:
        """The move as a point of the table's collection; it is forgotten with the tombstones of its version."""
        return Stored(self.id, {VERSION: self.version, DELETED: True, MOVE: _text(self)})

    @classmethod
    def read(cls, points: Readable, collection: str, wanted: Sequence[Move]) -> dict[PointId, Move]:
        """Those of these moves that are noted, by their ids."""
        found = points.retrieve(collection, [move.id for move in wanted], vectors=False)
        return {point.id: bookkept(point.payload[MOVE], cls) for point in found}


class _Noted(msgspec.Struct, frozen=True):
    """A cursor, and the stamps that the markers of its tables had when it was written."""

    cursor: Cursor
    stamp: int
    stamps: dict[str, int]
    format: int = FORMAT


def _text(note: msgspec.Struct) -> str:
    return msgspec.json.encode(note).decode()


def note_of(points: Readable, collection: str, note: PointId) -> dict[str, Any] | None:
    """The payload of one note, None without it (or without its collection)."""
    if points.spec(collection) is None:
        return None
    found = points.retrieve(collection, [note], vectors=False)
    return found[0].payload if found else None


def _read_noted(points: Readable, source: str) -> _Noted | None:
    note = note_of(points, BOOKS, private_id("cursor", source))
    if note is None:
        return None
    if note["format"] > FORMAT:
        raise Misconfigured(
            f"This Qdrant was written by a newer Syncline (format {note['format']}, this one knows {FORMAT}).",
            remedy="Upgrade Syncline.",
        )
    return bookkept(note["body"], _Noted)


def read_cursor(points: Readable, source: str) -> Cursor | None:
    """The durable cursor of a source: that of its note, or of the marker that is furthest behind it."""
    noted = _read_noted(points, source)
    if noted is None:
        return None
    behind = noted.cursor, noted.stamp
    for table, stamp in noted.stamps.items():
        record = read_table(points, table)
        if record is None or points.spec(record.collection) is None:
            continue  # it is read again from the source once it is migrated
        marker = Marker.read(points, record.collection, table)
        if marker is not None and marker.cursor is not None and marker.stamp < min(stamp, behind[1]):
            behind = marker.cursor, marker.stamp
    return behind[0]


def read_table(points: Readable, table: str) -> Table | None:
    """What is noted of a table (``namespace.name``)."""
    note = note_of(points, BOOKS, private_id("table", table))
    return None if note is None else bookkept(note["body"], Table)


def read_tables(points: Readable) -> list[Table]:
    """All tables of all sources."""
    if points.spec(BOOKS) is None:
        return []
    notes = [point.payload for page in scroll(points, BOOKS, Which()) for point in page]
    return [bookkept(note["body"], Table) for note in notes if note["kind"] == "table"]


class Books:
    """The notes of one source. Tables and cursors are durable when the method that writes them returns."""

    def __init__(self, points: Points, source: str) -> None:
        self._points = points
        self._source = source
        if points.spec(BOOKS) is None:
            points.create(BOOKS, Spec())
        noted = _read_noted(points, source)
        self._stamp = noted.stamp if noted else 0
        self._stamps = dict(noted.stamps) if noted else {}

    def cursor(self) -> Cursor | None:
        """The durable cursor; raises ``Misconfigured`` where a newer Syncline wrote it."""
        return read_cursor(self._points, self._source)

    def next_stamp(self) -> int:
        """The stamp of the work that begins."""
        self._stamp += 1
        return self._stamp

    def write_cursor(self, cursor: Cursor, touched: Iterable[str]) -> None:
        """The cursor of a work whose data are durable: written last (Guarantee 3)."""
        self._stamps |= dict.fromkeys(touched, self._stamp)
        noted = _Noted(cursor, self._stamp, self._stamps)
        self._write("cursor", self._source, {"format": FORMAT, "source": self._source, "body": _text(noted)})

    def table(self, name: str) -> Table | None:
        return read_table(self._points, name)

    def tables(self) -> list[Table]:
        return read_tables(self._points)

    def write_table(self, table: Table) -> None:
        name = table.schema.qualified
        self._write("table", name, {"name": name, "collection": table.collection, "body": _text(table)})

    def _write(self, kind: str, name: str, note: dict[str, Any]) -> None:
        self._points.put(BOOKS, [Stored(private_id(kind, name), {"kind": kind, **note})])
        self._points.sync([BOOKS])
