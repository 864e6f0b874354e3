"""A table that is edited both ways, while it is read again, truncated, written as it was, and the engine killed."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from reliability.harness import Nursery
from reliability.test_both_ways import Sides
from servers import Database, eventually
from syncline.catalog.repository import ControlSchema
from syncline.embedded import EmbeddedValkey

NOTES = "create table audit (n bigserial, x text, op text, id text, was int8, score int8, ours bool)"
NOTING = """
create function audited() returns trigger language plpgsql as $$
begin
  insert into public.audit (x, op, id, was, score, ours) values (pg_current_xact_id()::text, tg_op,
    case tg_op when 'DELETE' then old.id else new.id end,
    case tg_op when 'INSERT' then null else old.score end, case tg_op when 'DELETE' then null else new.score end,
    current_setting('session_replication_role') = 'replica');
  return null;
end $$
"""
TRIGGER = "create trigger audited after insert or update or delete on player for each row execute function audited()"


class Watched(Sides):
    """Each edit has a score of its own, and all that was written to PostgreSQL is noted there."""

    def __init__(self, database: Database, folder: Path, valkey: EmbeddedValkey) -> None:
        super().__init__(database, folder, valkey)
        for statement in (NOTES, NOTING, TRIGGER, "alter table player enable always trigger audited"):
            database.execute(statement)
        database.execute("alter table player add column _syncline_version int8")
        self.score = 1000
        self.last: dict[str, int | None] = {}
        self.deletes: dict[str, int] = {}
        self.edits: list[tuple[Any, ...]] = []

    def resync(self, source: str = "main") -> None:
        with ControlSchema(self.database.dsn, "syncline") as control:
            control.request_resync(source, ["public.player"] if source == "main" else None)

    def edit(self, chance: random.Random, rows: int) -> None:
        """An edit of a row of Redis alone (r), of PostgreSQL alone (p) or of both (m)."""
        kind = chance.choice("rpm")
        member = f"{kind}{chance.randrange(rows)}"
        side = kind if kind != "m" else chance.choice("rp")
        self.score += 1
        name = None if chance.random() < 0.15 else f"{side} {self.score}"
        self.edits.append((member, side, name, time.monotonic()))
        if side == "r":
            if name is None:
                self.deletes[member] = self.deletes.get(member, 0) + 1
            self.edit_redis(member, name, self.score)
        else:
            self.edit_postgres(member, name, self.score)
        self.last[member] = None if name is None else self.score

    def noop(self) -> None:
        self.database.execute("update player set score = score")

    def reverted(self) -> list[object]:
        """What Syncline wrote that had been written to that row before, and deletes nobody asked for."""
        found: list[object] = []
        seen: dict[tuple[str, int], str] = {}
        ours: dict[str, set[str]] = {}
        for n, x, op, i, was, score, mine in self.database.execute(
            "select n, x, op, id, was, score, ours from audit where id is not null order by n"
        ):
            if op == "DELETE":
                if mine:
                    ours.setdefault(i, set()).add(x)
                continue
            if op == "UPDATE" and was == score:
                continue
            if mine and score > 1000 and seen.get((i, score), x) != x:
                found.append((n, op, i, was, score))
            seen.setdefault((i, score), x)
        found += [
            ("deleted", i, len(x), self.deletes.get(i)) for i, x in ours.items() if len(x) > self.deletes.get(i, 0)
        ]
        return found

    def story(self, found: list[Any]) -> str:
        """All that was written of the rows in question."""
        rows = {str(i) for one in found for i in one if str(i)[:1] in "rpm"}
        told = self.database.execute("select * from audit where id = any(%s) or id is null order by n", list(rows))
        return "\n".join(map(str, [*found, *told, *self.edits]))

    def is_last(self, kinds: str = "rp") -> None:
        here = self.in_postgres()
        wrong = {}
        for member, score in self.last.items():
            if member[0] in kinds and (here[member][1] if member in here else None) != score:
                wrong[member] = (here.get(member), score)
        assert not wrong, wrong


def converge(watched: Watched) -> None:
    eventually(watched.is_equal, 60)
    watched.is_quiet()
    watched.is_equal()


@pytest.fixture
def watched(database: Database, tmp_path: Path, valkey: EmbeddedValkey) -> Iterator[Watched]:
    watched = Watched(database, tmp_path, valkey)
    with watched.client:
        yield watched


def settle(watched: Watched) -> None:
    converge(watched)
    found = watched.reverted()
    assert found == [], watched.story(found)


@pytest.mark.parametrize("seed", [1, pytest.param(2, marks=pytest.mark.soak)])
@pytest.mark.parametrize("what", ["resync", "noop", "edits", "kill"])
def test_edits_beside(watched: Watched, nursery: Nursery, what: str, seed: int) -> None:
    chance = random.Random(seed)
    for _ in range(60):
        watched.edit(chance, 20)
    child = nursery.start(watched)
    eventually(watched.is_equal, 60)
    watched.is_quiet()
    watched.last.clear()
    began = time.monotonic()
    turn = 0
    while time.monotonic() < began + 5:
        turn += 1
        for _ in range(chance.randrange(4)):
            watched.edit(chance, 20)
        time.sleep(chance.random() * 0.03)
        if turn % 10 == 0:
            if what in ("resync", "kill"):
                watched.resync()
            elif what == "edits":
                watched.resync("edits")
            else:
                watched.noop()
        if turn % 60 == 0 and what == "kill":
            child.kill()
            child = nursery.start(watched)
    settle(watched)
    watched.is_last()
    watched.is_at_third()
    assert child.terminate() == 0
    assert watched.in_third() == watched.in_postgres()


@pytest.mark.parametrize("kill", [False, True])
def test_truncate_beside_edits(watched: Watched, nursery: Nursery, kill: bool) -> None:
    chance = random.Random(3)
    watched.edit_postgres("a", "Ann", 1)
    child = nursery.start(watched)
    eventually(watched.is_equal, 60)
    began = time.monotonic()
    turn = 0
    while time.monotonic() < began + 5:
        turn += 1
        for _ in range(chance.randrange(4)):
            watched.edit(chance, 20)
        time.sleep(chance.random() * 0.03)
        if turn % 15 == 0:
            watched.resync()
        if turn % 40 == 0:
            watched.database.execute("truncate player")
            watched.database.execute("insert into audit (op) values ('TRUNCATE')")
            watched.edits.append(("truncate", time.monotonic()))
        if turn % 65 == 0 and kill:
            watched.edits.append(("kill", time.monotonic()))
            child.kill()
            child = nursery.start(watched)
    converge(watched)  # an edit from just before may bring its row back (docs/both-ways.md)
    watched.is_at_third()
    assert child.terminate() == 0
    assert watched.in_third() == watched.in_postgres()


@pytest.mark.parametrize("rows", [15_000, pytest.param(45_000, marks=pytest.mark.soak)])
@pytest.mark.parametrize("toasted", [False, True])
def test_a_large_table_read_again_beside_edits(watched: Watched, nursery: Nursery, rows: int, toasted: bool) -> None:
    watched.settings["sources"]["edits"]["every_s"] = 3
    watched.write()
    watched.database.execute("alter table player alter name set storage external")
    watched.database.execute(
        f"insert into player select 'b' || n, 'name', n % 1000 from generate_series(1, {rows}) as n"
    )
    long = "y" * 3000
    for n in range(60):
        watched.edit_postgres(f"r{n}", long if toasted else "name", 1)
        watched.edit_postgres(f"p{n}", long if toasted else "name", 1)
    child = nursery.start(watched)
    eventually(lambda: watched.client.exists("player:p59") and len(watched.in_redis()) == rows + 120, 100)
    watched.is_quiet()
    for turn in range(60):
        if turn % 15 == 0:
            watched.resync()
        watched.score += 1
        watched.client.hset(f"player:r{turn}", "score", watched.score)
        watched.last[f"r{turn}"] = watched.score
        watched.score += 1
        watched.database.execute("update player set score = %s where id = %s", watched.score, f"p{turn}")
        watched.last[f"p{turn}"] = watched.score
        time.sleep(0.05)
    eventually(watched.is_equal, 100)
    watched.is_quiet()
    watched.is_equal()
    assert watched.reverted() == [], watched.reverted()
    watched.is_last()
    assert child.terminate() == 0
