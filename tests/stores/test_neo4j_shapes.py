"""What rows become in the graph: nodes, the relationships of their references, relationships of join tables."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import closing
from decimal import Decimal
from typing import Any

import msgspec
import pytest

from stores.graph_tables import ADDRESS, EVENT, KNOWS, LINK, ORDER, PERSON, edges, expected_edges, nodes
from stores.graphs import GraphDatabase, graph
from syncline.change import Column, TableSchema
from syncline.errors import Gap, Misconfigured, Receded, Rejected
from syncline.shape import End, Node, Point, Reference
from syncline.stores.memory import MemoryConfig, MemoryStore
from syncline.stores.neo4j import Neo4jStore
from syncline.testing.store_suite import Rows, contents, work
from syncline.testing.store_works import key_batch, rows_of

__all__ = ["graph"]

TABLES = (PERSON, ADDRESS, ORDER, KNOWS, LINK)


@pytest.fixture
def store(graph: GraphDatabase) -> Iterator[Neo4jStore]:
    store = graph.store()
    store.open("orders")
    for schema in TABLES:
        store.migrate(schema)
    yield store
    store.close()


def managers(graph: GraphDatabase) -> list[list[Any]]:
    return sorted(graph.query("MATCH (a:Person)-[:MANAGED_BY]->(b:Person) RETURN a.id, b.id"))


def visible(graph: GraphDatabase) -> list[list[Any]]:
    """Labels of all nodes that carry one that is not internal, counted."""
    return sorted(
        graph.query(
            "MATCH (n) WHERE NOT any(l IN labels(n) WHERE l STARTS WITH '_Syncline')"
            " UNWIND labels(n) AS l RETURN l, count(*)"
        )
    )


# ------------------------------------------------------------------------------------------------ references


def test_a_self_reference_works_in_one_batch_in_any_order(store: Neo4jStore, graph: GraphDatabase) -> None:
    store.apply(work(Rows(PERSON).upsert(100, 3, "c", 1).upsert(100, 1, "a", 2).upsert(100, 2, "b", 2)))
    assert managers(graph) == [[1, 2], [2, 2], [3, 1]]
    assert contents(store, PERSON) == {1: ("a", 2, 100), 2: ("b", 2, 100), 3: ("c", 1, 100)}


def test_a_changed_foreign_key_removes_the_old_relationship(store: Neo4jStore, graph: GraphDatabase) -> None:
    store.apply(work(Rows(PERSON).upsert(100, 1, "a", None).upsert(100, 2, "b", None).upsert(100, 3, "c", 1)))
    store.apply(work(Rows(PERSON).upsert(110, 3, "c", 2)))
    assert managers(graph) == [[3, 2]]
    store.apply(work(Rows(PERSON).upsert(120, 3, "c", None)))
    assert managers(graph) == []
    assert contents(store, PERSON)[3] == ("c", None, 120)


def test_an_older_row_changes_no_relationship(store: Neo4jStore, graph: GraphDatabase) -> None:
    store.apply(work(Rows(PERSON).upsert(100, 1, "a", None).upsert(100, 2, "b", None).upsert(120, 3, "c", 1)))
    store.apply(work(Rows(PERSON).upsert(110, 3, "late", 2)))
    assert managers(graph) == [[3, 1]]


def test_a_node_that_has_not_come_yet_is_waited_for_unseen(store: Neo4jStore, graph: GraphDatabase) -> None:
    store.apply(work(Rows(PERSON).upsert(100, 3, "c", 1)))
    assert visible(graph) == [["Person", 1]]
    assert graph.query("MATCH (p:Person) WHERE p.id = 1 RETURN p") == []
    assert graph.query("MATCH (:Person)-[e:MANAGED_BY]-() RETURN e") == []
    assert contents(store, PERSON) == {3: ("c", 1, 100)}
    store.apply(work(Rows(PERSON).upsert(110, 1, "a", None)))
    assert managers(graph) == [[3, 1]]
    assert graph.query("MATCH (s:_SynclineStub) RETURN s") == []
    assert contents(store, PERSON) == {1: ("a", None, 110), 3: ("c", 1, 100)}


def test_a_deleted_parent_that_comes_back_gets_its_relationships_back(store: Neo4jStore, graph: GraphDatabase) -> None:
    store.apply(work(Rows(PERSON).upsert(100, 1, "a", None).upsert(100, 2, "b", 1).upsert(100, 3, "c", 1)))
    store.apply(work(Rows(KNOWS).upsert(100, 2, 1, 2020)))
    store.apply(work(Rows(PERSON).delete(110, 1)))
    assert managers(graph) == []
    assert contents(store, PERSON) == {2: ("b", 1, 100), 3: ("c", 1, 100)}
    assert contents(store, KNOWS) == {(2, 1): (2020, 100)}
    assert visible(graph) == [["Person", 2]]
    store.apply(work(Rows(PERSON).upsert(120, 3, "c", None).upsert(130, 1, "again", 3)))
    assert managers(graph) == [[1, 3], [2, 1]]
    assert graph.query("MATCH (a:Person)-[e:KNOWS]->(b:Person) RETURN a.id, b.id, e.since") == [[2, 1, 2020]]


def test_deleting_both_ends_in_any_order_leaves_nothing_visible(store: Neo4jStore, graph: GraphDatabase) -> None:
    people = Rows(PERSON).upsert(100, 1, "a", 2).upsert(100, 2, "b", 1).upsert(100, 3, "c", 3)
    store.apply(work(people, Rows(KNOWS).upsert(100, 1, 2, 1).upsert(100, 3, 3, 2)))
    store.apply(work(Rows(PERSON).delete(110, 1).delete(110, 2).delete(110, 3)))
    assert visible(graph) == []
    assert edges(graph) == {}
    assert contents(store, KNOWS) == {(1, 2): (1, 100), (3, 3): (2, 100)}
    store.apply(work(Rows(PERSON).upsert(120, 1, "a", 3).upsert(120, 2, "b", None).upsert(120, 3, "c", None)))
    assert managers(graph) == [[1, 3]]
    assert sorted(graph.query("MATCH (a)-[:KNOWS]->(b) RETURN a.id, b.id")) == [[1, 2], [3, 3]]
    store.purge("orders", 500)
    assert graph.query("MATCH (s:_SynclineStub) RETURN s") == []


def test_two_references_of_one_type_to_one_table_are_kept_apart(store: Neo4jStore, graph: GraphDatabase) -> None:
    store.apply(
        work(
            Rows(ADDRESS).upsert(100, "de", "1", "Berlin").upsert(100, "fr", "2", "Paris"),
            Rows(ORDER).upsert(100, "o1", None, "de", "1", "fr", "2", Decimal("1.50")),
        )
    )
    assert contents(store, ORDER) == {"o1": (None, "de", "1", "fr", "2", Decimal("1.50"), 100)}
    store.apply(work(Rows(ORDER).upsert(110, "o1", None, "fr", "2", "fr", "2", None)))
    assert contents(store, ORDER) == {"o1": (None, "fr", "2", "fr", "2", None, 110)}
    query = "MATCH (o:Order)-[:ADDRESS]->(a:Address) RETURN a.country"
    assert graph.query(query) == [["fr"], ["fr"]]
    store.apply(work(Rows(ORDER).upsert(120, "o1", None, "fr", "2", None, None, None)))
    assert contents(store, ORDER) == {"o1": (None, "fr", "2", None, None, None, 120)}
    assert graph.query(query) == [["fr"]]


def test_half_a_compound_key_refers_to_nothing_and_is_kept(store: Neo4jStore, graph: GraphDatabase) -> None:
    store.apply(work(Rows(ORDER).upsert(100, "o1", 7, "de", None, None, "x", None)))
    assert contents(store, ORDER) == {"o1": (7, "de", None, None, "x", None, 100)}
    assert visible(graph) == [["Order", 1]]
    store.apply(work(Rows(ORDER).upsert(110, "o1", 7, "de", "1", None, None, None)))
    assert contents(store, ORDER) == {"o1": (7, "de", "1", None, None, None, 110)}


def test_a_partial_leaves_the_relationships_that_it_does_not_carry(store: Neo4jStore, graph: GraphDatabase) -> None:
    store.apply(work(Rows(PERSON).upsert(100, 1, "a", None).upsert(100, 2, "b", 1)))
    store.apply(work(Rows(PERSON).partial(110, 2, "new", None, unchanged=["manager_id"])))
    assert managers(graph) == [[2, 1]]
    store.apply(work(Rows(PERSON).partial(120, 2, None, 2, unchanged=["name"])))
    assert managers(graph) == [[2, 2]]
    assert contents(store, PERSON)[2] == ("new", 2, 120)


def test_a_partial_of_half_a_compound_reference_is_completed(store: Neo4jStore, graph: GraphDatabase) -> None:
    store.apply(work(Rows(ADDRESS).upsert(100, "de", "1", None).upsert(100, "de", "2", None)))
    store.apply(work(Rows(ORDER).upsert(100, "o1", None, "de", "1", "de", "1", Decimal(1))))
    partial = Rows(ORDER).partial(110, "o1", None, None, "2", None, None, None, unchanged=["ship_country", "bill_country", "bill_code", "total"])  # fmt: skip  # noqa: E501
    store.apply(work(partial))
    assert contents(store, ORDER) == {"o1": (None, "de", "2", "de", "1", Decimal("1.00"), 110)}
    assert sorted(graph.query("MATCH (:Order)-[:ADDRESS]->(a) RETURN a.code")) == [["1"], ["2"]]


def test_a_row_that_moves_to_another_key_takes_its_relationships_along(store: Neo4jStore, graph: GraphDatabase) -> None:
    store.apply(work(Rows(PERSON).upsert(100, 1, "a", None).upsert(100, 2, "b", 1).upsert(100, 3, "c", 2)))
    moved = Rows(PERSON).partial(110, 9, "b2", None, unchanged=["manager_id"], origin=(2,)).delete(110, 2)
    store.apply(work(moved))
    assert managers(graph) == [[9, 1]]
    assert contents(store, PERSON) == {1: ("a", None, 100), 3: ("c", 2, 100), 9: ("b2", 1, 110)}


def test_keys_and_references_of_every_shape_of_time_find_one_another(graph: GraphDatabase) -> None:
    store = graph.store()
    store.open("orders")
    store.migrate(EVENT)
    infinity, ancient = 2**63 - 1, -70_000_000_000_000_000
    rows = Rows(EVENT).upsert(100, 0, "Alarm", infinity).upsert(100, infinity, "Notice", ancient)
    store.apply(work(rows.upsert(100, ancient, None, 0)))
    assert graph.query("MATCH (:Event)-[e:AFTER]->(:Event) RETURN count(e)") == [[3]]
    assert contents(store, EVENT) == {
        0: ("Alarm", infinity, 100),
        infinity: ("Notice", ancient, 100),
        ancient: (None, 0, 100),
    }
    store.close()


# ------------------------------------------------------------------------------------------------ labels


def test_labels_follow_their_column_and_keep_key_and_relationships(graph: GraphDatabase) -> None:
    store = graph.store()
    store.open("orders")
    store.migrate(EVENT)
    store.apply(work(Rows(EVENT).upsert(100, 1, "Alarm", None).upsert(100, 2, "Notice", 1).upsert(100, 3, None, 2)))
    assert visible(graph) == [["Alarm", 1], ["Event", 3], ["Notice", 1], ["Thing", 3]]
    graph.query("MATCH (a:Alarm), (b:Notice) CREATE (a)-[:MINE]->(b)")
    store.apply(work(Rows(EVENT).upsert(110, 1, "Notice", None).upsert(110, 2, None, 1).upsert(110, 3, "Alarm", 2)))
    assert visible(graph) == [["Alarm", 1], ["Event", 3], ["Notice", 1], ["Thing", 3]]
    assert contents(store, EVENT) == {1: ("Notice", None, 110), 2: (None, 1, 110), 3: ("Alarm", 2, 110)}
    assert graph.query("MATCH (:Event)-[e:AFTER|MINE]->(:Event) RETURN count(e)") == [[3]]
    with pytest.raises(Rejected) as refused:
        store.apply(work(Rows(EVENT).upsert(120, 1, "Notice", None).upsert(120, 4, "Admin", None)))
    assert refused.value.rows == (1,)
    assert "kind" in str(refused.value)
    assert "Admin" not in str(refused.value)
    store.close()


# ------------------------------------------------------------------------------------------------ join tables


def test_a_label_goes_when_its_column_becomes_null(graph: GraphDatabase) -> None:
    columns = (Column("id", "int8", "bigint", key=True), Column("role", "text", "text"))
    person = TableSchema("public", "person", columns, Node(("Person",), (), "role", ("Author", "Learner")))
    with closing(graph.store()) as store:
        store.open("orders")
        store.migrate(person)
        store.apply(work(Rows(person).upsert(100, 1, "Author").upsert(100, 2, "Learner")))
        store.apply(work(Rows(person).upsert(110, 1, None)))
        assert contents(store, person) == {1: (None, 110), 2: ("Learner", 100)}
        assert graph.query("MATCH (n:Person) RETURN n.id, size(labels(n)) ORDER BY n.id") == [[1, 1], [2, 2]]
        store.apply(work(Rows(person).upsert(120, 1, "Learner")))
        assert contents(store, person)[1] == ("Learner", 120)


def test_rows_of_a_join_table_wait_for_both_ends(store: Neo4jStore, graph: GraphDatabase) -> None:
    store.apply(work(Rows(LINK).upsert(100, 1, "PACKED", 1, "o1", "n").upsert(100, 2, "CHECKED", 1, None, None)))
    assert visible(graph) == []
    assert contents(store, LINK) == {1: ("PACKED", 1, "o1", "n", 100), 2: ("CHECKED", 1, None, None, 100)}
    store.apply(work(Rows(PERSON).upsert(110, 1, "a", None)))
    assert edges(graph) == {}
    assert contents(store, LINK) == {1: ("PACKED", 1, "o1", "n", 100), 2: ("CHECKED", 1, None, None, 100)}
    store.apply(work(Rows(ORDER).upsert(120, "o1", None, None, None, None, None, None)))
    assert graph.query("MATCH (p:Person)-[e:PACKED]->(o:Order) RETURN p.id, e.note, o.number") == [[1, "n", "o1"]]
    found = store.fetch(LINK, key_batch(LINK, (1,), (2,), (3,)))
    assert dict(rows_of(LINK, found)) == contents(store, LINK)


def test_ends_and_type_of_a_relationship_change(store: Neo4jStore, graph: GraphDatabase) -> None:
    people = Rows(PERSON).upsert(100, 1, "a", None).upsert(100, 2, "b", None)
    orders = Rows(ORDER).upsert(100, "o1", *[None] * 6).upsert(100, "o2", *[None] * 6)
    store.apply(work(people, orders, Rows(LINK).upsert(100, 1, "PACKED", 1, "o1", "x")))
    for version, kind, person, order in (
        (110, "PACKED", 2, "o2"),
        (120, "CHECKED", 2, "o2"),
        (130, "CHECKED", 9, "o1"),
    ):
        store.apply(work(Rows(LINK).upsert(version, 1, kind, person, order, None)))
        assert contents(store, LINK) == {1: (kind, person, order, None, version)}
        found = graph.query("MATCH (p:Person)-[e:PACKED|CHECKED]->(o:Order) RETURN type(e), p.id, o.number")
        assert found == ([[kind, person, order]] if person != 9 else [])
    store.apply(work(Rows(LINK).delete(140, 1)))
    store.apply(work(Rows(LINK).upsert(135, 1, "PACKED", 1, "o1", "late")))
    assert contents(store, LINK) == {}
    assert edges(graph) == {}
    with pytest.raises(Rejected) as refused:
        store.apply(work(Rows(LINK).upsert(150, 1, "PACKED", 1, "o1", None).upsert(150, 2, None, 1, "o1", None)))
    assert refused.value.rows == (1,)


def test_a_partial_of_a_join_table_keeps_what_it_does_not_carry(store: Neo4jStore) -> None:
    store.apply(work(Rows(LINK).upsert(100, 1, "PACKED", 1, "o1", "kept")))
    store.apply(work(Rows(LINK).partial(110, 1, None, 2, None, None, unchanged=["kind", "order", "note"])))
    assert contents(store, LINK) == {1: ("PACKED", 2, "o1", "kept", 110)}


def test_two_rows_of_a_join_table_may_take_values_from_the_same_one(store: Neo4jStore) -> None:
    store.apply(work(Rows(LINK).upsert(100, 1, "PACKED", 1, "o1", "kept")))
    unchanged = ["kind", "person", "order", "note"]
    both = Rows(LINK)
    for key in (2, 3):
        both.partial(110, key, None, None, None, None, unchanged=unchanged, origin=(1,))
    store.apply(work(both))
    assert contents(store, LINK) == {
        1: ("PACKED", 1, "o1", "kept", 100),
        2: ("PACKED", 1, "o1", "kept", 110),
        3: ("PACKED", 1, "o1", "kept", 110),
    }


# ------------------------------------------------------------------------------------------------ truncation


def test_an_emptied_table_leaves_others_waiting_for_it(store: Neo4jStore, graph: GraphDatabase) -> None:
    store.apply(
        work(
            Rows(PERSON).upsert(100, 1, "a", None).upsert(100, 2, "b", 1),
            Rows(ORDER).upsert(100, "o1", 1, *[None] * 5),
            Rows(KNOWS).upsert(100, 1, 2, 5),
        )
    )
    store.apply(work(Rows(PERSON), truncated=110))
    assert visible(graph) == [["Order", 1]]
    assert contents(store, ORDER) == {"o1": (1, *[None] * 5, 100)}
    store.apply(work(Rows(PERSON).upsert(120, 1, "again", None).upsert(120, 2, "b", None)))
    assert graph.query("MATCH (p:Person)-[:PLACED]->(o:Order) RETURN p.name, o.number") == [["again", "o1"]]
    assert graph.query("MATCH (a:Person)-[:KNOWS]->(b:Person) RETURN a.id, b.id") == [[1, 2]]
    store.apply(work(Rows(KNOWS), truncated=130))
    assert contents(store, KNOWS) == {}
    assert graph.query("MATCH ()-[e:KNOWS]->() RETURN e") == []


# ------------------------------------------------------------------------------------------------ what others did


def test_a_graph_that_was_emptied_or_put_back_under_an_open_store_is_noticed(
    store: Neo4jStore, graph: GraphDatabase
) -> None:
    store.apply(work(Rows(PERSON).upsert(100, 1, "a", None), n=1))
    ((older,),) = graph.query("MATCH (c:_SynclineCursor) RETURN c.body")
    store.apply(work(Rows(PERSON).upsert(110, 1, "b", None), n=2))
    graph.query(f"MATCH (c:_SynclineCursor) SET c.body = '{older}'")
    with pytest.raises(Receded, match="went back from entry 2 to entry 1"):
        store.apply(work(n=3))
    store.open("orders")
    store.apply(work(n=2))
    graph.query("MATCH (n) DETACH DELETE n")
    with pytest.raises(Gap) as emptied:
        store.apply(work(n=3))
    assert emptied.value.code == "SL-TARGET-LOST"
    assert graph.query("MATCH (n) RETURN count(n)") == [[0]]


def test_relationships_made_or_removed_by_hand_are_differences(store: Neo4jStore, graph: GraphDatabase) -> None:
    people = Rows(PERSON).upsert(100, 1, "a", None).upsert(100, 2, "b", 1).upsert(100, 3, "c", 1)
    store.apply(work(people, Rows(KNOWS).upsert(100, 1, 2, 5)))
    graph.query("MATCH (a:Person {id: 2})-[e:MANAGED_BY]->() DELETE e")
    graph.query("MATCH (a:Person {id: 3}), (b:Person {id: 2}) CREATE (a)-[:MANAGED_BY]->(b)")
    graph.query("MATCH (a:Person {id: 3}), (b:Person {id: 2}) CREATE (a)-[:KNOWS]->(b), (a)-[:LIKES]->(b)")
    found = [row for batch in store.scan(PERSON) for row in rows_of(PERSON, batch)]
    assert sorted(found) == [(1, ("a", None, 100)), (2, ("b", None, 100)), (3, ("c", 1, 100)), (3, ("c", 2, 100))]
    assert contents(store, KNOWS) == {(1, 2): (5, 100), (3, 2): (None, 0)}
    store.apply(work(people, Rows(KNOWS).delete(110, 3, 2)))
    assert contents(store, PERSON) == {1: ("a", None, 100), 2: ("b", 1, 100), 3: ("c", 1, 100)}
    assert managers(graph) == [[2, 1], [3, 1]]
    assert graph.query("MATCH (:Person)-[e:LIKES]->(:Person) RETURN count(e)") == [[1]]


def test_what_users_add_to_a_node_stays_when_its_row_is_written_again(store: Neo4jStore, graph: GraphDatabase) -> None:
    store.apply(work(Rows(PERSON).upsert(100, 1, "a", None).upsert(100, 2, "b", None)))
    graph.query("MATCH (a:Person {id: 1}), (b:Person {id: 2}) SET a.rank = 0.5, a:Chosen CREATE (a)-[:LIKES]->(b)")
    store.apply(work(Rows(PERSON).upsert(110, 1, None, 2)))
    assert graph.query("MATCH (a:Chosen)-[:LIKES]->(b) RETURN a.id, a.name, a.rank, b.id") == [[1, None, 0.5, 2]]


def test_values_and_nodes_that_are_none_of_ours_are_differences(store: Neo4jStore, graph: GraphDatabase) -> None:
    store.apply(work(Rows(PERSON).upsert(100, 1, "a", None).upsert(100, 2, "b", None)))
    graph.query("MATCH (a:Person {id: 1}) SET a.name = 7")
    graph.query("CREATE (:Person {name: 'nobody'})")
    assert contents(store, PERSON) == {0: ("nobody", None, 0), 2: ("b", None, 100)}


# ------------------------------------------------------------------------------------------------ another shape


def test_another_place_removes_what_the_former_shape_wrote(store: Neo4jStore, graph: GraphDatabase) -> None:
    store.apply(work(Rows(PERSON).upsert(100, 1, "a", None).upsert(100, 2, "b", 1), Rows(KNOWS).upsert(100, 1, 2, 5)))
    graph.query("CREATE (:Person {id: 77, name: 'of somebody else'})")
    human = msgspec.structs.replace(PERSON, shape=Node(("Human",)))
    assert store.migrate(human) == PERSON
    assert visible(graph) == [["Person", 1]]
    store.apply(work(Rows(human).upsert(99, 1, "a", None).upsert(99, 2, "b", 1)))
    assert contents(store, human) == {1: ("a", None, 99), 2: ("b", 1, 99)}
    assert contents(store, KNOWS) == {(1, 2): (5, 100)}


def test_a_reference_that_is_no_longer_mapped_loses_its_relationships(store: Neo4jStore, graph: GraphDatabase) -> None:
    store.apply(work(Rows(PERSON).upsert(100, 1, "a", None).upsert(100, 2, "b", 1).upsert(100, 3, "c", 7)))
    plain = msgspec.structs.replace(PERSON, shape=Node(("Person",)))
    assert store.migrate(plain) == PERSON
    assert managers(graph) == []
    assert contents(store, plain) == {1: ("a", None, 100), 2: ("b", None, 100), 3: ("c", None, 100)}
    store.apply(work(Rows(plain).upsert(99, 2, "b", 1).upsert(110, 3, "c", 7)))
    assert store.migrate(PERSON) == plain
    store.apply(work(Rows(PERSON).upsert(111, 3, "c", 1)))
    assert managers(graph) == [[3, 1]]


@pytest.mark.parametrize("shape", [Node(("Guest", "Person")), Node(("Guest",), (), "role", ("Person",))])
def test_the_label_that_one_table_is_known_by_can_not_be_another_ones_too(store: Neo4jStore, shape: Node) -> None:
    columns = (Column("id", "int8", "bigint", key=True), Column("role", "text", "text"))
    with pytest.raises(Misconfigured, match="may carry the label Person"):
        store.migrate(TableSchema("public", "guest", columns, shape))


def test_two_tables_cannot_be_nodes_of_one_label(store: Neo4jStore) -> None:
    other = msgspec.structs.replace(ADDRESS, name="place", shape=Node(("Person",)))
    with pytest.raises(Misconfigured, match="label Person"):
        store.migrate(other)


@pytest.mark.parametrize(
    "shape",
    [
        Point("people"),
        Node(("_SynclineStub",)),
        Node(("",)),
        Node(("Pe\0rson",)),
        Node(("\\u0060Person",)),
        Node(("Person",), (Reference("KNOWS", End(("nobody",), "Person", ("id",))),)),
    ],
)
def test_shapes_and_names_that_no_graph_can_have_are_refused(shape: Any) -> None:
    from syncline.stores.neo4j.layout import layout_of

    with pytest.raises(Misconfigured):
        layout_of(msgspec.structs.replace(PERSON, shape=shape))


# ------------------------------------------------------------------------------------------------ the model


def _random_rows(rng: random.Random, version: int) -> list[Rows]:
    """Works of all tables over few keys, so that everything meets everything."""
    tables = []
    for schema in rng.sample(TABLES, rng.randint(1, len(TABLES))):
        rows = Rows(schema)
        keys: set[tuple[Any, ...]] = set()
        for _ in range(rng.randint(0, 4)):
            values = [_value(rng, column) for column in schema.columns]
            key = tuple(values[i] for i in schema.key_positions)
            if key in keys:
                continue
            keys.add(key)
            at = version if rng.random() < 0.7 else rng.randint(1, version)
            kind = rng.random()
            if kind < 0.6:
                rows.upsert(at, *values)
            elif kind < 0.85:
                rows.delete(at, *key)
            else:
                others = [c.name for c in schema.columns if not c.key]
                origin = key if rng.random() < 0.6 else tuple(_value(rng, c) for c in schema.key)
                rows.partial(at, *values, unchanged=rng.sample(others, rng.randint(1, len(others))), origin=origin)
        tables.append(rows)
    return tables


def _value(rng: random.Random, column: Column) -> Any:
    if column.name in ("id", "a", "b", "customer", "person", "manager_id"):
        value: Any = rng.randint(1, 4)
    elif column.name == "kind":
        return rng.choice(["PACKED", "CHECKED"])
    elif column.name in ("number", "order"):
        value = rng.choice(["o1", "o2"])
    elif "country" in column.name:
        value = rng.choice(["de", "f|r"])
    elif "code" in column.name:
        value = rng.choice(["1", "\\2"])
    elif column.type == "int4":
        value = rng.randint(1, 9)
    elif column.type == "text":
        value = rng.choice(["x", "y"])
    else:
        value = Decimal("1.50")
    return value if column.key or rng.random() < 0.75 else None


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.soak) for seed in range(1, 20))])
def test_random_works_leave_the_graph_that_the_rows_say(store: Neo4jStore, graph: GraphDatabase, seed: int) -> None:
    rng = random.Random(seed)
    model = MemoryStore(MemoryConfig(), "model")
    model.open("orders")
    for schema in TABLES:
        model.migrate(schema)
    for version in range(1, 21):
        truncated = rng.randint(1, version) if rng.random() < 0.08 else None
        step = work(*_random_rows(rng, version), truncated=truncated)
        for each in (store, model) if rng.random() < 0.8 else (store, model, store):
            each.apply(step)
        people, addresses, orders, knows, links = (contents(model, schema) for schema in TABLES)
        for schema in TABLES:
            assert contents(store, schema) == contents(model, schema)
        assert edges(graph) == expected_edges(people, orders, addresses, knows, links)
        assert [nodes(graph, label) for label in ("Person", "Address", "Order")] == [
            len(people),
            len(addresses),
            len(orders),
        ]
