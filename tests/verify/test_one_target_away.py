"""Of two targets one is away: the other is compared, checked and repaired, and nothing reads as if all were well."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import duckdb
import pytest
import redis
import yaml

from servers import Database
from syncline.catalog.reconciliation import ReconciliationRuns
from syncline.config import Config, load_config
from syncline.embedded import EmbeddedValkey
from syncline.errors import Unavailable
from syncline.pipeline import SyncService
from syncline.verify import compare, verify
from syncline.verify.reconcile import reconcile
from syncline.verify.repair import repair


@dataclass(frozen=True)
class TwoTargets:
    """A source with a DuckDB file that is there and a cache that is not. In the file one row of three is wrong."""

    file: Path
    config: Config
    path: Path
    cache: EmbeddedValkey

    def names(self) -> list[tuple[object, ...]]:
        with duckdb.connect(str(self.path), read_only=True) as connection:
            return connection.execute("select id, name from items order by id").fetchall()

    def command(self, *options: str) -> subprocess.CompletedProcess[str]:
        arguments = [sys.executable, "-m", "syncline", "-c", str(self.file), "verify", *options]
        return subprocess.run(arguments, capture_output=True, text=True, timeout=120, check=False)


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compare, "_AGAIN_S", 0.0)


@pytest.fixture
def two(database: Database, tmp_path: Path) -> Iterator[TwoTargets]:
    database.execute("create table items (id int primary key, name text)")
    database.execute("insert into items values (1, 'one'), (2, 'two'), (3, 'three')")
    path, file = tmp_path / "copy.duckdb", tmp_path / "syncline.yaml"
    with EmbeddedValkey.start(tmp_path / "valkey") as cache:
        targets = {"cache": {"type": "redis", "url": cache.url()}, "file": {"type": "duckdb", "path": str(path)}}
        settings = {"source": {"dsn": database.dsn}, "targets": targets, "log": {"path": str(tmp_path / "log")}}
        file.write_text(yaml.safe_dump(settings))
        config = load_config(file)
        assert verify(config, engine=SyncService, talk=_silent).differences == 0
        with redis.Redis.from_url(cache.url()) as client:
            assert client.dbsize() > 0
        cache.stop()
        with duckdb.connect(str(path)) as connection:
            connection.execute("update items set name = 'other' where id = 2")
        yield TwoTargets(file, config, path, cache)


def _silent(_: str) -> None:
    """Talk that no test is about."""


def test_the_other_is_compared_and_what_was_not_is_said(two: TwoTargets) -> None:
    report = verify(two.config, engine=SyncService, talk=_silent)
    away, there = report.tables
    assert (away.target, away.state, away.differences, away.score) == ("cache", "away", 0, 0.0)
    assert "Redis" in away.reason
    assert (there.target, there.state, there.rows, there.different) == ("file", "compared", 3, 1)
    assert (report.away, report.not_compared, report.score < 0.5) == (("cache",), 1, True)


def test_checks_of_it_are_not_made_and_those_of_the_other_are(two: TwoTargets) -> None:
    checks = {
        (check.kind, check.target): check
        for check in verify(two.config, engine=SyncService, talk=_silent, checks=["row_count", "data_hash"]).checks
    }
    assert checks["row_count", "file"].state == "holds"
    assert checks["row_count", "cache"].state == "not checked"
    assert "away" in checks["row_count", "cache"].reason
    alone = verify(two.config, engine=SyncService, talk=_silent, checks=["row_count"])
    assert {check.target: check.state for check in alone.checks} == {"cache": "not checked", "file": "holds"}


def test_the_other_is_repaired(two: TwoTargets) -> None:
    done = repair(two.config, engine=SyncService, talk=_silent)
    assert (done.clean, done.written, done.last.away) == (True, 1, ("cache",))
    assert two.names() == [(1, "one"), (2, "two"), (3, "three")]


def test_a_reconciliation_is_not_recorded_as_clean(two: TwoTargets) -> None:
    assert reconcile(two.config, engine=SyncService, talk=_silent).written == 1
    with closing(ReconciliationRuns(two.config.control_dsn, two.config.control.schema_name)) as runs:
        (run,) = runs.runs(1)
    assert (run["state"], run["message"]) == ("failed", "Away: cache.")


def test_that_the_target_asked_for_or_the_only_one_is_away_is_an_error(two: TwoTargets, database: Database) -> None:
    database.execute("create table keyless (v text)")  # which is left out, whether or not the target is there
    with pytest.raises(Unavailable):
        verify(two.config, target="cache", engine=SyncService, talk=_silent)
    with pytest.raises(Unavailable):
        verify(two.config, target="cache", engine=SyncService, talk=_silent, checks=["row_count"])
    only = two.config.model_copy(update={"targets": {"cache": two.config.targets["cache"]}})
    with pytest.raises(Unavailable):
        verify(only, engine=SyncService, talk=_silent)


def test_the_command_ends_with_4_and_names_it(two: TwoTargets) -> None:
    repaired = two.command("--repair")
    assert repaired.returncode == 4
    assert "Target cache is away: nothing of it was compared or repaired." in repaired.stdout
    compared = two.command()
    assert (compared.returncode, "Traceback" in compared.stderr) == (4, False)
    assert "main -> cache  public.items (away)  not compared. Redis" in compared.stdout
    assert "main -> file  public.items  3 rows  equal" in compared.stdout
    told = json.loads(two.command("--json").stdout)
    assert [(t["target"], t["state"]) for t in told["tables"]] == [("cache", "away"), ("file", "compared")]
    assert two.command("--target", "file").returncode == 0
