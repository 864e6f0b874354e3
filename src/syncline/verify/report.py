"""What a verification found, in counts; keys are shown only when asked for, other values never (Guarantee 11)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from syncline.verify.scope import EVERYTHING, Scope
from syncline.verify.score import place_scores, rounded

__all__ = ["AWAY", "BROKEN", "CHECKS", "EXAMPLES", "HOLDS", "KINDS", "NOT_CHECKED", "Check", "Report", "TableReport"]

KINDS = ("missing", "extra", "different")
EXAMPLES = 20
# The types of checks, as seed and users call them. By content ("data_hash") is how rows are always compared.
CHECKS = ("row_count", "data_hash", "business_rules", "referential_integrity")
AWAY = "away"  # the state of tables at a target that can't be reached
HOLDS, BROKEN, NOT_CHECKED = "holds", "broken", "not checked"


@dataclass(frozen=True, slots=True)
class Check:
    """One fact that was looked at beside the rows themselves.

    ``kind`` is one of :data:`CHECKS`, ``target`` empty for what is a fact of the source itself, ``table`` empty where a
    rule names none, ``name`` that of the rule or of the foreign key, empty for a count. ``state``: :data:`HOLDS`,
    :data:`BROKEN` (by ``violations`` rows, at least that many where ``more``), or :data:`NOT_CHECKED` for the
    ``reason``. ``figures`` are counts. ``rows`` are keys of violating rows, the first ones: shown when asked for, never
    kept.
    """

    kind: str
    source: str
    target: str
    table: str
    name: str
    state: str = HOLDS
    violations: int = 0
    more: bool = False
    figures: Mapping[str, int] = field(default_factory=dict)
    reason: str = ""
    rows: Sequence[tuple[str, ...]] = field(default=(), repr=False)

    @property
    def identity(self) -> tuple[str, str, str, str, str]:
        """What the same check has again on another look."""
        return (self.kind, self.source, self.target, self.table, self.name)

    @property
    def place(self) -> str:
        """Whose fact it is, in words."""
        return f"target {self.target}" if self.target else f"source {self.source}"

    def to_dict(self, *, show_keys: bool = False) -> dict[str, Any]:
        """JSON-able; ``show_keys`` adds the keys of some violating rows."""
        names = ("kind", "source", "target", "table", "name", "state", "violations")
        found: dict[str, Any] = {name: getattr(self, name) for name in names} | dict(self.figures)
        if self.more:
            found["at_least"] = True
        if self.reason:
            found["reason"] = self.reason
        if show_keys and self.rows:
            found["keys"] = [", ".join(row) for row in self.rows[:EXAMPLES]]
        return found


@dataclass(slots=True)
class TableReport:
    """One table at one target.

    ``rows`` of the source were compared. ``missing`` rows are not at the target, ``extra`` ones not at the source (or a
    second time under one key), ``different`` ones hold other values, or a version that no change ever had. Rows that
    changed behind the point are ``in_flight``, rows under a key with dead letters are ``parked``: neither differs.
    ``columns`` exist on one side only, or with another type. ``state``: ``compared``, ``gap`` (compared, and known to
    miss changes), or not compared, as it is ``paused`` by an operator, still ``loading``, ``left out`` because it
    can't be captured, or at a target that is ``away`` (for the ``reason``). ``digests`` are those of both sides and
    their algorithm, where they were asked for. ``through``: the target had every change with a native number below it.
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
    through: int = 0
    columns: tuple[str, ...] = ()
    reason: str = ""
    examples: dict[str, list[str]] = field(default_factory=dict)
    digests: dict[str, str] = field(default_factory=dict)

    @property
    def score(self) -> float:
        """The share of what was compared that is equal (docs/verification.md): rows, surplus rows and odd columns. Rows
        in flight were not compared, parked ones are not as the source has them. 0 for a table of which nothing is
        known."""
        if not self.compared:
            return 0.0
        wrong = self.differences + self.parked
        facts = max(self.rows - self.in_flight + self.extra + len(self.columns), wrong)
        return 1 - wrong / facts if facts else 1.0

    @property
    def differences(self) -> int:
        return self.missing + self.extra + self.different + len(self.columns)

    @property
    def compared(self) -> bool:
        return self.state in ("compared", "gap")

    def to_dict(self, *, show_keys: bool = False) -> dict[str, Any]:
        """JSON-able counts; ``show_keys`` adds the keys of some rows of each kind."""
        names = ("source", "target", "table", "state", "rows", *KINDS, "in_flight", "parked", "through")
        found: dict[str, Any] = {name: getattr(self, name) for name in names} | {"score": rounded(self.score)}
        if self.digests:
            found["digests"] = dict(self.digests)
        if self.columns:
            found["columns"] = list(self.columns)
        if self.reason:
            found["reason"] = self.reason
        if show_keys and self.examples:
            found["keys"] = {kind: list(keys) for kind, keys in self.examples.items()}
        return found


@dataclass(frozen=True, slots=True)
class Report:
    """The tables that were compared, in order, what else was checked, and how long it took. ``number`` is that of the
    kept report, 0 while it is not kept. ``scope`` says which rows were looked at."""

    tables: Sequence[TableReport]
    seconds: float
    checks: Sequence[Check] = ()
    number: int = 0
    scope: Scope = EVERYTHING

    @property
    def differences(self) -> int:
        """How many rows (and columns) differ; 0 means that every copy equals its source."""
        return sum(t.differences for t in self.tables)

    @property
    def not_compared(self) -> int:
        """Of how many tables nothing is known."""
        return sum(not t.compared for t in self.tables)

    @property
    def away(self) -> tuple[str, ...]:
        """The targets that could not be reached, each once."""
        return tuple(dict.fromkeys(t.target for t in self.tables if t.state == AWAY))

    @property
    def broken(self) -> int:
        """How many checks beside the comparison do not hold."""
        return sum(c.state == BROKEN for c in self.checks)

    @property
    def not_checked(self) -> int:
        """How many of them could not be made."""
        return sum(c.state == NOT_CHECKED for c in self.checks)

    @property
    def scores(self) -> dict[str, float]:
        """The score of each place, a ``target NAME`` or a ``source NAME``; see :mod:`syncline.verify.score`."""
        return place_scores(
            [(f"target {t.target}", t.table, "data_hash", t.score) for t in self.tables]
            + [(c.place, c.table, c.kind, float(c.state == HOLDS)) for c in self.checks]
        )

    @property
    def score(self) -> float:
        """The mean of the places' scores; 1.0 only if nothing differs and everything that was asked for was looked at.
        0 if nothing was."""
        scores = self.scores
        return sum(scores.values()) / len(scores) if scores else 0.0

    @property
    def consistency_score(self) -> float:
        """The score in percent, rounded down: 100.0 is only what is whole."""
        return rounded(self.score * 100, 2)

    def to_dict(self, *, show_keys: bool = False) -> dict[str, Any]:
        """JSON-able."""
        found: dict[str, Any] = {
            "differences": self.differences,
            "not_compared": self.not_compared,
            "broken": self.broken,
            "not_checked": self.not_checked,
            "score": rounded(self.score),
            "scores": {place: rounded(score) for place, score in self.scores.items()},
            "rows": sum(t.rows for t in self.tables),
            "seconds": round(self.seconds, 3),
            "tables": [t.to_dict(show_keys=show_keys) for t in self.tables],
            "checks": [c.to_dict(show_keys=show_keys) for c in self.checks],
        }
        return found | self.scope.to_dict() | ({"report": self.number} if self.number else {})
