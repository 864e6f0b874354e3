"""Parquet exports beside a running engine: what a reader finds is of one moment, and soon equal to the source."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import duckdb
import msgspec
import psycopg
import pytest

from reliability.harness import Nursery, Rig
from servers import eventually
from syncline.catalog.repository import ControlSchema
from syncline.change import Loaded
from syncline.pipeline.exports import Exports
from syncline.pipeline.reports import Reports
from syncline.stores import Work
from syncline.stores.duckdb import DuckDBConfig, DuckDBStore
from syncline.stores.duckdb.parquet import ParquetConfig
from syncline.testing.store_suite import ITEM, Rows, work

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


def has_both(rig: Rig) -> bool:
    """Whether the newest export has both tables: one may have been loaded an export before the other."""
    return all((rig.folder / "exports" / "current" / table).exists() for table in ("public.account", "public.moved"))


def test_every_export_is_of_one_moment_while_rows_change(exporting: Rig) -> None:
    with exporting.running():
        eventually(lambda: has_both(exporting))
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
        eventually(lambda: has_both(exporting))
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


def export_alerts(rig: Rig) -> int:
    """How many there ever were."""
    return int(rig.database.value("select count(*) from syncline.sync_alerts where subject like '%/export'"))


def test_the_first_export_comes_soon_and_without_a_false_alert(exporting: Rig) -> None:
    exporting.settings["targets"]["main"]["parquet"]["every_s"] = 3600
    exporting.write()
    with exporting.running(until_loaded=False):
        eventually(lambda: is_there(exporting, 0))
    assert export_alerts(exporting) == 0


def test_no_export_holds_half_of_a_transaction_that_is_applied_in_parts(
    exporting: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("syncline.pipeline.exports._TICK_S", 0.01)
    exporting.settings["targets"]["main"]["parquet"]["every_s"] = 0.01
    exporting.database.execute("create table filler (id serial primary key, note text)")
    exporting.set("source", max_entry_bytes=65_536)
    exporting.set("apply", max_bytes=65_536, max_transaction_bytes=65_536)
    halves: list[tuple[int, int]] = []

    def arrived(moved: int) -> bool:
        found = totals(exporting)
        if sum(found) != 50_000:
            halves.append(found)
        return found[1] == moved

    with exporting.running():
        eventually(lambda: is_there(exporting, 0))
        for i in range(1, 5):
            with exporting.database.connect() as connection, connection.transaction():
                connection.execute("update account set balance = balance - 10 where id = 1")
                connection.execute("insert into filler (note) select repeat('x', 100) from generate_series(1, 40000)")
                connection.execute("insert into moved values (%s, 10)", [i])
            eventually(partial(arrived, 10 * i))
    assert halves == []
    assert exporting.difference() == ""


def test_an_alert_of_exports_ends_with_the_setting(exporting: Rig) -> None:
    (exporting.folder / "exports").write_text("a file")
    with exporting.running():
        eventually(lambda: "SL-PARQUET" in exporting.alerts())
    assert "SL-PARQUET" in exporting.alerts()
    del exporting.settings["targets"]["main"]["parquet"]
    exporting.write()
    with exporting.running():
        eventually(lambda: "SL-PARQUET" not in exporting.alerts())


class Counted(DuckDBStore):
    """Counts how often it was asked to export."""

    asked = 0

    def export(self) -> bool | None:
        self.asked += 1
        return super().export()


def fill(store: DuckDBStore) -> None:
    made = work(Rows().upsert(100, 1, "one", None))
    store.migrate(ITEM)
    store.apply(Work(made.tables, msgspec.structs.replace(made.cursor, loaded={ITEM.qualified: Loaded("shape")})))


def test_a_target_of_several_sources_is_exported_by_a_store_that_is_open(rig: Rig) -> None:
    """A store that is not open is asked again soon, and says nothing about an alert."""
    parquet = ParquetConfig(folder=rig.folder / "exports", every_s=3600)
    config = DuckDBConfig(path=rig.folder / "copy.duckdb", parquet=parquet)
    away, other = Counted(config, "main"), Counted(config, "main")
    with ControlSchema(rig.database.dsn) as control:
        control.migrate()
        control.raise_alert("SL-PARQUET", "error", "main/export", "of before", "")
        reports = Reports(control)
        exports = Exports({"main": [away, other]}, reports)
        exports.start()
        try:
            eventually(lambda: other.asked >= 2)
            reports.flush()
            assert rig.alerts() == ["SL-PARQUET"]
            other.open("people")
            fill(other)
            eventually((parquet.folder / "current" / "public.item").exists)
            eventually(lambda: reports.flush() or rig.alerts() == [])
        finally:
            exports.stop()
            other.close()
        assert away.asked >= 3
