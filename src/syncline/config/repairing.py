"""What repairs may do by themselves, and what is kept of reconciliations."""

from __future__ import annotations

from datetime import datetime

from pydantic import BaseModel, ConfigDict, Field, field_validator

from syncline.capture.schedule import YEAR_S, checked_cron, following
from syncline.capture.settings import Pattern
from syncline.patterns import Named, parse_pattern

__all__ = ["ReconcileConfig", "RepairConfig"]


class RepairConfig(BaseModel):
    """How far `verify --repair` and `reconcile` go before they ask."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_share: float = Field(
        0.1, ge=0, le=1, description="Share of a table's rows that are repaired without asking; 50 rows always are."
    )
    batch_size: int = Field(5_000, ge=1, le=100_000, description="Keys that are handed to the engine at a time.")
    passes: int = Field(5, ge=2, le=100, description="How often tables are compared until a comparison is clean.")
    review: tuple[Pattern, ...] = Field(
        (), description="Tables, by name or pattern, whose differences are told and left for somebody to resolve."
    )

    def leaves(self, table: Named) -> bool:
        """Whether differences of this table are not overwritten by the source's rows."""
        return any(parse_pattern(pattern).matches(table) for pattern in self.review)


class ReconcileConfig(BaseModel):
    """When `syncline run` reconciles, and what is kept of it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    every_s: float | None = Field(
        None,
        ge=1,
        le=YEAR_S,
        description="Seconds from the beginning of one reconciliation of everything to that of the next.",
    )
    cron: str | None = Field(None, description="A cron expression of five fields in UTC, instead of `every_s`.")
    keep_runs: int = Field(1_000, ge=1, description="So many runs are kept in reconciliation_runs.")

    @field_validator("cron")
    @classmethod
    def _is_a_cron_expression(cls, cron: str | None) -> str | None:
        return checked_cron(cron)

    @property
    def is_scheduled(self) -> bool:
        """Whether an engine reconciles by itself."""
        return self.every_s is not None or self.cron is not None

    def due_after(self, began: datetime) -> datetime:
        """When the reconciliation is due that follows one that began then, where they are scheduled."""
        return following(began, self.every_s or 0.0, self.cron)
