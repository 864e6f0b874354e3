"""The settings of a periodic synchronisation: the keys, the target, and when and how far it may go by itself."""

from __future__ import annotations

from pydantic import Field

from syncline.capture.redis.settings import MembersConfig

__all__ = ["PeriodicConfig"]


class PeriodicConfig(MembersConfig):
    """Rows that are spread over keys of a Redis or Valkey server, brought into a table of a target again and again."""

    target: str = Field(description="Name of the target that has the table, of type postgres.")
    every_s: float = Field(3600.0, gt=0, description="Seconds from the beginning of one run to that of the next.")
    full_every: int = Field(24, ge=1, description="Of so many runs one is a full diff, where `changed` is given.")
    delete_share: float = Field(
        0.2, ge=0, le=1, description="A run that would delete more than this share of the table stops and asks."
    )
    backup_share: float = Field(
        0.2, ge=0, le=1, description="A run that changes more than this share of the table copies it first; 1 is never."
    )
    keep_backups: int = Field(3, ge=1, description="So many copies of the table are kept.")
    hints: bool = Field(
        True, description="Run sooner when the server's keyspace notifications, where enabled, tell of a change."
    )
    sooner_s: float = Field(60.0, ge=0, description="Least time between two runs that such a hint makes sooner.")
    lease_s: float = Field(60.0, ge=5, description="A run that is not heard of for so long loses its lock.")
