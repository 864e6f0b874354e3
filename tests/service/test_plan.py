"""`syncline plan` and `syncline apply`: a changed configuration is shown, then done, and nothing else is."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import duckdb
import psycopg
import pytest
import redis
import yaml
from commands import Shell

from servers import Database, eventually, fresh_database
from syncline.config import Config
from syncline.embedded import EmbeddedPostgres, EmbeddedValkey
from syncline.errors import Misconfigured
from syncline.pipeline import SyncService
from syncline.pipeline.plan import Plan, carry_out, make_plan
from syncline.stores.qdrant import QdrantConfig
from syncline.stores.qdrant.copy import QdrantCopy

Rows = Callable[[str], set[tuple[int, str]]]


class Setup:
    """A source of two tables, one target, and what the target holds of a table."""

    def __init__(self, folder: Path, database: Database, target: dict[str, Any], rows: Rows) -> None:
        self.database = database
        self.rows = rows
        self.shell = Shell(folder)
        name = f"plan_{uuid.uuid4().hex[:8]}"
        source = {"dsn": database.dsn, "slot": name, "publication": name, "heartbeat_s": 0.3}
        self.config: dict[str, Any] = {"source": source, "target": target, "log": {"path": str(folder / "log")}}
        database.execute(
            "create table kept (id int primary key, name text); create table dropped (id int primary key, name text);"
            "insert into kept values (1, 'one'), (2, 'two'); insert into dropped values (1, 'eins'), (2, 'zwei')"
        )

    def write(self, tables: dict[str, Any] | None) -> None:
        self.config["target"]["tables"] = tables
        self.shell.write(yaml.safe_dump(self.config))

    @property
    def plan(self) -> Plan:
        return make_plan(Config.model_validate(self.config))

    def changes(self) -> list[tuple[str, str]]:
        return [(change.kind, change.table) for change in self.plan.changes]

    def apply(self) -> None:
        carry_out(Config.model_validate(self.config), self.plan)


def of_duckdb(path: Path) -> Rows:
    def rows(table: str) -> set[tuple[int, str]]:
        with duckdb.connect(str(path), read_only=True) as copy:
            return set(copy.execute(f"select id, name from {table}").fetchall())

    return rows


def of_postgres(dsn: str) -> Rows:
    def rows(table: str) -> set[tuple[int, str]]:
        with psycopg.connect(dsn) as connection:
            return {(i, n) for i, n in connection.execute(f"select id, name from {table}".encode())}

    return rows


def of_redis(url: str) -> Rows:
    def rows(table: str) -> set[tuple[int, str]]:
        with redis.Redis.from_url(url, decode_responses=True) as client:
            hashes = [client.hgetall(key) for key in client.scan_iter(f"*{table}:*", _type="HASH")]
        return {(int(one["id"]), one["name"]) for one in hashes if "name" in one and "id" in one}

    return rows


def of_qdrant(folder: Path) -> Rows:
    def rows(table: str) -> set[tuple[int, str]]:
        reader = QdrantCopy(QdrantConfig(path=folder))
        schema = reader.recorded(f"public.{table}")
        assert schema is not None
        found = {(row["id"], row["name"]) for batch in reader.scan(schema) for row in batch.to_pylist()}
        reader.close()
        return found

    return rows


@pytest.fixture(params=["duckdb", "postgres", "redis", "qdrant"])
def setup(
    request: pytest.FixtureRequest, tmp_path: Path, database: Database, postgres: EmbeddedPostgres
) -> Iterator[Setup]:
    path = tmp_path / "copy"
    if request.param == "duckdb":
        yield Setup(tmp_path, database, {"type": "duckdb", "path": str(path)}, of_duckdb(path))
    elif request.param == "postgres":
        with fresh_database(postgres) as copy:
            yield Setup(tmp_path, database, {"type": "postgres", "dsn": copy.dsn}, of_postgres(copy.dsn))
    elif request.param == "redis":
        valkey: EmbeddedValkey = request.getfixturevalue("valkey")
        target = {"type": "redis", "url": valkey.url(), "mode": "store"}
        yield Setup(tmp_path, database, target, of_redis(valkey.url()))
    else:
        yield Setup(tmp_path, database, {"type": "qdrant", "path": str(path)}, of_qdrant(path))


@pytest.mark.slow
def test_tables_come_change_go_and_come_again_by_plans(setup: Setup) -> None:
    setup.write({"public.*": {}})
    assert setup.changes() == [("load", "public.dropped"), ("load", "public.kept")]
    setup.apply()
    assert (setup.rows("kept"), setup.rows("dropped")) == ({(1, "one"), (2, "two")}, {(1, "eins"), (2, "zwei")})
    assert setup.changes() == []

    setup.write({"public.kept": {}})
    assert setup.changes() == [("remove", "public.dropped")]
    setup.apply()
    assert (setup.rows("kept"), setup.rows("dropped")) == ({(1, "one"), (2, "two")}, set())
    assert setup.changes() == []

    setup.database.execute("update dropped set name = 'ZWEI' where id = 2; insert into dropped values (3, 'drei')")
    setup.write({"public.kept": {"where": "id = 1"}, "public.dropped": {}})
    assert setup.changes() == [("load", "public.dropped"), ("reload", "public.kept")]
    setup.apply()
    assert setup.rows("dropped") == {(1, "eins"), (2, "ZWEI"), (3, "drei")}
    assert setup.rows("kept") == {(1, "one")}
    assert setup.changes() == []


@pytest.mark.parametrize("setup", ["duckdb"], indirect=True)
def test_a_plan_that_was_seen_is_not_that_of_another_mapping(setup: Setup) -> None:
    setup.write({"public.*": {}})
    setup.apply()
    setup.write({"public.kept": {"where": "id = 1"}, "public.dropped": {}})
    seen = setup.plan
    setup.write({"public.kept": {"where": "false"}, "public.dropped": {}})
    assert [(c.kind, c.table) for c in setup.plan.changes] == [(c.kind, c.table) for c in seen.changes]
    refused = setup.shell("apply", "--plan-hash", seen.hash)
    assert refused.returncode == 2
    assert setup.rows("kept") == {(1, "one"), (2, "two")}


@pytest.mark.slow
@pytest.mark.parametrize("setup", ["duckdb"], indirect=True)
def test_rows_are_removed_only_by_who_said_yes_to_that_very_plan(setup: Setup) -> None:
    setup.write({"public.*": {}})
    setup.apply()
    setup.write({"public.kept": {}})
    asked = setup.shell("plan", "--json")
    plan = json.loads(asked.stdout)
    assert (plan["hash"], plan["changes"][0]["kind"]) == (setup.plan.hash, "remove")
    refused = setup.shell("apply")
    assert refused.returncode == 2
    assert "rows would be removed" in refused.stderr
    other = setup.shell("apply", "--plan-hash", "0" * 12)
    assert other.returncode == 2
    assert plan["hash"] in other.stderr
    assert setup.rows("dropped") == {(1, "eins"), (2, "zwei")}
    done = setup.shell("apply", "--plan-hash", plan["hash"])
    assert (done.returncode, "remove" in done.stdout) == (0, True)
    assert setup.rows("dropped") == set()
    assert "nothing to do" in setup.shell("plan").stdout


@pytest.mark.parametrize("setup", ["duckdb"], indirect=True)
def test_a_plan_beside_an_engine_is_shown_and_not_carried_out(setup: Setup) -> None:
    setup.write({"public.*": {}})
    service = SyncService(Config.model_validate(setup.config))
    service.start()
    try:
        eventually(lambda: len(service.status()["sources"]["main"]["targets"]["main"].get("loaded", ())) == 2)
        setup.write({"public.kept": {}})
        assert setup.changes() == [("remove", "public.dropped")]
        with pytest.raises(Misconfigured) as caught:
            setup.apply()
        assert caught.value.code == "SL-LOG-LOCKED"
    finally:
        service.stop()
    assert setup.rows("dropped") == {(1, "eins"), (2, "zwei")}


@pytest.mark.slow
@pytest.mark.parametrize("setup", ["duckdb"], indirect=True)
def test_a_table_that_lost_its_key_is_neither_removed_nor_in_the_way(setup: Setup) -> None:
    setup.write(None)
    setup.apply()
    setup.database.execute("alter table dropped drop constraint dropped_pkey; create table keyless (v text)")
    assert setup.changes() == []
    setup.write({"public.*": {"where": "id = 1"}})
    assert setup.changes() == [("reload", "public.kept")]
    setup.apply()
    assert (setup.rows("kept"), setup.rows("dropped")) == ({(1, "one")}, {(1, "eins"), (2, "zwei")})
