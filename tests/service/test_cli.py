"""The command line without servers: files, options, messages and exit codes."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from typing import get_args

import pytest
from commands import MINIMAL, Command, Shell
from typer.testing import CliRunner

from syncline import __version__
from syncline.errors import Damaged, Gap, Misconfigured, Rejected, Unavailable
from syncline.finding import Severity
from syncline.log.folder import lock_folder
from syncline.service import cli, doctor
from syncline.service.figures import amount, size, source_line, span

COMMANDS = ("init", "check", "config", "doctor", "migrate", "run", "status", "pause", "resume", "resync", "verify")


# -------------------------------------------------------------------------------------------------------------- offline


def test_init_writes_a_file_that_only_its_owner_reads_and_check_accepts(shell: Shell) -> None:
    assert shell("init").returncode == 0
    file = shell.folder / "syncline.yaml"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    checked = shell("check")
    assert checked.returncode == 0
    assert "source main: 127.0.0.1:1/shop, tables public.*" in checked.stdout
    assert "target main: duckdb" in checked.stdout
    assert "hush" not in checked.stdout + checked.stderr


def test_init_never_overwrites_unless_told(shell: Shell, command: Command) -> None:
    shell.write("mine: 1\n")
    refused = command("init")
    assert refused.returncode == 2
    assert "syncline.yaml exists already" in refused.stderr
    assert (shell.folder / "syncline.yaml").read_text() == "mine: 1\n"
    assert command("init", "--force").returncode == 0
    assert command("check").returncode == 0


def test_init_into_a_folder_that_is_not_there_is_told(command: Command) -> None:
    refused = command("init", "-c", "no/where.yaml")
    assert refused.returncode == 2
    assert "no/where.yaml can't be written: No such file or directory" in refused.stderr


def test_check_refuses_a_connection_string_that_is_none_without_repeating_it(shell: Shell, command: Command) -> None:
    shell.write()
    shell.variables["DATABASE_URL"] = "postgresql://sync:hush hush@127.0.0.1/shop"
    refused = command("check")
    assert (refused.returncode, refused.stdout) == (2, "")
    assert "syncline.yaml:2 with ${DATABASE_URL}: source.dsn can't be read" in refused.stderr
    assert "hush" not in refused.stderr


@pytest.mark.parametrize("name", ["source.dsn", "sources.main.replication_dsn", "control.dsn"])
def test_a_secret_on_the_command_line_is_refused_and_not_repeated(shell: Shell, command: Command, name: str) -> None:
    shell.write()
    refused = command("check", "--set", f"{name}=postgresql://sync:hush@127.0.0.1/shop")
    assert (refused.returncode, refused.stdout) == (2, "")
    assert f"command line: {name} is a secret" in refused.stderr
    assert f"SYNCLINE_{name.replace('.', '__').upper()}, or {name}_file" in refused.stderr
    assert "hush" not in refused.stderr
    file = shell.folder / "dsn"
    file.write_text("postgresql://sync:hush@127.0.0.1/other\n")
    assert command("check", "--set", f"{name}_file={file}").returncode == 0
    shell.variables[f"SYNCLINE_{name.replace('.', '__').upper()}"] = "postgresql://sync:hush@127.0.0.1/other"
    assert command("check").returncode == 0


def test_doctor_has_a_mark_for_every_severity() -> None:
    assert set(doctor._MARK) == set(get_args(Severity))


def test_config_shows_values_and_origins_but_no_secrets(shell: Shell, command: Command) -> None:
    shell.write()
    shell.variables["SYNCLINE_APPLY__MAX_ROWS"] = "17"
    shown = command("config", "--json", "--set", "source.slot=mine")
    found = json.loads(shown.stdout)
    assert found["apply.max_rows"] == {"value": 17, "origin": "env SYNCLINE_APPLY__MAX_ROWS"}
    assert found["sources.main.slot"] == {"value": "mine", "origin": "command line"}
    assert found["targets.main.path"] == {"value": "copy.duckdb", "origin": "syncline.yaml:5"}
    assert found["sources.main.dsn"]["value"] == "(hidden) 127.0.0.1:1/shop"
    assert found["log.max_bytes"]["origin"] == "default"
    table = command("config")
    lines = [line.split() for line in table.stdout.splitlines()]
    assert ["apply.max_rows", "17", "env", "SYNCLINE_APPLY__MAX_ROWS"] in lines
    assert "hush" not in shown.stdout + table.stdout


def test_the_overlay_of_an_environment_is_laid_over_the_file(shell: Shell, command: Command) -> None:
    shell.write()
    shell.write("source:\n  slot: production\n", "syncline.production.yaml")
    for arguments in (("-e", "production", "config", "--json"), ("config", "--json", "--environment=production")):
        found = json.loads(command(*arguments).stdout)
        assert found["sources.main.slot"] == {"value": "production", "origin": "syncline.production.yaml:2"}


def test_migrate_prints_its_sql_without_a_server(shell: Shell, command: Command) -> None:
    shell.write(MINIMAL + "control:\n  schema: records\n")
    printed = command("migrate", "--sql")
    assert printed.returncode == 0
    assert "CREATE TABLE records.sync_status" in printed.stdout


def test_version_and_help_end_with_0(shell: Shell) -> None:
    assert shell("--version").stdout.strip() == f"syncline {__version__}"
    runner = CliRunner()
    for command in COMMANDS:
        assert runner.invoke(cli.app, [command, "--help"]).exit_code == 0


# ------------------------------------------------------------------------------------------------------------ bad input

REFUSED: dict[str, tuple[str | None, tuple[str, ...], list[str]]] = {
    "no file": (None, ("check",), ["syncline.yaml does not exist", "syncline init"]),
    "a wrong key": (MINIMAL + "aply: {}\n", ("check",), ["syncline.yaml:6", "aply", "Did you mean apply?"]),
    "not YAML": ("source: [\n", ("run",), ["syncline.yaml:2:1", "not YAML"]),
    "a variable not set": ("source: {dsn: '${NOT_SET}'}\n", ("run",), ["syncline.yaml:1", "NOT_SET is not set"]),
    "a wrong --set": (MINIMAL, ("check", "--set", "apply.max_row=1"), ["command line", "Did you mean max_rows?"]),
    "a --set without a value": (MINIMAL, ("check", "--set", "apply"), ["NAME=VALUE"]),
    "a wrong log level": (MINIMAL, ("check", "--log-level", "loud"), ["command line", "logging.level", "'debug'"]),
    "no target": ("source: {dsn: host=a}\n", ("run",), ["no target", "target:"]),
    "a wrong target": (MINIMAL, ("verify", "--target", "lake"), ["no target lake", "main"]),
    "a wrong source": (MINIMAL, ("pause", "--source", "lake"), ["no source lake", "main"]),
    "a wrong type": (None, ("init", "--target", "duckdbb"), ["no target type duckdbb", "duckdb"]),
    "a query without a copy": (MINIMAL, ("query", "select 1"), ["There is no DuckDB file", "copy.duckdb"]),
    "a wrong target of an engine": (MINIMAL, ("pause", "--target", "mian"), ["no target mian", "Did you mean main?"]),
    "a list": ("- source\n", ("run",), ["syncline.yaml:1", "must hold settings"]),
    "an empty file": ("", ("run",), ["syncline.yaml", "there is no source"]),
    "a folder": (None, ("check", "-c", "."), [". can't be read: Is a directory"]),
    "an unknown home": (
        MINIMAL.replace("copy", "~nobody.here/copy"),
        ("check",),
        ["syncline.yaml:5", "target.path: there is no home folder of ~nobody.here"],
    ),
    "a pattern that is none": (
        MINIMAL,
        ("check", "--set", "source.monitored_tables=a.b.c"),
        ["command line: source.monitored_tables.0 must be a table name or pattern", "not 'a.b.c'"],
    ),
    "a port that is none": (
        MINIMAL.replace("${DATABASE_URL}", "postgresql://a@b:99999/c"),
        ("check",),
        ["syncline.yaml:2: source.dsn names a port that is none"],
    ),
    "a port that is none, online": (
        MINIMAL.replace("${DATABASE_URL}", "postgresql://a@127.0.0.1:99999/c"),
        ("run",),
        ["syncline.yaml:2: source.dsn names a port that is none"],
    ),
    "a folder for a DuckDB file": (
        MINIMAL.replace("copy.duckdb", "/"),
        ("check",),
        ["syncline.yaml:5: target main: / is a folder, not a database file. Correct"],
    ),
    "a file for the folder of a DuckDB file": (
        MINIMAL.replace("copy.duckdb", "syncline.yaml/copy.duckdb"),
        ("check",),
        ["syncline.yaml:5: target main: ", "syncline.yaml is a file, not a folder"],
    ),
    "a file for the log's folder": (
        MINIMAL + "log:\n  path: syncline.yaml\n",
        ("check",),
        ["syncline.yaml:7: log.path: ", "syncline.yaml is a file, not a folder", "may write"],
    ),
    "a DuckDB file called like our schema": (
        MINIMAL.replace("copy.duckdb", "Syncline.duckdb"),
        ("check",),
        ["syncline.yaml:5", "Syncline.duckdb can't be called that: Syncline's own schema", "another name"],
    ),
    "a DuckDB file called like a schema of the source": (
        MINIMAL.replace("copy.duckdb", "crm.duckdb").replace("target", "  monitored_tables: crm.*\ntarget"),
        ("check",),
        ["syncline.yaml:6", "crm.duckdb can't be called that: schema crm in it has the same name"],
    ),
    "a folder of a benchmark that is not there": (
        None,
        ("bench", "load", "--dir", "/nosuchdir"),
        ["--dir", "'/nosuchdir' does not exist"],
    ),
    "a file for the folder of a benchmark": (
        MINIMAL,
        ("bench", "load", "--dir", "syncline.yaml"),
        ["--dir", "is a file"],
    ),
    "an empty variable": (
        MINIMAL.replace("${DATABASE_URL}", "${SYNCLINE_TEST_NOTHING:-}"),
        ("run",),
        ["syncline.yaml:2 with ${SYNCLINE_TEST_NOTHING}: source.dsn is empty"],
    ),
    "an option without its value": (MINIMAL, ("check", "--set"), ["--set takes a value"]),
    "two formats": (MINIMAL, ("query", "select 1", "--json", "--csv"), ["--json and --csv are both given"]),
    "a wrong command": (None, ("runn",), ["No such command 'runn'"]),
    "a wrong option": (None, ("run", "--foo"), ["No such option", "--foo"]),
    "a wrong number": (None, ("demo", "--rows", "many"), ["--rows", "valid integer"]),
}


@pytest.mark.parametrize("case", REFUSED)
def test_bad_input_is_one_message_and_exit_code_2(shell: Shell, command: Command, case: str) -> None:
    text, arguments, parts = REFUSED[case]
    if text is not None:
        shell.write(text)
    refused = command(*arguments)
    assert (refused.returncode, refused.stdout) == (2, ""), refused
    assert [part for part in parts if part not in refused.stderr] == [], refused.stderr


@pytest.mark.parametrize("arguments", [("run",), ("migrate",), ("pause",), ("verify",), ("resync",)])
def test_an_unreachable_server_is_named_with_its_setting_and_exit_code_3(
    shell: Shell, command: Command, arguments: tuple[str, ...]
) -> None:
    shell.write()
    refused = command(*arguments)
    assert (refused.returncode, refused.stdout) == (3, ""), refused
    assert "127.0.0.1:1/shop" in refused.stderr
    assert "source.dsn" in refused.stderr
    assert "hush" not in refused.stderr


def test_a_variable_of_another_system_that_overrules_the_file_is_told_with_what_to_do(
    shell: Shell, command: Command
) -> None:
    shell.write()
    shell.variables["DUCKDB_DATABASE_PATH"] = "other.duckdb"
    checked = command("check")
    assert checked.returncode == 0
    told = "target.path is what the environment variable DUCKDB_DATABASE_PATH says, and not what syncline.yaml:5 says."
    assert told in " ".join(checked.stderr.split())
    found = json.loads(command("doctor", "--json").stdout)["findings"]
    (warned,) = [f for f in found if f["code"] == "SL-ENVIRONMENT"]
    assert (warned["severity"], warned["subject"], warned["message"]) == ("warning", "setting target.path", told)
    assert warned["remedy"] == "Unset DUCKDB_DATABASE_PATH, or take the setting out of the file."
    assert "env DUCKDB_DATABASE_PATH" in command("config").stdout


def test_doctor_goes_on_behind_a_server_that_is_away(shell: Shell, command: Command) -> None:
    shell.write()
    looked = command("doctor", "--json")
    assert looked.returncode == 3
    found = json.loads(looked.stdout)["findings"]
    assert [f["severity"] for f in found if f["subject"].startswith("source")] == ["error"]
    assert any(f["subject"].startswith("log") for f in found)
    assert looked.stdout.count("cannot be reached") == 1
    assert "hush" not in looked.stdout


def test_status_knows_by_the_lock_of_the_log_that_an_engine_lives(shell: Shell, command: Command) -> None:
    shell.write()
    lock = lock_folder(shell.folder / "syncline-log" / "main.log")
    shell.write(MINIMAL + "log:\n  path: syncline-log\n")
    try:
        asked = command("status", "--json")
        assert (asked.returncode, json.loads(asked.stdout)["sources"]["main"]["state"]) == (3, "running")
    finally:
        os.close(lock)
    assert json.loads(command("status", "--json").stdout)["sources"]["main"]["state"] == "not running"


def test_status_watched_through_a_pipe_is_a_line_for_each_look(shell: Shell) -> None:
    shell.write()
    watching = shell.start("status", "--watch", "--every", "0.2")
    try:
        assert watching.stdout is not None
        lines = [watching.stdout.readline() for _ in range(6)]
    finally:
        watching.kill()
        watching.communicate()
    assert sum(line.startswith("main: unknown") for line in lines) >= 2
    assert any("cannot be reached" in line and "control.dsn" in line for line in lines)


def test_a_failed_command_leaves_stdout_empty(shell: Shell, command: Command) -> None:
    shell.write()
    ended = command("verify", "--json")
    assert ended.returncode == 3
    assert ended.stdout == ""


def test_status_shows_what_it_can_read_and_ends_with_3_when_servers_are_away(shell: Shell, command: Command) -> None:
    shell.write()
    asked = command("status", "--json")
    assert asked.returncode == 3
    found = json.loads(asked.stdout)
    assert found["sources"]["main"]["state"] == "unknown"
    assert "127.0.0.1:1/shop" in found["sources"]["main"]["slot"]["error"]
    assert "127.0.0.1:1/shop" in found["control"]["error"]
    shown = command("status")
    assert shown.returncode == 3
    assert "not reachable" in shown.stdout
    for said in (asked.stderr, shown.stderr):
        assert "Error [SL-UNAVAILABLE]: PostgreSQL at 127.0.0.1:1/shop cannot be reached" in said
        assert said.count("Error [") == 1
        assert "control.dsn (by default source.dsn) is right" in said
    assert "hush" not in asked.stdout + asked.stderr + shown.stdout + shown.stderr


# --------------------------------------------------------------------------------------------------------------- errors


def test_errors_have_exit_codes() -> None:
    errors = (Misconfigured("x"), Unavailable("x"), Gap("x"), Damaged("x"), Rejected("t", [0], "x"), ValueError("x"))
    assert [cli.exit_code(error) for error in errors] == [2, 3, 4, 4, 1, 1]


def test_a_defect_is_told_by_its_place_and_without_its_text(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def break_down(**_: object) -> None:
        raise ValueError("row 17 holds hush")

    monkeypatch.setattr(cli, "app", break_down)
    with pytest.raises(SystemExit) as ended:
        cli.main(["run"])
    said = capsys.readouterr().err
    assert ended.value.code == 1
    assert "ValueError at test_cli.py:" in said
    assert "This is a bug" in said
    assert "hush" not in said
    assert "Traceback" not in said
    with pytest.raises(SystemExit):
        cli.main(["run", "--debug"])
    assert "Traceback" in capsys.readouterr().err


def test_global_options_are_understood_behind_the_command() -> None:
    given = ["run", "--config", "a.yaml", "--status-every", "1", "-e", "x", "--debug", "--", "--config"]
    assert cli._hoisted(given) == [
        *("--config", "a.yaml", "-e", "x", "--debug"),
        *("run", "--status-every", "1", "--", "--config"),
    ]


# -------------------------------------------------------------------------------------------------------------- figures


def test_figures_are_readable() -> None:
    assert [size(n) for n in (None, 0, 1023, 1536, 200 * 1024**2, 3 * 1024**4)] == [
        *("-", "0 B", "1023 B", "1.5 KiB", "200 MiB", "3.0 TiB")
    ]
    assert [span(s) for s in (None, 0.0123, 4.21, 240, 9000)] == ["-", "12 ms", "4.2 s", "4 min", "2.5 h"]
    assert amount(1234567) == "1,234,567"


def test_a_source_is_told_in_one_line() -> None:
    status = {
        "state": "loading",
        "lag_bytes": 2048,
        "log": {"size_bytes": 4096},
        "loading": {"public.a": {"rows": 10, "bytes_done": 5, "bytes_total": 20}},
        "targets": {"main": {"state": "applying", "rows_applied": 1000, "rows_per_s": 50.0, "lag_s": 0.5}},
    }
    assert source_line("shop", status) == (
        "shop: loading, 2.0 KiB behind, log 4.0 KiB | loading public.a 25% (10 rows)"
        " | main applying: 1,000 rows, 50/s, lag 500 ms"
    )


UNPRIVILEGED = """\
import os, sys
import syncline.stores.duckdb.check
from syncline.service import cli
if os.geteuid() == 0: os.seteuid(65534)  # root may write everywhere
cli.main(sys.argv[1:])
"""


def test_check_refuses_a_folder_that_may_not_be_written_and_warns_of_one_that_can_t_be_made(shell: Shell) -> None:
    """The configuration may be meant for another machine or user; what is there already can be judged."""

    def checked(path: str, log: str) -> subprocess.CompletedProcess[str]:
        shell.write(MINIMAL.replace("copy.duckdb", path) + f"log:\n  path: {log}\n")
        return subprocess.run(
            [sys.executable, "-c", UNPRIVILEGED, "check"],
            check=False,
            cwd=shell.folder,
            env={**os.environ, **shell.variables},
            capture_output=True,
            text=True,
        )

    shell.folder.chmod(0o755)
    there = checked("/copy.duckdb", "/")
    assert there.returncode == 2, there.stderr
    assert "syncline.yaml:5: target main: The folder / can't be written: " in there.stderr
    assert "syncline.yaml:7: log.path: The folder / can't be written: " in there.stderr
    assert "has no right to" in there.stderr or "read-only" in there.stderr
    missing = checked("/no/where/copy.duckdb", "/no/where")
    assert missing.returncode == 0, missing.stderr
    assert "Warning: syncline.yaml:5: target main: The folder / can't be written, so /no/where can't" in missing.stderr
    assert "Warning: syncline.yaml:7: log.path: The folder / can't be written, so /no/where can't" in missing.stderr
