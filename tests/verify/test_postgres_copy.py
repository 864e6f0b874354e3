"""From one PostgreSQL database into another: the engine on the whole way, and verification of what came."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from servers import TEMPLATE, Database, eventually, fresh_database
from syncline.config import Config
from syncline.embedded import EmbeddedPostgres
from syncline.pipeline import SyncService
from syncline.service.doctor import findings
from syncline.verify import Report, verify

_ODD = """
create type mood as enum ('sad', 'ok');
create table odd (id int primary key, version int, inexact text, n numeric(10,2), whatever numeric, at timestamp,
  m mood, tags text[], doc jsonb, big text);
alter table odd alter big set storage external;
insert into odd select i, i, 'x', i, i, '2026-01-01', 'ok', '{a,NULL}', '{"a": 1.10}', repeat('x', 10000)
  from generate_series(1, 500) as i;
insert into odd values (1000, 1, null, 'NaN', 'Infinity', 'infinity', null, null, null, null),
  (1001, 2, '', null, null, '294276-12-31', null, '{}', 'null', null),
  (1002, 3, '', null, null, '0044-03-15 BC', null, '[5:6]={a,b}', '[]', null)
"""


@pytest.fixture
def target(postgres: EmbeddedPostgres) -> Iterator[Database]:
    with fresh_database(postgres, TEMPLATE) as fresh:
        yield fresh


def config_of(source: Database, target: Database, folder: Path, **more: object) -> Config:
    return Config.model_validate(
        {
            "source": {"dsn": source.dsn, "heartbeat_s": 0.2, "on_gap": "resync"},
            "target": {"type": "postgres", "dsn": target.dsn, **more},
            "log": {"path": str(folder / "log")},
        }
    )


def settled(config: Config) -> Report:
    """A verification with an engine of its own that brings the target up to date first."""
    return verify(config, (), engine=SyncService, talk=lambda line: None)


def test_every_value_arrives_exactly_and_verification_proves_it(
    database: Database, target: Database, tmp_path: Path
) -> None:
    database.execute(_ODD)
    target.execute("create type mood as enum ('sad', 'ok')")
    config = config_of(database, target, tmp_path)
    report = settled(config)
    assert [(t.table, t.rows, t.differences) for t in report.tables] == [("public.odd", 503, 0)]
    database.execute("update odd set n = 'NaN', at = '294276-01-01' where id < 20")
    database.execute("update odd set m = 'sad', id = id + 5000 where id between 30 and 60")  # big is left untouched
    database.execute("delete from odd where id between 100 and 200")
    assert settled(config).differences == 0
    same = "select md5(string_agg(odd::text, ';' order by id)) from (select {} from odd) as odd"
    columns = "id, version, inexact, n, whatever, at, m, tags, doc, big"
    assert target.value(same.format(columns)) == database.value(same.format(columns))
    # And what is changed by hand is found, values without an exact form among it.
    target.execute("update odd set n = 1 where id = 1; update odd set at = '294276-01-02' where id = 2")
    target.execute("delete from odd where id = 3; insert into odd (id) values (9999)")
    (table,) = settled(config).tables
    assert (table.missing, table.different, table.extra) == (1, 2, 1)


def test_a_target_that_is_the_source_is_refused_and_another_schema_of_it_is_fine(
    database: Database, tmp_path: Path
) -> None:
    database.execute("create table items (id int primary key, name text); insert into items values (1, 'one')")
    loop = [f for f in findings(config_of(database, database, tmp_path / "itself")) if f.code == "SL-POSTGRES-LOOP"]
    assert [(f.severity, f.subject) for f in loop] == [("error", "target main")]
    assert "table public.items is the table itself" in loop[0].message
    itself = SyncService(config_of(database, database, tmp_path / "itself"), talk=lambda line: None)
    itself.start()
    try:
        alerts = "select count(*) from syncline.sync_alerts where message like '%%one database%%'"
        eventually(lambda: database.value(alerts) == 1, 60)
        assert database.execute("select * from items") == [(1, "one")]
    finally:
        itself.stop()
    idle = "select active_pid is null from pg_replication_slots where slot_name = 'syncline'"
    eventually(lambda: database.value(idle))  # the walsender lets go of it when it sees that its client is gone
    database.execute("select pg_drop_replication_slot('syncline')")
    config = config_of(database, database, tmp_path / "beside", tables={"public.items": {"table": "copy.items"}})
    assert [f.code for f in findings(config) if f.severity == "error"] == []
    assert settled(config).differences == 0
    assert database.execute("select id, name from copy.items") == [(1, "one")]
