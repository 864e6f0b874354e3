"""The command line with a real server: run, watch, pause, query, stop."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import duckdb
import psycopg
import pytest
from commands import NAMED, Command, Shell

from servers import Database, eventually
from syncline.embedded import EmbeddedPostgres
from syncline.errors import SynclineError
from syncline.stores.duckdb import open_reader


@pytest.fixture
def shell(tmp_path: Path, database: Database) -> Shell:
    """`syncline` with a source of three rows."""
    database.execute("create table items (id int primary key, name text)")
    database.execute("insert into items values (1, 'one'), (2, 'two'), (3, 'three')")
    shell = Shell(tmp_path, {"DATABASE_URL": database.dsn})
    shell.write(NAMED)
    return shell


@contextmanager
def running(shell: Shell, *options: str) -> Iterator[subprocess.Popen[str]]:
    process = shell.start("run", "--status-every", "0.5", *options)
    try:
        eventually(lambda: rows(shell) == 3, 60)
        yield process
    finally:
        process.kill()
        process.communicate(timeout=30)


def rows(shell: Shell) -> int | None:
    """Rows at the target; None while there is no table."""
    try:
        with open_reader(shell.folder / "copy.duckdb") as reader:
            return int(reader.query("select count(*) as n from items")["n"][0].as_py())
    except SynclineError:
        return None


@pytest.mark.slow
def test_a_run_is_seen_paused_resumed_and_stopped(shell: Shell, command: Command, database: Database) -> None:
    with running(shell) as process:
        streams = "select active_pid is not null from pg_replication_slots where slot_name = 'cli'"
        eventually(lambda: database.value(streams))
        status = json.loads(command("status", "--json").stdout)["sources"]["main"]
        assert (status["state"], status["targets"]["main"]["state"]) != ("not running", "not running")
        assert status["slot"]["active_pid"] is not None
        assert status["log"]["end"] >= 1
        assert "cli: streaming" in command("status").stdout

        assert command("pause", "--table", "public.items").returncode == 0
        assert "paused: public.items" in command("status").stdout
        held = database.value("select count(*) from syncline.sync_pauses where resumed_at is null")
        assert held >= 1
        assert command("resume", "--table", "public.items").returncode == 0
        database.execute("insert into items values (4, 'four')")
        eventually(lambda: rows(shell) == 4, 60)
        eventually(lambda: database.value("select count(*) from syncline.sync_pauses") == 0)
        assert "Nothing of that was paused" in command("resume").stderr
        assert "public.items  4 rows  equal" in command("verify", "items").stdout

        asked = command("query", "select id, name from items order by id", "--csv")
        assert asked.stdout.splitlines() == ["id,name", "1,one", "2,two", "3,three", "4,four"]
        assert "three" in command("query", "select * from items where id = 3").stdout
        wrong = command("query", "select nothing from items")
        assert (wrong.returncode, wrong.stdout) == (2, "")

        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
        said = process.stderr.read() if process.stderr else ""
        assert "Syncline runs (main -> main)" in said
        assert "Stopping (SIGTERM)" in said
        assert "Traceback" not in said
    eventually(lambda: database.value("select active_pid is null from pg_replication_slots where slot_name = 'cli'"))
    after = json.loads(command("status", "--json").stdout)["sources"]["main"]
    assert after["slot"]["active_pid"] is None
    assert after["targets"]["main"]["rows_applied"] >= 1
    assert rows(shell) == 4


def test_ctrl_c_ends_a_run_with_0(shell: Shell) -> None:
    with running(shell) as process:
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0


def test_a_run_goes_on_when_nobody_reads_what_it_says(shell: Shell, database: Database) -> None:
    with running(shell, "--log-level", "debug") as process:
        assert process.stderr is not None
        process.stderr.close()
        process.stderr = None
        database.execute("create table more (id int primary key)")  # which it talks about
        database.execute("insert into items values (4, 'four')")
        eventually(lambda: rows(shell) == 4, 60)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0


def test_logs_asked_for_as_json_are_json_line_by_line(shell: Shell) -> None:
    with running(shell, "--json-logs") as process:
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
        lines = process.stderr.read().splitlines() if process.stderr else []
    events = [json.loads(line)["event"] for line in lines]
    assert any(event.startswith("Stopping (SIGTERM)") for event in events)
    assert any(event.startswith("Syncline runs") for event in events)
    assert events[-1] == "Stopped."


def test_a_second_signal_aborts() -> None:
    twice = (
        "import os, signal; from syncline.service.run import _Signals; signals = _Signals(); signals.starting = False;"
        "signals.__enter__(); os.kill(os.getpid(), signal.SIGINT); os.kill(os.getpid(), signal.SIGINT)"
    )
    ended = subprocess.run([sys.executable, "-c", twice], capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 130
    assert "Aborted. Nothing is lost" in ended.stderr


def test_doctor_finds_a_healthy_source_healthy(command: Command) -> None:
    looked = command("doctor")
    assert looked.returncode == 0, looked.stdout
    assert "ERROR" not in looked.stdout
    assert "0 error(s)" in looked.stderr


def test_doctor_names_the_statement_that_mends(command: Command, database: Database) -> None:
    database.execute("create table keyless (x int)")
    looked = command("doctor", "--json")
    errors = [f for f in json.loads(looked.stdout)["findings"] if f["severity"] == "error"]
    assert looked.returncode == 2
    assert [("keyless" in f["subject"] + f["message"], bool(f["remedy"])) for f in errors] == [(True, True)]


def test_what_a_run_refuses_is_said_once(command: Command, shell: Shell, database: Database) -> None:
    database.execute("drop table items; create table keyless (x int)")
    ended = shell("run")
    assert ended.returncode == 2
    assert ended.stderr.count("it has no primary key") == 1, ended.stderr


def test_a_gap_is_told_by_run_by_status_and_by_doctor_alike(command: Command, shell: Shell, database: Database) -> None:
    with running(shell) as process:
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    assert command("status").returncode == 0
    eventually(lambda: database.value("select active_pid is null from pg_replication_slots where slot_name = 'cli'"))
    database.execute("select pg_drop_replication_slot('cli')")
    looked = command("doctor", "--json")
    assert looked.returncode == 4, looked.stdout
    found = [f for f in json.loads(looked.stdout)["findings"] if f["severity"] == "error"]
    assert [(f["code"], f["subject"]) for f in found] == [("SL-GAP", "source main")]
    assert "`syncline resync`" in found[0]["remedy"]
    ended = shell("run")
    assert ended.returncode == 4
    assert ended.stderr.count(found[0]["message"]) == 1, ended.stderr
    assert found[0]["remedy"] in ended.stderr
    asked = command("status", "--json")
    assert asked.returncode == 4
    assert json.loads(asked.stdout)["sources"]["main"]["targets"]["main"]["state"] == "stopped"
    assert command("status").returncode == 4
    again = [f for f in json.loads(command("doctor", "--json").stdout)["findings"] if f["severity"] == "error"]
    assert [f["code"] for f in again] == ["SL-GAP"], again


def test_doctor_finds_a_log_that_is_gone(command: Command, shell: Shell) -> None:
    with running(shell) as process:
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    shutil.rmtree(next(shell.folder.rglob("main.log")))
    looked = command("doctor", "--json")
    found = [f for f in json.loads(looked.stdout)["findings"] if f["severity"] == "error"]
    assert (looked.returncode, [f["code"] for f in found]) == (4, ["SL-LOG-FOREIGN"])
    ended = shell("run")
    assert ended.returncode == 4
    assert "Error [SL-LOG-FOREIGN]" in ended.stderr


def test_a_slot_that_was_dropped_as_doctor_says_is_made_anew_by_a_resync(
    command: Command, shell: Shell, database: Database
) -> None:
    with running(shell) as process:
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    database.execute("drop publication cli; create publication cli for table items")
    looked = json.loads(command("doctor", "--json").stdout)["findings"]
    remedy = next(f["remedy"] for f in looked if f["code"] == "SL-PUBLICATION-ORDER")
    statement, _, then = remedy.partition(";")
    assert "`syncline resync`" in then
    database.execute(statement)
    database.execute("insert into items values (4, 'four')")
    assert command("resync").returncode == 0
    process = shell.start("run")
    try:
        eventually(lambda: rows(shell) == 4, 60)
    finally:
        process.kill()
        process.communicate()


def test_doctor_looks_at_every_target(shell: Shell, command: Command) -> None:
    (shell.folder / "text.duckdb").write_text("no database")
    more = "targets:\n  wrong:\n    type: duckdb\n    path: text.duckdb\n  scratch:\n    type: memory\n"
    shell.write(NAMED + more)
    looked = command("doctor", "--json")
    found = {f["subject"]: (f["code"], f["severity"]) for f in json.loads(looked.stdout)["findings"]}
    assert looked.returncode == 2
    assert found["target main"] == ("SL-DUCKDB", "ok")
    assert found["target wrong"] == ("SL-DUCKDB-FILE", "error")
    assert found["target scratch"] == ("SL-TARGET", "info")
    assert sorted(p.name for p in shell.folder.iterdir()) == ["syncline.yaml", "text.duckdb"]


def test_doctor_refuses_a_file_that_duckdb_can_not_tell_from_a_schema_in_it(shell: Shell, command: Command) -> None:
    shell.write(NAMED.replace("copy.duckdb", "crm.duckdb").replace("  slot", '  monitored_tables: ["crm.*"]\n  slot'))
    looked = command("doctor", "--json")
    clashes = [f for f in json.loads(looked.stdout)["findings"] if f["code"] == "SL-DUCKDB-FILE"]
    assert [(f["severity"], "schema crm in it" in f["message"]) for f in clashes] == [("error", True)]


def test_doctor_takes_a_running_engine_for_what_it_is(shell: Shell, command: Command) -> None:
    with running(shell):
        looked = command("doctor", "--json")
    found = {f["subject"]: (f["code"], f["severity"]) for f in json.loads(looked.stdout)["findings"]}
    assert looked.returncode == 0, looked.stdout
    assert found["target main"] == ("SL-DUCKDB-OPEN", "info")
    assert found["control schema syncline"] == ("SL-CONTROL", "ok")


def test_doctor_says_which_right_the_control_schema_lacks(shell: Shell, command: Command, database: Database) -> None:
    role = f"narrow_{database.name}"
    database.execute(f"create role {role} login")
    shell.write(NAMED + f"control:\n  dsn: {database.dsn.replace('postgres@', role + '@')}\n")
    try:
        lacks = control_finding(command)
        assert lacks["severity"] == "error"
        assert f'GRANT CREATE ON DATABASE "{database.name}" TO "{role}"' in lacks["remedy"]
        database.execute("create schema syncline")
        lacks = control_finding(command)
        assert f'GRANT USAGE, CREATE ON SCHEMA "syncline" TO "{role}"' in lacks["remedy"]
        database.execute(f"grant usage, create on schema syncline to {role}")
        assert control_finding(command)["code"] == "SL-CONTROL-NEW"
        assert database.value("select count(*) from pg_tables where schemaname = 'syncline'") == 0
    finally:
        database.execute(f"drop owned by {role}; drop role {role}")


def control_finding(command: Command) -> dict[str, str]:
    found: list[dict[str, str]] = json.loads(command("doctor", "--json").stdout)["findings"]
    return next(f for f in found if f["subject"].startswith("control schema"))


def test_migrate_is_idempotent_and_resync_is_recorded(command: Command, database: Database) -> None:
    for _ in range(2):
        assert command("migrate").returncode == 0
    asked = command("resync", "--table", "public.items")
    assert asked.returncode == 0
    assert "public.items will be read again" in asked.stderr
    assert database.value("select tables::text from syncline.sync_requests") == '["public.items"]'


@pytest.mark.parametrize("kind", ["folder", "text"])
def test_a_run_that_no_target_can_use_creates_nothing_at_the_source(
    shell: Shell, database: Database, kind: str
) -> None:
    for name in ("copy.duckdb", "second.duckdb"):
        path = shell.folder / name
        path.mkdir() if kind == "folder" else path.write_text("no database")
    shell.write(NAMED + "targets:\n  second:\n    type: duckdb\n    path: second.duckdb\n")
    ended = shell("run")
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr.count("Error [SL-CONFIG]") == 2
    assert "copy.duckdb" in ended.stderr
    assert "second.duckdb" in ended.stderr
    slots = "select count(*) from pg_replication_slots where database = current_database()"
    made = f"select (select count(*) from pg_publication), ({slots})"
    assert database.execute(made) == [(0, 0)]
    for name in ("copy.duckdb", "second.duckdb"):
        path = shell.folder / name
        path.rmdir() if kind == "folder" else path.unlink()
    with running(shell):
        assert database.execute(made) == [(1, 1)]


def test_status_before_the_first_run_is_no_error(command: Command) -> None:
    asked = command("status")
    assert (asked.returncode, asked.stderr) == (0, "")
    assert "control schema: not there yet" in asked.stdout
    assert "cli: not there yet" in asked.stdout


def test_status_ends_with_3_when_only_the_control_schema_is_away(shell: Shell, command: Command) -> None:
    shell.write(NAMED + "control:\n  dsn: postgresql://reader:hush@127.0.0.1:1/records\n")
    asked = command("status")
    assert asked.returncode == 3
    assert "cli: not there yet" in asked.stdout
    assert "PostgreSQL at 127.0.0.1:1/records cannot be reached" in asked.stderr
    assert "control.dsn" in asked.stderr


def test_status_with_a_wrong_login_ends_with_2(shell: Shell, command: Command, database: Database) -> None:
    shell.write(NAMED + f"control:\n  dsn: {database.dsn.replace('postgres@', 'nobody@')}\n")
    asked = command("status", "--json")
    assert asked.returncode == 2
    assert "control.dsn" in asked.stderr


def test_a_resync_of_one_target_is_recorded_with_its_name(command: Command, database: Database) -> None:
    assert command("migrate").returncode == 0
    asked = command("resync", "--target", "main")
    assert asked.returncode == 0
    assert "all tables for target main will be read again" in asked.stderr
    assert database.execute("select target, tables from syncline.sync_requests") == [("main", None)]
    unknown = command("resync", "--target", "nobody")
    assert (unknown.returncode, unknown.stdout) == (2, "")
    assert database.value("select count(*) from syncline.sync_requests") == 1


def test_a_database_that_does_not_exist_is_misconfigured(shell: Shell, command: Command) -> None:
    shell.variables["DATABASE_URL"] = shell.variables["DATABASE_URL"].replace("/test_", "/no_such_test_")
    refused = command("run")
    assert refused.returncode == 2
    assert "does not exist" in refused.stderr


@pytest.mark.slow
def test_a_server_without_logical_decoding_ends_a_run_with_2_and_the_statement(
    tmp_path: Path, pg_server: EmbeddedPostgres
) -> None:
    with psycopg.connect(pg_server.dsn(), autocommit=True) as connection:
        connection.execute("alter system set wal_level = replica")
        connection.execute("create table items (id int primary key)")
    pg_server.restart()
    shell = Shell(tmp_path, {"DATABASE_URL": pg_server.dsn()})
    shell.write()
    ended = shell("run")
    assert ended.returncode == 2
    assert "ALTER SYSTEM SET wal_level = logical" in ended.stderr


def test_a_query_as_json_is_json_whatever_the_values(shell: Shell, command: Command) -> None:
    with duckdb.connect(str(shell.folder / "copy.duckdb")) as copy:
        copy.execute(
            "create table odd as select 'NaN'::double as n, '-inf'::double as i, '\\xAB'::blob as b,"
            " [1, 'inf'::double] as l"
        )
    asked = command("query", "from odd", "--json")

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    found = json.loads(asked.stdout, parse_constant=refuse)
    assert found == [{"n": "NaN", "i": "-Infinity", "b": "\\xab", "l": [1.0, "Infinity"]}]


def test_a_second_engine_elsewhere_is_told_from_the_one_that_works(
    shell: Shell, command: Command, tmp_path: Path
) -> None:
    other = Shell(tmp_path / "other", shell.variables)
    other.folder.mkdir()
    other.write(NAMED)
    with running(shell):
        second = other.start("run", "--status-every", "0")
        try:
            eventually(lambda: (other.folder / "syncline-data").exists() or second.poll() is not None, 30)
            eventually(lambda: "SL-SLOT-BUSY" in other("doctor", "--json").stdout, 60)
        finally:
            second.kill()
            second.communicate()
        told = command("status", "--json")
        assert (told.returncode, json.loads(told.stdout)["control"]["alerts"]) == (0, [])
        assert command("doctor").returncode == 0
        assert other("doctor").returncode == 2
