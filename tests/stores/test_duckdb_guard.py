"""The guard of a file that was closed and opened again: what it may skip by is read from the file, not remembered."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from syncline.stores.duckdb import DuckDBConfig, DuckDBStore
from syncline.testing.store_suite import ITEM, Rows, contents, work


@contextmanager
def opened(folder: Path) -> Iterator[DuckDBStore]:
    store = DuckDBStore(DuckDBConfig(path=folder / "guard.duckdb", threads=1, door=False), "guard")
    store.open("orders")
    store.migrate(ITEM)
    yield store
    store.close()


@pytest.mark.parametrize("newest", ["a row", "a tombstone", "a truncation", "a horizon"])
def test_older_changes_are_superseded_after_opening_again_whatever_is_newest(tmp_path: Path, newest: str) -> None:
    with opened(tmp_path) as store:
        store.apply(work(Rows().upsert(100, 1, "one", None)))
        if newest == "a row":
            store.apply(work(Rows().upsert(200, 1, "newer", None)))
        elif newest == "a truncation":
            store.apply(work(Rows().table(truncated=200)))
        else:
            store.apply(work(Rows().delete(199, 1)))
        if newest == "a horizon":
            assert store.purge("orders", 200) == 1
        before = contents(store)
    with opened(tmp_path) as store:
        store.apply(work(Rows().upsert(150, 1, "late", None)))
        assert contents(store) == before
        store.apply(work(Rows().upsert(201, 1, "now", None)))
        assert contents(store) == {1: ("now", None, 201)}
