from __future__ import annotations

import io
import logging
import subprocess
import sys
import threading
from typing import Any

import psycopg
import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import MetaData

from servers import Database, eventually
from syncline.catalog import ControlSchema, StatusRow, upgrade
from syncline.catalog.connection import make_engine
from syncline.catalog.models import Base
from syncline.errors import Misconfigured, SynclineError, Unavailable

NAMES = ["syncline", "Control Schema", 'odd"name :x %s %(a)s', "select"]


def tables_of(database: Database, schema: str) -> list[str]:
    found = database.execute("select tablename from pg_tables where schemaname = %s order by 1", schema)
    return [name for (name,) in found]


@pytest.mark.parametrize("schema", NAMES)
def test_a_schema_of_any_name_is_made_and_found_up_to_date(database: Database, schema: str) -> None:
    told: list[str] = []
    with ControlSchema(database.dsn, schema) as control:
        assert control.version() is None
        revision = control.migrate(told.append)
        control.check()
        assert control.version() == revision == upgrade.latest()
    assert "sync_status" in tables_of(database, schema)
    assert told[0] == f"creating schema {schema}"
    assert len(told) == 1 + len(upgrade.known())


def test_migrating_again_says_and_changes_nothing(database: Database) -> None:
    told: list[str] = []
    with ControlSchema(database.dsn) as control:
        control.migrate()
        control.write_status([StatusRow("a", state="running")])
        control.migrate(told.append)
        assert [row["state"] for row in control.statuses()] == ["running"]
    assert told == []


def test_two_schemas_of_one_database_know_nothing_of_each_other(database: Database) -> None:
    with ControlSchema(database.dsn, "one") as one, ControlSchema(database.dsn, "two") as two:
        one.migrate()
        with pytest.raises(Misconfigured, match="does not exist yet"):
            two.check()
        two.migrate()
        one.raise_alert("SL-X", "info", "s", "of one")
        assert two.alerts() == []


def test_the_migrations_make_what_the_models_declare(database: Database) -> None:
    with ControlSchema(database.dsn, "own") as control:
        control.migrate()
    declared = MetaData(naming_convention=Base.metadata.naming_convention)
    for table in Base.metadata.sorted_tables:
        table.to_metadata(declared, schema="own")
    engine = make_engine(database.dsn, "own", 10, migration=True)
    with engine.connect() as connection:

        def ours(name: str | None, kind: str, parents: Any) -> bool:
            return name == "own" if kind == "schema" else name != "alembic_version"

        options = {
            "include_schemas": True,
            "include_name": ours,
            "compare_server_default": True,
            "version_table_schema": "own",
        }
        context = MigrationContext.configure(connection, opts=options)
        differences = compare_metadata(context, declared)
        connection.exec_driver_sql("drop index own.sync_alerts_open_key")
        after_damage = compare_metadata(context, declared)
        ours_checked = "select conname from pg_constraint where contype = 'c' and conname like 'sync%%'"
        checks = connection.exec_driver_sql(ours_checked).scalars().all()
    engine.dispose()
    assert differences == []
    assert [kind for kind, *_ in after_damage] == ["add_index"]
    assert sorted(checks) == ["sync_alerts_severity_check", "sync_dead_letters_state_check"]


def test_the_revisions_are_known_without_loading_them() -> None:
    scripts = ScriptDirectory.from_config(upgrade._config("", io.StringIO()))
    assert scripts.get_heads() == [upgrade.latest()]
    assert {script.revision for script in scripts.walk_revisions()} == upgrade.known()


def test_every_revision_can_be_taken_back(database: Database) -> None:
    with ControlSchema(database.dsn) as control:
        control.migrate()
    engine = make_engine(database.dsn, "syncline", 10, migration=True)
    with engine.begin() as connection:
        config = upgrade._config("syncline", io.StringIO(), connection=connection, on_version_apply=lambda **_: None)
        command.downgrade(config, "base")
    engine.dispose()
    assert tables_of(database, "syncline") == ["alembic_version"]


@pytest.mark.parametrize("schema", NAMES)
def test_psql_makes_the_same_schema_from_the_printed_script(database: Database, schema: str) -> None:
    with ControlSchema(database.dsn, schema) as control:
        psql = str(database.server.bin("psql"))
        arguments = [psql, "-X", "-q", "-v", "ON_ERROR_STOP=1", "-d", database.dsn]
        done = subprocess.run(arguments, input=control.migration_sql(), text=True, capture_output=True, check=False)
        assert (done.returncode, done.stderr) == (0, "")
        control.check()
        control.write_status([StatusRow("a", state="running")])


def test_a_migration_waits_for_another_and_then_finds_the_work_done(database: Database) -> None:
    told: list[str] = []
    with ControlSchema(database.dsn) as control, database.connect() as other:
        other.execute("select pg_advisory_lock(hashtextextended('syncline.migrate:syncline', 0))")
        waiting = threading.Thread(target=control.migrate, args=(told.append,))
        waiting.start()
        eventually(lambda: told == ["another migration of schema syncline is running: waiting for it"])
        assert tables_of(database, "syncline") == []
        other.execute("select pg_advisory_unlock_all()")
        waiting.join(20)
        control.check()


def test_migrations_of_several_processes_and_threads_at_once_all_succeed(database: Database) -> None:
    code = f"from syncline.catalog import ControlSchema; print(ControlSchema({database.dsn!r}).migrate())"
    processes = [
        subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    failures: list[SynclineError] = []

    def migrate() -> None:
        try:
            with ControlSchema(database.dsn) as control:
                control.migrate()
        except SynclineError as error:
            failures.append(error)

    threads = [threading.Thread(target=migrate) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    outputs = [process.communicate(timeout=60) for process in processes]
    assert failures == []
    assert outputs == [(f"{upgrade.latest()}\n", "")] * 2


def test_migrating_writes_nothing_to_the_terminal(database: Database, capfd: pytest.CaptureFixture[str]) -> None:
    root = logging.getLogger()
    handler, level = logging.StreamHandler(), root.level
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    try:
        with ControlSchema(database.dsn) as control:
            control.migrate()
            control.migration_sql()
    finally:
        root.removeHandler(handler)
        root.setLevel(level)
    captured = capfd.readouterr()
    assert (captured.out, captured.err) == ("", "")


def test_a_missing_schema_names_the_command_that_makes_it(database: Database) -> None:
    with ControlSchema(database.dsn) as control:
        for call in (control.check, control.alerts, control.statuses):
            with pytest.raises(Misconfigured) as raised:
                call()
            assert raised.value.remedy == "Run `syncline migrate`."


def test_an_outdated_schema_names_the_command_that_mends_it(database: Database) -> None:
    with ControlSchema(database.dsn) as control:
        control.migrate()
        database.execute("alter table syncline.sync_gaps drop column to_place")
        with pytest.raises(Misconfigured, match="missing or outdated"):
            control.open_gap("s", "SL-GAP", "r")


def test_a_schema_of_a_newer_version_is_left_alone(database: Database) -> None:
    with ControlSchema(database.dsn) as control:
        control.migrate()
        database.execute("update syncline.alembic_version set version_num = '9999'")
        for call in (control.check, control.migrate):
            with pytest.raises(Misconfigured, match="newer than this version") as raised:
                call()
            assert raised.value.remedy == "Upgrade Syncline."


@pytest.fixture
def stranger(database: Database) -> Any:
    """The connection string of a role without rights."""
    role = f"stranger_{database.name}"
    database.execute(f"create role {role} login")
    yield psycopg.conninfo.make_conninfo(database.dsn, user=role), role
    database.execute(f"drop owned by {role}")
    database.execute(f"drop role {role}")


def test_a_role_that_may_not_create_is_told_the_grant(database: Database, stranger: tuple[str, str]) -> None:
    dsn, role = stranger
    with ControlSchema(dsn) as control:
        with pytest.raises(Misconfigured) as raised:
            control.migrate()
        grant = f'GRANT CREATE ON DATABASE "{database.name}" TO "{role}";'
        assert grant in raised.value.remedy
        database.execute(grant)
        control.migrate()
        control.check()


def test_a_role_that_may_not_write_is_told_the_grant(database: Database, stranger: tuple[str, str]) -> None:
    dsn, role = stranger
    with ControlSchema(database.dsn) as owner, ControlSchema(dsn) as control:
        owner.migrate()
        with pytest.raises(Misconfigured, match="permission denied for schema"):
            control.alerts()
        database.execute(f'grant usage on schema syncline to "{role}"')
        database.execute(f'grant select on all tables in schema syncline to "{role}"')
        with pytest.raises(Misconfigured, match="may not read and write sync_alerts, ") as raised:
            control.check()
        for grant in raised.value.remedy.removeprefix("As its owner: ").split("; "):
            database.execute(grant)
        control.check()
        control.raise_alert("SL-X", "info", "s", "m")


def test_a_server_that_is_away_is_unavailable_and_the_password_stays_secret() -> None:
    with ControlSchema("postgresql://someone:hunter2@127.0.0.1:1/nowhere") as control:
        for call in (control.version, control.migrate, control.alerts):
            with pytest.raises(Unavailable, match=r"127\.0\.0\.1:1/nowhere") as raised:
                call()
            assert "hunter2" not in str(raised.value)
            assert "control.dsn" in raised.value.remedy


@pytest.mark.parametrize("name", ["", "pg_mine", "x" * 64, "é" * 32, "a\0b"])
def test_a_name_that_no_schema_can_have_is_refused(name: str) -> None:
    with pytest.raises(Misconfigured, match="can't be the name of the control schema"):
        ControlSchema("host=127.0.0.1", name)
