"""A PostgreSQL target that is put back from an older copy: its cursor goes back with it, for both stand together."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from harness import Rig, ended_with

from servers import Database, drop_database, eventually, fresh_database
from syncline.embedded import EmbeddedPostgres
from syncline.errors import Gap

ITEMS = "select id, name from item order by id"


@pytest.fixture
def copy(postgres: EmbeddedPostgres) -> Iterator[Database]:
    with fresh_database(postgres) as fresh:
        yield fresh


@pytest.fixture
def rig(database: Database, copy: Database, tmp_path: Path) -> Rig:
    rig = Rig(database, tmp_path, log={"retention_s": 3600})
    rig.settings["targets"]["main"] = {"type": "postgres", "dsn": copy.dsn}
    rig.write()
    database.execute("create table item (id int primary key, name text)")
    database.execute("insert into item select g, 'first' from generate_series(1, 50) g")
    rig.sync()
    return rig


def change(rig: Rig) -> None:
    rig.database.execute("update item set name = 'second' where id % 3 = 0")
    rig.database.execute("delete from item where id % 5 = 0")
    rig.database.execute("insert into item select g, 'third' from generate_series(1000, 1020) g")


def restore(copy: Database, older: str) -> None:
    drop_database(copy.server, copy.name)
    copy.server.create_database(copy.name, older)
    copy.server.drop_database(older)


def set_aside(copy: Database) -> list[str]:
    """Copy all tables of the target, ours too, into a schema of its own; their names."""
    names = "select format('%I.%I', schemaname, tablename) from pg_tables where schemaname in ('public', '{}')"
    tables = [name for (name,) in copy.execute(names.format("syncline_target"))]
    copy.execute("create schema aside")
    for number, table in enumerate(tables):
        copy.execute(f"create table aside.t{number} as table {table}")
    return tables


def put_back(copy: Database, tables: list[str]) -> list[tuple[Any, ...]]:
    """What a fail-over to a replica that was behind looks like to a session: all tables are older at once. Returns the
    rows as they are then, before an engine sees that."""
    back = "delete from {0}; insert into {0} overriding system value select * from aside.t{1}"
    with copy.connect() as connection, connection.transaction():
        for number, table in enumerate(tables):
            connection.execute(back.format(table, number).encode())
        return connection.execute(ITEMS).fetchall()


def test_it_replays_what_the_log_still_holds(rig: Rig, copy: Database) -> None:
    copy.server.create_database(f"{copy.name}_older", copy.name)
    change(rig)
    rig.sync()
    restore(copy, f"{copy.name}_older")
    assert copy.execute(ITEMS) != rig.database.execute(ITEMS)
    rig.sync()
    assert copy.execute(ITEMS) == rig.database.execute(ITEMS)
    assert rig.gaps(ever=True) == []


def test_it_is_in_a_gap_where_the_log_does_not_reach_back_and_is_read_again(rig: Rig, copy: Database) -> None:
    rig.set("log", retention_s=0)
    copy.server.create_database(f"{copy.name}_older", copy.name)
    with rig.running() as engine:
        change(rig)
        engine.settle()
        eventually(lambda: engine.source.log.status().head > 0 and engine.source.log.status().entries == 0)
    restore(copy, f"{copy.name}_older")
    with rig.running(until_loaded=False) as engine:
        assert ended_with(Gap, engine).code == "SL-LOG-TRIMMED"
    assert copy.execute(ITEMS) != rig.database.execute(ITEMS)
    rig.set("source", on_gap="resync")
    rig.sync()
    assert copy.execute(ITEMS) == rig.database.execute(ITEMS)


def test_under_a_running_engine_too(rig: Rig, copy: Database) -> None:
    with rig.running() as engine:
        tables = set_aside(copy)
        change(rig)
        engine.settle()
        assert put_back(copy, tables) != rig.database.execute(ITEMS)
        rig.database.execute("insert into item values (2000, 'fourth')")
        eventually(lambda: copy.execute(ITEMS) == rig.database.execute(ITEMS), 60)
    assert rig.gaps(ever=True) == []
    assert "SL-TARGET-RECEDED" in rig.alerts(ever=True)
    assert "SL-TARGET-RECEDED" not in rig.alerts()


def test_one_that_lost_its_cursor_under_a_running_engine_is_a_gap_and_read_again(rig: Rig, copy: Database) -> None:
    with rig.running() as engine:
        copy.execute("truncate item, syncline_target.cursors")
        assert ended_with(Gap, engine).code == "SL-TARGET-LOST"
    rig.sync()
    assert copy.execute(ITEMS) == rig.database.execute(ITEMS)
