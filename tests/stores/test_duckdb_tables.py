"""How tables look in DuckDB, and which existing ones are taken over."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path

import duckdb
import msgspec
import pytest

from syncline.change import Column, TableSchema
from syncline.errors import Misconfigured, Rejected
from syncline.stores.duckdb import DuckDBConfig, DuckDBStore
from syncline.testing.store_suite import ITEM, PAIR, VALUES, Rows, contents, work


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "tables.duckdb"


@pytest.fixture
def store(path: Path) -> DuckDBStore:
    return DuckDBStore(DuckDBConfig(path=path), "tables")


def _prepare(path: Path, *statements: str) -> None:
    with duckdb.connect(str(path)) as connection:
        for statement in statements:
            connection.execute(statement)


def test_public_becomes_main_and_other_namespaces_keep_their_name(store: DuckDBStore, path: Path) -> None:
    store.open("orders")
    store.migrate(ITEM)
    store.migrate(PAIR)
    store.close()
    with duckdb.connect(str(path)) as connection:
        found = connection.execute(
            "select schema_name, table_name, column_name, data_type from duckdb_columns()"
            " where schema_name in ('main', 'shop') and not internal order by all"
        ).fetchall()
    assert found == [
        ("main", "item", "_syncline_version", "BIGINT"),
        ("main", "item", "amount", "DECIMAL(12,2)"),
        ("main", "item", "id", "BIGINT"),
        ("main", "item", "name", "VARCHAR"),
        ("shop", "pair", "Region", "VARCHAR"),
        ("shop", "pair", "_syncline_version", "BIGINT"),
        ("shop", "pair", "code", "UUID"),
        ("shop", "pair", "note", "VARCHAR"),
        ("shop", "pair", "version", "INTEGER"),
    ]


def test_values_read_as_duckdb_users_expect(store: DuckDBStore, path: Path) -> None:
    store.open("orders")
    store.migrate(VALUES)
    identity = bytes.fromhex("00112233445566778899aabbccddeeff")
    row = [1, True, 2, 3, 1.5, 2.5, Decimal("1.25"), b"\x01", identity, 20_000, 86_400_000_000, 0, 2**63 - 1]
    store.apply(work(Rows(VALUES).upsert(7, *row, '{"a": {"b": [1, 12345678901234567890]}}', "text")))
    store.close()
    with duckdb.connect(str(path)) as connection:
        found = connection.execute(
            "select uuid::varchar, date::varchar, time::varchar, timestamptz::varchar, json->'$.a.b[1]',"
            ' numeric::varchar, "select" from "values"'
        ).fetchall()
    assert found == [
        (
            "00112233-4455-6677-8899-aabbccddeeff",
            "2024-10-04",
            "24:00:00",
            "infinity",
            "12345678901234567890",
            "1.2500000000",
            "text",
        )
    ]


def test_an_existing_table_is_adopted_and_its_rows_are_the_oldest(store: DuckDBStore, path: Path) -> None:
    _prepare(
        path,
        "create table item (id integer, name varchar, mine varchar default 'x')",
        "insert into item values (1, 'before', 'a'), (2, 'before', 'b'), (2, 'doubled', 'c'), (3, 'stale', 'd')",
        "alter table item alter id type bigint",
    )
    store.open("orders")
    assert store.migrate(ITEM) is None
    store.apply(work(Rows().upsert(5, 1, "now", Decimal(1)).partial(5, 2, None, Decimal(2), unchanged=["name"])))
    found = contents(store)
    assert found[1] == ("now", Decimal("1.00"), 5)
    assert found[2][1:] == (Decimal("2.00"), 5)
    assert found[3] == ("stale", None, 0)
    store.apply(work(Rows(), truncated=4))
    assert sorted(contents(store)) == [1, 2]
    store.close()
    with duckdb.connect(str(path)) as connection:
        assert connection.execute("select id, mine from item order by id").fetchall() == [(1, "x"), (2, "x")]


def test_wider_types_are_adopted_and_read_back_in_their_own(store: DuckDBStore, path: Path) -> None:
    _prepare(path, "create table item (id hugeint, name varchar, amount decimal(20,4))")
    store.open("orders")
    store.migrate(ITEM)
    store.apply(work(Rows().upsert(5, 1, "one", Decimal("1.25")).delete(5, 2)))
    assert contents(store) == {1: ("one", Decimal("1.25"), 5)}
    store.close()


@pytest.mark.parametrize(
    ("statement", "says"),
    [
        ("create table item (id bigint, name varchar, amount double)", "Column amount"),
        ("create table item (id varchar)", "Column id"),
        ("create table item (name varchar)", "key column id"),
        ("create table item (id bigint, mine integer not null)", "Column mine"),
        ("create table item (id bigint, _syncline_version varchar)", "_syncline_version"),
        ("create view item as select 1 as id", "is a view"),
    ],
)
def test_a_table_that_does_not_fit_is_refused_by_name(
    store: DuckDBStore, path: Path, statement: str, says: str
) -> None:
    _prepare(path, statement)
    store.open("orders")
    with pytest.raises(Misconfigured, match=says):
        store.migrate(ITEM)
    store.migrate(PAIR)
    store.close()


def test_names_that_duckdb_cannot_tell_apart_are_refused(store: DuckDBStore) -> None:
    store.open("orders")
    store.migrate(ITEM)
    with pytest.raises(Misconfigured, match=r"Tables public.item and public.Item"):
        store.migrate(msgspec.structs.replace(ITEM, name="Item"))
    columns = (*ITEM.columns, Column("Name", "text", "text"))
    with pytest.raises(Misconfigured, match="Columns name and Name"):
        store.migrate(TableSchema("public", "twice", columns))
    with pytest.raises(Misconfigured, match="_syncline_version"):
        store.migrate(TableSchema("public", "ours", (*ITEM.columns, Column("_Syncline_Version", "int8", "bigint"))))
    with pytest.raises(Misconfigured, match="Namespace main"):
        store.migrate(TableSchema("main", "item", ITEM.columns))
    store.close()


def test_two_sources_cannot_fill_one_table(store: DuckDBStore, path: Path) -> None:
    store.open("orders")
    store.migrate(ITEM)
    other = DuckDBStore(DuckDBConfig(path=path), "other")
    other.open("people")
    with pytest.raises(Misconfigured, match="already filled by source orders"):
        other.migrate(ITEM)
    other.migrate(PAIR)
    other.close()
    store.close()


def test_a_row_inserted_by_hand_cannot_become_a_duplicate(store: DuckDBStore, path: Path) -> None:
    store.open("orders")
    store.migrate(ITEM)
    store.apply(work(Rows().upsert(5, 1, "one", None).upsert(5, 2, "two", None)))
    store.close()
    _prepare(path, "insert into item select * from item", "insert into item values (3, 'mine', null, null)")
    store.open("orders")
    store.migrate(ITEM)
    store.apply(work(Rows().upsert(6, 1, "ONE", None).partial(6, 2, None, Decimal(1), unchanged=["name"])))
    assert contents(store) == {1: ("ONE", None, 6), 2: ("two", Decimal("1.00"), 6), 3: ("mine", None, 0)}
    store.close()


def test_rows_that_break_a_constraint_of_an_adopted_table_are_found(store: DuckDBStore, path: Path) -> None:
    _prepare(path, "create table item (id bigint, name varchar check (name <> 'bad'), amount decimal(12,2))")
    store.open("orders")
    store.migrate(ITEM)
    rows = Rows()
    for i in range(50):
        rows.upsert(5, i, "bad" if i in (7, 31) else "good", None)
    with pytest.raises(Rejected) as refused:
        store.apply(work(rows))
    assert refused.value.rows == (7, 31)
    assert contents(store) == {}
    store.close()


def test_an_unknown_bookkeeping_format_is_refused(store: DuckDBStore, path: Path) -> None:
    store.open("orders")
    store.close()
    _prepare(path, "insert into syncline.format values (99)")
    with pytest.raises(Misconfigured, match="newer Syncline"):
        store.open("orders")
