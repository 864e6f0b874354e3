"""A table that can't be captured any more, or not yet, is left out with an alert; everything else goes on."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from psycopg.conninfo import make_conninfo

from reliability.harness import Engine, Rig, table_difference
from servers import eventually
from syncline.errors import Misconfigured

START = """
create table named (id int primary key, v text); create table other (id int primary key, v text);
insert into named values (1, 'a'); insert into other values (1, 'a')
"""


def equal(rig: Rig, engine: Engine) -> bool:
    """Whether all tables that the target has are as they are at the source."""
    with engine.session() as target, rig.database.connect() as source:
        for (table,) in target.execute("select table_name from duckdb_tables() where schema_name = 'main'").fetchall():
            if rig.database.value("select to_regclass(%s) is not null", table):
                found = table_difference(source, target, "public", table)
                assert found == "", found
    return True


def altered(rig: Rig, engine: Engine) -> None:
    """Tables that are fine are still watched and still flow."""
    rig.database.execute("alter table other add extra text default 'd'; insert into other values (2, 'b', 'e')")
    eventually(lambda: equal(rig, engine))
    engine.service.resync(tables=["public.other"])
    eventually(lambda: not engine.source.busy)
    assert equal(rig, engine)


def test_a_table_that_is_named_and_dropped_stops_no_other_and_is_an_alert(rig: Rig) -> None:
    rig.set("source", monitored_tables=["public.named", "public.other"])
    rig.database.execute(START)
    with rig.running() as engine:
        rig.database.execute("drop table named")
        eventually(lambda: "SL-NO-TABLE" in rig.alerts())
        altered(rig, engine)
    with rig.running() as engine:
        rig.database.execute("insert into other values (3, 'c', 'f')")
        eventually(lambda: equal(rig, engine))
        rig.database.execute("create table named (id int primary key, v text); insert into named values (7, 'new')")
        eventually(lambda: equal(rig, engine))
        assert engine.query("select id from named") == [(7,)]
        eventually(lambda: "SL-NO-TABLE" not in rig.alerts())


def test_a_name_that_meets_no_table_is_refused_when_a_source_begins(rig: Rig) -> None:
    rig.set("source", monitored_tables=["public.nmaed", "public.other"])
    rig.database.execute(START)
    with rig.running(until_loaded=False) as engine:
        eventually(engine.service.errors)
        (error,) = engine.service.errors()
        assert isinstance(error, Misconfigured)
        assert (error.code, "Nearest: public.named" in error.message) == ("SL-NO-TABLE", True)


@pytest.fixture
def role(rig: Rig) -> Iterator[str]:
    """A role that owns the tables so far, and may replicate; a table of somebody else it may read."""
    name = f"role_{rig.database.name}"
    rig.database.execute(
        f"{START}; create role {name} login replication; grant create on database {rig.database.name} to {name};"
        f"alter table named owner to {name}; alter table other owner to {name};"
        f"grant all on schema public to {name}; grant select on all tables in schema public to {name};"
        f"alter default privileges grant select on tables to {name}"
    )
    yield name
    rig.database.execute(f"drop owned by {name} cascade; drop role {name}")


def test_a_new_table_of_somebody_else_stops_no_other_and_comes_in_once_it_is_published(rig: Rig, role: str) -> None:
    rig.set("source", dsn=make_conninfo(rig.database.dsn, user=role))
    with rig.running() as engine:
        rig.database.execute("create table theirs (id int primary key, v text); insert into theirs values (1, 'x')")
        eventually(lambda: "SL-TABLE-LEFT-OUT" in rig.alerts())
        altered(rig, engine)
        rig.database.execute(
            f"alter publication {rig.database.value('select pubname from pg_publication')}"
            f" owner to {rig.database.value('select current_user')}"
        )
        rig.database.execute("alter publication syncline add table theirs")
        eventually(lambda: "SL-TABLE-LEFT-OUT" not in rig.alerts())
        engine.equal()


def test_a_publication_that_is_cut_down_while_it_runs_is_an_alert(rig: Rig) -> None:
    rig.database.execute(START)
    with rig.running():
        rig.database.execute("alter publication syncline set (publish = 'insert')")
        eventually(lambda: "SL-PUBLICATION" in rig.alerts())
        rig.database.execute("alter publication syncline set (publish = 'insert, update, delete, truncate')")
        eventually(lambda: "SL-PUBLICATION" not in rig.alerts())


def test_a_table_that_is_dropped_amid_the_first_load_is_not_being_loaded_for_ever(rig: Rig) -> None:
    rig.database.execute(START)
    rig.database.execute(
        "create table wide (id int primary key, v text);"
        "insert into wide select g, repeat(md5(g::text), 30) from generate_series(1, 20000) g"
    )
    rig.set("source", load_chunk_bytes=65536)
    with rig.running(until_loaded=False) as engine:
        eventually(lambda: "public.wide" in engine.service.status()["sources"]["main"]["loading"], every_s=0.002)
        rig.database.execute("drop table wide")
        eventually(lambda: engine.state() == "streaming" and not engine.source.busy)
        assert engine.service.status()["sources"]["main"]["loading"] == {}
        altered(rig, engine)


def test_a_table_that_may_not_be_read_for_a_while_comes_in_again_when_it_may(rig: Rig, role: str) -> None:
    rig.set("source", dsn=make_conninfo(rig.database.dsn, user=role))
    with rig.running() as engine:
        rig.database.execute(f"alter table named owner to current_user; revoke all on named from {role}")
        eventually(lambda: "SL-TABLE-LEFT-OUT" in rig.alerts())
        rig.database.execute(f"insert into named values (2, 'b'); grant select on named to {role}")
        rig.database.execute(f"alter publication syncline owner to {role}")
        eventually(lambda: "SL-TABLE-LEFT-OUT" not in rig.alerts())
        eventually(lambda: equal(rig, engine))


def test_a_table_that_row_security_hid_comes_in_when_the_role_may_pass_it(rig: Rig, role: str) -> None:
    rig.set("source", dsn=make_conninfo(rig.database.dsn, user=role))
    rig.database.execute("create table hidden (id int primary key, v text); insert into hidden values (1, 'x')")
    rig.database.execute(f"alter table hidden owner to {role}; alter table hidden enable row level security")
    rig.database.execute("alter table hidden force row level security")
    with rig.running() as engine:
        eventually(lambda: "SL-TABLE-LEFT-OUT" in rig.alerts())  # written with the next tick
        rig.database.execute(f"alter role {role} bypassrls")
        eventually(lambda: "SL-TABLE-LEFT-OUT" not in rig.alerts())
        eventually(lambda: engine.query("from duckdb_tables() select table_name where table_name = 'hidden'"))
        eventually(lambda: equal(rig, engine))
