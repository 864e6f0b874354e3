"""What stands in the place of a log that is too damaged to be opened, until it is decided what becomes of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NoReturn

from syncline.change import Entry, Position
from syncline.errors import Damaged
from syncline.log import Incarnation, LogStatus

__all__ = ["DamagedLog"]


class DamagedLog:
    """A :class:`~syncline.log.Log` that takes and gives nothing, and says why, whatever is asked of it: its source is
    in a gap like any other, with a status, an alert and a way out, and others run on (Guarantee 8)."""

    def __init__(self, error: Damaged) -> None:
        self._error = error

    @property
    def uuid(self) -> str:
        return ""

    def append(self, entries: Sequence[Entry]) -> Position:
        self._refuse()

    def read(self, after: Position, max_bytes: int, wait_s: float = 0.0) -> list[tuple[Position, Entry]]:
        self._refuse()

    def advance(self, target: str, position: Position) -> None:
        self._refuse()

    def forget(self, target: str) -> None:
        """Nothing is noted here."""

    def trim(self, keep_s: float = 0.0) -> int:
        return 0

    def incarnation(self) -> Incarnation | None:
        self._refuse()

    def start_incarnation(self, incarnation: Incarnation) -> None:
        self._refuse()

    def status(self) -> LogStatus:
        """Of nothing: what the log holds can't be told."""
        return LogStatus(log="", head=0, end=0, size_bytes=0, entries=0, place=0, max_version=0, cursors={})

    def close(self) -> None:
        """Nothing is open."""

    def _refuse(self) -> NoReturn:
        raise Damaged(self._error.message, remedy=self._error.remedy, code=self._error.code) from self._error
