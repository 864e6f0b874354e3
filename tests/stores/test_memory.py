"""The in-memory store passes the suite of its contract."""

from __future__ import annotations

from uuid import uuid4

import pytest

from syncline.stores.memory import MemoryConfig, MemoryStore
from syncline.testing.store_suite import MakeStore, StoreConformance


class TestMemoryStore(StoreConformance):
    @pytest.fixture
    def make_store(self) -> MakeStore:
        prefix = uuid4().hex
        return lambda name: MemoryStore(MemoryConfig(database=f"{prefix} {name}"), name)
