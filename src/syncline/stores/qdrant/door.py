"""The door of an embedded Qdrant: other processes read its points while the engine, which has the folder, runs.

Whoever has the folder open listens on a Unix socket in it (mode 0600, same user only) and answers what
:class:`Readable` asks; see :mod:`syncline.stores.qdrant.wire`.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import socket
import struct
import tempfile
import threading
from pathlib import Path
from typing import Any

import msgspec

from syncline.errors import Misconfigured, Unavailable
from syncline.stores.qdrant.points import Readable, Refused
from syncline.stores.qdrant.wire import READS, Asking, answer, answered, receive, request, send

__all__ = ["Door", "DoorPoints", "socket_path"]


def socket_path(folder: Path) -> Path:
    """Where the door of a folder is. A Unix socket's path is short, so a long one goes to the temporary folder."""
    beside = folder / "door.sock"
    if len(os.fsencode(beside)) <= 100:
        return beside
    digest = hashlib.sha256(os.fsencode(folder)).hexdigest()[:16]
    return Path(tempfile.gettempdir()) / f"syncline-{os.getuid()}-{digest}.sock"


class Door:
    """The server: listens from construction until ``close``; a thread for each client."""

    def __init__(self, folder: Path, points: Readable) -> None:
        self.path = socket_path(folder)
        self._points = points
        self._clients: dict[socket.socket, threading.Thread] = {}
        self._guard = threading.Lock()
        self._closed = False
        # Whoever holds the folder's lock owns the door: a socket that is there was left behind by a killed process.
        self.path.unlink(missing_ok=True)
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        former = os.umask(0o177)
        try:
            self._listener.bind(str(self.path))
        except OSError as error:
            self._listener.close()
            raise Misconfigured(
                f"The door {self.path} cannot be opened: {error.strerror}.",
                remedy="Let the engine write to that folder, or set the target's door to false.",
            ) from error
        finally:
            os.umask(former)
        self._listener.listen(16)
        self._acceptor = threading.Thread(target=self._accept, name="qdrant-door", daemon=True)
        self._acceptor.start()

    def close(self) -> None:
        """Refuse new clients, end the others behind what they are asking, and remove the socket."""
        with self._guard:
            self._closed = True
            clients = dict(self._clients)
        self.path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # wakes accept()
        self._listener.close()
        for client in clients:
            with contextlib.suppress(OSError):
                client.shutdown(socket.SHUT_RDWR)
        for thread in (self._acceptor, *clients.values()):
            thread.join(10)

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return  # closed
            thread = threading.Thread(target=self._serve, args=(client,), name="qdrant-door-client", daemon=True)
            with self._guard:
                if self._closed:
                    client.close()
                    return
                self._clients[client] = thread
            thread.start()

    def _serve(self, client: socket.socket) -> None:
        try:
            with client:
                _check_peer(client)
                while True:
                    send(client, answer(self._points, READS, receive(client)))
        except (OSError, EOFError, Refused, msgspec.DecodeError):
            return  # the client went away, or is none of ours
        finally:
            with self._guard:
                self._clients.pop(client, None)


def _check_peer(client: socket.socket) -> None:
    """The socket's mode keeps others out; where the folder is shared (/tmp), the kernel says who it is."""
    if hasattr(socket, "SO_PEERCRED"):
        _, uid, _ = struct.unpack("3i", client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        if uid not in (0, os.getuid()):
            raise PermissionError


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
