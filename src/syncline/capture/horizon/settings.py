"""Settings of sources that are polled."""

from __future__ import annotations

from pydantic import Field

from syncline.capture.settings import PostgresSettings

__all__ = ["PolledSettings"]


class PolledSettings(PostgresSettings):
    """What a source is told whose changes are rows of a table of events."""

    poll_s: float = Field(0.1, gt=0, le=60, description="How often new events are looked for.")
