"""Mapped tables in DuckDB: other names, rows that are marked instead of removed, and what a former mapping wrote."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from syncline.change import TableSchema
from syncline.errors import Misconfigured
from syncline.shape import Rows as RowsShape
from syncline.stores.duckdb import DuckDBConfig, DuckDBStore
from syncline.testing.store_suite import ITEM, PAIR, Rows, contents, work


def shaped(namespace: str, name: str, soft_delete: str = "", table: TableSchema = ITEM) -> TableSchema:
    return msgspec.structs.replace(table, shape=RowsShape(namespace, name, soft_delete))


@pytest.fixture
def store(tmp_path: Path) -> Iterator[DuckDBStore]:
    store = DuckDBStore(DuckDBConfig(path=tmp_path / "copy.duckdb"), "main")
    store.open("orders")
    yield store
    store.close()


def query(store: DuckDBStore, sql: str) -> list[tuple[Any, ...]]:
    with store._db.session() as connection:
        return connection.execute(sql).fetchall()


def test_a_renamed_table_stands_under_its_new_name(store: DuckDBStore) -> None:
    renamed = shaped("archive", "Old Items")
    store.migrate(renamed)
    store.apply(work(Rows(renamed).upsert(100, 1, "one", None)))
    assert query(store, 'select id, name from archive."Old Items"') == [(1, "one")]
    assert contents(store, renamed) == {1: ("one", None, 100)}


def test_a_table_that_gets_another_name_leaves_nothing_behind(store: DuckDBStore) -> None:
    store.migrate(ITEM)
    store.apply(work(Rows().upsert(100, 1, "one", None)))
    assert store.migrate(shaped("public", "things")) == ITEM
    assert query(store, "select table_name from duckdb_tables() where schema_name = 'main'") == [("things",)]


def test_two_tables_never_share_a_name(store: DuckDBStore) -> None:
    store.migrate(ITEM)
    with pytest.raises(Misconfigured, match="one name"):
        store.migrate(shaped("public", "ITEM", table=PAIR))


def test_deleted_rows_are_marked_and_are_no_rows_of_the_copy(store: DuckDBStore) -> None:
    soft = shaped("public", "item", "deleted_at")
    store.migrate(soft)
    store.apply(work(Rows(soft).upsert(100, 1, "one", None).upsert(100, 2, "two", None)))
    store.apply(work(Rows(soft).delete(110, 1)))
    assert query(store, "select id, deleted_at is null from item order by id") == [(1, False), (2, True)]
    assert contents(store, soft) == {2: ("two", None, 100)}
    store.apply(work(Rows(soft).upsert(105, 1, "late", None).partial(120, 1, None, None, unchanged=["name"])))
    assert contents(store, soft) == {2: ("two", None, 100)}
    store.apply(work(Rows(soft).upsert(130, 1, "back", None), truncated=125))
    assert contents(store, soft) == {1: ("back", None, 130)}
    assert query(store, "select id, deleted_at is null from item order by id") == [(1, True), (2, False)]


def test_marked_rows_go_once_rows_are_removed_again(store: DuckDBStore) -> None:
    soft = shaped("public", "item", "deleted_at")
    store.migrate(soft)
    store.apply(work(Rows(soft).upsert(100, 1, "one", None).upsert(100, 2, "two", None)))
    store.apply(work(Rows(soft).delete(110, 1)))
    store.migrate(ITEM)
    assert query(store, "select id from item") == [(2,)]
    assert contents(store) == {2: ("two", None, 100)}


def test_a_column_of_the_source_cannot_mark_deleted_rows(store: DuckDBStore) -> None:
    with pytest.raises(Misconfigured, match="the source has it"):
        store.migrate(shaped("public", "item", "NAME"))
