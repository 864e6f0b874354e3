"""Events page by page, in the order of (transaction id, number). Pure."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from dataclasses import dataclass
from typing import Self

__all__ = ["Page", "Span"]


@dataclass(frozen=True, slots=True)
class Span:
    """Events from one (transaction id, number) to another, both included."""

    first: tuple[int, int]
    last: tuple[int, int]


@dataclass(frozen=True, slots=True)
class Page:
    """What the events of a span are, in the order of (transaction id, number), one item an event."""

    txid: list[int]
    number: list[int]

    def __len__(self) -> int:
        return len(self.txid)

    @property
    def span(self) -> Span:
        return Span((self.txid[0], self.number[0]), self.end)

    @property
    def end(self) -> tuple[int, int]:
        """The last event."""
        return self.txid[-1], self.number[-1]

    def before(self, txid: int) -> Self:
        """The events of transactions before this one."""
        return self.first(bisect_left(self.txid, txid))

    def only(self, txid: int, after: int | None) -> tuple[Self, int | None]:
        """The events of this transaction, the first; and what follows them, where ``after`` follows the page."""
        count = bisect_right(self.txid, txid)
        return self.first(count), after if count == len(self) else self.txid[count]

    def first(self, count: int) -> Self:
        """So many of the events."""
        return type(self)(self.txid[:count], self.number[:count])
