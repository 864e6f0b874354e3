"""The settings of a source whose outbox is polled."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from syncline.capture.horizon.settings import PolledSettings
from syncline.capture.outbox.settings import OutboxConfig
from syncline.capture.settings import Pattern

__all__ = ["PolledOutboxSettings"]


class PolledOutboxSettings(PolledSettings):
    """One PostgreSQL database whose changes are told by events of an outbox, without a replication slot."""

    type: Literal["outbox"] = Field("outbox", description="How changes are captured: by polling the outbox.")
    monitored_tables: tuple[Pattern, ...] = Field(
        (), description="Of the tables that events tell of, those to keep in step; empty is all of them."
    )
    outbox: OutboxConfig = Field(description="The outbox, and what the events in it are about.")

    @property
    def patterns(self) -> tuple[str, ...]:
        return self.monitored_tables or tuple(sorted(self.outbox.tables))

    @property
    def events_from(self) -> OutboxConfig | None:
        return self.outbox

    @property
    def polls_events(self) -> bool:
        return True

    @property
    def summary(self) -> str:
        return f"{super().summary}, by events from {self.outbox.table}"

    @property
    def claim(self) -> tuple[str, ...]:
        return (self.plain, f"outbox {self.outbox.table}")
