"""What `doctor` hears of a PostgreSQL target before an engine opens it; the server is left as it is."""

from __future__ import annotations

from typing import Any

import pytest
from pg_target import config_of, opened

from servers import Database
from syncline.embedded import EmbeddedPostgres
from syncline.finding import Finding
from syncline.stores.postgres import PostgresConfig, PostgresStore
from syncline.testing.store_suite import ITEM


def check(database: Database, **settings: Any) -> dict[str, Finding]:
    return {f.code: f for f in PostgresStore.check(config_of(database, **settings))}


def seen(database: Database, **settings: Any) -> dict[str, str]:
    return {code: f.severity for code, f in check(database, **settings).items()}


def test_a_fresh_database_is_fine_and_left_as_it_is(database: Database) -> None:
    found = check(database)
    assert found["SL-POSTGRES"].severity == "ok"
    assert "creates the schema syncline_target" in found["SL-POSTGRES"].message
    assert database.value("select count(*) from pg_namespace where nspname = 'syncline_target'") == 0
    with opened(database, ITEM):
        pass
    assert "can be written" in check(database)["SL-POSTGRES"].message


def test_settings_that_can_lose_data_are_named(database: Database) -> None:
    found = check(database)["SL-POSTGRES-DURABLE"]  # the tests' own server runs without fsync
    assert found.severity == "warning"
    assert "fsync" in found.message


def test_every_missing_right_comes_with_its_statement_and_the_statements_mend_it(database: Database) -> None:
    database.execute(f'create role weak login; revoke temporary on database "{database.name}" from public')
    settings: dict[str, Any] = {"dsn": database.dsn.replace("postgres@", "weak@"), "origin": True}
    found = check(database, **settings)
    assert {code: f.severity for code, f in found.items() if code != "SL-POSTGRES-DURABLE"} == {
        "SL-POSTGRES-RIGHTS": "error",
        "SL-POSTGRES-TRIGGERS": "warning",
        "SL-POSTGRES-ORIGIN": "error",
    }
    for finding in PostgresStore.check(config_of(database, **settings)):
        if finding.code != "SL-POSTGRES-DURABLE":
            statements = finding.remedy.partition(": ")[2].partition("; or ")[0]
            database.execute(statements)
    assert seen(database, **settings) == {"SL-POSTGRES": "ok", "SL-POSTGRES-DURABLE": "warning"}
    database.execute("grant create on schema public to weak")
    with opened(database, ITEM, **settings):
        pass
    database.execute("drop owned by weak cascade")
    for name in ("oid", "create", "session_setup"):
        database.execute(f"revoke all on function pg_replication_origin_{name}(text) from weak")
    database.execute("drop role weak")


def test_a_schema_of_others_or_of_a_newer_syncline_is_named(database: Database) -> None:
    with opened(database, ITEM):
        pass
    database.execute("create role stranger login")
    dsn = database.dsn.replace("postgres@", "stranger@")
    assert check(database, dsn=dsn)["SL-POSTGRES-RIGHTS"].remedy.startswith("As its owner: GRANT USAGE, CREATE")
    database.execute("drop role stranger")
    database.execute("insert into syncline_target.format values (99)")
    assert seen(database)["SL-POSTGRES-FORMAT"] == "error"


def test_a_server_without_room_for_origins_is_named(pg_server: EmbeddedPostgres) -> None:
    database = Database(pg_server, "postgres")
    database.execute("alter system set max_active_replication_origins = 0")
    pg_server.restart()
    found = check(database)["SL-POSTGRES-ORIGIN"]
    assert (found.severity, "no room" in found.message) == ("info", True)
    assert seen(database, origin=True)["SL-POSTGRES-ORIGIN"] == "error"
    assert "SL-POSTGRES-ORIGIN" not in seen(database, origin=False)
    with opened(database, ITEM):  # and it writes all the same
        pass


def test_a_server_that_is_away_is_unavailable_and_a_wrong_login_is_not() -> None:
    away = list(PostgresStore.check(PostgresConfig.model_validate({"dsn": "postgresql://u@127.0.0.1:1/x"})))
    assert [(f.code, f.severity) for f in away] == [("SL-UNAVAILABLE", "error")]
    with pytest.raises(ValueError, match="can't be read") as unreadable:
        PostgresConfig.model_validate({"dsn": "postgresql://u:s3cret@[x"})
    assert "s3cret" not in str(unreadable.value)
