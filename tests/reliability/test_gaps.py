"""Known holes: each is a gap that is recorded and alerted, never a silent skip; a resync heals it to equal content."""

from __future__ import annotations

import os
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path

import psycopg
import pytest

from reliability.harness import Engine, Rig, drop_slot, ended_with
from servers import SETTINGS, Database, eventually
from syncline.catalog.repository import ControlSchema
from syncline.embedded import EmbeddedPostgres
from syncline.errors import Gap
from syncline.pipeline.service import EXIT_GAP


def filled(rig: Rig, rows: int = 50) -> None:
    """A table and its copy, both equal."""
    rig.database.execute("create table item (id int primary key, name text)")
    rig.database.execute("insert into item select g, 'first' from generate_series(1, %s) g", rows)
    rig.sync()
    assert rig.difference() == ""


def changed(rig: Rig) -> None:
    """Changes of every kind, so that a copy that misses any of them differs."""
    rig.database.execute("update item set name = 'second' where id % 3 = 0")
    rig.database.execute("delete from item where id % 5 = 0")
    rig.database.execute("insert into item select g, 'third' from generate_series(1000, 1020) g")


def behind(rig: Rig) -> list[int]:
    """A log that holds entries which the target has not seen; where it ended behind each round of them."""
    control = ControlSchema(rig.database.dsn)
    ends = []
    with rig.running() as engine:
        control.pause(target="main")
        eventually(lambda: engine.targets()["main"]["state"] == "paused")
        for round_ in range(3):
            rig.database.execute("update item set name = %s", f"round {round_}")
            rig.database.execute(
                "insert into item select g, (select string_agg(md5((g * 1000 + h)::text), '')"
                " from generate_series(1, 150) h) from generate_series(%s::int, %s::int) g",
                10_000 * (round_ + 1),
                10_000 * (round_ + 1) + 40,
            )
            goal = rig.now()
            eventually(lambda goal=goal: engine.source.log.status().place >= goal)
            ends.append(engine.source.log.status().end)
        rig.database.execute("insert into item values (0, 'an entry behind them')")
        goal = rig.now()
        eventually(lambda: engine.source.log.status().place >= goal)
    control.resume(target="main")
    control.close()
    assert rig.difference() != ""
    return ends


def refuses(rig: Rig, code: str) -> None:
    """The next engine ends with a gap that everyone can see, and the target stays as it was."""
    before = rig.rows("select * from item order by all") if rig.target.exists() else []
    with rig.running(until_loaded=False) as engine:
        gap = ended_with(Gap, engine)
        assert gap.code == code, gap
        assert gap.remedy
        assert engine.service.exit_code() == EXIT_GAP
        assert engine.service.wait(5) == EXIT_GAP
        eventually(lambda: code in rig.gaps())
        eventually(lambda: code in rig.alerts())
    if before:
        assert rig.rows("select * from item order by all") == before


def heals(rig: Rig) -> None:
    """A resync that a person asks for makes the copy equal, and closes the gap and its alert."""
    with rig.running(until_loaded=False) as engine:
        ended_with(Gap, engine)
        engine.service.resync()
        eventually(lambda: not engine.service.errors())
        engine.equal()
        changed_again(rig)
        engine.equal()
        eventually(lambda: not rig.gaps())
        eventually(lambda: not rig.alerts())


def changed_again(rig: Rig) -> None:
    rig.database.execute("update item set name = 'at last' where id % 2 = 0; delete from item where id = 1")


# --------------------------------------------------------------------------------------------------------------- log


def test_a_damaged_body_of_an_entry_stops_with_a_gap_and_nothing_behind_it_is_applied(rig: Rig) -> None:
    filled(rig)
    behind(rig)
    bodies = sorted(rig.log.glob("main.log/*.bodies"))
    assert bodies, "no body was large enough for a file of its own"
    content = bytearray(bodies[0].read_bytes())
    content[len(content) * 5 // 6] ^= 0x40  # in the last of three bodies
    bodies[0].write_bytes(content)
    with rig.running(until_loaded=False) as engine:
        assert ended_with(Gap, engine).code == "SL-DAMAGED"
        eventually(lambda: "SL-DAMAGED" in rig.gaps() and "SL-DAMAGED" in rig.alerts())
    assert rig.rows("select count(*) from item where id >= 30000") == [(0,)]
    heals(rig)


def test_a_damaged_row_of_the_log_stops_with_a_gap_and_nothing_behind_it_is_applied(rig: Rig) -> None:
    filled(rig)
    _, before_last, _ = behind(rig)
    with sqlite3.connect(rig.log / "main.log" / "log.sqlite") as connection:
        tables = [r[0] for r in connection.execute("select name from sqlite_master where type = 'table'")]
        assert "entry" in tables, tables
        first = "select n, head from entry where n > ? order by n limit 1"  # of the last round
        n, head = connection.execute(first, [before_last]).fetchone()
        broken = bytearray(head)
        broken[len(broken) // 2] ^= 0x01
        connection.execute("update entry set head = ? where n = ?", [bytes(broken), n])
    connection.close()
    with rig.running(until_loaded=False) as engine:
        assert ended_with(Gap, engine).code == "SL-DAMAGED"
    assert rig.rows("select count(*) from item where id >= 30000") == [(0,)]
    heals(rig)


def damage_last_entry(rig: Rig) -> None:
    with sqlite3.connect(rig.log / "main.log" / "log.sqlite") as connection:
        n, head = connection.execute("select n, head from entry order by n desc limit 1").fetchone()
        broken = bytearray(head)
        broken[len(broken) // 2] ^= 0x01
        connection.execute("update entry set head = ? where n = ?", [bytes(broken), n])
    connection.close()


def damage_file(rig: Rig) -> None:
    for path in (rig.log / "main.log").glob("log.sqlite*"):
        path.write_bytes(b"not a database any more" * 400)


@pytest.mark.parametrize("damage", [damage_last_entry, damage_file])
def test_a_log_too_damaged_to_be_opened_is_a_gap_that_stays_until_a_resync(
    rig: Rig, damage: Callable[[Rig], None]
) -> None:
    filled(rig)
    behind(rig)
    damage(rig)
    kept = log_files(rig)
    for _ in range(2):
        refuses(rig, "SL-DAMAGED")
        assert log_files(rig) == kept, "what may want to be looked at was changed"
    assert rig.rows("select count(*) from item where id >= 10000") == [(0,)]
    heals(rig)


def log_files(rig: Rig) -> dict[str, int]:
    """Names and sizes of the log's files, without those that come and go with its use."""
    passing = ("lock", "log.sqlite-wal", "log.sqlite-shm")
    return {f.name: f.stat().st_size for f in (rig.log / "main.log").iterdir() if f.name not in passing}


def test_a_log_too_damaged_to_be_opened_heals_by_itself_with_on_gap_resync(rig: Rig) -> None:
    rig.set("source", on_gap="resync")
    filled(rig)
    behind(rig)
    damage_last_entry(rig)
    with rig.running() as engine:
        engine.equal()
        changed_again(rig)
        engine.equal()
        eventually(lambda: not rig.gaps() and not rig.alerts())
    assert rig.gaps(ever=True) == ["SL-DAMAGED"]


def test_a_resync_asked_for_before_the_start_mends_a_damaged_log(rig: Rig) -> None:
    filled(rig)
    behind(rig)
    damage_last_entry(rig)
    with ControlSchema(rig.database.dsn) as control:
        control.request_resync("main")
    with rig.running() as engine:
        engine.equal()


def test_a_deleted_log_is_a_gap_even_when_nothing_was_waiting_in_it(rig: Rig) -> None:
    filled(rig)
    shutil.rmtree(rig.log)
    changed(rig)
    refuses(rig, "SL-LOG-FOREIGN")
    heals(rig)


def test_a_log_restored_from_an_older_copy_is_a_gap(rig: Rig, tmp_path: Path) -> None:
    filled(rig)
    shutil.copytree(rig.log, tmp_path / "copy")
    changed(rig)
    rig.sync()
    shutil.rmtree(rig.log)
    shutil.copytree(tmp_path / "copy", rig.log)
    changed_again(rig)
    with rig.running(until_loaded=False) as engine:
        gap = ended_with(Gap, engine)
        assert gap.code in ("SL-LOG-AHEAD", "SL-GAP"), gap
    heals(rig)


# -------------------------------------------------------------------------------------------------------------- slot


def test_a_dropped_slot_is_a_gap(rig: Rig) -> None:
    filled(rig)
    drop_slot(rig)
    changed(rig)
    refuses(rig, "SL-GAP")
    heals(rig)


def test_a_slot_that_was_made_anew_is_a_gap(rig: Rig) -> None:
    filled(rig)
    drop_slot(rig)
    changed(rig)
    rig.database.execute("select pg_create_logical_replication_slot(%s, 'pgoutput')", rig.slot)
    refuses(rig, "SL-GAP")
    heals(rig)


def test_a_slot_that_was_made_anew_without_a_change_between_is_a_gap_all_the_same(rig: Rig) -> None:
    filled(rig)
    drop_slot(rig)
    rig.database.execute("select pg_create_logical_replication_slot(%s, 'pgoutput')", rig.slot)
    refuses(rig, "SL-GAP")
    heals(rig)


def test_a_slot_advanced_by_hand_is_a_gap(rig: Rig) -> None:
    filled(rig)
    changed(rig)
    eventually(
        lambda: rig.database.value("select active_pid is null from pg_replication_slots where slot_name = %s", rig.slot)
    )
    rig.database.execute("select pg_replication_slot_advance(%s, pg_current_wal_lsn())", rig.slot)
    refuses(rig, "SL-GAP")
    heals(rig)


def test_a_slot_invalidated_by_its_wal_limit_is_a_gap(pg_server: EmbeddedPostgres, tmp_path: Path) -> None:
    pg_server.create_database("limited")
    rig = Rig(Database(pg_server, "limited"), tmp_path)
    filled(rig)
    with psycopg.connect(pg_server.dsn(), autocommit=True) as admin:
        admin.execute("alter system set max_slot_wal_keep_size = '1MB'")
        admin.execute("select pg_reload_conf()")
        for _ in range(4):
            admin.execute("select pg_logical_emit_message(false, 'fill', repeat('x', 5000000))")
            admin.execute("select pg_switch_wal()")
        admin.execute("checkpoint")
        eventually(lambda: admin.execute("select wal_status from pg_replication_slots").fetchone() == ("lost",))
    changed(rig)
    refuses(rig, "SL-GAP")
    heals(rig)


def test_a_slot_dropped_while_the_engine_runs_is_a_gap_too(rig: Rig) -> None:
    filled(rig)
    with rig.running() as engine:

        def dropped() -> bool:
            rig.database.execute(
                "select pg_terminate_backend(active_pid) from pg_replication_slots where slot_name = %s", rig.slot
            )
            try:
                rig.database.execute("select pg_drop_replication_slot(%s)", rig.slot)
            except psycopg.errors.ObjectInUse:
                return False
            return True

        eventually(dropped)
        changed(rig)
        ended_with(Gap, engine)
        eventually(lambda: rig.gaps() == ["SL-GAP"] and "SL-GAP" in rig.alerts())
    heals(rig)


@pytest.mark.parametrize("mishap", ["slot dropped", "log deleted", "slot advanced"])
def test_on_gap_resync_heals_by_itself_and_rows_deleted_meanwhile_vanish(rig: Rig, mishap: str) -> None:
    rig.set("source", on_gap="resync")
    filled(rig)
    if mishap == "log deleted":
        shutil.rmtree(rig.log)
    else:
        eventually(
            lambda: rig.database.value(
                "select active_pid is null from pg_replication_slots where slot_name = %s", rig.slot
            )
        )
    changed(rig)
    if mishap == "slot dropped":
        drop_slot(rig)
    elif mishap == "slot advanced":
        rig.database.execute("select pg_replication_slot_advance(%s, pg_current_wal_lsn())", rig.slot)
    with rig.running() as engine:
        engine.equal()
        changed_again(rig)
        engine.equal()
        eventually(lambda: not rig.gaps())
    assert rig.gaps(ever=True) != [], "the gap was healed, but never said"


# ------------------------------------------------------------------------------------------------------------ target


def test_a_deleted_target_file_is_loaded_again(rig: Rig) -> None:
    filled(rig)
    rig.target.unlink()
    changed(rig)
    with rig.running() as engine:
        engine.equal()


def test_a_target_restored_from_an_older_copy_replays_what_the_log_still_holds(rig: Rig, tmp_path: Path) -> None:
    rig.set("log", retention_s=3600)
    filled(rig)
    shutil.copy(rig.target, tmp_path / "older")
    changed(rig)
    rig.sync()
    shutil.copy(tmp_path / "older", rig.target)
    assert rig.difference() != ""
    with rig.running() as engine:
        engine.equal()
    assert rig.gaps(ever=True) == []


def test_a_target_restored_from_a_copy_older_than_the_log_is_in_a_gap(rig: Rig, tmp_path: Path) -> None:
    filled(rig)
    shutil.copy(rig.target, tmp_path / "older")
    with rig.running() as engine:
        changed(rig)
        engine.settle()
        eventually(lambda: engine.source.log.status().head > 0 and engine.source.log.status().entries == 0)
    shutil.copy(tmp_path / "older", rig.target)
    refuses(rig, "SL-LOG-TRIMMED")
    heals(rig)


def test_a_target_in_a_gap_does_not_stop_another(rig: Rig, database: Database, tmp_path: Path) -> None:
    both = Rig(database, tmp_path, targets=("main", "second"))
    filled(both)
    shutil.copy(both.paths["second"], tmp_path / "older")
    with both.running() as engine:
        changed(both)
        engine.settle()
        eventually(lambda: engine.source.log.status().entries == 0)
    shutil.copy(tmp_path / "older", both.paths["second"])
    with both.running(until_loaded=False) as engine:
        ended_with(Gap, engine)
        changed_again(both)
        goal = both.now()
        eventually(lambda: engine.targets()["main"].get("place", 0) >= goal)
        assert engine.service.wait(0.1) is None, "the other target still runs"
        assert engine.targets()["second"]["state"] == "gap"
        engine.service.resync()
        eventually(lambda: not engine.service.errors())
        engine.equal()


# ------------------------------------------------------------------------------------------------------------ source


def test_another_cluster_in_the_place_of_the_source_is_a_gap_and_its_versions_rise_above_all(
    rig: Rig, tmp_path: Path
) -> None:
    filled(rig)
    rig.database.execute("select pg_logical_emit_message(false, 'fill', repeat('x', 30000000))")
    changed(rig)
    rig.sync()
    ((newest,),) = rig.rows("select max(_syncline_version) from item")
    with EmbeddedPostgres.start(tmp_path / "other", settings=SETTINGS) as server:
        server.create_database(rig.database.name)
        other = Database(server, rig.database.name)
        other.execute("create table item (id int primary key, name text)")
        other.execute("insert into item select g, 'other' from generate_series(20, 30) g")
        assert other.value("select (pg_current_wal_lsn() - '0/0')::int8") < newest
        rig.database = other
        rig.set("source", dsn=other.dsn)
        refuses(rig, "SL-SOURCE-CHANGED")
        heals(rig)
        ((lowest,),) = rig.rows("select min(_syncline_version) from item")
        assert lowest > newest
        rig.database.execute("delete from item where id = 22; update item set name = 'more' where id = 24")
        rig.sync()
        assert rig.difference() == ""


def test_a_source_restored_from_an_older_copy_is_a_gap(pg_server: EmbeddedPostgres, tmp_path: Path) -> None:
    pg_server.create_database("restored")
    rig = Rig(Database(pg_server, "restored"), tmp_path)
    filled(rig)
    pg_server.stop()
    copy = tmp_path / "copy"
    shutil.copytree(pg_server.data_dir, copy)
    pg_server.restart()
    changed(rig)
    rig.sync()
    ((newest,),) = rig.rows("select max(_syncline_version) from item")
    pg_server.stop()
    for path in pg_server.data_dir.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    shutil.copytree(copy, pg_server.data_dir, dirs_exist_ok=True)
    _same_owner(pg_server.data_dir)
    pg_server.restart()
    rig.database.execute("delete from item where id = 7")
    refuses(rig, "SL-SOURCE-OLDER")
    heals(rig)
    ((lowest,),) = rig.rows("select min(_syncline_version) from item")
    assert lowest > newest


def _same_owner(folder: Path) -> None:
    """What a copy made by root lost."""
    owner = folder.stat()
    for path in folder.rglob("*"):
        os.chown(path, owner.st_uid, owner.st_gid)


def test_asking_for_a_resync_of_one_table_reads_it_again(rig: Rig) -> None:
    filled(rig)
    with rig.open() as target:
        target.execute("delete from item where id < 10; update item set name = 'by hand' where id = 20")
    with rig.running() as engine:
        assert rig.difference(engine) != ""
        engine.service.resync(tables=["public.item"])
        engine.equal()
        _requested(engine, rig)


def _requested(engine: Engine, rig: Rig) -> None:
    """The same, asked for through the control schema, as the command line does."""
    with engine.session() as target:
        target.execute("delete from item where id > 30")
    control = ControlSchema(rig.database.dsn)
    control.request_resync("main", ["public.item"])
    control.close()
    eventually(lambda: rig.difference(engine) == "")
