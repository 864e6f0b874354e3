"""Keyspace notifications, where the server has them enabled: only a hint that a run may be due sooner.

They are lost whenever nobody listens, so nothing rests on them (the manual, "Redis keyspace notifications").
"""

from __future__ import annotations

import re
import threading
from contextlib import suppress
from typing import Any

import redis
from redis.exceptions import RedisError

from syncline.capture.redis.connection import pool_of
from syncline.capture.redis.reading import literal
from syncline.capture.redis.settings import MEMBER, MembersConfig, groups_of

__all__ = ["Hints"]

_DATABASE = re.compile(r"/(\d+)$")


class Hints:
    """Listens to the keys of a configuration. A server that is away, or tells nothing, is no error."""

    def __init__(self, config: MembersConfig) -> None:
        self._config = config
        self._listener: Any = None

    def heard(self, wait_s: float, stop: threading.Event) -> bool:
        """Wait so long at most; True if some key changed meanwhile."""
        try:
            listener = self._listening()
            message = listener.get_message(ignore_subscribe_messages=True, timeout=wait_s)
        except (RedisError, OSError):
            self.close()
            stop.wait(wait_s)
            return False
        return message is not None

    def _listening(self) -> Any:
        if self._listener is None:
            pool = pool_of(self._config)
            found = _DATABASE.search(self._config.url.get_secret_value())
            keys = {literal(g.key.replace(MEMBER, "\0")).replace("\0", "*") for g in groups_of(self._config)}
            client: Any = redis.Redis(connection_pool=pool)  # its methods have no types
            self._listener = client.pubsub()
            self._listener.psubscribe(*(f"__keyspace@{found[1] if found else 0}__:{key}" for key in keys))
        return self._listener

    def close(self) -> None:
        listener, self._listener = self._listener, None
        if listener is not None:
            with suppress(RedisError, OSError):
                listener.close()
            listener.connection_pool.disconnect()
