"""The Neo4j store and its server: what is refused and why, what was there before, readers, many writers at once."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from contextlib import closing
from functools import cache
from typing import Any
from uuid import uuid4

import msgspec
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from neo4j import exceptions

from stores.graph_tables import LINK, ORDER, PERSON
from stores.graphs import REAL, GraphDatabase, graph
from syncline.change import Column, Cursor, Position, TableSchema
from syncline.errors import Misconfigured, Receded, Rejected, SynclineError, Unavailable
from syncline.shape import End, Node, Relationship
from syncline.stores import Folded, TableWork, Work
from syncline.stores.neo4j import Neo4jConfig, Neo4jStore
from syncline.stores.neo4j.copy import Neo4jCopy
from syncline.stores.neo4j.cypher import labels_of, pattern, quote
from syncline.stores.neo4j.database import Database, translate
from syncline.testing.store_suite import ITEM, Rows, contents, work

__all__ = ["graph"]

WRITERS = 16


@pytest.fixture
def store(graph: GraphDatabase) -> Iterator[Neo4jStore]:
    store = graph.store()
    store.open("orders")
    store.migrate(ITEM)
    yield store
    store.close()


# ------------------------------------------------------------------------------------------------ the server


def test_nobody_at_the_address_is_unavailable() -> None:
    store = Neo4jStore(Neo4jConfig(uri="bolt://127.0.0.1:1", connect_timeout_s=2), "graph")
    with pytest.raises(Unavailable, match=r"127\.0\.0\.1:1"):
        store.open("orders")
    assert [(f.code, f.severity) for f in Neo4jStore.check(store.config)] == [("SL-UNAVAILABLE", "error")]


@pytest.mark.parametrize("wrong", [{"password": "not the one"}, {"database": "nowhere"}])
def test_wrong_settings_are_told_apart_and_no_password_is_shown(graph: GraphDatabase, wrong: dict[str, Any]) -> None:
    if "password" in wrong and graph.at.auth is None:
        wrong = {"database": "nowhere"}  # it asks for no password
    config = Neo4jConfig.model_validate({**graph.config.model_dump(), **wrong})
    with pytest.raises(Misconfigured) as refused:
        Neo4jStore(config, "graph").open("orders")
    told = str(refused.value)
    assert "not the one" not in told
    assert ("user and password" if "password" in wrong else "nowhere") in told
    (found,) = Neo4jStore.check(config)
    assert (found.code, found.severity) == ("SL-NEO4J", "error")


def test_a_sound_server_is_found_sound_and_left_as_it_is(graph: GraphDatabase) -> None:
    before = graph.query("MATCH (n) RETURN count(n)"), sorted(graph.query("SHOW CONSTRAINTS YIELD name RETURN name"))
    found = list(Neo4jStore.check(graph.config))
    assert [(f.code, f.severity) for f in found if f.severity != "info"] == [("SL-NEO4J", "ok")]
    after = graph.query("MATCH (n) RETURN count(n)"), sorted(graph.query("SHOW CONSTRAINTS YIELD name RETURN name"))
    assert after == before


def test_a_newer_format_is_refused(store: Neo4jStore, graph: GraphDatabase) -> None:
    graph.query("MATCH (s:_SynclineStore) SET s.format = 99")
    with pytest.raises(Misconfigured, match="newer Syncline"):
        graph.store().open("orders")
    assert ("SL-NEO4J", "error") in [(f.code, f.severity) for f in Neo4jStore.check(graph.config)]


@pytest.mark.parametrize("uri", ["http://somewhere:7687", "bolt://user:secret@somewhere", "bolt://"])
def test_addresses_that_are_none_are_refused_by_the_configuration(uri: str) -> None:
    with pytest.raises(ValueError, match="uri"):
        Neo4jConfig(uri=uri)


@pytest.mark.parametrize("graph", REAL, indirect=True)
def test_a_large_graph_is_read_whole_however_long_it_takes_while_a_hanging_write_is_ended(graph: GraphDatabase) -> None:
    config = graph.config.model_copy(update={"transaction_timeout_s": 0.2})
    store = graph.store()
    store.open("orders")
    store.migrate(ITEM)
    assert store._db is not None
    store._db.config = config  # opening may take longer
    graph.query("UNWIND range(1, 25000) AS i CREATE (:item {id: i, name: 'x', _syncline_version: 1})")
    with closing(Neo4jCopy(config)) as copy, closing(Database(config)) as database:
        scans = [store.scan(ITEM), copy.scan(ITEM)]
        read = [next(scan).num_rows for scan in scans]
        assert sum(read) < 50_000
        # A transaction under the limit, begun behind them, is ended by the server: by then they were older than it.
        with pytest.raises(Unavailable, match=r"transaction_timeout_s \(0\.2\)"), database.transaction() as tx:
            tx.read("UNWIND range(1, 1000000000) AS i WITH i WHERE i % 7 = 8 RETURN count(i)")
        assert [first + sum(b.num_rows for b in scan) for first, scan in zip(read, scans, strict=True)] == [25_000] * 2
    store.close()


def test_a_limit_of_the_server_that_ended_a_transaction_is_named() -> None:
    config = Neo4jConfig(uri="bolt://somewhere")
    for code, limit in (
        ("Neo.ClientError.Transaction.TransactionTimedOut", "the server's db.transaction.timeout"),
        (
            "Neo.ClientError.Transaction.TransactionTimedOutClientConfiguration",
            "the target's transaction_timeout_s (300)",
        ),
    ):
        error = exceptions.ClientError("it took 301 s")
        error._neo4j_code = code
        told = translate(error, config)
        assert isinstance(told, Unavailable)
        assert told.remedy.endswith(f"raise {limit}.")
        assert "bolt://somewhere" in told.message


# ------------------------------------------------------------------------------------------------ what is there


def test_the_constraint_is_online_before_the_first_write(store: Neo4jStore, graph: GraphDatabase) -> None:
    found = graph.query("SHOW INDEXES YIELD labelsOrTypes, properties, state RETURN labelsOrTypes, properties, state")
    assert [["item"], ["id"], "ONLINE"] in found


def test_nodes_that_are_there_are_adopted_replaced_and_swept(graph: GraphDatabase) -> None:
    graph.query("UNWIND range(1, 3) AS i CREATE (:item {id: i, name: 'old', mine: i})")
    store = graph.store()
    store.open("orders")
    assert store.migrate(ITEM) is None
    assert contents(store) == dict.fromkeys((1, 2, 3), ("old", None, 0))
    store.apply(work(Rows().upsert(100, 1, "new", None).partial(100, 2, None, None, unchanged=["name"])))
    store.apply(work(TableWork(ITEM, Folded(), 50)))
    assert contents(store) == {1: ("new", None, 100), 2: ("old", None, 100)}
    assert sorted(graph.query("MATCH (n:item) RETURN n.id, n.mine")) == [[1, 1], [2, 2]]
    store.close()


def test_what_cannot_be_adopted_says_what_to_do(graph: GraphDatabase) -> None:
    store = graph.store()
    store.open("orders")
    name = f"doubled_{uuid4().hex}"  # never constrained before
    schema = msgspec.structs.replace(ITEM, name=name)
    graph.query(f"CREATE (:{name} {{id: 1}}), (:{name} {{id: 1}})")
    with pytest.raises(Misconfigured, match="duplicates"):
        store.migrate(schema)
    graph.query(f"MATCH (n:{name}) DELETE n")
    assert store.migrate(schema) is None
    store.close()


def test_a_source_does_not_take_the_table_of_another(store: Neo4jStore, graph: GraphDatabase) -> None:
    other = graph.store()
    other.open("people")
    with pytest.raises(Misconfigured, match="source orders"):
        other.migrate(ITEM)
    other.close()


# ------------------------------------------------------------------------------------------------ wrong data


def test_what_a_constraint_of_the_user_refuses_is_found_and_never_told(store: Neo4jStore, graph: GraphDatabase) -> None:
    schema = msgspec.structs.replace(ITEM, name="guarded")
    store.migrate(schema)
    graph.query("CREATE CONSTRAINT guarded_name IF NOT EXISTS FOR (n:guarded) REQUIRE n.name IS UNIQUE")
    store.apply(work(Rows(schema).upsert(100, 1, "a secret", None), n=1))
    rows = Rows(schema).upsert(110, 2, "b", None).upsert(110, 3, "a secret", None).upsert(110, 4, "c", None)
    # ArcadeDB says at the commit only that a key is there twice, and not whose: the work is held up, and nothing lost.
    with pytest.raises(Rejected if graph.real else Unavailable) as refused:
        store.apply(work(rows, n=2))
    if isinstance(refused.value, Rejected):
        assert refused.value.rows == (1,)
    assert "secret" not in str(refused.value)
    assert "secret" not in repr(refused.value)
    assert contents(store, schema) == {1: ("a secret", None, 100)}
    store.apply(work(Rows(schema).upsert(110, 2, "b", None).upsert(110, 4, "c", None), n=2))
    assert len(contents(store, schema)) == 3


TEXTS = TableSchema(
    "public",
    "texts",
    (Column("id", "text", "text", key=True), Column("body", "text", "text"), Column("tags", "texts", "text[]")),
)


def test_long_keys_and_lists_with_null_are_refused_and_large_and_odd_texts_are_not(store: Neo4jStore) -> None:
    store.migrate(TEXTS)
    large = "ß" * 25_000_000  # fifty megabytes
    rows = (
        Rows(TEXTS)
        .upsert(100, "large", large, ["a", ""])
        .upsert(100, "k" * 9_000, "x", None)
        .upsert(100, "nul", "a\0b", [])
        .upsert(100, "null", None, ["a", None])
    )
    with pytest.raises(Rejected) as refused:
        store.apply(work(rows))
    assert refused.value.rows == (1, 3)
    store.apply(
        work(
            Rows(TEXTS)
            .upsert(100, "large", large, ["a", ""])
            .upsert(100, "nul", "a\0b", [])
            .upsert(100, "k" * 7_400, "x", None)
        )
    )
    assert contents(store, TEXTS) == {
        "large": (large, ["a", ""], 100),
        "nul": ("a\0b", [], 100),
        "k" * 7_400: ("x", None, 100),
    }


VECTORS = TableSchema(
    "public",
    "vectors",
    (
        Column("id", "int8", "bigint", key=True),
        Column("dense", "vector", "vector"),
        Column("sparse", "sparse", "sparsevec"),
        Column("free", "text", "numeric"),
    ),
)


def test_vectors_come_back_as_they_went_in(store: Neo4jStore) -> None:
    store.migrate(VECTORS)
    dense = pa.array([0.1, -0.0, float("inf"), 1e-45], pa.float32()).to_pylist()
    sparse = {"indices": [1, 2**32 - 1], "values": pa.array([0.1, 2.5], pa.float32()).to_pylist()}
    digits = "123456789012345678901234567890.123456789012345678901234567890"
    rows = Rows(VECTORS).upsert(100, 1, dense, sparse, digits).upsert(100, 2, [], None, "NaN")
    store.apply(work(rows.upsert(100, 3, None, {"indices": [], "values": []}, None)))
    assert contents(store, VECTORS) == {
        1: (dense, sparse, digits, 100),
        2: ([], None, "NaN", 100),
        3: (None, {"indices": [], "values": []}, None, 100),
    }


# ------------------------------------------------------------------------------------------------ names


_HOSTILE = st.text(
    st.one_of(st.sampled_from("`\\u0060'\"{}()[]:;/*-$ \n\t~"), st.characters(codec="utf-8")), min_size=1, max_size=30
)


@cache
def _hostile_names() -> list[str]:
    """Ten thousand and some more, the same for all servers of a worker."""
    names: list[str] = ["match", "n", "`", "``", "a`b", "`) DETACH DELETE (n) //", "a\\u0060b", "\\", "a\0", "'", '"']

    @settings(max_examples=10_000, database=None)
    @given(_HOSTILE)
    def collect(name: str) -> None:
        names.append(name)

    collect()
    return list(dict.fromkeys(names))


def _quotable(name: str) -> bool:
    try:
        quote(name)
    except Misconfigured:
        return False
    return True


@pytest.mark.slow
def test_ten_thousand_hostile_names_are_refused_or_name_themselves(graph: GraphDatabase) -> None:
    names = _hostile_names()
    kept = [name for name in names if _quotable(name)]
    assert 5_000 < len(kept) < len(names)
    with graph.driver() as driver, driver.session(database=graph.at.database) as session:
        for start in range(0, len(kept), 250):
            part = kept[start : start + 250]
            told = session.run("WITH {" + ", ".join(f"{quote(n)}: {i}" for i, n in enumerate(part)) + "} AS m RETURN m")
            assert told.single(strict=True)[0] == {n: i for i, n in enumerate(part)}


@pytest.mark.parametrize("graph", REAL, indirect=True)
def test_hostile_labels_types_and_properties_are_what_is_written(graph: GraphDatabase) -> None:
    """Some of them, for Neo4j never forgets a name that was used. ArcadeDB takes fewer (docs/stores/neo4j.md)."""
    kept = [name for name in _hostile_names() if _quotable(name)]
    chosen = [*kept[:8], *kept[8 :: len(kept) // 200]]
    statement = " ".join(
        f"CREATE (a{i}{labels_of((name,))} {pattern((name,), (str(i),))})-[:{quote(name)}]->(b{i}{labels_of((name,))})"
        for i, name in enumerate(chosen)
    )
    with (
        graph.driver() as driver,
        driver.session(database=graph.at.database) as session,
        session.begin_transaction() as transaction,
    ):
        transaction.run(statement).consume()  # type: ignore[arg-type]
        found = transaction.run("MATCH (a)-[e]->(b) RETURN labels(a), properties(a), type(e), labels(b)").values()
        transaction.rollback()
    found.sort(key=lambda row: next(iter(row[1].values())))
    assert found == [[[name], {name: i}, name, [name]] for i, name in enumerate(chosen)]


@pytest.mark.parametrize("label", ["MATCH", "a`b", "`) DETACH DELETE (n) //", "Ünï çode", "'; \" --"])
def test_hostile_labels_types_and_columns_touch_nothing_but_their_own(
    store: Neo4jStore, graph: GraphDatabase, label: str
) -> None:
    store.apply(work(Rows().upsert(100, 1, "untouched", None)))
    end = End((f"{label} 1",), label, (label,))
    schema = TableSchema("public", label, (Column(label, "text", "text", key=True), Column("$n", "text", "text")), Node((label,)))  # fmt: skip  # noqa: E501
    join = TableSchema(
        "odd",
        label,
        (Column(f"{label} 1", "text", "text", key=True), Column(f"{label} 2", "text", "text", key=True)),
        Relationship(end, End((f"{label} 2",), label, (label,)), f"{label} to"),
    )
    for each in (schema, join):
        store.migrate(each)
    store.apply(work(Rows(join).upsert(100, "x", "y"), Rows(schema).upsert(100, "x", "1").upsert(100, "y", None)))
    assert contents(store, schema) == {"x": ("1", 100), "y": (None, 100)}
    assert contents(store, join) == {("x", "y"): (100,)}
    assert contents(store) == {1: ("untouched", None, 100)}
    assert graph.query("MATCH ()-[e]->() RETURN type(e)") == [[f"{label} to"]]


# ------------------------------------------------------------------------------------------------ readers


def test_a_reader_sees_rows_cursor_tombstones_and_truncations(store: Neo4jStore, graph: GraphDatabase) -> None:
    reader = Neo4jStore.reader(graph.config)
    assert reader.cursor("orders") is None
    assert reader.recorded("public.item") == ITEM
    assert reader.recorded("public.nothing") is None
    store.apply(work(Rows().upsert(100, 1, "one", None).delete(101, 2).delete(90, 3), n=4))
    cursor = reader.cursor("orders")
    assert cursor is not None
    assert cursor.position == Position("log", 4)
    assert contents(reader) == {1: ("one", None, 100)}  # type: ignore[arg-type]
    assert reader.buried(ITEM, 95).to_pylist() == [{"id": 2, "version": 101}]
    assert reader.swept("public.item") == (0, 0)
    store.apply(work(TableWork(ITEM, Folded(), 99)))
    store.purge("orders", 95)
    assert reader.swept("public.item") == (99, 95)
    assert reader.buried(ITEM, 0).num_rows == 1
    reader.close()
    reader.close()


def test_a_large_truncation_is_applied_in_several_transactions(store: Neo4jStore) -> None:
    n = 21_000
    ids = pa.array(range(n), pa.int64())
    batch = pa.RecordBatch.from_arrays(
        [ids, pa.nulls(n, pa.string()), pa.nulls(n, pa.decimal128(12, 2)), pa.array([100] * n, pa.int64())],
        names=["id", "name", "amount", "version"],
    )
    store.apply(Work((TableWork(ITEM, Folded(batch)),), Cursor("orders", Position("log", 1))))
    store.apply(work(Rows().upsert(200, 7, "behind it", None), truncated=150))
    assert contents(store) == {7: ("behind it", None, 200)}


# ------------------------------------------------------------------------------------------------ many writers


def _insist(store: Neo4jStore, step: Work, met: list[SynclineError]) -> None:
    """Apply until it is applied, as the engine does. It opens a store anew that somebody else brought back."""
    while True:
        try:
            store.apply(step)
            return
        except Receded:
            store.open(step.cursor.source)
        except Unavailable as error:
            met.append(error)


def _at_once(writers: list[Any]) -> None:
    failures: list[BaseException] = []

    def guarded(writer: Any) -> None:
        try:
            writer()
        except BaseException as error:
            failures.append(error)
            raise

    threads = [threading.Thread(target=guarded, args=(writer,)) for writer in writers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


def _links(w: int, version: int) -> dict[int, tuple[str, int, str, str, int]]:
    """What a version of a writer's join table holds. Half of the persons are not there."""
    rng = random.Random(w * 100 + version)
    return {i: ("PACKED", rng.randrange(40), f"o{rng.randrange(20)}", f"{w}", version) for i in range(30)}


@pytest.mark.slow
def test_sixteen_writers_that_lock_one_another_out_all_arrive(graph: GraphDatabase) -> None:
    """Sixteen sources, each with a join table of its own between the same nodes and stubs, locked in any order."""
    first = graph.store()
    first.open("people")
    for schema in (PERSON, ORDER):
        first.migrate(schema)
    people, orders = Rows(PERSON), Rows(ORDER)
    for i in range(20):
        people.upsert(1, i, "x", None)
        orders.upsert(1, f"o{i}", *[None] * 6)
    first.apply(work(people, orders, source="people"))
    first.close()
    met: list[SynclineError] = []
    schemas = [msgspec.structs.replace(LINK, name=f"link{w}") for w in range(WRITERS)]
    for w, schema in enumerate(schemas):
        store = graph.store()
        store.open(f"source {w}")
        store.migrate(schema)
        store.close()

    def writer(w: int) -> None:
        store = graph.store()
        store.open(f"source {w}")
        for version in range(2, 8):
            rows = Rows(schemas[w])
            for i, (kind, person, order, note, _) in _links(w, version).items():
                rows.upsert(version, i, kind, person, order, note)
            _insist(store, work(rows, source=f"source {w}", n=version), met)
        store.close()

    _at_once([lambda w=w: writer(w) for w in range(WRITERS)])
    real = sum(person < 20 for w in range(WRITERS) for _, person, *_ in _links(w, 7).values())
    shown = graph.query("MATCH (:Person)-[e:PACKED]->(:Order) RETURN count(e), min(e._syncline_version)")
    waiting = graph.query("MATCH (:_SynclineStub)-[e:_SYNCLINE_WAITING]->(:Order) RETURN count(e)")
    assert (shown, waiting) == ([[real, 7]], [[WRITERS * 30 - real]])
    for w, schema in enumerate(schemas):
        store = graph.store()
        cursor = store.open(f"source {w}")
        assert cursor is not None
        assert cursor.position.n == 7
        assert contents(store, schema) == _links(w, 7)
        store.close()
    if graph.real:  # ArcadeDB knows no locks, and so no deadlocks
        assert any("DeadlockDetected" in str(error) for error in met), f"they never met: {len(met)}"


@pytest.mark.slow
def test_sixteen_writers_of_one_source_leave_the_newest_of_everything(graph: GraphDatabase) -> None:
    """Two engines at once must not happen; when it does, the guard holds, and nobody writes half a work."""
    first = graph.store()
    first.open("shop")
    for schema in (PERSON, LINK):
        first.migrate(schema)
    steps = []
    for version in range(1, 13):
        people, links = Rows(PERSON), Rows(LINK)
        for i in range(6):
            if (version + i) % 5 == 0:
                people.delete(version, i)
            else:
                people.upsert(version, i, f"at {version}", (i + version) % 6)
            links.upsert(version, i, "CHECKED", (i * version) % 6, "o1", f"{version}")
        steps.append(work(people, links, source="shop", n=version))

    def writer(w: int) -> None:
        store = graph.store()
        store.open("shop")
        mine = list(steps)
        random.Random(w).shuffle(mine)
        for step in mine:
            _insist(store, step, [])
        store.close()

    _at_once([lambda w=w: writer(w) for w in range(WRITERS)])
    assert contents(first, PERSON) == {i: ("at 12", (i + 12) % 6, 12) for i in range(6) if (12 + i) % 5}
    assert contents(first, LINK) == {i: ("CHECKED", (i * 12) % 6, "o1", "12", 12) for i in range(6)}
    first.close()
