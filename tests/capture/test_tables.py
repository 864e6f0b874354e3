from __future__ import annotations

import threading
from typing import Any

import psycopg
import pytest

from servers import Database
from syncline.capture.identity import identity_problem, key_columns, usable_identity
from syncline.capture.patterns import Candidate, candidates, matching
from syncline.capture.schema import table_schema
from syncline.capture.tables import TableInfo, matching_tables, table_info, tables_info
from syncline.errors import Gap, Misconfigured
from syncline.patterns import parse_pattern


def relation(namespace: str, name: str) -> Candidate:
    return Candidate(1, namespace, name, "r", "p", ())


def names(tables: list[TableInfo]) -> list[str]:
    return [table.qualified for table in tables]


def only(database: Database, name: str) -> TableInfo:
    with database.connect() as connection:
        (info,) = matching_tables(connection, [name])
        return info


# ------------------------------------------------------------------------------------------------------- patterns


@pytest.mark.parametrize(
    ("pattern", "namespace", "name", "expected"),
    [
        ("shop.person", "shop", "person", True),
        ("shop.person", "shop", "persons", False),
        ("person", "public", "person", True),
        ("person", "shop", "person", False),
        ("*", "public", "anything", True),
        ("*", "shop", "anything", False),
        ("*.*", "shop", "anything", True),
        ("sh*.p?rson", "shop", "person", True),
        ("shop.p?rson", "shop", "prson", False),
        ("shop.Person", "shop", "person", False),
        ('shop."a.b"', "shop", "a.b", True),
        ('"sh.op"."say ""hi"""', "sh.op", 'say "hi"', True),
        ('shop."a*"', "shop", "ab", False),
        ('shop."a*"', "shop", "a*", True),
        ('shop."a*"*', "shop", "a*b", True),
        ("shop.a+b", "shop", "aab", False),
        ("shop.new\nline*", "shop", "new\nline\n2", True),
    ],
)
def test_a_pattern_matches_whole_names_as_written(pattern: str, namespace: str, name: str, expected: bool) -> None:
    assert parse_pattern(pattern).matches(relation(namespace, name)) is expected


@pytest.mark.parametrize("pattern", ["", ".", "a.", ".a", "a.b.c", '"a', 'a"', '""', 'shop.""'])
def test_a_pattern_that_cannot_be_read_is_refused_with_the_way_to_write_it(pattern: str) -> None:
    with pytest.raises(Misconfigured, match="not a table name or pattern") as raised:
        parse_pattern(pattern)
    assert "schema.table" in raised.value.remedy


@pytest.mark.parametrize(("pattern", "exact"), [("a.b", True), ("a.*", False), ('a."*"', True), ("a?", False)])
def test_only_unquoted_wildcards_make_a_pattern_inexact(pattern: str, exact: bool) -> None:
    assert parse_pattern(pattern).exact is exact


# ------------------------------------------------------------------------------------------------------ selection


def test_tables_are_chosen_by_pattern_less_the_excluded_and_the_forbidden_schemas(database: Database) -> None:
    database.execute(
        """
        create schema shop; create schema control; create schema "Odd.Schema";
        create table shop.person (id int primary key);
        create table shop.audit_1 (id int primary key);
        create table public.pet (id int primary key);
        create table control.sync_status (id int primary key);
        create table "Odd.Schema"."a ""b"" c" (id int primary key);
        create temp table passing (id int primary key)
        """
    )
    with database.connect() as connection:
        chosen = matching_tables(connection, ["*.*"], ["shop.audit_*"], never=["control"])
        assert names(chosen) == ['Odd.Schema.a "b" c', "public.pet", "shop.person"]
        assert names(matching_tables(connection, ["pet", "pet", "shop.*"])) == [
            "public.pet",
            "shop.audit_1",
            "shop.person",
        ]
        assert names(matching_tables(connection, ['"Odd.Schema"."a ""b"" c"'])) == ['Odd.Schema.a "b" c']
        assert matching_tables(connection, ["control.*"], never=["control"]) == []
        assert matching_tables(connection, ["pg_catalog.pg_class", "information_schema.*"]) == []


def test_what_cannot_be_captured_is_met_and_left_out_with_its_reason(database: Database) -> None:
    database.execute(
        """
        create extension postgres_fdw;
        create server other foreign data wrapper postgres_fdw;
        create foreign table far (id int) server other;
        create table near (id int primary key);
        create unlogged table quick (id int primary key);
        create view seen as select * from near;
        create materialized view kept as select * from near
        """
    )
    with database.connect() as connection:
        found = matching(candidates(connection), ["*"], [])
    assert [r.qualified for r in found.chosen] == ["public.near"]
    reasons = {r.name: reason for r, reason in found.refused}
    assert set(reasons) == {"far", "quick", "seen", "kept"}
    assert "unlogged" in reasons["quick"]
    assert "foreign" in reasons["far"]


PARTITIONS = """
create schema parts;
create table public.orders (id int, day int, primary key (id, day)) partition by range (day);
create table parts.one partition of public.orders for values from (0) to (10);
create table parts.two partition of public.orders for values from (10) to (20) partition by range (day);
create table parts.two_a partition of parts.two for values from (10) to (15)
"""


def test_a_partitioned_table_stands_for_its_partitions(database: Database) -> None:
    database.execute(PARTITIONS)
    with database.connect() as connection:
        for patterns in (["*.*"], ["orders"], ["orders", "parts.one", "parts.two_a"]):
            (info,) = matching_tables(connection, patterns)
            assert (info.qualified, info.relkind) == ("public.orders", "p")
            assert [leaf.name for leaf in info.partition_leaves] == ["one", "two_a"]


def test_a_partition_is_chosen_alone_only_by_its_name(database: Database) -> None:
    database.execute(PARTITIONS)
    with database.connect() as connection:
        assert names(matching_tables(connection, ["parts.two_a"])) == ["parts.two_a"]
        assert names(matching_tables(connection, ["parts.two", "parts.two_a"])) == ["parts.two"]
        found = matching(candidates(connection), ["parts.*"], [])
    assert found.chosen == ()
    assert {reason for _, reason in found.refused} == {
        "it is a partition of public.orders; name that table, or this one without wildcards"
    }


# ---------------------------------------------------------------------------------------------------- description


def test_columns_are_described_through_domains_and_without_the_dropped(database: Database) -> None:
    database.execute(
        """
        create domain amount as numeric(10,2);
        create domain price as amount check (value > 0);
        create table t (gone text, id bigint primary key, cost price, tags text[], name varchar(40) not null,
                        twice bigint generated always as (id * 2) stored);
        alter table t drop column gone;
        insert into t (id, name) values (1, 'a');
        alter table t add column later int default 5
        """
    )
    info = only(database, "t")
    assert [(c.name, c.type_name, c.base_type_oid) for c in info.columns] == [
        ("id", "bigint", 20),
        ("cost", "price", 1700),
        ("tags", "text[]", 1009),
        ("name", "character varying(40)", 1043),
        ("twice", "bigint", 20),
        ("later", "integer", 23),
    ]
    by_name = {c.name: c for c in info.columns}
    assert by_name["cost"].base_typmod == ((10 << 16) | 2) + 4
    assert by_name["cost"].type_oid != 1700
    assert (by_name["name"].not_null, by_name["cost"].not_null) == (True, False)
    assert (by_name["twice"].generated, by_name["id"].generated) == ("s", "")
    assert (by_name["later"].has_missing_value, by_name["id"].has_missing_value) == (True, False)
    assert (by_name["tags"].toastable, by_name["id"].toastable) == (True, False)


def test_the_schema_has_the_published_columns_their_types_and_the_key(database: Database) -> None:
    database.execute(
        """
        create domain amount as numeric(10,2);
        create table t (name text, b int, a int, cost amount, twice int generated always as (a * 2) stored,
                        primary key (a, b))
        """
    )
    info = only(database, "t")
    schema = table_schema(info)
    assert schema.qualified == "public.t"
    assert [(c.name, c.type, c.source_type, c.key) for c in schema.columns] == [
        ("name", "text", "text", False),
        ("b", "int4", "integer", True),
        ("a", "int4", "integer", True),
        ("cost", "numeric(10,2)", "amount", False),
    ]
    assert [c.name for c in table_schema(info, ["a", "twice", "b"]).columns] == ["a", "twice", "b"]


def test_a_column_that_the_catalogue_no_longer_has_is_a_gap(database: Database) -> None:
    database.execute("create table t (id int primary key)")
    with pytest.raises(Gap, match="Column old of table public") as raised:
        table_schema(only(database, "t"), ["id", "old"])
    assert raised.value.code == "SL-SCHEMA-DRIFT"


def test_columns_without_the_whole_key_are_refused(database: Database) -> None:
    database.execute("create table t (a int, b int, c int, primary key (a, b)); create table bare (a int)")
    with pytest.raises(Misconfigured, match=r"without its whole key \(b\)"):
        table_schema(only(database, "t"), ["a", "c"])
    with pytest.raises(Misconfigured, match=r"it has none") as raised:
        table_schema(only(database, "bare"))
    assert "ADD PRIMARY KEY" in raised.value.remedy


def test_a_table_that_is_gone_is_nothing(database: Database) -> None:
    database.execute("create table t (id int primary key); create view v as select 1")
    with database.connect() as connection:
        oid = only(database, "t").oid
        assert table_info(connection, oid) is not None
        assert table_info(connection, database.value("select 'v'::regclass::oid::int8")) is None
        connection.execute("drop view v; drop table t")
        assert table_info(connection, oid) is None
        assert tables_info(connection, []) == []


def test_sizes_and_rows_are_estimated_with_and_without_statistics(database: Database) -> None:
    database.execute("create table t (id int primary key, note text)")
    database.execute("insert into t select i, 'note' from generate_series(1, 20000) i")
    fresh = only(database, "t")
    database.execute("analyze t")
    analyzed = only(database, "t")
    assert analyzed.estimated_rows == 20000
    assert 5000 < fresh.estimated_rows < 60000
    assert 0 < fresh.heap_bytes <= fresh.size_bytes
    database.execute(PARTITIONS + "; insert into orders select i, i % 15 from generate_series(1, 9000) i; analyze")
    orders = only(database, "orders")
    assert orders.estimated_rows == 9000
    assert orders.heap_bytes == sum(leaf.heap_bytes for leaf in orders.partition_leaves) > 0


def test_describing_a_table_never_waits_for_its_lock(database: Database) -> None:
    database.execute("create table t (id int primary key); insert into t select generate_series(1, 5000); analyze t")
    unlocked = only(database, "t")
    with database.connect(autocommit=False) as altering, database.connect() as connection:
        altering.execute("lock table t in access exclusive mode")
        found: list[Any] = []
        reading = threading.Thread(target=lambda: found.append(table_info(connection, unlocked.oid)))
        reading.start()
        reading.join(10)
        waited = reading.is_alive()
        altering.rollback()
        reading.join(10)
    assert not waited
    assert (found[0].heap_bytes, found[0].estimated_rows) == (unlocked.heap_bytes, 5000)


# ------------------------------------------------------------------------------------------------- replica identity


IDENTITIES = [
    ("create table t (id int primary key)", ("id",), None),
    ("create table t (id int primary key, x int); alter table t replica identity full", ("id",), None),
    (
        "create table t (a int not null, b int not null, x int primary key); create unique index i on t (b, a);"
        "alter table t replica identity using index i",
        ("b", "a"),
        None,
    ),
    ("create table t (id int)", (), "ALTER TABLE public.t ADD PRIMARY KEY (...);"),
    (
        "create table t (id int not null); create unique index i on t (id)",
        (),
        "ALTER TABLE public.t REPLICA IDENTITY USING INDEX i;",
    ),
    (
        "create table t (id int primary key); alter table t replica identity nothing",
        ("id",),
        "ALTER TABLE public.t REPLICA IDENTITY DEFAULT;",
    ),
    (
        "create table t (id int); alter table t replica identity full",
        (),
        "ALTER TABLE public.t ADD PRIMARY KEY (...);",
    ),
    (
        "create table t (id int primary key deferrable)",
        ("id",),
        "ALTER TABLE public.t REPLICA IDENTITY FULL;",
    ),
    (
        "create table t (id int primary key, a int not null default 7); create unique index i on t (a);"
        "alter table t replica identity using index i; drop index i",
        (),
        "ALTER TABLE public.t REPLICA IDENTITY DEFAULT;",
    ),
]


@pytest.mark.parametrize(("ddl", "key", "remedy"), IDENTITIES)
def test_each_replica_identity_gives_its_key_or_the_statement_that_mends_it(
    database: Database, ddl: str, key: tuple[str, ...], remedy: str | None
) -> None:
    database.execute(ddl)
    info = only(database, "t")
    assert key_columns(info) == key
    problem = identity_problem(info)
    assert (problem and problem[1]) == remedy
    assert (usable_identity(info) or "").endswith(remedy or "")


@pytest.mark.parametrize(
    "ddl",
    [ddl for ddl, _, remedy in IDENTITIES if remedy and "(...)" not in remedy],
)
def test_the_statement_that_mends_an_identity_does(database: Database, ddl: str) -> None:
    database.execute(ddl)
    problem = identity_problem(only(database, "t"))
    assert problem is not None
    database.execute(problem[1])
    assert usable_identity(only(database, "t")) is None
    # PostgreSQL agrees: it lets published rows be updated and deleted.
    database.execute(
        "create publication p for table t; insert into t (id) values (1); update t set id = 2; delete from t"
    )


def test_a_generated_key_column_is_refused(database: Database) -> None:
    database.execute("create table t (a int, id int generated always as (a + 1) stored primary key)")
    assert "key column id is generated" in str(usable_identity(only(database, "t")))


def test_identity_columns_are_what_the_wal_holds_of_an_old_row(database: Database) -> None:
    database.execute("create table t (id int primary key, x int, y int); alter table t replica identity full")
    assert only(database, "t").identity_columns == ("id", "x", "y")
    database.execute("alter table t replica identity nothing")
    assert only(database, "t").identity_columns == ()


def test_a_partition_with_another_identity_than_its_root_is_refused(database: Database) -> None:
    database.execute(PARTITIONS + "; alter table orders replica identity full")
    problem = identity_problem(only(database, "orders"))
    assert problem == (
        "its partition parts.one has another replica identity",
        "ALTER TABLE parts.one REPLICA IDENTITY FULL;",
    )
    database.execute("alter table parts.one replica identity full; alter table parts.two_a replica identity full")
    assert usable_identity(only(database, "orders")) is None


def test_postgresql_itself_refuses_updates_of_what_we_refuse(database: Database) -> None:
    database.execute(
        "create table t (id int primary key deferrable); create publication p for table t; insert into t values (1)"
    )
    assert usable_identity(only(database, "t")) is not None
    with pytest.raises(psycopg.errors.ObjectNotInPrerequisiteState):
        database.execute("update t set id = 2")
