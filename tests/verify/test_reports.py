"""Kept reports: what is kept, for how long, and how it is read."""

from __future__ import annotations

import json
import subprocess
import sys

from piped import Pipeline

from syncline.catalog.reports import ReportRecords
from syncline.pipeline import SyncService
from syncline.verify import verify


def command(pipeline: Pipeline, *words: str) -> subprocess.CompletedProcess[str]:
    file = pipeline.path.with_name("syncline.yaml")
    arguments = [sys.executable, "-m", "syncline", "-c", str(file), *words]
    return subprocess.run(arguments, capture_output=True, text=True, timeout=120, check=False)


def test_reports_are_kept_without_keys_and_the_oldest_are_forgotten(pipeline: Pipeline) -> None:
    pipeline.database.execute("create table items (id text primary key); insert into items values ('secret')")
    few = pipeline.config.model_copy(update={"verify": pipeline.config.verify.model_copy(update={"keep": 2})})
    numbers = []
    for _ in range(3):
        numbers.append(verify(few, engine=SyncService, talk=lambda line: None).number)
        pipeline.damage("delete from items")
    with ReportRecords(few.control_dsn, few.control.schema_name) as records:
        assert [row["id"] for row in records.latest(10)] == [numbers[2], numbers[1]]
        last = records.read(numbers[2])
        assert records.read(numbers[0]) is None
    assert last is not None
    assert (last["differences"], last["score"], last["checks"]) == (1, 0.0, ["data_hash"])
    assert "secret" not in json.dumps(last["report"])

    listed = command(pipeline, "reports")
    assert (listed.returncode, len(listed.stdout.splitlines())) == (0, 2)
    assert listed.stdout.startswith(f"{numbers[2]}  ")
    assert "data_hash  score 0 %  1 difference(s)" in listed.stdout
    shown = command(pipeline, "reports", str(numbers[2]))
    assert shown.stdout.splitlines()[0] == "main -> main  public.items  1 rows  1 missing"
    assert json.loads(command(pipeline, "reports", str(numbers[2]), "--json").stdout)["report"] == numbers[2]
    unknown = command(pipeline, "reports", "999")
    assert (unknown.returncode, unknown.stdout) == (2, "")


def test_none_is_kept_where_none_is_wanted(pipeline: Pipeline) -> None:
    pipeline.database.execute("create table items (id int primary key)")
    none = pipeline.config.model_copy(update={"verify": pipeline.config.verify.model_copy(update={"keep": 0})})
    assert verify(none, engine=SyncService, talk=lambda line: None).number == 0
    with ReportRecords(none.control_dsn, none.control.schema_name) as records:
        assert records.latest(10) == []
    listed = command(pipeline, "reports")
    assert (listed.returncode, listed.stdout, "No report is kept." in listed.stderr) == (0, "", True)
