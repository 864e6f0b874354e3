"""A real Valkey of a test's own, to kill, restart and reconfigure, and stores on fresh databases of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import redis
from pydantic import SecretStr

from syncline.embedded import EmbeddedValkey
from syncline.stores.redis import RedisConfig, RedisStore

DATABASES = 4_096


class Server:
    """One server on one folder; ``settings`` (with _ for -) go over those of a server that keeps nothing."""

    def __init__(self, folder: Path, **settings: str) -> None:
        wanted = {"databases": str(DATABASES)} | {name.replace("_", "-"): value for name, value in settings.items()}
        self.folder = folder
        self.valkey = EmbeddedValkey.start(folder, settings=wanted)

    @property
    def port(self) -> int:
        return self.valkey.port

    def start(self) -> None:
        """Start it again, on the same port and data."""
        self.valkey.restart()

    def stop(self) -> None:
        self.valkey.stop()

    def kill(self) -> None:
        self.valkey.kill()

    def client(self, database: int = 0) -> redis.Redis:
        return redis.Redis(port=self.port, db=database, protocol=2)

    def config(self, database: int = 0, **settings: Any) -> RedisConfig:
        return RedisConfig(url=SecretStr(self.valkey.url(database)), **settings)

    def store(self, database: int = 0, **settings: Any) -> RedisStore:
        """A new store object, unopened."""
        return RedisStore(self.config(database, **settings), "redis")
