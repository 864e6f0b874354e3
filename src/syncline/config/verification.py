"""What verification is told: the digest, the rules, the rolling sweep, and how many reports are kept."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from syncline.capture.schedule import YEAR_S
from syncline.patterns import qualified

__all__ = ["RollingConfig", "RuleConfig", "VerifyConfig"]


class RuleConfig(BaseModel):
    """Something that has to be true of the data of a source or of a target: an assertion in its own language."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    on: str = Field("source", description="Where: source (source.NAME of several), or the name of a target.")
    table: str | None = Field(None, description="Table that it is about, for `verify TABLE` and for the score.")
    query: str = Field(
        min_length=1, description="A query for the rows that violate it, or for one boolean, which is to be true."
    )

    @field_validator("table")
    @classmethod
    def _qualified(cls, table: str | None) -> str | None:
        return None if table is None else qualified(table)


class RollingConfig(BaseModel):
    """How `syncline run` verifies by itself, table by table, and what that may cost."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    share: float = Field(
        0.05, gt=0, le=1, description="Share of the time that tables are compared in; the rest of it is rest."
    )
    every_s: float = Field(
        3600.0, ge=1, le=YEAR_S, description="A table is compared again no sooner than so many seconds after it was."
    )
    max_lag_s: float = Field(10.0, gt=0, description="A target that is behind by more is left alone.")
    max_snapshot_s: float = Field(
        900.0, ge=1, description="A comparison of one table is given up after so long, with the snapshot it holds."
    )
    statement_timeout_s: float = Field(
        300.0, ge=1, description="How long one statement of a comparison may take at a source that is PostgreSQL."
    )
    repair: bool = Field(False, description="Repair what differs, within the limits of `repair`.")


class VerifyConfig(BaseModel):
    """What `syncline verify` looks at beside the rows, and what it keeps."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    data_hash: Literal["xxh3", "sha256", "sha512", "blake2b", "md5"] = Field(
        "xxh3", description="Algorithm of the digests of `--checks data_hash`: xxh3, sha256, sha512, blake2b or md5."
    )
    check_timeout_s: float = Field(
        60.0, gt=0, le=86_400, description="How long one rule, or one foreign key, may keep a database busy."
    )
    rolling: RollingConfig | None = Field(
        None, description="`syncline run` compares table after table, again and again; null: it does not."
    )
    keep: int = Field(100, ge=0, le=1_000_000, description="How many reports are kept in the control schema.")
    rules: dict[str, RuleConfig] = Field(
        default_factory=dict, description="Rules by name, each with `query` and, where it is not the source, `on`."
    )
