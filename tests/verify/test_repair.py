"""Repair against real servers: exactly what differs is written, and whatever changes meanwhile wins."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import threading
from dataclasses import replace

import psycopg
import pytest
from piped import Pipeline

from syncline.config import load_config
from syncline.config.repairing import RepairConfig
from syncline.pipeline import SyncService
from syncline.verify import compare
from syncline.verify.repair import Limits, Repaired, repair

ITEMS = "create table items (id bigint primary key, name text, price numeric(10,2), tags text[])"
FILL = "insert into items select g, 'item ' || g, g * 0.25, array['a', g::text] from generate_series(1, {}) g"


@pytest.fixture
def filled(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> Pipeline:
    """A copy that is equal."""
    monkeypatch.setattr(compare, "_AGAIN_S", 0.0)
    pipeline.database.execute(ITEMS)
    pipeline.database.execute(FILL.format(1000))
    assert pipeline.verify().differences == 0
    return pipeline


def repaired(pipeline: Pipeline, limits: Limits | None = None) -> Repaired:
    return repair(pipeline.config, engine=SyncService, talk=lambda line: None, limits=limits)


def test_missing_different_extra_doubled_and_future_rows_are_repaired_and_nothing_else_is_written(
    filled: Pipeline,
) -> None:
    filled.damage(
        "delete from items where id in (7, 8)",
        "update items set name = 'other' where id = 9",
        "insert into items select id + 5000, name, price, tags, _syncline_version from items where id = 10",
        "insert into items select * from items where id = 11",
        "update items set _syncline_version = 9007199254740000, name = 'late' where id = 12",
        "delete from items where id = 13",
        'insert into syncline."deleted public.items" values (13, 9007199254740000)',
    )
    found = repaired(filled)
    (table,) = found.tables
    assert (table.missing, table.different, table.extra, table.reason) == (3, 2, 2, "")
    assert (found.clean, found.passes, found.first.differences) == (True, 2, 7)
    assert filled.verify().differences == 0


def test_a_truncation_and_a_horizon_from_the_future_hold_no_repair_off(filled: Pipeline) -> None:
    filled.damage(
        "update syncline.tables set truncated = 9007199254740000, horizon = 9007199254740000",
        "delete from items where id = 7",
        "update items set name = 'other' where id = 9",
    )
    found = repaired(filled)
    assert (found.clean, found.written, found.removed) == (True, 2, 0)
    assert filled.verify().differences == 0


def test_a_dry_run_says_what_would_be_written_and_writes_nothing(filled: Pipeline) -> None:
    filled.damage("delete from items where id <= 3", "update items set name = 'other' where id = 9")
    found = repaired(filled, Limits(dry_run=True))
    (table,) = found.tables
    assert (table.missing, table.different, found.passes, found.clean) == (3, 1, 1, False)
    assert filled.verify().differences == 4


def test_what_is_left_for_review_is_told_and_never_written_over(filled: Pipeline) -> None:
    filled.database.execute("create table orders (id int primary key, n int); insert into orders values (1, 1)")
    assert filled.verify().differences == 0
    filled.damage("update orders set n = 2", "update items set name = 'other' where id = 9")
    settings = RepairConfig(review=("public.ord*",))
    reviewed = replace(filled, config=filled.config.model_copy(update={"repair": settings}))
    found = repaired(reviewed)
    assert (found.clean, found.written, found.left) == (False, 1, 1)
    assert {t.table: t.reason for t in found.tables} == {
        "public.items": "",
        "public.orders": "left for review (repair.review)",
    }
    assert [t.table for t in repaired(reviewed, Limits(dry_run=True)).tables] == ["public.orders"]
    reviewed.database.execute("update orders set n = 2")  # somebody has resolved it, for the copy
    assert reviewed.verify().differences == 0


def test_more_than_the_share_of_a_table_stops_before_anything_is_written(filled: Pipeline) -> None:
    filled.damage("delete from items where id <= 101")
    found = repaired(filled)
    assert (found.written, found.clean, len(found.refused)) == (0, False, 1)
    assert "101 rows of table public.items" in found.refused[0]
    assert filled.verify().differences == 101
    assert repaired(filled, Limits(max_share=0.2)).clean
    assert filled.verify().differences == 0


def test_changes_that_come_while_a_repair_is_under_way_win(filled: Pipeline) -> None:
    filled.damage("delete from items where id % 20 = 0", "update items set name = 'other' where id % 20 = 1")
    with filled.running():
        stop = threading.Event()
        writer = threading.Thread(target=write, args=(filled, stop))
        writer.start()
        try:
            found = repaired(filled, Limits(batch_size=7))
        finally:
            stop.set()
            writer.join()
    assert found.clean
    assert filled.verify().differences == 0


def write(pipeline: Pipeline, stop: threading.Event) -> None:
    """Change, delete and insert the very rows that are repaired."""
    chosen = random.Random(7)
    with psycopg.connect(pipeline.database.dsn, autocommit=True) as connection:
        while not stop.is_set():
            key = 20 * chosen.randrange(51) + chosen.randrange(2)
            connection.execute("update items set price = price + 1 where id = %s", [key])
            if chosen.random() < 0.3:
                connection.execute("delete from items where id = %s", [key])
                connection.execute("insert into items values (%s, 'new', 1, null) on conflict do nothing", [key])


def test_a_row_filter_and_a_column_list_hold_for_repairs_too(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compare, "_AGAIN_S", 0.0)
    pipeline.database.execute("create table items (k0 int, k1 text, secret text, name text, primary key (k0, k1))")
    pipeline.database.execute("insert into items select g, 'a''\\' || g, 'no', 'n' from generate_series(1, 20) g")
    pipeline.database.execute("create publication syncline for table items (k0, k1, name) where (k0 > 5)")
    assert pipeline.verify().differences == 0
    pipeline.damage(
        "delete from items where k0 = 7",
        "insert into items select 1, k1, name, _syncline_version from items where k0 = 8",
    )
    found = repaired(pipeline)
    assert (found.clean, found.written, found.removed) == (True, 1, 1)
    assert pipeline.verify().tables[0].rows == 15


def test_the_keys_to_repair_are_forgotten_once_they_are_repaired(filled: Pipeline) -> None:
    filled.damage("delete from items where id = 7")
    assert repaired(filled).clean
    kept = filled.database.execute("select kind, outcome, keys from syncline.sync_requests")
    assert kept == [("repair", "done", None)]


def test_the_command_repairs_and_ends_with_0_and_with_4_where_it_stops_and_asks(filled: Pipeline) -> None:
    filled.damage("delete from items where id <= 60", "update items set name = 'secret' where id = 100")
    tried = command(filled, "--repair", "--dry-run")
    assert (tried.returncode, tried.stdout.splitlines()[0]) == (
        4,
        "main -> main  public.items  60 missing, 1 different would be repaired",
    )
    asked = command(filled, "--repair", "--max-share", "0.01")
    assert asked.returncode == 4
    assert "SL-REPAIR-LIMIT" in asked.stderr
    assert "--force" in asked.stderr
    done = command(filled, "--repair", "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert (done.returncode, report["differences"], report["repair"]["written"]) == (0, 0, 61)
    assert "secret" not in done.stdout + done.stderr
    assert filled.verify().differences == 0
    assert command(filled, "--dry-run").returncode == 2


def command(pipeline: Pipeline, *options: str) -> subprocess.CompletedProcess[str]:
    file = pipeline.path.with_name("syncline.yaml")
    arguments = [sys.executable, "-m", "syncline", "-c", str(file), "verify", *options]
    return subprocess.run(arguments, capture_output=True, text=True, timeout=240, check=False)


def test_a_source_without_a_slot_is_read_by_keys_too(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compare, "_AGAIN_S", 0.0)
    file = pipeline.path.with_name("syncline.yaml")
    file.write_text(file.read_text().replace("source:\n", "source:\n  type: triggers\n"))
    pipeline = replace(pipeline, config=load_config(file))
    pipeline.database.execute("create table items (id uuid primary key, made timestamptz, name text)")
    pipeline.database.execute("insert into items select gen_random_uuid(), now(), 'n' from generate_series(1, 100)")
    assert pipeline.verify().differences == 0
    pipeline.damage(
        "delete from items where rowid < 3",
        "update items set name = 'x' where rowid = 5",
        "insert into items select uuid(), made, name, _syncline_version from items where rowid = 7",
    )
    found = repaired(pipeline)
    assert (found.clean, found.written, found.removed) == (True, 4, 1)
