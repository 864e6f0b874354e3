"""Reconciliation: a job that compares and repairs, of which there is one at a time, and which is recorded."""

from __future__ import annotations

import subprocess
import sys
from contextlib import closing
from typing import Any

import pytest
from piped import Pipeline
from sqlalchemy import Connection

from syncline.catalog import ControlSchema
from syncline.catalog.reconciliation import ReconciliationRuns
from syncline.errors import Gap, Misconfigured, Unavailable
from syncline.systems.sync_engine import ReconciliationJob
from syncline.verify import compare

ONE = "550e8400-e29b-41d4-a716-446655440000"


@pytest.fixture
def filled(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> Pipeline:
    monkeypatch.setattr(compare, "_AGAIN_S", 0.0)
    pipeline.database.execute(
        "create table concept (id text primary key, name text); create table other (id int primary key)"
    )
    pipeline.database.execute("insert into concept select 'c' || g, 'n' from generate_series(1, 100) g")
    pipeline.database.execute("insert into other select generate_series(1, 10)")
    assert pipeline.verify().differences == 0
    return pipeline


def job(pipeline: Pipeline) -> ReconciliationJob:
    return ReconciliationJob(pipeline.path.with_name("syncline.yaml"), talk=lambda line: None)


def recorded(pipeline: Pipeline) -> list[dict[str, Any]]:
    columns = "state, started_by, entity_types, dry_run, row_count, missing, different, written, removed, left_over"
    found = pipeline.database.execute(f"select {columns} from syncline.reconciliation_runs order by id")
    return [dict(zip(columns.split(", "), row, strict=True)) for row in found]


def test_a_full_reconciliation_repairs_the_types_and_ids_it_is_told_and_is_recorded(filled: Pipeline) -> None:
    filled.damage(
        "delete from concept where id in ('c1', 'c2')",
        "update concept set name = 'x' where id = 'c3'",
        "insert into other select 99, _syncline_version from other where id = 1",
    )
    some = job(filled).run_full_reconciliation(["concept"], ["c2", "c4"], batch_size=50)
    assert (some.clean, some.written, some.last.tables[0].rows) == (True, 1, 2)
    assert filled.verify().differences == 3
    done = job(filled).run_full_reconciliation()
    assert (done.clean, done.written, done.removed) == (True, 2, 1)
    assert filled.verify().differences == 0
    first, second = recorded(filled)
    assert (first["state"], first["entity_types"], first["missing"], first["written"]) == ("clean", ["concept"], 1, 1)
    assert (second["state"], second["started_by"], second["left_over"]) == ("clean", "library", 0)
    assert (second["missing"], second["different"], second["removed"], second["row_count"]) == (1, 1, 1, 110)


def test_named_keys_are_of_the_type_of_their_table_and_are_repaired_however_many_differ(filled: Pipeline) -> None:
    filled.database.execute("create table pair (a uuid, b int, n int, primary key (a, b))")
    filled.database.execute(
        "insert into pair select '550e8400-e29b-41d4-a716-446655440000', g, g from generate_series(1, 99) g"
    )
    assert filled.verify().differences == 0
    filled.damage("update pair set n = -1", "delete from other where id < 4")
    pairs = [f"{ONE}, {number}" for number in range(1, 61)]
    done = job(filled).run_full_reconciliation(["public.pair"], pairs)
    assert (done.clean, done.written) == (True, 60)
    assert job(filled).run_full_reconciliation(["other"], [1, 3, 99]).written == 2
    assert filled.verify().differences == 39 + 1
    with pytest.raises(Misconfigured, match="no integer"):
        job(filled).run_full_reconciliation(["other"], ["one"])
    with pytest.raises(Misconfigured, match="a, b"):
        job(filled).run_full_reconciliation(["public.pair"], ["1"])
    assert command(filled, "other", "--ids", "2").returncode == 0
    assert filled.verify().differences == 39


def test_a_named_key_that_cannot_be_looked_up_leads_to_no_repair_of_other_rows(filled: Pipeline) -> None:
    filled.database.execute("create table day (d date primary key, n int)")
    filled.database.execute("insert into day values ('infinity', 1), ('2026-01-01', 1)")
    assert filled.verify().differences == 0
    filled.damage("update day set n = 2")
    with pytest.raises(Gap, match="no value for its key"):
        job(filled).run_full_reconciliation(["public.day"], ["infinity"])
    assert filled.verify().differences == 2


def test_one_runs_at_a_time_and_a_dead_one_is_marked_as_such(filled: Pipeline) -> None:
    control = filled.config.control
    assert job(filled).run_full_reconciliation(["other"]).clean
    runs = ReconciliationRuns(filled.config.control_dsn, control.schema_name)
    with runs.alone():
        runs.begin("command", "", None, 1, dry_run=False)
        with pytest.raises(Unavailable, match="under way"):
            job(filled).run_full_reconciliation()
    runs.close()
    assert job(filled).run_full_reconciliation(["other"]).clean
    assert [run["state"] for run in recorded(filled)] == ["clean", "died", "clean"]


def test_the_command_says_what_it_would_repair_and_then_repairs_it(filled: Pipeline) -> None:
    filled.damage("delete from concept where id = 'c1'")
    tried = command(filled, "concept", "--dry-run")
    assert (tried.returncode, tried.stdout.splitlines()[0]) == (
        4,
        "main -> main  public.concept  1 missing would be repaired",
    )
    done = command(filled, "concept", "--batch-size", "10")
    assert (done.returncode, done.stdout.splitlines()[0]) == (0, "main -> main  public.concept  1 missing repaired")
    assert [(run["state"], run["dry_run"], run["written"]) for run in recorded(filled)] == [
        ("differences", True, 0),
        ("clean", False, 1),
    ]
    assert command(filled, "--ids", "c1").returncode == 2


def test_a_run_that_could_compare_nothing_is_not_recorded_as_clean(filled: Pipeline) -> None:
    with ControlSchema(filled.config.control_dsn, filled.config.control.schema_name) as control:
        control.pause(table="public.other")
    paused = command(filled, "other")
    assert (paused.returncode, paused.stdout.splitlines()[-1][:51]) == (
        4,
        "0 difference(s), 0 left after 1 pass(es); 1 table(s",
    )
    assert [run["state"] for run in recorded(filled)] == ["failed"]
    ((said,),) = filled.database.execute("select message from syncline.reconciliation_runs")
    assert said == "1 table(s) not compared."


def command(pipeline: Pipeline, *options: str) -> subprocess.CompletedProcess[str]:
    file = pipeline.path.with_name("syncline.yaml")
    arguments = [sys.executable, "-m", "syncline", "-c", str(file), "reconcile", *options]
    return subprocess.run(arguments, capture_output=True, text=True, timeout=240, check=False)


def test_the_next_one_may_begin_before_the_server_has_seen_that_the_session_is_gone(
    filled: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = filled.config
    monkeypatch.setattr(Connection, "invalidate", lambda _: None)  # its session stays
    with (
        closing(ReconciliationRuns(config.control_dsn, config.control.schema_name)) as first,
        closing(ReconciliationRuns(config.control_dsn, config.control.schema_name)) as second,
    ):
        for runs in (first, second):
            with runs.alone():
                pass
