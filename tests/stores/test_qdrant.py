"""The Qdrant store passes the suite of its contract, on Qdrant Edge in a folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from syncline.stores.qdrant import QdrantConfig, QdrantStore
from syncline.testing.store_suite import MakeStore, StoreConformance


class TestQdrantStore(StoreConformance):
    @pytest.fixture
    def make_store(self, quick_folder: Path) -> MakeStore:
        return lambda name: QdrantStore(QdrantConfig(path=quick_folder / name), name)
