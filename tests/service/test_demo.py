"""The demo as a user starts it: a process of its own, with its own PostgreSQL."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import duckdb
import pytest

from servers import eventually

COMMAND = (sys.executable, "-m", "syncline", "demo")


def demo(tmp_path: Path, *options: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    pipe = subprocess.PIPE
    return subprocess.Popen([*COMMAND, *options], stdout=pipe, stderr=pipe, text=True, env=environment)


def test_json_is_one_object_with_all_figures_and_no_difference(tmp_path: Path) -> None:
    process = demo(tmp_path, "--rows", "6000", "--json")
    out, err = process.communicate(timeout=120)
    assert (process.returncode, err) == (0, "")
    found = json.loads(out)
    assert found["differences"] == 0
    assert found["rows_applied"] == found["rows_written"] == 6000
    assert found["rows_per_s"] > 0
    assert 0 < found["p50_ms"] <= found["p95_ms"] <= found["p99_ms"]
    assert found["initial_rows"] == 3000
    assert list(found["tables"]) == ["public.customers", "public.events", "public.order_items", "public.orders"]
    assert list(tmp_path.iterdir()) == []


def test_without_a_terminal_it_says_what_it_does_and_ends_with_the_comparison(tmp_path: Path) -> None:
    process = demo(tmp_path, "--rows", "2000")
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0
    said = out + err
    assert "\x1b[" not in said
    assert said.count("equal") == 4
    assert "0 differences" in said


def test_kept_databases_are_there_and_complete(tmp_path: Path) -> None:
    process = demo(tmp_path, "--rows", "2000", "--json", "--keep")
    out, err = process.communicate(timeout=120)
    (folder,) = tmp_path.iterdir()
    assert str(folder) in err
    with duckdb.connect(str(folder / "shop.duckdb"), read_only=True) as copy:
        for table, counts in json.loads(out)["tables"].items():
            name = table.removeprefix("public.")
            assert copy.execute(f"select count(*) from {name}").fetchall() == [(counts["rows"],)]


@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_cleanly(tmp_path: Path, ending: signal.Signals) -> None:
    process = demo(tmp_path, "--rows", "100000", "--json")
    eventually(lambda: list(tmp_path.glob("*/shop.duckdb")), 60)
    (pid,) = [int(p.read_text().split()[0]) for p in tmp_path.glob("*/postgres/postmaster.pid")]
    process.send_signal(ending)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err.splitlines()[-1]) == (130, "", "Stopped.")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
