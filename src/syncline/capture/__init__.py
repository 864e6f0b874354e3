"""Captures turn a source's changes into entries: the contract.

An implementation is one file here (with what it needs beside it). :class:`Capture` is its specification;
``syncline.testing`` holds the suite that every implementation passes.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from syncline.change import Entry

__all__ = ["Capture"]


class Capture(Protocol):
    """A source's changes as entries, in commit order.

    Order: entries hold whole transactions in the order of their commits (a large one as consecutive parts). Durability:
    the source keeps everything behind the last confirmed place, so a capture that is killed and opened again with
    ``after`` = the last durable place yields every later transaction exactly once. Concurrency: one thread iterates;
    ``confirm`` and ``close`` may be called from any thread.

    Errors: ``Unavailable`` (open it again later), ``Misconfigured`` (a person must act), ``Gap`` (the source no longer
    has what lies behind ``after``), ``Damaged`` (a message is malformed; says at which place).
    """

    def entries(self, after: int) -> Iterator[Entry]:
        """Yield entries behind the place ``after``, blocking for the next; ends only after ``close``."""

    def confirm(self, place: int) -> None:
        """Everything up to ``place`` is durable in the log: the source may forget it (Guarantee 1). Never goes back."""

    def close(self) -> None:
        """Let ``entries`` end soon. Idempotent; confirms nothing."""
