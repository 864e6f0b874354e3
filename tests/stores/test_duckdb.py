"""The DuckDB store passes the suite of its contract."""

from __future__ import annotations

from pathlib import Path

import pytest

from syncline.stores.duckdb import DuckDBConfig, DuckDBStore
from syncline.testing.store_suite import MakeStore, StoreConformance


class TestDuckDBStore(StoreConformance):
    @pytest.fixture
    def make_store(self, tmp_path: Path) -> MakeStore:
        return lambda name: DuckDBStore(DuckDBConfig(path=tmp_path / f"{name}.duckdb"), name)
