"""Tables that change their shape: while it runs, inside transactions, while it is down, and with a kill in between.

PostgreSQL sends no row for what ALTER TABLE does to rows, and nothing at all until the next row changes.
"""

from __future__ import annotations

import signal

import pytest

from reliability.harness import Engine, Nursery, Rig
from servers import eventually

START = """
create table item (id int primary key, name text, amount int);
insert into item select g, 'n' || g, g from generate_series(1, 60) g;
create table quiet (id int primary key, name text);
insert into quiet select g, 'q' || g from generate_series(1, 10) g;
"""
CHANGES = {
    "add column": "alter table item add extra text",
    "add column with default": "alter table item add extra int not null default 42",
    "add column with volatile default": "alter table item add extra text default md5(random()::text)",
    "drop column": "alter table item drop amount",
    "rename column": "alter table item rename name to title",
    "swap names": "alter table item rename name to n; alter table item rename amount to name;"
    " alter table item rename n to amount",
    "change type": "alter table item alter amount type text using 'was ' || amount",
    "widen type": "alter table item alter amount type bigint using amount * 100000000000",
    "drop and add": "alter table item drop amount; alter table item add amount int default 7",
    "rewrite": "alter table item alter name set data type text using upper(name)",
    "drop and recreate": "drop table item; create table item (id int primary key, name text, amount int);"
    " insert into item values (1, 'new', 1), (100, 'newer', 2)",
    "new key": "alter table item drop constraint item_pkey; alter table item add primary key (amount)",
    "wider key": "alter table item drop constraint item_pkey; alter table item add primary key (id, amount)",
    "rename table": "alter table item rename to thing",
    "new table": "create table other (id int primary key, t text); insert into other values (1, 'x')",
    # The stream has what only text gives exactly, the catalogue no longer shows it.
    "text for a while": "alter table item add address inet; update item set address = '::1' where id < 9;"
    " alter table item drop address",
    "exact by and by": "alter table item add price numeric; update item set price = id / 3.0 where id < 9;"
    " alter table item alter price type numeric(10,2)",
    "truncate and refill": "truncate item; insert into item values (3, 'refilled', 3)",
}
TOUCH = {
    "rename column": "update item set title = title || '+' where id % 7 = 0; insert into item values (900, 't', 900)",
    "swap names": "update item set name = name + 1 where id % 7 = 0; insert into item values (900, 't', 1)",
    "drop column": "update item set name = name || '+' where id % 7 = 0; insert into item values (900, 't')",
    "rename table": "update thing set name = name || '+' where id % 7 = 0; insert into thing values (900, 't', 900)",
    "new table": "update other set t = 'y'; insert into other values (2, 'z')",
}
# What PostgreSQL says nothing of at all.
SILENT = ("add column with default", "rename column", "swap names", "change type", "rewrite", "drop and recreate",
          "new key", "rename table", "new table")  # fmt: skip
WHILE_DOWN = ("add column with volatile default", "drop column", "rename column", "widen type", "drop and add",
              "drop and recreate", "wider key", "text for a while", "exact by and by",
              "truncate and refill")  # fmt: skip
DEFAULT_TOUCH = (
    "update item set name = name || '+' where id % 7 = 0; insert into item (id, name, amount) values (900, 't', 900)"
)


def equal(rig: Rig, engine: Engine) -> bool:
    """Whether the copy has caught up; says what differs if it has not."""
    found = rig.difference(engine)
    assert found == "", found
    return True


def touch(change: str) -> str:
    return TOUCH.get(change, DEFAULT_TOUCH)


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_of_shape_while_it_runs_ends_equal(rig: Rig, change: str) -> None:
    rig.database.execute(START)
    with rig.running() as engine:
        rig.database.execute("update item set amount = amount + 1000 where id < 5")
        rig.database.execute(CHANGES[change])
        rig.database.execute(touch(change))
        eventually(lambda: equal(rig, engine))
        rig.database.execute("insert into quiet values (11, 'after')")
        engine.equal()
    assert rig.gaps() == []


@pytest.mark.parametrize("change", SILENT)
def test_a_change_of_shape_of_a_table_that_stays_quiet_ends_equal(rig: Rig, change: str) -> None:
    rig.database.execute(START)
    with rig.running() as engine:
        rig.database.execute(CHANGES[change])
        eventually(lambda: equal(rig, engine))
    assert rig.gaps() == []


@pytest.mark.parametrize("change", WHILE_DOWN)
def test_a_change_of_shape_while_the_engine_is_down_ends_equal(rig: Rig, change: str) -> None:
    rig.database.execute(START)
    rig.sync()
    rig.database.execute("update item set amount = amount + 1000 where id < 5")
    rig.database.execute(CHANGES[change])
    if change in ("drop column", "rename column", "drop and recreate", "wider key"):
        rig.database.execute(touch(change))
    with rig.running() as engine:
        eventually(lambda: equal(rig, engine))
        engine.equal()
        rig.database.execute("insert into quiet values (11, 'after')")
        engine.equal()
    assert rig.gaps() == []


def test_a_change_of_shape_amid_a_transaction_ends_equal(rig: Rig) -> None:
    rig.database.execute(START)
    with rig.running() as engine:
        rig.database.execute(
            """
            begin;
            insert into item values (200, 'before', 1);
            update item set name = 'before' where id = 5;
            alter table item add extra text default 'd';
            insert into item values (201, 'after', 1, 'e');
            update item set extra = 'f' where id = 200;
            alter table item drop amount;
            delete from item where id = 6;
            update quiet set name = 'as well';
            insert into item values (202, 'last', 'g');
            commit;
            """
        )
        eventually(lambda: equal(rig, engine))
        engine.equal()


def test_many_changes_of_shape_in_a_row_end_equal(rig: Rig) -> None:
    rig.database.execute(START)
    with rig.running() as engine:
        for number in range(8):
            rig.database.execute(f"alter table item add c{number} int default {number}")
            rig.database.execute(f"update item set c{number} = id where id % 2 = 0")
            rig.database.execute(f"insert into item (id, c{number}) values ({1000 + number}, 1)")
            if number % 3 == 2:
                rig.database.execute(f"alter table item drop c{number - 1}")
        eventually(lambda: equal(rig, engine), 40)
        engine.equal()


@pytest.mark.parametrize("point", ["after migrating", "inside apply", "after apply", "amid the load"])
def test_a_kill_between_a_change_of_shape_and_its_reload_does_not_forget_the_reload(
    rig: Rig, nursery: Nursery, point: str
) -> None:
    rig.database.execute(START)
    nursery.finish(rig)
    died = []
    for round_, nth in enumerate((1, 2, 3)):
        rig.database.execute(f"alter table item add extra{round_} int not null default {round_}")
        rig.database.execute("update item set name = name || '.' where id = 3")
        died.append(nursery.run(rig, point=point, nth=nth) == -signal.SIGKILL)
        nursery.finish(rig)
        assert rig.difference() == ""
    assert any(died)
