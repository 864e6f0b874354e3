"""One connection that reads: raw answers, many commands in one go, and the driver's errors as ours."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol, cast
from urllib.parse import urlsplit

import redis
from pydantic import SecretStr
from redis.backoff import NoBackoff
from redis.exceptions import AuthenticationError, NoPermissionError, RedisError, ResponseError
from redis.retry import Retry

from syncline.errors import Misconfigured, SynclineError, Unavailable

__all__ = ["Connection", "Server", "describe", "pool_of"]

_RIGHTS = ("NOAUTH", "WRONGPASS", "NOPERM")
_PASSING = ("LOADING", "BUSY", "MASTERDOWN", "TRYAGAIN")


class Server(Protocol):
    """What is known of a server: where it is, and how long its answers may take."""

    @property
    def url(self) -> SecretStr: ...
    @property
    def connect_timeout_s(self) -> float: ...
    @property
    def timeout_s(self) -> float: ...


def describe(url: SecretStr) -> str:
    """The server without user, password and parameters, for messages (Guarantee 11)."""
    parts = urlsplit(url.get_secret_value())
    if parts.scheme == "unix":
        return parts.path
    return f"{parts.hostname or 'localhost'}:{parts.port or 6379}{parts.path}"


def pool_of(config: Server) -> redis.ConnectionPool:
    """Connections as this module needs them: bytes for bytes, and no second try behind our back."""
    pool = redis.ConnectionPool.from_url(
        config.url.get_secret_value(),
        socket_connect_timeout=config.connect_timeout_s,
        socket_timeout=config.timeout_s,
        retry=Retry(NoBackoff(), 0),
        client_name="syncline-read",
        socket_read_size=1 << 18,
    )
    pool.connection_kwargs |= {"protocol": 2, "decode_responses": False}  # whatever the url asks for
    return pool


def _accepted(answers: Sequence[Any], other_kind: Any) -> list[Any]:
    """The answers without an error among them; the first one is raised."""
    found = []
    for answer in answers:
        if isinstance(answer, ResponseError):
            if other_kind is None or _word(answer) != "WRONGTYPE":
                raise answer
            answer = other_kind
        found.append(answer)
    return found


class Connection:
    """Answers as the server gives them: the driver's own conversions cost more than the reading."""

    def __init__(self, config: Server) -> None:
        """Connect. Raises ``Unavailable``, ``Misconfigured``."""
        self._config = config
        with self._translated():
            self._connection = cast(Any, pool_of(config).make_connection())  # its methods have no types
            self._connection.connect()

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def call(self, *command: Any) -> Any:
        """Send one command and return its answer."""
        self.send(*command)
        return self.receive()

    def send(self, *command: Any) -> None:
        """Send a command whose answer is asked for later: the server works meanwhile. In between nothing else is."""
        with self._translated():
            self._connection.send_command(*command)

    def receive(self) -> Any:
        """The next answer."""
        with self._translated():
            return self._connection.read_response()

    def answer(self, *command: Any) -> Any:
        """The answer to a command that may be refused: then the refusal, but one for want of rights, or that passes."""
        with self._translated():
            self._connection.send_command(*command)
            found = self._answer()
            refused = isinstance(found, ResponseError)
            if refused and (isinstance(found, NoPermissionError) or _word(found) in (*_RIGHTS, *_PASSING)):
                raise found
            return found

    def calls(self, commands: Sequence[Sequence[Any]]) -> list[Any]:
        """Send commands in one go and return their answers; the first error among them is raised once all are read."""
        with self._translated():
            self._connection.send_packed_command(self._connection.pack_commands(commands))
            return self._answers(len(commands))

    def at_once(self, commands: Sequence[Sequence[Any]], other_kind: Any = None) -> list[Any]:
        """As :meth:`calls`, all of one moment; ``other_kind`` as for :meth:`receive_each`."""
        found = self.calls([("MULTI",), *commands, ("EXEC",)])[-1]
        with self._translated():
            return _accepted(found, other_kind)

    def call_each(self, name: str, keys: Sequence[bytes], *arguments: str, other_kind: Any = None) -> list[Any]:
        """The same command for each of many keys, as :meth:`calls`; ``other_kind`` as for :meth:`receive_each`."""
        self.send_each(name, keys, *arguments)
        return self.receive_each(len(keys), other_kind)

    def send_each(self, name: str, keys: Sequence[bytes], *arguments: str) -> None:
        """As :meth:`send`, for each of many keys: packed here, which takes a tenth of the time."""
        if not keys:
            return
        words = [word.encode() for word in arguments]
        before = b"*%d\r\n$%d\r\n%s\r\n" % (len(words) + 2, len(name), name.encode())
        behind = b"".join(b"$%d\r\n%s\r\n" % (len(word), word) for word in words)
        with self._translated():
            packed = [b"%s$%d\r\n%s\r\n%s" % (before, len(key), key, behind) for key in keys]
            self._connection.send_packed_command([b"".join(packed)])

    def receive_each(self, count: int, other_kind: Any = None) -> list[Any]:
        """The next answers; the first error among them is raised once all are read. ``other_kind``, if there is one, is
        the answer of a key that holds another kind of value."""
        with self._translated():
            return self._answers(count, other_kind)

    def _answers(self, count: int, other_kind: Any = None) -> list[Any]:
        return _accepted([self._answer() for _ in range(count)], other_kind)

    def _answer(self) -> Any:
        try:
            return self._connection.read_response()
        except ResponseError as error:
            return error

    def close(self) -> None:
        try:
            self._connection.disconnect()
        except RedisError:
            return  # it was gone already

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except (RedisError, OSError) as error:
            raise translate(error, self._config) from error


def translate(error: Exception, config: Server) -> SynclineError:
    """The driver's error as one of ours, without the server's words: they can quote keys and values (Guarantee 11)."""
    server, word = describe(config.url), _word(error)
    if isinstance(error, (AuthenticationError, NoPermissionError)) or word in _RIGHTS:
        page = getattr(config, "type", "redis")
        return Misconfigured(
            f"Redis at {server} refuses this user or what it may read.",
            remedy=f"Correct user and password in url, and give it the commands of docs/captures/{page}.md.",
            code="SL-REDIS-RIGHTS",
        )
    away = (redis.exceptions.ConnectionError, redis.exceptions.TimeoutError, OSError)
    if isinstance(error, away) or word in _PASSING:
        return Unavailable(
            f"Redis at {server} can't be reached ({type(error).__name__}).",
            remedy="Start it, or correct url.",
        )
    if word == "WRONGTYPE":
        return Misconfigured(
            f"A key at Redis {server} is not of the kind that `columns` says.",
            remedy="Name sorted sets as sorted_set, hashes as hash.",
            code="SL-REDIS-KIND",
        )
    return Misconfigured(f"Redis at {server} refused a command ({type(error).__name__}).", code="SL-REDIS-REFUSED")


def _word(error: Exception) -> str:
    """The server's code of an error."""
    return str(error).partition(" ")[0]
