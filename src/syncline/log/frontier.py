"""Where a log begins and ends, what is visible, and which entry may come next: pure, shared by every log.

A :class:`Frontier` is the sum of the entries so far. A log computes the next one before it writes, and takes it over
once the write is durable, so that a failed write leaves nothing behind.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from syncline.change import Entry, Marker, Position
from syncline.errors import Gap, Unavailable
from syncline.log import Incarnation, LogStatus

__all__ = ["DISCARDED", "Frontier", "Series", "closed", "full", "next_incarnation"]

# What takes the place of a part of a transaction that was never finished, so that the numbers have no holes.
DISCARDED = Entry((Marker("progress"),))


class Series(msgspec.Struct, frozen=True):
    """The parts so far of a transaction that is not complete: the number of the first, the index due next."""

    first: int
    due: int
    size: int
    max_version: int


class Frontier(msgspec.Struct, frozen=True):
    """The sum of a log's entries.

    ``head`` is the last removed entry, ``last`` the last durable one, visible or not. ``place`` is the last durable
    place, and ``incarnation`` the source incarnation that it belongs to. ``total`` and ``removed`` are bytes ever
    appended and ever removed. ``series`` is set while a transaction in parts is unfinished.
    """

    log: str
    head: int = 0
    last: int = 0
    place: int = 0
    incarnation: int = 0
    max_version: int = 0
    total: int = 0
    removed: int = 0
    series: Series | None = None

    @property
    def end(self) -> int:
        """The last visible entry: nothing from the first part of an unfinished transaction on (correctness rule 11)."""
        return self.series.first - 1 if self.series else self.last

    @property
    def size(self) -> int:
        """Bytes of the entries that the log holds."""
        return self.total - self.removed

    def check(self, position: Position) -> None:
        """Raise Gap unless ``position`` is a place in this log that can be read after (correctness rule 9)."""
        if position.log != self.log:
            raise Gap(
                f"A cursor is at entry {position.n} of log {position.log}, but this is log {self.log}: the log was "
                "deleted or replaced, or another setup fills the target from a source of the same name.",
                remedy="Read the tables again from the source (resync), or give the other setup's source another name.",
                code="SL-LOG-FOREIGN",
            )
        if position.n < self.head:
            raise Gap(
                f"A cursor is at entry {position.n}, but log {self.log} begins behind entry {self.head}: what lies "
                "between was trimmed.",
                remedy="The tables have to be read again from the source (resync).",
                code="SL-LOG-TRIMMED",
            )
        if position.n > self.end:
            raise Gap(
                f"A cursor is at entry {position.n}, but log {self.log} ends at entry {self.end}: the log is older "
                "than the target (was it restored from a copy?).",
                remedy="The tables have to be read again from the source (resync).",
                code="SL-LOG-AHEAD",
            )

    def abandoned_by(self, entries: Sequence[Entry]) -> bool:
        """Whether these entries show that the capture gave the unfinished transaction up.

        It did when the transaction begins anew, or when something else of the stream (which has a place) follows.
        """
        if self.series is None:
            return False
        stream = next((e for e in entries if e.part or e.place), None)
        return stream is not None and (stream.part is None or stream.part.index == 0)

    def step(self, entry: Entry, size: int) -> Frontier:
        """The frontier behind ``entry``, the next one, of ``size`` bytes.

        Raises:
            Gap: a part is missing, or something else of the stream stands inside a transaction.
        """
        series = self.series
        version = 0
        if entry.part is not None:
            due = series.due if series else 0
            if entry.part.index != due:
                raise _out_of_order(f"part {entry.part.index} of a large transaction came where part {due} was due")
            version = max(entry.max_version, series.max_version if series else 0)
            first, before = (series.first, series.size) if series else (self.last + 1, 0)
            series = None if entry.part.last else Series(first, due + 1, before + size, version)
        else:
            if series is not None and entry.place:
                raise _out_of_order("an entry with a place came between the parts of a large transaction")
            version = entry.max_version
        moves = entry.boundary and entry.place
        return Frontier(
            self.log,
            self.head,
            self.last + 1,
            entry.place if moves else self.place,
            entry.incarnation if moves else self.incarnation,
            max(self.max_version, version) if entry.boundary else self.max_version,
            self.total + size,
            self.removed,
            series,
        )

    def status(self, cursors: dict[str, int], current: Incarnation | None, file_bytes: int) -> LogStatus:
        """The log's status. A place of a former incarnation means nothing to the current one, and is left out."""
        former = current is not None and self.incarnation != current.number
        return LogStatus(
            log=self.log,
            head=self.head,
            end=self.end,
            size_bytes=self.size,
            entries=self.end - self.head,
            place=0 if former else self.place,
            max_version=self.max_version,
            cursors=dict(cursors),
            file_bytes=file_bytes,
        )


def next_incarnation(current: Incarnation | None, new: Incarnation, max_version: int) -> bool:
    """Whether ``new`` has to be recorded; False if it is the current one.

    The current one may move on to a new timeline (a promotion that loses nothing, correctness rule 5).

    Raises:
        Gap: its number or its base do not rise (correctness rule 1).
    """
    if new == current:
        return False
    if current is not None and new == msgspec.structs.replace(current, timeline=new.timeline):
        return True
    if current is not None and new.number <= current.number:
        raise Gap(
            f"Source incarnation {new.number} cannot follow incarnation {current.number}.",
            remedy="The log and the targets are of different ages: resync.",
            code="SL-LOG-INCARNATION",
        )
    if new.base < max_version:
        raise Gap(
            f"Source incarnation {new.number} has base {new.base}, below version {max_version} that the log holds.",
            remedy="A base must be above every version ever written: resync.",
            code="SL-LOG-INCARNATION",
        )
    return True


def full(size: int, new: int, max_bytes: int, where: str) -> Unavailable:
    """The error of a log at its budget."""
    return Unavailable(
        f"{where} holds {size:,} bytes and takes no further {new:,}: its budget is {max_bytes:,} (log.max_bytes).",
        remedy="It goes on when the slowest target has caught up; `syncline status` names it.",
        code="SL-LOG-FULL",
    )


def closed(where: str) -> Unavailable:
    """The error of a log that was used after ``close``."""
    return Unavailable(f"{where} is closed.", remedy="Start Syncline again.", code="SL-LOG-CLOSED")


def _out_of_order(what: str) -> Gap:
    return Gap(
        f"The log refused an entry: {what}.",
        remedy="Restart the capture; it begins at the last whole transaction.",
        code="SL-LOG-PARTS",
    )
