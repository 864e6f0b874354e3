"""The log in memory: the reference that tests hold the durable ones against, and a log for tests of other parts.

It is as durable as its :class:`Shelf`: a log that is opened on the shelf of a closed one continues it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from uuid import uuid4

import msgspec

from syncline.change import Entry, Position
from syncline.errors import Damaged
from syncline.log import Incarnation, LogStatus
from syncline.log.frontier import DISCARDED, Frontier, closed, full, next_incarnation

__all__ = ["MemoryLog", "Shelf"]

_WHERE = "The log in memory"


@dataclass(frozen=True, slots=True)
class _Kept:
    entry: Entry
    created: float
    size: int


@dataclass
class Shelf:
    """What outlives a :class:`MemoryLog`. A number in ``damaged`` makes reading that entry fail."""

    frontier: Frontier = field(default_factory=lambda: Frontier(uuid4().hex))
    kept: dict[int, _Kept] = field(default_factory=dict)
    cursors: dict[str, int] = field(default_factory=dict)
    incarnation: Incarnation | None = None
    damaged: set[int] = field(default_factory=set)


class MemoryLog:
    """A :class:`~syncline.log.Log` that keeps its entries on a shelf in memory."""

    def __init__(self, shelf: Shelf | None = None, *, max_bytes: int = 8 * 1024**3) -> None:
        self._shelf = shelf or Shelf()
        self._max_bytes = max_bytes
        self._changed = threading.Condition()
        self._closed = False
        self._discard()

    @property
    def uuid(self) -> str:
        return self._shelf.frontier.log

    def append(self, entries: Sequence[Entry]) -> Position:
        sizes = [e.nbytes for e in entries]
        with self._changed:
            self._check_open()
            if self._shelf.frontier.abandoned_by(entries):
                self._discard()
            self._make_room(sum(sizes), parts=all(e.part for e in entries))
            frontier = self._shelf.frontier
            for entry, size in zip(entries, sizes, strict=True):
                frontier = frontier.step(entry, size)
            now = time.time()
            for n, (entry, size) in enumerate(zip(entries, sizes, strict=True), self._shelf.frontier.last + 1):
                self._shelf.kept[n] = _Kept(entry, now, size)
            self._shelf.frontier = frontier
            self._changed.notify_all()
            return Position(frontier.log, frontier.last)

    def _make_room(self, new: int, *, parts: bool) -> None:
        if self._shelf.frontier.size + new > self._max_bytes:
            self._trim(float("inf"))
            state = self._shelf.frontier
            alone = state.head == state.end and (parts or state.size == 0)
            if state.size + new > self._max_bytes and not alone:
                raise full(state.size, new, self._max_bytes, _WHERE)

    def _discard(self) -> None:
        """Replace the parts of an unfinished transaction by empty entries."""
        shelf = self._shelf
        if shelf.frontier.series is None:
            return
        for n in range(shelf.frontier.series.first, shelf.frontier.last + 1):
            kept = shelf.kept[n]
            if kept.entry.part:
                shelf.kept[n] = _Kept(DISCARDED, kept.created, DISCARDED.nbytes)
                removed = shelf.frontier.removed + kept.size - DISCARDED.nbytes
                shelf.frontier = msgspec.structs.replace(shelf.frontier, removed=removed)
        shelf.frontier = msgspec.structs.replace(shelf.frontier, series=None)

    def read(self, after: Position, max_bytes: int, wait_s: float = 0.0) -> list[tuple[Position, Entry]]:
        deadline = time.monotonic() + wait_s
        found: list[tuple[Position, Entry]] = []
        with self._changed:
            self._check_open()
            self._shelf.frontier.check(after)
            while self._shelf.frontier.end == after.n:
                rest = deadline - time.monotonic()
                if rest <= 0 or self._closed:
                    return []
                self._changed.wait(rest)
                self._shelf.frontier.check(after)
            for n in range(after.n + 1, self._shelf.frontier.end + 1):
                kept = self._shelf.kept[n]
                max_bytes -= kept.size
                if found and (max_bytes < 0 or n in self._shelf.damaged):
                    break
                if n in self._shelf.damaged:
                    raise Damaged(f"{_WHERE} is damaged: entry {n} fails its checksum.", remedy="Resync the targets.")
                found.append((Position(after.log, n), kept.entry))
        return found

    def advance(self, target: str, position: Position) -> None:
        with self._changed:
            self._shelf.frontier.check(position)
            self._shelf.cursors[target] = position.n

    def forget(self, target: str) -> None:
        with self._changed:
            self._shelf.cursors.pop(target, None)

    def trim(self, keep_s: float = 0.0) -> int:
        with self._changed:
            self._check_open()
            return self._trim(time.time() - keep_s)

    def _trim(self, cutoff: float) -> int:
        shelf, removed = self._shelf, 0
        passed = min([shelf.frontier.end, *shelf.cursors.values()]) if shelf.cursors else 0
        for n in range(shelf.frontier.head + 1, passed + 1):
            if shelf.kept[n].created > cutoff:
                break
            size = shelf.kept.pop(n).size
            shelf.frontier = msgspec.structs.replace(shelf.frontier, head=n, removed=shelf.frontier.removed + size)
            removed += 1
        return removed

    def incarnation(self) -> Incarnation | None:
        return self._shelf.incarnation

    def start_incarnation(self, incarnation: Incarnation) -> None:
        with self._changed:
            self._check_open()
            if next_incarnation(self._shelf.incarnation, incarnation, self._shelf.frontier.max_version):
                self._shelf.incarnation = incarnation

    def status(self) -> LogStatus:
        with self._changed:
            frontier = self._shelf.frontier
            return frontier.status(self._shelf.cursors, self._shelf.incarnation, frontier.size)

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _check_open(self) -> None:
        if self._closed:
            raise closed(_WHERE)
