"""A source whose policies would hide rows from us fails loudly: a copy without them would look complete."""

from __future__ import annotations

from reliability.harness import Rig
from servers import eventually


def test_a_table_whose_rows_are_hidden_from_our_role_is_left_out_and_never_loaded_in_part(rig: Rig) -> None:
    role = f"reader_{rig.database.name}"
    rig.database.execute(
        "create table open (id int primary key); insert into open values (1), (2);"
        "create table hidden (id int primary key, owner text); insert into hidden values (1, 'a'), (2, 'b');"
        "alter table hidden enable row level security; create policy part_of_it on hidden using (id = 1);"
        f"create role {role} login replication; grant create on database {rig.database.name} to {role};"
        f"grant all on all tables in schema public to {role}; grant all on schema public to {role};"
        "create publication syncline for table open, hidden with (publish_via_partition_root = true)"
    )
    try:
        rig.set("source", dsn=rig.database.dsn.replace("postgres@", f"{role}@", 1))
        with rig.running(until_loaded=False) as engine:
            eventually(lambda: engine.targets()["main"].get("loaded"))
            eventually(lambda: {"SL-TABLE-LEFT-OUT", "SL-ROW-SECURITY"} & set(rig.alerts()))
            assert engine.query("select id from open order by id") == [(1,), (2,)]
            assert "hidden" not in repr(engine.query("show tables"))
    finally:
        rig.database.execute(f"drop owned by {role} cascade")
        rig.database.execute(f"drop role {role}")
