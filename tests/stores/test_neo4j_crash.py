"""Killed at any moment, or with an answer lost, the graph holds whole works and the cursor behind them."""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from neo4j_server import VERSIONS, Neo4j, fetch_neo4j, find_java
from servers import eventually, required
from shared_server import KINDS
from stores.bolt_proxy import lossy
from stores.graph_tables import KNOWS, PERSON
from stores.graphs import GraphDatabase, graph
from syncline.change import Cursor, Position
from syncline.embedded import EmbeddedBolt
from syncline.errors import SynclineError, Unavailable
from syncline.stores import Work
from syncline.stores.neo4j import Neo4jConfig, Neo4jStore
from syncline.testing.store_suite import ITEM, Rows, contents, work

pytestmark = pytest.mark.unfinished

__all__ = ["graph"]

_KILLS = 20
_PEOPLE = 12


@pytest.fixture(params=KINDS)
def server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[EmbeddedBolt | Neo4j]:
    """A server of this test's own, to kill."""
    name = request.param.removeprefix("neo4j-")
    if name in VERSIONS:
        required(fetch_neo4j, name)
        required(find_java, VERSIONS[name])
    with KINDS[request.param](tmp_path / "data") as server:
        yield server


def _config(server: EmbeddedBolt | Neo4j) -> Neo4jConfig:
    user, password = server.auth or ("neo4j", None)
    return Neo4jConfig(uri=server.uri, user=user, password=password, database=server.database)


def _work(n: int) -> Work:
    """The n-th work: rows, references, relationships and deletions of two tables."""
    people, knows = Rows(PERSON), Rows(KNOWS)
    for i in range(_PEOPLE):
        if i == n % _PEOPLE:
            people.delete(n, i)
        else:
            people.upsert(n, i, f"work {n}", (i + n) % _PEOPLE)
            knows.upsert(n, i, (i + 1) % _PEOPLE, n)
    return Work((people.table(), knows.table()), Cursor("orders", Position("log", n)))


def _expected(n: int) -> dict[int, tuple[Any, ...]]:
    return {i: (f"work {n}", (i + n) % _PEOPLE, n) for i in range(_PEOPLE) if i != n % _PEOPLE}


class _Applier:
    """Applies from the stored cursor on until the server is gone. ``done`` is the last work that was acknowledged."""

    def __init__(self, store: Neo4jStore, n: int) -> None:
        self.done = n
        self.end: SynclineError | None = None
        self._store = store
        self.thread = threading.Thread(target=self._run)
        self.thread.start()

    def _run(self) -> None:
        while True:
            try:
                self._store.apply(_work(self.done + 1))
            except SynclineError as error:
                self.end = error
                return
            self.done += 1


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_twenty_kills_of_the_server_leave_data_and_cursor_in_step(server: EmbeddedBolt | Neo4j) -> None:
    _kill_and_compare(server, _KILLS)


@pytest.mark.soak
def test_many_kills_of_the_server_leave_data_and_cursor_in_step(server: EmbeddedBolt | Neo4j) -> None:
    _kill_and_compare(server, int(os.environ.get("SYNCLINE_SOAK_CYCLES", "200")))


def _kill_and_compare(server: EmbeddedBolt | Neo4j, kills: int) -> None:
    rng, n = random.Random(4), 0
    store = Neo4jStore(_config(server), "crash")
    store.open("orders")
    store.migrate(PERSON)
    store.migrate(KNOWS)
    for _ in range(kills):
        applier = _Applier(store, n)
        eventually(lambda a=applier, was=n: a.done > was or a.end, 120)  # type: ignore[misc]
        time.sleep(rng.uniform(0, 0.2))  # the moment of the kill
        server.kill()
        applier.thread.join()
        assert isinstance(applier.end, Unavailable)
        store.close()
        server.restart()
        store = Neo4jStore(_config(server), "crash")
        cursor = store.open("orders")
        assert cursor is not None
        n = cursor.position.n
        assert n >= applier.done, "a work that was acknowledged is gone"
        assert contents(store, PERSON) == _expected(n)
        knows = contents(store, KNOWS)
        assert max(since for since, _ in knows.values()) == n
        assert {version for _, version in knows.values()} <= {n, n - 1}
    assert n >= kills
    store.close()


def test_an_answer_that_is_lost_behind_the_commit_is_harmless(graph: GraphDatabase) -> None:
    port = int(graph.at.uri.rpartition(":")[2])
    with lossy(port) as proxy:
        config = graph.config.model_copy(update={"uri": f"bolt://127.0.0.1:{proxy.port}"})
        store = Neo4jStore(config, "lossy")
        store.open("orders")
        for schema in (ITEM, PERSON, KNOWS):
            store.migrate(schema)
        store.apply(work(Rows().upsert(100, 1, "a", None).upsert(100, 2, "b", None), n=1))
        swap = work(
            Rows()
            .partial(110, 1, None, None, unchanged=["name"], origin=(2,))
            .partial(110, 2, None, None, unchanged=["name"], origin=(1,))
            .delete(110, 3),
            Rows(PERSON).upsert(110, 1, "p", 2),
            Rows(KNOWS).upsert(110, 1, 2, 7),
            n=2,
        )
        proxy.lose.set()
        with pytest.raises(Unavailable):
            store.apply(swap)
        assert proxy.lost == 1
        assert graph.query("MATCH (c:_SynclineCursor) WHERE c.body CONTAINS '\"n\":2' RETURN 2") == [[2]]
        expected = {1: ("b", None, 110), 2: ("a", None, 110)}
        for _ in range(2):
            assert contents(store) == expected
            assert contents(store, PERSON) == {1: ("p", 2, 110)}
            assert contents(store, KNOWS) == {(1, 2): (7, 110)}
            store.apply(swap)
        store.close()
