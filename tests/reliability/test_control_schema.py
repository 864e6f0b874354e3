"""Correctness rule 33: the control schema is never captured, whatever the patterns and the publication cover."""

from __future__ import annotations

import pytest

from reliability.harness import Rig


@pytest.mark.parametrize("publication", ["its own", "for all tables"])
def test_the_control_schema_is_not_captured_even_where_patterns_cover_it(rig: Rig, publication: str) -> None:
    rig.set("source", monitored_tables=["*.*"])
    rig.database.execute("create schema shop; create table shop.t (id int primary key); insert into shop.t values (1)")
    if publication == "for all tables":
        rig.database.execute("create publication syncline for all tables")
    rig.sync()  # makes the control schema
    with rig.running() as engine:
        rig.database.execute("insert into shop.t values (2)")
        engine.equal()
        assert engine.service.status()["sources"]["main"]["tables"] == ["shop.t"]
        assert (
            engine.query("select schema_name from duckdb_tables() where table_name like 'sync\\_%' escape '\\'") == []
        )
    published = rig.database.execute("select 1 from pg_publication_rel r join pg_class c on c.oid = r.prrelid"
                                     " where c.relnamespace = 'syncline'::regnamespace")  # fmt: skip
    assert published == []
