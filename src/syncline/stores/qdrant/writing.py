"""Writing one table's part of a work: look, guard, complete, truncate, write.

The guard is held twice. What is stored is looked at first, except where nothing stored can be newer (*in order*); and
every write tells Qdrant again to leave newer points alone, so that a writer that was thought dead does no harm.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import pyarrow.compute as pc

from syncline.change import Cursor
from syncline.errors import Rejected
from syncline.stores import VERSION as VERSION_AT
from syncline.stores import Folded
from syncline.stores.qdrant.books import Kept, Marker, Move
from syncline.stores.qdrant.names import DELETED, EXACT, VERSION
from syncline.stores.qdrant.points import Batch, PointId, Points, Refused, Stored, Which, scroll
from syncline.stores.qdrant.rows import Change, Partial, Pieces, Rows
from syncline.stores.qdrant.tables import TableState, vectors_of

__all__ = ["Writer"]

# Points in one request at most: while Qdrant Edge takes them in, it answers no reader.
_MOST = 500
# A payload in JSON is about this many times as large as its columns.
_GROWTH = 4

_Write = Callable[[Sequence[Stored], Sequence[int]], None]


@dataclass(slots=True)
class Writer:
    """One table of one work. ``truncated`` is the work's own truncation."""

    points: Points
    state: TableState
    truncated: int | None
    batch_bytes: int

    def write(self, rows: Rows, cursor: Cursor, stamp: int) -> list[Stored]:
        """Write everything and the marker behind it. Durable only after ``sync``; what is returned are notes of moves
        that are to be written once it is.

        Raises:
            Rejected: Qdrant refuses some rows. Others may have been written; the cursor is not.
        """
        state = self.state
        if self.truncated is not None:
            state.truncated = max(state.truncated, self.truncated)
        changes = rows.changes
        in_order = all(change.version >= max(state.highest, state.truncated, state.horizon) for change in changes)
        bases = self._bases(rows.partials)
        known = bases if in_order else bases | self._versions([*rows.upserts, *rows.deletes])
        # Before anything is written: if that fails half way, what comes next is no longer known to be in order.
        state.highest = max([state.highest, state.truncated, *(change.version for change in changes)])
        wholes = [c for c in (*rows.upserts, *rows.deletes) if in_order or self._wins(c, known.get(c.point.id))]
        payloads, completed, moves = self._complete(rows.partials, bases)
        if moves:
            # Durable before the first write: once two keys have swapped half way, nobody knows what they were.
            self.points.put(state.collection, [move.note() for move in moves])
            self.points.sync([state.collection])
        if self.truncated is not None:
            self._truncate(self.truncated)
        refused = self._overwrite(payloads, rows.bytes_a_row)
        refused += self._upsert([*wholes, *completed], rows.bytes_a_row)
        self._reject(refused)
        self.points.put(state.collection, [self._marker(cursor, stamp).point()])
        return [msgspec.structs.replace(move, row=None).note() for move in moves]

    def streams(self, folded: Folded) -> bool:
        """Whether these are many changes, and nothing needs to be looked at before they are written: whole rows alone,
        none of them older than anything that is stored."""
        rows, state = folded.upserts, self.state
        if rows is None or folded.partials is not None or folded.deletes is not None or self.truncated is not None:
            return False
        if rows.num_rows <= 2 * self._size(rows.nbytes // max(1, rows.num_rows)):
            return False
        oldest = pc.min(rows.column(rows.num_columns + VERSION_AT)).as_py()
        return bool(oldest >= max(state.highest, state.truncated, state.horizon))

    def stream(self, folded: Folded, cursor: Cursor, stamp: int) -> list[Stored]:
        """As :meth:`write`, where it :meth:`streams`: points are made while those before them are taken in."""
        rows, state = folded.upserts, self.state
        assert rows is not None
        state.highest = pc.max(rows.column(rows.num_columns + VERSION_AT)).as_py()
        pieces = Pieces(state.schema, rows, self._size(rows.nbytes // rows.num_rows))
        found = self.points.upserts(state.collection, map(_batch, _sound(pieces)))
        pieces.reject()
        self._reject([place for number in found for place in self._halving(pieces[number])])
        self.points.put(state.collection, [self._marker(cursor, stamp).point()])
        return []

    def _reject(self, refused: Sequence[int]) -> None:
        if refused:
            raise Rejected(self.state.schema.qualified, sorted(refused), "Qdrant does not take a value")

    def _marker(self, cursor: Cursor, stamp: int) -> Marker:
        state = self.state
        return Marker(state.schema.qualified, stamp, state.truncated, state.horizon, cursor)

    # ------------------------------------------------------------------------------------------ looking

    def _bases(self, partials: Sequence[Partial]) -> dict[PointId, Stored]:
        """What partials rest on, and what is at their own keys: as it was before this work."""
        if not partials:
            return {}
        names = {vector.column for vector in vectors_of(self.state.schema)}
        vectors = bool(names) and not all(self._leaves_vectors(p, names) for p in partials)
        ids = dict.fromkeys([*(p.origin for p in partials), *(p.change.point.id for p in partials)])
        return {point.id: point for ids_ in _cut(list(ids), _MOST) for point in self._found(ids_, vectors=vectors)}

    def _leaves_vectors(self, partial: Partial, columns: set[str]) -> bool:
        return not partial.moves and columns <= partial.kept and self.truncated is None

    def _versions(self, changes: Sequence[Change]) -> dict[PointId, Stored]:
        ids = [change.point.id for change in changes]
        return {p.id: p for part in _cut(ids, 10 * _MOST) for p in self._found(part, only=(VERSION, DELETED))}

    def _found(
        self, ids: Sequence[PointId], *, vectors: bool = False, only: Sequence[str] | None = None
    ) -> list[Stored]:
        return self.points.retrieve(self.state.collection, ids, vectors=vectors, only=only)

    def _wins(self, change: Change, stored: Stored | None) -> bool:
        """Guarantee 5: whether a change may be written over what is stored."""
        if change.version < self.state.truncated:
            return False
        if stored is None or self._removed(stored):
            return change.version >= self.state.horizon
        buried = bool(stored.payload.get(DELETED))
        return _version(stored) <= change.version and (not buried or change.version >= self.state.horizon)

    def _removed(self, stored: Stored) -> bool:
        """Whether this work's truncation removes the row."""
        return self.truncated is not None and not stored.payload.get(DELETED) and _version(stored) <= self.truncated

    # ------------------------------------------------------------------------------------------ partial rows

    def _complete(
        self, partials: Sequence[Partial], bases: dict[PointId, Stored]
    ) -> tuple[list[Change], list[Change], list[Move]]:
        """Partials as payloads to be replaced (their vectors stay where they are), as whole points, and as moves."""
        names = {vector.column for vector in vectors_of(self.state.schema)}
        payloads: list[Change] = []
        points: list[Change] = []
        moves: list[Move] = []
        noted = self._noted(partials)
        for partial in partials:
            base, own = bases.get(partial.origin), bases.get(partial.change.point.id)
            if base is None or base.payload.get(DELETED) or not self._wins(partial.change, own):
                continue
            if not partial.moves:
                in_place = self._leaves_vectors(partial, names) or (not names and not self._removed(base))
                (payloads if in_place else points).append(self._completed(partial, base))
                continue
            move = self._move(partial, base, noted)
            if move is not None and move.row is not None:
                points.append(Change(move.row.point(move.to), move.version, partial.change.place))
                moves.append(move)
        return payloads, points, moves

    def _noted(self, partials: Sequence[Partial]) -> dict[PointId, Move]:
        wanted = [self._bare(partial) for partial in partials if partial.moves]
        return Move.read(self.points, self.state.collection, wanted) if wanted else {}

    def _bare(self, partial: Partial) -> Move:
        change = partial.change
        return Move(self.state.schema.qualified, change.version, change.point.id, partial.origin)

    def _move(self, partial: Partial, base: Stored, noted: dict[PointId, Move]) -> Move | None:
        """A row takes values from another key once, and never from a newer row. One that was noted but is not known to
        be durable takes what was noted: its origin may have been written over since (two keys that swap)."""
        move = self._bare(partial)
        if move.id in noted:
            return noted[move.id]
        if _version(base) > move.version:
            return None
        return msgspec.structs.replace(move, row=Kept.of(self._completed(partial, base).point))

    def _completed(self, partial: Partial, base: Stored) -> Change:
        """The whole point: what the change carries, and from the base what it does not."""
        change = partial.change
        payload = dict(change.point.payload)
        payload |= {name: base.payload.get(name) for name in partial.kept if name in payload}
        exact = {n: t for n, t in payload.pop(EXACT, {}).items() if n not in partial.kept}
        exact |= {n: t for n, t in (base.payload.get(EXACT) or {}).items() if n in partial.kept}
        if exact:
            payload[EXACT] = exact
        vectors: dict[str, Any] = {}
        for vector in vectors_of(self.state.schema):
            source = base if vector.column in partial.kept else change.point
            if vector.name in source.vectors:
                vectors[vector.name] = source.vectors[vector.name]
        return Change(Stored(change.point.id, payload, vectors), change.version, change.place)

    # ------------------------------------------------------------------------------------------ writing

    def _truncate(self, version: int) -> None:
        """In batches that can be repeated (correctness rule 19); tombstones stay."""
        which = Which(buried=False, through=version)
        for page in scroll(self.points, self.state.collection, which, payload=False):
            self.points.delete(self.state.collection, [point.id for point in page])

    def _overwrite(self, changes: Iterable[Change], bytes_a_row: int) -> list[int]:
        """Replace payloads; the places of those that Qdrant refuses."""
        write = functools.partial(self.points.overwrite, self.state.collection)
        return [place for batch in self._batches(changes, bytes_a_row) for place in _halving(batch, write)]

    def _upsert(self, changes: Iterable[Change], bytes_a_row: int) -> list[int]:
        """Write whole points; the places of those that Qdrant refuses."""
        batches = self._batches(changes, bytes_a_row)
        refused = self.points.upserts(self.state.collection, map(_batch, batches))
        return [place for number in refused for place in self._halving(batches[number])]

    def _halving(self, batch: Sequence[Change]) -> list[int]:
        return _halving(batch, functools.partial(self.points.upsert, self.state.collection))

    def _batches(self, changes: Iterable[Change], bytes_a_row: int) -> list[Sequence[Change]]:
        """By bytes, in the order of the versions."""
        ordered = sorted(changes, key=lambda change: change.version)
        return list(_cut(ordered, self._size(bytes_a_row)))

    def _size(self, bytes_a_row: int) -> int:
        return max(1, min(_MOST, self.batch_bytes // (max(1, bytes_a_row) * _GROWTH)))


def _sound(pieces: Pieces) -> Iterator[Sequence[Change]]:
    """The pieces before the first with a row that has no form."""
    for number in range(len(pieces)):
        found = pieces[number]
        if pieces.refused:
            return
        yield found


def _batch(changes: Sequence[Change]) -> Batch:
    return [change.point for change in changes], [change.version for change in changes]


def _halving(batch: Sequence[Change], write: _Write) -> list[int]:
    """Write a batch; what is refused is tried by halves, down to the rows that are to blame."""
    try:
        write(*_batch(batch))
    except Refused:
        if len(batch) == 1:
            if batch[0].place < 0:
                raise  # a tombstone: no row is to blame
            return [batch[0].place]
        middle = len(batch) // 2
        return _halving(batch[:middle], write) + _halving(batch[middle:], write)
    return []


def _cut(items: Sequence[Any], size: int) -> Iterable[Sequence[Any]]:
    return (items[i : i + size] for i in range(0, len(items), size))


def _version(stored: Stored) -> int:
    """A point without a version is older than everything."""
    return int(stored.payload.get(VERSION) or 0)
