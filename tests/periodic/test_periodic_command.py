"""A source of members with an engine: `syncline periodic`, the copies, and what is left after kill -9."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import duckdb
import pytest
import yaml
from boards import Board

from servers import eventually
from syncline.config import RuleConfig, load_config
from syncline.pipeline import SyncService
from syncline.systems.periodic_sync import PeriodicSyncService
from syncline.verify import verify
from syncline.verify.record import record

ALERTS = "select code, resolved_at is null from syncline.sync_alerts where code like 'SL-PERIODIC%%' order by 1"


def write(board: Board, folder: Path, **changed: Any) -> None:
    tree = {
        "sources": {"board": board.settings | {"url": board.settings["url"]} | changed},
        "targets": {
            "copy": {"type": "postgres", "dsn": board.database.dsn},
            "file": {"type": "duckdb", "path": str(folder / "copy.duckdb")},
        },
        "control": {"dsn": board.database.dsn},
        "log": {"path": str(board.folder)},
    }
    (folder / "syncline.yaml").write_text(yaml.safe_dump(tree))


@pytest.fixture
def folder(board: Board, tmp_path: Path) -> Path:
    """A place with a configuration of the board, which is copied to PostgreSQL and to DuckDB."""
    write(board, tmp_path)
    return tmp_path


def syncline(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "syncline", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=240, check=False)


ROWS = "select user_id, daily_pomo, weekly_pomo, name from pomo_leaderboard order by 1"


def copied(board: Board) -> list[tuple[Any, ...]]:
    there = board.database.value("select to_regclass('pomo_leaderboard')")
    return board.database.execute(ROWS) if there else []


def in_file(folder: Path) -> list[tuple[Any, ...]]:
    with duckdb.connect(str(folder / "copy.duckdb"), read_only=True) as connection:
        return connection.execute(ROWS).fetchall()


def test_a_sync_by_command_ends_once_every_target_has_it_and_asks_before_it_deletes_much(
    board: Board, folder: Path
) -> None:
    for n in range(3):
        board.put(f"u{n}", n, name="x")
    tried = json.loads(syncline(folder, "periodic", "sync", "--dry-run", "--json").stdout)
    assert (tried["created"], tried["dry_run"], "Nothing was told" in tried["message"]) == (3, True, True)
    done = syncline(folder, "periodic", "sync")
    assert (done.returncode, "Created: 3" in done.stdout) == (0, True), done.stderr
    assert copied(board) == in_file(folder) == [(f"u{n}", n, n, "x") for n in range(3)]
    board.remove("u0")
    board.remove("u1")
    asked = syncline(folder, "periodic", "sync")
    assert (asked.returncode, "SL-PERIODIC-DELETES" in asked.stderr) == (4, True), asked.stderr
    assert len(copied(board)) == 3
    assert board.database.execute(ALERTS) == [("SL-PERIODIC-DELETES", True)]
    allowed = syncline(folder, "periodic", "sync", "--allow-deletes", "--json")
    assert (allowed.returncode, json.loads(allowed.stdout)["deleted"]) == (0, 2)
    assert copied(board) == in_file(folder) == [("u2", 2, 2, "x")]
    assert board.database.execute(ALERTS) == [("SL-PERIODIC-DELETES", False)]
    told = json.loads(syncline(folder, "periodic", "status", "--json").stdout)
    assert (told["following"], [run["state"] for run in told["runs"] if run["deleted"]]) == (False, ["done", "asking"])
    equal = syncline(folder, "verify", "--json")
    report = json.loads(equal.stdout)
    assert (equal.returncode, report["differences"], len(report["tables"])) == (0, 0, 2), equal.stderr


def test_verification_compares_the_copies_with_redis_as_it_is_now(board: Board, folder: Path) -> None:
    board.put("u1", 1)
    board.put("u2", 2)
    service = SyncService(config := load_config(folder / "syncline.yaml"))
    service.start()
    try:
        eventually(lambda: service.sources["board"].state == "streaming" and len(copied(board)) == 2, 60)
        board.put("u1", 10)  # the next run by the clock is in an hour
        assert verify(config).differences == 0
        assert copied(board)[0][:2] == ("u1", 10)
        board.database.execute("update pomo_leaderboard set daily_pomo = 99 where user_id = 'u2'")
        report = verify(config)
        assert [(t.target, t.differences) for t in report.tables] == [("copy", 1), ("file", 0)]
        rule = RuleConfig(on="source.board", query="KEYS *")
        ruled = config.model_copy(update={"verify": config.verify.model_copy(update={"rules": {"any": rule}})})
        checked = verify(ruled, checks=["row_count", "business_rules"])
        assert {(c.target, c.state) for c in checked.checks} == {
            ("", "not checked"),
            ("copy", "holds"),
            ("file", "holds"),
        }
        seen = record(config, "public.pomo_leaderboard", ["u2"])
        assert [(one.target, one.equal) for one in seen] == [("", True), ("copy", False), ("file", True)]
    finally:
        service.stop()


def test_a_run_above_the_share_sets_a_copy_of_the_table_aside_first(board: Board, folder: Path) -> None:
    write(board, folder, keep_backups=2)
    for n in range(4):
        board.put(f"u{n}", n)
    for score in (10, 11, 12, 13):
        assert syncline(folder, "periodic", "sync").returncode == 0
        board.put("u0", score)
        board.put("u1", score)
    tables = board.database.execute(
        "select tablename from pg_tables where tablename like 'backup_%%' order by substr(tablename, 10)::int"
    )
    held = [board.database.value(f"select daily_pomo from syncline_target.{t} where user_id = 'u0'") for (t,) in tables]
    assert held == [10, 11]


def test_the_trial_goes_through_all_servers_and_leaves_no_trace(board: Board, folder: Path) -> None:
    board.put("u1", 1, name="one")
    before = sorted(board.client.scan_iter())
    tried = syncline(folder, "periodic", "test")
    assert tried.returncode == 0, tried.stdout + tried.stderr
    assert tried.stdout.count("ok: ") == 4
    assert copied(board) == in_file(folder) == [("u1", 1, 1, "one")]
    assert sorted(board.client.scan_iter()) == before
    assert [board.client.zcard(f"leaderboard:{p}") for p in ("daily", "yearly")] == [1, 1]


def test_the_service_runs_by_the_clock_hears_hints_and_ends_when_asked(board: Board, folder: Path) -> None:
    write(board, folder, hints=True)
    board.client.config_set("notify-keyspace-events", "KEA")
    board.put("u1", 1)
    command = [sys.executable, "-m", "syncline", "periodic", "start"]
    with subprocess.Popen(command, cwd=folder, stderr=subprocess.PIPE, text=True) as service:
        try:
            eventually(lambda: copied(board), 120)
            eventually(board.client.pubsub_numpat, 120)
            board.client.zadd("leaderboard:daily", {"u1": 5})  # the next run by the clock is in an hour
            eventually(lambda: copied(board)[0][:2] == ("u1", 5), 120)
            assert syncline(folder, "periodic", "sync", "--json").returncode == 0  # the service does it
            second = syncline(folder, "periodic", "start")
            assert (second.returncode, "SL-PERIODIC-SERVED" in second.stderr) == (3, True)
            assert syncline(folder, "periodic", "stop").returncode == 0
            assert service.wait(60) == 0
        finally:
            service.kill()
    assert json.loads(syncline(folder, "periodic", "status", "--json").stdout)["serving"] is False


def test_the_class_of_other_designs_is_a_face_of_the_same(
    board: Board, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    board.put("u1", 1)

    async def use() -> tuple[dict[str, Any], dict[str, Any]]:
        service = PeriodicSyncService(load_config())
        assert service.sync_interval_hours == 1
        try:
            running = asyncio.create_task(service.start_periodic_sync())
            while not (await service.get_sync_status())["following"]:
                await asyncio.sleep(0.05)
            board.put("u1", 2)
            done = await service.perform_sync(periods=["daily_pomo"])
            status = await service.get_sync_status()
            service.stop_periodic_sync()
            await running
            assert (await service.perform_sync(dry_run=True))["state"] == "done", "it works on once it was stopped"
            again = asyncio.create_task(service.start_periodic_sync())
            while not (await service.get_sync_status())["following"]:
                assert not again.done()
                await asyncio.sleep(0.05)
            service.stop_periodic_sync()
            await again
            return done, status
        finally:
            service.close()

    result, status = asyncio.run(use())
    assert (result["state"], result["members"]) == ("done", 1)
    assert status["serving"] is True
    assert copied(board)[0][:2] == ("u1", 2)


KILLED = """
import os, signal, sys
from syncline.__main__ import main
from syncline.capture.redis.told import Told

name, when = sys.argv.pop(1), sys.argv.pop(1)
method = getattr(Told, name)

def killed(told, number):
    if when == "after":
        method(told, number)
    if number > 1:
        os.kill(os.getpid(), signal.SIGKILL)
    if when == "before":
        method(told, number)

setattr(Told, name, killed)
main()
"""


@pytest.mark.parametrize(("method", "when"), [("keep", "after"), ("settle", "before"), ("settle", "after")])
def test_killed_at_a_point_of_a_run_the_next_start_tells_all_and_nothing_twice(
    board: Board, folder: Path, method: str, when: str
) -> None:
    """The state written and nothing appended; appended and not settled; settled and not recorded."""
    for n in range(4):
        board.put(f"u{n}", n)
    assert syncline(folder, "periodic", "sync").returncode == 0
    board.put("u1", 10)
    board.put("new", 1)
    board.remove("u3")
    killed = [sys.executable, "-c", KILLED, method, when, "periodic", "sync"]
    died = subprocess.run(killed, cwd=folder, capture_output=True, text=True, timeout=240, check=False)
    assert died.returncode == -signal.SIGKILL, died.stderr
    after = json.loads(syncline(folder, "periodic", "sync", "--json").stdout)
    assert (after["state"], after["number"]) == ("done", 2)
    expected = [("new", 1), ("u0", 0), ("u1", 10), ("u2", 2)]
    assert [row[:2] for row in copied(board)] == [row[:2] for row in in_file(folder)] == expected
    assert "running" not in [run["state"] for run in board.runs()]


def test_a_lost_state_is_read_again(board: Board, folder: Path) -> None:
    board.put("u1", 1)
    assert syncline(folder, "periodic", "sync").returncode == 0
    for path in (board.folder / "board.log" / "told").glob("*.parquet"):
        path.unlink()
    board.put("u1", 2)
    again = syncline(folder, "periodic", "sync")
    assert again.returncode == 0, again.stderr
    assert copied(board)[0][:2] == in_file(folder)[0][:2] == ("u1", 2)


def test_a_source_without_a_place_for_the_control_schema_is_refused(board: Board, folder: Path) -> None:
    tree = yaml.safe_load((folder / "syncline.yaml").read_text())
    del tree["control"]
    (folder / "syncline.yaml").write_text(yaml.safe_dump(tree))
    told = syncline(folder, "periodic", "status")
    assert (told.returncode, "control.dsn is required" in told.stderr) == (2, True), told.stderr


def test_a_configuration_without_such_a_source_says_what_to_add(board: Board, tmp_path: Path) -> None:
    (tmp_path / "syncline.yaml").write_text(yaml.safe_dump({"source": {"dsn": board.database.dsn}}))
    told = syncline(tmp_path, "periodic", "sync")
    assert (told.returncode, "type: redis" in told.stderr) == (2, True)
