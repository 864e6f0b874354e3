"""The latest entries of a log in memory, bounded by their size."""

from __future__ import annotations

from syncline.change import Entry

__all__ = ["Tail"]


class Tail:
    """A run of entries with consecutive numbers, the newest last. Not safe for threads: its log locks."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._held: dict[int, tuple[Entry, int]] = {}  # in the order of their numbers
        self._size = 0

    def add(self, n: int, entry: Entry) -> None:
        """Hold the next entry, and let go of the oldest ones beyond the bound."""
        size = entry.nbytes
        self._held[n] = (entry, size)
        self._size += size
        while self._size > self._max_bytes:
            self._drop(next(iter(self._held)))

    def replace(self, n: int, entry: Entry) -> None:
        """Put another entry in the place of ``n``, if it is held."""
        if n in self._held:
            size = entry.nbytes
            self._size += size - self._held[n][1]
            self._held[n] = (entry, size)

    def drop(self, through: int) -> None:
        """Let go of the entries up to ``through``."""
        while self._held and (first := next(iter(self._held))) <= through:
            self._drop(first)

    def holds(self, n: int) -> bool:
        return n in self._held

    def take(self, first: int, end: int, max_bytes: int) -> list[tuple[int, Entry]]:
        """Entries from ``first`` to ``end`` while they fit, at least one; none if ``first`` is not held."""
        taken: list[tuple[int, Entry]] = []
        size = 0
        for n in range(first, end + 1):
            if n not in self._held:
                break
            entry, nbytes = self._held[n]
            size += nbytes
            if taken and size > max_bytes:
                break
            taken.append((n, entry))
        return taken

    def _drop(self, n: int) -> None:
        _, size = self._held.pop(n)
        self._size -= size
