from __future__ import annotations
import pytest
from stores.graph_databases import config, empty
from syncline.stores.neo4j import Neo4jStore
from syncline.testing.store_suite import MakeStore, StoreConformance

class TestNeo4jStore(StoreConformance):
    @pytest.fixture
    def make_store(self) -> MakeStore:
        seen=set()
        def make(name):
            if name not in seen: empty()
            seen.add(name)
            return Neo4jStore(config(), name)
        return make
