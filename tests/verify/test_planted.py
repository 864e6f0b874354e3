"""A hundred differences of every kind, planted into each store by its driver: all are found, and those alone mended.

Each store's table says what is planted under which keys, and as what it has to be found. A kind that is not in a
store's table does not exist there; the reason stands with it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import duckdb
import pyarrow as pa
import pytest
import redis
from test_repair_stores import LATE, configured, graph

from servers import Database, eventually, fresh_database
from stores.graphs import GraphDatabase
from syncline.config import Config
from syncline.embedded import EmbeddedValkey
from syncline.pipeline import SyncService
from syncline.stores.qdrant.edge import EdgePoints
from syncline.verify import compare, verify
from syncline.verify.compare import Collector, comparing
from syncline.verify.keys import shown
from syncline.verify.point import open_copy
from syncline.verify.repair import Limits, repair

__all__ = ["graph"]

_TABLES = """
create table item (id int primary key, name text, emb real[]);
create table part (id int primary key, item_id int references item);
create table link (a int references item, b int references item, weight int, primary key (a, b));
insert into item select g, 'n' || g, array[g, 1] from generate_series(1, 400) g;
insert into part select g, 200 + g from generate_series(1, 100) g;
insert into link select 200 + g, 300 + g, g from generate_series(1, 100) g
"""
# A copy can only be stale of a row that changed, and only a deleted row can come back.
_STALE, _DELETED = range(61, 71), range(91, 101)
_SINCE = "update item set name = 'newer' where id between 61 and 70; delete from item where id between 91 and 100"


class Planted(NamedTuple):
    """Differences of one kind: how they are planted, in the words of the store, under which keys, and what they are
    found as."""

    statement: str
    keys: range
    found: str
    table: str = "item"


Plant = dict[str, Planted]
Found = set[tuple[str, str, str]]  # table, kind and key

# In the words of SQL, with the copy's own columns. Rows keep no time to live, and are not joined by edges.
_SQL: Plant = {
    "missing": Planted("delete from item where id in ({keys})", range(1, 16), "missing"),
    "extra": Planted(
        "insert into item (id, name, emb, _syncline_version)"
        " select id + 1000, name, emb, _syncline_version from item where id + 1000 in ({keys})",
        range(1101, 1116),
        "extra",
    ),
    "changed": Planted("update item set name = 'x' where id in ({keys})", range(21, 36), "different"),
    "swapped": Planted(
        "update item set name = 'n' || (id + case when id % 2 = 1 then 1 else -1 end) where id in ({keys})",
        range(41, 51),
        "different",
    ),
    "stale version": Planted(
        "update item set name = 'n' || id, _syncline_version = 1 where id in ({keys})", _STALE, "different"
    ),
    "version from the future": Planted(
        f"update item set _syncline_version = {LATE} where id in ({{keys}})", range(71, 81), "different"
    ),
    "wrong vector": Planted("update item set emb = '{{9,9}}' where id in ({keys})", range(81, 86), "different"),
    "resurrected tombstone": Planted(
        "insert into item (id, name, emb, _syncline_version)"
        " select id - 50, 'n', '{{1}}', 1 from item where id - 50 in ({keys})",
        _DELETED,
        "extra",
    ),
}

DUCKDB: Plant = _SQL | {
    "duplicated": Planted("insert into item select * from item where id in ({keys})", range(51, 61), "extra"),
}

# No row is there twice: a copy here has the primary key of its source.
POSTGRES: Plant = _SQL | {
    "missing": Planted(_SQL["missing"].statement, range(1, 21), "missing"),
    "changed": Planted(_SQL["changed"].statement, range(21, 41), "different"),
}

# Each statement is done for each key. No key is there twice, and there are no edges.
REDIS: Plant = {
    "missing": Planted("DEL public.item:{key}", range(1, 16), "missing"),
    "extra": Planted(
        "HSET public.item:{key} id {key} name x; HSET syncline:rows:public.item {key} 1", range(1101, 1111), "extra"
    ),
    "changed": Planted("HSET public.item:{key} name x", range(21, 36), "different"),
    "swapped": Planted("HSET public.item:{key} name n{other}", range(41, 51), "different"),
    "stale version": Planted(
        "HSET public.item:{key} name n{key}; HSET syncline:rows:public.item {key} 1", _STALE, "different"
    ),
    "version from the future": Planted(f"HSET syncline:rows:public.item {{key}} {LATE}", range(71, 81), "different"),
    "wrong vector": Planted("HSET public.item:{key} emb {{9,9}}", range(81, 91), "different"),
    "resurrected tombstone": Planted(
        "HSET public.item:{key} id {key} name n; HSET syncline:rows:public.item {key} 1", _DELETED, "extra"
    ),
    "wrong TTL class": Planted("EXPIRE public.item:{key} 9999", range(101, 111), "different"),
}

# What becomes of the point, by its fields. No point is there twice, none expires, and there are no edges.
QDRANT: Plant = {
    "missing": Planted("", range(1, 21), "missing"),
    "extra": Planted("id", range(1101, 1116), "extra"),
    "changed": Planted("name", range(21, 36), "different"),
    "swapped": Planted("swap", range(41, 51), "different"),
    "stale version": Planted("name _syncline_version=1", _STALE, "different"),
    "version from the future": Planted(f"_syncline_version={LATE}", range(71, 81), "different"),
    "wrong vector": Planted("v", range(81, 91), "different"),
    "resurrected tombstone": Planted("id", _DELETED, "extra"),
}

_ITEMS, _LINKS = "MATCH (x:Item) WHERE x.id IN $keys", "MATCH (x:Item)-[e:LINKS]->(y) WHERE x.id IN $keys"
# No node is there twice: a constraint forbids it, as it does for edges with the identity of one row. Nothing expires.
NEO4J: Plant = {
    "missing": Planted(f"{_ITEMS} DETACH DELETE x", range(1, 11), "missing"),
    "extra": Planted("UNWIND $keys AS k CREATE (:Item {id: k, name: 'x', _syncline_version: 1})", range(1101, 1111),
                     "extra"),
    "changed": Planted(f"{_ITEMS} SET x.name = 'x'", range(21, 31), "different"),
    "swapped": Planted(
        f"{_ITEMS} SET x.name = 'n' + toString(CASE x.id % 2 WHEN 1 THEN x.id + 1 ELSE x.id - 1 END)",
        range(41, 47), "different",
    ),
    "stale version": Planted(f"{_ITEMS} SET x.name = 'n' + toString(x.id), x._syncline_version = 1", _STALE,
                             "different"),
    "version from the future": Planted(f"{_ITEMS} SET x._syncline_version = {LATE}", range(71, 77), "different"),
    "wrong vector": Planted(f"MATCH (o:Item {{id: 90}}) {_ITEMS} SET x.emb = o.emb", range(81, 87), "different"),
    "resurrected tombstone": Planted(
        "UNWIND $keys AS k CREATE (:Item {id: k, name: 'n', _syncline_version: 1})", _DELETED, "extra"
    ),
    "duplicated": Planted(f"{_LINKS} CREATE (x)-[:LINKS {{weight: e.weight}}]->(y)", range(201, 207), "extra", "link"),
    "missing edge": Planted(f"{_LINKS} DELETE e", range(211, 221), "missing", "link"),
    "missing edge of a reference": Planted("MATCH (p:Part)-[e:OF]->() WHERE p.id IN $keys DELETE e", range(1, 7),
                                           "different", "part"),
    # An edge has two ends here, always: what it dangles at is a node that is nobody's.
    "dangling edge": Planted(
        f"{_LINKS} WITH x, e, properties(e) AS held DELETE e CREATE (x)-[f:LINKS]->(:Nobody) SET f = held",
        range(231, 241), "missing", "link",
    ),
}  # fmt: skip


# A server that only speaks as Neo4j finds no edge by its identity alone: it would not find one that leads to nobody.
COMPATIBLE: Plant = {kind: one for kind, one in NEO4J.items() if kind != "dangling edge"} | {
    "missing edge": NEO4J["missing edge"]._replace(keys=range(211, 231))
}


class Keys(Collector):
    """Remembers what differs."""

    def __init__(self) -> None:
        self.by_table: dict[str, list[tuple[str, str]]] = {}

    def begin(self, source: str, target: str, table: str) -> None:
        self.by_table[table] = []

    def found(self, source: str, target: str, table: str, kind: str, keys: pa.Table) -> None:
        self.by_table[table] += [(kind, shown(keys, row)) for row in range(keys.num_rows)]

    def sorted(self) -> list[tuple[str, str, str]]:
        return sorted(
            (table.removeprefix("public."), kind, key) for table, found in self.by_table.items() for kind, key in found
        )


def differing(config: Config) -> list[tuple[str, str, str]]:
    """What a comparison finds, each row as often as it does."""
    keys = Keys()
    with comparing(config, engine=SyncService, talk=lambda line: None, collect=keys) as comparison:
        report = comparison.compare()
    assert report.not_compared == 0
    assert report.differences == sum(map(len, keys.by_table.values()))
    return keys.sorted()


def expected(plant: Plant) -> list[tuple[str, str, str]]:
    named = {"link": "{0}, {1}"}
    return sorted(
        (one.table, one.found, named.get(one.table, "{0}").format(key, key + 100))
        for one in plant.values()
        for key in one.keys
    )


def versions(config: Config) -> dict[tuple[str, str], list[int]]:
    """The versions of all rows of the copy."""
    found: dict[tuple[str, str], list[int]] = {}
    with closing(open_copy(config.targets["main"])) as reader:
        for schema in reader.held("main"):
            names = [column.name for column in schema.key]
            for batch in reader.scan(schema):
                keys = pa.Table.from_batches([batch]).select(names)
                for row, version in enumerate(batch.column(batch.num_columns - 1).to_pylist()):
                    found.setdefault((schema.name, shown(keys, row)), []).append(version)
    return found


def planted_and_mended(
    database: Database,
    config: Config,
    plant: Plant,
    how: Callable[[Planted], None],
    within: AbstractContextManager[Any],
) -> None:
    """Plant all of it in a copy that is equal and has seen deletes and updates."""
    assert sum(len(one.keys) for one in plant.values()) == 100
    service = SyncService(config, talk=lambda line: None)
    service.start()
    try:
        eventually(lambda: service.status()["sources"]["main"]["state"] == "streaming", 60)
        assert verify(config).differences == 0
        database.execute(_SINCE)
        assert verify(config).differences == 0
    finally:
        service.stop()
    before = versions(config)
    with within:
        for one in plant.values():
            how(one)

    assert differing(config) == expected(plant)

    done = repair(config, engine=SyncService, talk=lambda line: None, limits=Limits(max_share=1.0))
    assert (done.clean, done.first.differences, done.written + done.removed) == (True, 100, 100)
    assert differing(config) == []
    touched = {(table, key) for table, _, key in expected(plant)}
    after = versions(config)
    assert {row: found for row, found in after.items() if row not in touched} == {
        row: found for row, found in before.items() if row not in touched
    }
    assert before.keys() == after.keys()
    assert all(len(found) == 1 and 1 < found[0] < LATE for found in after.values())


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compare, "_AGAIN_S", 0.0)


@pytest.fixture
def source(database: Database) -> Database:
    database.execute(_TABLES)
    return database


def listed(keys: range) -> str:
    return ", ".join(map(str, keys))


def test_in_duckdb(source: Database, tmp_path: Path) -> None:
    path = tmp_path / "copy.duckdb"

    def how(one: Planted) -> None:
        with duckdb.connect(str(path)) as copy:
            copy.execute(one.statement.format(keys=listed(one.keys)))

    config = configured(source, tmp_path, {"type": "duckdb", "path": str(path)})
    planted_and_mended(source, config, DUCKDB, how, nullcontext())


def test_in_postgresql(source: Database, tmp_path: Path) -> None:
    with fresh_database(source.server) as copy:
        config = configured(source, tmp_path, {"type": "postgres", "dsn": copy.dsn})

        def how(one: Planted) -> None:
            copy.execute(one.statement.format(keys=listed(one.keys)))

        planted_and_mended(source, config, POSTGRES, how, nullcontext())


def test_in_redis(source: Database, tmp_path: Path, valkey: EmbeddedValkey) -> None:
    config = configured(source, tmp_path, {"type": "redis", "url": valkey.url()})
    with redis.Redis.from_url(valkey.url()) as client:

        def how(one: Planted) -> None:
            for key in one.keys:
                for command in one.statement.format(key=key, other=key + 1 if key % 2 else key - 1).split("; "):
                    client.execute_command(*command.split(" "))
            if one.statement.startswith("PEXPIRE"):
                eventually(lambda: not client.exists(*(f"public.item:{key}" for key in one.keys)))

        planted_and_mended(source, config, REDIS, how, nullcontext())


def test_in_qdrant(source: Database, tmp_path: Path) -> None:
    vectors = {"vectors": {"v": {"column": "emb", "size": 2}}}
    target = {"type": "qdrant", "path": str(tmp_path / "points"), "tables": {"public.item": vectors}}
    config = configured(source, tmp_path, target)
    opened: list[EdgePoints] = []

    @contextmanager
    def points() -> Iterator[None]:
        with closing(EdgePoints.acquire(tmp_path / "points")) as found:
            opened.append(found)
            yield
            found.sync(["item"])

    def how(one: Planted) -> None:
        (at,) = opened
        (sample,) = at.retrieve("item", [200], vectors=True)
        there = {point.id: point for point in at.retrieve("item", list(one.keys), vectors=True)}
        for key in one.keys:
            point = there.get(key, sample)
            changes: dict[str, Any] = {}
            for change in one.statement.split():
                field, _, value = change.partition("=")
                if field == "v":
                    point = point._replace(vectors={"v": [9.0, 9.0]})
                elif field == "id":
                    point = sample._replace(id=key)
                    changes |= {"id": key, "_syncline_version": 1}
                elif field == "swap":
                    changes["name"] = f"n{key + 1 if key % 2 else key - 1}"
                else:
                    changes[field] = int(value) if value else f"n{key}" if key in _STALE else "x"
            if one.statement:
                at.put("item", [point._replace(payload={**point.payload, **changes})])
            else:
                at.delete("item", [key])

    planted_and_mended(source, config, QDRANT, how, points())


def test_in_a_graph(source: Database, tmp_path: Path, graph: GraphDatabase) -> None:
    at = graph.config
    target = {
        "type": "neo4j",
        "uri": at.uri,
        "user": at.user,
        "password": at.password.get_secret_value() if at.password else None,
        "database": at.database,
        "tables": {
            "public.item": {"node": "Item"},
            "public.part": {"node": "Part", "references": {"item_id": {"type": "OF", "to": "public.item"}}},
            "public.link": {
                "relationship": "LINKS",
                "from": {"table": "public.item", "columns": ["a"]},
                "to": {"table": "public.item", "columns": ["b"]},
            },
        },
    }
    config = configured(source, tmp_path, target)

    def how(one: Planted) -> None:
        graph.query(one.statement, keys=list(one.keys))

    planted_and_mended(source, config, NEO4J if graph.real else COMPATIBLE, how, nullcontext())
    assert graph.query("MATCH ()-[e:LINKS]->() RETURN count(e)") == [[100]]
    assert graph.query("MATCH (:Item)-[e:LINKS]->(:Item) RETURN count(e)") == [[100]]
    assert graph.query("MATCH (:Part)-[e:OF]->(:Item) RETURN count(e)") == [[100]]
