"""The publisher joins the transactions of those who call it, whatever they talk to PostgreSQL with."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

import django
import psycopg
import psycopg2
import pytest
import sqlalchemy
from django.conf import settings as django_settings
from django.db import connections, transaction
from psycopg import conninfo
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session

from servers import Database, eventually
from syncline.capture.outbox.install import install, install_sql, look, maintain, remove
from syncline.capture.outbox.settings import OutboxConfig
from syncline.publisher import EventType, SyncEvent, SyncPublisher, get_sync_publisher

CONFIG = OutboxConfig(entities={"concept": {"table": "public.concept"}}, status_schema="public")
TABLE = "syncline_outbox.sync_event_log"


@pytest.fixture
def outbox(database: Database) -> Database:
    with database.connect() as connection:
        install(connection, CONFIG)
    return database


@pytest.fixture
def publisher() -> SyncPublisher:
    return get_sync_publisher()


def ids(outbox: Database) -> list[str]:
    return [row[0] for row in outbox.execute(f"select entity_id from {TABLE} order by id")]


def sqlalchemy_url(outbox: Database) -> str:
    return outbox.dsn.replace("postgresql://", "postgresql+psycopg://", 1)


def test_a_sqlalchemy_session_commits_or_rolls_back_the_event_with_its_data(
    outbox: Database, publisher: SyncPublisher
) -> None:
    engine = sqlalchemy.create_engine(sqlalchemy_url(outbox))
    with Session(engine) as session:
        publisher.publish_content_created("rolled back", "concept", {}, session=session)
        session.rollback()
        publisher.publish_content_created("kept", "concept", {"a": ":b %s"}, session=session)
        assert ids(outbox) == []
        session.commit()
    with engine.begin() as connection:
        publisher.publish_content_created("by a connection", "concept", {}, session=connection)
    engine.dispose()
    assert ids(outbox) == ["kept", "by a connection"]
    assert outbox.value(f"select payload ->> 'a' from {TABLE} limit 1") == ":b %s"


def test_an_async_sqlalchemy_session_is_awaited_and_joined(outbox: Database, publisher: SyncPublisher) -> None:
    async def use() -> SyncEvent:
        engine = create_async_engine(sqlalchemy_url(outbox))
        async with AsyncSession(engine) as session:
            await publisher.publish_content_updated("rolled back", "concept", {}, session=session)
            await session.rollback()
            event: SyncEvent = await publisher.publish_content_updated("kept", "concept", {}, session=session)
            await session.commit()
        await engine.dispose()
        return event

    assert asyncio.run(use()).entity_id == "kept"
    assert ids(outbox) == ["kept"]


def test_psycopg_connections_of_every_kind_are_joined(outbox: Database, publisher: SyncPublisher) -> None:
    with outbox.connect(autocommit=False) as connection:
        publisher.publish_user_created(1, {}, session=connection)
        connection.rollback()
        publisher.publish_user_created(2, {}, session=connection.cursor())
    old = psycopg2.connect(outbox.dsn)
    publisher.publish_user_created(3, {}, session=old)
    publisher.publish_user_created(4, {}, session=old.cursor())
    old.commit()
    old.close()

    async def use() -> None:
        async with await psycopg.AsyncConnection.connect(outbox.dsn) as connection:
            await publisher.publish_user_created(5, {}, session=connection)
            await publisher.publish_user_created(6, {}, session=connection.cursor())

    asyncio.run(use())
    assert ids(outbox) == ["2", "3", "4", "5", "6"]


@contextmanager
def django_connection(outbox: Database) -> Iterator[Any]:
    parts = conninfo.conninfo_to_dict(outbox.dsn)
    given = {"HOST": parts["host"], "PORT": parts.get("port", ""), "NAME": parts["dbname"], "USER": parts["user"]}
    database = {"ENGINE": "django.db.backends.postgresql", "PASSWORD": parts.get("password", ""), **given}
    if not django_settings.configured:
        django_settings.configure(DATABASES={"default": database})
        django.setup()
    connections.databases["default"] = connections["default"].settings_dict | database
    del connections["default"]
    from django.db import connection

    try:
        yield connection
    finally:
        connection.close()


def test_djangos_connection_is_joined(outbox: Database, publisher: SyncPublisher) -> None:
    with django_connection(outbox) as connection:
        with transaction.atomic():
            publisher.publish_content_deleted("rolled back", "concept", session=connection)
            transaction.set_rollback(True)
        with transaction.atomic():
            publisher.publish_content_deleted("kept", "concept", session=connection)
    assert ids(outbox) == ["kept"]


def test_without_a_session_each_event_is_committed_at_once_by_a_connection_that_mends_itself(outbox: Database) -> None:
    publisher = SyncPublisher(outbox.dsn)
    publisher.publish_content_created("1", "concept", {})
    assert ids(outbox) == ["1"]
    outbox.execute(
        "select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'syncline-publisher'"
    )
    with pytest.raises(psycopg.OperationalError):  # whether it was committed, only the server knows
        publisher.publish_content_created("2", "concept", {})
    publisher.publish_content_created("3", "concept", {})
    publisher.close()
    assert ids(outbox) == ["1", "3"]


def test_without_a_session_and_a_dsn_the_configuration_says_where(
    outbox: Database, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    entities = "{concept: {table: public.concept}}"
    (tmp_path / "syncline.yaml").write_text(
        f"source: {{dsn: '{outbox.dsn}', outbox: {{entities: {entities}}}}}\ntarget: {{type: duckdb, path: a}}\n"
    )
    publisher = SyncPublisher()
    publisher.publish_content_created("1", "concept", {})
    publisher.close()
    assert ids(outbox) == ["1"]


def test_many_events_are_one_statement_and_keep_their_order(outbox: Database, publisher: SyncPublisher) -> None:
    events = [SyncEvent(EventType.CONTENT_UPDATED, str(n % 7), "concept", {"n": n}) for n in range(500)]
    with outbox.connect(autocommit=False) as connection:
        assert publisher.publish_many(events, session=connection) == events
    found = outbox.execute(f"select (payload ->> 'n')::int, event_id from {TABLE} order by id")
    assert found == [(n, event.event_id) for n, event in enumerate(events)]


def test_an_event_for_some_targets_is_refused_since_everybody_would_get_it(
    outbox: Database, publisher: SyncPublisher
) -> None:
    event = SyncEvent(EventType.CONTENT_CREATED, "1", "concept", targets=("graph",))
    with outbox.connect() as connection:
        with pytest.raises(ValueError, match="leave targets out"):
            publisher.publish(event, session=connection)
        with pytest.raises(psycopg.errors.FeatureNotSupported, match="leave targets out"):
            connection.execute("select syncline_outbox.publish_events(%s)", [json.dumps([event.to_dict()])])
        publisher.publish(SyncEvent(EventType.CONTENT_CREATED, "2", "concept", targets=()), session=connection)
        for_all = [SyncEvent(EventType.CONTENT_CREATED, "3", "concept").to_dict(), event.to_dict() | {"targets": []}]
        connection.execute("select syncline_outbox.publish_events(%s)", [json.dumps(for_all)])
    assert len(ids(outbox)) == 3


def test_the_lock_of_an_entity_is_taken_before_the_number_is_drawn(outbox: Database, publisher: SyncPublisher) -> None:
    """Correctness rule 30: whoever comes second has the greater number, whenever it commits."""
    with outbox.connect(autocommit=False) as first, outbox.connect(autocommit=False) as second:
        publisher.publish_content_updated("a", "concept", {"by": "first"}, session=first)
        waiting = threading.Thread(
            target=lambda: publisher.publish_content_updated("a", "concept", {"by": "second"}, session=second)
        )
        waiting.start()
        eventually(lambda: outbox.value("select count(*) from pg_locks where locktype = 'advisory' and not granted"))
        publisher.publish_content_updated("b", "concept", {}, session=first)  # others need not wait
        assert outbox.value("select last_value from pg_sequences where sequencename = 'sync_event_log_id_seq'") == 2
        first.commit()
        waiting.join(20)
        second.commit()
    assert [row[0] for row in outbox.execute(f"select payload ->> 'by' from {TABLE} order by id")] == [
        "first",
        None,
        "second",
    ]
    assert outbox.value("select cache_size from pg_sequences where sequencename = 'sync_event_log_id_seq'") == 1


def test_values_that_json_lacks_are_written_as_postgresql_reads_them(
    outbox: Database, publisher: SyncPublisher
) -> None:
    values = {
        "at": datetime(2025, 1, 2, tzinfo=UTC),
        "price": Decimal("1.50"),
        "id": UUID(int=7),
        "raw": b"\x01",
        "tags": ("a", "b"),
    }
    with outbox.connect() as connection:
        publisher.publish_content_created("1", "concept", values, session=connection)
        with pytest.raises(TypeError, match="a value of type object"):
            publisher.publish_content_created("1", "concept", {"x": object()}, session=connection)
        with pytest.raises(ValueError, match="JSON compliant"):
            publisher.publish_content_created("1", "concept", {"x": float("nan")}, session=connection)
        with pytest.raises(TypeError, match="session must be"):
            publisher.publish_content_created("1", "concept", {}, session=object())
    assert outbox.value(f"select payload from {TABLE}") == {
        "at": "2025-01-02T00:00:00+00:00",
        "price": "1.50",
        "id": str(UUID(int=7)),
        "raw": "\\x01",
        "tags": ["a", "b"],
    }


# --------------------------------------------------------------------------------------------------- the outbox itself


def test_installing_again_changes_nothing_and_the_script_is_what_psql_would_run(outbox: Database) -> None:
    with outbox.connect() as connection:
        get_sync_publisher().publish_content_created("1", "concept", {}, session=connection)
        install(connection, CONFIG)
        connection.execute(install_sql(CONFIG).encode())
        found = look(connection, CONFIG)
    assert found is not None
    assert (found.events, found.statuses, found.partitions) == (1, {"PENDING": 1}, 8)


def test_a_role_that_may_publish_may_do_nothing_else_with_the_outbox(
    outbox: Database, publisher: SyncPublisher
) -> None:
    role = f"app_{outbox.name}"
    outbox.execute(f"create role {role}")
    with outbox.connect() as connection:
        install(connection, CONFIG, (role,))
        connection.execute(f"set role {role}".encode())
        publisher.publish_content_created("1", "concept", {}, session=connection)
        for statement in (f"select * from {TABLE}", f"delete from {TABLE}"):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                connection.execute(statement.encode())
        connection.execute("reset role")
        connection.execute(f"drop owned by {role}; drop role {role}".encode())
    assert ids(outbox) == ["1"]


def test_old_partitions_go_when_every_target_has_their_events_and_no_sooner(
    outbox: Database, publisher: SyncPublisher
) -> None:
    old = "2020-01-01 00:00+00"
    with outbox.connect() as connection:
        connection.execute(
            f"create table syncline_outbox.old partition of {TABLE}"
            f" for values from ('{old}') to ('2020-01-02 00:00+00')".encode()
        )
        connection.execute(
            f"insert into {TABLE} (event_type, entity_type, entity_id, created_at)"
            f" values ('CONTENT_CREATED', 'concept', 'o', '{old}')".encode()
        )
        assert maintain(connection, CONFIG) == 0
        connection.execute(
            "insert into syncline_outbox.sync_event_progress (horizon, place, completed_at)"
            " values (pg_current_xact_id(), 1, now())"
        )
        assert maintain(connection, CONFIG) == 1
    assert ids(outbox) == []


def test_an_event_beyond_the_last_partition_is_kept_in_the_one_that_takes_the_rest(outbox: Database) -> None:
    outbox.execute(
        f"insert into {TABLE} (event_type, entity_type, entity_id, created_at)"
        " values ('CONTENT_CREATED', 'concept', 'far', now() + interval '5 days'),"
        " ('CONTENT_CREATED', 'concept', 'x', '2090-01-01')"
    )
    with outbox.connect() as connection:
        maintain(connection, CONFIG)
    assert ids(outbox) == ["far", "x"]


def test_removing_leaves_nothing_behind(outbox: Database) -> None:
    with outbox.connect() as connection:
        assert remove(connection, CONFIG)
        assert look(connection, CONFIG) is None
        assert not remove(connection, CONFIG)
    assert outbox.value("select count(*) from pg_namespace where nspname = 'syncline_outbox'") == 0
