"""Settings of an outbox: where it is, and which kind of entity is which table."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from pydantic_core import PydanticCustomError

__all__ = ["EntityConfig", "OutboxConfig"]


def _table(text: str) -> str:
    namespace, dot, name = text.partition(".")
    if not (namespace and dot and name) or set(text) & {"*", "?"}:
        raise PydanticCustomError("no_table", "must be the name of one table, as schema.table")
    return text


class EntityConfig(BaseModel):
    """One kind of entity. Its table is at the source and among the monitored ones; its rows are read from there, but
    what changes is told by events alone."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    table: Annotated[str, AfterValidator(_table)] = Field(description="The table that holds it, as schema.table.")
    ignore: tuple[str, ...] = Field((), description="Fields of payloads that no column is for, and none has to be.")


class OutboxConfig(BaseModel):
    """The table that applications publish into, and what the events in it are about."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_by_name=True, validate_by_alias=True)

    schema_name: str = Field(
        "syncline_outbox",
        alias="schema",
        pattern=r"^[a-z_][a-z0-9_]{0,62}$",
        description="Schema of the outbox at the source, made by `syncline outbox install`.",
    )
    entities: dict[str, EntityConfig | None] = Field(
        min_length=1,
        description="By entity type, the table that it is; null passes its events over.",
    )
    status_schema: str | None = Field(
        None,
        pattern=r"^[a-z_][a-z0-9_]{0,62}$",
        description="Schema that gets a view sync_event_log with the status of events, too; null is none.",
    )
    notify: bool = Field(
        False, description="Publishing wakes an engine that polls by NOTIFY, which makes commits wait for one another."
    )
    retention_hours: float = Field(168.0, ge=1, description="How long events are kept that every target has.")
    partition_hours: int = Field(
        24, ge=1, le=24, description="Hours of events in one partition, which goes as a whole."
    )

    @property
    def table(self) -> str:
        """The qualified name of the table of events."""
        return f"{self.schema_name}.sync_event_log"

    @property
    def tables(self) -> frozenset[str]:
        """The tables whose changes come as events."""
        return frozenset(entity.table for entity in self.entities.values() if entity is not None)
