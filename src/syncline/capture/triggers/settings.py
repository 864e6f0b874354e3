"""The settings of a source that is captured by triggers."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from syncline.capture.horizon.settings import PolledSettings

__all__ = ["TriggerSettings"]


class TriggerSettings(PolledSettings):
    """One PostgreSQL database whose changes are captured by triggers, without a replication slot."""

    type: Literal["triggers"] = Field("triggers", description="How changes are captured: by triggers.")
    events_schema: str = Field(
        "syncline_triggers",
        pattern=r"^[a-z_][a-z0-9_]{0,62}$",
        description="Schema of sync_events and of the triggers' functions; never captured itself.",
    )
    reader: str = Field(
        "syncline",
        pattern=r"^[a-z0-9_]{1,63}$",
        description="Name under which this source reads sync_events; each engine needs one of its own.",
    )
    install: bool = Field(
        True, description="Install what is missing at a start; else somebody runs `syncline triggers install`."
    )
    notify: bool = Field(
        False, description="Triggers wake the engine by NOTIFY, which makes commits at the source wait for one another."
    )
    keep_events_s: int = Field(
        3600, ge=600, description="How long events are kept after every reader has them; then they are purged."
    )

    @property
    def summary(self) -> str:
        return f"{super().summary}, by triggers into {self.events_schema}"

    @property
    def claim(self) -> tuple[str, ...]:
        return (self.plain, self.events_schema, f"reader {self.reader}")
