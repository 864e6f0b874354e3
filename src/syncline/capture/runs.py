"""Sources whose stream is made of runs: what a run may be asked to do, how it ended, and where both are kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any, Literal, Protocol

__all__ = ["DELETES", "Kind", "RunRecords", "RunRow", "SetAside", "Wish"]

# A run would delete more than it may by itself.
DELETES = "SL-PERIODIC-DELETES"

Kind = Literal["auto", "full", "changed", "members"]


@dataclass(frozen=True, slots=True)
class Wish:
    """What is asked of a run. ``columns``: only these, and nothing is deleted. ``members``: only these; with
    ``allow_deletes`` they are deleted whatever is known of their keys."""

    kind: Kind = "auto"
    columns: tuple[str, ...] | None = None
    members: tuple[str, ...] | None = None
    dry_run: bool = False
    allow_deletes: bool = False

    @property
    def is_of_all(self) -> bool:
        """Whether it leaves no column and no member out by itself."""
        return self.columns is None and self.members is None

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, given: Mapping[str, Any]) -> Wish:
        """The inverse of :meth:`to_dict`."""
        lists = {name: tuple(given[name]) for name in ("columns", "members") if given.get(name) is not None}
        return cls(**{**given, **lists})


@dataclass(frozen=True, slots=True)
class RunRow:
    """How a run ended: ``done``, ``asking`` (a person has to allow it), ``failed``, ``refused`` (what was wished can't
    be) or ``stopped``; it names no member (Guarantee 11).

    ``number`` is that of the state that the source is in behind it; ``message`` says what a person should know.
    """

    state: str
    kind: str
    figures: Mapping[str, int]
    number: int = 0
    changed_up_to: float | None = None
    reasons: Mapping[str, int] | None = None
    missing: tuple[str, ...] = ()
    code: str = ""
    message: str = ""


@dataclass(frozen=True, slots=True)
class SetAside:
    """Members that a run of ``table`` could not read, by name, with their reasons.

    ``looked_at`` are those that it asked for (None: everybody): who is among them and not set aside can be read, or is
    gone. Empty where it says nothing of that.
    """

    table: str
    members: Sequence[bytes]
    reasons: Sequence[str]
    looked_at: Sequence[bytes] | None


class RunRecords(Protocol):
    """The records of one source's runs, and the lock of whoever does them. One thread; all raise ``Unavailable``."""

    def take(self) -> None:
        """Become the one who does the runs. What others left half done counts as stopped.

        Raises:
            Unavailable: with code :data:`~syncline.capture.IN_USE`, somebody else does them.
        """

    def hold(self, *, surely: bool = False) -> None:
        """Stay that one: renewed when due, or ``surely``, since what follows must not be done without it. Raises as
        :meth:`take`."""

    def release(self) -> None:
        """Let go of it, if it is still ours."""

    def asked(self) -> tuple[int, Wish] | None:
        """The oldest run that somebody waits for: its id, and what is wished. It counts as begun."""

    def begin(self, kind: str) -> int:
        """Record that a run begins that nobody waits for; its id."""

    def park(self, run: int, aside: SetAside) -> None:
        """Park members that can't be read, before what the run found is told, and close what is parked of those that
        can be again, or are gone; durable on return (Guarantee 7)."""

    def end(self, run: int, row: RunRow) -> None:
        """Record how it ended, and raise or close its alerts."""

    def runs(self, many: int) -> list[dict[str, Any]]:
        """The latest runs, the newest first, as dicts of their columns."""

    def next_at(self, when: datetime | None) -> None:
        """Say when the next run is due."""
