"""`syncline outbox`: made, looked at and removed, against a real server."""

from __future__ import annotations

import json

import psycopg
from commands import Command, Shell

from servers import Database
from syncline.publisher import get_sync_publisher

CONFIG = """\
source:
  dsn: ${DATABASE_URL}
  outbox: {status_schema: public, entities: {concept: {table: public.concept}}}
target: {type: duckdb, path: copy.duckdb}
"""
STATES = "select status, count(*) from public.sync_event_log group by 1"


def test_an_outbox_is_made_looked_at_and_removed(command: Command, shell: Shell, database: Database) -> None:
    shell.write(CONFIG)
    shell.variables["DATABASE_URL"] = database.dsn
    missing = command("outbox", "status")
    assert (missing.returncode, missing.stdout) == (2, "")
    assert "SL-NO-OUTBOX" in missing.stderr
    assert "syncline outbox install" in missing.stderr
    assert command("outbox", "install").returncode == 0
    assert command("outbox", "install").returncode == 0
    with database.connect() as session:
        get_sync_publisher().publish_content_created("1", "concept", {}, session=session)
    assert database.execute(STATES) == [("PENDING", 1)]
    status = json.loads(command("outbox", "status", "--json").stdout)
    assert (status["source"], status["events"], status["statuses"]) == ("main", 1, {"PENDING": 1})
    assert "PENDING    1" in command("outbox", "status").stdout
    kept = command("outbox", "remove")
    assert kept.returncode == 2
    assert "1 events of syncline_outbox.sync_event_log have not arrived" in kept.stderr
    assert command("outbox", "remove", "--yes").returncode == 0
    assert database.value("select to_regclass('syncline_outbox.sync_event_log')") is None


def test_the_script_needs_no_server_and_makes_the_same(command: Command, shell: Shell, database: Database) -> None:
    shell.write(CONFIG)
    shell.variables["DATABASE_URL"] = "postgresql://reader:hush@127.0.0.1:1/shop"
    script = command("outbox", "install", "--sql", "--grant", "postgres").stdout
    assert "hush" not in script
    with database.connect() as connection:
        connection.execute(script.encode())
        connection.execute(script.encode())
    assert database.execute(STATES) == []


def test_a_source_without_an_outbox_is_told_how_to_have_one(command: Command, shell: Shell) -> None:
    shell.write()
    refused = command("outbox", "install")
    assert refused.returncode == 2
    assert "source.outbox.entities" in refused.stderr


def test_a_role_that_is_not_there_is_named_and_nothing_is_made(
    command: Command, shell: Shell, database: Database
) -> None:
    shell.write(CONFIG)
    shell.variables["DATABASE_URL"] = database.dsn
    refused = command("outbox", "install", "--grant", "nobody")
    assert refused.returncode == 2
    assert 'role "nobody" does not exist' in refused.stderr
    with psycopg.connect(database.dsn) as connection:
        row = connection.execute("select to_regclass('syncline_outbox.sync_event_log')").fetchone()
    assert row == (None,)


def test_an_outbox_that_is_polled_needs_no_logical_decoding(
    command: Command, shell: Shell, plain_database: Database
) -> None:
    shell.write(CONFIG.replace("source:", "source:\n  type: outbox"))
    shell.variables["DATABASE_URL"] = plain_database.dsn
    plain_database.execute("create table concept (concept_id text primary key, title text)")
    missing = command("doctor")
    assert missing.returncode == 2
    assert "syncline outbox install" in missing.stdout
    assert command("outbox", "install").returncode == 0
    assert command("migrate").returncode == 0
    sound = command("doctor", "--json")
    findings = {(f["code"], f["subject"]): f for f in json.loads(sound.stdout)["findings"]}
    assert (sound.returncode, sound.stderr) == (0, "0 error(s), 0 warning(s).\n")
    assert findings["SL-OUTBOX", "syncline_outbox.sync_event_log"]["message"] == "Events tell of 1 table(s)."
    status = json.loads(command("status", "--json").stdout)
    assert status["sources"]["main"]["events"]["state"] == "idle"
