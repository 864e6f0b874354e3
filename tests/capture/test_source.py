"""What an error of PostgreSQL becomes: a message that says where and what, and neither secrets nor row values."""

from __future__ import annotations

import psycopg2
import pytest
from psycopg.conninfo import make_conninfo

from servers import Database
from syncline.capture.slot import identify
from syncline.capture.source import Dsn, connect, connect_replication, translate, translated
from syncline.config import Config
from syncline.errors import Misconfigured, Unavailable

NOBODY = "host=127.0.0.1 port=1 dbname=shop"


@pytest.mark.parametrize(
    "dsn", ["postgres//bob:hunter2@host/shop", "postgresql://bob:hunter2%zz@host/shop", "host=host hunter2"]
)
def test_a_connection_string_that_cannot_be_read_is_not_repeated(dsn: str) -> None:
    with pytest.raises(Misconfigured, match=r"source\.dsn can't be read") as caught:
        connect(Dsn(dsn, "source.dsn"))
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    "statement",
    [
        "select 'hunter2'::int",
        "select ('hunter2')::timestamptz",
        "do $$ begin raise exception 'row hunter2 is odd'; end $$",
        "create temp table t (v text check (v <> 'hunter2')); insert into t values ('hunter2')",
    ],
)
def test_a_message_of_the_server_that_quotes_a_value_is_not_repeated(database: Database, statement: str) -> None:
    with (
        pytest.raises(Misconfigured) as caught,
        translated(Dsn(database.dsn, "source.dsn")),
        database.connect() as connection,
    ):
        connection.execute(statement)
    assert "hunter2" not in str(caught.value)
    assert database.name in str(caught.value)


def test_an_unreachable_server_is_told_with_the_setting_that_leads_to_it(database: Database) -> None:
    own = {"dsn": database.dsn, "slot": "own"}
    cases: dict[str, dict[str, object]] = {
        "source.dsn": {"source": {"dsn": NOBODY}},
        "source.replication_dsn": {"source": {**own, "replication_dsn": NOBODY}},
        "sources.crm.dsn": {"sources": {"crm": {"dsn": NOBODY}, "shop": own}},
        "sources.crm.replication_dsn": {"sources": {"crm": {**own, "replication_dsn": NOBODY}}},
    }
    for setting, given in cases.items():
        config = Config.model_validate(given)
        source = config.sources.get("crm") or config.sources["main"]
        with pytest.raises(Unavailable) as caught:
            identify(source)
        assert "127.0.0.1:1/shop cannot be reached" in caught.value.message
        assert f"that {setting} is right" in caught.value.remedy


def test_a_role_that_may_not_replicate_is_told_the_statement_that_lets_it(database: Database) -> None:
    role = f"{database.name}_reader"
    with database.connect() as connection:
        connection.execute(f"create role \"{role}\" login password 'hunter2'")
    try:
        dsn = make_conninfo(database.dsn, user=role, password="hunter2")
        with pytest.raises(Misconfigured) as caught:
            connect_replication(Dsn(dsn, "source.dsn"))
        assert "WAL sender" in caught.value.message or "walsender" in caught.value.message
        assert f'ALTER ROLE "{role}" REPLICATION;' in caught.value.remedy
        assert "password" not in str(caught.value)
    finally:
        with database.connect() as connection:
            connection.execute(f'drop role "{role}"')


@pytest.mark.parametrize(
    "text",
    [
        'FATAL:  no pg_hba.conf entry for host "10.0.0.1", user "reader", database "shop", no encryption',
        'FATAL:  no pg_hba.conf entry for replication connection from host "10.0.0.1", user "reader", SSL off',
        'FATAL:  pg_hba.conf rejects connection for host "10.0.0.1", user "reader", database "shop"',
    ],
)
def test_a_client_that_is_not_let_in_is_told_of_pg_hba_and_not_of_its_password(text: str) -> None:
    told = translate(psycopg2.OperationalError(text), Dsn(NOBODY, "source.dsn"))
    assert isinstance(told, Misconfigured)
    assert "pg_hba.conf: host <database> <role>" in told.remedy
    assert "password" not in told.remedy
