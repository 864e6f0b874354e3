"""Parquet exports beside a running engine: what a reader finds is of one moment, and soon equal to the source."""

from __future__ import annotations

from pathlib import Path

import duckdb
import psycopg
import pytest

from reliability.harness import Nursery, Rig
from servers import eventually

ACCOUNTS = (
    "create table account (id int primary key, balance int); create table moved (id int primary key, amount int);"
    "insert into account select g, 100 from generate_series(1, 500) g"
)
MOVE = (
    "with out as (update account set balance = balance - {n} where id = {a} returning 1)"
    " insert into moved values ({i}, {n})"
)


@pytest.fixture
def exporting(rig: Rig) -> Rig:
    rig.settings["targets"]["main"]["parquet"] = {
        "folder": str(rig.folder / "exports"),
        "every_s": 0.1,
        "part_rows": 100,
    }
    rig.write()
    rig.database.execute(ACCOUNTS)
    return rig


def totals(rig: Rig) -> tuple[int, int]:
    """What is left and what was moved, in the newest export."""
    current = (rig.folder / "exports" / "current").resolve()
    query = "select (select sum(balance) from read_parquet('{0}/public.account/*.parquet')), " \
            "coalesce((select sum(amount) from read_parquet('{0}/public.moved/*.parquet')), 0)"  # fmt: skip
    with duckdb.connect() as reader:
        (found,) = reader.execute(query.format(current)).fetchall()
    return int(found[0]), int(found[1])


def move(rig: Rig, first: int, count: int) -> None:
    with rig.database.connect() as connection:
        for i in range(first, first + count):
            connection.execute(MOVE.format(n=i % 7, a=i % 500 + 1, i=i).encode())


def is_there(rig: Rig, moved: int) -> bool:
    try:
        return totals(rig)[1] == moved
    except (duckdb.IOException, psycopg.Error):
        return False  # nothing was exported yet


def test_every_export_is_of_one_moment_while_rows_change(exporting: Rig) -> None:
    with exporting.running():
        eventually((exporting.folder / "exports" / "current" / "public.account").exists)
        for first in range(0, 600, 20):
            move(exporting, first, 20)
            left, moved = totals(exporting)
            assert left + moved == 50_000
        eventually(lambda: is_there(exporting, sum(i % 7 for i in range(600))))
        assert "SL-PARQUET" not in exporting.alerts()
    assert exporting.difference() == ""


def test_killed_at_any_moment_the_newest_export_is_whole(exporting: Rig, nursery: Nursery) -> None:
    for round_ in range(5):
        child = nursery.start(exporting)
        move(exporting, round_ * 100, 100)
        eventually((exporting.folder / "exports" / "current" / "public.moved").exists)
        child.kill()
        left, moved = totals(exporting)
        assert left + moved == 50_000
    with exporting.running():
        eventually(lambda: is_there(exporting, sum(i % 7 for i in range(500))))


def test_a_folder_that_can_not_be_used_is_an_alert_until_it_can(exporting: Rig) -> None:
    blocked = Path(exporting.folder / "exports")
    blocked.write_text("a file")
    with exporting.running() as engine:
        eventually(lambda: "SL-PARQUET" in exporting.alerts())
        engine.equal()
        blocked.unlink()
        eventually(lambda: "SL-PARQUET" not in exporting.alerts())
        eventually(lambda: is_there(exporting, 0))
