"""Names that want to be something else: in DuckDB they are names, and touch nothing but their own table."""

from __future__ import annotations

import tempfile
from pathlib import Path

import duckdb
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from syncline.change import Column, TableSchema
from syncline.errors import Misconfigured
from syncline.stores.duckdb import DuckDBConfig, DuckDBStore
from syncline.stores.duckdb.sql import quote
from syncline.testing.store_suite import ITEM, Rows, contents, work

_SIGNS = st.sampled_from("abz\"'%$\\;.()[]{}-/*`_:äß€😀\n\t")
# What PostgreSQL takes for a name: no NUL, and no half of a surrogate pair, which UTF-8 does not have.
_ANY = st.characters(exclude_characters="\0", exclude_categories=["Cs"])
_WORDS = st.sampled_from(
    [
        "select",
        "main",
        "temp",
        "i",
        "n",
        "version",
        "_syncline",
        "excluded",
        "%s",
        "$1",
        "a''b",
        'a"b',
        'x"; drop table item; --',
    ]
)
_NAMES = st.text(_SIGNS | _ANY, min_size=1, max_size=24) | _WORDS


@pytest.mark.slow
@settings(max_examples=10_000, database=None)
@given(name=_NAMES)
def test_ten_thousand_names_are_quoted_as_duckdb_reads_them(name: str) -> None:
    found = _CONNECTION.execute(f"select 1 as {quote(name)}").description
    assert found is not None
    assert found[0][0] == name


_CONNECTION = duckdb.connect()


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(table=_NAMES, column=_NAMES, key=_NAMES, namespace=_NAMES)
def test_hostile_names_change_nothing_but_their_own_table(
    quick_folder: Path, table: str, column: str, key: str, namespace: str
) -> None:
    assume(key.lower() != column.lower())
    columns = (Column(key, "text", "text", key=True), Column(column, "text", "text"))
    schema = TableSchema(namespace, table, columns)
    path = Path(tempfile.mkdtemp(dir=quick_folder)) / "copy.duckdb"
    store = DuckDBStore(DuckDBConfig(path=path, door=False, threads=1), "hostile")
    store.open("orders")
    store.migrate(ITEM)
    store.apply(work(Rows().upsert(100, 1, "bystander", None)))
    try:
        store.migrate(schema)
    except Misconfigured:
        return
    finally:
        assert contents(store) == {1: ("bystander", None, 100)}
    store.apply(work(Rows(schema).upsert(105, "k", column).upsert(105, "l", table).upsert(105, "m", "x")))
    moved = Rows(schema).delete(106, "k").partial(106, "n", None, unchanged=[column], origin=("l",)).delete(106, "l")
    store.apply(work(moved))
    assert contents(store, schema) == {"n": (table, 106), "m": ("x", 105)}
    store.purge("orders", 107)
    store.apply(work(Rows(schema), truncated=105))
    assert list(contents(store, schema)) == ["n"]
    assert contents(store) == {1: ("bystander", None, 100)}
    store.close()
