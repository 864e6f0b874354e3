"""``PeriodicSyncService``: members of Redis leaderboards into a PostgreSQL table, every hour or when asked."""

from __future__ import annotations

import asyncio
from typing import Any

from syncline.capture.runs import Wish
from syncline.config import Config, load_config
from syncline.periodic.service import PeriodicSync

__all__ = ["PeriodicSyncService"]


class PeriodicSyncService:
    """Has the runs of source ``name`` of a configuration done (of ``syncline.yaml`` without one).

    The methods that work are coroutines, and the work is done in a thread.
    """

    def __init__(self, config: Config | None = None, name: str | None = None) -> None:
        self._sync = PeriodicSync(config or load_config(), name)

    @property
    def sync_interval_hours(self) -> float | None:
        """Hours between the beginnings of two runs: ``every_s`` of the source; None where it has a ``cron``."""
        settings = self._sync.settings
        return None if settings.cron is not None else settings.every_s / 3600

    async def start_periodic_sync(self) -> None:
        """Run an engine for the source, which does its runs when they are due; ends after :meth:`stop_periodic_sync`,
        or when the task is cancelled."""
        try:
            await asyncio.to_thread(self._sync.serve)
        except asyncio.CancelledError:
            self._sync.stop()
            raise

    def stop_periodic_sync(self) -> None:
        """Let :meth:`start_periodic_sync` end soon."""
        self._sync.stop()

    async def perform_sync(
        self,
        *,
        dry_run: bool = False,
        periods: list[str] | None = None,
        full: bool = False,
        allow_deletes: bool = False,
    ) -> dict[str, Any]:
        """One run now, done once the targets have what it found: its figures. ``periods`` are columns, or keys of
        sorted sets."""
        columns = tuple(periods) if periods is not None else None
        wish = Wish("full" if full else "auto", columns, dry_run=dry_run, allow_deletes=allow_deletes)
        return (await asyncio.to_thread(self._sync.run, wish)).to_dict()

    async def get_sync_status(self) -> dict[str, Any]:
        """Whether a service or another engine does the runs, and the latest of them."""
        return await asyncio.to_thread(self._sync.status)

    def close(self) -> None:
        """Give the connections back."""
        self._sync.close()
