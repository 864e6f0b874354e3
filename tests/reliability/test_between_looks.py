"""What happens to a table between two looks at the catalogue, or while nobody looks, and is sent by no row.

The engine looks every few seconds; each of these once left a copy that differed for ever without a word.
"""

from __future__ import annotations

import hashlib

import pytest

from reliability.harness import Engine, Rig
from servers import eventually
from syncline.catalog.repository import ControlSchema
from syncline.errors import SynclineError

ITEMS = (
    "create table {0} (id int primary key, v text); insert into {0} select g, '{0}' || g from generate_series(1, 9) g"
)


def equal(rig: Rig, engine: Engine) -> bool:
    found = rig.difference(engine)
    assert found == "", found
    return True


def label_like(label: str, digits: int) -> str:
    """Another label whose MD5, which PostgreSQL has too, begins with the same digits."""

    def digest(text: str) -> str:
        return hashlib.md5(text.encode(), usedforsecurity=False).hexdigest()[:digits]

    return next(f"l{n}" for n in range(10**6) if digest(f"l{n}") == digest(label))


# What is there first, and what changes rows, or their names, without a row event.
SILENT = {
    "two tables swap names": (
        ITEMS.format("a") + ";" + ITEMS.format("b") + "; insert into b values (10, 'more')",
        "begin; alter table a rename to x; alter table b rename to a; alter table x rename to b; commit",
    ),
    "an attribute is added to a composite type": (
        "create type pair as (x int, y text); create table c (id int primary key, p pair);"
        "insert into c select g, row(g, 'y')::pair from generate_series(1, 5) g",
        "alter type pair add attribute z int",
    ),
    "an attribute of a composite type is dropped": (
        "create type pair as (x int, y text); create table c (id int primary key, p pair[]);"
        "insert into c select g, array[row(g, 'y')::pair] from generate_series(1, 5) g",
        "alter type pair drop attribute x",
    ),
    "a label is renamed to one with a like digest": (
        "create type mood as enum ('new', 'old'); create table c (id int primary key, m mood);"
        "insert into c select g, 'new' from generate_series(1, 5) g",
        f"alter type mood rename value 'new' to '{label_like('new', 4)}'",
    ),
    "a partition is detached, changed and attached": (
        "create table p (id int primary key, v text) partition by range (id);"
        "create table p1 partition of p for values from (0) to (10);"
        "insert into p select g, 'a' from generate_series(1, 9) g",
        "begin; alter table p detach partition p1; update p1 set v = 'changed' where id < 4;"
        " delete from p1 where id = 9; alter table p attach partition p1 for values from (0) to (10); commit",
    ),
    "a table has another name for a while": (
        ITEMS.format("t"),
        "begin; alter table t rename to t_old; update t_old set v = 'changed' where id = 1;"
        " insert into t_old values (30, 'new'); alter table t_old rename to t; commit",
    ),
}


@pytest.mark.parametrize("case", SILENT)
def test_what_no_row_tells_is_noticed(rig: Rig, case: str) -> None:
    setup, change = SILENT[case]
    rig.set("source", excluded_tables=["public.t_old"])
    rig.database.execute(setup)
    with rig.running() as engine:
        engine.equal()
        rig.database.execute(change)
        eventually(lambda: equal(rig, engine))
        engine.equal()
    assert rig.gaps(ever=True) == []


def test_a_table_that_is_renamed_arrives_under_its_new_name_with_what_follows(rig: Rig) -> None:
    rig.set("source", monitored_tables=["*.*"])
    rig.database.execute(f"create schema s2; {ITEMS.format('old')}; {ITEMS.format('m')}")
    with rig.running() as engine:
        rig.database.execute("alter table old rename to fresh")
        rig.database.execute("alter table m set schema s2")
        eventually(lambda: equal(rig, engine))
        rig.database.execute("insert into fresh values (20, 'streamed'); insert into s2.m values (20, 'streamed')")
        engine.equal()


def test_another_primary_key_under_full_identity_is_the_key_from_then_on(rig: Rig) -> None:
    rig.database.execute(
        "create table t (a int primary key, b int not null, v text); alter table t replica identity full;"
        "insert into t select g, g, 'v' from generate_series(1, 5) g"
    )
    with rig.running() as engine:
        rig.database.execute("update t set v = 'seen' where a = 1")
        engine.equal()
        rig.database.execute("begin; alter table t drop constraint t_pkey; alter table t add primary key (b); commit")
        eventually(lambda: engine.source.loads.finished > 0)
        engine.settle()
        rig.database.execute("insert into t values (1, 100, 'x'), (1, 101, 'y')")
        eventually(lambda: equal(rig, engine))


def test_a_table_that_nobody_monitored_while_the_target_rested_comes_back_whole(rig: Rig) -> None:
    rig.set("source", monitored_tables=["public.a", "public.b"])
    rig.database.execute(ITEMS.format("a") + ";" + ITEMS.format("b"))
    rig.sync()
    with ControlSchema(rig.database.dsn) as control:
        control.pause(target="main")
        rig.set("source", monitored_tables=["public.a"])
        with rig.running(until_loaded=False) as engine:
            eventually(lambda: engine.state() == "streaming")
            rig.database.execute("insert into b values (20, 'x'); update b set v = 'y' where id = 1")
            rig.database.execute("insert into a values (20, 'x')")
            goal = rig.now()
            eventually(lambda: engine.source.log.status().place >= goal)
        control.resume(target="main")
    rig.set("source", monitored_tables=["public.a", "public.b"])
    with rig.running() as engine:
        engine.equal()


def test_a_slot_that_is_moved_while_tables_are_loaded_is_a_gap(rig: Rig) -> None:
    rig.database.execute(ITEMS.format("a"))
    rig.sync()
    rig.set("source", load_chunk_bytes=8192)
    rig.database.execute(
        "create table big (id int primary key, v text);"
        "insert into big select g, repeat(md5(g::text), 8) from generate_series(1, 60000) g"
    )
    with rig.running(until_loaded=False) as engine:
        eventually(lambda: engine.service.status()["sources"]["main"]["loading"], every_s=0.002)
        rig.database.execute("insert into a values (20, 'lost')")
        rig.database.execute("select pg_replication_slot_advance(%s, pg_current_wal_lsn())", rig.slot)
        eventually(lambda: "SL-GAP" in rig.gaps(), 60)


# --------------------------------------------------------------------------------------------------- what has to clear


def test_the_alert_of_a_table_that_was_left_out_clears_with_its_cause(rig: Rig) -> None:
    rig.database.execute(
        f"{ITEMS.format('t')}; create table gone (id int); create table mended (id int not null, v text);"
        "insert into mended values (1, 'a'); create table nameless (id int primary key, v text);"
        "alter table nameless replica identity nothing; insert into nameless values (1, 'a')"
    )
    with rig.running() as engine:
        eventually(lambda: rig.alerts().count("SL-TABLE-LEFT-OUT") == 3)
        rig.database.execute("drop table gone")
        rig.database.execute("alter table mended add primary key (id)")
        rig.database.execute("alter table nameless replica identity default")
        eventually(lambda: "SL-TABLE-LEFT-OUT" not in rig.alerts())
        eventually(lambda: equal(rig, engine))


def test_what_is_parked_of_a_table_that_is_emptied_or_dropped_is_superseded(rig: Rig) -> None:
    rig.database.execute(
        "create table t (id int primary key, n numeric(6,2)); create table u (id int primary key, n numeric(6,2));"
        "create table rest (id int primary key)"
    )
    with rig.running() as engine:
        rig.database.execute("insert into t values (1, 'NaN'); insert into u values (1, 'NaN')")
        eventually(lambda: len(rig.letters()) == 2)
        rig.database.execute("truncate t")
        eventually(lambda: [table for table, _ in rig.letters()] == ["public.u"])
        rig.database.execute("insert into t values (1, 'NaN')")
        eventually(lambda: len(rig.letters()) == 2)
        rig.database.execute("drop table u")
        eventually(lambda: [table for table, _ in rig.letters()] == ["public.t"])
        rig.database.execute("update t set n = 1")
        eventually(lambda: not rig.letters())  # just before the write that supersedes it
        eventually(lambda: engine.query("select id, n::int from t") == [(1, 1)])


@pytest.mark.parametrize("postgres_version", [17, 18])
def test_a_publication_that_is_dropped_under_the_stream_heals_by_itself_with_on_gap_resync(rig: Rig) -> None:
    rig.set("source", on_gap="resync")
    rig.database.execute(ITEMS.format("t"))

    def healed(engine: Engine) -> bool:
        try:
            return equal(rig, engine)
        except SynclineError:
            return False  # the targets are being opened again

    with rig.running() as engine:
        rig.database.execute("drop publication syncline; insert into t values (20, 'x')")
        eventually(lambda: healed(engine), 40)
        rig.database.execute("insert into t values (21, 'y')")
        eventually(lambda: healed(engine), 40)
