"""The outbox on the whole way: what applications publish is what arrives, and their other tables come from the WAL."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from reliability.harness import Nursery, Rig, drop_slot
from servers import Database, eventually
from syncline.capture.outbox.install import install
from syncline.capture.outbox.settings import OutboxConfig
from syncline.config import load_config
from syncline.pipeline import SyncService
from syncline.publisher import EventType, SyncEvent, SyncPublisher
from syncline.verify import verify

SCHEMA = """
create table concept (concept_id text primary key, title text not null, body text,
  difficulty smallint not null default 3, price numeric(8,2), tags text[], extra jsonb,
  at timestamptz not null default now());
create table relates (concept_id text, other_id text, strength real not null default 1,
  primary key (concept_id, other_id));
create table member (user_id bigint primary key, name text);
create table plain (id int primary key, note text);
insert into concept values ('old', 'Old', repeat('x', 10), 1, 1.5, '{a}', '{"n": 1}');
"""
OUTBOX: dict[str, Any] = {
    "entities": {
        "concept": {"table": "public.concept", "ignore": ["id"]},
        "relates": {"table": "public.relates"},
        "user": {"table": "public.member"},
    }
}


@pytest.fixture
def rig(database: Database, tmp_path: Path) -> Rig:
    database.execute(SCHEMA)
    with database.connect() as connection:
        install(connection, OutboxConfig(**OUTBOX))
    return Rig(database, tmp_path, source={"outbox": OUTBOX}, target={"door": True})


@pytest.fixture
def publisher(rig: Rig) -> Iterator[SyncPublisher]:
    publisher = SyncPublisher(rig.database.dsn)
    yield publisher
    publisher.close()


@pytest.fixture
def application(rig: Rig) -> Iterator[psycopg.Connection[Any]]:
    with rig.database.connect(autocommit=False) as connection:
        yield connection


def unequal(rig: Rig) -> int:
    return verify(load_config(rig.config), talk=lambda _: None, engine=SyncService).differences


def test_every_kind_of_event_arrives_as_the_row_that_was_written_with_it(
    rig: Rig, publisher: SyncPublisher, application: psycopg.Connection[Any]
) -> None:
    with rig.running() as engine:
        assert engine.query("select count(*) from concept") == [(1,)]  # what is there is read from the table
        with application.transaction():
            application.execute(
                "insert into concept (concept_id, title, price) values ('c1', 'T', 2.5), ('c2', 'U', null)"
            )
            publisher.publish_content_created(
                "c1", "concept", {"id": "c1", "title": "T", "price": 2.5}, session=application
            )
            publisher.publish_content_created("c2", "concept", {"title": "U"}, session=application)
            application.execute("insert into relates values ('c1', 'c2', 0.5), ('c2', 'c1', 1)")
            publisher.publish_relationship_created("c1", "c2", "relates", {"strength": 0.5}, session=application)
            publisher.publish_relationship_created("c2", "c1", "relates", session=application)
            application.execute("insert into member values (1, 'one'), (2, 'two')")
            publisher.publish_user_created(1, {"name": "one"}, session=application)
            publisher.publish_user_created(2, {"name": "two"}, session=application)
        engine.equal()
        with application.transaction():
            application.execute(
                "update concept set title = 'V', tags = '{x,\"y z\"}', extra = '{\"k\": [1]}' where concept_id = 'c1'"
            )
            patch = {"title": "V", "tags": ["x", "y z"], "extra": {"k": [1]}}
            publisher.publish_content_updated("c1", "concept", patch, source_version=2, session=application)
            application.execute("delete from relates where concept_id = 'c2'")
            publisher.publish_relationship_deleted("c2", "c1", "relates", session=application)
            application.execute(
                "update member set name = 'uno' where user_id = 1; delete from member where user_id = 2"
            )
            publisher.publish_user_updated(1, {"name": "uno"}, session=application)
            publisher.publish_user_deleted(2, session=application)
            application.execute("update concept set title = 'W' where concept_id = 'old'")
            publisher.publish_content_updated("old", "concept", {"title": "W"}, session=application)
        rig.database.execute("insert into plain values (1, 'from the WAL')")
        engine.equal()
        with application.transaction():
            application.execute("delete from concept where concept_id = 'c2'")
            publisher.publish_content_deleted("c2", "concept", session=application)
        engine.equal()
        assert rig.letters() == []
    assert unequal(rig) == 0


def test_a_row_that_is_deleted_and_created_again_keeps_nothing_of_the_one_before(
    rig: Rig, publisher: SyncPublisher, application: psycopg.Connection[Any]
) -> None:
    with rig.running() as engine:
        with application.transaction():
            application.execute("update concept set body = 'new', difficulty = 5 where concept_id = 'old'")
            publisher.publish_content_updated("old", "concept", {"body": "new", "difficulty": 5}, session=application)
            application.execute("delete from concept where concept_id = 'old'")
            publisher.publish_content_deleted("old", "concept", session=application)
            application.execute("insert into concept (concept_id, title) values ('old', 'Again')")
            publisher.publish_content_created("old", "concept", {"title": "Again"}, session=application)
        engine.equal()
        assert engine.query("select title, body, difficulty from concept") == [("Again", None, 3)]


def test_what_is_rolled_back_is_published_to_nobody(
    rig: Rig, publisher: SyncPublisher, application: psycopg.Connection[Any]
) -> None:
    with rig.running() as engine:
        publisher.publish_user_created(1, {"name": "one"}, session=application)
        application.rollback()
        engine.settle()
        assert engine.query("select count(*) from member") == [(0,)]
        assert rig.database.value("select count(*) from syncline_outbox.sync_event_log") == 0


def test_changes_of_a_table_that_events_tell_of_come_from_events_alone(rig: Rig) -> None:
    with rig.running() as engine:
        rig.database.execute("insert into member values (9, 'untold')")
        rig.database.execute("insert into plain values (1, 'told')")
        engine.settle()
        assert engine.query("select count(*) from member") == [(0,)]
        assert engine.query("select note from plain") == [("told",)]
    assert unequal(rig) == 1  # and verification says so


def test_an_event_that_is_no_change_is_parked_and_its_entity_recovers_with_the_next_whole_row(
    rig: Rig, publisher: SyncPublisher
) -> None:
    rig.database.execute("insert into member values (1, 'one')")
    with rig.running() as engine:
        publisher.publish_content_updated("old", "concept", {"difficulty": "very"})
        publisher.publish_content_updated("old", "concept", {"title": "waits behind it"})
        rig.database.execute("update member set name = 'uno'")
        publisher.publish_user_updated(1, {"name": "uno"})
        engine.settle()
        assert engine.query("select name from member") == [("uno",)]
        assert [reason for _, reason in rig.letters()] == [
            "column difficulty takes smallint, and the payload has none",
            "an earlier event of its entity is parked",
        ]
    with rig.running() as engine:  # another session knows what is parked
        publisher.publish_content_updated("old", "concept", {"title": "waits, too"})
        engine.settle()
        assert engine.query("select title from concept") == [("Old",)]
        eventually(lambda: rig.alerts() == ["SL-PARKED"])
        publisher.publish_content_created("old", "concept", {})
        engine.equal()
        assert rig.letters() == []
        eventually(lambda: rig.alerts() == [])


def test_a_table_that_is_read_again_settles_the_events_of_it_that_were_parked(
    rig: Rig, publisher: SyncPublisher
) -> None:
    with rig.running() as engine:
        rig.database.execute("update concept set title = 'A' where concept_id = 'old'")
        publisher.publish_content_updated("old", "concept", {"titel": "A"})
        eventually(rig.letters)
        engine.source.resync(["public.concept"])
        eventually(lambda: not rig.letters())
        rig.database.execute("update concept set title = 'B' where concept_id = 'old'")
        publisher.publish_content_updated("old", "concept", {"title": "B"})  # while it is read, or behind that
        engine.equal()
        assert rig.letters() == []


def test_an_engine_without_the_outbox_that_it_is_told_of_says_how_to_make_it(rig: Rig) -> None:
    rig.database.execute("drop schema syncline_outbox cascade")
    with rig.running(until_loaded=False) as engine:
        (error,) = eventually(engine.service.errors)
        assert (error.code, error.remedy) == ("SL-NO-OUTBOX", "Run `syncline outbox install`.")


def test_events_survive_the_stop_of_the_engine_and_old_partitions_are_nobodys_change(
    rig: Rig, publisher: SyncPublisher
) -> None:
    rig.sync()
    rig.database.execute("insert into member values (1, 'one')")
    publisher.publish_user_created(1, {"name": "one"})
    rig.database.execute("truncate syncline_outbox.sync_event_log")
    with rig.running() as engine:
        engine.equal()


# ------------------------------------------------------------------------------------------------- the status of events

PENDING = "SELECT * FROM {}.sync_event_log\nWHERE status = 'PENDING'\nORDER BY created_at DESC;"
FAILED = "SELECT * FROM {}.sync_event_log\nWHERE status = 'FAILED'\nORDER BY updated_at DESC\nLIMIT 10;"
TIMES = """
SELECT
    event_type,
    COUNT(*) as total,
    AVG(EXTRACT(EPOCH FROM (completed_at - published_at))) as avg_processing_seconds
FROM {}.sync_event_log
WHERE status = 'COMPLETED'
GROUP BY event_type;
"""


def ask(rig: Rig, query: str) -> list[dict[str, Any]]:
    """The answer of one of the three monitoring queries, as it is written in the documents of those who ask it."""
    with rig.database.connect(row_factory=psycopg.rows.dict_row) as connection:
        rows: list[Any] = connection.execute(query.format("jeseci_academy").encode()).fetchall()
        return rows


def test_the_monitoring_queries_of_the_outbox_return_the_right_rows_as_they_are_written(
    rig: Rig, publisher: SyncPublisher
) -> None:
    rig.database.execute("create schema jeseci_academy; insert into member values (1, 'one'), (2, 'two')")
    outbox = {**OUTBOX, "status_schema": "jeseci_academy"}
    with rig.database.connect() as connection:
        install(connection, OutboxConfig(**outbox))
    rig.set("source", outbox=outbox)
    rig.sync()
    publisher.publish_user_created(1, {"name": "one"}, correlation_id="c-1")
    publisher.publish_user_created(2, {"name": "two"})
    assert [row["entity_id"] for row in ask(rig, PENDING)] == ["2", "1"]
    assert ask(rig, PENDING)[1]["correlation_id"] == "c-1"
    assert (ask(rig, FAILED), ask(rig, TIMES)) == ([], [])
    with rig.running() as engine:
        publisher.publish_content_updated("old", "concept", {"difficulty": "very"})
        eventually(lambda: [(row["event_type"], row["total"]) for row in ask(rig, TIMES)] == [("USER_CREATED", 2)])
        assert all(0 <= row["avg_processing_seconds"] < 60 for row in ask(rig, TIMES))
        (failed,) = eventually(lambda: ask(rig, FAILED))
        assert failed["error_message"] == "column difficulty takes smallint, and the payload has none"
        assert failed["updated_at"] >= failed["created_at"]
        assert failed["completed_at"] is None
        assert ask(rig, PENDING) == []
        publisher.publish_content_created("old", "concept", {})  # supersedes what is parked
        eventually(lambda: not ask(rig, FAILED))
        engine.equal()
    assert rig.database.value("select count(*) from syncline_outbox.sync_event_log") == 4
    assert (
        rig.database.value("select sum(n_tup_upd)::int from pg_stat_user_tables where relname ~ 'sync_event_log'") == 0
    )


def test_an_event_whose_row_a_target_refuses_has_failed_and_its_neighbours_have_not(
    rig: Rig, publisher: SyncPublisher
) -> None:
    with rig.open() as copy:
        copy.execute("create table member (user_id bigint, name varchar check (name <> 'bad'))")
    status = "select entity_id, status from syncline_outbox.sync_event_status order by id"
    with rig.running():
        publisher.publish_user_created(1, {"name": "good"})
        publisher.publish_user_created(2, {"name": "bad"})
        eventually(lambda: rig.database.execute(status) == [("1", "COMPLETED"), ("2", "FAILED")])


def test_an_event_is_published_when_it_is_in_the_log_and_completed_when_the_last_target_has_it(
    rig: Rig, publisher: SyncPublisher
) -> None:
    status = "select status from syncline_outbox.sync_event_status"
    with rig.running() as engine:
        engine.service._control.pause("main", "main")
        eventually(engine.service._control.pauses)
        publisher.publish_user_created(1, {"name": "one"})
        eventually(lambda: rig.database.execute(status) == [("PUBLISHED",)])
        engine.service._control.resume("main", "main")
        eventually(lambda: rig.database.execute(status) == [("COMPLETED",)])


# ----------------------------------------------------------------------------------------------------------- hard cases


def test_a_transaction_of_many_events_arrives_in_parts_and_in_order(
    rig: Rig, publisher: SyncPublisher, application: psycopg.Connection[Any]
) -> None:
    rig.set("source", max_entry_bytes=65536)
    with rig.running() as engine:
        with application.transaction():
            application.execute("insert into member select g, 'name ' || g from generate_series(1, 3000) g")
            application.execute("update member set name = 'last ' || user_id where user_id % 3 = 0")
            created = [SyncEvent(EventType.USER_CREATED, str(n), "user", {"name": f"name {n}"}) for n in range(1, 3001)]
            thirds = range(3, 3001, 3)
            updated = [SyncEvent(EventType.USER_UPDATED, str(n), "user", {"name": f"last {n}"}) for n in thirds]
            publisher.publish_many([*created, *updated], session=application)
        engine.equal()


@pytest.mark.parametrize("point", ["after parking", "before append", "after append", "inside apply"])
def test_a_kill_while_events_arrive_loses_none_and_parks_each_once(
    nursery: Nursery, rig: Rig, publisher: SyncPublisher, point: str
) -> None:
    nursery.finish(rig)
    rig.database.execute("insert into member values (1, 'one'), (2, null)")
    publisher.publish_content_updated("old", "concept", {"difficulty": "very"})
    publisher.publish_user_created(1, {"name": "one"})
    publisher.publish_user_created(2, {})
    assert nursery.run(rig, point=point) == -signal.SIGKILL
    publisher.publish_content_updated("old", "concept", {"title": "waits"})
    nursery.finish(rig)
    assert [reason[:17] for _, reason in rig.letters()] == ["column difficulty", "an earlier event "]
    assert rig.difference() == ""


def test_a_table_changes_from_the_wal_to_events_and_back_without_a_new_beginning(
    rig: Rig, publisher: SyncPublisher, application: psycopg.Connection[Any]
) -> None:
    rig.set("source", outbox=None)
    with rig.running() as engine:
        rig.database.execute("insert into member values (1, 'from the WAL')")
        engine.equal()
    rig.set("source", outbox=OUTBOX)
    rig.database.execute("update member set name = 'while nobody looked'")
    with rig.running() as engine:
        engine.equal()
        with application.transaction():
            application.execute("update member set name = 'by an event'")
            publisher.publish_user_updated(1, {"name": "by an event"}, session=application)
        engine.equal()
        rig.database.execute("update member set name = 'which no event told'")
        engine.settle()
    rig.set("source", outbox=None)
    with rig.running() as engine:
        rig.database.execute("insert into member values (2, 'from the WAL')")
        engine.equal()


def test_a_lost_slot_is_a_gap_and_a_resync_mends_what_events_told_meanwhile(rig: Rig, publisher: SyncPublisher) -> None:
    rig.set("source", on_gap="resync")
    rig.sync()
    drop_slot(rig)
    rig.database.execute("insert into member values (1, 'one')")
    publisher.publish_user_created(1, {"name": "one"})
    with rig.running() as engine:
        engine.equal()
        rig.database.execute("insert into member values (2, 'two')")
        publisher.publish_user_created(2, {"name": "two"})
        engine.equal()
    assert "SL-GAP" in rig.gaps(ever=True)
