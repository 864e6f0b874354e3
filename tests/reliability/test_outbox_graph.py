"""Each of the eight kinds of events ends as the right node or relationship of a graph."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import psycopg

from reliability.harness import Rig
from servers import Database, Graph
from syncline.capture.outbox.install import install
from syncline.capture.outbox.settings import OutboxConfig
from syncline.publisher import EventType, SyncEvent, get_sync_publisher

OUTBOX: dict[str, Any] = {
    "entities": {
        "concept": {"table": "public.concept"},
        "requires": {"table": "public.requires"},
        "user": {"table": "public.member"},
    }
}
# What the application does, and what it says of that.
DONE = [
    ("insert into concept values ('a', 'A'), ('b', 'B')", []),
    ("", [("CONTENT_CREATED", "a", "concept", {"title": "A"}), ("CONTENT_CREATED", "b", "concept", {"title": "B"})]),
    ("insert into member values (1, 'one'), (2, 'two')", []),
    ("", [("USER_CREATED", "1", "user", {"name": "one"}), ("USER_CREATED", "2", "user", {"name": "two"})]),
    ("insert into requires values ('b', 'a', 1), ('a', 'b', 2)", []),
    ("", [("RELATIONSHIP_CREATED", ["b", "a"], "requires", {"weight": 1})]),
    ("", [("RELATIONSHIP_CREATED", ["a", "b"], "requires", {"weight": 2})]),
    ("update concept set title = 'AA' where id = 'a'", [("CONTENT_UPDATED", "a", "concept", {"title": "AA"})]),
    ("update member set name = 'uno' where id = 1", [("USER_UPDATED", "1", "user", {"name": "uno"})]),
    ("delete from member where id = 2", [("USER_DELETED", "2", "user", {})]),
    ("delete from requires where concept_id = 'a'", [("RELATIONSHIP_DELETED", ["a", "b"], "requires", {})]),
    ("insert into concept values ('c', 'C')", [("CONTENT_CREATED", "c", "concept", {"title": "C"})]),
    ("delete from concept where id = 'c'", [("CONTENT_DELETED", "c", "concept", {})]),
]


def publish(connection: psycopg.Connection[Any]) -> None:
    for statement, events in DONE:
        with connection.transaction():
            if statement:
                connection.execute(statement.encode())
            for kind, entity_id, entity_type, payload in events:
                event = SyncEvent(EventType(kind), entity_id, entity_type, payload)  # type: ignore[arg-type]
                get_sync_publisher().publish(event, session=connection)


def test_the_eight_kinds_of_events_are_nodes_and_relationships(database: Database, tmp_path: Path, bolt: Graph) -> None:
    assert {kind for _, events in DONE for kind, *_ in events} == set(EventType.__members__)
    database.execute(
        "create table concept (id text primary key, title text); create table member (id int primary key, name text);"
        "create table requires (concept_id text, other_id text, weight int, primary key (concept_id, other_id))"
    )
    with database.connect() as connection:
        install(connection, OutboxConfig(**OUTBOX))
    rig = Rig(database, tmp_path, source={"outbox": OUTBOX})
    concept, member = f"{bolt.prefix}Concept", f"{bolt.prefix}Member"
    user, password = bolt.auth or ("neo4j", "")
    rig.settings["targets"]["main"] = {
        "type": "neo4j",
        "uri": bolt.uri,
        "user": user,
        "password": password,
        "database": bolt.database,
        "tables": {
            "public.concept": {"node": concept},
            "public.member": {"node": member},
            "public.requires": {
                "relationship": "REQUIRES",
                "from": {"table": "public.concept", "columns": ["concept_id"]},
                "to": {"table": "public.concept", "columns": ["other_id"]},
            },
        },
    }
    rig.write()
    with rig.running() as engine, database.connect() as connection:
        publish(connection)
        engine.settle(timeout_s=60)
    assert rig.letters() == []
    nodes = bolt.query(f"MATCH (n:{concept}) RETURN n.id AS id, n.title AS title ORDER BY id")
    assert nodes == [{"id": "a", "title": "AA"}, {"id": "b", "title": "B"}]
    assert bolt.query(f"MATCH (n:{member}) RETURN n.id AS id, n.name AS name") == [{"id": 1, "name": "uno"}]
    edges = bolt.query(f"MATCH (x:{concept})-[r:REQUIRES]->(y:{concept}) RETURN x.id AS x, y.id AS y, r.weight AS w")
    assert edges == [{"x": "b", "y": "a", "w": 1}]
