"""What repairs may do by themselves, and what is kept of reconciliations."""

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
    """What is kept of reconciliations."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    keep_runs: int = Field(1_000, ge=1, description="So many runs are kept in reconciliation_runs.")
