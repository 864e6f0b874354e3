"""The fixtures that all test modules share: servers for the worker or the run, and a test's own place in them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from uuid import uuid4

import pytest
import redis
from hypothesis import settings

from neo4j_server import VERSIONS, fetch_neo4j, find_java
from servers import POSTGRES_VERSIONS, SETTINGS, TEMPLATE, Database, Graph, fresh_database, required
from shared_server import Address, of_all_workers, shared
from stores.graphs import GraphDatabase
from syncline.embedded import EmbeddedPostgres, EmbeddedValkey, fetch_binaries
from syncline.embedded.kept import locked

# How long an example takes says how busy the machine is.
settings.register_profile("tests", deadline=None)
settings.load_profile("tests")


@pytest.fixture(scope="session")
def postgres_of(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[int], EmbeddedPostgres]]:
    """This worker's servers by major version, each started when it is first asked for."""
    running: dict[int, EmbeddedPostgres] = {}
    with ExitStack() as stack:

        def server(major: int) -> EmbeddedPostgres:
            if major not in running:
                folder = tmp_path_factory.mktemp(f"postgres{major}")
                binaries = required(fetch_binaries, major)
                started = EmbeddedPostgres.start(folder / "data", binaries=binaries, settings=SETTINGS)
                running[major] = stack.enter_context(started)
                started.create_database(TEMPLATE)
            return running[major]

        yield server


@pytest.fixture
def postgres_version() -> int:
    """The version of this test's server: the newest, unless a folder or a test asks for others by this name."""
    return POSTGRES_VERSIONS[-1]


@pytest.fixture
def postgres(postgres_of: Callable[[int], EmbeddedPostgres], postgres_version: int) -> EmbeddedPostgres:
    """This worker's server. Tests that stop, kill or reconfigure a server use ``pg_server`` instead."""
    return postgres_of(postgres_version)


@pytest.fixture
def database(postgres: EmbeddedPostgres) -> Iterator[Database]:
    """A fresh, empty database."""
    with fresh_database(postgres, TEMPLATE) as fresh:
        yield fresh


@pytest.fixture(scope="session")
def plain_postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedPostgres]:
    """This worker's server without logical decoding, where no slot can be made."""
    plain = {**SETTINGS, "wal_level": "replica", "max_replication_slots": "0"}
    with EmbeddedPostgres.start(tmp_path_factory.mktemp("plain") / "data", settings=plain) as server:
        yield server


@pytest.fixture
def plain_database(plain_postgres: EmbeddedPostgres) -> Iterator[Database]:
    """A fresh, empty database of that server."""
    with fresh_database(plain_postgres) as fresh:
        yield fresh


@pytest.fixture
def pg_server(tmp_path: Path, postgres_version: int) -> Iterator[EmbeddedPostgres]:
    """A server of this test's own, to stop, kill and restart at will."""
    binaries = required(fetch_binaries, postgres_version)
    server = EmbeddedPostgres.start(tmp_path / "postgres", binaries=binaries, settings=SETTINGS)
    try:
        yield server
    finally:
        server.stop("immediate")


@pytest.fixture(scope="session")
def valkey_of_worker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedValkey]:
    """This worker's Valkey."""
    with EmbeddedValkey.start(tmp_path_factory.mktemp("valkey") / "data") as server:
        yield server


@pytest.fixture
def valkey(valkey_of_worker: EmbeddedValkey) -> EmbeddedValkey:
    """An empty Valkey. Tests that kill it or set its memory start one of their own, which takes a tenth of a second."""
    with redis.Redis.from_url(valkey_of_worker.url()) as client:
        client.flushall()
    return valkey_of_worker


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A server in Java may take minutes to start, and another worker's test may have it: that is no test that hangs."""
    for item in items:
        if "graph_of" in getattr(item, "fixturenames", ()) and item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(900))


@pytest.fixture(scope="session")
def graph_of(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Address]]:
    """The run's graph servers by kind, each started when the first worker asks for it."""
    place = of_all_workers(tmp_path_factory)
    joined: dict[str, Address] = {}
    with ExitStack() as stack:

        def address(kind: str) -> Address:
            if kind not in joined:
                joined[kind] = stack.enter_context(shared(kind, place))
            return joined[kind]

        yield address


@pytest.fixture
def bolt(graph_of: Callable[[str], Address], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Graph]:
    """The embedded graph server, compatible with Neo4j: quick to start, for what need not be shown on the real one."""
    yield from _graph("bolt", graph_of("bolt"), of_all_workers(tmp_path_factory))


@pytest.fixture(params=VERSIONS)
def neo4j(
    request: pytest.FixtureRequest, graph_of: Callable[[str], Address], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Graph]:
    """A real Neo4j, of each version in turn."""
    required(fetch_neo4j, request.param)
    required(find_java, VERSIONS[request.param])
    kind = f"neo4j-{request.param}"
    yield from _graph(kind, graph_of(kind), of_all_workers(tmp_path_factory))


def _graph(kind: str, at: Address, place: Path) -> Iterator[Graph]:
    """Nobody else's while the test runs: others empty the whole database, and leave cursors of sources of our names."""
    with locked(place / f"{kind}.whole"):
        GraphDatabase(kind, at).empty()
        graph = Graph(kind, at.uri, at.auth, at.database, prefix=f"T{uuid4().hex[:8]}_")
        yield graph
        graph.clean()
