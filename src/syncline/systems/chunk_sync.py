"""``ChunkSyncService``: chunks that applications publish as events into a Redis stream, for the stores that each names.

``from syncline.systems.chunk_sync import ChunkSyncService, SyncEvent``
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from syncline.capture.stream.publishing import StreamPublisher
from syncline.capture.stream.settings import StreamSettings
from syncline.config import Config, load_config
from syncline.errors import Misconfigured
from syncline.events import EventType, SyncEvent
from syncline.pipeline import SyncService

__all__ = ["ChunkSyncService", "EventType", "SyncEvent"]


class ChunkSyncService:
    """Publishes into the stream of source ``name`` of a configuration (of ``syncline.yaml`` without one; the only one
    of ``type: stream`` without a name), and runs an engine for it.

    The methods that work are coroutines, and the work is done in a thread.
    """

    def __init__(self, config: Config | None = None, name: str | None = None) -> None:
        """Raises ``Misconfigured`` if there is no such source, or more than one to choose from."""
        config = config or load_config()
        streams = {n: s for n, s in config.sources.items() if isinstance(s, StreamSettings) and name in (None, n)}
        if len(streams) != 1:
            raise Misconfigured(
                f"The configuration has {len(streams)} sources of type stream{f' called {name}' if name else ''}.",
                remedy="Name one that it has.",
            )
        ((self._name, self._settings),) = streams.items()
        self._config = config.narrowed({self._name})
        self._publisher = StreamPublisher(self._settings)
        self._engine: SyncService | None = None

    @property
    def stream_key(self) -> str:
        """The key of the stream: ``stream`` of the source."""
        return self._settings.stream

    @property
    def consumer_group(self) -> str:
        """The group that shows how far the log is: ``group`` of the source."""
        return self._settings.group

    async def publish_sync_event(self, event: SyncEvent | Mapping[str, Any]) -> str:
        """Add an event, or what :meth:`SyncEvent.from_dict` takes for one, to the stream; the id of its entry.

        Raises:
            ValueError: it is no event. Unavailable: the server was away; publish the same event once more.
        """
        made = event if isinstance(event, SyncEvent) else SyncEvent.from_dict(event)
        return await asyncio.to_thread(self._publisher.publish, made)

    async def consume_sync_events(self) -> int:
        """Run an engine that brings the events to their targets; ends after :meth:`stop`, or when the task is
        cancelled. The exit code, as of ``syncline run``.

        Raises:
            Misconfigured, Unavailable: as :meth:`~syncline.pipeline.SyncService.start` does.
        """
        self._engine = engine = SyncService(self._config)
        try:
            await asyncio.to_thread(engine.start)
            return await asyncio.to_thread(engine.wait) or 0
        finally:
            engine.stop()

    def stop(self) -> None:
        """Let :meth:`consume_sync_events` end soon."""
        if self._engine is not None:
            self._engine.stop()

    def close(self) -> None:
        """Give the connection back."""
        self._publisher.close()
