"""When something is due that comes again and again: after so many seconds, or by a cron expression."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, tzinfo

from cronsim import CronSim, CronSimError
from pydantic_core import PydanticCustomError

__all__ = ["YEAR_S", "checked_cron", "following"]

YEAR_S = 366 * 86_400
"""Whatever is due less often than that is not due at all."""


def checked_cron(cron: str | None) -> str | None:
    """A cron expression of five fields as it is, or None. Raises ``PydanticCustomError`` for what is none."""
    if cron is not None:
        try:
            next(CronSim(cron, datetime(2024, 1, 1, tzinfo=UTC)))
        except (CronSimError, StopIteration) as error:
            raise PydanticCustomError("cron", "must be a cron expression of five fields that comes") from error
    return cron


def following(began: datetime, every_s: float, cron: str | None, zone: tzinfo = UTC) -> datetime:
    """When that is due which follows one that began then; ``cron`` counts where there is one."""
    if cron is None:
        return began + timedelta(seconds=every_s)
    return next(CronSim(cron, began.astimezone(zone)))
