"""Publishing an event into the stream, as an application does it."""

from __future__ import annotations

import threading

from syncline.capture.redis.connection import Connection
from syncline.capture.stream.settings import ENTITY, StreamSettings
from syncline.errors import Misconfigured, Unavailable
from syncline.events import SyncEvent

__all__ = ["StreamPublisher"]


class StreamPublisher:
    """Publishes over one connection, which is made when it is first needed, and anew once it was lost. Any thread."""

    def __init__(self, settings: StreamSettings) -> None:
        self._settings = settings
        self._lock = threading.Lock()
        self._connection: Connection | None = None

    def publish(self, event: SyncEvent) -> str:
        """Add the event to the stream; the id of its entry.

        Raises:
            ValueError: it is about something else than a chunk, which no reader of the stream could tell.
            Unavailable: the server was away. Whether it has the event is not known then: publish the same event once
                more, which is told once. Misconfigured: it refused.
        """
        if event.entity_type != ENTITY:
            raise ValueError(f"a stream takes events about entities of type {ENTITY}")
        fields = [part for pair in event.to_chunk_dict().items() for part in pair]
        with self._lock:
            if self._connection is None:
                self._connection = Connection(self._settings)
            try:
                entry: bytes = self._connection.call("XADD", self._settings.stream, "*", *fields)
            except (Unavailable, Misconfigured):
                self._close()
                raise
        return entry.decode()

    def close(self) -> None:
        """Give the connection back."""
        with self._lock:
            self._close()

    def _close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None
