"""Where the benchmarks of a store write to: a server of our own, or one that its user names and that is empty."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

import psycopg
from pydantic import BaseModel, ValidationError

from syncline.bench.bulk import Bulk, EdgeBulk, GraphBulk, HashBulk, TableBulk
from syncline.bench.engine import duckdb_target
from syncline.bench.workload import COLUMNS, TABLE
from syncline.embedded import EmbeddedBolt, EmbeddedPostgres, EmbeddedValkey
from syncline.errors import Misconfigured, SynclineError

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


# -------------------------------------------------------------------------------------------------- a user's own server

Settings = TypeVar("Settings", bound=BaseModel)
_REMEDY = "Check that the server runs, and --uri with its user and password."


def _settings(kind: type[Settings], **given: Any) -> Settings:
    """The settings of a target there: the store's own reading of an address, and its own words for what fails."""
    try:
        return kind(**given)
    except ValidationError as error:
        flaws = "; ".join(found["msg"] for found in error.errors(include_input=False))
        raise Misconfigured(f"The address in --uri can't be used: {flaws}.", remedy="Correct --uri.") from error


@contextmanager
def _told(translate: Callable[[Any, Any], SynclineError], config: Any, *errors: type[Exception]) -> Iterator[None]:
    """A driver's errors as the store tells them, which never repeats a secret of the address (Guarantee 11)."""
    try:
        yield
    except errors as error:
        found = error if isinstance(error, SynclineError) else translate(error, config)
        raise type(found)(found.message, remedy=_REMEDY, code=found.code) from error


def _not_empty(what: str, holds: str) -> Misconfigured:
    return Misconfigured(
        f"{what} that is to be measured holds {holds}.",
        remedy="Name an empty one: the benchmark fills it, and empties it in the end.",
    )


# --------------------------------------------------------------------------------------------------------------- neo4j


@contextmanager
def _neo4j(folder: Path, address: Address | None, durable: bool, dimensions: int) -> Iterator[Place]:
    if address is not None:
        auth = (address.user, address.password) if address.password is not None else None
        with _emptied_graph(address) as server:
            yield _graph(address.uri, auth, None, address.pid, server)
        return
    with EmbeddedBolt.start(folder / "graph") as bolt:
        yield _graph(bolt.uri, bolt.auth, bolt.database, bolt.pid, _graph_name(bolt.uri, bolt.auth))


def _graph(uri: str, auth: tuple[str, str] | None, database: str | None, pid: int | None, server: str) -> Place:
    target = {"type": "neo4j", "uri": uri, "database": database}
    if auth is not None:
        target |= {"user": auth[0], "password": auth[1]}
    return Place("neo4j", target, server, pid=pid, bulk=lambda: GraphBulk(uri, auth, database, pid))


def _graph_name(uri: str, auth: tuple[str, str] | None) -> str:
    import neo4j

    with neo4j.GraphDatabase.driver(uri, auth=auth) as driver:
        return str(driver.get_server_info().agent)


@contextmanager
def _emptied_graph(address: Address) -> Iterator[str]:
    """A graph that was empty, and is in the end, without what constrains and indexes it; what its server is."""
    from syncline.stores.neo4j.cypher import quote
    from syncline.stores.neo4j.database import Database, Neo4jConfig, translate

    given = {"uri": address.uri, "user": address.user, "password": address.password}
    config = _settings(Neo4jConfig, **given)
    with closing(Database(config)) as database:

        def named(what: str) -> set[str]:
            return {name for (name,) in database.run(f"SHOW {what} YIELD name RETURN name")}

        with _told(translate, config, SynclineError):
            database.greet()
        ((found,),) = database.run("MATCH (n) RETURN count(n)")
        if found:
            raise _not_empty("The graph", f"{found} nodes")
        # Constraints first: each takes an index of its own with it.
        theirs = {what: named(what) for what in ("CONSTRAINTS", "INDEXES")}
        try:
            yield database.server
        finally:
            while database.run("MATCH (n) WITH n LIMIT 10000 DETACH DELETE n RETURN count(*)") != [[0]]:
                pass
            for what, before in theirs.items():
                for name in sorted(named(what) - before):
                    database.run(f"DROP {'CONSTRAINT' if what == 'CONSTRAINTS' else 'INDEX'} {quote(name)} IF EXISTS")


# --------------------------------------------------------------------------------------------------------------- redis


@contextmanager
def _redis(folder: Path, address: Address | None, durable: bool, dimensions: int) -> Iterator[Place]:
    if address is not None:
        with _emptied_keys(address.uri) as server:
            yield _keys(address.uri, address.pid, server)
        return
    settings = {"appendonly": "yes", "appendfsync": "always"} if durable else {}
    with EmbeddedValkey.start(folder / "valkey", settings=settings) as server:
        yield _keys(server.url(), server.pid, _keys_name(server.url()))


def _keys(url: str, pid: int | None, server: str) -> Place:
    return Place("redis", {"type": "redis", "url": url}, server, pid=pid, bulk=lambda: HashBulk(url, pid))


def _keys_name(url: str) -> str:
    import redis

    with closing(redis.Redis.from_url(url)) as client:
        found: Any = client.info("server")
        synced = client.config_get("append*")
    name = f"{found.get('server_name', 'redis')} {found.get('valkey_version', found['redis_version'])}"
    return f"{name}, appendonly {synced.get('appendonly')}, appendfsync {synced.get('appendfsync')}"


@contextmanager
def _emptied_keys(url: str) -> Iterator[str]:
    """A database that was empty, and is in the end; what its server is."""
    import redis

    from syncline.stores.redis.config import RedisConfig
    from syncline.stores.redis.server import translate

    told = partial(_told, translate, _settings(RedisConfig, url=url), redis.RedisError, OSError)
    with closing(redis.Redis.from_url(url)) as client:
        with told():
            found = client.dbsize()
            name = _keys_name(url)
        if found:
            raise _not_empty("The database", f"{found} keys")
        try:
            yield name
        finally:
            with told():
                client.flushdb()


# ------------------------------------------------------------------------------------------------------------ postgres


@contextmanager
def _postgres(folder: Path, address: Address | None, durable: bool, dimensions: int) -> Iterator[Place]:
    if address is not None:
        with _emptied_database(address.uri) as server:
            yield _tables(address.uri, server)
        return
    with EmbeddedPostgres.start(folder / "target") as server:
        server.create_database("copy")
        with psycopg.connect(server.dsn("copy")) as connection:
            name = _tables_name(connection)
        yield _tables(server.dsn("copy"), name)


def _tables(dsn: str, server: str) -> Place:
    return Place("postgres", {"type": "postgres", "dsn": dsn}, server, dsn=dsn, bulk=lambda: TableBulk(dsn))


def _tables_name(connection: psycopg.Connection[Any]) -> str:
    return f"PostgreSQL {connection.info.parameter_status('server_version')}"


# Origins belong to the whole server: ours tell their database.
_ORIGINS = """
select roname from pg_replication_origin
where starts_with(roname, 'syncline:' || current_database() || ':syncline_target:')
"""
_ORIGIN_S = 30.0


@contextmanager
def _emptied_database(dsn: str) -> Iterator[str]:
    """A database without tables, in the beginning and in the end; what its server is."""
    from syncline.stores.postgres.server import PostgresConfig, failed

    told = partial(_told, failed, _settings(PostgresConfig, dsn=dsn), psycopg.Error)
    with ExitStack() as stack:
        with told():
            connection = stack.enter_context(psycopg.connect(dsn, autocommit=True, connect_timeout=10))
            _refuse_tables(connection)
            theirs = {name for (name,) in connection.execute(_ORIGINS)}
        try:
            yield _tables_name(connection)
        finally:
            with told():
                connection.execute("drop table if exists public.chunks, public.bulk_chunks")
                connection.execute("drop schema if exists syncline_target cascade")
                for name in {name for (name,) in connection.execute(_ORIGINS)} - theirs:
                    _drop_origin(connection, name)


def _refuse_tables(connection: psycopg.Connection[Any]) -> None:
    row = connection.execute(
        "select count(*) from pg_class join pg_namespace n on n.oid = relnamespace"
        " where relkind in ('r', 'p') and nspname not in ('pg_catalog', 'information_schema')"
        " and nspname not like 'pg_temp%' and nspname not like 'pg_toast%'"
    ).fetchone()
    if row and row[0]:
        raise _not_empty("The database", f"{row[0]} tables")


def _drop_origin(connection: psycopg.Connection[Any], name: str) -> None:
    """Drop it once the session of the engine, which may take a moment to end, has let go of it."""
    deadline = time.monotonic() + _ORIGIN_S
    while True:
        try:
            connection.execute("select pg_replication_origin_drop(%s)", [name])
            return
        except psycopg.errors.ObjectInUse:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)


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
