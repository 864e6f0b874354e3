"""How many threads a DuckDB instance uses: one while nothing but small transactions comes, else all that it may.

A transaction of some dozens of rows in a table of a million costs a third less on one thread, since there is nothing
to share and nobody to wake (decision record 0003); a change of the number costs half a millisecond.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import duckdb

__all__ = ["Threads"]

# Transactions below this size are small, and this many in a row are a calm.
_SMALL_ROWS = 2_000
_CALM = 16


class Threads:
    """The number of one instance, which is ``most`` when it is opened. Methods from any thread."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._now = most
        self._lock = threading.Lock()
        self._small = 0  # transactions in a row
        self._askers = 0  # whoever may want all threads just now

    def settle(self, connection: duckdb.DuckDBPyConnection, rows: int) -> None:
        """Before a transaction of so many rows. ``connection`` is in none."""
        with self._lock:
            self._small = self._small + 1 if rows < _SMALL_ROWS else 0
            calm = self._small >= _CALM and not self._askers
            self._use(connection, 1 if calm else self._most)

    @contextmanager
    def all(self, connection: duckdb.DuckDBPyConnection) -> Iterator[None]:
        """All threads for the block: queries of unknown size."""
        with self._lock:
            self._askers += 1
            self._use(connection, self._most)
        try:
            yield
        finally:
            with self._lock:
                self._askers -= 1

    def opened_again(self) -> None:
        """The instance is another one, with its first settings."""
        with self._lock:
            self._now, self._small = self._most, 0

    def _use(self, connection: duckdb.DuckDBPyConnection, number: int) -> None:
        if number != self._now:
            connection.execute(f"set global threads = {number}")
            self._now = number
