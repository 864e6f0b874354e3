"""How a run ended, as whoever asked for it hears of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from syncline.capture.runs import RunRow

__all__ = ["Result"]

_FIGURES = ("members", "created", "updated", "deleted", "kept", "set_aside")


@dataclass(frozen=True, slots=True)
class Result:
    """``state`` is ``done``, or ``asking`` where the run would delete more than it may by itself.

    ``kept``: rows without a member that stay, since keys are gone as a whole or the configuration says so.
    ``set_aside``: members that can't be read; ``reasons`` counts why, and a dry run names some in ``members_aside``.
    ``number`` is that of the state behind the run.
    """

    state: str
    kind: str
    dry_run: bool
    members: int = 0
    created: int = 0
    updated: int = 0
    deleted: int = 0
    kept: int = 0
    set_aside: int = 0
    number: int = 0
    reasons: dict[str, int] = field(default_factory=dict)
    members_aside: tuple[tuple[str, str], ...] = ()
    missing_keys: tuple[str, ...] = ()
    code: str = ""
    message: str = ""
    seconds: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    @classmethod
    def of_record(cls, row: Mapping[str, Any]) -> Result:
        """A run as the control schema has it, which is over."""
        seconds = (row["finished_at"] - row["started_at"]).total_seconds()
        said = {name: row[name] for name in ("state", "kind", "dry_run", "number", "code", "message", *_FIGURES)}
        missing = tuple(row["missing"] or ())
        return cls(**said, reasons=row["reasons"] or {}, missing_keys=missing, seconds=round(seconds, 4))

    @classmethod
    def of_trial(cls, row: RunRow, aside: tuple[tuple[str, str], ...], seconds: float) -> Result:
        """A dry run."""
        return cls(
            row.state,
            row.kind,
            True,
            **row.figures,
            number=row.number,
            reasons=dict(row.reasons or {}),
            members_aside=aside,
            missing_keys=row.missing,
            code=row.code,
            message=row.message,
            seconds=round(seconds, 4),
        )
