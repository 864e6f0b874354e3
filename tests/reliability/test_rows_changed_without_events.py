"""What changes rows, or keeps them from the stream, without a row event: all of it makes the table be read again."""

from __future__ import annotations

from contextlib import suppress

import psycopg
import pytest

from reliability.harness import Rig
from servers import eventually

START = """
create type mood as enum ('a', 'b');
create table t (id int primary key, m text, mood mood, moods mood[], g int generated always as (id * 2) stored);
insert into t (id, m, mood, moods) values (1, 'a', 'a', '{a,b}'), (2, 'b', 'b', '{}');
create table u (id int primary key, m text);
insert into u values (1, 'u'), (7, 'u');
"""
CHANGES = {
    "a label renamed": "alter type mood rename value 'a' to 'z'",
    "taken out of the publication": "alter publication syncline drop table t; update t set m = 'x' where id = 1",
    "out of the publication and back": "alter publication syncline drop table t; update t set m = 'x' where id = 1;"
    " alter publication syncline add table t",
    "publication made anew": "drop publication syncline; update t set m = 'x' where id = 1;"
    " create publication syncline for table t, u with (publish_via_partition_root = true)",
    "updates not published for a while": "alter publication syncline set (publish = 'insert');"
    " update t set m = 'x' where id = 1; alter publication syncline set (publish = 'insert, update, delete, truncate')",
    "no longer generated": "alter table t alter g drop expression",
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("running", [True, False], ids=["running", "down"])
def test_what_the_stream_does_not_tell_is_read_again(rig: Rig, change: str, running: bool) -> None:
    rig.database.execute(START)
    with rig.running() as engine:
        for statement in CHANGES[change].split(";") if running else ():
            # A running engine makes good what its publication lacks, perhaps before the user does, or just then.
            with suppress(psycopg.errors.DuplicateObject, psycopg.errors.UniqueViolation):
                rig.database.execute(statement)
        eventually(lambda: not running or rig.difference(engine) == "", 30)
    for statement in () if running else CHANGES[change].split(";"):
        rig.database.execute(statement)
    with rig.running() as engine:
        eventually(lambda: rig.difference(engine) == "", 30)


def test_two_tables_that_change_names_and_change_them_back_are_read_again(rig: Rig) -> None:
    swap = "alter table t rename to c; alter table u rename to t; alter table c rename to u"
    for name in "tu":
        rig.database.execute(f"create table {name} (id int primary key, m text)")
        rig.database.execute(f"insert into {name} values (1, '{name}'), (9, '{name}')")
    rig.sync()
    rig.database.execute(f"{swap}; update t set m = 'in u' where id = 9; delete from u where id = 1")
    rig.database.execute(swap)
    with rig.running() as engine:
        eventually(lambda: rig.difference(engine) == "", 40)
