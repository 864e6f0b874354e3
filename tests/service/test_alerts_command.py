"""`syncline alerts`: what is open, what was, and one kind alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from commands import NAMED, Command, Shell

from servers import Database
from syncline.catalog import ControlSchema

_TWO = "main/" + "long-names-are-not-broken-where-a-program-reads/" * 4


@pytest.fixture
def shell(tmp_path: Path, database: Database) -> Shell:
    """`syncline` with a source of its own."""
    shell = Shell(tmp_path, {"DATABASE_URL": database.dsn})
    shell.write(NAMED)
    return shell


def test_alerts_are_listed_with_what_to_do_and_leave_the_list_when_they_are_over(
    command: Command, database: Database
) -> None:
    before = command("alerts")
    assert (before.returncode, before.stdout, before.stderr) == (0, "", "No alert is open.\n")
    assert command("migrate").returncode == 0
    with ControlSchema(database.dsn) as control:
        control.raise_alert("SL-ONE", "warning", "main/one", "One is wrong.", "Mend one.")
        control.raise_alert("SL-ONE", "error", "main/one", "One is worse.", "Mend one.")
        control.raise_alert("SL-TWO", "critical", _TWO, "Two is wrong.", "")
        control.raise_alert("SL-GONE", "warning", "main/gone", "It passes.", expires_s=-1)
        shown = command("alerts").stdout
        assert [
            part for part in ("One is worse.", "Mend one.", "seen 2 time(s)", "Two is wrong.") if part not in shown
        ] == []
        assert [line.split("  ")[:3] for line in shown.splitlines() if "seen 1 time(s)" in line] == [
            ["critical", "SL-TWO", _TWO]
        ]
        assert "One is wrong." not in shown
        assert "It passes." not in shown
        control.resolve_alert("SL-ONE", "main/one")
    found = json.loads(command("alerts", "--json").stdout)["alerts"]
    assert [(a["code"], a["severity"], a["subject"], a["resolved_at"]) for a in found] == [
        ("SL-TWO", "critical", _TWO, None)
    ]
    every = json.loads(command("alerts", "--all", "--json").stdout)["alerts"]
    assert [a["code"] for a in every] == ["SL-GONE", "SL-TWO", "SL-ONE"]
    assert "over since" in command("alerts", "--all", "--code", "SL-ONE").stdout
    assert json.loads(command("alerts", "--code", "SL-ONE", "--json").stdout) == {"alerts": []}
