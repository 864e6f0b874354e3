"""The door of an embedded Qdrant: other processes read its points while the engine, which has the folder, runs.

Whoever has the folder open listens on a Unix socket in it (mode 0600, same user only) and answers what
:class:`Readable` asks; see :mod:`syncline.stores.qdrant.wire`.
"""

from __future__ import annotations

import contextlib
import socket
from pathlib import Path
from typing import Any

import msgspec

from syncline.errors import Unavailable
from syncline.stores.doors import LocalDoor, short_socket
from syncline.stores.qdrant.points import Readable, Refused
from syncline.stores.qdrant.wire import READS, Asking, answer, answered, receive, request, send

__all__ = ["Door", "DoorPoints", "socket_path"]


def socket_path(folder: Path) -> Path:
    """Where the door of a folder is."""
    return short_socket(folder, folder / "door.sock")


class Door(LocalDoor):
    """The server. A client is ended behind what it is asking."""

    def __init__(self, folder: Path, points: Readable) -> None:
        self._points = points
        super().__init__(socket_path(folder), "qdrant-door")

    def serve(self, client: socket.socket) -> None:
        with contextlib.suppress(Refused, msgspec.DecodeError):
            while True:
                send(client, answer(self._points, READS, receive(client)))


class DoorPoints(Asking):
    """The client: :class:`~syncline.stores.qdrant.points.Readable` through an engine's door."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection

    @classmethod
    def knock(cls, folder: Path) -> DoorPoints | None:
        """The door of the engine that has the folder open, None if there is none (or it was killed)."""
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            connection.connect(str(socket_path(folder)))
        except OSError:
            connection.close()
            return None
        return cls(connection)

    def _ask(self, method: str, *arguments: Any, **named: Any) -> Any:
        try:
            send(self._connection, request(method, *arguments, **named))
            said = receive(self._connection)
        except (OSError, EOFError) as error:
            raise Unavailable(
                "The engine closed the door of its Qdrant folder.",
                remedy="Open the reader again; without an engine it reads the folder.",
            ) from error
        return answered(said)

    def close(self) -> None:
        self._connection.close()
