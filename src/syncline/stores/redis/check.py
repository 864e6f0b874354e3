"""What stands in the way of a Redis target, or can lose its data: the contract's optional ``check``."""

from __future__ import annotations

from collections.abc import Iterator

from syncline.errors import SynclineError
from syncline.finding import Finding, Severity, size
from syncline.stores.redis.config import RedisConfig, shown
from syncline.stores.redis.server import Connection, Facts, syncs, unfit

__all__ = ["check"]


def check(config: RedisConfig) -> Iterator[Finding]:
    """Server, rights, eviction and durability; findings without a subject."""
    try:
        connection = Connection(config)
        try:
            yield from _look(connection, config)
        finally:
            connection.close()
    except SynclineError as error:
        yield _found(error.code, "error", error.message, error.remedy)


def _look(connection: Connection, config: RedisConfig) -> Iterator[Finding]:
    facts = connection.facts()
    blocked = list(unfit(facts, config))
    for error in blocked:
        yield _found(error.code, "error", error.message, error.remedy)
    connection.call("EVAL", "return 1", 0)  # may this user run scripts?
    if not blocked:
        yield _found("SL-REDIS", "ok", f"{facts.kind} {facts.version} at {shown(config.url)} answers.")
    yield from _eviction(facts, config)
    yield from _durability(connection, facts, config)


def _eviction(facts: Facts, config: RedisConfig) -> Iterator[Finding]:
    """Volatile policies take keys with a time to live only, so never our own; what they take is cache."""
    if not facts.memory_limit or facts.evicts_anything:
        return
    limit = f"maxmemory is {size(facts.memory_limit)}"
    if facts.eviction != "noeviction" and config.mode == "store":
        yield _found(
            "SL-REDIS-EVICTION",
            "warning",
            f"{limit} and maxmemory-policy {facts.eviction}: keys with a ttl_s may vanish before it ends.",
            "Set maxmemory-policy to noeviction, or the target's mode to cache.",
        )
    elif facts.eviction == "noeviction" and config.mode == "cache":
        yield _found(
            "SL-REDIS-EVICTION",
            "warning",
            f"{limit} and maxmemory-policy noeviction: a full cache stops this target instead of evicting.",
            "Set maxmemory-policy to a volatile one, such as volatile-lru, and give the mapping a ttl_s.",
        )


def _durability(connection: Connection, facts: Facts, config: RedisConfig) -> Iterator[Finding]:
    if facts.aof and config.durability == "disk" and syncs(connection, facts):
        yield _found("SL-REDIS-DURABLE", "ok", "Each step waits until the append-only file is synced.")
    elif facts.aof:
        yield _found(
            "SL-REDIS-DURABLE",
            "info",
            "No step waits for the append-only file: a crash of the server may lose what came last, which is noticed.",
            "To wait, set durability to disk and the server's appendfsync to everysec or always (Redis 7.2 or newer).",
        )
    elif config.mode == "store":
        yield _found(
            "SL-REDIS-DURABLE",
            "warning",
            "The server keeps no append-only file: a restart loses what came since its last snapshot, or everything."
            " That is noticed, and the tables are read again.",
            "Set appendonly yes, or the target's mode to cache if that is fine.",
        )


def _found(code: str, severity: Severity, message: str, remedy: str = "") -> Finding:
    return Finding(code, severity, "", message, remedy)
