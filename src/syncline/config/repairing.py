"""What repairs may do by themselves, and when copies are compared and repaired without being asked."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

__all__ = ["ReconcileConfig", "RepairConfig"]


class RepairConfig(BaseModel):
    """How far `verify --repair` and `reconcile` go before they ask."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_share: float = Field(
        0.1, ge=0, le=1, description="Share of a table's rows that are repaired without asking; 50 rows always are."
    )
    batch_size: int = Field(5_000, ge=1, le=100_000, description="Keys that are handed to the engine at a time.")
    passes: int = Field(5, ge=2, le=100, description="How often tables are compared until a comparison is clean.")


class ReconcileConfig(BaseModel):
    """When a running engine compares its copies and repairs what differs, by itself."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    every_s: float | None = Field(
        None, ge=1, description="Seconds from the beginning of one reconciliation to that of the next; null: never."
    )
    cron: str | None = Field(
        None, description="A cron expression of five fields, in UTC, instead of `every_s`: when they begin."
    )
    keep_runs: int = Field(1_000, ge=1, description="So many runs are kept in reconciliation_runs.")
