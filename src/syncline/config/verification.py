"""What verification is told: the digest, the rules, and how many reports are kept."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

__all__ = ["RuleConfig", "VerifyConfig"]


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
        return table if table is None or "." in table else f"public.{table}"


class VerifyConfig(BaseModel):
    """What `syncline verify` looks at beside the rows, and what it keeps."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    data_hash: Literal["xxh3", "sha256", "sha512", "blake2b", "md5"] = Field(
        "xxh3", description="Algorithm of the digests of `--checks data_hash`: xxh3, sha256, sha512, blake2b or md5."
    )
    check_timeout_s: float = Field(
        60.0, gt=0, le=86_400, description="How long one rule, or one foreign key, may keep a database busy."
    )
    keep: int = Field(100, ge=0, le=1_000_000, description="How many reports are kept in the control schema.")
    rules: dict[str, RuleConfig] = Field(
        default_factory=dict, description="Rules by name, each with `query` and, where it is not the source, `on`."
    )
