"""Redis as a target on the whole way: mapped, verified, emptied, evicted, and away."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from harness import Rig

from servers import Database, eventually
from syncline.config import load_config
from syncline.embedded import EmbeddedValkey
from syncline.pipeline import SyncService
from syncline.verify import verify

_PLAYERS = {
    "hash": {"key": "player:{id}", "columns": ["id", "name"]},
    "json": "player:{id}:json",
    "members": [{"key": "board:{region}", "score": "points"}],
}


@pytest.fixture
def rig(database: Database, tmp_path: Path, valkey: EmbeddedValkey) -> Rig:
    database.execute("create table player (id int primary key, name text, region text, points numeric(8,2), body text)")
    database.execute("alter table player alter body set storage external")
    database.execute(
        "insert into player select g, 'n' || g, case g % 2 when 0 then 'north' else 'south' end, g, repeat('x', 4000)"
        " from generate_series(1, 40) g"
    )
    rig = Rig(database, tmp_path)
    target(rig, valkey)
    return rig


def target(rig: Rig, valkey: EmbeddedValkey, **settings: Any) -> None:
    tables = {"public.player": {**_PLAYERS, **settings.pop("player", {})}}
    rig.settings["targets"] = {"main": {"type": "redis", "url": valkey.url(), "tables": tables, **settings}}
    rig.write()


@pytest.fixture
def client(valkey: EmbeddedValkey) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(valkey.url(), protocol=2) as client:
        yield client


def report(rig: Rig) -> dict[str, Any]:
    return verify(load_config(rig.config), talk=lambda _: None, engine=SyncService).to_dict()


def found(rig: Rig, *kinds: str) -> tuple[int, ...]:
    (table,) = report(rig)["tables"]
    return tuple(table[kind] for kind in kinds)


def test_rows_become_keys_and_verification_reads_them_back(rig: Rig, database: Database, client: redis.Redis) -> None:
    with rig.running() as engine:
        database.execute("update player set region = 'east', points = 99.5 where id = 4")  # body is unchanged TOAST
        database.execute("update player set id = 100 where id = 6")
        database.execute("delete from player where id = 8")
        engine.settle()
    assert client.zrange("board:east", 0, -1, withscores=True) == [(b"4", 99.5)]
    assert client.hgetall("player:100") == {b"id": b"100", b"name": b"n6"}
    assert not client.exists("player:6", "player:8", "player:8:json")
    assert report(rig)["differences"] == 0
    assert found(rig, "rows") == (39,)
    client.delete("player:10")
    client.zadd("board:north", {"12": 1})
    client.hset("player:14", "name", "Eve")
    client.set("player:16:json", '{"id":16}')
    assert found(rig, "missing", "different", "extra") == (4, 0, 0)


def test_a_server_that_was_emptied_is_a_gap_and_is_filled_again(
    rig: Rig, database: Database, client: redis.Redis
) -> None:
    rig.set("source", on_gap="resync")
    with rig.running() as engine:
        client.flushall()
        database.execute("insert into player values (50, 'late', 'west', 1, 'b')")
        eventually(lambda: "SL-REDIS-LOST" in rig.gaps(ever=True))
        eventually(lambda: len(client.keys("player:*:json")) == 41, 60)
        engine.settle()
    assert report(rig)["differences"] == 0


def test_what_a_cache_evicted_is_no_difference_and_what_is_wrong_in_it_is(
    rig: Rig, valkey: EmbeddedValkey, client: redis.Redis
) -> None:
    target(rig, valkey, mode="cache")
    rig.sync()
    client.delete("player:1", "player:2:json", "player:3", "player:3:json")
    client.hset("player:5", "name", "Eve")
    assert found(rig, "missing", "in_flight") == (1, 3)
    client.hset("player:5", "name", "n5")
    assert report(rig)["differences"] == 0


def test_a_changed_mapping_leaves_nothing_of_the_former_one(
    rig: Rig, valkey: EmbeddedValkey, client: redis.Redis
) -> None:
    rig.sync()
    target(rig, valkey, player={"hash": {"key": "p:{id}", "ttl_s": 1000}, "json": None})
    rig.sync()
    assert not client.keys("player:*")
    assert len(client.keys("p:*")) == 40
    assert 900 < client.ttl("p:1") <= 1000
    assert report(rig)["differences"] == 0


def test_a_key_of_another_type_parks_its_row_and_the_others_apply(
    rig: Rig, database: Database, client: redis.Redis
) -> None:
    client.lpush("player:7", "mine")
    with rig.running() as engine:
        database.execute("update player set name = 'new'")
        engine.settle()
        assert client.hget("player:9", "name") == b"new"
        assert {table for table, _ in rig.letters()} == {"public.player"}
        assert client.lrange("player:7", 0, -1) == [b"mine"]
        client.delete("player:7")
        database.execute("update player set name = 'newer', body = 'short' where id = 7")
        engine.settle()
    assert rig.letters() == []
    assert report(rig)["differences"] == 0
