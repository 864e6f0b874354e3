"""A new hash that is told twice, since some other row went, does not bring back a row that was deleted between."""

from __future__ import annotations

import threading

from reliability.harness import Nursery
from reliability.test_both_ways import Sides, sides  # noqa: F401
from reliability.test_both_ways_resync import NOTES, NOTING, TRIGGER
from servers import eventually


def test_a_row_that_was_accepted_and_deleted_does_not_come_back(sides: Sides, nursery: Nursery) -> None:  # noqa: F811
    sides.database.execute("alter table player add column _syncline_version int8")
    for statement in (NOTES, NOTING, TRIGGER, "alter table player enable always trigger audited"):
        sides.database.execute(statement)
    sides.edit_postgres("x", "Xen", 1)
    child = nursery.start(sides)
    eventually(sides.is_equal)
    sides.is_quiet()

    def delete_behind() -> None:
        with sides.database.connect() as other:
            other.execute("begin")
            other.execute("lock table player in share row exclusive mode")  # waits for the first proposal
            other.execute("delete from player where id = 'r'")
            other.execute("commit")

    blocked = "select count(*) from pg_stat_activity where %s = any(pg_blocking_pids(pid))"
    with sides.database.connect() as holder:
        pid = holder.info.backend_pid
        holder.execute("begin")
        holder.execute("insert into player values ('r', 'blocks', 0)")  # the first proposal waits for this
        sides.edit_redis("r", "Rob", 2)
        eventually(lambda: sides.runs()[1] == 1)
        eventually(lambda: sides.database.value(blocked, pid) == 1)
        sides.database.execute("delete from player where id = 'x'")
        eventually(lambda: "x" not in sides.in_redis())
        sides.is_quiet()
        told = sides.runs()[1]
        thread = threading.Thread(target=delete_behind)
        thread.start()
        eventually(lambda: sides.database.value(blocked, pid) == 2)  # it is queued behind the proposal
        holder.execute("rollback")
    thread.join(20)
    sides.is_quiet()
    eventually(sides.is_equal)
    assert child.terminate() == 0
    assert sides.in_postgres() == {}
    written = sides.database.execute("select op, x, ours from audit where id = 'r' and ours order by n")
    assert len({x for op, x, _ in written if op == "INSERT"}) == 1, (sides.runs(), written)
    assert told == 1, (sides.runs(), written)
