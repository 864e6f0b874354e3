"""One connection to the server: commands, scripts, what the server is, and the translation of the driver's errors."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any, cast

import redis
from redis.backoff import NoBackoff
from redis.exceptions import AuthenticationError, RedisError, ResponseError
from redis.retry import Retry

from syncline.errors import Misconfigured, SynclineError, Unavailable
from syncline.stores.redis.config import RedisConfig, shown

__all__ = ["Connection", "Facts", "syncs", "translate", "unfit"]

# First words of errors that pass by themselves: the server starts, is busy with a script, hands over to a replica, or
# has no room on its disk, in its memory, or no replica at hand.
_PASSING = ("LOADING", "BUSY", "READONLY", "MASTERDOWN", "MISCONF", "NOREPLICAS", "TRYAGAIN", "OOM")
_RIGHTS = ("NOAUTH", "WRONGPASS", "NOPERM")
_WAIT_MS = 10_000


@dataclass(frozen=True, slots=True)
class Facts:
    """What INFO says of a server. ``version`` is that of its own kind, ``commands`` the version of Redis it equals."""

    kind: str
    version: str
    commands: tuple[int, ...]
    clustered: bool
    replica: bool
    aof: bool
    snapshots: bool
    memory_limit: int
    eviction: str

    @property
    def evicts_anything(self) -> bool:
        """Whether keys without a time to live may vanish, Syncline's own among them."""
        return self.memory_limit > 0 and self.eviction.startswith("allkeys")


def unfit(facts: Facts, config: RedisConfig) -> Iterator[Misconfigured]:
    """Why a server can't keep what it is given."""
    server = shown(config.url)
    if facts.clustered:
        yield Misconfigured(
            f"Redis at {server} is a cluster, where no script reaches all keys of a work.",
            remedy="Use a server without cluster mode (with replicas, if you like).",
            code="SL-REDIS-CLUSTER",
        )
    if facts.replica:
        yield Misconfigured(
            f"Redis at {server} is a replica, which takes no writes.",
            remedy="Point the target's url at the primary.",
            code="SL-REDIS-REPLICA",
        )
    if facts.evicts_anything:
        yield Misconfigured(
            f"Redis at {server} evicts any key when its memory is full (maxmemory-policy {facts.eviction}), the cursor"
            " among them.",
            remedy="Set maxmemory-policy to a volatile one, such as volatile-lru, and give the mapping a ttl_s; or to"
            " noeviction.",
            code="SL-REDIS-EVICTION",
        )
    if facts.commands < (6, 2):
        yield Misconfigured(
            f"{facts.kind} {facts.version} at {server} is older than Redis 6.2.",
            remedy="Use a newer server.",
            code="SL-REDIS-VERSION",
        )


def syncs(connection: Connection, facts: Facts) -> bool:
    """Whether a write can be waited for until it is in the append-only file: WAITAOF came with Redis 7.2, and never
    returns where the file is left to the operating system."""
    return facts.aof and facts.commands >= (7, 2) and connection.setting("appendfsync") != "no"


@cache
def _script(name: str) -> tuple[bytes, str]:
    text = files(__package__).joinpath(f"{name}.lua").read_bytes()
    return text, hashlib.sha1(text, usedforsecurity=False).hexdigest()


class Connection:
    """A connection of our own: everything on it happens in order, which WATCH and WAITAOF rely on."""

    def __init__(self, config: RedisConfig) -> None:
        """Connect. Raises ``Unavailable``, ``Misconfigured``."""
        self._config = config
        with _translated(config):
            pool = redis.ConnectionPool.from_url(
                config.url.get_secret_value(),
                socket_connect_timeout=config.connect_timeout_s,
                socket_timeout=config.timeout_s,
                retry=Retry(NoBackoff(), 0),
                client_name="syncline",
            )
            pool.connection_kwargs |= {"protocol": 2, "decode_responses": False}  # whatever the url asks for
            self._connection = cast(Any, pool.make_connection())  # its methods have no types
            self._connection.connect()

    def call(self, *command: Any) -> Any:
        """Send one command and return its answer. Raises as :func:`translate`."""
        with _translated(self._config):
            self._connection.send_command(*command)
            return self._connection.read_response()

    def calls(self, commands: Sequence[Sequence[Any]]) -> list[Any]:
        """Send commands in one go and return their answers; an error among them is raised once all are read."""
        with _translated(self._config):
            self._connection.send_packed_command(self._connection.pack_commands(commands))
            return _without_errors([self._answer() for _ in commands])

    def _answer(self) -> Any:
        try:
            return self._connection.read_response()
        except ResponseError as error:
            return error

    def run(self, script: str, *arguments: bytes) -> Any:
        """Run one of our scripts, loading it where the server does not have it (any more)."""
        text, sha = _script(script)
        with _translated(self._config):
            try:
                self._connection.send_command("EVALSHA", sha, 0, *arguments)
                return self._connection.read_response()
            except redis.exceptions.NoScriptError:
                self._connection.send_command("EVAL", text, 0, *arguments)
                return self._connection.read_response()

    def run_unless_changed(self, script: str, *arguments: bytes) -> Any:
        """Run a script if none of the keys under WATCH was changed since; None if one was, and nothing was done."""
        self.call("SCRIPT", "LOAD", _script(script)[0])
        commands = (("MULTI",), ("EVALSHA", _script(script)[1], 0, *arguments), ("EXEC",))
        answer = self.calls(commands)[-1]
        if answer is None:
            return None
        with _translated(self._config):
            return _without_errors(answer)[0]

    def synced(self) -> bool:
        """Wait until what was written on this connection is synced to the append-only file; False if it takes long."""
        return bool(self.call("WAITAOF", 1, 0, min(_WAIT_MS, int(self._config.timeout_s * 500)))[0])

    def facts(self) -> Facts:
        """What the server says of itself."""
        with _translated(self._config):
            self._connection.send_command("INFO")
            text = self._connection.read_response()
        return _facts(text.decode(errors="replace"))

    def setting(self, name: str) -> str | None:
        """A setting of the server; None where it does not tell (managed services)."""
        try:
            found = self.call("CONFIG", "GET", name)
        except SynclineError as error:
            if isinstance(error.__cause__, ResponseError):
                return None
            raise
        return found[1].decode() if found else None

    def close(self) -> None:
        try:
            self._connection.disconnect()
        except RedisError:
            return  # it was gone already


def _without_errors(answers: list[Any]) -> list[Any]:
    for answer in answers:
        if isinstance(answer, ResponseError):
            raise answer
    return answers


def _facts(info: str) -> Facts:
    said = dict(line.split(":", 1) for line in info.splitlines() if ":" in line and not line.startswith("#"))
    valkey = said.get("server_name") == "valkey"
    commands = said.get("redis_version", "0")
    return Facts(
        kind="Valkey" if valkey else "Redis",
        version=said.get("valkey_version", commands) if valkey else commands,
        commands=tuple(int(n) for n in commands.split(".")[:3] if n.isdigit()),
        clustered="cluster" in (said.get("redis_mode"), said.get("server_mode")) or said.get("cluster_enabled") == "1",
        replica=said.get("role") == "slave",
        aof=said.get("aof_enabled") == "1",
        snapshots=int(said.get("rdb_last_save_time", 0)) > 0,
        memory_limit=int(said.get("maxmemory", 0)),
        eviction=said.get("maxmemory_policy", "noeviction"),
    )


@contextmanager
def _translated(config: RedisConfig) -> Iterator[None]:
    try:
        yield
    except (RedisError, OSError) as error:
        raise translate(error, config) from error


def translate(error: Exception, config: RedisConfig) -> SynclineError:
    """The driver's error as one of ours, without the server's words: they can quote keys and values (Guarantee 11)."""
    server = shown(config.url)
    word = _word(error)
    if isinstance(error, AuthenticationError) or word in _RIGHTS:
        return Misconfigured(
            f"Redis at {server} refuses this user ({word or type(error).__name__}).",
            remedy="Correct user and password in the target's url, and what the user may do: see docs/stores/redis.md.",
            code="SL-REDIS-RIGHTS",
        )
    if word in _PASSING:
        return Unavailable(f"Redis at {server} does not take writes now ({word}).", remedy=_REMEDIES.get(word, ""))
    if isinstance(error, (redis.exceptions.ConnectionError, redis.exceptions.TimeoutError, OSError)):
        return Unavailable(f"Redis at {server} can't be reached ({type(error).__name__}).")
    return Misconfigured(f"Redis at {server} refused a command ({word or 'ERR'}).", code="SL-REDIS-REFUSED")


def _word(error: Exception) -> str:
    """The first word of the server's error, which says its kind; the driver cuts off those it knows."""
    for kind, word in _KINDS.items():
        if isinstance(error, kind):
            return word
    word = str(error).partition(" ")[0]
    return word if isinstance(error, ResponseError) and word.isupper() and word.isalpha() else ""


_KINDS: dict[type[Exception], str] = {
    redis.exceptions.BusyLoadingError: "LOADING",
    redis.exceptions.ReadOnlyError: "READONLY",
    redis.exceptions.OutOfMemoryError: "OOM",
    redis.exceptions.NoPermissionError: "NOPERM",
    redis.exceptions.MasterDownError: "MASTERDOWN",
    redis.exceptions.TryAgainError: "TRYAGAIN",
}
_REMEDIES = {
    "OOM": "Its memory is full: raise maxmemory, or remove keys.",
    "MISCONF": "It can't write to its disk: see its log.",
    "READONLY": "It is a replica now: point the target's url at the primary.",
    "BUSY": "A script of somebody runs for long.",
}
