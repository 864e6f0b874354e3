"""What is fetched once and kept: by one process for all, whole or not at all, and checked."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from servers import POSTGRES_VERSIONS, eventually, required
from syncline.embedded import EmbeddedPostgres, binaries_for, fetch_binaries
from syncline.embedded.kept import made_once, servers_folder
from syncline.errors import Damaged, Misconfigured, SynclineError, Unavailable

# Makes a folder of ten files, one at a time, and says so; $2 is how long it takes over each.
MAKER = """
import sys, time
from pathlib import Path
from syncline.embedded.kept import made_once
def make(work):
    for number in range(10):
        (work / str(number)).write_text("x")
        print("made", number, flush=True)
        time.sleep(float(sys.argv[2]))
print("done", made_once(Path(sys.argv[1]), "thing", make), flush=True)
"""


def maker(folder: Path, pause_s: float) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", MAKER, folder, str(pause_s)], stdout=subprocess.PIPE, text=True)


def test_of_several_processes_at_once_one_makes_it_and_the_others_wait(tmp_path: Path) -> None:
    makers = [maker(tmp_path, 0.02) for _ in range(4)]
    said = [process.communicate()[0].splitlines() for process in makers]
    assert sorted(map(len, said)) == [1, 1, 1, 11]
    assert {lines[-1] for lines in said} == {f"done {tmp_path / 'thing'}"}
    assert len(list((tmp_path / "thing").iterdir())) == 11  # with the count of the others


def test_what_a_killed_process_left_half_made_is_neither_used_nor_kept(tmp_path: Path) -> None:
    with maker(tmp_path, 600) as killed:
        assert killed.stdout is not None
        assert killed.stdout.readline() == "made 0\n"
        killed.kill()
    assert not (tmp_path / "thing").exists()
    assert [p.name.startswith("thing.making.") for p in tmp_path.iterdir() if p.is_dir()] == [True]
    with maker(tmp_path, 0) as after:
        assert after.stdout is not None
        assert after.stdout.read().endswith(f"done {tmp_path / 'thing'}\n")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["thing", "thing.lock"]


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("SYNCLINE_SERVERS_DIR", str(tmp_path / "file" / "servers"))
    with pytest.raises(Misconfigured, match="SYNCLINE_SERVERS_DIR"):
        made_once(servers_folder(), "thing", lambda work: None)


@pytest.mark.parametrize("major", POSTGRES_VERSIONS)
def test_each_version_of_postgresql_is_fetched_and_starts(major: int, tmp_path: Path) -> None:
    binaries = required(fetch_binaries, major)
    assert binaries_for(major) == binaries
    with EmbeddedPostgres.start(tmp_path / "data", binaries=binaries) as server:
        shown = subprocess.run([server.bin("postgres"), "--version"], capture_output=True, text=True, check=True)
        assert shown.stdout.startswith(f"postgres (PostgreSQL) {major}.")


@pytest.fixture
def nothing_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and a folder for a Maven of the test's own."""
    monkeypatch.delenv("SYNCLINE_PG_BINARIES_16", raising=False)
    monkeypatch.setenv("SYNCLINE_SERVERS_DIR", str(tmp_path / "servers"))
    programs = tmp_path / "programs"
    programs.mkdir()
    monkeypatch.setenv("PATH", str(programs))
    return programs


def program(folder: Path, script: str) -> None:
    (folder / "mvn").write_text(f"#!/bin/sh\n{script}\n")
    (folder / "mvn").chmod(0o755)


def test_without_maven_the_command_that_gets_it_is_named(nothing_fetched: Path) -> None:
    with pytest.raises(Misconfigured, match="apt-get install maven"):
        fetch_binaries(16)


def test_what_maven_says_is_handed_on_without_passwords(nothing_fetched: Path) -> None:
    program(nothing_fetched, "echo '[ERROR] no route to https://bob:hunter2@host/maven'; exit 1")
    with pytest.raises(Unavailable, match="no route to https://host/maven") as caught:
        fetch_binaries(16)
    assert "make servers" in str(caught.value)
    assert list((nothing_fetched.parent / "servers").glob("postgres-*[0-9]")) == []


def test_a_file_other_than_the_published_one_is_refused(nothing_fetched: Path) -> None:
    program(nothing_fetched, 'for a; do case $a in -DoutputDirectory=*) echo bad > "${a#*=}/it.jar";; esac; done')
    with pytest.raises(Damaged, match="not the file that was published"):
        fetch_binaries(16)
    assert binaries_for(16) is None


def test_a_version_that_nobody_publishes_is_told_how_to_name_its_own() -> None:
    with pytest.raises(Misconfigured, match="SYNCLINE_PG_BINARIES_9"):
        fetch_binaries(9)


def missing() -> Path:
    raise Unavailable("There is no network.")


def test_a_missing_server_is_a_skip_here_and_a_failure_in_continuous_integration(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("CI", raising=False)
    with pytest.raises(pytest.skip.Exception, match="make servers"):
        required(missing)
    monkeypatch.setenv("CI", "true")
    with pytest.raises(SynclineError, match="no network"):
        required(missing)


def test_a_waiting_process_takes_over_from_one_that_dies(tmp_path: Path) -> None:
    with maker(tmp_path, 600) as first:
        assert first.stdout is not None
        first.stdout.readline()
        with maker(tmp_path, 0) as second:
            os.kill(first.pid, signal.SIGKILL)
            assert second.stdout is not None
            assert "done" in second.stdout.read()
    eventually((tmp_path / "thing").is_dir)
