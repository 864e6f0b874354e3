from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from boards import Board

from servers import eventually
from syncline.config import load_config
from syncline.systems.periodic_sync import PeriodicSyncService


@pytest.fixture
def folder(board: Board, tmp_path: Path) -> Path:
    """A place with a configuration of the board."""
    periodic = board.config.model_dump(mode="json", exclude_unset=True)
    periodic |= {"url": board.config.url.get_secret_value(), "target": "copy", "sooner_s": 0}
    tree = {
        "source": {"dsn": board.database.dsn},
        "targets": {"copy": {"type": "postgres", "dsn": board.database.dsn, "sources": []}},
        "periodic": {"board": periodic},
    }
    (tmp_path / "syncline.yaml").write_text(yaml.safe_dump(tree))
    return tmp_path


def syncline(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "syncline", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120, check=False)


def test_a_sync_by_command_tells_what_it_did_and_asks_before_it_deletes_much(board: Board, folder: Path) -> None:
    for n in range(3):
        board.put(f"u{n}", n)
    tried = json.loads(syncline(folder, "periodic", "sync", "--dry-run", "--json").stdout)
    assert (tried["created"], tried["dry_run"]) == (3, True)
    done = syncline(folder, "periodic", "sync")
    assert (done.returncode, "Created: 3" in done.stdout) == (0, True)
    board.remove("u0")
    board.remove("u1")
    asked = syncline(folder, "periodic", "sync")
    assert (asked.returncode, "SL-PERIODIC-DELETES" in asked.stderr) == (4, True)
    alerts = "select code, resolved_at is null from syncline.sync_alerts"
    assert board.database.execute(alerts) == [("SL-PERIODIC-DELETES", True)]
    assert syncline(folder, "periodic", "sync", "--allow-deletes").returncode == 0
    assert board.database.execute(alerts) == [("SL-PERIODIC-DELETES", False)]
    told = json.loads(syncline(folder, "periodic", "status", "--json").stdout)
    assert [run["state"] for run in told["runs"]] == ["done", "asking", "done", "done"]


def test_the_trial_goes_through_both_servers_and_leaves_no_trace(board: Board, folder: Path) -> None:
    board.put("u1", 1, name="one")
    syncline(folder, "periodic", "sync")
    before = sorted(board.client.scan_iter())
    tried = syncline(folder, "periodic", "test")
    assert tried.returncode == 0, tried.stdout + tried.stderr
    assert tried.stdout.count("ok: ") == 4
    assert board.rows() == [("u1", 1, 1, "one")]
    assert sorted(board.client.scan_iter()) == before
    assert [board.client.zcard(f"leaderboard:{p}") for p in ("daily", "yearly")] == [1, 1]
    (tombstones,) = board.database.execute(
        "select tablename from pg_tables where schemaname = 'syncline_target' and tablename like 'deleted%%'"
    )
    assert board.database.value(f"select count(*) from syncline_target.{tombstones[0]}") == 0


def test_the_service_runs_by_the_clock_hears_hints_and_ends_when_asked(board: Board, folder: Path) -> None:
    board.client.config_set("notify-keyspace-events", "KEA")
    board.put("u1", 1)
    command = [sys.executable, "-m", "syncline", "periodic", "start"]
    with subprocess.Popen(command, cwd=folder, stderr=subprocess.PIPE, text=True) as service:
        try:
            eventually(lambda: board.database.value("select to_regclass('pomo_leaderboard')") and board.rows(), 60)
            eventually(board.client.pubsub_numpat, 60)
            board.client.zadd("leaderboard:daily", {"u1": 5})  # the next run by the clock is in an hour
            eventually(lambda: board.rows("user_id, daily_pomo") == [("u1", 5)], 60)
            second = syncline(folder, "periodic", "start")
            assert (second.returncode, "SL-PERIODIC-SERVED" in second.stderr) == (3, True)
            assert syncline(folder, "periodic", "stop").returncode == 0
            assert service.wait(30) == 0
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
            while not (await service.get_sync_status())["runs"]:
                await asyncio.sleep(0.05)
            while (await service.get_sync_status())["running"]:
                await asyncio.sleep(0.05)
            service.stop_periodic_sync()
            await running
        finally:
            service.close()
        again = PeriodicSyncService(load_config(), "board")
        try:
            return await again.perform_sync(periods=["daily_pomo"]), await again.get_sync_status()
        finally:
            again.close()

    result, status = asyncio.run(use())
    assert (result["state"], result["members"]) == ("done", 1)
    assert len(status["runs"]) == 2
    assert board.rows("user_id, daily_pomo") == [("u1", 1)]


def test_a_configuration_that_can_not_be_meant_is_refused(folder: Path) -> None:
    text = (folder / "syncline.yaml").read_text()
    (folder / "syncline.yaml").write_text(text.replace("target: copy", "target: cpoy"))
    told = syncline(folder, "periodic", "status")
    assert (told.returncode, "cpoy" in told.stderr) == (2, True)
