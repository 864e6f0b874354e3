"""Capture by triggers, at a server that has no logical decoding: what is recorded, and how it is read."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
import pyarrow as pa
import pytest

from servers import Database, eventually
from syncline.capture.triggers.settings import TriggerSettings
from syncline.capture.triggers.source import TriggerSource
from syncline.capture.triggers.stream import TriggerStream
from syncline.change import Batch, Entry, Marker, Op, Truncate
from syncline.errors import Gap, Misconfigured, SynclineError, Unavailable
from syncline.testing.capture_suite import CaptureConformance, CapturePlace, Reader, keys_of

EVENTS = "syncline_triggers.sync_events"


def source(database: Database, **settings: Any) -> TriggerSource:
    given = {"dsn": database.dsn, "poll_s": 0.02, "heartbeat_s": 0.1, **settings}
    return TriggerSource(TriggerSettings(**given), "syncline")


def prepared(database: Database, **settings: Any) -> tuple[TriggerSource, list[Any], int]:
    """A source with its triggers made, its tables, and the place where its stream begins."""
    found = source(database, **settings)
    found.prepare(found.tables(), print)
    tables = found.described(found.tables())
    return found, tables, found.attach(found.identify(), 0, print)


@contextmanager
def reading(found: TriggerSource, tables: list[Any], after: int) -> Iterator[Reader]:
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


def through(database: Database) -> int:
    return int(database.value(f"select last_value + 1 from {EVENTS}_number_seq"))


def until(reader: Reader, number: int) -> list[Entry]:
    """Everything that came up to this number."""
    eventually(lambda: reader.error is not None or max((e.through for e in reader.entries), default=0) >= number)
    if reader.error is not None:
        raise reader.error
    return list(reader.entries)


def final(entries: list[Entry], table: str) -> dict[Any, Any]:
    """The rows that are left of a table, by its first column: the last change of each key by version is its state."""
    state: dict[Any, tuple[int, Any]] = {}
    truncated = 0
    for entry in entries:
        for item in entry.items:
            if isinstance(item, Truncate) and item.schema.qualified == table:
                truncated = max(truncated, item.version)
            elif isinstance(item, Batch) and item.schema.qualified == table:
                rows = item.data().to_pylist()
                for row, op, version in zip(rows, item.ints("op"), item.ints("version"), strict=True):
                    key = next(iter(row.values()))
                    if key not in state or state[key][0] <= version:
                        state[key] = (int(version), None if op == Op.DELETE else row)
    return {key: row for key, (version, row) in state.items() if row is not None and version > truncated}


class TriggerPlace:
    """One table of a real server with its triggers."""

    def __init__(self, database: Database) -> None:
        self._database = database
        database.execute("create table t (id bigint primary key, filler text)")
        self._source, self._tables, self._begin = prepared(database)

    def open(self, *, max_entry_rows: int = 10_000) -> TriggerStream:
        query = "select count(*) = 0 from pg_locks where locktype = 'advisory'"
        eventually(lambda: self._database.value(query))
        settings = self._source.settings.model_copy(update={"batch_rows": max_entry_rows})
        return _From(settings, self._tables, self._begin)

    def write(self, *keys: int) -> None:
        self._database.execute("insert into t select unnest(%s::bigint[]), repeat('x', 100)", list(keys))

    def begin(self, *keys: int) -> Callable[[], None]:
        connection = self._database.connect(autocommit=False)
        connection.execute("insert into t select unnest(%s::bigint[])", [list(keys)])

        def commit() -> None:
            connection.commit()
            connection.close()

        return commit

    def end(self) -> int:
        return int(self._database.value("select (pg_current_xact_id()::text::int8)"))

    def confirmed(self) -> int:
        return int(self._database.value("select place::text::int8 from syncline_triggers.sync_readers"))

    def sever(self) -> None:
        self._database.execute(
            "select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'syncline-capture'"
            " and datname = current_database()"
        )


class _From(TriggerStream):
    """Begins where the source began, if it is asked to begin anywhere."""

    def __init__(self, settings: TriggerSettings, tables: list[Any], begin: int) -> None:
        super().__init__(settings, tables, base=0, incarnation=1, lost=lambda *_: None)
        self._begin = begin

    def entries(self, after: int) -> Iterator[Entry]:
        return super().entries(after or self._begin)


class TestTriggerStream(CaptureConformance):
    @pytest.fixture
    def place(self, plain_database: Database) -> CapturePlace:
        return TriggerPlace(plain_database)

    def test_transactions_come_whole_and_in_the_order_of_their_commits(self, place: CapturePlace) -> None:
        """In the order of their ids, here: what one transaction saw of another came before it or comes with it."""
        assert isinstance(place, TriggerPlace)
        reader = Reader(place.open())
        place.write(1)
        first = place.begin(10, 11)
        eventually(lambda: keys_of(reader.entries) == [1])  # what an older one wrote does not wait for an open one
        second = place.begin(20)
        place.write(2, 3)
        second()
        place.write(4)
        first()
        entries = reader.until(place.end())
        reader.capture.close()
        assert reader.ended()
        assert sorted(keys_of(entries)) == [1, 2, 3, 4, 10, 11, 20]
        assert [1] in [keys_of([e]) for e in entries]
        assert all(not {10, 11} & set(keys_of([e])) or {10, 11} <= set(keys_of([e])) for e in entries)

    def test_places_and_versions_rise(self, place: CapturePlace) -> None:
        """Versions do per key; what a cursor is through with is below what may still come, so only that is held to."""
        reader = Reader(place.open())
        for key in range(20):
            place.write(key)
        entries = until(reader, 21)  # a number drawn between two looks is passed with the next
        reader.capture.close()
        assert reader.ended()
        places = [e.place for e in entries if e.place]
        assert places == sorted(places)
        assert [e.through for e in entries] == sorted(e.through for e in entries)
        assert max(e.max_version for e in entries) == 20


VALUES = """
create type mood as enum ('sad', 'glad');
create type place as (street text, number int);
create domain positive as int check (value > 0);
create table value (
  id int primary key, n numeric, m numeric(12,4), f float8, g float4, b bytea, t text, c char(5), o bool, d date,
  ts timestamp, tz timestamptz, ti time, tt timetz, iv interval, u uuid, j json, jb jsonb, a int[], x text[], p place,
  e mood, dom positive, r int4range, ip inet, bits bit(3), mo money, v tsvector
);
"""
INSERT = """
insert into value values
  (1, 'NaN', 1.2300, 'NaN', '-Infinity', '\\x00ff27', 'it''s "quoted" \\ and' || chr(10) || 'lines', 'ab', true,
   'infinity', '-infinity', 'infinity', '24:00', '12:00:00.5+02', '1 year -3 days 04:05:06.7', gen_random_uuid(),
   'null', 'null', '[2:4]={1,null,3}', '{}', ('a "b", c', null), 'glad', 3, '[1,5)', '10.0.0.1/8', '101', '12.34',
   'fat:1A cat'),
  (2, 1e40, -0.0001, 1.0000000000000002, 1.1, '', '', '', false, '0044-03-15 BC', '10000-01-01 00:00:00.000001',
   '0044-03-15 12:00 BC', '00:00:00.000001', '00:00-15:59', '-1 mon', null, '{"a" : 1.10, "a":2}',
   '{"big": 123456789012345678901234567890}', '{{1,2},{3,4}}', '{null,"NULL","a,b"}', row(null, 1), 'sad', 1, 'empty',
   '::1', '000', '-1', ''),
  (3, null, null, null, null, null, null, null, null, null, null, null, null, null, null, null, null, null, null, null,
   null, null, null, null, null, null, null, null);
"""


def test_events_give_the_same_arrow_values_as_a_load_for_every_type(plain_database: Database) -> None:
    plain_database.execute(VALUES)
    found, tables, place = prepared(plain_database)
    with plain_database.connect() as connection:  # a session that prints otherwise
        connection.execute("set datestyle = 'SQL, DMY'; set intervalstyle = 'iso_8601'; set extra_float_digits = 0")
        connection.execute("set timezone = 'Asia/Kathmandu'; set bytea_output = 'escape'")
        connection.execute(INSERT)
    with reading(found, tables, place) as reader:
        entries = until(reader, through(plain_database))
    came = [i for e in entries for i in e.items if isinstance(i, Batch)]
    with found.point("test", print) as point:
        loaded = list(found.rows(tables[0], point, 1, threading.Event(), lambda _: None))
    ours = pa.Table.from_batches([b.data() for b in came]).combine_chunks()
    theirs = pa.Table.from_batches([b.data() for b in loaded]).combine_chunks()
    assert ours.schema == theirs.schema
    for name in ours.column_names:
        if not pa.types.is_floating(ours.schema.field(name).type):
            assert ours.column(name).equals(theirs.column(name)), name
        else:
            assert str(ours.column(name)) == str(theirs.column(name)), name
    assert came[0].schema == loaded[0].schema


def test_what_statements_of_every_kind_leave_is_what_the_events_leave(plain_database: Database) -> None:
    write_and_compare(plain_database)


@pytest.mark.parametrize("postgres_version", [15, *(pytest.param(v, marks=pytest.mark.slow) for v in (16, 17))])
def test_the_script_works_the_same_at_older_servers(database: Database, postgres_version: int) -> None:
    assert database.value("select current_setting('server_version_num')::int / 10000") == postgres_version
    write_and_compare(database)
    database.execute("truncate item")
    assert database.value(f"select operation from {EVENTS} order by number desc limit 1") == "TRUNCATE"
    assert database.value("select syncline_triggers.purge_events('0 s')") == 0  # its reader has seen none of them
    source(database).remove(everything=True)
    assert database.value("select to_regnamespace('syncline_triggers')::text") is None


def test_triggers_that_notify_wake_a_reader_whose_next_look_is_far(
    plain_database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    database = plain_database
    monkeypatch.setattr("syncline.capture.horizon.stream._SOONER", 1)
    database.execute("create table item (id int primary key)")
    found, tables, place = prepared(database, poll_s=60, notify=True)
    with reading(found, tables, place) as reader:
        for key in (1, 2, 3):  # the first may be there before the first look
            database.execute("insert into item values (%s)", key)
            eventually(lambda key=key: key in keys_of(reader.entries))


def test_a_notification_that_comes_with_the_answer_to_a_statement_wakes_the_reader_too(
    plain_database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    database = plain_database
    database.execute("create table item (id int primary key)")
    found, tables, place = prepared(database, poll_s=60, heartbeat_s=60, notify=True)
    before = TriggerStream._tidy

    def tidy(self: TriggerStream, connection: Any) -> None:
        monkeypatch.setattr(TriggerStream, "_tidy", before)
        database.execute("insert into item values (1)")
        connection.execute("select 1")

    monkeypatch.setattr(TriggerStream, "_tidy", tidy)
    with reading(found, tables, place) as reader:
        eventually(lambda: 1 in keys_of(reader.entries))


def test_an_event_above_the_horizon_is_read_soon_behind_what_held_it_though_nothing_notifies_of_that(
    plain_database: Database,
) -> None:
    database = plain_database
    database.execute("create table item (id int primary key)")
    found, tables, place = prepared(database, poll_s=60, notify=True)
    database.execute("create table other (id int)")
    with reading(found, tables, place) as reader, database.connect(autocommit=False) as holder:
        eventually(lambda: reader.entries)
        holder.execute("insert into other values (1)")
        database.execute("insert into item values (1)")
        time.sleep(0.3)
        assert keys_of(reader.entries) == []
        holder.rollback()
        eventually(lambda: 1 in keys_of(reader.entries))


def write_and_compare(database: Database) -> None:
    """Statements of every kind on a table with triggers, and what is read of their events."""
    database.execute("create table item (id int primary key, name text, t int, s int, o int, n int)")
    found, tables, place = prepared(database)
    database.execute("insert into item select g, 'n' || g from generate_series(1, 20) g")
    database.execute("update item set name = name || '!' where id < 5; delete from item where id = 7")
    database.execute("update item set id = id + 100 where id > 15")
    database.execute(
        "insert into item values (1, 'one'), (50, 'new') on conflict (id) do update set name = excluded.name"
    )
    database.execute("with gone as (delete from item where id = 2 returning *) update item set name = 'x' where id = 3")
    database.execute(
        "merge into item using (values (4, 'm'), (60, 'm')) s(id, name) on item.id = s.id"
        " when matched then delete when not matched then insert values (s.id, s.name)"
    )
    database.execute("begin; delete from item where id = 5; insert into item values (5, 'again'); commit")
    with database.connect(autocommit=False) as connection:
        connection.execute("insert into item values (500, 'never')")
        connection.rollback()
    with reading(found, tables, place) as reader:
        entries = until(reader, through(database))
    wanted = dict(database.execute("select id, name from item"))
    assert {key: row["name"] for key, row in final(entries, "public.item").items()} == wanted


def test_a_row_trigger_that_writes_to_the_same_table_leaves_the_last_state(plain_database: Database) -> None:
    database = plain_database
    database.execute("""
        create table item (id int primary key, name text);
        create function again() returns trigger language plpgsql as $$ begin
          if new.name not like '%+' then update item set name = new.name || '+' where id = new.id; end if;
          if tg_op = 'UPDATE' and new.id = 3 then delete from item where id = 3; end if;
          return null;
        end $$;
        create trigger again after insert or update on item for each row execute function again();
    """)
    found, tables, place = prepared(database)
    database.execute("insert into item values (1, 'a'), (2, 'b'), (3, 'c')")
    database.execute("update item set name = 'z' where id = 1")
    with reading(found, tables, place) as reader:
        entries = until(reader, through(database))
    wanted = dict(database.execute("select id, name from item"))
    assert wanted == {1: "z+", 2: "b+"}
    assert {key: row["name"] for key, row in final(entries, "public.item").items()} == wanted


def test_truncate_is_an_event_between_what_was_before_and_what_came_after(plain_database: Database) -> None:
    plain_database.execute("create table item (id int primary key, name text)")
    found, tables, place = prepared(plain_database)
    plain_database.execute(
        "begin; insert into item values (1, 'a'); truncate item; insert into item values (2, 'b'); commit"
    )
    with reading(found, tables, place) as reader:
        entries = until(reader, through(plain_database))
    kinds = [type(i).__name__ for e in entries for i in e.items if not isinstance(i, Marker)]
    assert kinds == ["Batch", "Truncate", "Batch"]
    assert list(final(entries, "public.item")) == [2]


def test_a_bulk_statement_is_recorded_in_one_write_and_leaves_a_plan_that_single_rows_can_bear(
    plain_database: Database,
) -> None:
    database = plain_database
    database.execute("create table item (id int primary key, name text)")
    prepared(database)
    with database.connect() as connection:
        connection.execute("insert into item select g, 'x' from generate_series(1, 20000) g")
        connection.execute("analyze item")
        connection.execute("select pg_stat_reset_single_table_counters('item'::regclass)")
        before = time.monotonic()
        for key in range(100):
            connection.execute("update item set name = 'y' where id = %s", [key])
        took = time.monotonic() - before
        assert connection.execute("select pg_stat_force_next_flush()").rowcount == 1
    scans = database.value("select seq_scan from pg_stat_user_tables where relname = 'item'")
    assert scans == 0, f"100 updates took {took:.2f} s"
    assert database.value(f"select count(distinct txid) from {EVENTS} where operation = 'INSERT'") == 1


def test_polling_by_number_would_lose_what_the_horizon_does_not(plain_database: Database) -> None:
    """The naive poller beside the stream, with a transaction that draws its number early and commits late."""
    database = plain_database
    database.execute("create table item (id int primary key, name text)")
    found, tables, place = prepared(database)
    late = database.connect(autocommit=False)
    late.execute("insert into item values (1, 'late')")
    database.execute("insert into item values (2, 'early')")
    naive = [row[0] for row in database.execute(f"select number from {EVENTS} order by number")]
    with reading(found, tables, place) as reader:
        eventually(lambda: any(e.place for e in reader.entries))
        assert keys_of(reader.entries) == []  # the horizon has not come to either
        late.commit()
        late.close()
        naive += [r[0] for r in database.execute(f"select number from {EVENTS} where number > %s", max(naive))]
        entries = until(reader, through(database))
    assert sorted(keys_of(entries)) == [1, 2]
    assert naive == [2]


def test_a_key_written_across_the_horizon_keeps_its_newest_row(plain_database: Database) -> None:
    """One transaction got its id early and wrote the key last; a third keeps the horizon between their ids."""
    database = plain_database
    database.execute("create table item (id int primary key, name text); create table other (id int primary key)")
    found, tables, place = prepared(database)
    database.execute("insert into item values (1, 'first')")
    early, between = database.connect(autocommit=False), database.connect(autocommit=False)
    early.execute("select pg_current_xact_id()")
    between.execute("select pg_current_xact_id()")
    database.execute("update item set name = 'older' where id = 1")
    early.execute("update item set name = 'newest' where id = 1")
    early.commit()
    with reading(found, tables, place) as reader:
        eventually(lambda: len(keys_of(reader.entries)) == 2)
        assert max(e.through for e in reader.entries) <= 2, "number 2 is yet to come, though 3 came"
        between.commit()
        entries = until(reader, through(database))
    early.close()
    between.close()
    names = [r["name"] for e in entries for i in e.items if isinstance(i, Batch) for r in i.data().to_pylist()]
    assert names == ["first", "newest", "older"]
    assert final(entries, "public.item")[1]["name"] == "newest"


@pytest.mark.parametrize(
    "ddl",
    [
        "alter table item rename column id to key",
        "alter table item rename to article",
        "alter table item set schema elsewhere",
        "alter table item drop constraint item_pkey; alter table item drop column id",
        "alter table item alter id type text using 'k' || id",
        "alter table item drop column name",
        "alter table item add column more int[] default '{1}'",
    ],
)
def test_no_alter_table_makes_the_statements_of_users_fail(plain_database: Database, ddl: str) -> None:
    database = plain_database
    database.execute("create schema elsewhere; create table item (id int primary key, name text, spare int)")
    prepared(database)
    name = "elsewhere.item" if "schema" in ddl else "article" if "article" in ddl else "item"
    with database.connect() as connection:  # one session, so that the functions' plans are old ones
        connection.execute("insert into item values (1, 'a', 1); update item set spare = 2; delete from item")
        connection.execute("insert into item values (2, 'b', 1)")
        connection.execute(ddl.encode())
        connection.execute(f"update {name} set spare = 3".encode())
        connection.execute(f"delete from {name}".encode())
    last = database.value(f"select operation from {EVENTS} order by number desc limit 1")
    assert last == ("RESHAPED" if "key" in ddl or ("id" in ddl and "type" not in ddl) or name != "item" else "DELETE")


def test_writers_need_no_right_on_the_events(plain_database: Database) -> None:
    database = plain_database
    database.execute("create table item (id int primary key, name text)")
    prepared(database)
    database.execute("create role writer_only; grant select, insert, update, delete on item to writer_only")
    with database.connect() as connection:
        connection.execute("set role writer_only")
        connection.execute("create temp table pg_attribute (x int); set search_path = pg_temp, public")
        connection.execute("insert into public.item values (1, 'a')")
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            connection.execute(f"select * from {EVENTS}".encode())
    assert database.value(f"select count(*) from {EVENTS}") == 1
    database.execute("drop owned by writer_only; drop role writer_only")


def test_partitions_are_one_table_whichever_of_them_a_statement_names(plain_database: Database) -> None:
    database = plain_database
    database.execute("""
        create table item (id int, region text, name text, primary key (id, region)) partition by list (region);
        create table item_eu partition of item for values in ('eu');
        create table item_us partition of item for values in ('us');
    """)
    found, tables, place = prepared(database)
    database.execute("insert into item values (1, 'eu', 'a'), (2, 'us', 'b')")
    database.execute("insert into item_eu values (3, 'eu', 'c'); update item_us set name = 'd'")
    database.execute("update item set region = 'us' where id = 1")
    with reading(found, tables, place) as reader:
        entries = until(reader, through(database))
    assert [t.qualified for t in tables] == ["public.item"]
    rows = {key: (row["region"], row["name"]) for key, row in final(entries, "public.item").items()}
    assert rows[2] == ("us", "d")
    assert rows[3] == ("eu", "c")


def test_truncating_a_partition_has_the_table_read_again_instead_of_emptied(plain_database: Database) -> None:
    database = plain_database
    database.execute("""
        create table item (id int, region text, primary key (id, region)) partition by list (region);
        create table item_eu partition of item for values in ('eu');
        create table item_us partition of item for values in ('us');
    """)
    found, tables, place = prepared(database)
    database.execute("insert into item values (1, 'eu'), (2, 'us')")
    database.execute("truncate item_eu")
    with reading(found, tables, place) as reader:
        entries = until(reader, through(database))
    items = [i for e in entries for i in e.items]
    assert not [i for i in items if isinstance(i, Truncate)]
    assert [i.table for i in items if isinstance(i, Marker) and i.kind == "reading"] == ["public.item"]


def test_rows_of_inheritance_children_are_not_taken_for_the_parents(plain_database: Database) -> None:
    database = plain_database
    database.execute("create table item (id int primary key, name text); create table child () inherits (item)")
    found = source(database, monitored_tables=["public.item"])
    found.prepare(found.tables(), print)
    place = found.attach(found.identify(), 0, print)
    database.execute("insert into item values (1, 'a'); insert into child values (2, 'b'); update item set name = 'c'")
    with reading(found, found.tables(), place) as reader:
        entries = until(reader, through(database))
    assert {key: row["name"] for key, row in final(entries, "public.item").items()} == {1: "c"}


def test_events_are_purged_only_when_every_reader_has_them_and_a_reader_that_lacks_some_is_in_a_gap(
    plain_database: Database,
) -> None:
    database = plain_database
    database.execute("create table item (id int primary key)")
    found, _, place = prepared(database)
    slow = source(database, reader="slow")
    slow.attach(slow.identify(), 0, print)
    database.execute("insert into item values (1)")
    past = int(database.value("select pg_current_xact_id()::text::int8"))
    database.execute("update syncline_triggers.sync_readers set place = %s::text::xid8 where name = 'syncline'", past)
    assert database.value("select syncline_triggers.purge_events('0 s')") == 0
    assert database.value("select syncline_triggers.forget_readers('1 day')") == 0
    database.execute(
        "update syncline_triggers.sync_readers set seen_at = now() - interval '8 days' where name = 'slow'"
    )
    assert database.value("select syncline_triggers.forget_readers()") == 1
    assert database.value("select syncline_triggers.purge_events()") == 0, "it is younger than an hour"
    assert database.value("select syncline_triggers.purge_events('0 s')") == 1
    assert found.attach(found.identify(), past, print) == past
    with pytest.raises(Gap, match="were purged"):
        slow.attach(slow.identify(), place, print)


def test_two_engines_do_not_share_a_reader(plain_database: Database) -> None:
    plain_database.execute("create table item (id int primary key)")
    found, tables, place = prepared(plain_database)
    with reading(found, tables, place) as reader:
        eventually(lambda: reader.entries)
        assert found.reader() == place
        with pytest.raises(Unavailable, match="read as syncline already") as refused:
            found.attach(found.identify(), place, print)
        assert refused.value.code == "SL-SLOT-IN-USE"


def test_doctor_says_what_keeps_a_table_from_being_captured(plain_database: Database) -> None:
    database = plain_database
    database.execute("create table keyless (id int); create table item (id int primary key)")
    found = source(database)
    codes = {(f.code, f.severity, f.subject) for f in found.preflight()}
    assert ("SL-IDENTITY", "error", "public.keyless") in codes
    assert ("SL-TRIGGER-MISSING", "ok", "public.item") in codes
    assert not [f for f in found.preflight() if f.code == "SL-WAL-LEVEL"]
    with pytest.raises(Misconfigured, match="Nothing is installed"):
        found.attach(found.identify(), 0, print)
    by_others = source(database, install=False)
    codes = {(f.code, f.severity, f.subject) for f in by_others.preflight()}
    assert ("SL-TRIGGERS", "error", "schema syncline_triggers") in codes
    found.prepare([t for t in found.tables() if t.name == "item"], print)
    database.execute("alter table item disable trigger syncline_update")
    (disabled,) = [f for f in found.preflight() if f.code == "SL-TRIGGER-DISABLED"]
    assert disabled.subject == "public.item"
    database.execute(disabled.remedy.partition(";")[0])
    assert not [f for f in found.preflight() if f.code == "SL-TRIGGER-DISABLED"]


def test_a_role_that_only_reads_is_served_by_a_script_that_somebody_else_runs(plain_database: Database) -> None:
    database = plain_database
    database.execute("create table item (id int primary key, name text)")
    database.execute("create role only_reads login; grant select on item to only_reads")
    try:
        dsn = database.dsn.replace("postgres@", "only_reads@")
        found = TriggerSource(TriggerSettings(dsn=dsn, install=False, poll_s=0.02, heartbeat_s=0.1), "syncline")  # type: ignore[arg-type]
        assert [f.code for f in found.preflight() if f.severity == "error"] == ["SL-TRIGGERS", "SL-TRIGGER-MISSING"]
        with pytest.raises(Misconfigured, match="may not install"):
            found.install()
        database.execute(found.script())
        database.execute(found.script())
        assert [f.code for f in found.preflight() if f.severity == "error"] == []
        tables = found.described(found.tables())
        with reading(found, tables, found.attach(found.identify(), 0, print)) as reader:
            database.execute("insert into item values (1, 'a')")
            entries = until(reader, through(database))
            eventually(lambda: database.value("select count(*) from syncline_triggers.sync_readers") == 1)
        assert keys_of(entries) == [1]
        assert found.installed()["tables"] == {"public.item": "captured"}
    finally:
        database.execute("drop owned by only_reads; drop role only_reads")


def test_triggers_are_removed_with_or_without_their_events(plain_database: Database) -> None:
    database = plain_database
    database.execute("create table item (id int primary key); create table other (id int primary key)")
    found, _, _ = prepared(database)
    database.execute("insert into item values (1)")
    assert found.remove(everything=False) == 2
    database.execute("insert into item values (2)")
    assert database.value(f"select count(*) from {EVENTS}") == 1
    assert found.installed()["tables"]["public.item"] == "missing on item"
    assert found.install() == ["public.item", "public.other"]
    found.remove(everything=True)
    database.execute("insert into item values (3)")
    assert found.installed() == {"exists": False}
