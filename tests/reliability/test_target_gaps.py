"""The gap of one target is its own: its tables are read again for it alone, and the others go on as if nothing was."""

from __future__ import annotations

import shutil
from pathlib import Path

import duckdb
import pytest

from reliability.harness import Engine, Rig, ended_with
from servers import Database, eventually
from syncline.catalog import ControlSchema
from syncline.errors import Gap

ROWS = 30_000


@pytest.fixture
def both(database: Database, tmp_path: Path) -> Rig:
    """Two copies of two tables, both equal, and no engine."""
    rig = Rig(database, tmp_path, targets=("one", "two"))
    database.execute("create table item (id int primary key, name text, n int default 0)")
    database.execute("create table line (id int primary key, note text)")
    database.execute("insert into item select g, md5(g::text) from generate_series(1, %s::int) g", ROWS)
    database.execute("insert into line select g, md5(g::text) from generate_series(1, 100) g")
    rig.sync()
    assert rig.difference() == ""
    return rig


def damage(path: Path) -> None:
    """Damage the keys in a DuckDB file, which every write reads, but not what is read when it is opened."""
    with duckdb.connect(str(path), read_only=True) as connection:
        ((block,),) = connection.execute(
            "select block_id from pragma_storage_info('item') where column_name = 'id' and block_id >= 0 limit 1"
        ).fetchall()
    blocks = bytearray(path.read_bytes())
    start = 3 * 4096 + block * 262_144
    blocks[start + 100 : start + 200] = b"\xff" * 100
    path.write_bytes(bytes(blocks))


def applied(engine: Engine, target: str) -> int:
    return int(engine.targets()[target]["rows_applied"])


def outdated(rig: Rig, tmp_path: Path) -> None:
    """The second copy is older than what the log still holds."""
    shutil.copy(rig.paths["two"], tmp_path / "older")
    with rig.running() as engine:
        rig.database.execute("update item set name = 'second' where id % 1000 = 0; delete from item where id % 999 = 0")
        engine.settle()
        eventually(lambda: engine.source.log.status().entries == 0)
    shutil.copy(tmp_path / "older", rig.paths["two"])


@pytest.mark.parametrize("on_gap", ["stop", "resync"])
def test_a_target_whose_file_was_deleted_while_stopped_is_loaded_and_the_other_is_not(both: Rig, on_gap: str) -> None:
    both.set("source", on_gap=on_gap)
    both.paths["two"].unlink()
    both.database.execute("update item set n = 1 where id <= 10")
    with both.running() as engine:
        engine.equal()
        assert applied(engine, "one") == 10
        assert applied(engine, "two") >= ROWS
        assert not any(line.startswith("starting over") for line in engine.talk)
    assert both.gaps(ever=True) == []


def test_a_target_that_is_too_old_for_the_log_is_read_for_it_alone(both: Rig, tmp_path: Path) -> None:
    outdated(both, tmp_path)
    both.set("source", on_gap="resync")
    with both.running() as engine:
        engine.equal()
        assert applied(engine, "one") == 0
        eventually(lambda: both.gaps() == [])
    assert both.gaps(ever=True) == ["SL-LOG-TRIMMED"]


def test_damage_that_a_running_engine_meets_in_one_file_is_mended_for_that_target_alone(both: Rig) -> None:
    both.set("source", on_gap="resync")
    damage(both.paths["two"])
    with both.running() as engine:
        number = engine.source.log.uuid
        both.database.execute("update item set id = -id where id % 2 = 0")
        eventually(lambda: both.gaps(ever=True) == ["SL-DUCKDB-DAMAGED"])
        both.database.execute("delete from item where id = 1; insert into line values (1000, 'meanwhile')")
        engine.equal()
        assert applied(engine, "one") <= ROWS + 2, "tables were read again for it"
        assert applied(engine, "two") >= ROWS - 1
        assert engine.source.log.uuid == number
        eventually(lambda: both.gaps() == [] and both.alerts() == [])
        both.database.execute("update item set n = 2 where id = 3")
        engine.equal()
    assert list(both.folder.glob("two.duckdb.damaged-*")) != []


def test_with_on_gap_stop_a_resync_of_the_target_mends_its_damage_and_reads_nothing_for_the_other(both: Rig) -> None:
    damage(both.paths["two"])
    with both.running(until_loaded=False) as engine:
        both.database.execute("update item set id = -id where id % 2 = 0")
        assert ended_with(Gap, engine).code == "SL-DUCKDB-DAMAGED"
        both.database.execute("delete from item where id = 1")
        assert engine.targets()["two"]["state"] == "gap"
        with ControlSchema(both.database.dsn) as control:
            control.request_resync("main", target="two")
        eventually(lambda: not engine.service.errors())
        engine.equal()
        assert applied(engine, "one") <= ROWS + 1
        eventually(lambda: both.gaps() == [] and both.alerts() == [])


def test_a_resync_of_a_target_that_is_too_old_can_be_asked_for_before_the_start(both: Rig, tmp_path: Path) -> None:
    outdated(both, tmp_path)
    with ControlSchema(both.database.dsn) as control:
        control.request_resync("main", target="two")
    with both.running(until_loaded=False) as engine:
        eventually(
            lambda: both.database.value("select count(*) from syncline.sync_requests where done_at is null") == 0
        )
        engine.equal()
        assert applied(engine, "one") == 0
        eventually(lambda: both.gaps() == [])


@pytest.mark.parametrize("tables", [None, ["public.item"]])
def test_a_resync_of_one_target_that_runs_repairs_it_and_leaves_the_other_alone(
    both: Rig, tables: list[str] | None
) -> None:
    with both.open("two") as copy:
        copy.execute("delete from item where id < 10; update item set name = 'by hand' where id = 20")
    with both.running() as engine:
        assert both.difference(engine) != ""
        engine.service.resync(tables=tables, target="two")
        eventually(lambda: both.difference(engine) == "")
        engine.settle()
        assert applied(engine, "one") == 0
        assert applied(engine, "two") == ROWS + (100 if tables is None else 0)


def test_of_one_target_alone_its_gap_is_mended_too_and_the_engine_goes_on(database: Database, tmp_path: Path) -> None:
    rig = Rig(database, tmp_path, source={"on_gap": "resync"})
    database.execute("create table item (id int primary key, name text, n int default 0)")
    database.execute("insert into item select g, md5(g::text) from generate_series(1, %s::int) g", ROWS)
    rig.sync()
    damage(rig.target)
    with rig.running() as engine:
        database.execute("update item set id = -id where id % 2 = 0")
        eventually(lambda: rig.gaps(ever=True) == ["SL-DUCKDB-DAMAGED"])
        assert engine.service.wait(0.5) is None, "nothing ran any more, by the engine's own account"
        engine.equal()


def test_a_plain_resync_ends_the_gap_of_one_table_at_one_target(database: Database, tmp_path: Path) -> None:
    rig = Rig(database, tmp_path)
    database.execute("create table item (id bigint primary key, name text); create table line (id int primary key)")
    database.execute("insert into item select g, md5(g::text) from generate_series(1, 100) g")
    with rig.open() as target:
        target.execute("create table item (id integer)")  # the user's own, of another shape
    with rig.running(until_loaded=False):
        eventually(rig.gaps)
    with rig.open() as target:
        target.execute("drop table item")
    with rig.running(until_loaded=False) as engine:
        engine.service.resync()
        eventually(lambda: not rig.gaps())
        engine.equal()
