"""Mapped tables as points: vectors, payloads, tombstones, and what becomes of a collection when the mapping changes."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pytest
import qdrant_edge as edge
from edge_here import EdgeHere

from syncline.change import Column, Cursor, Position, TableSchema, arrow_type
from syncline.errors import Misconfigured, Rejected
from syncline.shape import Keys, PayloadIndex, Point, Vector
from syncline.stores import Folded, TableWork, Work
from syncline.stores.qdrant import QdrantConfig, QdrantStore, open_reader
from syncline.stores.qdrant.points import Dense, Sparse, Spec, Stored
from syncline.testing.store_suite import ITEM, Rows, contents, work

SHAPE = Point(
    "articles",
    (
        Vector("dense", "embedding", 3),
        Vector("other", "second", 2, "euclid"),
        Vector("words", "terms", sparse=True),
    ),
    (PayloadIndex("lang", "keyword"), PayloadIndex("published", "datetime")),
)
ARTICLE = TableSchema(
    "public",
    "article",
    (
        Column("id", "int8", "bigint", key=True),
        Column("title", "text", "text"),
        Column("lang", "text", "text"),
        Column("published", "timestamptz", "timestamptz"),
        Column("embedding", "vector", "vector(3)"),
        Column("second", "vector", "real[]"),
        Column("terms", "sparse", "sparsevec"),
    ),
    SHAPE,
)
WORDS = {"indices": [1, 7], "values": [0.5, -2.0]}
UNIT = [0.6000000238418579, 0.800000011920929, 0.0]


def article(key: int, title: str = "t", embedding: Any = UNIT, second: Any = (1.0, 2.0), terms: Any = WORDS) -> Any:
    return key, title, "en", 10**15, embedding, None if second is None else list(second), terms


@pytest.fixture
def folder(quick_folder: Path) -> Path:
    return quick_folder / "points"


@pytest.fixture
def store(folder: Path) -> Iterator[QdrantStore]:
    store = EdgeHere(QdrantConfig(path=folder), "points")
    store.open("orders")
    store.migrate(ARTICLE)
    yield store
    store.close()


def collection(store: QdrantStore, name: str = "articles") -> edge.EdgeShard:
    """The shard itself, for a look that does not go through our own reading."""
    return store._points._shard(name)  # type: ignore[attr-defined]


def seen(store: QdrantStore, *ids: int, name: str = "articles") -> dict[int, tuple[dict[str, Any], dict[str, Any]]]:
    found = collection(store, name).retrieve(list(ids), True, True)
    return {p.id: (p.payload, p.vector) for p in found}


def nearest(store: QdrantStore, vector: Sequence[float], using: str = "dense") -> list[Any]:
    query = edge.QueryRequest(query=edge.Query.Nearest(list(vector), using=using), limit=10)
    return [p.id for p in collection(store).query(query)]


def reshaped(**changes: Any) -> TableSchema:
    return msgspec.structs.replace(ARTICLE, shape=msgspec.structs.replace(SHAPE, **changes))


# ------------------------------------------------------------------------------------------------------------ content


def test_a_row_becomes_a_point_with_named_vectors_and_a_payload(store: QdrantStore) -> None:
    store.apply(work(Rows(ARTICLE).upsert(100, *article(5)).upsert(100, *article(6, second=None, terms=None))))
    payload, vectors = seen(store, 5)[5]
    assert payload == {
        "id": 5,
        "title": "t",
        "lang": "en",
        "published": "2001-09-09T01:46:40.000000Z",
        "_syncline_version": 100,
    }
    assert (vectors["dense"], vectors["other"]) == (UNIT, [1.0, 2.0])
    assert (vectors["words"].indices, vectors["words"].values) == ([1, 7], [0.5, -2.0])
    assert set(seen(store, 6)[6][1]) == {"dense"}
    indexes = collection(store).info().payload_schema
    kinds = {"_syncline_version": "Integer", "_syncline_deleted": "Bool", "lang": "Keyword", "published": "Datetime"}
    assert {n: str(i.data_type).rpartition(".")[2] for n, i in indexes.items()} == kinds


def test_vectors_come_back_exactly_also_those_that_qdrant_normalises_or_sorts(store: QdrantStore) -> None:
    long, mixed = [3.0, 0.1, -4e10], {"indices": [9, 2, 4], "values": [1.5, 0.1, 0.0]}
    long = np.array(long, np.float32).tolist()
    store.apply(work(Rows(ARTICLE).upsert(100, *article(1, "a", long, (5.0, -0.0), mixed))))
    store.apply(work(Rows(ARTICLE).upsert(100, *article(2, "b", [0.0, 0.0, 0.0], None, {"indices": [], "values": []}))))
    assert seen(store, 1)[1][1]["dense"] != long
    found = contents(store, ARTICLE)
    mixed["values"] = np.array(mixed["values"], np.float32).tolist()
    assert found[1][3:6] == (long, [5.0, -0.0], mixed)
    assert found[2][3:6] == ([0.0, 0.0, 0.0], None, {"indices": [], "values": []})
    # A payload-only change keeps what is kept beside them.
    kept = ["embedding", "second", "terms", "published"]
    store.apply(work(Rows(ARTICLE).partial(110, *article(1, "c", None, None, None), unchanged=kept)))
    assert contents(store, ARTICLE)[1] == ("c", "en", 10**15, long, [5.0, -0.0], mixed, 110)


def test_a_payload_only_change_leaves_the_vectors_alone(store: QdrantStore) -> None:
    store.apply(work(Rows(ARTICLE).upsert(100, *article(1))))
    # What an engine must not do is to send vectors again: one that somebody changed meanwhile stays as it is.
    moved = edge.PointVectors(1, {"other": [8.0, 9.0]})
    collection(store).update(edge.UpdateOperation.update_vectors([moved]))
    kept = ["embedding", "second", "terms"]
    store.apply(work(Rows(ARTICLE).partial(110, *article(1, "new", None, None, None), unchanged=kept)))
    payload, vectors = seen(store, 1)[1]
    assert (payload["title"], payload["_syncline_version"], vectors["other"]) == ("new", 110, [8.0, 9.0])


def test_a_changed_vector_keeps_the_others(store: QdrantStore) -> None:
    store.apply(work(Rows(ARTICLE).upsert(100, *article(1))))
    kept = ["title", "lang", "published", "second", "terms"]
    store.apply(work(Rows(ARTICLE).partial(110, *article(1, None, [1.0, 0.0, 0.0], None, None), unchanged=kept)))
    assert contents(store, ARTICLE)[1] == ("t", "en", 10**15, [1.0, 0.0, 0.0], [1.0, 2.0], WORDS, 110)
    gone = [c.name for c in ARTICLE.columns if c.name not in ("id", "embedding")]
    store.apply(work(Rows(ARTICLE).partial(120, *article(1, None, None, None, None), unchanged=gone)))
    assert contents(store, ARTICLE)[1] == ("t", "en", 10**15, None, [1.0, 2.0], WORDS, 120)


def test_a_moved_row_takes_its_vectors_along(store: QdrantStore) -> None:
    long = [3.0, 4.0, 0.0]
    store.apply(work(Rows(ARTICLE).upsert(100, *article(1, "one", long)).upsert(100, *article(2, "two"))))
    kept = ["embedding", "second", "terms"]
    swap = work(
        Rows(ARTICLE)
        .partial(110, *article(1, "1", None, None, None), unchanged=kept, origin=(2,))
        .partial(110, *article(2, "2", None, None, None), unchanged=kept, origin=(1,))
    )
    for _ in range(2):
        store.apply(swap)
        found = contents(store, ARTICLE)
        assert (found[1][0], found[1][3]) == ("1", UNIT)
        assert (found[2][0], found[2][3]) == ("2", long)


def test_a_payload_only_change_behind_a_truncation_of_its_row_keeps_the_vectors(store: QdrantStore) -> None:
    store.apply(work(Rows(ARTICLE).upsert(100, *article(1))))
    kept = ["embedding", "second", "terms"]
    partial = Rows(ARTICLE).partial(110, *article(1, "new", None, None, None), unchanged=kept)
    store.apply(work(partial, truncated=105))
    assert contents(store, ARTICLE)[1] == ("new", "en", 10**15, UNIT, [1.0, 2.0], WORDS, 110)


def test_rows_with_impossible_vectors_are_parked_and_their_neighbours_apply(store: QdrantStore) -> None:
    rows = (
        Rows(ARTICLE)
        .upsert(100, *article(1))
        .upsert(100, *article(2, embedding=[1.0, 2.0]))
        .upsert(100, *article(3, embedding=[1.0, float("nan"), 0.0]))
        .upsert(100, *article(4, terms={"indices": [3, 3], "values": [1.0, 1.0]}))
        .upsert(100, *article(5, terms={"indices": [3], "values": [float("inf")]}))
        .upsert(100, *article(6, second=[1.0, None]))
    )
    with pytest.raises(Rejected) as refused:
        store.apply(work(rows))
    assert refused.value.rows == (1, 2, 3, 4, 5)
    assert "2 dimensions instead of 3" in refused.value.reason
    assert contents(store, ARTICLE) == {}
    store.apply(work(Rows(ARTICLE).upsert(100, *article(1))))
    assert list(contents(store, ARTICLE)) == [1]


def test_of_a_flood_all_rows_with_impossible_vectors_are_named_at_once_and_the_others_apply(store: QdrantStore) -> None:
    """It is made into points piece by piece, while those before are written."""
    impossible = (3, 1_200, 1_201, 2_999)
    flood, sound = Rows(ARTICLE), Rows(ARTICLE)
    for place in range(3_000):
        version = 400 - place % 7
        if place in impossible:
            flood.upsert(version, *article(place, embedding=[1.0, 2.0]))
        else:
            flood.upsert(version, *article(place))
            sound.upsert(version, *article(place))
    with pytest.raises(Rejected) as refused:
        store.apply(work(flood, n=1))
    assert refused.value.rows == impossible
    store.apply(work(sound, n=2))
    found = contents(store, ARTICLE)
    assert len(found) == 2_996
    assert all(row[-1] == 400 - key % 7 for key, row in found.items())


# --------------------------------------------------------------------------------------------------------- tombstones


def test_tombstones_are_invisible_to_searches_and_to_the_documented_filter(store: QdrantStore) -> None:
    store.apply(work(Rows(ARTICLE).upsert(100, *article(1)).upsert(100, *article(2))))
    store.apply(work(Rows(ARTICLE).delete(110, 2).delete(110, 3)))
    assert nearest(store, UNIT) == [1]
    payload, vectors = seen(store, 2)[2]
    assert payload == {"_syncline_version": 110, "_syncline_deleted": True, "_syncline_key": [2]}
    assert vectors == {}
    visible = edge.Filter(must=[edge.IsEmptyCondition("_syncline_deleted")])
    found, _ = collection(store).scroll(edge.ScrollRequest(limit=10, filter=visible))
    assert [p.id for p in found] == [1]
    # A late write below the tombstone is held off by Qdrant itself, whatever the engine believes.
    points = store._points
    points.upsert("articles", [Stored(2, {"_syncline_version": 105}, {"dense": UNIT})], [105])
    points.overwrite("articles", [Stored(2, {"_syncline_version": 105})], [105])
    assert seen(store, 2)[2] == (payload, {})


def test_the_shards_own_guard_is_exact_for_each_version_of_a_call(store: QdrantStore) -> None:
    points = store._points
    points.put("articles", [Stored(k, {"_syncline_version": 100 + k, "who": "old"}) for k in (1, 2, 3)])
    versions = [100, 102, 104]
    late = [Stored(k, {"_syncline_version": v, "who": "new"}) for k, v in zip((1, 2, 3), versions, strict=True)]
    points.upsert("articles", late, versions)
    assert [seen(store, k)[k][0]["who"] for k in (1, 2, 3)] == ["old", "new", "new"]


# ---------------------------------------------------------------------------------------------------------------- ids


def test_ids_are_keys_where_qdrant_has_such_ids(store: QdrantStore) -> None:
    store.migrate(ITEM)
    store.apply(work(Rows().upsert(100, 2**63 - 1, "a", None).upsert(100, 0, "b", None).upsert(100, -5, "c", None)))
    found, _ = collection(store, "item").scroll(edge.ScrollRequest(limit=10, with_payload=True))
    rows = {str(p.id): p.payload for p in found if "id" in p.payload}
    assert {k: p["name"] for k, p in rows.items() if k.isdigit()} == {"0": "b", str(2**63 - 1): "a"}
    namespace = uuid.UUID("6f3b6a52-5d3c-5d0e-9a43-3c1f0c6d7b1a")  # as docs/stores/qdrant.md says
    assert rows[str(uuid.uuid5(namespace, "public.item\0[-5]"))]["id"] == -5
    store.apply(work(Rows().delete(110, -5)))
    assert set(contents(store)) == {0, 2**63 - 1}


# ------------------------------------------------------------------------------------------------- changing a mapping


def test_a_vector_of_another_size_is_refused_where_it_is_not_ours(folder: Path) -> None:
    store = EdgeHere(QdrantConfig(path=folder), "points")
    store.open("orders")
    store._points.create("articles", Spec({"dense": Dense(4, "cosine")}))
    with pytest.raises(Misconfigured, match="has 4 dimensions, and the mapping says 3") as refused:
        store.migrate(ARTICLE)
    assert refused.value.code == "SL-QDRANT-VECTOR"
    assert "delete this one" in refused.value.remedy
    store.close()


def test_a_collection_that_is_there_is_adopted_and_its_points_are_older_than_everything(folder: Path) -> None:
    store = EdgeHere(QdrantConfig(path=folder), "points")
    store.open("orders")
    spec = Spec({"dense": Dense(3, "cosine"), "yours": Dense(2, "dot")}, indexes={"lang": "keyword"})
    store._points.create("articles", spec)
    mine = {"id": 1, "title": "mine", "lang": 7, "extra": "x"}
    store._points.put("articles", [Stored(1, mine, {"dense": UNIT}), Stored(2, {"other": "things"})])
    assert store.migrate(ARTICLE) is None
    assert contents(store, ARTICLE) == {1: ("mine", None, None, UNIT, None, None, 0)}
    store.apply(work(Rows(ARTICLE).upsert(100, *article(1))))
    store.apply(work(Rows(ARTICLE).table(truncated=99)))
    assert list(contents(store, ARTICLE)) == [1]
    assert store._points.retrieve("articles", [2], vectors=False) == []
    assert set(store._points.spec("articles").dense) == {"dense", "other", "yours"}  # type: ignore[union-attr]
    store.close()


def test_another_collection_replaces_the_former_one(store: QdrantStore) -> None:
    store.apply(work(Rows(ARTICLE).upsert(100, *article(1))))
    elsewhere = reshaped(collection="papers")
    assert store.migrate(elsewhere) == ARTICLE
    assert store._points.spec("articles") is None
    assert contents(store, elsewhere) == {}
    store.apply(work(Rows(elsewhere).upsert(100, *article(1))))
    assert list(contents(store, elsewhere)) == [1]


def test_a_collection_that_was_there_before_stays_with_what_is_not_ours(folder: Path) -> None:
    store = EdgeHere(QdrantConfig(path=folder), "points")
    store.open("orders")
    store._points.create("articles", Spec({"dense": Dense(3, "cosine"), "yours": Dense(2, "dot")}))
    store.migrate(ARTICLE)
    store.apply(work(Rows(ARTICLE).upsert(100, *article(1)).delete(101, 2)))
    store._points.put("articles", [Stored(9, {"note": "mine"}, {"yours": [1.0, 2.0]})])
    elsewhere = reshaped(collection="papers")
    assert store.migrate(elsewhere) == ARTICLE
    assert set(store._points.spec("articles").dense) >= {"yours"}  # type: ignore[union-attr]
    assert collection(store).info().points_count == 1
    assert seen(store, 9)[9][0] == {"note": "mine"}
    store.close()


def test_a_key_whose_type_is_only_called_otherwise_keeps_its_points(store: QdrantStore) -> None:
    store.apply(work(Rows(ARTICLE).upsert(100, *article(1))))
    first, *others = ARTICLE.columns
    renamed = msgspec.structs.replace(ARTICLE, columns=(msgspec.structs.replace(first, source_type="int8"), *others))
    store.migrate(renamed)
    assert list(contents(store, renamed)) == [1]


def test_vectors_come_go_and_change_their_size_with_the_mapping(store: QdrantStore) -> None:
    store.apply(work(Rows(ARTICLE).upsert(100, *article(1, embedding=[3.0, 4.0, 0.0]))))
    wider = reshaped(
        vectors=(Vector("dense", "embedding", 4), Vector("words", "terms", sparse=True)), indexes=SHAPE.indexes[:1]
    )
    wider = msgspec.structs.replace(wider, columns=tuple(c for c in ARTICLE.columns if c.name != "second"))
    assert store.migrate(wider) == ARTICLE
    spec = store._points.spec("articles")
    assert spec is not None
    assert spec.dense == {"dense": Dense(4, "cosine")}
    assert set(spec.indexes) == {"_syncline_version", "_syncline_deleted", "lang"}
    assert contents(store, wider) == {1: ("t", "en", 10**15, None, WORDS, 100)}
    store.apply(work(Rows(wider).upsert(110, 1, "u", "en", None, [1.0, 0.0, 0.0, 0.0], None)))
    assert contents(store, wider) == {1: ("u", "en", None, [1.0, 0.0, 0.0, 0.0], None, 110)}
    assert store.migrate(ARTICLE) == wider
    assert contents(store, ARTICLE) == {1: ("u", "en", None, None, None, None, 110)}


def test_another_key_begins_with_an_empty_collection(store: QdrantStore) -> None:
    store.apply(work(Rows(ARTICLE).upsert(100, *article(1))))
    columns = tuple(msgspec.structs.replace(c, key=c.name == "title") for c in ARTICLE.columns)
    rekeyed = msgspec.structs.replace(ARTICLE, columns=columns)
    assert store.migrate(rekeyed) == ARTICLE
    assert contents(store, rekeyed) == {}


def test_tables_sources_and_forms_that_do_not_fit_are_refused_with_the_way_out(
    store: QdrantStore, folder: Path
) -> None:
    cases: list[tuple[TableSchema, str]] = [
        (msgspec.structs.replace(ARTICLE, name="other"), "share collection articles"),
        (msgspec.structs.replace(ITEM, shape=Keys(())), "no point"),
        (msgspec.structs.replace(ITEM, shape=Point("a/b")), "can't be put into a collection"),
        (msgspec.structs.replace(ITEM, shape=Point("syncline")), "can't be put into a collection"),
        (msgspec.structs.replace(ITEM, shape=Point("x", (Vector("v", "name"),))), "no size"),
        (msgspec.structs.replace(ITEM, shape=Point("x", (Vector("_syncline", "name", 3),))), "can't have a vector"),
        (msgspec.structs.replace(ITEM, shape=Point("x", (), (PayloadIndex('a"b', "text"),))), "payload index"),
        (msgspec.structs.replace(ITEM, columns=(*ITEM.columns, Column("_syncline_key", "text", "text"))), "uses in"),
    ]
    for schema, why in cases:
        with pytest.raises(Misconfigured, match=why):
            store.migrate(schema)
    other = EdgeHere(QdrantConfig(path=folder), "points")
    other.open("people")
    with pytest.raises(Misconfigured, match="already filled by source orders"):
        other.migrate(ARTICLE)
    other.close()


def test_a_collection_that_somebody_removed_is_read_again(store: QdrantStore) -> None:
    store.apply(work(Rows(ARTICLE).upsert(100, *article(1))))
    store._points.drop("articles")
    assert store.migrate(ARTICLE) is None
    assert contents(store, ARTICLE) == {}


# ------------------------------------------------------------------------------------------------------------- reader


def test_a_reader_searches_while_the_engine_has_the_folder(store: QdrantStore, folder: Path) -> None:
    rows = Rows(ARTICLE).upsert(100, *article(1, "near")).upsert(100, *article(2, "far", [0.0, 0.0, 1.0]))
    store.apply(work(rows.upsert(100, *article(3, "gone"))))
    store.apply(work(Rows(ARTICLE).delete(110, 3)))
    with open_reader(folder) as reader:
        hits = reader.search("articles", UNIT, using="dense")
        assert [(h.id, h.payload["title"]) for h in hits] == [(1, "near"), (2, "far")]
        assert hits[0].score == pytest.approx(1)
        assert [h.id for h in reader.search("articles", UNIT, using="dense", where={"title": "far"})] == [2]
        assert [h.id for h in reader.search("articles", Sparse([7], [-1.0]), using="words", limit=1)] != []
        assert [p.id for p in reader.points("articles", [1, 3], vectors=True)] == [1]
        with pytest.raises(Exception, match="can't be searched") as refused:
            reader.search("articles", [1.0], using="dense")
        assert refused.value.code == "SL-QUERY"  # type: ignore[attr-defined]
        with pytest.raises(Misconfigured, match="gone"):
            reader.search("nothing", UNIT, using="dense")
    store.close()
    with open_reader(folder) as reader:
        assert [h.id for h in reader.search("articles", UNIT, using="dense", limit=1)] == [1]


def test_a_long_table_takes_many_pages_through_the_door(store: QdrantStore, folder: Path) -> None:
    n = 2_500
    ids = pa.array(range(n), pa.int64())
    vectors = pa.FixedSizeListArray.from_arrays(pa.array([0.0, 1.0, 0.0] * n, pa.float32()), 3)
    empty = [pa.nulls(n, arrow_type(c.type)) for c in ARTICLE.columns]
    columns = [ids, *empty[1:4], vectors.cast(pa.list_(pa.float32())), *empty[5:], pa.array([100] * n, pa.int64())]
    batch = pa.RecordBatch.from_arrays(columns, names=[*(c.name for c in ARTICLE.columns), "version"])
    store.apply(Work((TableWork(ARTICLE, Folded(batch)),), Cursor("orders", Position("log", 1))))
    reader = QdrantStore.reader(QdrantConfig(path=folder))
    found = pa.Table.from_batches(list(reader.scan(ARTICLE)))
    reader.close()
    assert sorted(found["id"].to_pylist()) == list(range(n))
    assert found["embedding"].to_pylist() == [[0.0, 1.0, 0.0]] * n
