"""How tables look at a PostgreSQL target, and which existing ones are taken over."""

from __future__ import annotations

from decimal import Decimal

import msgspec
import psycopg
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from pg_target import mapped, opened, table_of
from psycopg import sql

from servers import Database
from syncline.change import Column, TableSchema
from syncline.errors import Misconfigured, Rejected
from syncline.stores.postgres.sql import quote
from syncline.testing.store_suite import ITEM, PAIR, Rows, contents, work

_COLUMNS = (
    "select a.attname::text, format_type(a.atttypid, a.atttypmod) from pg_attribute a"
    " where a.attrelid = %s::regclass and a.attnum > 0 and not a.attisdropped order by a.attnum"
)

_TYPES = "create type mood as enum ('sad', 'ok'); create domain email as varchar(20) check (value like '%@%')"


def columns_of(database: Database, table: str) -> dict[str, str]:
    return dict(database.execute(_COLUMNS, table))


# ------------------------------------------------------------------------------------------------- made by us


def test_tables_keep_their_names_and_get_one_more_column(database: Database) -> None:
    with opened(database, ITEM, PAIR):
        assert columns_of(database, "public.item") == {
            "id": "bigint",
            "name": "text",
            "amount": "numeric(12,2)",
            "_syncline_version": "bigint",
        }
        assert columns_of(database, "shop.pair") == {
            "Region": "text",
            "version": "integer",
            "code": "uuid",
            "note": "text",
            "_syncline_version": "bigint",
        }
        found = database.execute(
            "select conrelid::regclass::text, pg_get_constraintdef(oid) from pg_constraint"
            " where conrelid in ('item'::regclass, 'shop.pair'::regclass) and contype <> 'n' order by 1"
        )
        assert found == [("item", "PRIMARY KEY (id)"), ("shop.pair", 'PRIMARY KEY ("Region", code)')]
        others = "select relname::text from pg_class c where relnamespace = 'public'::regnamespace and relkind = 'r'"
        assert database.execute(others) == [("item",)]


def test_types_of_the_source_are_kept_where_the_server_knows_them(database: Database) -> None:
    database.execute(
        "create type mood as enum ('sad', 'ok'); create domain email as varchar(20) check (value like '%@%')"
    )
    schema = table_of(
        "kinds",
        Column("mood", "text", "mood"),
        Column("email", "text", "email"),
        Column("word", "text", "character varying(5)"),
        Column("code", "text", "character(3)"),
        Column("flags", "text", "bit(3)"),
        Column("tags", "text", "text[]"),
        Column("grid", "text", "numeric(6,2)[]"),
        Column("span", "text", "int4range"),
        Column("took", "text", "interval"),
        Column("any", "text", "numeric"),
        Column("doc", "json", "jsonb"),
        Column("raw", "json", "json"),
        Column("at", "timestamp", "timestamp(3) without time zone"),
        Column("place", "text", "geometry(Point,4326)"),
        Column("cash", "text", "money"),
        Column("name", "text", "regclass"),
        Column("tx", "int8", "xid"),
        Column("number", "int8", "oid"),
    )
    values = [
        *("sad", "a@b", "Grüße", "ab ", "101", '{a,"b c",NULL}', "{{1.50,2.00},{NULL,0.00}}", "[1,5)"),
        *("1 mon 02:00:00", "NaN", '{"n": 12345678901234567890, "x": 1.10}', '{"a":1,  "a":2}', 1_000),
        *("0101", "$1.00", "pg_class", 2**32 - 1, 2**32 - 1),
    ]
    kinds = [
        *("mood", "email", "character varying(5)", "character(3)", "bit(3)", "text[]", "numeric(6,2)[]"),
        *("int4range", "interval", "numeric", "jsonb", "json", "timestamp(3) without time zone"),
        *("text", "text", "text", "bigint", "oid"),
    ]
    with opened(database, schema) as store:
        found = columns_of(database, "kinds")
        assert [found[c.name] for c in schema.columns[1:]] == kinds
        store.apply(work(Rows(schema).upsert(5, 1, *values).upsert(5, 2, *[None] * len(values))))
        assert contents(store, schema) == {1: (*values, 5), 2: (*[None] * len(values), 5)}
        assert database.value("select tags[2] || upper(span) || (doc->>'n') from kinds") == "b c512345678901234567890"


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        ("mood", "angry"),
        ("character varying(5)", "longer than five"),
        ("character(3)", "abcd"),
        ("bit(3)", "1011"),
        ("varchar(2)[]", "{abc}"),
        ("int4range", "[5,1)"),
        ("email", "nobody"),
        ("email", "somebody@somewhere.example"),
        ("text", "a\0b"),
    ],
)
def test_a_value_that_the_servers_type_refuses_is_rejected_and_never_cut_off(
    database: Database, kind: str, value: str
) -> None:
    database.execute(
        "create type mood as enum ('sad', 'ok'); create domain email as varchar(20) check (value like '%@%')"
    )
    schema = table_of("kinds", Column("value", "text", kind))
    with opened(database, schema) as store:
        rows = Rows(schema)
        for i in range(40):
            rows.upsert(5, i, value if i in (3, 17) else None)
        with pytest.raises(Rejected) as refused:
            store.apply(work(rows))
        assert refused.value.rows == (3, 17)
        assert contents(store, schema) == {}


def test_a_key_that_the_type_refuses_has_nothing_to_delete(database: Database) -> None:
    database.execute("create type mood as enum ('sad', 'ok')")
    schema = TableSchema("public", "moods", (Column("mood", "text", "mood", key=True), Column("n", "int4", "integer")))
    with opened(database, schema) as store:
        store.apply(work(Rows(schema).upsert(5, "sad", 1).upsert(5, "ok", 2)))
        store.apply(work(Rows(schema).delete(6, "angry").delete(6, "sad")))
        assert contents(store, schema) == {"ok": (2, 5)}


def test_columns_change_their_types_with_the_source_and_keep_their_values_where_the_kind_stays(
    database: Database,
) -> None:
    before = table_of("grown", Column("word", "text", "character varying(3)"), Column("n", "int4", "integer"))
    after = table_of("grown", Column("word", "text", "character varying(9)"), Column("n", "int8", "bigint"))
    with opened(database, before) as store:
        store.apply(work(Rows(before).upsert(5, 1, "abc", 7)))
        assert store.migrate(after) == before
        assert contents(store, after) == {1: ("abc", None, 5)}
        assert columns_of(database, "grown")["word"] == "character varying(9)"


def test_a_changed_key_keeps_the_newest_row_of_each(database: Database) -> None:
    columns = (Column("a", "int4", "integer", key=True), Column("b", "text", "text"), Column("c", "text", "text"))
    first = TableSchema("public", "keyed", columns)
    second = TableSchema("public", "keyed", (columns[0], msgspec.structs.replace(columns[1], key=True), columns[2]))
    third = TableSchema(
        "public", "keyed", (msgspec.structs.replace(columns[0], key=False), second.columns[1], columns[2])
    )
    with opened(database, first) as store:
        store.apply(work(Rows(first).upsert(5, 1, "x", "old").upsert(6, 2, "x", "new").upsert(7, 3, None, "none")))
        assert store.migrate(second) == first
        assert contents(store, second) == {(1, "x"): ("old", 5), (2, "x"): ("new", 6)}
        assert store.migrate(third) == second
        assert contents(store, third) == {"x": (2, "new", 6)}
        store.apply(work(Rows(third).upsert(8, 9, "x", "newest").delete(8, "y")))
        assert contents(store, third) == {"x": (9, "newest", 8)}


def test_a_table_that_somebody_dropped_is_made_again_and_has_no_past(database: Database) -> None:
    with opened(database, ITEM) as store:
        store.apply(work(Rows().upsert(5, 1, "one", None)))
        database.execute("drop table item")
    with opened(database) as store:
        assert store.migrate(ITEM) is None
        assert contents(store) == {}


# ------------------------------------------------------------------------------------------------- adopted


def test_an_existing_table_is_adopted_and_its_rows_are_the_oldest(database: Database) -> None:
    database.execute(
        "create table item (id bigint primary key, name text, mine text default 'x');"
        "insert into item values (1, 'before', 'a'), (2, 'before', 'b'), (3, 'stale', 'c')"
    )
    with opened(database) as store:
        assert store.migrate(ITEM) is None
        store.apply(work(Rows().upsert(5, 1, "now", Decimal(1)).partial(5, 2, None, Decimal(2), unchanged=["name"])))
        assert contents(store) == {
            1: ("now", Decimal("1.00"), 5),
            2: ("before", Decimal("2.00"), 5),
            3: ("stale", None, 0),
        }
        store.apply(work(Rows().upsert(5, 4, "four", None), truncated=4))
        assert sorted(contents(store)) == [1, 2, 4]
    assert database.execute("select id, mine from item order by id") == [(1, "a"), (2, "b"), (4, "x")]


def test_a_load_that_ends_with_its_rows_keeps_what_is_not_ours_in_them_and_what_refers_to_them(
    database: Database,
) -> None:
    database.execute(
        "create table item (id bigint primary key, name text, mine text default 'x');"
        "insert into item values (1, 'before', 'a'), (2, 'stale', 'b');"
        "create table reference (item bigint references item); insert into reference values (1)"
    )
    with opened(database) as store:
        store.migrate(ITEM)
        for version in (5, 7):
            store.apply(work(Rows().upsert(version, 1, f"now {version}", None), truncated=version - 1))
            assert contents(store) == {1: (f"now {version}", None, version)}
    assert database.execute("select id, mine from item") == [(1, "a")]


def test_wider_types_are_adopted_and_read_back_in_their_own(database: Database) -> None:
    database.execute(
        "create domain price as numeric(20,4);"
        "create table wide (id bigint primary key, n int8, f float8, amount price, word varchar, doc text,"
        " at timestamptz)"
    )
    schema = table_of(
        "wide",
        Column("n", "int2", "smallint"),
        Column("f", "float4", "real"),
        Column("amount", "numeric(12,2)", "numeric(12,2)"),
        Column("word", "text", "character varying(7)"),
        Column("doc", "json", "jsonb"),
        Column("at", "timestamptz", "timestamp(3) with time zone"),
    )
    row = (-7, 0.10000000149011612, Decimal("1.25"), "word", '{"a": 1}', 1_000)
    with opened(database, schema) as store:
        store.apply(work(Rows(schema).upsert(5, 1, *row).upsert(5, 2, *[None] * 6).delete(5, 3)))
        assert contents(store, schema) == {1: (*row, 5), 2: (*[None] * 6, 5)}


@pytest.mark.parametrize(
    ("statement", "says"),
    [
        ("create table item (id bigint primary key, amount double precision)", "Column amount"),
        ("create table item (id bigint primary key, amount numeric(12,1))", "Column amount"),
        ("create table item (id bigint primary key, amount numeric(10,2))", "Column amount"),
        ("create table item (id bigint primary key, name varchar(9))", "Column name"),
        ("create table item (id text primary key)", "Column id"),
        ("create table item (name text)", "key column id"),
        ("create table item (id bigint, name text)", "unique index on its key"),
        ("create table item (id bigint primary key deferrable)", "unique index on its key"),
        ("create table item (id bigint, n int default 0, primary key (id, n))", "unique index on its key"),
        ("create table item (id bigint primary key, mine integer not null)", "Column mine"),
        ("create table item (id bigint primary key, _syncline_version text)", "_syncline_version"),
        ("create table item (id bigint primary key, name text generated always as ('x') stored)", "is generated"),
        ("create view item as select 1 as id", "is a view"),
    ],
)
def test_a_table_that_does_not_fit_is_refused_by_name(database: Database, statement: str, says: str) -> None:
    database.execute(statement)
    with opened(database) as store:
        with pytest.raises(Misconfigured, match=says):
            store.migrate(ITEM)
        store.migrate(PAIR)


def test_generated_and_identity_columns_of_an_adopted_table_fill_themselves(database: Database) -> None:
    database.execute(
        "create table item (id bigint generated always as identity primary key, name text,"
        " shout text generated always as (upper(name)) stored, number int generated always as identity)"
    )
    with opened(database, ITEM) as store:
        store.apply(work(Rows().upsert(5, 70, "one", None)))
        store.apply(work(Rows().upsert(6, 70, "two", None)))
    assert database.execute("select id, name, shout, number from item") == [(70, "two", "TWO", 1)]


def test_a_partitioned_table_is_adopted(database: Database) -> None:
    database.execute(
        "create table item (id bigint primary key, name text) partition by range (id);"
        "create table low partition of item for values from (0) to (10);"
        "create table high partition of item for values from (10) to (100)"
    )
    with opened(database, ITEM) as store:
        store.apply(work(Rows().upsert(5, 1, "low", None).upsert(5, 11, "high", None)))
        store.apply(work(Rows().delete(6, 1).upsert(6, 12, "more", None)))
        with pytest.raises(Rejected) as refused:
            store.apply(work(Rows().upsert(7, 500, "nowhere", None).upsert(7, 13, "fits", None)))
        assert refused.value.rows == (0,)
        store.apply(work(Rows().upsert(8, 14, "behind", None), truncated=6))
        assert contents(store) == {14: ("behind", None, 8)}


def test_a_column_that_only_the_owner_may_add_is_asked_for_with_its_statement(database: Database) -> None:
    database.execute(
        "create table item (id bigint primary key, name text, amount numeric(12,2));"
        'create role adder login; grant create on database "' + database.name + '" to adder;'
        "grant select, insert, update, delete on item to adder"
    )
    dsn = database.dsn.replace("postgres@", "adder@")
    with opened(database, dsn=dsn) as store:
        with pytest.raises(Misconfigured, match="only its owner may add") as refused:
            store.migrate(ITEM)
        statement = refused.value.remedy.removeprefix("As its owner: ")
        database.execute(statement)
        store.migrate(ITEM)
        store.apply(work(Rows().upsert(5, 1, "one", None)))
        assert contents(store) == {1: ("one", None, 5)}
    database.execute("drop owned by adder; drop role adder")


# ------------------------------------------------------------------------------------------------- mapped


def test_rows_stand_where_the_mapping_says(database: Database) -> None:
    schema = mapped(ITEM, "copy", "things")
    with opened(database, schema) as store:
        store.apply(work(Rows(schema).upsert(5, 1, "one", None)))
        assert contents(store, schema) == {1: ("one", None, 5)}
    assert database.execute("select id, name from copy.things") == [(1, "one")]
    assert database.value("select to_regclass('public.item')") is None


def test_another_place_takes_away_what_stood_at_the_former_one(database: Database) -> None:
    here, there = mapped(ITEM, "copy", "things"), mapped(ITEM, "copy", "others")
    database.execute(
        "create schema copy; create table copy.others (id bigint primary key, name text, amount numeric(12,2));"
        "insert into copy.others values (9, 'mine', null)"
    )
    with opened(database, here) as store:
        store.apply(work(Rows(here).upsert(5, 1, "one", None).delete(5, 2)))
        assert store.migrate(there) == here
        assert database.value("select to_regclass('copy.things')") is None
        store.apply(work(Rows(there).upsert(4, 2, "two", None)))
        assert contents(store, there) == {2: ("two", None, 4), 9: ("mine", None, 0)}
        # What was adopted keeps what we did not write.
        assert store.migrate(here) == there
        assert database.execute("select * from copy.others") == [(9, "mine", None)]


def test_a_view_on_the_former_place_is_named_before_anything_is_dropped(database: Database) -> None:
    here = mapped(ITEM, "copy", "things")
    with opened(database, here) as store:
        store.apply(work(Rows(here).upsert(5, 1, "one", None)))
        database.execute("create view seen as select name from copy.things")
        with pytest.raises(Misconfigured, match="depend on it"):
            store.migrate(ITEM)
        assert database.execute("select * from seen") == [("one",)]


def test_two_tables_or_sources_cannot_fill_one_place(database: Database) -> None:
    with opened(database, ITEM) as store:
        with pytest.raises(Misconfigured, match=r"shop.pair and public.item|public.item and shop.pair"):
            store.migrate(mapped(PAIR, "public", "item"))
        with opened(database, source="people") as other, pytest.raises(Misconfigured, match="filled by source orders"):
            other.migrate(ITEM)


def test_a_soft_delete_keeps_the_row_and_hides_it_from_the_copy(database: Database) -> None:
    schema = mapped(ITEM, "public", "item", "deleted_at")
    with opened(database, schema) as store:
        store.apply(work(Rows(schema).upsert(5, 1, "one", None).upsert(5, 2, "two", None).upsert(5, 3, "three", None)))
        gone = work(
            Rows(schema).delete(6, 1).partial(6, 4, None, Decimal(4), unchanged=["name"], origin=(2,)).delete(6, 2)
        )
        store.apply(gone)
        when = database.execute("select id, deleted_at from item where deleted_at is not null order by id")
        assert [key for key, _ in when] == [1, 2]
        store.apply(gone)
        assert database.execute("select id, deleted_at from item where deleted_at is not null order by id") == when
        assert contents(store, schema) == {3: ("three", None, 5), 4: ("two", Decimal("4.00"), 6)}
        store.apply(work(Rows(schema).upsert(5, 1, "late", None).partial(7, 2, None, None, unchanged=["name"])))
        assert sorted(contents(store, schema)) == [3, 4]
        store.apply(work(Rows(schema).upsert(8, 1, "back", None)))
        assert contents(store, schema)[1] == ("back", None, 8)
        store.apply(work(Rows(schema).upsert(9, 5, "five", None), truncated=8))
        assert list(contents(store, schema)) == [5]
        assert database.value("select count(*) from item where deleted_at is not null") == 4
        # And back to hard deletes: marked rows go, live ones stay.
        assert store.migrate(ITEM) == schema
        assert contents(store) == {5: ("five", None, 9)}
        assert "deleted_at" not in columns_of(database, "item")


# ------------------------------------------------------------------------------------------------- names


def test_names_that_postgresql_would_cut_or_that_are_ours_are_refused(database: Database) -> None:
    with opened(database) as store:
        for schema, says in (
            (msgspec.structs.replace(ITEM, name="x" * 64), "can't be a name"),
            (table_of("item", Column("ü" * 32, "text", "text")), "can't be a name"),
            (table_of("item", Column("_syncline_version", "int8", "bigint")), "itself a copy"),
            (mapped(ITEM, "syncline_target", "item"), "no place"),
            (mapped(ITEM, "pg_catalog", "item"), "no place"),
            (mapped(ITEM, "public", "item", "name"), "filled otherwise"),
        ):
            with pytest.raises(Misconfigured, match=says):
                store.migrate(schema)
        store.migrate(msgspec.structs.replace(ITEM, name="x" * 63))


_SIGNS = st.sampled_from("abz\"'%$\\;.()[]{}-/* _:äß€😀\0\n\t")
_NASTY = st.text(_SIGNS | st.characters(), min_size=1, max_size=24)
_WORDS = st.sampled_from(["select", "i", "t", "c0", "v", "unnest", "excluded", "user", "%s", "$1", "a''b", 'a"b'])
_NAMES = _NASTY | _WORDS


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(table=_NAMES, column=_NAMES, key=_NAMES, namespace=_NAMES)
def test_hostile_names_change_nothing_but_their_own_table(
    database: Database, table: str, column: str, key: str, namespace: str
) -> None:
    database.execute("create table if not exists bystander as select 1 as n")
    columns = (Column(key, "text", "text", key=True), Column(column, "text", f"text; {column}"))
    schema = TableSchema(namespace, table, columns)
    assume(key != column)
    with opened(database) as store:
        try:
            store.migrate(schema)
        except Misconfigured:
            return
        store.apply(work(Rows(schema).upsert(5, "k", column).upsert(5, "l", table).upsert(5, "m", "x")))
        moved = Rows(schema).delete(6, "k").partial(6, "n", None, unchanged=[column], origin=("l",)).delete(6, "l")
        store.apply(work(moved))
        assert contents(store, schema) == {"n": (table, 6), "m": ("x", 5)}
        store.purge("orders", 7)
        store.apply(work(Rows(schema), truncated=5))
        assert list(contents(store, schema)) == ["n"]
    with psycopg.connect(database.dsn) as connection:
        place = sql.Identifier(namespace, table)
        query = sql.SQL("select {}, {} from {}").format(sql.Identifier(key), sql.Identifier(column), place)
        assert connection.execute(query).fetchall() == [("n", table)]
        connection.execute(sql.SQL("drop table {}").format(place))
        connection.execute("delete from syncline_target.tables")
    assert database.execute("select n from bystander") == [(1,)]


@pytest.mark.slow
def test_ten_thousand_names_are_quoted_as_the_server_reads_them(database: Database) -> None:
    with database.connect() as connection:

        @settings(max_examples=10_000, suppress_health_check=[HealthCheck.too_slow], database=None)
        @given(name=st.text(_SIGNS | st.characters(), max_size=80) | _NAMES)
        def check(name: str) -> None:
            try:
                quoted = quote(name)
            except Misconfigured:
                assert not name or len(name.encode(errors="replace")) > 63 or not name.isprintable()
                return
            found = connection.execute(f"select 1 as {quoted}".encode()).description
            assert found is not None
            assert found[0].name == name

        check()
