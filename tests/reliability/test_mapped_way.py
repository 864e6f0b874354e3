"""Mapped tables on the whole way: what a target makes of them, also when that changes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from harness import Rig

from servers import Database, eventually
from syncline.config import load_config
from syncline.pipeline import SyncService
from syncline.verify import verify


@pytest.fixture
def rig(database: Database, tmp_path: Path) -> Rig:
    database.execute("create table item (id int primary key, name text, lang text, body text, price numeric(8,2))")
    database.execute("create table other (id int primary key)")
    database.execute("alter table item alter body set storage external")
    database.execute(
        "insert into item select g, 'n' || g, case g % 2 when 0 then 'en' else 'de' end,"
        " repeat('x', 4000), g from generate_series(1, 20) g"
    )
    return Rig(database, tmp_path, target={"door": True})


def map_tables(rig: Rig, **tables: Any) -> None:
    rig.settings["targets"]["main"]["tables"] = {f"public.{name}": given for name, given in tables.items()}
    rig.write()


def rows(rig: Rig, query: str) -> list[tuple[Any, ...]]:
    return rig.rows(query)


def unequal(rig: Rig) -> int:
    return verify(load_config(rig.config), talk=lambda _: None, engine=SyncService).differences


def test_a_target_takes_the_tables_that_it_names_with_their_columns_and_rows(rig: Rig, database: Database) -> None:
    map_tables(rig, item={"columns": {"name": "title", "lang": None}, "where": "lang = 'en'", "table": "shop.things"})
    database.execute("drop table other")
    with rig.running() as engine:
        database.execute("update item set lang = 'de' where id = 2")  # leaves
        database.execute("update item set lang = 'en' where id = 1")  # enters; body is unchanged TOAST
        database.execute("update item set name = 'new' where id = 4")
        database.execute("delete from item where id = 6")
        database.execute("update item set id = 100 where id = 8")
        engine.settle()
    found = rows(rig, "select id, title, lang from shop.things order by id")
    assert found == [
        (1, "n1", "en"),
        (4, "new", "en"),
        *((n, f"n{n}", "en") for n in range(10, 21, 2)),
        (100, "n8", "en"),
    ]
    assert unequal(rig) == 0


def test_rows_that_sql_makes_follow_their_source(rig: Rig, database: Database) -> None:
    query = "select id, upper(name) as loud, length(body) as size, price * 2 as twice from batch"
    map_tables(rig, item={"transform": query})
    database.execute("drop table other")
    with rig.running() as engine:
        database.execute("update item set name = 'x' where id = 1")  # its body is not in the change, and SQL needs it
        engine.settle()
    assert rows(rig, "select loud, size from item where id <= 2 order by id") == [("X", 4000), ("N2", 4000)]
    assert unequal(rig) == 0


def test_a_changed_mapping_has_its_table_read_again_and_removes_what_the_old_one_wrote(
    rig: Rig, database: Database
) -> None:
    """Correctness rule 21."""
    database.execute("drop table other")
    map_tables(rig, item={"columns": ["name"], "table": "public.before"})
    rig.sync()
    assert rows(rig, "select count(*) from before") == [(20,)]
    map_tables(rig, item={"columns": ["name"], "constants": {"origin": "shop"}, "where": "id <= 3"})
    rig.sync()
    assert rows(rig, "select id, name, origin from item order by id") == [(n, f"n{n}", "shop") for n in (1, 2, 3)]
    assert rows(rig, "select count(*) from duckdb_tables() where table_name = 'before'") == [(0,)]
    assert unequal(rig) == 0


def test_a_row_that_cannot_be_mapped_is_parked_and_stops_no_other(rig: Rig, database: Database) -> None:
    database.execute("drop table other")
    map_tables(rig, item={"transform": "select id, cast(name as integer) as number from batch"})
    database.execute("update item set name = id where id <> 7")
    with rig.running() as engine:
        engine.settle()
    assert rows(rig, "select count(*), sum(number) from item") == [(19, 203)]
    assert len(rig.letters()) == 1
    assert unequal(rig) == 0


def test_a_mapping_that_does_not_fit_is_a_gap_of_its_table_alone(rig: Rig, database: Database) -> None:
    map_tables(rig, item={"columns": ["nothing"]}, other={})
    database.execute("insert into other values (1)")
    with rig.running(until_loaded=False) as engine:
        eventually(lambda: rig.gaps() == ["SL-CONFIG"])
        eventually(lambda: "public.other" in engine.targets()["main"].get("loaded", ()))
        eventually(lambda: engine.query("select id from other") == [(1,)])


def test_rows_that_cannot_be_mapped_are_parked_or_missing_and_their_neighbours_arrive(rig: Rig) -> None:
    map_tables(rig, item={"where": "id > 3", "transform": "select id, name::int as n from batch"}, other={})
    rig.database.execute("update item set name = id::text where id <> 15")
    rig.sync()
    assert rows(rig, "select id from item order by id") == [(i,) for i in range(4, 21) if i != 15]
    assert len(rig.letters()) == 1
    report = verify(load_config(rig.config), talk=lambda _: None, engine=SyncService)
    table = next(t for t in report.tables if t.table == "public.item")
    assert (table.rows, table.parked, report.differences) == (17, 1, 0)
    rig.database.execute("delete from syncline.sync_dead_letters")
    assert unequal(rig) == 1


def test_a_filter_that_leaves_nothing_and_vectors_that_are_not_there_yet_stop_nothing(rig: Rig) -> None:
    rig.database.execute("create table doc (id int primary key, keep bool, emb real[])")
    rig.settings["targets"]["main"] = {
        "type": "qdrant",
        "path": str(rig.folder / "points"),
        "door": False,
        "tables": {
            "item": {},
            "other": {},
            "doc": {"where": "keep", "vectors": {"v": {"column": "emb", "size": 2}}},
        },
    }
    rig.write()
    with rig.running() as engine:
        for statement in (
            "insert into doc values (1, false, '{1,2}')",
            "insert into doc values (2, true, null)",
            "insert into doc values (3, true, '{}'), (4, true, '{1,NULL}'), (5, true, '{3,4}')",
        ):
            rig.database.execute(statement)
            engine.settle()
    assert len(rig.letters()) == 2
    report = verify(load_config(rig.config), talk=lambda _: None, engine=SyncService)
    assert (report.tables[0].rows, report.tables[0].parked, report.differences) == (4, 2, 0)


def test_a_transform_may_give_the_columns_of_a_key_in_another_order(rig: Rig, database: Database) -> None:
    database.execute("drop table item, other")
    database.execute("create table pair (a int, b int, v text, primary key (a, b))")
    database.execute("insert into pair values (1, 2, 'x'), (2, 1, 'y'), (3, 4, 'z')")
    map_tables(rig, pair={"transform": "select upper(v) as v, b, a from batch"})
    with rig.running() as engine:
        engine.settle()
        database.execute("delete from pair where a = 1; update pair set a = 4, b = 3 where a = 3")
        engine.settle()
    assert rows(rig, "select a, b, v from pair order by a") == [(2, 1, "Y"), (4, 3, "Z")]
    assert unequal(rig) == 0


def test_a_filter_minds_values_without_an_exact_form_only_where_it_looks_at_them(rig: Rig, database: Database) -> None:
    database.execute("drop table other")
    database.execute("insert into item values (21, 'n', 'en', '', 'NaN'), (22, 'm', 'en', '', 1)")
    map_tables(rig, item={"columns": ["name", "lang"], "where": "lang = 'en' and id > 20"})
    with rig.running() as engine:
        engine.settle()
        database.execute("insert into item values (23, 'o', 'en', '', 'NaN')")
        engine.settle()
    assert rows(rig, "select id, name from item order by id") == [(21, "n"), (22, "m"), (23, "o")]
    assert (rig.letters(), unequal(rig)) == ([], 0)


def test_a_negative_zero_in_a_key_is_the_zero_that_postgresql_takes_it_for(rig: Rig, database: Database) -> None:
    database.execute("drop table item, other; create table t (k float8 primary key, v text, n int)")
    database.execute("alter table t alter v set storage external")
    database.execute("insert into t values ('-0', repeat('x', 4000), 0), (1, 'b', 0)")
    for script in (
        "update t set n = 1 where k = 0",  # v is unchanged TOAST
        "update t set k = 0 where k = 0",
        "delete from t where k = 0; insert into t values ('-0', 'again', 2)",
        "update t set k = 7 where k = 0; update t set k = '-0' where k = 1",
    ):
        rig.sync()
        database.execute(script)
    rig.sync()
    found = rows(rig, "select k::varchar, v, n from t order by k")
    assert found == [("0.0", "b", 0), ("7.0", "again", 2)]
    assert unequal(rig) == 0
