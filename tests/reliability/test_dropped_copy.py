"""A table that somebody dropped in the copy comes back whole, not empty with the changes since."""

from __future__ import annotations

from reliability.harness import Rig


def test_a_table_dropped_in_the_copy_by_hand_is_read_again(rig: Rig) -> None:
    rig.database.execute("create table t (id int primary key, v text); insert into t values (1, 'a'), (2, 'b')")
    rig.sync()
    with rig.open() as copy:
        copy.execute("drop table main.t")
    with rig.running() as engine:
        rig.database.execute("insert into t values (3, 'c')")
        engine.equal()
    assert rig.gaps(ever=True) == []
