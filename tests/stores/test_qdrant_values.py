"""Values in payloads: each comes back exactly, by way of the shard's own storage, and stands there in a stable form."""

from __future__ import annotations

import math
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import qdrant_edge as edge
from edge_here import EdgeHere
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from syncline.change import Column, TableSchema, arrow_type
from syncline.errors import Misconfigured, Rejected
from syncline.stores import Folded, TableWork
from syncline.stores.qdrant import QdrantConfig, QdrantStore
from syncline.stores.qdrant.names import collection_of
from syncline.stores.qdrant.texts import date_text, moment, moment_text
from syncline.stores.qdrant.values import decode, encode
from syncline.testing.store_suite import ITEM, VALUES, Rows, contents, work

DOCUMENT = TableSchema(
    "public", "document", (Column("id", "int4", "integer", key=True), Column("body", "json", "jsonb"))
)
_DAY_US = 86_400_000_000


def there_and_back(column: Column, values: list[Any], storage: pa.DataType | None = None) -> list[Any]:
    array = (
        pa.array(values, storage).view(arrow_type(column.type))
        if storage
        else pa.array(values, arrow_type(column.type))
    )
    encoded = encode(column, array)
    back = decode(column, encoded.values, [encoded.exact.get(i) for i in range(len(values))])
    return (back.view(storage) if storage else back).to_pylist()


@given(st.lists(st.none() | st.integers(-(2**63) + 1, 2**63 - 1)))
def test_every_timestamp_comes_back_as_it_was(values: list[int | None]) -> None:
    for logical in ("timestamp", "timestamptz"):
        assert there_and_back(Column("x", logical, ""), values, pa.int64()) == values


@given(st.lists(st.none() | st.integers(-(2**31) + 1, 2**31 - 1)))
def test_every_date_comes_back_as_it_was(values: list[int | None]) -> None:
    assert there_and_back(Column("x", "date", ""), values, pa.int32()) == values


@given(st.integers(-719_162, 2_932_896))
def test_the_calendar_is_that_of_numpy(days: int) -> None:
    assert date_text(days) == str(np.datetime64(days, "D")).rjust(10, "0")
    assert moment(date_text(days), 1, 32) == days
    assert moment_text(days * _DAY_US + 1, zoned=True) == f"{date_text(days)}T00:00:00.000001Z"


def test_years_before_christ_and_after_9999_are_read_as_postgresql_writes_them() -> None:
    assert moment("0044-03-15 BC", 1, 32) == -735_160
    assert date_text(-735_160) == "0044-03-15 BC"
    assert moment("10000-01-01 00:00:00+00", _DAY_US, 64) == 253_402_300_800_000_000
    assert moment("294276-12-31 23:59:59", _DAY_US, 64) is None


def test_doubles_come_back_to_the_last_bit_though_qdrant_rounds_them(quick_folder: Path) -> None:
    rng = np.random.default_rng(7)
    bits = rng.integers(0, 2**64, 4_000, dtype=np.uint64).view(np.float64)
    usual = np.concatenate([rng.standard_normal(2_000), rng.random(2_000) * 1e9, np.round(rng.random(2_000) * 1e6, 2)])
    values = np.concatenate([bits[np.isfinite(bits)], usual])
    store = EdgeHere(QdrantConfig(path=quick_folder), "values")
    store.open("orders")
    store.migrate(VALUES)
    rows = Rows(VALUES)
    with np.errstate(over="ignore"):
        singles = values.astype(np.float32).tolist()
    for key, (single, value) in enumerate(zip(singles, values.tolist(), strict=True)):
        rows.upsert(100, key, None, None, None, single, value, *[None] * 9)
    store.apply(work(rows))
    found = contents(store, VALUES)
    payloads = [p.payload for p in _all(store, "values")]
    store.close()
    assert [found[k][4] for k in range(len(values))] == values.tolist()
    assert [found[k][3] for k in range(len(values))] == singles
    # Plain numbers of a few digits need no text beside them.
    plain = [p for p in payloads if p.get("float8") is not None and p["id"] >= len(values) - 2_000]
    assert len(plain) == 2_000
    assert not any("_syncline_exact" in p for p in plain)


def _all(store: QdrantStore, collection: str) -> list[Any]:
    shard = store._points._shard(collection)  # type: ignore[attr-defined]
    return shard.scroll(edge.ScrollRequest(limit=100_000, with_payload=True))[0]


@pytest.fixture
def store(quick_folder: Path) -> Any:
    store = EdgeHere(QdrantConfig(path=quick_folder), "values")
    store.open("orders")
    store.migrate(DOCUMENT)
    yield store
    store.close()


def test_documents_can_be_filtered_into_and_come_back_as_text(store: QdrantStore) -> None:
    texts = [
        '{"a": 1, "tags": ["x", "y"], "meta": {"lang": "en", "deep": {"n": null}}}',
        '{"a": 12345678901234567890}',  # beyond 64 bits
        '{"price": 1.50}',  # jsonb keeps the zero
        '{"b": 1, "a": 1}',  # json, not jsonb: another order of keys
        "null",
        '"x"',
        "[]",
        "1e400",
        '{"a": 0.1}',
        "[" * 200 + "]" * 200,
        '"\\ud800"',
        '{"": 1, "ä": "\\u0000"}',
    ]
    rows = Rows(DOCUMENT)
    for key, text in enumerate(texts):
        rows.upsert(100, key, text)
    store.apply(work(rows.upsert(100, 99, None)))
    found = contents(store, DOCUMENT)
    assert [found[k][0] for k in range(len(texts))] == texts
    assert found[99] == (None, 100)
    shard = store._points._shard("document")  # type: ignore[attr-defined]
    deep = edge.Filter(must=[edge.FieldCondition(key="body.meta.lang", match=edge.MatchValue("en"))])
    assert [p.id for p in shard.scroll(edge.ScrollRequest(limit=9, filter=deep))[0]] == [0]
    store.apply(work(Rows(DOCUMENT).partial(110, 2, None, unchanged=["body"])))
    assert contents(store, DOCUMENT)[2] == ('{"price": 1.50}', 110)


def test_text_that_is_no_text_is_parked_and_its_neighbours_apply(store: QdrantStore) -> None:
    store.migrate(ITEM)
    names = pa.StringArray.from_buffers(
        3, pa.py_buffer(np.array([0, 2, 4, 6], np.int32)), pa.py_buffer(b"ok\xff\xfeok")
    )
    columns = [pa.array([1, 2, 3]), names, pa.nulls(3, pa.decimal128(12, 2)), pa.array([100] * 3)]
    batch = pa.RecordBatch.from_arrays(columns, names=["id", "name", "amount", "version"])
    with pytest.raises(Rejected) as refused:
        store.apply(work(TableWork(ITEM, Folded(batch))))
    assert refused.value.rows == (1,)
    store.apply(work(TableWork(ITEM, Folded(batch.take(pa.array([0, 2]))))))
    assert list(contents(store)) == [1, 3]


def test_large_values_and_odd_texts_are_kept(store: QdrantStore) -> None:
    store.migrate(ITEM)
    large, odd = "ü" * 25_000_000, "\0\x01\U0001f600'\"\\"
    store.apply(work(Rows().upsert(100, 1, large, None).upsert(100, 2, odd, None)))
    found = contents(store)
    assert found[1][0] == large
    assert found[2][0] == odd


# Names as PostgreSQL takes them: at most 63 bytes, no NUL.
names = st.text(
    st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1, max_size=15
) | st.sampled_from(["..", ".", "a/b", 'a"b', "a`b", "select", "syncline", "_syncline", "a~2F", "*", "../../x", "a b"])


@pytest.mark.slow
@pytest.mark.timeout(1800)
@settings(max_examples=10_000)
@given(namespace=names, name=names)
def test_hostile_identifiers_become_collections_of_their_own(namespace: str, name: str) -> None:
    collection = collection_of(TableSchema(namespace, name, ITEM.columns))
    assert collection not in ("", ".", "..", "syncline")
    assert not set(collection) & set('<>:"/\\|?*\0\x1f')
    assert not collection.startswith(".")
    assert len(collection.encode()) <= 255


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(table=names, column=names)
def test_hostile_identifiers_change_nothing_but_their_own_collection(
    quick_folder: Path, table: str, column: str
) -> None:
    folder = Path(tempfile.mkdtemp(dir=quick_folder))
    schema = TableSchema("public", table, (Column("id", "int8", "bigint", key=True), Column(column, "text", "text")))
    store = QdrantStore(QdrantConfig(path=folder / "inside", door=False), "hostile")
    store.open("orders")
    store.migrate(ITEM)
    store.apply(work(Rows().upsert(100, 1, "one", None)))
    if column == "id" or table == "item":
        store.close()
        return
    store.migrate(schema)
    store.apply(work(Rows(schema).upsert(100, 1, column).upsert(100, 2, table)))
    store.apply(work(Rows(schema).delete(110, 1)))
    assert contents(store, schema) == {2: (table, 100)}
    assert contents(store) == {1: ("one", None, 100)}
    store.close()
    assert [p.name for p in folder.iterdir()] == ["inside"]
    assert len(list((folder / "inside" / "collections").iterdir())) == 3


def test_errors_never_tell_values(store: QdrantStore) -> None:
    store.migrate(VALUES)
    secret = "5555444433332222"
    with pytest.raises(Rejected) as refused:
        store.apply(work(Rows(VALUES, text=("numeric",)).upsert(100, 1, *[None] * 5, secret * 4, *[None] * 8)))
    assert secret not in str(refused.value)
    shard = store._points._shard("document")  # type: ignore[attr-defined]
    shard.update(edge.UpdateOperation.create_dense_vector("late", 3, edge.Distance.Dot))
    broken = TableSchema("public", secret, (*DOCUMENT.columns,))
    with pytest.raises(Misconfigured) as unknown:
        store.apply(work(Rows(broken).upsert(100, 1, f'"{secret}"')))
    assert f'"{secret}"' not in str(unknown.value)


def test_numbers_that_are_none_are_words() -> None:
    values = [math.nan, math.inf, -math.inf, 1.5, None]
    encoded = encode(Column("x", "float8", ""), pa.array(values, pa.float64()))
    assert encoded.values == ["NaN", "Infinity", "-Infinity", 1.5, None]


def test_an_exact_text_counts_only_beside_the_value_that_it_belongs_to() -> None:
    number, body = Column("x", "float8", "double precision"), Column("b", "json", "json")
    assert decode(number, [0.1, 0.30000000000000004], ["0.30000000000000004"] * 2).to_pylist() == [0.1, 0.1 + 0.2]
    found = decode(body, [{"a": 1.5, "b": 2}, {"a": 1.5, "b": 3}], ['{"b":2, "a":1.50}'] * 2).to_pylist()
    assert found == ['{"b":2, "a":1.50}', '{"a": 1.5, "b": 3}']
