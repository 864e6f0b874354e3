"""The door of an embedded Qdrant: other processes read its points while the engine, which has the folder, runs.

The engine listens on a Unix socket in the folder (mode 0600, same user only) and answers what :class:`Readable` asks.
Wire: a frame is its length (4 bytes, big endian) and that many bytes of MessagePack; a request is the name of a method
and its arguments, an answer what the method returns, or which error it raised.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import socket
import struct
import tempfile
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from syncline.errors import Misconfigured, SynclineError, Unavailable
from syncline.stores.qdrant.points import Dense, Hit, PointId, Readable, Refused, Sparse, Spec, Stored, Which

__all__ = ["Door", "DoorPoints", "socket_path"]

_LENGTH = struct.Struct(">I")
_MOST = 1 << 30
_METHODS = ("spec", "retrieve", "page", "search")


def socket_path(folder: Path) -> Path:
    """Where the door of a folder is. A Unix socket's path is short, so a long one goes to the temporary folder."""
    beside = folder / "door.sock"
    if len(os.fsencode(beside)) <= 100:
        return beside
    digest = hashlib.sha256(os.fsencode(folder)).hexdigest()[:16]
    return Path(tempfile.gettempdir()) / f"syncline-{os.getuid()}-{digest}.sock"


def _send(connection: socket.socket, message: Any) -> None:
    body = msgspec.msgpack.encode(message)
    connection.sendall(_LENGTH.pack(len(body)) + body)


def _exactly(connection: socket.socket, size: int) -> bytes:
    parts = bytearray()
    while len(parts) < size:
        part = connection.recv(min(size - len(parts), 1 << 20))
        if not part:
            raise EOFError
        parts += part
    return bytes(parts)


def _receive(connection: socket.socket) -> Any:
    (size,) = _LENGTH.unpack(_exactly(connection, _LENGTH.size))
    if size > _MOST:
        raise EOFError
    return msgspec.msgpack.decode(_exactly(connection, size))


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
                    _send(client, self._answer(_receive(client)))
        except (OSError, EOFError, msgspec.DecodeError):
            return  # the client went away, or is none of ours
        finally:
            with self._guard:
                self._clients.pop(client, None)

    def _answer(self, request: Any) -> dict[str, Any]:
        try:
            method, arguments, named = request
            if method not in _METHODS:
                return {"refused": "no such method"}
            return {"found": getattr(self._points, method)(*map(_given, arguments), **named)}
        except (Refused, TypeError, ValueError) as error:
            return {"refused": str(error) if isinstance(error, Refused) else "not a request"}
        except SynclineError as error:
            return {"error": [type(error).__name__, error.message, error.remedy, error.code]}


def _given(argument: Any) -> Any:
    """An argument as it was before MessagePack made lists of tuples."""
    if isinstance(argument, dict) and argument.keys() == {"which"}:
        return Which(*argument["which"])
    if isinstance(argument, dict) and argument.keys() == {"sparse"}:
        return Sparse(*argument["sparse"])
    return argument


def _check_peer(client: socket.socket) -> None:
    """The socket's mode keeps others out; where the folder is shared (/tmp), the kernel says who it is."""
    if hasattr(socket, "SO_PEERCRED"):
        _, uid, _ = struct.unpack("3i", client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        if uid not in (0, os.getuid()):
            raise PermissionError


class DoorPoints:
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
            _send(self._connection, [method, arguments, named])
            answer = _receive(self._connection)
        except (OSError, EOFError) as error:
            raise Unavailable(
                "The engine closed the door of its Qdrant folder.",
                remedy="Open the reader again; without an engine it reads the folder.",
            ) from error
        if "refused" in answer:
            raise Refused(answer["refused"])
        if "error" in answer:
            kind, message, remedy, code = answer["error"]
            raise (Unavailable if kind == "Unavailable" else Misconfigured)(message, remedy=remedy, code=code)
        return answer["found"]

    def spec(self, collection: str) -> Spec | None:
        found = self._ask("spec", collection)
        if found is None:
            return None
        dense = {name: Dense(**one) for name, one in found["dense"].items()}
        return Spec(dense, frozenset(found["sparse"]), found["indexes"])

    def retrieve(
        self, collection: str, ids: Sequence[PointId], *, vectors: bool, only: Sequence[str] | None = None
    ) -> list[Stored]:
        return [_stored(one) for one in self._ask("retrieve", collection, list(ids), vectors=vectors, only=only)]

    def page(
        self, collection: str, which: Which, after: PointId | None, *, vectors: bool, payload: bool = True
    ) -> tuple[list[Stored], PointId | None]:
        found, following = self._ask("page", collection, {"which": which}, after, vectors=vectors, payload=payload)
        return [_stored(one) for one in found], following

    def search(
        self, collection: str, using: str, vector: list[float] | Sparse, limit: int, where: Mapping[str, Any]
    ) -> list[Hit]:
        given = {"sparse": vector} if isinstance(vector, Sparse) else vector
        return [Hit(*one) for one in self._ask("search", collection, using, given, limit, dict(where))]

    def close(self) -> None:
        self._connection.close()


def _stored(found: list[Any]) -> Stored:
    """A sparse vector is a list of two lists, a dense one of numbers."""
    key, payload, vectors = found
    return Stored(key, payload, {n: Sparse(*v) if v and isinstance(v[0], list) else v for n, v in vectors.items()})
