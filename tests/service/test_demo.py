"""The demos as a user starts them: a process of its own, with its own servers."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import duckdb
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from servers import eventually
from syncline.config import Config
from syncline.demo import DEMOS, run, scenario
from syncline.verify import Report, verify

COMMAND = (sys.executable, "-m", "syncline", "demo")
EXAMPLES = Path(__file__).parents[2] / "examples"


def demo(tmp_path: Path, *options: str) -> subprocess.Popen[str]:
    # What is set for the user's own servers is none of a demo's business.
    environment = {**os.environ, "TMPDIR": str(tmp_path), "NEO4J_URI": "bolt://nowhere:1", "DUCKDB_THREADS": "77"}
    pipe = subprocess.PIPE
    return subprocess.Popen([*COMMAND, *options], stdout=pipe, stderr=pipe, text=True, env=environment)


def test_json_is_one_object_with_all_figures_and_no_difference(tmp_path: Path) -> None:
    process = demo(tmp_path, "--rows", "6000", "--json")
    out, err = process.communicate(timeout=120)
    assert (process.returncode, err) == (0, "")
    found = json.loads(out)
    assert (found["differences"], found["not_compared"]) == (0, 0)
    target = found["targets"]["main"]
    assert target["rows_applied"] == found["rows_written"] == 6000
    assert found["rows_per_s"] > 0
    assert 0 < target["p50_ms"] <= target["p95_ms"] <= target["p99_ms"]
    assert found["initial_rows"] == 3000
    assert list(target["tables"]) == ["public.customers", "public.events", "public.order_items", "public.orders"]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "tables"),
    [
        ("chunks", {"graph": 4, "vectors": 1, "tables": 4}),
        ("chunks --source stream", {"postgres": 1, "neo4j": 1, "qdrant": 1}),
        ("academy", {"main": 6}),
        ("analytics", {"main": 5}),
        ("cmdb", {"graph": 5, "cache": 1}),
        ("leaderboard", {"main": 1}),
    ],
)
def test_each_demo_ends_without_a_difference_in_any_of_its_copies(
    tmp_path: Path, name: str, tables: dict[str, int]
) -> None:
    process = demo(tmp_path, *name.split(), "--rows", "600", "--json")
    out, err = process.communicate(timeout=280)
    assert (process.returncode, err) == (0, "")
    found = json.loads(out)
    assert found["differences"] == 0
    assert {target: len(of["tables"]) for target, of in found["targets"].items()} == tables
    for of in found["targets"].values():
        assert of["rows_applied"] > 0
        assert all(table["rows"] > 0 and table["differences"] == 0 for table in of["tables"].values())
    assert found["rows_written"] >= 600
    assert list(tmp_path.iterdir()) == []
    if name.startswith(("chunks", "leaderboard")):
        damage = found["damage"]
        assert damage["just_that"]
        assert damage["done"] == damage["found"] == damage["repaired"] >= 3
        assert damage["score_before"] < damage["score_after"] == 100


def test_a_demo_whose_tables_could_not_be_compared_does_not_end_as_if_they_were_equal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def loading(config: Config, **_: object) -> Report:
        return Report([replace(table, state="loading", rows=0) for table in verify(config).tables], 0.0)

    monkeypatch.setattr(run, "verify", loading)
    assert run.run_demo(scenario("shop"), 600, True, False, Console(stderr=True)) == 4
    found = json.loads(capsys.readouterr().out)
    assert (found["differences"], found["not_compared"]) == (0, 4)


def test_without_a_terminal_it_says_what_it_does_and_ends_with_the_comparison(tmp_path: Path) -> None:
    process = demo(tmp_path, "--rows", "2000")
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0
    said = out + err
    assert "\x1b[" not in said
    assert said.count("equal") == 4
    assert "What is shipped? (DuckDB)" in said
    assert "0 differences" in said


def test_kept_databases_are_there_and_complete(tmp_path: Path) -> None:
    process = demo(tmp_path, "analytics", "--rows", "2000", "--json", "--keep")
    out, err = process.communicate(timeout=120)
    (folder,) = tmp_path.iterdir()
    assert str(folder) in err
    tables = json.loads(out)["targets"]["main"]["tables"]
    with duckdb.connect(str(folder / "data" / "analytics.duckdb"), read_only=True) as copy:
        for table, counts in tables.items():
            name = table.removeprefix("public.")
            assert copy.execute(f"select count(*) from {name}").fetchall() == [(counts["rows"],)]
    (exported,) = (folder / "data" / "parquet" / "current" / "public.users").glob("*.parquet")
    assert "email" not in pq.read_schema(exported).names


@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_cleanly(tmp_path: Path, ending: signal.Signals) -> None:
    process = demo(tmp_path, "--rows", "100000", "--json")
    eventually(lambda: list(tmp_path.glob("*/data/shop.duckdb")), 60)
    (pid,) = [int(p.read_text().split()[0]) for p in tmp_path.glob("*/postgres/postmaster.pid")]
    process.send_signal(ending)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err.splitlines()[-1]) == (130, "", "Stopped.")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_an_unknown_demo_is_refused_with_the_nearest_one(tmp_path: Path) -> None:
    process = demo(tmp_path, "chunk")
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (2, "")
    assert "There is no demo chunk." in err
    assert "Did you mean chunks?" in err


def test_a_source_that_a_demo_does_not_have_is_refused_with_the_one_that_has(tmp_path: Path) -> None:
    process = demo(tmp_path, "shop", "--source", "stream")
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (2, "")
    assert "There is no demo shop from source stream." in err
    assert "syncline demo chunks --source stream" in err
    assert (scenario("chunks", "stream").files / "stream.yaml").samefile(EXAMPLES / "chunks" / "stream.yaml")


@pytest.mark.parametrize("name", DEMOS)
def test_a_demo_runs_on_the_files_of_its_example(name: str) -> None:
    files = scenario(name).files
    assert scenario(name).name == name
    for file in ("syncline.yaml", "schema.sql"):
        assert (files / file).samefile(EXAMPLES / name / file)
    assert f"syncline demo {name}" in (EXAMPLES / name / "README.md").read_text()


@pytest.mark.slow
def test_an_installed_package_brings_the_files_of_its_demos(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(command, cwd=EXAMPLES.parent, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        for name in DEMOS:
            for file in ("syncline.yaml", "schema.sql"):
                held = archive.read(f"syncline/demo/files/{name}/{file}")
                assert held == (EXAMPLES / name / file).read_bytes()
