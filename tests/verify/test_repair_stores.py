"""Repair at every kind of target: damaged by hand, found exactly, repaired exactly."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import redis
import yaml

from servers import Database, fresh_database
from stores.graphs import GraphDatabase, graph
from syncline.config import Config, load_config
from syncline.embedded import EmbeddedValkey
from syncline.pipeline import SyncService
from syncline.stores.qdrant.edge import EdgePoints
from syncline.verify import compare, verify
from syncline.verify.repair import Repaired, repair

__all__ = ["graph"]

LATE = 9007199254740000


def configured(database: Database, folder: Path, target: dict[str, Any]) -> Config:
    file = folder / "syncline.yaml"
    file.write_text(
        yaml.safe_dump({"source": {"dsn": database.dsn}, "target": target, "log": {"path": str(folder / "log")}})
    )
    return load_config(file)


def repaired(config: Config) -> Repaired:
    found = repair(config, engine=SyncService, talk=lambda line: None)
    assert found.clean, found.to_dict(show_keys=True)
    assert verify(config, engine=SyncService, talk=lambda line: None).differences == 0
    return found


def equal(config: Config) -> None:
    assert verify(config, engine=SyncService, talk=lambda line: None).differences == 0


def counts(found: Repaired) -> dict[str, tuple[int, int, int]]:
    return {t.table.removeprefix("public."): (t.missing, t.different, t.extra) for t in found.tables}


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compare, "_AGAIN_S", 0.0)


@pytest.fixture
def items(database: Database) -> Database:
    database.execute("create table item (id int primary key, name text, emb real[])")
    database.execute("insert into item select g, 'n' || g, array[g, 1]::real[] from generate_series(1, 30) g")
    return database


def test_at_postgresql_rows_that_others_refer_to_stay_in_place(items: Database, tmp_path: Path) -> None:
    with fresh_database(items.server) as copy:
        config = configured(items, tmp_path, {"type": "postgres", "dsn": copy.dsn})
        equal(config)
        copy.execute("create table mine (item int references item)")
        copy.execute("insert into mine values (4)")
        copy.execute("delete from item where id = 1")
        copy.execute("update item set name = 'x' where id in (2, 3)")
        copy.execute(f"update item set name = 'x', _syncline_version = {LATE} where id = 4")
        copy.execute("insert into item (id, name) values (99, 'x')")
        assert counts(repaired(config)) == {"item": (1, 3, 1)}
        assert copy.execute("select count(*) from mine") == [(1,)]


def test_at_redis_keys_and_their_companions(items: Database, tmp_path: Path, valkey: EmbeddedValkey) -> None:
    config = configured(items, tmp_path, {"type": "redis", "url": valkey.url()})
    equal(config)
    with redis.Redis.from_url(valkey.url()) as client:
        client.delete("public.item:1")
        client.hset("public.item:2", "name", "x")
        client.hdel("syncline:rows:public.item", "3")
        client.hset("syncline:tombstones:public.item", "3", LATE)
        client.delete("public.item:3")
        client.hset("syncline:rows:public.item", "4", LATE)
    found = repaired(config)
    assert found.first.differences == 4


@pytest.mark.parametrize("mode", ["store", "cache"])
def test_at_redis_how_long_keys_live(items: Database, tmp_path: Path, valkey: EmbeddedValkey, mode: str) -> None:
    """Hashes with a time to live, documents without: a cache may let go of what it likes."""
    written = {
        "hash": {"key": "item:{id}", "columns": ["id", "name"], "ttl_s": 5000},
        "json": {"key": "item:{id}:json", "columns": ["name", "emb"]},
    }
    target = {"type": "redis", "url": valkey.url(), "mode": mode, "tables": {"public.item": written}}
    config = configured(items, tmp_path, target)
    equal(config)
    with redis.Redis.from_url(valkey.url()) as client:
        client.persist("item:1")
        client.expire("item:2", 9999)  # another time than the mapping's is somebody's wish
        client.expire("item:3:json", 9999)
        found = repaired(config)
        assert counts(found) == {"item": (0, 1 if mode == "cache" else 2, 0)}
        assert 0 < client.ttl("item:1") <= 5000 < client.ttl("item:2")
        assert client.ttl("item:3:json") > 0 if mode == "cache" else client.ttl("item:3:json") == -1


def test_what_a_target_refuses_is_not_called_repaired(items: Database, tmp_path: Path, valkey: EmbeddedValkey) -> None:
    config = configured(items, tmp_path, {"type": "redis", "url": valkey.url()})
    equal(config)
    with redis.Redis.from_url(valkey.url()) as client:
        client.delete("public.item:1", "public.item:2")
        client.set("public.item:2", "a string, which a hash can't be written over")
    found = repair(config, engine=SyncService, talk=lambda line: None)
    assert (found.clean, found.left, found.last.differences, found.last.tables[0].parked) == (False, 1, 0, 1)
    assert "refused 1 row(s)" in found.tables[0].reason


def test_at_qdrant_points_and_vectors(items: Database, tmp_path: Path) -> None:
    vectors = {"vectors": {"v": {"column": "emb", "size": 2}}}
    target = {"type": "qdrant", "path": str(tmp_path / "points"), "tables": {"public.item": vectors}}
    config = configured(items, tmp_path, target)
    equal(config)
    points = EdgePoints.acquire(tmp_path / "points")
    try:
        found = {p.id: p for p in points.retrieve("item", [1, 2, 3, 4, 5], vectors=True)}
        assert len(found) == 5
        points.delete("item", [1])
        points.put("item", [found[2]._replace(vectors={"v": [9.0, 9.0]})])
        points.put("item", [found[3]._replace(payload={**found[3].payload, "name": "x"})])
        (version,) = [n for n in found[4].payload if "version" in n]
        points.put("item", [found[4]._replace(payload={**found[4].payload, version: LATE})])
        points.put("item", [found[5]._replace(id=99, payload={**found[5].payload, "id": 99})])
        points.sync(["item"])
    finally:
        points.close()
    assert counts(repaired(config)) == {"item": (1, 3, 1)}


def test_at_a_graph_nodes_and_edges(database: Database, tmp_path: Path, graph: GraphDatabase) -> None:
    database.execute(
        "create table author (id int primary key, name text);"
        "create table book (id int primary key, title text, author_id int references author);"
        "create table cites (book_id int, other_id int, weight int, primary key (book_id, other_id))"
    )
    database.execute(
        "insert into author select g, 'a' || g from generate_series(1, 5) g;"
        "insert into book select g, 'b' || g, g % 5 + 1 from generate_series(1, 20) g;"
        "insert into cites select g, g + 1, g from generate_series(1, 19) g"
    )
    author, book, at = "Author", "Book", graph.config
    columns = {"from": "book_id", "to": "other_id"}
    ends = {end: {"table": "public.book", "columns": [column]} for end, column in columns.items()}
    target = {
        "type": "neo4j",
        "uri": at.uri,
        "user": at.user,
        "password": at.password.get_secret_value() if at.password else None,
        "database": at.database,
        "tables": {
            "public.author": {"node": author},
            "public.book": {"node": book, "references": {"author_id": {"type": "BY", "to": "public.author"}}},
            "public.cites": {"relationship": "CITES", **ends},
        },
    }
    config = configured(database, tmp_path, target)
    equal(config)
    for statement in (
        f"MATCH (:{book} {{id: 1}})-[e:BY]->() DELETE e",
        f"MATCH (x:{book} {{id: 2}}), (y:{author} {{id: 1}}) CREATE (x)-[:BY]->(y)",
        f"MATCH (x:{book} {{id: 3}}) SET x.title = 'x'",
        f"MATCH (x:{book} {{id: 4}}) SET x._syncline_version = {LATE}",
        f"MATCH (x:{book} {{id: 20}}) DETACH DELETE x",
        f"MATCH (x:{book} {{id: 5}})-[e:CITES]->() DELETE e",
        f"MATCH (x:{book} {{id: 6}})-[e:CITES]->() SET e.weight = 0",
        f"MATCH (x:{book} {{id: 7}})-[e:CITES]->() SET e._syncline_version = {LATE}",
        f"MATCH (x:{book} {{id: 8}}), (y:{book} {{id: 10}}) CREATE (x)-[:CITES {{weight: 1}}]->(y)",
        f"CREATE (:{author} {{id: 77, name: 'x'}})",
    ):
        graph.query(statement)
    found = repaired(config)
    assert found.first.differences >= 10
    assert graph.query(f"MATCH (:{book})-[e:CITES]->(:{book}) RETURN count(e)") == [[19]]
    assert graph.query(f"MATCH (:{book})-[e:BY]->(:{author}) RETURN count(e)") == [[20]]
