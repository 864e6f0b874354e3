"""Where the benchmarks of a store write to: a server of our own, or one that its user names and that is empty."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psycopg

from syncline.bench.bulk import Bulk, EdgeBulk, GraphBulk, HashBulk, TableBulk
from syncline.bench.engine import duckdb_target
from syncline.bench.workload import COLUMNS, TABLE
from syncline.embedded import EmbeddedBolt, EmbeddedPostgres, EmbeddedValkey
from syncline.errors import Misconfigured

__all__ = ["KINDS", "Address", "Place", "place_of"]


@dataclass(frozen=True, slots=True)
class Address:
    """A server of a user's own. ``pid``: its process on this machine, whose time is accounted for; None: elsewhere."""

    uri: str
    user: str = "neo4j"
    password: str | None = None
    pid: int | None = None


@dataclass(frozen=True)
class Place:
    """A place: the settings of a target that writes there, what the server is, its process if it has one, the database
    in which a backend of its own works for the target, and what fills it by hand."""

    kind: str
    target: Mapping[str, Any]
    server: str
    dimensions: int = 0
    pid: int | None = None
    dsn: str | None = None
    bulk: Callable[[], Bulk] | None = None

    @contextmanager
    def by_hand(self) -> Iterator[Bulk]:
        """What fills it by hand, beside the target's rows."""
        if self.bulk is None:
            raise Misconfigured(f"There is no bulk load of {self.kind} to compare with.")
        with closing(self.bulk()) as bulk:
            yield bulk


@contextmanager
def place_of(
    kind: str, folder: Path, address: Address | None = None, *, durable: bool = True, dimensions: int = 128
) -> Iterator[Place]:
    """A place of this kind, its files below ``folder``. ``durable`` is Valkey's: an append-only file that is synced
    before every answer. ``dimensions`` are those of the vectors of a kind that has them.

    Raises:
        Misconfigured: there is no such kind, or the user's place is not empty.
        Unavailable: the server doesn't answer.
    """
    if kind not in _PLACES:
        raise Misconfigured(f"There is no benchmark of {kind}.", remedy=f"There are: {', '.join(KINDS)}.")
    if address is not None and kind in ("qdrant", "duckdb"):
        raise Misconfigured(f"The benchmark of {kind} runs in a folder of its own.", remedy="Leave --uri out.")
    with _PLACES[kind](folder, address, durable, dimensions) as place:
        yield place


# --------------------------------------------------------------------------------------------------------------- neo4j


@contextmanager
def _neo4j(folder: Path, address: Address | None, durable: bool, dimensions: int) -> Iterator[Place]:
    if address is not None:
        with _emptied_graph(address):
            auth = (address.user, address.password) if address.password is not None else None
            yield _graph(address.uri, auth, None, address.pid)
        return
    with EmbeddedBolt.start(folder / "graph") as server:
        yield _graph(server.uri, server.auth, server.database, server.pid)


def _graph(uri: str, auth: tuple[str, str] | None, database: str | None, pid: int | None) -> Place:
    target = {"type": "neo4j", "uri": uri, "database": database}
    if auth is not None:
        target |= {"user": auth[0], "password": auth[1]}
    return Place(
        "neo4j",
        target,
        _graph_name(uri, auth),
        pid=pid,
        bulk=lambda: GraphBulk(uri, auth, database, pid),
    )


def _graph_name(uri: str, auth: tuple[str, str] | None) -> str:
    import neo4j

    with neo4j.GraphDatabase.driver(uri, auth=auth) as driver:
        return str(driver.get_server_info().agent)


@contextmanager
def _emptied_graph(address: Address) -> Iterator[None]:
    """A graph that was empty, and is in the end."""
    import neo4j

    auth = (address.user, address.password) if address.password is not None else None
    with neo4j.GraphDatabase.driver(address.uri, auth=auth) as driver:
        found = driver.execute_query("MATCH (n) RETURN count(n) AS n").records[0]["n"]
        if found:
            raise _not_empty("The graph", f"{found} nodes")
        theirs = _constraints(driver)
        try:
            yield
        finally:
            while driver.execute_query("MATCH (n) WITH n LIMIT 10000 DETACH DELETE n RETURN count(*) AS n").records[0][
                "n"
            ]:
                pass
            for name in _constraints(driver) - theirs:
                driver.execute_query(f"DROP CONSTRAINT `{name}`")


def _constraints(driver: Any) -> set[str]:
    return {record["name"] for record in driver.execute_query("SHOW CONSTRAINTS YIELD name").records}


def _not_empty(what: str, holds: str) -> Misconfigured:
    return Misconfigured(
        f"{what} that is to be measured holds {holds}.",
        remedy="Name an empty one: the benchmark fills it, and empties it in the end.",
    )


# --------------------------------------------------------------------------------------------------------------- redis


@contextmanager
def _redis(folder: Path, address: Address | None, durable: bool, dimensions: int) -> Iterator[Place]:
    if address is not None:
        with _emptied_keys(address.uri):
            yield _keys(address.uri, address.pid)
        return
    settings = {"appendonly": "yes", "appendfsync": "always"} if durable else {}
    with EmbeddedValkey.start(folder / "valkey", settings=settings) as server:
        yield _keys(server.url(), server.pid)


def _keys(url: str, pid: int | None) -> Place:
    import redis

    with closing(redis.Redis.from_url(url)) as client:
        found: Any = client.info("server")
        synced = client.config_get("append*")
    name = f"{found.get('server_name', 'redis')} {found.get('valkey_version', found['redis_version'])}"
    kept = f", appendonly {synced.get('appendonly')}, appendfsync {synced.get('appendfsync')}"
    return Place("redis", {"type": "redis", "url": url}, name + kept, pid=pid, bulk=lambda: HashBulk(url, pid))


@contextmanager
def _emptied_keys(url: str) -> Iterator[None]:
    """A database that was empty, and is in the end."""
    import redis

    with closing(redis.Redis.from_url(url)) as client:
        found = client.dbsize()
        if found:
            raise _not_empty("The database", f"{found} keys")
        try:
            yield
        finally:
            client.flushdb()


# ------------------------------------------------------------------------------------------------------------ postgres


@contextmanager
def _postgres(folder: Path, address: Address | None, durable: bool, dimensions: int) -> Iterator[Place]:
    if address is not None:
        with _emptied_database(address.uri):
            yield _tables(address.uri)
        return
    with EmbeddedPostgres.start(folder / "target") as server:
        server.create_database("copy")
        yield _tables(server.dsn("copy"))


def _tables(dsn: str) -> Place:
    with psycopg.connect(dsn) as connection:
        name = f"PostgreSQL {connection.info.parameter_status('server_version')}"
    return Place("postgres", {"type": "postgres", "dsn": dsn}, name, dsn=dsn, bulk=lambda: TableBulk(dsn))


@contextmanager
def _emptied_database(dsn: str) -> Iterator[None]:
    """A database without tables, in the beginning and in the end."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        row = connection.execute(
            "select count(*) from pg_class join pg_namespace n on n.oid = relnamespace"
            " where relkind in ('r', 'p') and nspname not in ('pg_catalog', 'information_schema')"
            " and nspname not like 'pg_temp%' and nspname not like 'pg_toast%'"
        ).fetchone()
        if row and row[0]:
            raise _not_empty("The database", f"{row[0]} tables")
        try:
            yield
        finally:
            connection.execute("drop table if exists public.chunks, public.bulk_chunks")
            connection.execute("drop schema if exists syncline_target cascade")


# ------------------------------------------------------------------------------------------------------ qdrant, duckdb


@contextmanager
def _qdrant(folder: Path, address: Address | None, durable: bool, dimensions: int) -> Iterator[Place]:
    path = folder / "points"
    path.mkdir()
    mapped = {
        "vectors": {"dense": {"column": "embedding", "size": dimensions}},
        "columns": {**dict.fromkeys(COLUMNS), "embedding": {"as": "vector"}},
    }
    yield Place(
        "qdrant",
        {"type": "qdrant", "path": str(path), "tables": {TABLE: mapped}},
        f"Qdrant Edge {version('qdrant-edge-py')}",
        dimensions=dimensions,
        bulk=lambda: EdgeBulk(folder / "by-hand", dimensions),
    )


@contextmanager
def _duckdb(folder: Path, address: Address | None, durable: bool, dimensions: int) -> Iterator[Place]:
    yield Place("duckdb", duckdb_target(folder), f"DuckDB {version('duckdb')}")


_PLACES: dict[str, Callable[[Path, Address | None, bool, int], AbstractContextManager[Place]]] = {
    "duckdb": _duckdb,
    "neo4j": _neo4j,
    "qdrant": _qdrant,
    "redis": _redis,
    "postgres": _postgres,
}
KINDS = tuple(_PLACES)
