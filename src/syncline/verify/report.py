"""What a verification found, in counts; keys are shown only when asked for, other values never (Guarantee 11)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

__all__ = ["EXAMPLES", "KINDS", "Report", "TableReport"]

KINDS = ("missing", "extra", "different")
EXAMPLES = 20


@dataclass(slots=True)
class TableReport:
    """One table at one target.

    ``rows`` of the source were compared. ``missing`` rows are not at the target, ``extra`` ones not at the source (or a
    second time under one key), ``different`` ones hold other values, or a version that no change ever had. Rows that
    changed behind the point are ``in_flight``, rows under a key with dead letters are ``parked``: neither differs.
    ``columns`` exist on one side only, or with another type. ``state``: ``compared``, ``gap`` (compared, and known to
    miss changes), or not compared, as it is ``paused`` by an operator, still ``loading``, or ``left out`` because it
    can't be captured (for the ``reason``).
    """

    source: str
    target: str
    table: str
    state: str = "compared"
    rows: int = 0
    missing: int = 0
    extra: int = 0
    different: int = 0
    in_flight: int = 0
    parked: int = 0
    columns: tuple[str, ...] = ()
    reason: str = ""
    examples: dict[str, list[str]] = field(default_factory=dict)

    @property
    def differences(self) -> int:
        return self.missing + self.extra + self.different + len(self.columns)

    @property
    def compared(self) -> bool:
        return self.state in ("compared", "gap")

    def to_dict(self, *, show_keys: bool = False) -> dict[str, Any]:
        """JSON-able counts; ``show_keys`` adds the keys of some rows of each kind."""
        names = ("source", "target", "table", "state", "rows", *KINDS, "in_flight", "parked")
        found: dict[str, Any] = {name: getattr(self, name) for name in names}
        if self.columns:
            found["columns"] = list(self.columns)
        if self.reason:
            found["reason"] = self.reason
        if show_keys and self.examples:
            found["keys"] = {kind: list(keys) for kind, keys in self.examples.items()}
        return found


@dataclass(frozen=True, slots=True)
class Report:
    """The tables that were looked at, in order, and how long it took."""

    tables: Sequence[TableReport]
    seconds: float

    @property
    def differences(self) -> int:
        """How many rows (and columns) differ; 0 means that every copy equals its source."""
        return sum(t.differences for t in self.tables)

    @property
    def not_compared(self) -> int:
        """Of how many tables nothing is known."""
        return sum(not t.compared for t in self.tables)

    def to_dict(self, *, show_keys: bool = False) -> dict[str, Any]:
        """JSON-able."""
        return {
            "differences": self.differences,
            "not_compared": self.not_compared,
            "rows": sum(t.rows for t in self.tables),
            "seconds": round(self.seconds, 3),
            "tables": [t.to_dict(show_keys=show_keys) for t in self.tables],
        }
