"""Odd values of a table that is edited both ways: both sides come to the same."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from reliability.harness import Nursery
from reliability.test_both_ways import Sides
from servers import Database, eventually
from syncline.embedded import EmbeddedValkey

KINDS = {
    "i": "int8",
    "f": "float8",
    "n": "numeric(12,3)",
    "b": "bool",
    "d": "date",
    "z": "timestamptz",
    "s": "timestamp",
    "t": "text",
}


class Odd(Sides):
    def __init__(self, database: Database, folder: Path, valkey: EmbeddedValkey) -> None:
        super().__init__(database, folder, valkey)
        columns = ", ".join(f"{n} {k}" for n, k in KINDS.items())
        database.execute("drop table player")
        database.execute(f"create table player (id text primary key, {columns}, _syncline_version int8)")
        del self.settings["targets"]["third"]
        self.settings["sources"]["edits"]["columns"] = {
            n: {"hash": "player:{member}", "type": k} for n, k in KINDS.items()
        }
        hashed = {"hash": {"key": "player:{id}", "columns": list(KINDS)}, "columns": list(KINDS)}
        self.settings["targets"]["cache"]["tables"] = {"public.player": hashed}
        self.write()

    def in_postgres(self) -> Any:
        shown = ", ".join(f"{n}::text" for n in KINDS)
        with self.database.connect() as c:
            c.execute("set timezone = 'UTC'")
            return {i: tuple(rest) for i, *rest in c.execute(f"select id, {shown} from player").fetchall()}

    def in_redis(self) -> Any:
        found = {}
        shown = ", ".join(f"(%s::text::{k})::text" for k in KINDS.values())
        with self.database.connect() as c:
            c.execute("set timezone = 'UTC'")
            for key in self.client.scan_iter("player:*", 1000):
                held: Any = self.client.hgetall(key)
                values = [held.get(n) for n in KINDS]
                found[key.removeprefix("player:")] = c.execute(f"select {shown}", values).fetchone()
        return found

    def is_equal_but_null(self) -> bool:
        """As far as both can be: a row of NULLs has no hash."""
        here = {k: r for k, r in self.in_postgres().items() if any(v is not None for v in r)}
        there = self.in_redis()
        diff = {k: (here.get(k), there.get(k)) for k in here.keys() | there.keys() if here.get(k) != there.get(k)}
        assert not diff, str(diff)[:3000]
        return True

    def put(self, member: str, **values: Any) -> None:
        names = ", ".join(values)
        marks = ", ".join(f"%s::text::{KINDS[n]}" for n in values)
        sets = ", ".join(f"{n} = excluded.{n}" for n in values)
        self.database.execute(
            f"insert into player (id, {names}) values (%s, {marks}) on conflict (id) do update set {sets}",
            member,
            *values.values(),
        )

    def overruled(self) -> list[str]:
        log = self.folder / "engine.log"
        return [line for line in log.read_text().splitlines() if "overruled" in line] if log.exists() else []


@pytest.fixture
def odd(database: Database, tmp_path: Path, valkey: EmbeddedValkey) -> Iterator[Odd]:
    odd = Odd(database, tmp_path, valkey)
    with odd.client:
        yield odd


BIG = "x" * 300_000
VALUES: dict[str, list[str]] = {
    "i": ["9223372036854775807", "-9223372036854775808", "0"],
    "f": ["-0", "1e308", "NaN", "Infinity", "-Infinity", "5e-324", "0.1", "1.7976931348623157e308"],
    "n": ["999999999.999", "-0.001", "0.000"],
    "b": ["true", "false"],
    "d": ["0001-01-01", "9999-12-31", "2024-02-29"],
    "z": ["0001-01-01 00:00:00+00", "9999-12-31 23:59:59.999999+00", "2024-03-31 02:30:00+05:30"],
    "s": ["0001-01-01 00:00:00", "9999-12-31 23:59:59.999999"],
    "t": ["", "\n", "\u00e4\u65e5\U0001f600", BIG, '"\\{}[]*?', "\x7f\x01\t", "null", "NULL"],
}
KEYS = ["*", "a*b?[c]", "{id}", "{member}", "{}", "\u00e4\U0001f600", "a\nb", "a b", "", "a:b", "\\", "'", '"', "%s"]


def test_odd_values_and_keys(odd: Odd, nursery: Nursery) -> None:
    number = 0
    for name, texts in VALUES.items():
        for text in texts:
            odd.put(f"p{number}", **{name: text})
            odd.client.hset(f"player:r{number}", name, text)
            number += 1
    for key in KEYS:
        odd.put(f"p{key}", t=key)
        odd.client.hset(f"player:r{key}", "t", key)
    odd.put("", t="empty key")
    odd.put("all null", t=None)
    child = nursery.start(odd)
    eventually(odd.is_equal_but_null, 30)
    odd.is_quiet()
    # Now edits on the other side of what is there.
    for k in range(number):
        odd.client.hset(f"player:p{k}", "i", "7")
        odd.put(f"r{k}", i="8")
    for key in KEYS:
        odd.client.hset(f"player:p{key}", "i", "7")
        odd.put(f"r{key}", i="8")
    odd.client.hset("player:", "i", "7")
    odd.client.hset("player:all null", "i", "7")
    eventually(odd.is_equal_but_null, 30)
    odd.is_quiet()
    odd.is_equal_but_null()
    rows = odd.in_postgres()
    wrong = [k for k, r in rows.items() if r[0] not in ("7", "8")]
    assert not wrong, wrong
    # Deletes on either side.
    for k in range(number):
        odd.client.delete(f"player:r{k}")
        odd.database.execute("delete from player where id = %s", f"p{k}")
    for key in KEYS:
        odd.client.delete(f"player:r{key}")
        odd.database.execute("delete from player where id = %s", f"p{key}")
    odd.client.delete("player:", "player:all null")
    eventually(lambda: odd.in_postgres() == odd.in_redis() == {}, 30)
    odd.is_quiet()
    assert odd.letters() == []
    assert child.terminate() == 0


@pytest.mark.parametrize(
    ("name", "rare", "usual"),
    [
        ("d", "infinity", "2020-01-01"),
        ("z", "infinity", "2020-01-01 00:00:00+00"),
        ("d", "0044-03-15 BC", "2020-01-01"),
        ("s", "12024-01-01 00:00:00", "2020-01-01 00:00:00"),
    ],
)
def test_an_edit_that_replaces_a_value_that_redis_source_can_not_read(
    odd: Odd, nursery: Nursery, name: str, rare: str, usual: str
) -> None:
    odd.put("a", **{name: rare, "i": "1"})
    child = nursery.start(odd)
    eventually(odd.is_equal_but_null)
    odd.is_quiet()
    odd.client.hset("player:a", mapping={name: usual})
    odd.is_quiet()
    eventually(odd.is_equal_but_null)
    assert not odd.overruled()
    assert child.terminate() == 0


def test_a_field_is_removed_that_held_a_value_that_redis_source_can_not_read(odd: Odd, nursery: Nursery) -> None:
    odd.put("a", d="infinity", i="1")
    child = nursery.start(odd)
    eventually(odd.is_equal_but_null)
    odd.is_quiet()
    odd.client.hdel("player:a", "d")
    eventually(odd.is_equal_but_null)
    odd.is_quiet()
    assert not odd.overruled()
    assert odd.in_postgres()["a"][4] is None
    assert child.terminate() == 0


@pytest.mark.parametrize(
    ("name", "text"),
    [("i", "9999999999"), ("d", "0000-01-01"), ("z", "9999-12-31 23:00:00-05"), ("t", "too long"), ("n", "1e5")],
)
def test_an_edit_that_does_not_fit_stops_no_other(odd: Odd, nursery: Nursery, name: str, text: str) -> None:
    odd.database.execute("alter table player add check (i < 1000), add check (length(t) < 4)")
    odd.put("a", i="1")
    child = nursery.start(odd)
    eventually(odd.is_equal_but_null)
    odd.is_quiet()
    odd.client.hset("player:a", name, text)
    odd.client.hset("player:b", "i", "5")
    eventually(lambda: odd.in_postgres().get("b", [""])[0] == "5")
    odd.client.hset("player:c", "i", "6")
    eventually(lambda: odd.in_postgres().get("c", [""])[0] == "6")
    odd.is_quiet()
    assert child.terminate() == 0
