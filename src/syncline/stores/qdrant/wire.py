"""How points are asked for over a Unix socket: of the engine's door, and of the process that has the folder open.

A frame is its length (4 bytes, big endian) and that many bytes of MessagePack. A request is the name of a method and
its arguments; an answer is what the method returns, or which error it raised.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import msgspec

from syncline.errors import Gap, Misconfigured, SynclineError, Unavailable
from syncline.stores.qdrant.points import Dense, Hit, PointId, Readable, Refused, Sparse, Spec, Stored, Which, looking

__all__ = ["READS", "Asking", "answer", "answered", "failure", "frame", "receive", "request", "send"]

READS = ("spec", "retrieve", "page", "search")

_LENGTH = struct.Struct(">I")
_MOST = 1 << 30
_KINDS: dict[str, type[SynclineError]] = {"Unavailable": Unavailable, "Gap": Gap, "Misconfigured": Misconfigured}
# What MessagePack makes lists and dictionaries of. No path of a payload begins with a NUL, so none is taken for a mark.
_WHICH, _SPARSE, _SPEC, _POINTS = "\0which", "\0sparse", "\0spec", "\0points"

# ------------------------------------------------------------------------------------------------------------- frames


def frame(message: Any) -> bytes:
    """The bytes of a message.

    Raises:
        Refused: it holds a value that MessagePack does not, or is too large.
    """
    try:
        body = msgspec.msgpack.encode(message)
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise Refused(f"Qdrant does not take a value ({type(error).__name__})") from error
    if len(body) > _MOST:
        raise Refused("too much at once")
    return _LENGTH.pack(len(body)) + body


def send(connection: socket.socket, message: Any) -> None:
    """Send a message; raises as :func:`frame`, and OSError."""
    connection.sendall(frame(message))


def receive(connection: socket.socket) -> Any:
    """The next message. Raises EOFError where there is none, OSError, and msgspec's DecodeError."""
    (size,) = _LENGTH.unpack(_exactly(connection, _LENGTH.size))
    if size > _MOST:
        raise EOFError
    return msgspec.msgpack.decode(_exactly(connection, size))


def _exactly(connection: socket.socket, size: int) -> bytearray:
    found = bytearray(size)
    view, have = memoryview(found), 0
    while have < size:
        more = connection.recv_into(view[have:], min(size - have, 1 << 20))
        if not more:
            raise EOFError
        have += more
    return found


# ---------------------------------------------------------------------------------------------------------- answering


def answer(points: Readable, methods: Collection[str], asked: Any) -> dict[str, Any]:
    """What one of ``methods`` of ``points`` says to a request."""
    try:
        method, arguments, named = asked
        if method not in methods:
            return {"refused": "no such method"}
        return {"found": getattr(points, method)(*map(_given, arguments), **named)}
    except Refused as error:
        return {"refused": str(error)}
    except (TypeError, ValueError):
        return {"refused": "not a request"}
    except SynclineError as error:
        return failure(error)


def failure(error: SynclineError) -> dict[str, Any]:
    """The answer that an error is."""
    return {"error": [type(error).__name__, error.message, error.remedy, error.code]}


def _given(argument: Any) -> Any:
    """An argument as it was before MessagePack made lists of tuples."""
    if not isinstance(argument, dict) or len(argument) != 1:
        return argument
    ((mark, value),) = argument.items()
    match mark:
        case "\0points":
            return [_stored(one) for one in value]
        case "\0which":
            return Which(*value)
        case "\0sparse":
            return Sparse(*value)
        case "\0spec":
            return _spec(value)
    return argument


def _stored(found: list[Any]) -> Stored:
    """A sparse vector is a list of two lists, a dense one of numbers."""
    key, payload, vectors = found
    return Stored(key, payload, {n: Sparse(*v) if v and isinstance(v[0], list) else v for n, v in vectors.items()})


def _spec(found: dict[str, Any]) -> Spec:
    dense = {name: Dense(**one) for name, one in found["dense"].items()}
    return Spec(dense, frozenset(found["sparse"]), found["indexes"])


# ------------------------------------------------------------------------------------------------------------- asking


def request(method: str, *arguments: Any, **named: Any) -> tuple[Any, ...]:
    """A call as a message. Points come as lists of them."""
    return method, tuple(map(_marked, arguments)), named


def _marked(argument: Any) -> Any:
    match argument:
        case Which():
            return {_WHICH: argument}
        case Sparse():
            return {_SPARSE: argument}
        case Spec():
            return {_SPEC: argument}
        case [Stored(), *_]:
            return {_POINTS: argument}
    return argument


def answered(said: Any) -> Any:
    """What an answer holds.

    Raises:
        Refused, Unavailable, Misconfigured, Gap: as the method did.
    """
    if "refused" in said:
        raise Refused(said["refused"])
    if "error" in said:
        kind, message, remedy, code = said["error"]
        raise _KINDS.get(kind, SynclineError)(message, remedy=remedy, code=code)
    return said["found"]


_FOLDER = "The process that has the Qdrant folder open"


class Asking:
    """:class:`~syncline.stores.qdrant.points.Readable` by calls. A subclass says how one is made."""

    def _ask(self, method: str, *arguments: Any, **named: Any) -> Any:
        raise NotImplementedError

    def spec(self, collection: str) -> Spec | None:
        with looking(_FOLDER, collection):
            found = self._ask("spec", collection)
        return None if found is None else _spec(found)

    def retrieve(
        self, collection: str, ids: Sequence[PointId], *, vectors: bool, only: Sequence[str] | None = None
    ) -> list[Stored]:
        with looking(_FOLDER, collection):
            found = self._ask("retrieve", collection, list(ids), vectors=vectors, only=only)
        return [_stored(one) for one in found]

    def page(
        self, collection: str, which: Which, after: PointId | None, *, vectors: bool, payload: bool = True
    ) -> tuple[list[Stored], PointId | None]:
        with looking(_FOLDER, collection):
            found, following = self._ask("page", collection, which, after, vectors=vectors, payload=payload)
        return [_stored(one) for one in found], following

    def search(
        self, collection: str, using: str, vector: list[float] | Sparse, limit: int, where: Mapping[str, Any]
    ) -> list[Hit]:
        return [Hit(*one) for one in self._ask("search", collection, using, vector, limit, dict(where))]
