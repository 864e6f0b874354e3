"""Looking only at what changed since some time, and at single keys where a second look confirms."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
import pyarrow as pa
import pytest
from piped import Pipeline

from servers import TEMPLATE, Database, fresh_database
from syncline.capture.postgres import WalSource
from syncline.config import Config
from syncline.embedded import EmbeddedPostgres
from syncline.errors import Misconfigured
from syncline.log.history import history
from syncline.pipeline import SyncService
from syncline.stores.postgres.copy import PostgresCopy
from syncline.verify import Report, compare, verify
from syncline.verify.repair import repair
from syncline.verify.scope import Scope


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compare, "_AGAIN_S", 0.0)


@pytest.fixture
def kept(pipeline: Pipeline) -> Pipeline:
    """A pipeline whose log keeps what was applied, and whose table is loaded: then a time is noted, and rows change."""
    file = pipeline.path.with_name("syncline.yaml")
    file.write_text(file.read_text().replace("log:\n", "log:\n  retention_s: 86400\n"))
    log = pipeline.config.log.model_copy(update={"retention_s": 86400.0})
    pipeline = replace(pipeline, config=pipeline.config.model_copy(update={"log": log}))
    pipeline.database.execute("create table items (id bigint primary key, name text)")
    pipeline.database.execute("create table others (a text, b int, primary key (a, b))")
    pipeline.database.execute("insert into items select g, 'n' || g from generate_series(1, 1000) g")
    assert pipeline.verify().differences == 0
    return pipeline


def now(pipeline: Pipeline) -> datetime:
    found = pipeline.database.value("select clock_timestamp()")
    assert isinstance(found, datetime)
    return found


def since(pipeline: Pipeline, moment: datetime, *tables: str) -> Report:
    return verify(pipeline.config, tables, engine=SyncService, talk=lambda line: None, since=moment)


def rows(report: Report) -> dict[str, tuple[int, int]]:
    return {t.table.removeprefix("public."): (t.rows, t.differences) for t in report.tables}


def test_only_rows_that_changed_since_are_looked_at(kept: Pipeline) -> None:
    moment = now(kept)
    with psycopg.connect(kept.database.dsn) as connection:
        connection.execute("update items set name = 'new' where id <= 10")
        connection.execute("update items set id = 5000 where id = 20")
        connection.execute("delete from items where id = 30")
        connection.execute("insert into others values ('x', 1), ('y', 2)")
    assert kept.verify().differences == 0
    assert rows(since(kept, moment)) == {"items": (13, 0), "others": (2, 0)}
    kept.damage(
        "update items set name = 'damaged' where id in (5, 7, 500)",
        "delete from items where id = 5000",
        "insert into items select 30, name, _syncline_version from items where id = 1",
        "insert into items select 20, name, _syncline_version from items where id = 1",
    )
    found = since(kept, moment)
    (items,) = (t for t in found.tables if t.table == "public.items")
    assert (items.missing, items.different, items.extra) == (1, 2, 2)  # the row 500 did not change
    assert found.scope.since == moment
    assert found.to_dict()["since"] == moment.astimezone(UTC).isoformat()
    assert kept.verify().differences == 6


def test_a_time_behind_every_change_looks_at_nothing(kept: Pipeline) -> None:
    kept.damage("delete from items")
    assert rows(since(kept, now(kept))) == {"items": (0, 0), "others": (0, 0)}


def test_a_table_that_was_loaded_or_truncated_since_is_looked_at_as_a_whole(kept: Pipeline) -> None:
    moment = now(kept)
    assert rows(since(kept, moment - timedelta(days=1)))["items"] == (1000, 0)  # that is when it was loaded
    kept.database.execute("truncate items")
    kept.database.execute("insert into items select g, 'm' || g from generate_series(1, 300) g")
    assert rows(since(kept, moment))["items"] == (300, 0)
    kept.damage("insert into items select id + 9000, name, _syncline_version from items where id = 1")
    assert rows(since(kept, moment))["items"] == (300, 1)


def test_a_log_that_does_not_go_back_that_far_is_said_to(pipeline: Pipeline) -> None:
    pipeline.database.execute("create table items (id bigint primary key, name text)")
    with pipeline.running():
        pipeline.verify()
    with pytest.raises(Misconfigured, match=r"log.retention_s|what changed before that is not known") as error:
        since(pipeline, datetime.now(UTC) - timedelta(hours=1))
    assert "log.retention_s (now 0)" in str(error.value.remedy)
    with pytest.raises(Misconfigured, match="no log of source other"):
        next(history(pipeline.config.log, "other", datetime.now(UTC)))


def test_a_table_is_not_noted_as_verified_when_a_part_of_it_was_looked_at(kept: Pipeline) -> None:
    query = "select max(compared_at) from syncline.sync_verified"
    before = kept.database.value(query)
    since(kept, now(kept))
    assert kept.database.value(query) == before


def test_a_repair_of_what_changed_since_writes_nothing_else(kept: Pipeline) -> None:
    moment = now(kept)
    kept.database.execute("update items set name = 'new' where id <= 10")
    assert kept.verify().differences == 0
    kept.damage("update items set name = 'damaged' where id in (5, 500)")
    done = repair(kept.config, engine=SyncService, talk=lambda line: None, scope=Scope(moment))
    assert done.clean
    assert done.written == 1
    assert kept.verify().differences == 1


def syncline(pipeline: Pipeline, *arguments: str) -> subprocess.CompletedProcess[str]:
    file = pipeline.path.with_name("syncline.yaml")
    command = [sys.executable, "-m", "syncline", "-c", str(file), "verify", *arguments]
    return subprocess.run(command, check=False, capture_output=True, text=True, timeout=120)


def test_the_command_takes_a_span_and_a_time_and_refuses_the_rest(kept: Pipeline) -> None:
    done = syncline(kept, "--since", "1d", "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["since"]
    assert report["checks"] == []
    told = syncline(kept, "items", "--since", datetime.now(UTC).strftime("%FT%T"))
    assert (told.returncode, "Only what changed since" in told.stdout) == (0, True), told.stderr
    for wrong, said in {
        ("--since", "yesterday"): "no time",
        ("--since", "2999-01-01"): "yet to come",
        ("--since", "1h", "--full"): "--full and --since don't go together",
        ("--since", "1h", "--checks", "row_count"): "--checks and --since don't go together",
        ("items", "--since", "1h", "--key", "1"): "--key and --since don't go together",
    }.items():
        refused = syncline(kept, *wrong)
        assert refused.returncode == 2, wrong
        assert said in " ".join(refused.stderr.split()), wrong


@pytest.fixture
def copied(database: Database, postgres: EmbeddedPostgres, tmp_path: Path) -> Iterator[tuple[Config, Database]]:
    with fresh_database(postgres, TEMPLATE) as target:
        config = Config.model_validate(
            {
                "source": {"dsn": database.dsn},
                "target": {"type": "postgres", "dsn": target.dsn},
                "log": {"path": str(tmp_path / "log")},
            }
        )
        database.execute("create table items (id bigint primary key, name text)")
        database.execute("insert into items select g, 'n' || g from generate_series(1, 1000) g")
        assert verify(config, engine=SyncService, talk=lambda line: None).differences == 0
        yield config, target


def test_a_second_look_reads_only_the_rows_that_differed(
    copied: tuple[Config, Database], monkeypatch: pytest.MonkeyPatch
) -> None:
    config, target = copied
    target.execute("update items set name = 'x' where id in (3, 4)")
    target.execute("delete from items where id = 9")
    scans: list[str] = []
    looked: list[int] = []
    scan, fetch = PostgresCopy.scan, PostgresCopy.fetch

    def scanning(self: PostgresCopy, schema: object) -> object:
        scans.append("scan")
        return scan(self, schema)  # type: ignore[arg-type]

    def fetching(self: PostgresCopy, schema: object, keys: pa.RecordBatch) -> pa.Table:
        looked.append(keys.num_rows)
        return fetch(self, schema, keys)  # type: ignore[arg-type]

    monkeypatch.setattr(PostgresCopy, "scan", scanning)
    monkeypatch.setattr(PostgresCopy, "fetch", fetching)
    points: list[int] = []
    point = WalSource.point

    @contextmanager
    def pointing(self: WalSource, purpose: str, talk: Any) -> Iterator[Any]:
        with point(self, purpose, talk) as found:
            points.extend([found.number] if purpose == "verify" else [])
            yield found

    monkeypatch.setattr(WalSource, "point", pointing)
    report = verify(config, engine=SyncService, talk=lambda line: None)
    assert (report.differences, report.tables[0].rows) == (3, 1000)
    assert (scans, looked) == (["scan"], [3])
    assert (len(points), report.tables[0].through) == (2, points[0])  # most of the table was seen there alone
    target.execute("insert into items select id + 5000, name, _syncline_version from items where id = 1")
    assert verify(config, engine=SyncService, talk=lambda line: None).differences == 4
    assert len(scans) == 3  # what is extra may lie where no key leads
