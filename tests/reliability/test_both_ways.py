"""PostgreSQL and Redis both ways: rows are edited on both sides at once, and both come to the same, without an echo."""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from reliability.harness import Nursery, Rig
from servers import Database, eventually
from syncline.embedded import EmbeddedValkey

Rows = dict[str, tuple[str | None, int | None]]
COLUMNS = ["name", "score"]


class Sides(Rig):
    """A table and its hashes, each the copy of the other, and a third copy of both."""

    def __init__(self, database: Database, folder: Path, valkey: EmbeddedValkey) -> None:
        database.execute("create table player (id text primary key, name text, score int8)")
        super().__init__(database, folder, targets=("third",))
        third = {
            **self.settings["targets"]["third"],
            "sources": ["main"],
            "tables": {"public.player": {"columns": COLUMNS}},
        }
        hashed = {"hash": {"key": "player:{id}", "columns": COLUMNS}, "columns": COLUMNS}
        self.settings["sources"] = {
            "main": {**self.settings.pop("source"), "monitored_tables": ["public.player"]},
            "edits": {
                "type": "redis",
                "url": valkey.url(),
                "table": "player",
                "member": "id",
                "columns": {"name": {"hash": "player:{member}"}, "score": {"hash": "player:{member}", "type": "int8"}},
                "both_ways": "cache",
                "initial_load": False,
                "deletes": "gone",
                "delete_share": 1,
                "every_s": 0.2,
                "hints": False,
            },
        }
        self.settings["control"] = {"dsn": database.dsn}
        self.settings["targets"] = {
            "cache": {
                "type": "redis",
                "url": valkey.url(),
                "sources": ["main"],
                "both_ways": True,
                "adopt": False,
                "tables": {"public.player": hashed},
            },
            "back": {"type": "postgres", "dsn": database.dsn, "sources": ["edits"], "origin": True},
            "third": third,
        }
        self.write()
        self.client = redis.Redis.from_url(valkey.url(), protocol=2, decode_responses=True)

    def in_postgres(self) -> Rows:
        return {i: (name, score) for i, name, score in self.database.execute("select id, name, score from player")}

    def in_redis(self) -> Rows:
        found: Rows = {}
        for key in self.client.scan_iter("player:*", 1000):
            held: Any = self.client.hgetall(key)
            if held:
                score = held.get("score")
                found[key.removeprefix("player:")] = held.get("name"), None if score is None else int(score)
        return found

    def in_third(self) -> Rows:
        return {i: (name, score) for i, name, score in self.rows("select id, name, score from player", "third")}

    def edit_redis(self, member: str, name: str | None, score: int) -> None:
        if name is None:
            self.client.delete(f"player:{member}")
        else:
            self.client.hset(f"player:{member}", mapping={"name": name, "score": score})

    def edit_postgres(self, member: str, name: str | None, score: int) -> None:
        if name is None:
            self.database.execute("delete from player where id = %s", member)
        else:
            self.database.execute(
                "insert into player values (%s, %s, %s) on conflict (id) do update"
                " set name = excluded.name, score = excluded.score",
                member,
                name,
                score,
            )

    def is_equal(self) -> bool:
        here, there = self.in_postgres(), self.in_redis()
        assert here == there, {
            k: (here.get(k), there.get(k)) for k in here.keys() | there.keys() if here.get(k) != there.get(k)
        }
        return True

    def runs(self) -> tuple[int, int]:
        """How many runs there were, and how many edits of Redis they told."""
        query = "select count(*), coalesce(sum(created + updated + deleted), 0) from syncline.sync_periodic_runs"
        (found,) = self.database.execute(query)
        return int(found[0]), int(found[1])

    def writes(self) -> int:
        """How many rows of the table were written, by whomever."""
        self.database.execute("select pg_stat_force_next_flush()")
        query = "select n_tup_ins + n_tup_upd + n_tup_del from pg_stat_user_tables where relname = 'player'"
        return int(self.database.value(query))

    def is_at_third(self) -> None:
        """Wait until the third copy has everything that is committed by now."""
        goal = self.now()
        query = "select count(*) from syncline.sync_status where target = 'third' and place >= %s"
        eventually(lambda: self.database.value(query, goal) == 1)

    def is_quiet(self) -> None:
        """Wait until three runs one after the other have found nothing to tell, which an echo would never let be."""
        query = (
            "select count(*), sum(created + updated + deleted) from (select * from syncline.sync_periodic_runs"
            " where state = 'done' and id > %s order by id desc limit 3) as latest"
        )
        (before,) = self.database.execute("select coalesce(max(id), 0) from syncline.sync_periodic_runs")[0]
        eventually(lambda: self.database.execute(query, before)[0] == (3, 0), 60)


@pytest.fixture
def sides(database: Database, tmp_path: Path, valkey: EmbeddedValkey) -> Iterator[Sides]:
    sides = Sides(database, tmp_path, valkey)
    with sides.client:
        yield sides


def test_what_either_side_changes_arrives_at_the_other_and_does_not_come_back(sides: Sides, nursery: Nursery) -> None:
    # The target would add its column, and the table be read again for that: an edit meanwhile may be told twice.
    sides.database.execute("alter table player add column _syncline_version int8")
    sides.edit_postgres("a", "Ann", 1)
    sides.edit_redis("b", "Bob", 2)
    child = nursery.start(sides)
    eventually(sides.is_equal)
    assert sides.in_redis() == {"a": ("Ann", 1), "b": ("Bob", 2)}
    sides.client.hincrby("player:a", "score", 10)
    eventually(lambda: sides.in_postgres()["a"] == ("Ann", 11))
    sides.database.execute("update player set score = score + 100 where id in ('a', 'b')")
    eventually(lambda: sides.in_redis() == {"a": ("Ann", 111), "b": ("Bob", 102)})
    sides.client.delete("player:a")
    eventually(lambda: "a" not in sides.in_postgres())
    sides.database.execute("delete from player where id = 'b'")
    eventually(lambda: sides.in_redis() == {})
    sides.is_quiet()
    sides.is_at_third()
    assert sides.runs()[1] == 3, "only what was edited in Redis was told"
    assert child.terminate() == 0
    assert sides.in_third() == {}


def test_of_two_edits_of_one_row_that_of_postgresql_stays_and_the_other_is_told(sides: Sides, nursery: Nursery) -> None:
    sides.edit_postgres("a", "Ann", 1)
    child = nursery.start(sides)
    eventually(sides.is_equal)
    sides.is_quiet()
    assert child.terminate() == 0
    sides.edit_redis("a", "of redis", 2)
    sides.edit_postgres("a", "of postgres", 3)
    child = nursery.start(sides)
    eventually(sides.is_equal)
    sides.is_quiet()
    assert sides.in_redis() == sides.in_postgres() == {"a": ("of postgres", 3)}
    assert child.terminate() == 0
    assert "edits overruled" in (sides.folder / "engine.log").read_text()


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("lasting_s", [120, pytest.param(600, marks=pytest.mark.soak)])
def test_edits_that_alternate_on_both_sides_converge_through_a_kill(
    sides: Sides, nursery: Nursery, lasting_s: float
) -> None:
    chance, began, rounds, edits = random.Random(5), time.monotonic(), 0, {"redis": 0, "postgres": 0}
    child = nursery.start(sides)
    while rounds < 24 or time.monotonic() < began + lasting_s:
        for _ in range(6):
            side = chance.choice(list(edits))
            edit = sides.edit_redis if side == "redis" else sides.edit_postgres
            name = None if chance.random() < 0.2 else f"{side} {rounds}"
            edit(f"m{chance.randrange(12)}", name, chance.randrange(1000))
            edits[side] += 1
        rounds += 1
        if rounds % 12 == 0:
            assert child.kill() == -signal.SIGKILL
            child = nursery.start(sides)
        elif rounds % 4 == 0:  # the others go on beside what is under way
            eventually(sides.is_equal, 60)
    eventually(sides.is_equal, 60)
    sides.is_quiet()
    sides.is_equal()
    told = sides.runs()[1]
    assert told <= edits["redis"], "what Syncline wrote was told as an edit of Redis"
    assert sides.writes() <= edits["postgres"] + 3 * edits["redis"], "what came back was written again"
    sides.is_at_third()
    assert child.terminate() == 0
    assert sides.in_third() == sides.in_postgres() == sides.in_redis()
    print(f"{rounds} rounds, {edits} edits, {told} told by Redis, {time.monotonic() - began:.0f} s")
