"""The log in memory keeps the contract."""

from __future__ import annotations

import pytest

from syncline.log.memory import MemoryLog, Shelf
from syncline.testing.log_suite import LogConformance


class _Place:
    def __init__(self) -> None:
        self._shelf = Shelf()

    def open(self, max_bytes: int = 8 * 1024**3) -> MemoryLog:
        return MemoryLog(self._shelf, max_bytes=max_bytes)

    def wipe(self) -> None:
        self._shelf = Shelf()

    def damage(self, n: int) -> None:
        self._shelf.damaged.add(n)


class TestMemoryLog(LogConformance):
    @pytest.fixture
    def place(self) -> _Place:
        return _Place()
