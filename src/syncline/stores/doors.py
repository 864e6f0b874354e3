"""Doors: what other processes of the same user read a copy through that only its engine may open."""

from __future__ import annotations

import contextlib
import hashlib
import os
import socket
import struct
import tempfile
import threading
from abc import ABC, abstractmethod
from pathlib import Path

from syncline.errors import Misconfigured

__all__ = ["LocalDoor", "short_socket"]


def short_socket(path: Path, beside: Path) -> Path:
    """Where the door of ``path`` is: ``beside`` it. A Unix socket's path is short, so a long one goes to the temporary
    folder."""
    if len(os.fsencode(beside)) <= 100:
        return beside
    digest = hashlib.sha256(os.fsencode(path)).hexdigest()[:16]
    return Path(tempfile.gettempdir()) / f"syncline-{os.getuid()}-{digest}.sock"


class LocalDoor(ABC):
    """A server on a Unix socket (mode 0600, same user only): it listens from construction until ``close``, with a
    thread for each client. Whoever makes one owns what it leads to, and has its lock."""

    def __init__(self, path: Path, name: str) -> None:
        """``name`` is that of its threads.

        Raises:
            Misconfigured: the socket can't be made.
        """
        self.path = path
        self._name = name
        self._clients: dict[socket.socket, threading.Thread] = {}
        self._guard = threading.Lock()
        self._closed = False
        self.path.unlink(missing_ok=True)  # a socket that is there was left behind by a killed process
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
        self._acceptor = threading.Thread(target=self._accept, name=name, daemon=True)
        self._acceptor.start()

    @abstractmethod
    def serve(self, client: socket.socket) -> None:
        """Answer a client until it goes, which ends in an ``OSError`` or an ``EOFError``; or until it is none of
        ours."""

    def close(self) -> None:
        """Refuse new clients, end the others, and remove the socket."""
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
            thread = threading.Thread(target=self._serve, args=(client,), name=f"{self._name}-client", daemon=True)
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
                self.serve(client)
        except (OSError, EOFError):
            return
        finally:
            with self._guard:
                self._clients.pop(client, None)


def _check_peer(client: socket.socket) -> None:
    """The socket's mode keeps others out; where the folder is shared (/tmp), the kernel says who it is."""
    if hasattr(socket, "SO_PEERCRED"):
        _, uid, _ = struct.unpack("3i", client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        if uid not in (0, os.getuid()):
            raise PermissionError
