"""Servers, databases and patience for the tests. A server that should be there and is not is a failure."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from typing import Any, LiteralString, TypeVar, cast

import neo4j
import psycopg
import pytest

from syncline.embedded import EmbeddedPostgres
from syncline.errors import Misconfigured, Unavailable

T = TypeVar("T")

# Without fsync a commit costs nothing; what a crash of the machine would lose is not what these tests are about. Tests
# that kill the server still recover, for the operating system's cache survives.
SETTINGS = {"fsync": "off", "max_connections": "200", "max_wal_senders": "40", "autovacuum": "off"}
TEMPLATE = "syncline_template"

# What the product says it works with; the last one comes with the environment, the others are fetched.
POSTGRES_VERSIONS = (15, 16, 17, 18)

_numbers = count(1)


def required(get: Callable[..., T], *arguments: Any) -> T:
    """What ``get`` fetches. Where that can't be had, as without a network, the test is skipped and says how to get it;
    with ``CI`` set it fails."""
    try:
        return get(*arguments)
    except (Misconfigured, Unavailable) as missing:
        if os.environ.get("CI"):
            raise
        pytest.skip(f"{missing} Fetch it with: make servers")


@dataclass(frozen=True)
class Database:
    """A fresh database of one test."""

    server: EmbeddedPostgres
    name: str

    @property
    def dsn(self) -> str:
        return self.server.dsn(self.name)

    def connect(self, **options: Any) -> psycopg.Connection[tuple[Any, ...]]:
        """A new connection, in autocommit unless told otherwise; close it, or use it as a context."""
        return psycopg.connect(self.dsn, **{"autocommit": True, **options})

    def execute(self, statement: str, *params: Any) -> list[tuple[Any, ...]]:
        """Execute one statement (or several without parameters) in a connection of its own; the rows of a query."""
        with self.connect() as connection:
            cursor = connection.execute(cast(LiteralString, statement), params or None)
            return cursor.fetchall() if cursor.description else []

    def value(self, query: str, *params: Any) -> Any:
        """The first column of the first row."""
        return self.execute(query, *params)[0][0]


@dataclass(frozen=True)
class Graph:
    """A server that speaks Bolt, which this test shares with others: what is its own is called by its ``prefix``."""

    kind: str
    uri: str
    auth: tuple[str, str] | None
    database: str
    prefix: str

    def query(self, statement: str, **parameters: Any) -> list[dict[str, Any]]:
        """Run one statement in a transaction of its own; the rows of its result."""
        with self.driver() as driver, driver.session(database=self.database) as session:
            return [record.data() for record in session.run(cast(LiteralString, statement), parameters)]

    def driver(self) -> neo4j.Driver:
        """A new driver; close it, or use it as a context."""
        return neo4j.GraphDatabase.driver(self.uri, auth=self.auth)

    def clean(self) -> None:
        """Remove every node, relationship and constraint of this test."""
        mine = "any(label IN labels(n) WHERE label STARTS WITH $prefix)"
        self.query(f"MATCH (n) WHERE {mine} DETACH DELETE n", prefix=self.prefix)
        for found in self.query("SHOW CONSTRAINTS YIELD name, labelsOrTypes RETURN name, labelsOrTypes"):
            if any(label.startswith(self.prefix) for label in found["labelsOrTypes"] or ()):
                self.query(f"DROP CONSTRAINT `{found['name'].replace('`', '``')}` IF EXISTS")


def drop_database(server: EmbeddedPostgres, name: str) -> None:
    """Drop a database and its replication origins, which belong to the server and have few places there."""
    server.drop_database(name)
    dropped = "select pg_replication_origin_drop(roname) from pg_replication_origin where roname like %s"
    with psycopg.connect(server.dsn(), autocommit=True) as connection:
        connection.execute(dropped, [f"syncline:{name}:%"])


@contextmanager
def fresh_database(server: EmbeddedPostgres, template: str | None = None) -> Iterator[Database]:
    """A new database that is dropped afterwards, together with its sessions, replication slots and origins."""
    name = f"test_{next(_numbers)}"
    server.create_database(name, template)
    try:
        yield Database(server, name)
    finally:
        if server.running:
            drop_database(server, name)


def eventually(fact: Callable[[], T], timeout_s: float = 20, every_s: float = 0.02) -> T:
    """Wait until ``fact()`` is truthy and return it; an AssertionError counts as "not yet".

    Use ``assert`` in ``fact`` to have the last state shown on failure, or return a value that says what is.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        state: object
        try:
            result = fact()
            if result:
                return result
            state = result
        except AssertionError as error:
            state = error
        if time.monotonic() > deadline:
            name = getattr(fact, "__name__", repr(fact))
            raise AssertionError(f"not within {timeout_s} s: {name}; last state: {state!r}") from (
                state if isinstance(state, AssertionError) else None
            )
        time.sleep(every_s)
