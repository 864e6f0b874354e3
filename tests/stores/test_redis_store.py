"""The Redis store passes the suite of its contract, on a real Valkey."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from itertools import count

import pytest

from stores.redis_server import Server
from syncline.testing.store_suite import MakeStore, StoreConformance

_numbers = count()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("valkey"))
    yield server
    server.stop()


class TestRedisStore(StoreConformance):
    @pytest.fixture
    def make_store(self, server: Server) -> MakeStore:
        databases: defaultdict[str, int] = defaultdict(_numbers.__next__)
        return lambda name: server.store(databases[name])
