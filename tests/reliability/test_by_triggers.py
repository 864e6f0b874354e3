"""Engines whose source is captured by triggers, at a server where no replication slot can be made."""

from __future__ import annotations

import random
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from reliability.engine import POLLING_POINTS
from reliability.harness import Engine, Nursery, Rig, ended_with
from reliability.workload import SCHEMA, Workload
from servers import Database, eventually
from syncline.config import load_config
from syncline.errors import Gap, SynclineError
from syncline.pipeline import SyncService
from syncline.verify import verify

EVENTS = "syncline_triggers.sync_events"


@pytest.fixture
def rig(plain_database: Database, tmp_path: Path) -> Rig:
    return by_triggers(plain_database, tmp_path)


def by_triggers(database: Database, folder: Path, **settings: Any) -> Rig:
    source = {"type": "triggers", "poll_s": 0.02, **settings}
    return Rig(database, folder, source=source, target={"door": True})


def soon_equal(rig: Rig, engine: Engine) -> None:
    """Wait until the copy is as its source, whatever has to be opened and read for that."""

    def equal() -> bool:
        try:
            found = rig.difference(engine)
        except SynclineError as error:  # the target is not open yet, or opened again
            found = str(error)
        assert found == "", found
        return True

    eventually(equal, timeout_s=40)


def test_a_copy_follows_its_source_and_is_verified_equal_without_a_slot(rig: Rig) -> None:
    database = rig.database
    assert database.value("show wal_level") == "replica"
    database.execute(SCHEMA)
    database.execute("insert into item select g, 'n', g, now(), 'd' from generate_series(1, 500) g")
    with rig.running() as engine:
        database.execute("update item set amount = amount + 0.5 where id < 100; delete from item where id > 450")
        database.execute(
            """insert into line values (1, 1, 'a', 'b'); insert into "Log ""of"" it" ("What") values ('x')"""
        )
        database.execute("update item set id = id + 1000 where id between 200 and 210; truncate line")
        engine.equal()
        report = verify(load_config(rig.config), engine=SyncService)
    assert report.differences == 0
    assert {t.table: t.state for t in report.tables} == dict.fromkeys(
        ("public.item", "public.line", 'public.Log "of" it'), "compared"
    )


def test_verification_finds_what_bypassed_the_triggers_and_nothing_that_is_in_flight(rig: Rig) -> None:
    database = rig.database
    database.execute("create table item (id int primary key, name text)")
    database.execute("insert into item select g, 'n' from generate_series(1, 200) g")
    stop = threading.Event()

    def write() -> None:
        with database.connect(autocommit=False) as connection:
            while not stop.wait(0.002):
                connection.execute("update item set name = name || '.' where id = %s", [random.randint(10, 200)])
                connection.commit()

    with rig.running() as engine:
        writer = threading.Thread(target=write)
        writer.start()
        try:
            assert verify(load_config(rig.config), engine=SyncService).differences == 0
            database.execute("set session_replication_role = replica; update item set name = 'behind' where id = 3")
            report = verify(load_config(rig.config), engine=SyncService)
        finally:
            stop.set()
            writer.join()
        assert report.differences == 1
        assert report.tables[0].different == 1
        engine.service.resync("main", ["public.item"])
        engine.equal()


def test_sixteen_writers_with_late_commits_lose_nothing(rig: Rig) -> None:
    """What a poller by number loses half of (hard-cases: Outbox and triggers)."""
    database = rig.database
    database.execute("create table item (id bigint generated always as identity primary key, writer int, n int)")
    stop = threading.Event()

    def write(writer: int) -> None:
        chance = random.Random(writer)
        with database.connect(autocommit=False) as connection:
            n = 0
            while not stop.is_set():
                for _ in range(chance.randint(1, 3)):
                    n += 1
                    connection.execute("insert into item (writer, n) values (%s, %s)", [writer, n])
                connection.execute("update item set n = -n where writer = %s and n = %s", [writer, n])
                time.sleep(chance.uniform(0, 0.03))  # the delay of the commit is what this is about
                connection.rollback() if chance.random() < 0.1 else connection.commit()

    with rig.running() as engine:
        writers = [threading.Thread(target=write, args=(number,)) for number in range(16)]
        for writer in writers:
            writer.start()
        eventually(lambda: database.value("select count(*) from item") > 3000, timeout_s=60)
        stop.set()
        for writer in writers:
            writer.join()
        engine.equal()


@pytest.mark.parametrize("point", sorted(POLLING_POINTS))
def test_a_kill_at_any_point_ends_equal(rig: Rig, nursery: Nursery, point: str) -> None:
    rig.set("source", max_entry_bytes=65_536, batch_rows=500, load_chunk_bytes=65_536)
    rig.set("apply", max_rows=500)
    rig.database.execute(SCHEMA)
    rig.database.execute("insert into item select g, 'n', g, now(), repeat('x', 300) from generate_series(1, 2000) g")
    died = [nursery.run(rig, point=point) == -signal.SIGKILL]
    rig.database.execute("insert into item select g, 'large', g, now(), 'd' from generate_series(10000, 13000) g")
    rig.database.execute("update item set id = id + 1000000 where id < 50; delete from item where id % 7 = 0")
    died.append(nursery.run(rig, point=point, nth=2) == -signal.SIGKILL)
    rig.database.execute("truncate line; insert into line select g, 2, 'again', 'x' from generate_series(1, 50) g")
    nursery.finish(rig)
    assert rig.difference() == ""
    assert any(died), "the engine never came to this point"
    assert rig.gaps(ever=True) == []


@pytest.mark.parametrize("seed", [1, 2])
def test_kills_at_random_times_under_a_workload_each_end_equal(rig: Rig, nursery: Nursery, seed: int) -> None:
    chance = random.Random(seed)
    rig.database.execute(SCHEMA)
    with Workload(rig.database, seed) as workload:
        for cycle in range(6):
            child = nursery.start(rig)
            time.sleep(chance.uniform(0.1, 0.8))  # the moment of the kill, not a wait for anything
            assert child.kill() == -signal.SIGKILL
            with workload.quiet:
                nursery.finish(rig)
                assert rig.difference() == "", f"cycle {cycle} of seed {seed}"
            assert rig.gaps(ever=True) == []


def test_a_table_that_is_altered_is_read_again_and_its_functions_follow(rig: Rig) -> None:
    database = rig.database
    database.execute("create table item (id int primary key, name text); insert into item values (1, 'a')")
    with rig.running() as engine:
        for ddl in (
            "alter table item add column more int[] default '[2:2]={7}'",
            "alter table item drop column name; update item set more = null",
            "alter table item rename column id to key; update item set key = key + 1",
            "create table other (id int primary key); insert into other values (1)",
        ):
            database.execute(ddl)
            soon_equal(rig, engine)
        database.execute(
            "insert into item (key) values (9); delete from item where key = 2; insert into other values (2)"
        )
        engine.equal()
    assert rig.gaps(ever=True) == []


def test_what_was_written_while_triggers_were_disabled_or_gone_is_read(rig: Rig) -> None:
    database = rig.database
    database.execute("create table item (id int primary key, name text); insert into item values (1, 'a')")
    database.execute("create table other (id int primary key)")
    with rig.running() as engine:
        database.execute("alter table item disable trigger syncline_insert; insert into item values (2, 'b')")
        eventually(lambda: "SL-TABLE-LEFT-OUT" in rig.alerts())
        database.execute("alter table item enable trigger syncline_insert")
        soon_equal(rig, engine)
        oid = database.value("select 'item'::regclass::oid::int")
        database.execute(f"drop function syncline_triggers.capture_{oid} cascade; insert into item values (3, 'c')")
        soon_equal(rig, engine)
        database.execute("insert into item values (4, 'd')")
        engine.equal()


def test_events_purged_unread_and_an_installation_made_anew_are_gaps(rig: Rig) -> None:
    database = rig.database
    database.execute("create table item (id int primary key, name text); insert into item values (1, 'a')")
    rig.sync()
    database.execute("insert into item values (2, 'b')")
    database.execute("delete from syncline_triggers.sync_readers; insert into item values (3, 'c')")
    database.execute("insert into syncline_triggers.sync_readers select 'other', pg_current_xact_id()")
    database.execute("select syncline_triggers.purge_events('0 s')")
    with rig.running(until_loaded=False) as engine:
        assert "purged" in str(ended_with(Gap, engine))
        engine.service.resync()
        engine.equal()
    database.execute("drop schema syncline_triggers cascade; insert into item values (4, 'd')")
    rig.set("source", on_gap="resync")
    with rig.running(until_loaded=False) as engine:
        soon_equal(rig, engine)
        engine.equal()
    assert "SL-SOURCE-CHANGED" in rig.gaps(ever=True)


def test_a_source_may_change_from_the_wal_to_triggers(database: Database, tmp_path: Path) -> None:
    database.execute("create table item (id int primary key, name text); insert into item values (1, 'a'), (2, 'b')")
    wal = Rig(database, tmp_path)
    wal.sync()
    rig = by_triggers(database, tmp_path, on_gap="resync")
    database.execute("update item set name = 'c' where id = 1")
    with rig.running(until_loaded=False) as engine:
        soon_equal(rig, engine)
        database.execute("update item set name = 'd'; delete from item where id = 2")
        engine.equal()
    assert rig.gaps(ever=True) == ["SL-SOURCE-CHANGED"]


def test_the_engine_purges_what_every_reader_has(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    from syncline.capture.triggers import stream

    database = rig.database
    rig.set("source", heartbeat_s=0.1)
    database.execute("create table item (id int primary key)")
    monkeypatch.setattr(stream, "_AT_ONCE", 7)
    with rig.running() as engine:
        database.execute("insert into item select generate_series(1, 50)")
        engine.settle()
        database.execute(f"update {EVENTS} set recorded_at = now() - interval '2 hours'")
        eventually(lambda: database.value(f"select count(*) from {EVENTS}") == 0)
        database.execute("delete from item")
        engine.equal()
