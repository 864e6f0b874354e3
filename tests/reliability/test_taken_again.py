"""A table that a source or a target leaves out for a while comes back whole: what passed by was not applied."""

from __future__ import annotations

from reliability.harness import Rig
from servers import eventually

START = """
create table kept (id int primary key, v text); create table left_out (id int primary key, v text);
insert into kept values (1, 'a'); insert into left_out select g, 'a' from generate_series(1, 20) g
"""
CHANGED = (
    "update left_out set v = 'b' where id < 5; delete from left_out where id = 7; insert into left_out values (99, 'c')"
)


def test_a_table_that_was_excluded_and_is_monitored_again_is_read_again(rig: Rig) -> None:
    rig.database.execute(START)
    rig.sync()
    rig.set("source", excluded_tables=["public.left_out"])
    with rig.running():
        rig.database.execute(CHANGED)
        rig.database.execute("insert into kept values (2, 'b')")
    rig.set("source", excluded_tables=[])
    with rig.running() as engine:
        engine.equal()


def test_a_table_that_a_target_did_not_take_for_a_while_is_read_again(rig: Rig) -> None:
    rig.database.execute(START)
    rig.sync()
    tables = rig.settings["targets"]["main"]
    tables["tables"] = {"public.kept": {}}
    rig.write()
    with rig.running(until_loaded=False) as engine:
        eventually(lambda: engine.targets()["main"].get("loaded") == ["public.kept"])
        rig.database.execute(CHANGED)
        rig.database.execute("insert into kept values (2, 'b')")
        eventually(lambda: engine.query("select count(*) from kept") == [(2,)])
    del tables["tables"]
    rig.write()
    with rig.running() as engine:
        engine.equal()
