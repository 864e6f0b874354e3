"""Columns that are called like ours: what Syncline adds to a row stands behind its columns, and goes by place."""

from __future__ import annotations

import pytest

from reliability.harness import Rig

BIG = "(select string_agg(md5((g * 1000 + h)::text), '') from generate_series(1, 200) h)"
NAMES = "version int primary key, unchanged text, from_key text, n int, v int, op int, c0 text, i int, inexact bool"


@pytest.fixture
def named(rig: Rig) -> Rig:
    rig.database.execute(f"create table item ({NAMES}); alter table item alter unchanged set storage external")
    rig.database.execute(
        f"insert into item select g, {BIG}, 'k' || g, g, g, g, 'c', g, g % 2 = 0 from generate_series(1, 20) g"
    )
    return rig


def test_partial_rows_moved_keys_and_deletes_arrive(named: Rig) -> None:
    with named.running() as engine:
        named.database.execute("update item set n = n + 100 where version < 10; delete from item where version = 3")
        named.database.execute("update item set version = version + 1000, v = 0 where version between 12 and 14")
        named.database.execute("begin; update item set op = 0; update item set c0 = version where n > 5; commit")
        engine.equal()


def test_rows_that_the_copy_lacks_are_healed(named: Rig) -> None:
    named.sync()
    with named.open() as copy:
        copy.execute("delete from item where version = 5")
    with named.running() as engine:
        named.database.execute("update item set n = -1 where version in (5, 6)")
        engine.equal()
        assert engine.targets()["main"]["healed"] == 1


def test_rows_that_the_copy_refuses_are_parked_with_their_followers(named: Rig) -> None:
    with named.open() as copy:
        columns = NAMES.replace("primary key", "").replace("text", "varchar").replace("n int", "n int check (n <> 7)")
        copy.execute(f"create table item ({columns})")
    with named.running(until_loaded=False) as engine:
        engine.settle()
        assert len(named.letters()) == 1
        named.database.execute("update item set i = 0 where version in (7, 8)")
        engine.settle()
        assert len(named.letters()) == 2
        named.database.execute("update item set n = 8, unchanged = 'short' where version = 7")
        engine.equal()
        assert named.letters() == []


def test_mapped_rows_are_what_their_mapping_says(named: Rig) -> None:
    named.settings["targets"]["main"]["tables"] = {"public.item": {"where": "n > 5", "exclude": ["from_key"]}}
    named.write()
    with named.running() as engine:
        named.database.execute("update item set n = 50 where version = 1; update item set n = 0 where version = 20")
        named.database.execute("update item set v = -1 where version = 10; delete from item where version = 11")
        engine.settle()
        found = engine.query("select version, n, v, length(unchanged) from item order by version")
    kept = [1, *range(6, 11), *range(12, 20)]
    assert found == [(k, 50 if k == 1 else k, -1 if k == 10 else k, 6400) for k in kept]
