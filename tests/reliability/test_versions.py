"""The whole way from each version of PostgreSQL: load, stream, partial rows, new keys, truncate, new columns, kills."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from reliability.harness import Nursery, Rig
from servers import POSTGRES_VERSIONS, Database
from syncline.embedded import EmbeddedPostgres

SCHEMA = """
create table person (id int primary key, name text not null, seen timestamptz, tags text[], body text);
alter table person alter column body set storage external;
create table visit (at date, person int, n bigint, primary key (at, person)) partition by range (at);
create table visit_2025 partition of visit for values from ('2025-01-01') to ('2026-01-01');
create table visit_2026 partition of visit for values from ('2026-01-01') to ('2027-01-01');
create table note (id uuid primary key default gen_random_uuid(), data jsonb, amount numeric(30, 10));
insert into person select g, 'n' || g, now(), array['a', null, g::text], repeat('x', 4000)
  from generate_series(1, 300) g;
insert into visit select date '2025-12-01' + g, g, g from generate_series(1, 60) g;
insert into note (data, amount) select jsonb_build_object('g', g), g / 3.0 from generate_series(1, 100) g;
"""


@pytest.mark.parametrize("postgres_version", POSTGRES_VERSIONS)
def test_a_copy_of_any_version_is_equal_at_every_step(rig: Rig, nursery: Nursery, postgres_version: int) -> None:
    source = rig.database
    assert source.server.version == postgres_version
    source.execute(SCHEMA)
    with rig.running() as engine:
        engine.equal()  # the load
        source.execute("insert into person select g, 'later', null, '{}', 'short' from generate_series(301, 400) g")
        source.execute("delete from note where amount < 5; update note set data = data || '{\"more\": [1, null]}'")
        source.execute("update person set name = name || '!' where id <= 100")  # the body is unchanged, so not sent
        source.execute("update person set id = id + 1000 where id <= 20")
        source.execute("update visit set at = at + 40 where person <= 30")  # to another partition
        engine.equal()
        source.execute("truncate note, visit; insert into visit values ('2026-05-05', 1, 1)")
        engine.equal()
        source.execute("alter table person add column age int default 7; update person set age = 8 where id < 50")
        source.execute("alter table person drop column seen; insert into person (id, name) values (5000, 'new')")
        engine.equal()
    for point in ("after append", "inside apply", "before confirm"):
        source.execute("update person set name = name || '?', body = repeat('y', 5000) where id % 3 = 0")
        source.execute("insert into note (data) select '[]' from generate_series(1, 100)")
        assert nursery.run(rig, point=point) == -signal.SIGKILL
    nursery.finish(rig)
    assert rig.difference() == ""
    assert rig.gaps(ever=True) == []


@pytest.mark.parametrize("postgres_version", POSTGRES_VERSIONS)
def test_a_killed_server_of_any_version_comes_back_and_the_copy_is_equal(
    pg_server: EmbeddedPostgres, tmp_path: Path, postgres_version: int
) -> None:
    assert pg_server.version == postgres_version
    source = Database(pg_server, "postgres")
    source.execute(SCHEMA)
    with Rig(source, tmp_path).running() as engine:
        for _ in range(2):
            source.execute("update person set name = name || '!'; insert into note (data) values ('{}')")
            pg_server.kill()
            pg_server.restart()
            source.execute("update visit set n = n + 1; delete from person where id % 7 = 0")
            engine.equal()
