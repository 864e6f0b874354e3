"""`syncline triggers`: the script, the installation, what is there, and its removal, as people meet them."""

from __future__ import annotations

import json

import pytest
from commands import MINIMAL, Command, Shell

from servers import Database

CONFIG = MINIMAL.replace("source:\n", "source:\n  type: triggers\n  install: false\n")


@pytest.fixture
def shop(shell: Shell, plain_database: Database) -> Shell:
    plain_database.execute("create table item (id int primary key, name text)")
    shell.variables["DATABASE_URL"] = plain_database.dsn
    shell.write(CONFIG)
    return shell


def test_the_script_can_be_run_by_somebody_else(shop: Shell, command: Command, plain_database: Database) -> None:
    refused = command("doctor")
    assert refused.returncode == 2
    assert "syncline triggers install --sql" in refused.stdout
    printed = command("triggers", "install", "--sql")
    assert printed.returncode == 0
    assert plain_database.value("select to_regnamespace('syncline_triggers')") is None, "it prints, and runs nothing"
    plain_database.execute(printed.stdout)
    assert command("doctor").returncode == 0


def test_triggers_are_installed_looked_at_and_removed(shop: Shell, command: Command) -> None:
    assert "nothing is installed" in command("triggers", "status").stdout
    assert "triggers made for public.item" in command("triggers", "install").stderr
    assert "everything is there" in command("triggers", "install").stderr
    shown = json.loads(command("triggers", "status", "--json").stdout)
    assert shown["sources"]["main"]["tables"] == {"public.item": "captured"}
    assert "public.item: captured" in command("triggers", "status").stdout
    assert "removed from 1 table(s)" in command("triggers", "remove").stderr
    assert command("triggers", "remove", "--events").returncode == 0
    assert "nothing is installed" in command("triggers", "status").stdout


def test_a_source_of_the_wal_has_no_triggers(shell: Shell, command: Command, plain_database: Database) -> None:
    shell.variables["DATABASE_URL"] = plain_database.dsn
    shell.write(MINIMAL)
    refused = command("triggers", "status")
    assert refused.returncode == 2
    assert "type: triggers" in refused.stderr


def test_an_unknown_type_of_source_is_told_with_the_nearest(shell: Shell, command: Command) -> None:
    shell.write(MINIMAL.replace("source:\n", "source:\n  type: trigers\n"))
    refused = command("check")
    assert refused.returncode == 2
    assert "source.type: there is no source type 'trigers'. Did you mean triggers?" in refused.stderr


def test_status_shows_the_events_of_a_source_by_triggers(shop: Shell, command: Command) -> None:
    command("triggers", "install")
    shown = json.loads(command("status", "--json").stdout)["sources"]["main"]
    assert shown["seen_as"] == "events"
    assert shown["events"]["state"] == "idle"
    assert "events waiting" in command("status").stdout
