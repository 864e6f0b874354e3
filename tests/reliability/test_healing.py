"""Guarantee 6 and correctness rule 6: what completes nothing at the target is read again at the source."""

from __future__ import annotations

import pytest

from reliability.harness import Rig

BIG = "(select string_agg(md5((g * 1000 + h)::text), '') from generate_series(1, 200) h)"


@pytest.fixture
def holed(rig: Rig) -> Rig:
    """A copy that lacks row 2, of a table whose ``doc`` no update below touches."""
    rig.database.execute(
        "create table item (id int primary key, n int, doc text); alter table item alter doc set storage external;"
        f"insert into item select g, 0, {BIG} from generate_series(1, 3) g"
    )
    rig.sync()
    with rig.open() as copy:
        copy.execute("delete from item where id = 2")
    return rig


@pytest.mark.parametrize(
    ("changes", "healed"),
    [
        (["update item set n = 1"], 1),
        (["update item set id = 20 where id = 2"], 1),
        (["update item set n = 1", "update item set n = 2, doc = 'later' where id = 2"], 0),
        (["update item set n = 1", "delete from item where id = 2"], 0),
    ],
    ids=["changed", "moved", "changed and then written whole", "changed and then deleted"],
)
def test_a_partial_change_of_a_row_that_the_copy_lacks_is_completed_at_the_source(
    holed: Rig, changes: list[str], healed: int
) -> None:
    for statement in changes:  # behind a stopped engine, so that they come in one step
        holed.database.execute(statement)
    with holed.running() as engine:
        engine.equal()
        assert engine.targets()["main"]["healed"] == healed
    assert holed.letters() == []
