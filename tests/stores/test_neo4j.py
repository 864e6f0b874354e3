"""The Neo4j store passes the suite of its contract, on real Neo4j and on the embedded server."""

from __future__ import annotations

import pytest

from stores.graphs import GraphDatabase, graph
from syncline.stores import Store
from syncline.testing.store_suite import MakeStore, Rows, StoreConformance, contents, work

__all__ = ["graph"]


class TestNeo4jStore(StoreConformance):
    @pytest.fixture
    def make_store(self, graph: GraphDatabase) -> MakeStore:
        """A server has one database only, so another name means that the former is done with."""
        names: list[str] = []

        def make(name: str) -> Store:
            if names and names[-1] != name:
                graph.empty()
            names.append(name)
            return graph.store(name)

        return make

    def test_rows_older_than_the_truncation_of_their_own_work_are_held_off(self, store: Store) -> None:
        rows = Rows().upsert(1, 1, "older", None).upsert(7, 2, "same commit", None).upsert(8, 3, "behind it", None)
        store.apply(work(rows, truncated=7))
        assert contents(store) == {2: ("same commit", None, 7), 3: ("behind it", None, 8)}

    def test_rows_older_than_the_horizon_are_held_off_where_nothing_was_ever_written(self, store: Store) -> None:
        store.purge("orders", 250)
        store.apply(work(Rows().upsert(249, 1, "forgotten", None)))
        assert contents(store) == {}
        store.apply(work(Rows().upsert(250, 1, "in", None)))
        assert contents(store) == {1: ("in", None, 250)}
