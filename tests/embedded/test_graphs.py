"""Servers that speak Bolt: the embedded one, and real Neo4j. Both are started alike, so they are tested alike."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from neo4j import GraphDatabase
from neo4j.exceptions import ConstraintError

from embedded.owned import gone, owner, using
from neo4j_server import VERSIONS, Neo4j, fetch_neo4j, find_java, version
from servers import Graph, eventually, required
from shared_server import KINDS
from syncline.embedded import EmbeddedBolt
from syncline.errors import Misconfigured

pytestmark = pytest.mark.timeout(900)  # a server in Java may take three minutes to start, on a busy machine


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    name = request.param.removeprefix("neo4j-")
    if name in VERSIONS:
        required(fetch_neo4j, name)
        required(find_java, VERSIONS[name])
    return str(request.param)


@pytest.fixture
def server(kind: str, tmp_path: Path) -> Iterator[EmbeddedBolt | Neo4j]:
    with KINDS[kind](tmp_path / "data") as server:
        yield server


def rows(server: EmbeddedBolt | Neo4j, statement: str) -> list[list[object]]:
    with (
        GraphDatabase.driver(server.uri, auth=server.auth) as driver,
        driver.session(database=server.database) as session,
    ):
        return [record.values() for record in session.run(statement)]  # type: ignore[arg-type]


@pytest.mark.slow
def test_what_was_committed_survives_a_kill_and_a_stop_leaves_nothing(
    server: EmbeddedBolt | Neo4j, tmp_path: Path
) -> None:
    port = server.port
    rows(server, "UNWIND range(1, 500) AS n CREATE (:Kept {n: n})")
    pid = server.pid
    server.kill()
    assert gone(pid)
    server.restart()
    assert server.port == port
    assert rows(server, "MATCH (k:Kept) RETURN count(k), sum(k.n)") == [[500, 125250]]
    pid = server.pid
    server.stop()
    assert gone(pid)
    assert using(tmp_path) == []
    assert [p.name for p in tmp_path.iterdir()] == ["data"]


@pytest.mark.slow
def test_a_server_ends_with_its_owner_even_if_that_is_killed(tmp_path: Path) -> None:
    with owner("bolt", tmp_path / "data") as (process, pid):
        assert not gone(pid)
        process.kill()
    eventually(lambda: gone(pid) and using(tmp_path) == [])


def test_a_real_neo4j_of_the_stated_version_answers(neo4j: Graph) -> None:
    parts = neo4j.query("CALL dbms.components() YIELD name, versions, edition RETURN name, versions, edition")
    wanted = [version(neo4j.kind.removeprefix("neo4j-"))]
    assert {"name": "Neo4j Kernel", "versions": wanted, "edition": "community"} in parts


def test_the_embedded_one_says_that_it_is_only_compatible(bolt: Graph) -> None:
    with bolt.driver() as driver:
        assert "ArcadeDB" in driver.get_server_info().agent


def test_a_message_above_the_servers_own_limit_is_answered(bolt: Graph) -> None:
    text = "x" * 20_000_000
    assert bolt.query(f"CREATE (n:{bolt.prefix}Large {{v: $v}}) RETURN size(n.v) AS n", v=text) == [{"n": len(text)}]


def what_a_store_needs(graph: Graph) -> None:
    """Constraints, guarded batches and errors by their class: what both kinds must do alike."""
    label = f"{graph.prefix}Person"
    graph.query(f"CREATE CONSTRAINT {label}_id IF NOT EXISTS FOR (n:{label}) REQUIRE n.id IS UNIQUE")
    write = (
        f"UNWIND $rows AS row MERGE (n:{label} {{id: row.id}})"
        " WITH n, row WHERE coalesce(n.v, -1) < row.v SET n += row.p, n.v = row.v"
    )
    graph.query(write, rows=[{"id": i, "v": 10, "p": {"name": f"n{i}", "x": 1}} for i in range(3)])
    graph.query(write, rows=[{"id": 0, "v": 9, "p": {"name": "older"}}, {"id": 1, "v": 11, "p": {"x": None}}])
    found = graph.query(f"MATCH (n:{label}) RETURN n.id AS id, n.name AS name, n.x AS x, n.v AS v ORDER BY id")
    assert [tuple(row.values()) for row in found] == [(0, "n0", 1, 10), (1, "n1", None, 11), (2, "n2", 1, 10)]
    with pytest.raises(ConstraintError):
        graph.query(f"CREATE (:{label} {{id: 2}})")


def test_real_neo4j_does_what_a_store_needs(neo4j: Graph) -> None:
    what_a_store_needs(neo4j)


def test_the_embedded_one_does_what_a_store_needs(bolt: Graph) -> None:
    what_a_store_needs(bolt)


def test_without_its_wheel_the_command_that_gets_it_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("syncline.embedded.bolt.wheel_folder", lambda package: None)
    with pytest.raises(Misconfigured, match=r"pip install 'syncline\[servers\]'"):
        EmbeddedBolt.start(tmp_path)


def test_the_secret_is_the_owners_alone_and_never_in_the_list_of_processes(tmp_path: Path) -> None:
    with EmbeddedBolt.start(tmp_path) as server:
        user, secret = server.auth
        assert (user, len(secret) >= 32) == ("root", True)
        assert not [p for p in using(tmp_path) if secret in Path(f"/proc/{p}/cmdline").read_text()]
        assert secret not in server.log_tail(1000)
        assert [p.stat().st_mode & 0o077 for p in tmp_path.glob("root.key")] == [0]
