"""The outbox read by polling, at a server that has no logical decoding: which events come when."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest

from servers import Database, eventually
from syncline.capture.outbox.expand import ParkedEvent
from syncline.capture.outbox.install import install
from syncline.capture.outbox.polled.settings import PolledOutboxSettings
from syncline.capture.outbox.polled.source import PolledOutboxSource
from syncline.capture.outbox.polled.stream import PolledOutboxStream
from syncline.change import Batch, Entry
from syncline.embedded import EmbeddedPostgres
from syncline.errors import Gap, Misconfigured, SynclineError, Unavailable
from syncline.events import EventType, SyncEvent
from syncline.publisher import SyncPublisher
from syncline.testing.capture_suite import CaptureConformance, CapturePlace, Reader, keys_of

EVENTS = "syncline_outbox.sync_event_log"
ENTITIES: dict[str, Any] = {"t": {"table": "public.t"}}


class Parking:
    """What was parked, in memory."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.parked: list[ParkedEvent] = []

    def blocked(self) -> frozenset[bytes]:
        return frozenset(event.entity for event in self.parked)

    def settle(self, parked: Any, superseded: dict[bytes, int], incarnation: int) -> None:
        self.parked += parked


def source(database: Database, **settings: Any) -> PolledOutboxSource:
    given = {"dsn": database.dsn, "poll_s": 0.02, "heartbeat_s": 0.1, "outbox": {"entities": ENTITIES}, **settings}
    found = PolledOutboxSource(PolledOutboxSettings(**given), "syncline")
    found.park_events(Parking())
    return found


def prepared(database: Database, **settings: Any) -> tuple[PolledOutboxSource, list[Any], int]:
    """A source with its outbox, its tables, and the place where its stream begins."""
    database.execute("create table if not exists t (id bigint primary key, a text, b text)")
    found = source(database, **settings)
    with database.connect() as connection:
        install(connection, found.settings.outbox)
    found.prepare(found.tables(), print)
    return found, found.described(found.tables()), found.attach(found.identify(), 0, print)


@contextmanager
def reading(found: PolledOutboxSource, tables: list[Any], after: int) -> Iterator[Reader]:
    lost: list[tuple[str, SynclineError]] = []
    capture = found.capture(tables, 0, 1, lambda *one: lost.append(one))
    reader = Reader(capture, after)
    try:
        yield reader
    finally:
        capture.close()
        assert reader.ended()
        eventually(lambda: found.reader() is None)  # the lock goes when the server sees that its session is gone
        assert lost == []


def publish(session: psycopg.Connection[Any], key: int, **fields: Any) -> None:
    SyncPublisher().publish_content_updated(key, "t", fields, session=session)


def until(reader: Reader, number: int) -> list[Entry]:
    """Everything that came up to this number."""
    eventually(lambda: reader.error is not None or max((e.through for e in reader.entries), default=0) > number)
    if reader.error is not None:
        raise reader.error
    return list(reader.entries)


def changes(entries: list[Entry]) -> list[tuple[int, dict[str, Any]]]:
    """Version and what is not NULL of each change, in order."""
    found = []
    for entry in entries:
        for item in entry.items:
            if isinstance(item, Batch):
                for version, row in zip(item.ints("version").tolist(), item.data().to_pylist(), strict=True):
                    found.append((version, {name: value for name, value in row.items() if value is not None}))
    return found


class PolledPlace:
    """An outbox of a real server, whose events are of one table."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._source, self._tables, self._begin = prepared(database)

    def open(self, *, max_entry_rows: int = 10_000) -> PolledOutboxStream:
        query = "select count(*) = 0 from pg_locks where locktype = 'advisory'"
        eventually(lambda: self._database.value(query))
        settings = self._source.settings.model_copy(update={"batch_rows": max_entry_rows})
        return _From(settings, self._tables, self._begin)

    def write(self, *keys: int) -> None:
        with self._database.connect(autocommit=False) as connection:
            self._publish(connection, keys)

    def begin(self, *keys: int) -> Callable[[], None]:
        connection = self._database.connect(autocommit=False)
        self._publish(connection, keys)

        def commit() -> None:
            connection.commit()
            connection.close()

        return commit

    @staticmethod
    def _publish(connection: psycopg.Connection[Any], keys: tuple[int, ...]) -> None:
        kind = EventType.CONTENT_CREATED
        events = [SyncEvent(kind, str(key), "t", {"a": "x" * 100, "b": None}) for key in keys]
        SyncPublisher().publish_many(events, session=connection)

    def end(self) -> int:
        return int(self._database.value("select (pg_current_xact_id()::text::int8)"))

    def confirmed(self) -> int:
        return int(self._database.value("select place::text::int8 from syncline_outbox.sync_event_installation"))

    def sever(self) -> None:
        self._database.execute(
            "select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'syncline-capture'"
            " and datname = current_database()"
        )


class _From(PolledOutboxStream):
    """Begins where the source began, if it is asked to begin anywhere."""

    def __init__(self, settings: PolledOutboxSettings, tables: list[Any], begin: int) -> None:
        super().__init__(settings, tables, Parking(), base=0, incarnation=1, lost=lambda *_: None)
        self._first = begin

    def entries(self, after: int) -> Iterator[Entry]:
        return super().entries(after or self._first)


class TestPolledOutboxStream(CaptureConformance):
    @pytest.fixture
    def place(self, plain_database: Database) -> CapturePlace:
        return PolledPlace(plain_database)

    def test_transactions_come_whole_and_in_the_order_of_their_commits(self, place: CapturePlace) -> None:
        """In the order of their ids, here: what one transaction saw of another came before it or comes with it."""
        assert isinstance(place, PolledPlace)
        reader = Reader(place.open())
        place.write(1)
        first = place.begin(10, 11)
        second = place.begin(20)
        place.write(2, 3)
        second()
        place.write(4)
        first()
        entries = reader.until(place.end())
        reader.capture.close()
        assert reader.ended()
        assert sorted(keys_of(entries)) == [1, 2, 3, 4, 10, 11, 20]
        assert all(not {10, 11} & set(keys_of([e])) or {10, 11} <= set(keys_of([e])) for e in entries)

    def test_places_and_versions_rise(self, place: CapturePlace) -> None:
        """Versions do per key; what a cursor is through with is below what may still come, so only that is held to."""
        reader = Reader(place.open())
        for key in range(20):
            place.write(key)
        entries = until(reader, 20)  # a number drawn between two looks is passed with the next
        reader.capture.close()
        assert reader.ended()
        places = [e.place for e in entries if e.place]
        assert places == sorted(places)
        assert [e.through for e in entries] == sorted(e.through for e in entries)
        assert max(e.max_version for e in entries) == 20


def test_what_commits_late_comes_and_a_poller_by_number_would_have_lost_it(plain_database: Database) -> None:
    found, tables, place = prepared(plain_database)
    late = plain_database.connect(autocommit=False)
    publish(late, 1, a="late")
    with plain_database.connect() as connection:
        publish(connection, 2, a="early")
    naive = [row[0] for row in plain_database.execute(f"select id from {EVENTS} order by id")]
    with reading(found, tables, place) as reader:
        eventually(lambda: any(e.place for e in reader.entries))
        assert keys_of(reader.entries) == []  # the horizon has not come to either
        late.commit()
        late.close()
        assert sorted(keys_of(until(reader, 2))) == [1, 2]
    naive += [row[0] for row in plain_database.execute(f"select id from {EVENTS} where id > %s", max(naive))]
    assert naive == [2]


class Crossed:
    """Patches of one entity whose transactions have ids in another order than their numbers: the later one began
    first, and a third keeps the horizon between the two."""

    def __init__(self, database: Database) -> None:
        self.found, self.tables, self.place = prepared(database)
        self._sessions = [database.connect(autocommit=False) for _ in range(3)]
        early, self._between, later = self._sessions
        for session in (early, self._between, later):
            session.execute("select pg_current_xact_id()")
        publish(later, 7, a="first", b="first")
        later.commit()
        publish(early, 7, a="second")
        publish(early, 8, a="beside it")
        early.commit()

    def end(self) -> None:
        """Let the horizon go on."""
        self._between.commit()
        for session in self._sessions:
            session.close()


IN_ORDER = [(1, {"id": 7, "a": "first", "b": "first"}), (2, {"id": 7, "a": "second"})]


def of_entity(entries: list[Entry]) -> list[tuple[int, dict[str, Any]]]:
    return [change for change in changes(entries) if change[1]["id"] == 7]


def test_an_event_is_held_back_while_an_earlier_one_of_its_entity_lies_beyond_the_horizon(
    plain_database: Database,
) -> None:
    crossed = Crossed(plain_database)
    with reading(crossed.found, crossed.tables, crossed.place) as reader:
        eventually(lambda: 8 in keys_of(reader.entries))
        assert 7 not in keys_of(reader.entries)
        crossed.end()
        entries = until(reader, 3)
    assert of_entity(entries) == IN_ORDER
    assert keys_of(entries).count(8) == 1


def test_a_reader_that_begins_at_a_place_finds_again_what_was_held_back_there(plain_database: Database) -> None:
    crossed = Crossed(plain_database)
    with reading(crossed.found, crossed.tables, crossed.place) as reader:
        eventually(lambda: 8 in keys_of(reader.entries))
        durable = reader.place
    with reading(crossed.found, crossed.tables, durable) as again:
        eventually(lambda: again.entries)
        crossed.end()
        entries = until(again, 3)
    assert of_entity(entries) == IN_ORDER
    assert 8 not in keys_of(entries)


@pytest.mark.parametrize("rows", [1, 2, 3, 10_000])
def test_pages_of_any_size_keep_the_order_of_an_entity(plain_database: Database, rows: int) -> None:
    """What waits for the reader is cut into pages by transaction id, wherever numbers cross."""
    crossed = Crossed(plain_database)
    crossed.end()
    with plain_database.connect() as connection:
        for n in range(6):
            publish(connection, 7, b=str(n))
            publish(connection, 9, b=str(n))
    settings = crossed.found.settings.model_copy(update={"batch_rows": rows})
    found = PolledOutboxSource(settings, "syncline")
    found.park_events(Parking())
    with reading(found, crossed.tables, crossed.place) as reader:
        entries = until(reader, 15)
    versions = [version for version, _ in of_entity(entries)]
    assert versions == [1, 2, 4, 6, 8, 10, 12, 14]
    assert sorted(version for version, _ in changes(entries)) == list(range(1, 16))


def test_a_notification_makes_the_poll_sooner_and_one_that_is_lost_costs_an_interval(plain_database: Database) -> None:
    outbox = {"entities": ENTITIES, "notify": True}
    found, tables, place = prepared(plain_database, poll_s=60, outbox=outbox)
    with reading(found, tables, place) as reader, plain_database.connect() as connection:
        eventually(lambda: reader.entries)
        publish(connection, 1, a="notified")
        eventually(lambda: 1 in keys_of(reader.entries))  # long before the next poll
    found, tables, place = prepared(plain_database, outbox={"entities": ENTITIES})  # whose publishing notifies nobody
    with reading(found, tables, place) as reader, plain_database.connect() as connection:
        eventually(lambda: reader.entries)
        publish(connection, 2, a="not notified")
        eventually(lambda: 2 in keys_of(reader.entries))


def test_only_one_reads_an_outbox_and_the_next_one_says_who(plain_database: Database) -> None:
    found, tables, place = prepared(plain_database)
    with reading(found, tables, place) as reader:
        eventually(lambda: reader.entries)
        with pytest.raises(Unavailable, match="is read already: syncline-capture at"):
            found.attach(found.identify(), place, print)
        second = Reader(found.capture(tables, 0, 1, lambda *_: None), place)
        assert second.ended()
        second.capture.close()
        assert isinstance(second.error, Unavailable)
        assert second.error.code == "SL-SLOT-IN-USE"
        assert found.reader() is not None
    assert found.reader() is None


@pytest.mark.parametrize(
    "throw_away", [f"truncate {EVENTS}", f"delete from {EVENTS}", "drop schema syncline_outbox cascade"]
)
def test_events_that_are_thrown_away_unread_are_a_gap(plain_database: Database, throw_away: str) -> None:
    found, tables, place = prepared(plain_database)
    with plain_database.connect() as connection:
        publish(connection, 1, a="never read")
    was = found.identify()
    plain_database.execute(throw_away)
    if "drop" in throw_away:
        with pytest.raises(Misconfigured, match="has no outbox"):
            found.attach(was, place, print)
        prepared(plain_database)
        assert found.identify() != was
        return
    with pytest.raises(Gap, match="were purged"):
        found.attach(was, place, print)
    reader = Reader(found.capture(tables, 0, 1, lambda *_: None), place)
    assert reader.ended()
    reader.capture.close()
    assert isinstance(reader.error, Gap)


def test_an_event_of_the_newest_transaction_is_not_passed_while_that_is_open(plain_database: Database) -> None:
    """A snapshot ends behind the last transaction that has ended: the newest one lies beyond it, though it is open."""
    found, tables, place = prepared(plain_database)
    stream = found.capture(tables, 0, 1, lambda *_: None)
    assert isinstance(stream, PolledOutboxStream)
    with plain_database.connect(autocommit=False) as session, plain_database.connect() as connection:
        publish(session, 1, a="open")
        assert [entry.through for entry in stream._poll(connection, place)] == [1]
        session.commit()
        assert max(entry.through for entry in stream._poll(connection, place)) == 2
    stream.close()
    stream._wake_read.close()  # as the end of entries() does


def test_events_that_were_read_may_be_thrown_away(plain_database: Database) -> None:
    found, tables, place = prepared(plain_database)
    with reading(found, tables, place) as reader, plain_database.connect() as connection:
        publish(connection, 1, a="read")
        until(reader, 1)
        connection.execute(f"truncate {EVENTS}".encode())
        publish(connection, 2, a="read, too")
        assert keys_of(until(reader, 2)) == [1, 2]
        durable = reader.place
    assert found.attach(found.identify(), durable, print) == durable


def test_status_shows_who_reads_and_how_much_waits(plain_database: Database) -> None:
    plain_database.execute("create table t (id bigint primary key, a text, b text)")
    assert source(plain_database).look(None).words == f"{EVENTS}: not there yet"
    found, tables, place = prepared(plain_database)
    with plain_database.connect() as connection:
        for key in range(3):
            publish(connection, key, a="waits")
    seen = found.look(place)
    assert (seen.facts["state"], seen.facts["waiting_events"], seen.behind) == ("idle", 3, None)
    assert seen.words == f"{EVENTS}: idle, 3 events waiting"
    assert seen.retained == seen.facts["kept_bytes"] > 0
    with reading(found, tables, place) as reader:
        until(reader, 3)
        seen = found.look(reader.place)
    assert (seen.facts["state"], seen.facts["waiting_events"]) == ("reading", 0)


def test_no_place_is_told_that_a_crash_of_the_server_could_take_back(pg_server: EmbeddedPostgres) -> None:
    """Rolled back, a transaction's end need not reach the disk: its id may be drawn once more after a crash."""
    pg_server.create_database("own")
    database = Database(pg_server, "own")
    database.execute("alter system set wal_writer_delay = '10s'")
    database.execute("select pg_reload_conf()")
    found, tables, place = prepared(database, heartbeat_s=60, poll_s=0.01)
    reader = Reader(found.capture(tables, 0, 1, lambda *_: None), place)
    eventually(lambda: reader.entries)
    with database.connect(autocommit=False) as connection:
        publish(connection, 1, a="not kept")
        connection.rollback()
        publish(connection, 2, a="kept, perhaps")
        connection.execute("set local synchronous_commit = off")
        connection.commit()
        eventually(lambda: 2 in keys_of(reader.entries))
    pg_server.kill()
    assert reader.ended()
    reader.capture.close()
    pg_server.restart()
    assert database.value("select pg_current_xact_id()::text::int8") >= reader.place
    assert database.value(f"select count(*) from {EVENTS}") == 1


def test_doctor_says_what_keeps_an_outbox_from_being_polled(plain_database: Database) -> None:
    database = plain_database
    database.execute("create table t (id bigint primary key, a text, b text); create table other (id int primary key)")

    def errors(**settings: Any) -> dict[str, str]:
        return {f.subject: f.code for f in source(database, **settings).preflight() if f.severity == "error"}

    assert errors() == {EVENTS: "SL-NO-OUTBOX"}
    prepared(database)
    assert errors() == {}
    assert errors(monitored_tables=["public.*"]) == {"public.other": "SL-OUTBOX"}
    database.execute("drop table syncline_outbox.sync_event_installation")
    assert errors() == {EVENTS: "SL-NO-OUTBOX"}
    with pytest.raises(Misconfigured, match="older version"):
        source(database).attach(source(database).identify(), 0, print)
