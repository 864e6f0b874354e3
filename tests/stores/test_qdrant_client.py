"""The Qdrant store through the official client.

No server can be started here, so the client's own local mode stands behind it: the same Python calls, another engine.
What a server is sent is held against the client's models in ``test_qdrant_requests.py``.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from qdrant_client import QdrantClient

from syncline.stores.qdrant.points import Points
from syncline.stores.qdrant.server import ServerPoints
from syncline.stores.qdrant.store import QdrantConfig, QdrantStore
from syncline.testing.store_suite import MakeStore, StoreConformance


class OneAtATime(ServerPoints):
    """Local mode is for one thread at a time, and forgets everything when it is closed."""

    lock = threading.Lock()

    @contextmanager
    def _translated(self) -> Iterator[None]:
        with self.lock, super()._translated():
            yield

    def close(self) -> None:
        """The client stays for other stores of the same name."""


class OnLocalMode(QdrantStore):
    """The store of a server whose client keeps the points itself, in memory."""

    client: QdrantClient

    def _connect(self) -> Points:
        return OneAtATime(self.client, "memory")


# It says that it is meant for small data, and that it makes no payload indexes.
@pytest.mark.filterwarnings("ignore:(Local mode|Payload indexes):UserWarning")
class TestQdrantStoreThroughTheClient(StoreConformance):
    @pytest.fixture
    def make_store(self) -> Iterator[MakeStore]:
        clients: dict[str, QdrantClient] = {}

        def make(name: str) -> QdrantStore:
            store = OnLocalMode(QdrantConfig(url="http://localhost:6333"), name)
            store.client = clients.setdefault(name, QdrantClient(":memory:"))
            return store

        yield make
        for client in clients.values():
            client.close()
