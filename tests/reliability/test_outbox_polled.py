"""Engines whose outbox is polled, at a server where no replication slot can be made.

What events become does not depend on how they are read: the tests of that are the slot's own, with another rig.
"""

from __future__ import annotations

import json
import random
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psycopg
import pytest

from reliability.harness import Nursery, Rig, ended_with
from reliability.test_outbox_way import (  # noqa: F401 - collected here once more
    OUTBOX,
    SCHEMA,
    application,
    publisher,
    test_a_row_that_is_deleted_and_created_again_keeps_nothing_of_the_one_before,
    test_a_table_that_is_read_again_settles_the_events_of_it_that_were_parked,
    test_a_transaction_of_many_events_arrives_in_parts_and_in_order,
    test_an_event_is_published_when_it_is_in_the_log_and_completed_when_the_last_target_has_it,
    test_an_event_that_is_no_change_is_parked_and_its_entity_recovers_with_the_next_whole_row,
    test_an_event_whose_row_a_target_refuses_has_failed_and_its_neighbours_have_not,
    test_the_monitoring_queries_of_the_outbox_return_the_right_rows_as_they_are_written,
    unequal,
)
from reliability.test_outbox_writers import run, writers_table
from servers import Database, eventually
from syncline.capture.outbox.install import install
from syncline.capture.outbox.settings import OutboxConfig
from syncline.embedded import EmbeddedPostgres
from syncline.errors import Gap
from syncline.publisher import EventType, SyncEvent, SyncPublisher

EVENTS = "syncline_outbox.sync_event_log"


def polled(database: Database, folder: Path, outbox: dict[str, Any] = OUTBOX, **settings: Any) -> Rig:
    with database.connect() as connection:
        install(connection, OutboxConfig(**outbox))
    source = {"type": "outbox", "poll_s": 0.02, "outbox": outbox, **settings}
    return Rig(database, folder, source=source, target={"door": True})


@pytest.fixture
def rig(plain_database: Database, tmp_path: Path) -> Rig:
    plain_database.execute(f"{SCHEMA} drop table plain")
    return polled(plain_database, tmp_path)


def test_a_copy_follows_events_and_is_verified_equal_without_a_slot(
    rig: Rig,
    publisher: SyncPublisher,  # noqa: F811
    application: psycopg.Connection[Any],  # noqa: F811
) -> None:
    assert rig.database.value("show wal_level") == "replica"
    with rig.running() as engine:
        assert engine.query("select count(*) from concept") == [(1,)]  # what is there is read from the table
        with application.transaction():
            application.execute("insert into concept (concept_id, title, price) values ('c1', 'T', 2.5)")
            publisher.publish_content_created("c1", "concept", {"title": "T", "price": 2.5}, session=application)
            application.execute("insert into relates values ('c1', 'old', 0.5)")
            publisher.publish_relationship_created("c1", "old", "relates", {"strength": 0.5}, session=application)
        engine.equal()
        with application.transaction():
            application.execute("update concept set title = 'V', tags = '{x}' where concept_id = 'c1'")
            publisher.publish_content_updated("c1", "concept", {"title": "V", "tags": ["x"]}, session=application)
            application.execute("delete from relates")
            publisher.publish_relationship_deleted("c1", "old", "relates", session=application)
            application.execute("insert into member values (1, 'one')")
            publisher.publish_user_created(1, {"name": "one"}, session=application)
        assert unequal(rig) == 0  # which waits for what is on its way
        rig.database.execute("update member set name = 'untold'")
        assert unequal(rig) == 1
        engine.service.resync("main", ["public.member"])
        engine.equal()
    assert rig.gaps(ever=True) == []
    assert unequal(rig) == 0  # with an engine of its own


def test_sixteen_writers_lose_nothing_to_a_poller_by_the_horizon_and_keep_the_order_of_each_entity(
    plain_database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outbox = writers_table(plain_database)
    found = run(polled(plain_database, tmp_path, outbox), monkeypatch, 3)
    assert found["events"] > 500
    assert found["naive_lost"] > 0


@pytest.mark.soak
def test_sixteen_writers_lose_nothing_to_a_poller_by_the_horizon_in_twenty_seconds(
    plain_database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outbox = writers_table(plain_database)
    found = run(polled(plain_database, tmp_path, outbox), monkeypatch, 20)
    print(json.dumps(found))
    assert found["naive_lost"] > 0


def test_patches_of_transactions_that_cross_leave_every_column_as_it_is_at_the_source(
    plain_database: Database, tmp_path: Path
) -> None:
    """Eight writers whose transactions have their ids long before they publish, read in pages of a few events."""
    database = plain_database
    database.execute("create table item (id int primary key, a int, b int, c int)")
    database.execute("insert into item select generate_series(0, 4)")
    rig = polled(database, tmp_path, {"entities": {"item": {"table": "public.item"}}}, batch_rows=3)

    def write(writer: int) -> None:
        chance = random.Random(writer)
        with database.connect(autocommit=False) as session:
            for n in range(25):
                session.execute("select pg_current_xact_id()")
                time.sleep(chance.random() * 0.02)  # the crossing is what this is about
                for key in sorted(chance.sample(range(5), 2)):
                    column, value = chance.choice("abc"), writer * 1000 + n
                    SyncPublisher().publish_content_updated(key, "item", {column: value}, session=session)
                    session.execute(f"update item set {column} = %s where id = %s".encode(), [value, key])
                session.rollback() if chance.random() < 0.1 else session.commit()

    with rig.running() as engine:
        with ThreadPoolExecutor(8) as pool:
            for writer in [pool.submit(write, number) for number in range(1, 9)]:
                writer.result()
        crossed = f"""select count(*) from {EVENTS} e join {EVENTS} f
          on f.entity_id = e.entity_id and f.id < e.id and f.txid > e.txid"""
        assert database.value(crossed) > 0
        engine.equal()


POINTS = ("after polling", "after purging", "before append", "after append", "between parts", "after parking")


@pytest.mark.parametrize("point", POINTS)
def test_a_kill_at_any_point_ends_equal_and_parks_each_event_once(
    rig: Rig,
    nursery: Nursery,
    publisher: SyncPublisher,  # noqa: F811
    application: psycopg.Connection[Any],  # noqa: F811
    point: str,
) -> None:
    rig.set("source", max_entry_bytes=65_536, batch_rows=500, load_chunk_bytes=65_536)
    rig.set("apply", max_rows=500)
    rig.database.execute("insert into member select g, repeat('x', 100) from generate_series(1, 2000) g")
    died = [nursery.run(rig, point=point) == -signal.SIGKILL]
    with application.transaction():
        application.execute("update member set name = 'n' || user_id where user_id <= 1500")
        patches = [SyncEvent(EventType.USER_UPDATED, str(n), "user", {"name": f"n{n}"}) for n in range(1, 1501)]
        publisher.publish_many(patches, session=application)
    publisher.publish_content_updated("old", "concept", {"difficulty": "very"})
    publisher.publish_content_updated("old", "concept", {"title": "waits"})
    nth = 1 if point == "after parking" else 2  # both come in one page
    died.append(nursery.run(rig, point=point, nth=nth) == -signal.SIGKILL)
    with application.transaction():
        application.execute("delete from member where user_id = 7; insert into member values (7, 'again')")
        publisher.publish_user_deleted(7, session=application)
        publisher.publish_user_created(7, {}, session=application)
    nursery.finish(rig)
    assert rig.difference() == ""
    assert any(died), "the engine never came to this point"
    parked = [reason[:17] for _, reason in rig.letters()]
    # A load that was killed, too, is done behind them, and settles them.
    assert parked == ["column difficulty", "an earlier event "] or (parked == [] and died[0])
    assert rig.gaps(ever=True) == []


@pytest.fixture
def own(pg_server: EmbeddedPostgres, tmp_path: Path) -> Iterator[Rig]:
    """A rig on a server that may be stopped."""
    pg_server.create_database("own")
    database = Database(pg_server, "own")
    database.execute("create table item (id int primary key, n int)")
    return polled(database, tmp_path, {"entities": {"item": {"table": "public.item"}}})


def test_a_server_that_crashes_and_comes_back_loses_no_event(own: Rig) -> None:
    database = own.database
    stop = threading.Event()
    written: list[int] = []

    def write() -> None:
        """As an application does: a transaction whose end is not known is begun again."""
        n = 0
        while not stop.is_set():
            n += 1
            try:
                with database.connect(autocommit=False) as session:
                    upsert = "insert into item values (%s, %s) on conflict (id) do update set n = excluded.n"
                    SyncPublisher().publish_content_updated(n % 50, "item", {"n": n}, session=session)
                    session.execute(upsert, [n % 50, n])
                    session.commit()
                    written.append(n)
            except psycopg.Error:
                time.sleep(0.01)

    with own.running() as engine:
        writer = threading.Thread(target=write)
        writer.start()
        for _ in range(2):
            seen = len(written)
            eventually(lambda seen=seen: len(written) > seen + 20)  # type: ignore[misc]
            database.server.kill()
            eventually(lambda: engine.state() == "retrying")
            database.server.restart()
            eventually(lambda: engine.state() == "streaming")
        stop.set()
        writer.join()
        engine.equal()
    assert own.gaps(ever=True) == []


def test_a_second_engine_waits_and_takes_over_when_the_first_has_gone(
    rig: Rig,
    publisher: SyncPublisher,  # noqa: F811
    tmp_path: Path,
) -> None:
    second = polled(rig.database, tmp_path / "second")
    second.settings["control"] = {"schema": "syncline_second"}
    second.write()
    with rig.running() as engine, second.running(until_loaded=False) as waiting:
        eventually(lambda: waiting.state() == "retrying")
        assert "is read already" in str(waiting.source.error)
        rig.database.execute("insert into member values (1, 'one')")
        publisher.publish_user_created(1, {"name": "one"})
        engine.settle()
        assert engine.query("select count(*) from member") == [(1,)]
        engine.service.stop()
        rig.database.execute("insert into member values (2, 'two')")
        publisher.publish_user_created(2, {"name": "two"})
        eventually(lambda: waiting.state() == "streaming")
        waiting.settle()
        assert waiting.query("select count(*) from member") == [(2,)]


def test_a_transaction_that_stalls_the_horizon_is_an_alert_with_its_process(
    rig: Rig,
    publisher: SyncPublisher,  # noqa: F811
) -> None:
    rig.set("source", long_transaction_s=0.2)
    with rig.running() as engine, rig.database.connect(autocommit=False) as stalls:
        stalls.execute("select pg_current_xact_id()")
        rig.database.execute("insert into member values (1, 'one')")
        publisher.publish_user_created(1, {"name": "one"})
        eventually(lambda: "SL-LONG-TRANSACTION" in rig.alerts())
        subject = "select subject from syncline.sync_alerts where code = 'SL-LONG-TRANSACTION'"
        assert rig.database.value(subject) == f"main/pid {stalls.info.backend_pid}"
        assert engine.query("select count(*) from member") == [(0,)]
        stalls.rollback()
        engine.equal()
        eventually(lambda: "SL-LONG-TRANSACTION" not in rig.alerts())


def test_events_purged_behind_the_log_are_a_gap_and_a_resync_mends_what_they_told(
    rig: Rig,
    publisher: SyncPublisher,  # noqa: F811
) -> None:
    rig.sync()
    rig.database.execute("insert into member values (1, 'one')")
    publisher.publish_user_created(1, {"name": "one"})
    rig.database.execute(f"truncate {EVENTS}")
    with rig.running(until_loaded=False) as engine:
        assert "purged" in str(ended_with(Gap, engine))
        engine.service.resync()
        engine.equal()


def test_what_every_target_has_is_dropped_by_partitions_and_is_no_gap(
    rig: Rig,
    publisher: SyncPublisher,  # noqa: F811
) -> None:
    old = "now() - interval '30 days'"
    with rig.running() as engine:
        rig.database.execute("insert into member values (1, 'one')")
        publisher.publish_user_created(1, {"name": "one"})
        eventually(
            lambda: rig.database.execute("select status from syncline_outbox.sync_event_status") == [("COMPLETED",)]
        )
        rig.database.execute(f"update {EVENTS} set created_at = {old}")
        rig.database.execute("select syncline_outbox.maintain(7, '1 day', '7 days')")
        assert rig.database.value(f"select count(*) from {EVENTS}") == 0
        purged = "select purged > '0' from syncline_outbox.sync_event_installation"
        assert rig.database.value(purged)
        rig.database.execute("update member set name = 'uno'")
        publisher.publish_user_updated(1, {"name": "uno"})
        engine.equal()
    with rig.running() as engine:
        engine.equal()
    assert rig.gaps(ever=True) == []


def test_a_source_may_change_from_the_slot_to_polling_and_back(
    database: Database,
    tmp_path: Path,
) -> None:
    database.execute("create table item (id int primary key, n int); insert into item values (1, 1)")
    outbox = {"entities": {"item": {"table": "public.item"}}}
    rig = polled(database, tmp_path, outbox, on_gap="resync")
    slot = {"slot": f"slot_{database.name}"}
    with_slot = Rig(database, tmp_path, source={"outbox": outbox, "on_gap": "resync", **slot})
    status = "select status, count(*) from syncline_outbox.sync_event_status group by 1"
    for number, one in enumerate([with_slot, rig, with_slot], 2):
        one.write()
        with one.running(until_loaded=False) as engine, database.connect(autocommit=False) as session:
            session.execute("update item set n = %s", [number])
            SyncPublisher().publish_content_updated(1, "item", {"n": number}, session=session)
            session.commit()
            eventually(lambda engine=engine: engine.state() == "streaming")  # type: ignore[misc]
            engine.equal()
            eventually(lambda number=number: database.execute(status) == [("COMPLETED", number - 1)])  # type: ignore[misc]
    assert set(rig.gaps(ever=True)) == {"SL-SOURCE-CHANGED"}
