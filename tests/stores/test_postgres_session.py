"""The session of a PostgreSQL store: who may write, what marks its writes, and what a lost connection leaves."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any

import psycopg
import pytest
from pg_target import config_of, mapped, opened

from servers import Database, eventually
from syncline.change import Cursor, Position
from syncline.errors import Misconfigured, Unavailable
from syncline.stores import Work
from syncline.stores.postgres import PostgresConfig, PostgresStore
from syncline.testing.store_suite import ITEM, PAIR, Rows, contents, work

_SESSIONS = (
    "select count(*) from pg_stat_activity where application_name like 'syncline-apply%'"
    " and datname = current_database()"
)


def store_on(database: Database, **settings: Any) -> PostgresStore:
    return PostgresStore(config_of(database, **settings), "target")


# ------------------------------------------------------------------------------------------------- fencing


def test_a_session_that_stood_still_too_long_is_tried_again(database: Database) -> None:
    """A process that was suspended amid a transaction is told so by the server when it goes on."""
    with opened(database, ITEM) as store:

        def stand_still() -> None:
            with store._transaction() as connection:
                limit = connection.execute("show idle_in_transaction_session_timeout").fetchone()
                assert limit == ("1min",)
                connection.execute("set local idle_in_transaction_session_timeout = '100ms'")
                there = "select count(*) from pg_stat_activity where pid = %s"
                eventually(lambda: database.value(there, connection.info.backend_pid) == 0)
                connection.execute("select 1")

        with pytest.raises(Unavailable):
            stand_still()
        eventually(lambda: _applied(store, work(Rows().upsert(5, 1, "on", None), n=1)))
        assert contents(store) == {1: ("on", None, 5)}


def test_an_engine_that_was_overtaken_writes_nothing_any_more(database: Database) -> None:
    with opened(database, ITEM) as old:
        old.apply(work(Rows().upsert(5, 1, "old", None), n=1))
        with opened(database) as new:
            for act in (
                lambda: old.apply(work(Rows().upsert(6, 2, "late", None), n=2)),
                lambda: old.migrate(PAIR),
                lambda: old.purge("orders", 9),
            ):
                with pytest.raises(Misconfigured, match="opened by another engine") as fenced:
                    act()
                assert fenced.value.code == "SL-POSTGRES-FENCED"
            eventually(lambda: _applied(new, work(Rows().upsert(7, 3, "new", None), n=3)))
            assert contents(new) == {1: ("old", None, 5), 3: ("new", None, 7)}


def _applied(store: PostgresStore, step: Work) -> bool:
    try:
        store.migrate(ITEM)
        store.apply(step)
    except Unavailable:
        return False
    return True


def test_the_session_of_an_engine_that_hangs_is_ended_by_the_next_one(database: Database) -> None:
    """Nobody speaks on the first session any more, and it holds the replication origin."""
    with opened(database, ITEM) as hanging:
        hanging.apply(work(Rows().upsert(5, 1, "old", None), n=1))
        with opened(database) as new:
            new.migrate(ITEM)
            new.apply(work(Rows().upsert(6, 2, "new", None), n=2))
            eventually(lambda: database.value(_SESSIONS) == 1)
            assert sorted(contents(new)) == [1, 2]
            late = work(Rows().upsert(7, 3, "late", None), n=3)
            with pytest.raises(Unavailable):
                hanging.apply(late)
            with pytest.raises(Misconfigured) as fenced:  # and it ends nobody's session in its turn
                hanging.apply(late)
            assert fenced.value.code == "SL-POSTGRES-FENCED"
            new.apply(work(Rows().upsert(8, 4, "new", None), n=3))
            assert sorted(contents(new)) == [1, 2, 4]


def test_an_origin_that_a_stranger_uses_is_waited_for(database: Database) -> None:
    with opened(database, ITEM):
        pass
    eventually(lambda: database.value(_SESSIONS) == 0)
    with opened(database) as store:
        with database.connect() as stranger:
            name = f"syncline:{database.name}:syncline_target:orders"
            stranger.execute("select pg_replication_origin_session_setup(%s)", [name])
            with pytest.raises(Unavailable, match="already active"):
                store.migrate(ITEM)
        eventually(lambda: _applied(store, work(Rows().upsert(5, 1, "one", None), n=1)))


def test_two_sources_write_at_the_same_time(database: Database) -> None:
    with opened(database, ITEM) as one, opened(database, PAIR, source="people") as two:
        for n in range(1, 30):
            one.apply(work(Rows().upsert(n, n, "x", None), n=n))
            two.apply(work(Rows(PAIR).upsert(n, str(n), n, bytes(16), None), n=n, source="people"))
        assert (len(contents(one)), len(contents(two, PAIR))) == (29, 29)


def test_bookkeeping_is_made_once_by_many_at_a_time(database: Database) -> None:
    stores = [store_on(database) for _ in range(8)]
    opening = [threading.Thread(target=s.open, args=(f"source{n}",)) for n, s in enumerate(stores)]
    for thread in opening:
        thread.start()
    for thread in opening:
        thread.join()
    assert database.value("select count(*) from syncline_target.cursors") == 8
    for store in stores:
        store.close()


# ------------------------------------------------------------------------------------------------- origin and loops


def _published(database: Database, slot: str, origin: str) -> list[bytes]:
    """Kinds of messages that a subscriber with this wish for origins gets."""
    query = (
        "select substr(data, 1, 1) from pg_logical_slot_peek_binary_changes(%s, null, null, 'proto_version', '1',"
        " 'publication_names', 'p', 'origin', %s)"
    )
    return [bytes(kind) for (kind,) in database.execute(query, slot, origin)]


def test_what_is_written_carries_an_origin_and_does_not_echo(database: Database) -> None:
    with opened(database, ITEM) as store:
        database.execute("create publication p for all tables")
        database.execute("select pg_create_logical_replication_slot('echo', 'pgoutput')")
        store.apply(work(Rows().upsert(5, 1, "copied", None).delete(5, 2), n=1))
        database.execute("insert into item values (7, 'mine')")
        assert b"O" in _published(database, "echo", "any")
        kinds = _published(database, "echo", "none")
        assert (kinds.count(b"I"), kinds.count(b"O")) == (1, 0)
        name = f"syncline:{database.name}:syncline_target:orders"
        assert database.value("select count(*) from pg_replication_origin where roname = %s", name) == 1


def test_without_the_right_to_an_origin_it_writes_unmarked_unless_one_is_required(database: Database) -> None:
    database.execute(f'create role plain login; grant create on database "{database.name}" to plain')
    database.execute("grant create on schema public to plain")
    dsn = database.dsn.replace("postgres@", "plain@")
    with opened(database, ITEM, dsn=dsn) as store:
        store.apply(work(Rows().upsert(5, 1, "one", None)))
        assert contents(store) == {1: ("one", None, 5)}
    with (
        pytest.raises(Misconfigured, match="no replication origin") as refused,
        opened(database, ITEM, dsn=dsn, origin=True),
    ):
        pass
    assert refused.value.code == "SL-POSTGRES-ORIGIN"
    database.execute("drop owned by plain; drop role plain")


def test_a_table_is_never_copied_onto_itself(database: Database) -> None:
    system, timeline, name = database.execute(
        "select system_identifier::text, 1, current_database() || ':' || (select oid from pg_database"
        " where datname = current_database()) from pg_control_system()"
    )[0]
    database.execute("create table item (id bigint primary key, name text, amount numeric(12,2))")
    with opened(database) as store:
        store.source_is(system, timeline, name)
        with pytest.raises(Misconfigured, match="one database") as refused:
            store.migrate(ITEM)
        assert refused.value.code == "SL-POSTGRES-LOOP"
        assert database.value("select count(*) from pg_attribute where attname = '_syncline_version'") == 0
        store.migrate(mapped(ITEM, "copy", "item"))
        store.source_is(system, timeline, "other:1")
        store.migrate(ITEM)


# ------------------------------------------------------------------------------------------------- connections


class _Proxy:
    """Stands between a store and its server, and cuts the line where it is told to."""

    def __init__(self, port: int) -> None:
        self._server = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.cut_at = b""
        self.cuts = 0
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            server = socket.create_connection(("127.0.0.1", self._server))
            cut = threading.Event()
            for pair in ((client, server, True), (server, client, False)):
                threading.Thread(target=self._pump, args=(*pair, cut), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket, outwards: bool, cut: threading.Event) -> None:
        try:
            while data := source.recv(65536):
                last = outwards and bool(self.cut_at) and self.cut_at in data
                if last:  # the server hears it, and nobody hears the server, however soon it answers
                    self.cut_at = b""
                    self.cuts += 1
                    cut.set()
                elif cut.is_set():
                    break
                sink.sendall(data)
                if last:
                    source.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
        for end in (source, sink):
            with closing(end):
                pass

    def close(self) -> None:
        self._listener.close()


@contextmanager
def proxied(database: Database) -> Iterator[tuple[_Proxy, PostgresConfig]]:
    proxy = _Proxy(database.server.port)
    try:
        dsn = database.dsn.replace(f":{database.server.port}/", f":{proxy.port}/")
        yield proxy, config_of(database, dsn=dsn)
    finally:
        proxy.close()


def test_a_reply_that_is_lost_behind_the_commit_is_harmless(database: Database) -> None:
    with proxied(database) as (proxy, config):
        store = PostgresStore(config, "target")
        store.open("orders")
        store.migrate(ITEM)
        store.apply(work(Rows().upsert(5, 1, "a", None).upsert(5, 2, "b", None), n=1))
        swap = Rows().partial(6, 1, None, None, unchanged=["name"], origin=(2,))
        swap.partial(6, 2, None, None, unchanged=["name"], origin=(1,))
        step = Work((swap.table(),), Cursor("orders", Position("log", 2)))
        proxy.cut_at = b"COMMIT"
        with pytest.raises(Unavailable):
            store.apply(step)
        assert proxy.cuts == 1
        eventually(lambda: database.value("select body::json->'position'->>'n' from syncline_target.cursors") == "2")
        eventually(lambda: _again(store, step))
        assert contents(store) == {1: ("b", None, 6), 2: ("a", None, 6)}
        store.close()


def _again(store: PostgresStore, step: Work) -> bool:
    try:
        store.apply(step)
    except Unavailable:
        return False
    return True


def test_a_session_that_is_ended_between_two_works_is_opened_again(database: Database) -> None:
    with opened(database, ITEM) as store:
        store.apply(work(Rows().upsert(5, 1, "one", None), n=1))
        database.execute(
            "select pg_terminate_backend(pid) from pg_stat_activity where application_name like 'syncline-apply%'"
        )
        step = work(Rows().upsert(6, 2, "two", None), n=2)
        eventually(lambda: _again(store, step))
        assert sorted(contents(store)) == [1, 2]


def test_a_lock_of_somebody_else_is_waited_for_and_not_for_ever(database: Database) -> None:
    with opened(database, ITEM, lock_timeout_s=0.2) as store, database.connect(autocommit=False) as other:
        other.execute("lock table item in access exclusive mode")
        step = work(Rows().upsert(5, 1, "one", None), n=1)
        with pytest.raises(Unavailable, match="lock"):
            store.apply(step)
        other.rollback()
        store.apply(step)
        assert list(contents(store)) == [1]


def test_a_server_that_is_away_and_a_database_that_is_not_there_are_told_apart(database: Database) -> None:
    with pytest.raises(Unavailable):
        PostgresStore(PostgresConfig.model_validate({"dsn": "postgresql://u@127.0.0.1:1/x"}), "t").open("orders")
    for dsn in (database.server.dsn("nowhere"), database.dsn.replace("postgres@", "nobody@")):
        with pytest.raises(Misconfigured):
            PostgresStore(PostgresConfig.model_validate({"dsn": dsn}), "t").open("orders")


def test_a_commit_is_durable_even_where_the_role_says_otherwise(database: Database) -> None:
    database.execute(f'alter database "{database.name}" set synchronous_commit = off')
    with opened(database, ITEM) as store, store._session() as connection:
        assert connection.execute("show synchronous_commit").fetchone() == ("on",)


def test_a_newer_bookkeeping_format_is_refused(database: Database) -> None:
    with opened(database, ITEM):
        pass
    database.execute("insert into syncline_target.format values (99)")
    with pytest.raises(Misconfigured, match="newer Syncline"), opened(database):
        pass


@pytest.mark.parametrize("newest", ["a row", "a tombstone", "a truncation", "a horizon"])
def test_older_changes_are_superseded_after_opening_again_whatever_is_newest(database: Database, newest: str) -> None:
    with opened(database, ITEM) as store:
        store.apply(work(Rows().upsert(100, 1, "one", None)))
        if newest == "a row":
            store.apply(work(Rows().upsert(200, 1, "newer", None)))
        elif newest == "a truncation":
            store.apply(work(Rows().table(truncated=200)))
        else:
            store.apply(work(Rows().delete(199, 1)))
        if newest == "a horizon":
            assert store.purge("orders", 200) == 1
        before = contents(store)
    with opened(database, ITEM) as store:
        store.apply(work(Rows().upsert(150, 1, "late", None)))
        assert contents(store) == before
        store.apply(work(Rows().upsert(201, 1, "now", None)))
        assert contents(store) == {1: ("now", None, 201)}


def test_a_large_truncation_goes_in_pieces_ahead_of_the_cursor(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("syncline.stores.postgres.store._LARGE_BLOCKS", 4)
    with opened(database, ITEM) as store:
        rows = Rows()
        for i in range(3000):
            rows.upsert(9 if i % 100 == 0 else 5, i, "x" * 50, None)
        store.apply(work(rows, n=1))
        before = database.value("select pg_current_xact_id()::text::int8")
        store.apply(work(Rows().upsert(6, -1, "behind", None), truncated=6, n=2))
        assert database.value("select pg_current_xact_id()::text::int8") - before > 5
        assert sorted(contents(store)) == [-1, *range(0, 3000, 100)]


def test_psycopg_errors_of_every_kind_are_told_without_a_traceback_of_the_driver(database: Database) -> None:
    with opened(database, ITEM) as store:
        database.execute("alter table item drop column name")
        with pytest.raises(Misconfigured, match="column") as refused:
            store.apply(work(Rows().upsert(5, 1, "one", None)))
        assert isinstance(refused.value.__cause__, psycopg.Error)
    with opened(database) as store, pytest.raises(Misconfigured, match="name"):
        store.fetch(ITEM, Rows().delete(1, 1).folded().deletes)  # type: ignore[arg-type]


def test_closing_does_not_wait_for_a_work_that_hangs(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("syncline.stores.postgres.store._PATIENCE_S", 0.1)
    failed: list[BaseException] = []
    with opened(database, ITEM) as store, database.connect(autocommit=False) as other:
        other.execute("lock table item in access exclusive mode")

        def apply() -> None:
            try:
                store.apply(work(Rows().upsert(5, 1, "one", None), n=1))
            except Unavailable as error:
                failed.append(error)

        applying = threading.Thread(target=apply)
        applying.start()
        waiting = (
            "select count(*) from pg_stat_activity where wait_event_type = 'Lock' and datname = current_database()"
        )
        eventually(lambda: database.value(waiting) == 1)
        store.close()
        applying.join(10)
        assert len(failed) == 1
