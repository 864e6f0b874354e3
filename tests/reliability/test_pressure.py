"""What is too much: a full disk, a full log, a huge transaction. Nothing is confirmed that isn't durable, and all of it
goes on by itself."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from reliability.harness import Engine, Rig
from servers import Database, eventually
from syncline.catalog.repository import ControlSchema
from syncline.embedded import EmbeddedPostgres
from syncline.pipeline import SyncService

MIB = 1024 * 1024


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 8 MiB. Without the right to mount one the test is skipped, but never where CI is set."""
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if mounted.returncode:
        reason = f"no tmpfs can be mounted here: {mounted.stderr.decode().strip()}"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True, capture_output=True)


def confirmed(rig: Rig) -> int:
    query = "select (confirmed_flush_lsn - '0/0')::int8 from pg_replication_slots where slot_name = %s"
    return int(rig.database.value(query, rig.slot))


def incompressible(rig: Rig, first: int, rows: int) -> None:
    rig.database.execute(
        "insert into t select g, (select string_agg(md5((g * 1000 + h)::text), '') from generate_series(1, 60) h)"
        " from generate_series(%s::int, %s::int) g",
        first,
        first + rows - 1,
    )


def paused(engine: Engine, control: ControlSchema) -> None:
    control.pause(target="main")
    eventually(lambda: engine.targets()["main"]["state"] == "paused")


@pytest.mark.slow
def test_a_full_disk_of_the_log_stops_confirming_and_goes_on_by_itself_when_space_returns(
    pg_server: EmbeddedPostgres, tmp_path: Path, small_disk: Path
) -> None:
    pg_server.create_database("small")
    rig = Rig(Database(pg_server, "small"), tmp_path, log={"path": str(small_disk / "log"), "disk_reserve_bytes": MIB})
    rig.database.execute("alter system set wal_sender_timeout = '6s'")
    rig.database.execute("select pg_reload_conf()")
    rig.database.execute("create table t (id int primary key, v text)")
    filler = small_disk / "filler"
    sending = "select active_pid from pg_replication_slots where slot_name = %s"
    with rig.running() as engine:
        sender = rig.database.execute(sending, rig.slot)
        filler.write_bytes(b"x" * (6 * MIB))
        for part in range(10):
            incompressible(rig, part * 200, 200)
        goal = rig.now()
        eventually(lambda: "SL-DISK-FULL" in rig.alerts())
        stood = engine.source.log.status().place
        assert stood < goal
        rig.database.execute("select pg_sleep(13)")  # more than twice the server's patience
        assert rig.database.execute(sending, rig.slot) == sender
        assert confirmed(rig) <= engine.source.log.status().place < goal
        filler.unlink()
        engine.equal()
        eventually(lambda: "SL-DISK-FULL" not in rig.alerts())
    assert rig.gaps(ever=True) == []


def test_a_log_at_its_budget_holds_the_source_back_and_goes_on_when_the_target_does(rig: Rig) -> None:
    rig.set("log", max_bytes=MIB)
    rig.set("source", batch_bytes=65_536)
    rig.database.execute("create table t (id int primary key, v text)")
    control = ControlSchema(rig.database.dsn)
    with rig.running() as engine:
        paused(engine, control)
        for part in range(20):
            incompressible(rig, part * 100, 100)
        goal = rig.now()
        eventually(lambda: "SL-LOG-FULL" in rig.alerts())
        status = engine.source.log.status()
        assert status.place < goal
        assert status.size_bytes <= MIB
        assert confirmed(rig) <= status.place
        control.resume(target="main")
        engine.equal()
        eventually(lambda: "SL-LOG-FULL" not in rig.alerts())
    control.close()
    assert rig.gaps(ever=True) == []


def test_a_transaction_larger_than_the_budget_passes_alone(rig: Rig) -> None:
    rig.set("log", max_bytes=MIB)
    rig.set("source", max_entry_bytes=262_144, batch_bytes=65_536)
    rig.database.execute("create table t (id int primary key, v text)")
    with rig.running() as engine:
        incompressible(rig, 0, 100)
        incompressible(rig, 1000, 2000)
        incompressible(rig, 5000, 100)
        engine.equal()
    assert rig.gaps(ever=True) == []


def test_a_transaction_in_parts_is_invisible_at_the_target_until_it_is_whole(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig.set("source", max_entry_bytes=1 * MIB)
    rig.database.execute("create table t (id int primary key, v text)")
    with rig.running() as engine:
        store = engine.source.targets["main"].store
        seen: set[int] = set()
        original = store.apply

        def looked_at(work: object) -> None:
            original(work)
            with store._db.session() as connection:
                seen.add(connection.execute("select count(*) from t").fetchone()[0])

        monkeypatch.setattr(store, "apply", looked_at)
        rig.database.execute("insert into t select g, 'v' || g from generate_series(1, 300000) g")
        engine.settle()
        assert engine.query("select count(*), sum(id) from t") == [(300_000, 45_000_150_000)]
        assert seen <= {0, 300_000}
        assert engine.source.log.status().end > 10, "it was not stored in parts"


def test_a_transaction_beyond_the_stated_size_passes_by_part_and_ends_equal(rig: Rig) -> None:
    rig.set("source", max_entry_bytes=262_144)
    rig.set("apply", max_transaction_bytes=MIB, max_bytes=262_144)
    rig.database.execute("create table t (id int primary key, v text, n int default 0)")
    rig.database.execute("insert into t select g, 'old' from generate_series(1, 500) g")
    with rig.running() as engine:
        rig.database.execute(
            "begin; update t set n = 1; insert into t select g, repeat(md5(g::text), 5) from"
            " generate_series(1000, 20000) g;"
            " update t set n = n + 1 where id % 2 = 0; delete from t where id between 5000 and 6000; truncate t;"
            " insert into t select g, repeat(md5(g::text), 5) from generate_series(1, 15000) g; delete from t"
            " where id = 7;"
            " update t set id = 100007 where id = 8; commit"
        )
        engine.equal()


# -------------------------------------------------------------------------------------------------------------- pauses


def two_tables(rig: Rig) -> None:
    for name in ("a", "b"):
        rig.database.execute(f"create table {name} (id int primary key, v text, doc text)")
        rig.database.execute(f"alter table {name} alter doc set storage external")
        rig.database.execute(f"insert into {name} select g, 'first', repeat('x', 4000) from generate_series(1, 30) g")


def changed(rig: Rig, round_: int) -> None:
    for name in ("a", "b"):
        rig.database.execute(f"update {name} set v = 'round {round_}' where id % 2 = 0")
        rig.database.execute(f"update {name} set id = id + 1000 where id = {round_}")
        rig.database.execute(f"delete from {name} where id = {10 + round_}")
        rig.database.execute(f"insert into {name} values ({100 + round_}, 'new', null)")


def both_tables(engine: Engine) -> tuple[list[tuple[object, ...]], list[tuple[object, ...]]]:
    return engine.query("select id, v from a order by id"), engine.query("select id, v from b order by id")


def test_a_paused_table_rests_while_others_go_on_and_catches_up_when_it_is_resumed(rig: Rig) -> None:
    two_tables(rig)
    control = ControlSchema(rig.database.dsn)
    with rig.running() as engine:
        changed(rig, 1)
        engine.equal()
        control.pause(table="public.a")
        eventually(lambda: "public.a" in engine.source.targets["main"].board.held())
        before, _ = both_tables(engine)
        changed(rig, 2)
        rig.database.execute("truncate a; insert into a values (3, 'behind the truncate', null), (4, 'x', 'y')")
        changed(rig, 3)
        engine.settle()
        resting, going = both_tables(engine)
        assert resting == before
        assert going == rig.database.execute("select id, v from b order by id")
        control.resume(table="public.a")
        eventually(lambda: rig.difference(engine) == "")
        changed(rig, 4)
        engine.equal()
        eventually(lambda: not control.pauses())
    control.close()


def test_a_paused_table_and_a_restart_between_lose_nothing(rig: Rig) -> None:
    two_tables(rig)
    control = ControlSchema(rig.database.dsn)
    with rig.running() as engine:
        control.pause(table="public.a")
        eventually(lambda: "public.a" in engine.source.targets["main"].board.held())
        changed(rig, 1)
        engine.settle()
    changed(rig, 2)
    with rig.running() as engine:
        changed(rig, 3)
        engine.settle()
        assert "round" not in repr(engine.query("select v from a"))
    control.resume(table="public.a")
    with rig.running() as engine:
        eventually(lambda: rig.difference(engine) == "")
    control.close()


def test_a_paused_target_rests_over_a_restart_while_another_goes_on(database: Database, tmp_path: Path) -> None:
    rig = Rig(database, tmp_path, targets=("main", "second"))
    two_tables(rig)
    control = ControlSchema(rig.database.dsn)
    with rig.running() as engine:
        control.pause(target="second")
        eventually(lambda: engine.targets()["second"]["state"] == "paused")
        changed(rig, 1)
        goal = rig.now()
        eventually(lambda: engine.targets()["main"]["place"] >= goal)
    with rig.running(until_loaded=False) as engine:
        changed(rig, 2)
        goal = rig.now()
        eventually(lambda: engine.targets()["main"].get("place", 0) >= goal)
        assert engine.query("select count(*) from a where v like 'round%'", "second") == [(0,)]
        control.resume(target="second")
        engine.equal()
    control.close()


def test_a_table_that_the_target_refuses_does_not_stop_the_others(rig: Rig) -> None:
    two_tables(rig)
    with rig.open() as target:
        target.execute("create view a as select 1 as id")
    with rig.running(until_loaded=False) as engine:
        changed(rig, 1)
        wanted = rig.database.execute("select id, v from b order by id")

        def arrived() -> bool:
            return bool(engine.query("select id, v from b order by id") == wanted)

        eventually(lambda: "cursor" in engine.targets()["main"])
        eventually(lambda: "b" in repr(engine.query("show tables")))
        eventually(arrived)
        eventually(rig.gaps)
        assert isinstance(engine.service, SyncService)
        assert engine.service.errors() == []
