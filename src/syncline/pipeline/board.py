"""Which tables a target takes just now: paused ones, ones in a gap, and ones that are catching up."""

from __future__ import annotations

import threading

from syncline.change import Loaded, Marker

__all__ = ["Board"]


class Board:
    """Shared between a target's worker, which asks, and the engine's housekeeping, which decides. Any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._target_paused = False
        self._held: dict[str, int] = {}
        self._resumed: dict[str, int] = {}
        self._gaps: set[str] = set()
        self._since: dict[str, int] = {}

    def paused(self) -> bool:
        return self._target_paused

    def pause_target(self, paused: bool) -> None:
        """Rest, or go on."""
        self._target_paused = paused

    def wanted(self, table: str) -> bool:
        """Whether the table's changes are applied."""
        with self._lock:
            return table not in self._held and table not in self._gaps

    def since(self, table: str) -> int:
        """Changes of the table below this version are superseded by a load: an old shape must not come back."""
        with self._lock:
            return self._since.get(table, 0)

    def begin(self, loaded: dict[str, Loaded]) -> None:
        """What the target has when its worker starts."""
        with self._lock:
            self._since = {table: known.since for table, known in loaded.items()}

    def passing(self, marker: Marker) -> bool:
        """A gap begins at its marker, and ends where a load begins: what the load reads is behind it."""
        with self._lock:
            if marker.kind in ("load_started", "loaded") and marker.known is not None:
                self._since[marker.table] = marker.known.since
            if marker.kind == "gap":
                self._gaps.add(marker.table)
            elif marker.kind == "load_started":
                self._gaps.discard(marker.table)
        return True

    def open_gap(self, table: str) -> None:
        """The table waits for a load (known from an earlier run)."""
        with self._lock:
            self._gaps.add(table)

    @property
    def gaps(self) -> frozenset[str]:
        """Tables that wait for a load."""
        with self._lock:
            return frozenset(self._gaps)

    def hold(self, table: str, after: int) -> None:
        """Pause a table; ``after`` is the position behind which nothing of it is applied."""
        with self._lock:
            self._resumed.pop(table, None)
            self._held.setdefault(table, after)

    def held(self) -> dict[str, int]:
        """Paused tables, and those still catching up, with their positions."""
        with self._lock:
            return {**self._resumed, **self._held}

    def resume(self, table: str) -> None:
        """The table's worker shall catch up."""
        with self._lock:
            if table in self._held:
                self._resumed[table] = self._held.pop(table)

    def resumed(self) -> list[tuple[str, int]]:
        """Tables to catch up with."""
        with self._lock:
            return sorted(self._resumed.items())

    def caught_up(self, table: str) -> None:
        """The table has everything again."""
        with self._lock:
            self._resumed.pop(table, None)
