"""A graph database of a test's own: real Neo4j of both versions and the embedded server, in turn."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import neo4j
import pytest

from neo4j_server import VERSIONS, fetch_neo4j, find_java
from servers import required
from shared_server import KINDS, Address, of_all_workers
from syncline.embedded.kept import locked
from syncline.stores.neo4j import Neo4jConfig, Neo4jStore

__all__ = ["REAL", "GraphDatabase", "graph"]

REAL = tuple(f"neo4j-{name}" for name in VERSIONS)


@dataclass(frozen=True)
class GraphDatabase:
    """A whole database, empty at first: Neo4j Community has one a server, so a test has it to itself."""

    kind: str
    at: Address

    @property
    def real(self) -> bool:
        """Whether it is Neo4j itself."""
        return self.kind in REAL

    @property
    def config(self) -> Neo4jConfig:
        user, password = self.at.auth or ("neo4j", None)
        return Neo4jConfig(uri=self.at.uri, user=user, password=password, database=self.at.database)

    def store(self, name: str = "graph") -> Neo4jStore:
        return Neo4jStore(self.config, name)

    def query(self, statement: str, **parameters: Any) -> list[list[Any]]:
        """Run one statement by the driver alone; the rows of its result."""
        with self.driver() as driver, driver.session(database=self.at.database) as session:
            return [record.values() for record in session.run(statement, parameters)]  # type: ignore[arg-type]

    def driver(self) -> neo4j.Driver:
        return neo4j.GraphDatabase.driver(self.at.uri, auth=self.at.auth, notifications_min_severity="OFF")

    def empty(self) -> None:
        """Remove all nodes and relationships. Constraints stay, which take a second each to make."""
        while self.query("MATCH (n) WITH n LIMIT 10000 DETACH DELETE n RETURN count(*)") != [[0]]:
            pass


@pytest.fixture(params=KINDS)
def graph(
    request: pytest.FixtureRequest, graph_of: Callable[[str], Address], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[GraphDatabase]:
    """An empty database, nobody else's while the test runs."""
    name = request.param.removeprefix("neo4j-")
    if name in VERSIONS:
        required(fetch_neo4j, name)
        required(find_java, VERSIONS[name])
    at = graph_of(request.param)
    with locked(of_all_workers(tmp_path_factory) / f"{request.param}.whole"):
        found = GraphDatabase(request.param, at)
        found.empty()
        yield found
