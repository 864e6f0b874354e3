"""Killed at any moment, put back to an older copy, or with an answer lost, the graph holds whole works and the cursor
behind them."""

from __future__ import annotations

import os
import random
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from neo4j_server import VERSIONS, Neo4j, fetch_neo4j, find_java
from servers import eventually, required
from shared_server import KINDS, Address
from stores.bolt_proxy import lossy
from stores.graph_tables import KNOWS, PERSON, edges, expected_edges, nodes
from stores.graphs import GraphDatabase, graph
from syncline.change import Cursor, Position
from syncline.embedded import EmbeddedBolt
from syncline.errors import SynclineError, Unavailable
from syncline.stores import Work
from syncline.stores.neo4j import Neo4jStore
from syncline.testing.store_suite import ITEM, Rows, contents, work

__all__ = ["graph"]

# Twenty together: a start of Neo4j takes eight seconds of a processor, and each kill costs one.
_KILLS = {"bolt": 6, "neo4j-5": 7, "neo4j-2026": 7}
_PEOPLE = 12


class _Killed:
    """A server of a test's own, to kill, and its graph."""

    def __init__(self, kind: str, server: EmbeddedBolt | Neo4j) -> None:
        self.kind = kind
        self.server = server
        self.graph = GraphDatabase(kind, Address(server.uri, server.auth, server.database, server.pid, 0))

    def keep(self, copy: Path) -> None:
        """Copy the files of a server that was killed."""
        shutil.copytree(self.server.data_dir, copy)

    def put_back(self, copy: Path) -> None:
        shutil.rmtree(self.server.data_dir)
        copy.rename(self.server.data_dir)


@pytest.fixture(params=KINDS)
def killed(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[_Killed]:
    name = request.param.removeprefix("neo4j-")
    if name in VERSIONS:
        required(fetch_neo4j, name)
        required(find_java, VERSIONS[name])
    with KINDS[request.param](tmp_path / "data") as server:
        yield _Killed(request.param, server)


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


def _people(n: int) -> dict[Any, tuple[Any, ...]]:
    """What the works 1 to n leave of the persons."""
    return {i: (f"work {n}", (i + n) % _PEOPLE, n) for i in range(_PEOPLE) if i != n % _PEOPLE}


def _knows(n: int) -> dict[Any, tuple[Any, ...]]:
    """And of whom they know: the n-th work wrote all but one, which the one before had written."""
    last = {i: n - (i == n % _PEOPLE) for i in range(_PEOPLE)}
    return {(i, (i + 1) % _PEOPLE): (version, version) for i, version in last.items() if version}


def _holds(killed: _Killed, store: Neo4jStore, n: int) -> bool:
    """Whether the graph is what the works 1 to n leave: by the store, and by the driver alone."""
    assert contents(store, PERSON) == _people(n)
    assert contents(store, KNOWS) == _knows(n)
    assert edges(killed.graph) == expected_edges(_people(n), {}, {}, _knows(n), {})
    assert nodes(killed.graph, "Person") == len(_people(n))
    return True


def _reached(killed: _Killed) -> int:
    """The cursor, as somebody else reads it."""
    reader = Neo4jStore.reader(killed.graph.config)
    cursor = reader.cursor("orders")
    reader.close()
    return cursor.position.n if cursor else 0


class _Applier:
    """Applies from a work on until the server is gone. ``done`` is the last work that was acknowledged."""

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


def _killed_while_applying(killed: _Killed, store: Neo4jStore, n: int, rng: random.Random) -> int:
    """Apply behind the n-th work, and kill the server amid one; the last that was acknowledged."""
    applier = _Applier(store, n)
    eventually(lambda: applier.done > n or applier.end, 120)
    time.sleep(rng.uniform(0, 0.2))  # the moment of the kill
    killed.server.kill()
    applier.thread.join()
    assert isinstance(applier.end, Unavailable), applier.end
    return applier.done


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_kills_and_an_older_copy_leave_data_and_cursor_in_step(killed: _Killed, tmp_path: Path) -> None:
    _kill_and_compare(killed, _KILLS[killed.kind], tmp_path / "copy")


@pytest.mark.soak
def test_many_kills_and_an_older_copy_leave_data_and_cursor_in_step(killed: _Killed, tmp_path: Path) -> None:
    cycles = min(200, int(os.environ.get("SYNCLINE_SOAK_CYCLES", "200")))
    _kill_and_compare(killed, max(3, cycles * _KILLS[killed.kind] // sum(_KILLS.values())), tmp_path / "copy")


def _kill_and_compare(killed: _Killed, kills: int, copy: Path) -> None:
    """The store that met the kill goes on behind it, as the engine does: the work that failed is applied again, whether
    or not only its answer was lost. Behind the last kill the server comes back with the files of the second."""
    store = killed.graph.store("crash")
    store.open("orders")
    for schema in (PERSON, KNOWS):
        store.migrate(schema)
    rng, done, kept = random.Random(4), 0, 0
    for kill in range(1, kills + 1):
        done = _killed_while_applying(killed, store, done, rng)
        if kill == 2:
            killed.keep(copy)
        if kill == kills:
            killed.put_back(copy)
        killed.server.restart()
        n = _reached(killed)
        if kill == 2:
            kept = n
        if kill < kills:
            assert done <= n <= done + 1, "a work that was acknowledged is gone, or one came that was not sent"
        assert _holds(killed, store, n)
    assert 0 < kept == n < done
    cursor = store.open("orders")
    assert cursor is not None
    assert cursor.position.n == kept
    for again in range(kept + 1, done + 1):
        store.apply(_work(again))
    assert _reached(killed) == done
    assert _holds(killed, store, done)
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
