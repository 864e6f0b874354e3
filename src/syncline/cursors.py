"""What an engine left as its cursor at a server, held against what is there before each write (Guarantee 3).

A server can go back under a running engine: a fail-over to a replica that was behind, a copy put back, a database that
was emptied. Writing on from the engine's own idea of where it stands would lose what is missing there for good.
"""

from __future__ import annotations

from syncline.bookkeeping import bookkept
from syncline.change import Cursor
from syncline.errors import Gap, Misconfigured, Receded

__all__ = ["Left"]


class Left:
    """The cursor of one source at one target, as bodies (JSON). A write whose answer was lost may have left its own."""

    def __init__(self, place: str) -> None:
        self._place = place
        self._bodies: tuple[str | None, ...] = (None,)

    def opened(self, body: str | None) -> None:
        """What is there when the target is opened is the truth."""
        self._bodies = (body,)

    def writing(self, body: str) -> None:
        """From here on it may be there, whether or not an answer comes."""
        self._bodies = tuple(dict.fromkeys((*self._bodies, body)))

    def written(self, body: str) -> None:
        """It is there."""
        self._bodies = (body,)

    def check(self, found: str | None) -> None:
        """Hold the body that is there against what was left.

        Raises:
            Gap: there is none any more.
            Receded: it stands before ours.
            Misconfigured: an engine with another log writes it.
        """
        last = self._bodies[0]
        if found in self._bodies or last is None:
            return
        if found is None:
            raise Gap(
                f"{self._place} does not hold what this target left there: it was emptied.",
                remedy="Start the engine anew, or `syncline resync`: the tables are read again. With `on_gap: resync`"
                " that happens by itself.",
                code="SL-TARGET-LOST",
            )
        there, ours = (bookkept(body, Cursor).position for body in (found, last))
        if there.log != ours.log:
            raise Misconfigured(
                f"Another engine, with a log of its own, writes to {self._place} under the same source's name.",
                remedy="Run one engine for a source and a target.",
                code="SL-TARGET-SHARED",
            )
        if there < ours:
            raise Receded(
                f"{self._place} went back from entry {ours.n} to entry {there.n}: an older copy took its place, or a"
                " replica that was behind.",
                remedy="What is missing is applied again from the log, if the log reaches back as far.",
            )
