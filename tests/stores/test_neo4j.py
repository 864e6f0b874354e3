"""The Neo4j store passes the suite of its contract, on real Neo4j and on the embedded server."""

from __future__ import annotations

import pytest

from stores.graphs import GraphDatabase, graph
from syncline.stores import Store
from syncline.testing.store_suite import MakeStore, StoreConformance

pytestmark = pytest.mark.unfinished

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
