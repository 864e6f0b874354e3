"""The durable log between captures and targets: the contract.

An implementation is one file here. :class:`Log` is its specification; ``syncline.testing`` holds the suite that every
implementation passes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import msgspec

from syncline.change import Entry, Position

__all__ = ["Incarnation", "Log", "LogStatus"]


class Incarnation(msgspec.Struct, frozen=True):
    """One life of a source (correctness rule 1): versions are ``base`` + its native numbers (LSNs)."""

    number: int
    system_identifier: str
    timeline: int
    database: str
    base: int


class LogStatus(msgspec.Struct, frozen=True):
    """A consistent look at a log.

    ``head`` is the earliest position that can be read after, ``end`` the last visible entry. ``size_bytes`` are the
    bytes of the entries it holds (what its budget counts), ``file_bytes`` those of its files. ``place`` is the last
    durable place of the current source incarnation, 0 without one.
    """

    log: str
    head: int
    end: int
    size_bytes: int
    entries: int
    place: int
    max_version: int
    cursors: dict[str, int]
    file_bytes: int = 0


class Log(Protocol):
    """A durable, ordered, replayable sequence of entries, numbered from 1 without holes.

    Order: ``read`` returns entries in the order of ``append``. Durability: when ``append`` returns, the entries survive
    SIGKILL and power loss of this machine (Guarantee 1). Concurrency: any thread may call any method; appends from
    several threads are serialised whole (parts of a large transaction come from one thread, one after the other, and
    entries of other threads may stand between them; they stay invisible until the last part is durable, see ``read``).

    Errors: ``Unavailable`` when the disk is full or the budget (``max_bytes``) is reached, with nothing written;
    ``Damaged`` from ``read`` when an entry fails its checksum, and again on every later ``read`` of it: never skipped;
    ``Gap`` when a position is from another log, before ``head`` or after ``end`` (correctness rule 9).
    """

    @property
    def uuid(self) -> str:
        """Identity of this log; a new file is a new log."""

    def append(self, entries: Sequence[Entry]) -> Position:
        """Store entries, durable on return; the position behind the last one."""

    def read(self, after: Position, max_bytes: int, wait_s: float = 0.0) -> list[tuple[Position, Entry]]:
        """Visible entries behind ``after``, in order, at least one if there is one, up to about ``max_bytes``.

        Blocks up to ``wait_s`` seconds for the first. A part is visible only when all parts of its transaction are
        durable; unfinished parts are discarded when the log is opened, and never seen.
        """

    def advance(self, target: str, position: Position) -> None:
        """Note a target's cursor. Advice for trimming: the truth is the cursor in the target."""

    def forget(self, target: str) -> None:
        """Drop a target's cursor, so that it no longer holds back trimming."""

    def trim(self, keep_s: float = 0.0) -> int:
        """Remove whole entries that every noted cursor has passed and that are older than ``keep_s`` seconds.

        Returns how many. Nothing is removed while no cursor is noted.
        """

    def incarnation(self) -> Incarnation | None:
        """The current incarnation of the source, None in a fresh log."""

    def start_incarnation(self, incarnation: Incarnation) -> None:
        """Record a new incarnation, or the current one on a new timeline; durable on return.

        Raises ``Gap`` when its number does not rise, or its base is below a version that was logged.
        """

    def status(self) -> LogStatus:
        """Sizes, cursors, and the last durable ``place``."""

    def close(self) -> None:
        """Release files and wake blocked readers. Idempotent."""
