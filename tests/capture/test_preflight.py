from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from servers import Database, eventually
from syncline.capture.outbox.install import install
from syncline.capture.outbox.settings import OutboxConfig
from syncline.capture.preflight import preflight, refuse
from syncline.capture.slot import ensure_publication
from syncline.capture.source import Dsn, SourceConfig, connect_replication
from syncline.capture.tables import matching_tables
from syncline.embedded import EmbeddedPostgres
from syncline.errors import Misconfigured, Unavailable
from syncline.finding import Finding


def config(database: Database, **settings: Any) -> SourceConfig:
    """A source whose slot has a name of its own, for slots belong to the whole server."""
    return SourceConfig(**({"dsn": database.dsn, "slot": f"slot_{database.name}"} | settings))


def look(database: Database, **settings: Any) -> list[Finding]:
    return preflight(config(database, **settings))


def found(findings: list[Finding], code: str, subject: str | None = None) -> list[Finding]:
    return [f for f in findings if f.code == code and subject in {None, f.subject}]


def one(findings: list[Finding], code: str, subject: str | None = None) -> Finding:
    (finding,) = found(findings, code, subject)
    return finding


def severities(findings: list[Finding]) -> set[str]:
    return {finding.severity for finding in findings}


def make_slot(database: Database, **options: Any) -> None:
    given = "".join(f", {name} => {value}" for name, value in options.items())
    database.execute(f"select pg_create_logical_replication_slot('slot_{database.name}', 'pgoutput'{given})")


# ---------------------------------------------------------------------------------------------------------- server


def test_a_source_that_is_ready_has_no_errors_and_says_what_will_be_made(database: Database) -> None:
    database.execute("create table person (id int primary key, name text); insert into person values (1, 'a')")
    findings = look(database)
    assert severities(findings) <= {"ok", "warning"}
    refuse(findings)
    for code in ("SL-SERVER-VERSION", "SL-WAL-LEVEL", "SL-REPLICATION", "SL-TABLES", "SL-PUBLICATION", "SL-SLOT"):
        assert one(findings, code).severity == "ok"
    assert "1 of 1 table(s) can be captured" in one(findings, "SL-TABLES").message
    assert database.value("select count(*) from pg_publication") == 0


def test_a_preflight_changes_nothing_and_leaves_no_connection(database: Database) -> None:
    database.execute("create table person (id int primary key)")
    look(database)
    others = "select count(*) from pg_stat_activity where application_name like 'syncline%%' and datname = %s"
    eventually(lambda: database.value(others, database.name) == 0)
    assert database.value("select count(*) from pg_replication_slots where database = %s", database.name) == 0


def test_a_database_that_takes_any_bytes_for_text_is_warned_of(postgres: EmbeddedPostgres) -> None:
    with psycopg.connect(postgres.dsn(), autocommit=True) as connection:
        connection.execute("create database raw encoding 'SQL_ASCII' lc_collate 'C' lc_ctype 'C' template template0")
        try:
            (finding,) = found(preflight(SourceConfig(dsn=postgres.dsn("raw"))), "SL-ENCODING")
        finally:
            connection.execute("drop database raw with (force)")
    assert finding.severity == "warning"
    assert "SQL_ASCII" in finding.message


def test_a_server_that_is_away_is_unavailable() -> None:
    with pytest.raises(Unavailable, match=r"127\.0\.0\.1:1/shop") as raised:
        preflight(SourceConfig(dsn="postgresql://me:hunter2@127.0.0.1:1/shop"))
    assert "hunter2" not in str(raised.value)
    assert "source.dsn" in raised.value.remedy


def test_settings_of_the_server_are_named_with_their_statements(pg_server: EmbeddedPostgres) -> None:
    with psycopg.connect(pg_server.dsn(), autocommit=True) as connection:
        for setting, value in {"wal_level": "replica", "max_replication_slots": "0", "max_wal_senders": "1"}.items():
            connection.execute(f"alter system set {setting} = {value}".encode())
    pg_server.restart()
    findings = preflight(SourceConfig(dsn=pg_server.dsn()))
    level = one(findings, "SL-WAL-LEVEL")
    assert level.severity == "error"
    assert level.remedy.startswith("ALTER SYSTEM SET wal_level = logical;")
    slots, senders = found(findings, "SL-ROOM")
    assert (slots.severity, slots.subject) == ("error", "max_replication_slots")
    assert slots.message == "0 of 0 are in use; 2 more are needed (one of them only while the initial load begins)."
    assert (senders.severity, senders.subject) == ("error", "max_wal_senders")
    with psycopg.connect(pg_server.dsn(), autocommit=True) as connection:
        for finding in (level, slots, senders):
            connection.execute(finding.remedy.partition(";")[0].encode())
    pg_server.restart()
    mended = preflight(SourceConfig(dsn=pg_server.dsn()))
    assert severities(found(mended, "SL-WAL-LEVEL") + found(mended, "SL-ROOM")) == {"ok"}


def test_a_slot_of_ours_without_room_for_a_temporary_one_is_warned_of(pg_server: EmbeddedPostgres) -> None:
    with psycopg.connect(pg_server.dsn(), autocommit=True) as connection:
        connection.execute("select pg_create_logical_replication_slot('syncline', 'pgoutput')")
        connection.execute("alter system set max_replication_slots = 1")
    pg_server.restart()
    slots = found(preflight(SourceConfig(dsn=pg_server.dsn())), "SL-ROOM")[0]
    assert (slots.severity, slots.subject) == ("warning", "max_replication_slots")
    assert "0 of 1 are free" in slots.message
    assert "max_replication_slots = 6" in slots.remedy
    assert "WHERE NOT active" in slots.remedy


def test_limits_that_lose_slots_or_fill_disks_are_warned_of(pg_server: EmbeddedPostgres) -> None:
    unlimited = one(preflight(SourceConfig(dsn=pg_server.dsn())), "SL-WAL-LIMIT")
    assert (unlimited.severity, "unlimited" in unlimited.message) == ("warning", True)
    with psycopg.connect(pg_server.dsn(), autocommit=True) as connection:
        connection.execute("alter system set max_slot_wal_keep_size = '1GB'")
        ends_idle_slots = pg_server.version >= 18  # older ones have no such limit
        if ends_idle_slots:
            connection.execute("alter system set idle_replication_slot_timeout = '90s'")
        connection.execute("select pg_reload_conf()")

    def limits(*codes: str) -> list[tuple[str, str]]:
        findings = preflight(SourceConfig(dsn=pg_server.dsn()))
        return [(f.severity, f.message) for code in codes for f in found(findings, code)]

    eventually(lambda: limits("SL-WAL-LIMIT") == [("ok", "A slot may keep 1 GB of WAL.")])
    idle = limits("SL-IDLE-LIMIT")
    assert [(severity, "unused for 90 s" in message) for severity, message in idle] == [
        ("warning", True)
    ] * ends_idle_slots


# ------------------------------------------------------------------------------------------------------------ role


@pytest.fixture
def role(database: Database) -> Iterator[str]:
    """A role without rights of its own."""
    name = f"role_{database.name}"
    database.execute(f"create role {name} login")
    yield name
    database.execute(f"drop owned by {name}; drop role {name}")


def test_a_role_without_rights_is_told_every_statement_and_they_suffice(database: Database, role: str) -> None:
    database.execute("create schema shop; create table shop.person (id int primary key)")
    settings = {"dsn": make_conninfo(database.dsn, user=role), "monitored_tables": ("shop.*",)}
    findings = look(database, **settings)
    replication, privilege = one(findings, "SL-REPLICATION"), one(findings, "SL-PRIVILEGE")
    publication = one(findings, "SL-PUBLICATION")
    assert replication.remedy == f'ALTER ROLE "{role}" REPLICATION;'
    assert privilege.remedy == f'GRANT USAGE ON SCHEMA "shop" TO "{role}"; GRANT SELECT ON shop.person TO "{role}";'
    create = 'CREATE PUBLICATION "syncline" FOR TABLE ONLY shop.person WITH (publish_via_partition_root = true);'
    assert publication.remedy == f"As the owner of the tables: {create}"
    for statement in (replication.remedy, privilege.remedy, create):
        database.execute(statement)
    assert severities(look(database, **settings)) <= {"ok", "warning"}


def test_row_security_that_hides_rows_is_an_error(database: Database, role: str) -> None:
    database.execute(
        f"create table person (id int primary key); alter table person enable row level security;"
        f"grant select on person to {role}"
    )
    hidden = one(look(database, dsn=make_conninfo(database.dsn, user=role)), "SL-ROW-SECURITY")
    assert (hidden.severity, hidden.subject, hidden.remedy) == (
        "error",
        "public.person",
        f'ALTER ROLE "{role}" BYPASSRLS;',
    )
    assert found(look(database), "SL-ROW-SECURITY") == []


def test_a_refused_replication_connection_names_the_line_of_pg_hba(pg_server: EmbeddedPostgres) -> None:
    with psycopg.connect(pg_server.dsn(), autocommit=True) as connection:
        connection.execute("create role copier login replication")
        hba = pg_server.data_dir / "pg_hba.conf"
        hba.write_text("host postgres copier 127.0.0.1/32 reject\n" + hba.read_text())
        connection.execute("select pg_reload_conf()")
    source = SourceConfig(dsn=pg_server.dsn(), replication_dsn=make_conninfo(pg_server.dsn(), user="copier"))

    def refused() -> Finding | None:
        finding = one(preflight(source), "SL-REPLICATION")
        return finding if finding.severity == "error" else None

    assert eventually(refused).remedy.startswith("Add to pg_hba.conf: host <database> <role>")


def test_a_replication_dsn_of_another_database_is_an_error(database: Database) -> None:
    other = make_conninfo(database.dsn, dbname="postgres")
    finding = one(look(database, replication_dsn=other), "SL-REPLICATION")
    assert (finding.severity, "another server or database" in finding.message) == ("error", True)


# --------------------------------------------------------------------------------------------------------- tables


def test_a_table_that_is_not_there_is_an_error_with_the_nearest_names(database: Database) -> None:
    database.execute("create table person (id int primary key); create table pet (id int primary key)")
    findings = look(database, monitored_tables=("public.persons", "pet", "shop.*"))
    assert one(findings, "SL-NO-TABLE", "public.persons").severity == "error"
    assert "Nearest: public.person" in one(findings, "SL-NO-TABLE", "public.persons").message
    assert one(findings, "SL-NO-TABLE", "shop.*").severity == "warning"


def test_a_pattern_without_any_table_is_an_error(database: Database) -> None:
    findings = look(database)
    assert one(findings, "SL-NO-TABLE", "public.*").severity == "error"
    with pytest.raises(Misconfigured) as raised:
        refuse(findings)
    assert raised.value.code == "SL-NO-TABLE"
    assert "monitored_tables" in raised.value.remedy


def test_the_control_schema_is_never_a_table_to_capture(database: Database) -> None:
    database.execute("create schema control; create table control.sync_status (id int primary key)")
    findings = preflight(config(database, monitored_tables=("*.*",)), "control")
    assert one(findings, "SL-NO-TABLE").severity == "error"


@pytest.mark.parametrize(
    ("ddl", "remedy"),
    [
        ("create table t (id int)", "ALTER TABLE public.t ADD PRIMARY KEY (...);"),
        (
            "create table t (id int primary key); alter table t replica identity nothing",
            "ALTER TABLE public.t REPLICA IDENTITY DEFAULT;",
        ),
        ("create table t (id int); alter table t replica identity full", "ALTER TABLE public.t ADD PRIMARY KEY (...);"),
    ],
)
def test_a_table_without_usable_identity_is_refused_with_the_fix(database: Database, ddl: str, remedy: str) -> None:
    database.execute(ddl)
    findings = look(database)
    finding = one(findings, "SL-IDENTITY", "public.t")
    assert (finding.severity, finding.remedy) == ("error", remedy)
    with pytest.raises(Misconfigured, match=r"public\.t: It can't be captured"):
        refuse(findings)


def test_an_unlogged_table_is_an_error_by_name_and_a_warning_by_wildcard(database: Database) -> None:
    database.execute("create unlogged table quick (id int primary key); create table slow (id int primary key)")
    assert one(look(database), "SL-UNLOGGED", "public.quick").severity == "warning"
    asked = one(look(database, monitored_tables=("quick", "slow")), "SL-UNLOGGED")
    assert asked.severity == "error"
    assert asked.remedy.startswith('ALTER TABLE "public"."quick" SET LOGGED;')
    assert found(look(database, excluded_tables=("quick",)), "SL-UNLOGGED") == []


def test_a_view_is_an_error_by_name_and_a_note_by_wildcard(database: Database) -> None:
    database.execute("create table person (id int primary key); create view people as select * from person")
    assert one(look(database), "SL-NOT-A-TABLE", "public.people").severity == "info"
    assert one(look(database, monitored_tables=("person", "people")), "SL-NOT-A-TABLE").severity == "error"


def test_columns_that_arrive_otherwise_than_expected_are_named(database: Database) -> None:
    database.execute(
        """
        create type mood as enum ('good', 'bad');
        create domain anything as numeric;
        create table person (id int primary key, name text, mood mood, at inet, price anything, exact numeric(10,2),
                             twice int generated always as (id * 2) stored)
        """
    )
    findings = look(database)
    assert one(findings, "SL-AS-TEXT").message.endswith(": at inet, price anything.")
    assert one(findings, "SL-GENERATED").message.endswith(": twice.")
    assert severities(found(findings, "SL-AS-TEXT") + found(findings, "SL-GENERATED")) == {"info"}


def test_a_column_with_a_reserved_name_is_an_error(database: Database) -> None:
    database.execute("create table person (id int primary key, _syncline_version int)")
    finding = one(look(database), "SL-RESERVED", "public.person")
    assert finding.severity == "error"
    assert 'RENAME COLUMN "_syncline_version"' in finding.remedy


def test_a_table_with_large_values_is_told_how_updates_arrive(database: Database) -> None:
    database.execute("create table person (id int primary key, note text)")
    database.execute("alter table person alter note set storage external")
    database.execute("insert into person values (1, repeat('x', 100000))")
    database.execute("vacuum person")
    finding = one(look(database), "SL-TOAST")
    assert (finding.severity, finding.subject) == ("info", "public.person")
    assert "(note)" in finding.message
    database.execute("alter table person replica identity full")
    assert found(look(database), "SL-TOAST") == []


def test_partitions_and_inheritance_are_explained(database: Database) -> None:
    database.execute(
        """
        create table orders (id int primary key) partition by range (id);
        create table orders_1 partition of orders for values from (0) to (10);
        create unlogged table orders_2 partition of orders for values from (10) to (20);
        create table animal (id int primary key);
        create table cat () inherits (animal)
        """
    )
    findings = look(database, excluded_tables=("cat",))
    assert one(findings, "SL-PARTITIONED", "public.orders").message == "Captured as one table, from 2 partitions."
    assert one(findings, "SL-INHERITANCE", "public.animal").severity == "info"
    unlogged = one(findings, "SL-UNLOGGED", "public.orders")
    assert (unlogged.severity, unlogged.remedy) == ("error", "ALTER TABLE public.orders_2 SET LOGGED;")


# ---------------------------------------------------------------------------------------------------- publication


def test_a_published_table_whose_updates_postgresql_refuses_is_told_even_if_it_is_excluded(database: Database) -> None:
    database.execute(
        "create table person (id int primary key); create table bare (v text); create table whole (v text);"
        "alter table whole replica identity full; create publication syncline for tables in schema public"
    )
    findings = look(database, excluded_tables=("bare",))
    told = one(findings, "SL-UPDATES-REFUSED")
    assert (told.severity, told.subject) == ("warning", "public.bare")
    with pytest.raises(psycopg.errors.ObjectNotInPrerequisiteState):
        database.execute("delete from bare")
    database.execute("drop publication syncline; create publication syncline for table person")
    assert found(look(database), "SL-UPDATES-REFUSED") == []


def test_the_statement_for_a_missing_publication_names_no_table_that_it_would_harm(database: Database) -> None:
    role = f"reader_{database.name}"
    database.execute(f"create table person (id int primary key); create table bare (v text); create role {role} login")
    finding = one(look(database, dsn=make_conninfo(database.dsn, user=role)), "SL-PUBLICATION")
    assert "FOR TABLE ONLY public.person WITH" in finding.remedy
    database.execute(f"drop role {role}")


def test_a_publication_that_is_complete_is_ok(database: Database) -> None:
    database.execute("create table person (id int primary key); create publication syncline for table person")
    assert one(look(database), "SL-PUBLICATION").message == "It covers the 1 table(s)."
    database.execute("drop publication syncline; create publication syncline for tables in schema public")
    assert one(look(database), "SL-PUBLICATION").severity == "ok"
    database.execute("drop publication syncline; create publication syncline for all tables")
    assert one(look(database), "SL-PUBLICATION").message == "It covers all tables of the database."


def test_a_publication_that_somebody_makes_at_the_same_moment_gets_the_tables_it_lacks(database: Database) -> None:
    database.execute("create table mine (id int primary key); create table theirs (id int primary key)")
    with database.connect() as first, database.connect() as second:
        tables = [t for t in matching_tables(first, ["public.*"]) if t.name == "mine"]
        waits = "select count(*) from pg_stat_activity where %s = any(pg_blocking_pids(pid))"
        with ThreadPoolExecutor(1) as pool, first.transaction():
            first.execute("create publication made for table theirs")
            made = pool.submit(ensure_publication, second, "made", tables)
            eventually(lambda: database.value(waits, first.info.backend_pid) == 1)
        assert made.result(20) == ["public.mine"]
    published = "select tablename from pg_publication_tables where pubname = 'made' order by 1"
    assert database.execute(published) == [("mine",), ("theirs",)]


def test_a_publication_that_leaves_something_out_is_an_error_with_the_statement(database: Database) -> None:
    database.execute(
        """
        create table orders (id int primary key) partition by range (id);
        create publication syncline for table orders with (publish = 'insert, update')
        """
    )
    errors = [f for f in found(look(database), "SL-PUBLICATION") if f.severity == "error"]
    assert len(errors) == 2
    for finding in errors:
        database.execute(finding.remedy)
    assert severities(found(look(database), "SL-PUBLICATION")) == {"ok"}


def test_tables_to_add_and_to_pass_over_are_announced(database: Database) -> None:
    database.execute(
        """
        create table person (id int primary key); create table pet (id int primary key);
        create publication syncline for table pet
        """
    )
    messages = [f.message for f in found(look(database, excluded_tables=("pet",)), "SL-PUBLICATION")]
    assert messages == [
        "Tables will be added to it: public.person.",
        "Tables not monitored are passed over: public.pet.",
    ]


def test_a_role_that_may_not_add_a_table_is_told_the_statement_for_that_table_alone(
    database: Database, role: str
) -> None:
    database.execute(
        "create table person (id int primary key); create table pet (id int primary key);"
        "create publication syncline for table pet"
    )
    dsn = make_conninfo(database.dsn, user=role)
    findings = look(database, dsn=dsn)
    finding = one(findings, "SL-NOT-PUBLISHED")
    assert (finding.severity, finding.subject) == ("error", "public.person")
    assert severities(found(findings, "SL-PUBLICATION")) <= {"ok", "info"}
    database.execute(finding.remedy.removeprefix("As its owner: "))
    assert one(look(database, dsn=dsn), "SL-PUBLICATION").severity == "ok"


@pytest.mark.parametrize("postgres_version", [18])  # older ones can't
def test_a_publication_that_publishes_generated_columns_is_refused_for_their_tables(database: Database) -> None:
    database.execute(
        """
        create table plain (id int primary key);
        create table made (id int primary key, twice int generated always as (id * 2) stored);
        create publication syncline for table plain, made with (publish_generated_columns = stored)
        """
    )
    (finding,) = (f for f in look(database) if f.severity == "error")
    assert (finding.code, finding.subject) == ("SL-GENERATED", "public.made")
    database.execute(finding.remedy.partition(";")[0])
    assert one(look(database), "SL-GENERATED").severity == "info"
    database.execute("alter publication syncline set table plain, made (id, twice)")
    assert severities(found(look(database), "SL-GENERATED")) == {"error", "info"}


@pytest.mark.parametrize("postgres_version", [18])
def test_a_table_whose_updates_the_publication_would_make_fail_is_refused(database: Database) -> None:
    """PostgreSQL 18 refuses them under FULL with a generated column, at the user's own session."""
    database.execute(
        """
        create table made (id int primary key, n int, twice int generated always as (n * 2) stored);
        alter table made replica identity full; insert into made values (1, 1)
        """
    )
    finding = one(look(database), "SL-IDENTITY")
    assert (finding.severity, finding.subject) == ("error", "public.made")
    database.execute("create publication syncline for table made")
    with pytest.raises(psycopg.Error):
        database.execute("update made set n = 2")
    database.execute(finding.remedy)
    database.execute("update made set n = 2")
    assert found(look(database), "SL-IDENTITY") == []


def test_filters_and_column_lists_are_shown_and_must_hold_the_key(database: Database) -> None:
    database.execute(
        """
        create table person (id int primary key, name text, secret text);
        create table pet (id int primary key, name text);
        create publication syncline for table person (id, name) where (id > 5), pet (name) with (publish = 'insert')
        """
    )
    findings = look(database)
    assert one(findings, "SL-ROW-FILTER").subject == "public.person"
    assert "lists 2 of its columns" in one(findings, "SL-COLUMN-LIST", "public.person").message
    assert one(findings, "SL-COLUMN-LIST", "public.pet").severity == "error"


def test_a_publication_made_after_the_slot_is_suspected(database: Database) -> None:
    database.execute("create table person (id int primary key)")
    make_slot(database)
    database.execute("create publication syncline for table person")
    finding = one(look(database), "SL-PUBLICATION-ORDER")
    assert finding.severity == "warning"
    database.execute(finding.remedy.partition(";")[0])
    make_slot(database)
    assert found(look(database), "SL-PUBLICATION-ORDER") == []


# ------------------------------------------------------------------------------------------------------------ slot


def test_our_slot_is_ok_and_says_what_it_keeps(database: Database) -> None:
    make_slot(database)
    finding = one(look(database), "SL-SLOT")
    assert (finding.severity, finding.message.startswith("It keeps ")) == ("ok", True)


def test_a_slot_of_another_kind_is_an_error(database: Database) -> None:
    database.execute(f"select pg_create_physical_replication_slot('slot_{database.name}')")
    try:
        finding = one(look(database), "SL-SLOT")
    finally:
        database.execute(f"select pg_drop_replication_slot('slot_{database.name}')")
    assert finding.severity == "error"
    assert "It is a physical slot of plugin none" in finding.message


def test_a_slot_of_another_database_is_an_error(database: Database) -> None:
    make_slot(database)
    finding = one(preflight(config(database, dsn=make_conninfo(database.dsn, dbname="postgres"))), "SL-SLOT")
    assert finding.severity == "error"
    assert f"database {database.name}; pgoutput in postgres is needed" in finding.message


def test_a_two_phase_slot_is_an_error(database: Database) -> None:
    make_slot(database, twophase="true")
    assert one(look(database), "SL-SLOT-TWO-PHASE").severity == "error"


def test_a_slot_in_use_names_who_streams_from_it(database: Database) -> None:
    database.execute("create publication syncline")
    make_slot(database)
    stream = connect_replication(Dsn(database.dsn, "source.dsn"))
    try:
        with stream.cursor() as cursor:
            options = {"proto_version": "1", "publication_names": "syncline"}
            cursor.start_replication(slot_name=f"slot_{database.name}", decode=False, options=options)
            ours = eventually(lambda: [f for f in found(look(database), "SL-SLOT") if "running Syncline" in f.message])
            assert ours[0].severity == "ok"
    finally:
        stream.close()
    eventually(lambda: "It keeps" in one(look(database), "SL-SLOT").message)


def test_a_lost_slot_is_an_error(pg_server: EmbeddedPostgres) -> None:
    with psycopg.connect(pg_server.dsn(), autocommit=True) as connection:
        connection.execute("alter system set max_slot_wal_keep_size = '1MB'")
        connection.execute("select pg_reload_conf()")
        connection.execute("select pg_create_logical_replication_slot('syncline', 'pgoutput')")

        def lost() -> list[Finding]:
            connection.execute("select pg_logical_emit_message(false, 'filler', repeat('x', 1000000))")
            connection.execute("select pg_switch_wal()")
            connection.execute("checkpoint")
            findings = preflight(SourceConfig(dsn=pg_server.dsn()))
            return [f for f in found(findings, "SL-SLOT-LOST") if f.severity == "error"]

        (finding,) = eventually(lost)
    reason = "wal_removed" if pg_server.version >= 17 else "the WAL it needed was removed"  # older ones don't say
    assert f"It is lost ({reason})" in finding.message
    assert finding.remedy.startswith("`syncline resync`, then `syncline run`")


# ---------------------------------------------------------------------------------------------- open transactions


def test_a_transaction_that_holds_up_the_slot_is_named_by_pid(database: Database, role: str) -> None:
    database.execute("create table person (id int primary key)")
    with database.connect(autocommit=False, application_name="importer") as busy:
        busy.execute("insert into person values (1)")
        busy.execute("set local statement_timeout = 0")
        pid = busy.info.backend_pid
        # A role that may not see what others do still sees who holds a transaction.
        unseeing = make_conninfo(database.dsn, user=role)
        finding = one(look(database, dsn=unseeing), "SL-OPEN-TRANSACTION", f"pid {pid}")
        assert finding.severity == "warning"
        assert "Creating the slot waits until it ends" in finding.message
        assert f"pg_terminate_backend({pid})" in finding.remedy
        aged = eventually(lambda: found(look(database), "SL-OPEN-TRANSACTION", f"pid {pid}"), every_s=0.5)
        assert "'importer'" in aged[0].message
        busy.rollback()
    assert found(look(database), "SL-OPEN-TRANSACTION", f"pid {pid}") == []


def test_a_slot_creation_that_waits_is_still_explained(database: Database) -> None:
    database.execute("create table person (id int primary key)")
    with database.connect(autocommit=False) as busy:
        busy.execute("insert into person values (1)")
        waiting = threading.Thread(target=make_slot, args=(database,))
        waiting.start()
        eventually(lambda: database.value("select count(*) from pg_replication_slots where active_pid is not null") > 0)
        assert one(look(database), "SL-SLOT-BUSY").severity == "error"
        busy.rollback()
        waiting.join(20)
    assert one(look(database), "SL-SLOT").severity == "ok"


# ---------------------------------------------------------------------------------------------------------- outbox


def test_an_outbox_is_looked_for_and_its_tables_are_not_to_be_published(database: Database) -> None:
    database.execute("create table concept (id int primary key); create table plain (id int primary key)")
    entities = {"concept": {"table": "public.concept"}, "audit": None}
    given = {"outbox": {"entities": entities}, "monitored_tables": ["*.*"]}
    assert one(look(database, **given), "SL-NO-OUTBOX").remedy == "Run `syncline outbox install`."
    with database.connect() as connection:
        install(connection, OutboxConfig.model_validate(given["outbox"]))
    findings = look(database, **given)
    assert one(findings, "SL-OUTBOX").severity == "ok"
    assert "2 of 2 table(s)" in one(findings, "SL-TABLES").message  # nothing of the outbox is among them
    assert "created for 1 table(s)" in one(findings, "SL-PUBLICATION").message
    database.execute("create publication syncline for table only concept")
    leaves = [f.severity for f in look(database, **given) if "partitions of syncline_outbox" in f.message]
    assert leaves == ["error"]
    database.execute("drop publication syncline")
    entities["path"] = {"table": "public.paths"}
    missing = one(look(database, **given), "SL-OUTBOX")
    assert (missing.severity, "public.paths is not captured" in missing.message) == ("error", True)


def test_an_outbox_of_another_owner_is_named_with_the_grant(database: Database) -> None:
    database.execute("create table concept (id int primary key)")
    entities: dict[str, Any] = {"entities": {"concept": {"table": "public.concept"}}}
    with database.connect() as connection:
        install(connection, OutboxConfig.model_validate(entities))
    role = f"reader_{database.name}"
    database.execute(f"create role {role} login replication; grant select on concept to {role}")
    findings = look(database, dsn=make_conninfo(database.dsn, user=role), outbox=entities)
    database.execute(f"drop owned by {role}; drop role {role}")
    foreign = one(findings, "SL-OUTBOX")
    assert (foreign.severity, foreign.remedy) == ("error", f'GRANT "postgres" TO "{role}";')
