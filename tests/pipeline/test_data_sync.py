"""The names of a system that follows PostgreSQL into DuckDB lead to what does its work."""

from __future__ import annotations

from pathlib import Path

import duckdb

from servers import Database, eventually
from syncline.config import Config
from syncline.systems.data_sync import CDCConfiguration, CDCService, DataSyncService


def test_the_service_follows_the_monitored_tables_and_leaves_out_the_excluded_ones(
    database: Database, tmp_path: Path
) -> None:
    database.execute(
        "create table users (id text primary key, name text); create table audit_logs (id int primary key)"
    )
    database.execute("insert into users values ('user_123', 'John Doe')")
    tables = {"monitored_tables": ("public.*",), "excluded_tables": ("public.audit_logs",)}
    told = CDCConfiguration.model_validate({"dsn": database.dsn, "slot": f"slot_{database.name}", **tables})
    copy = tmp_path / "copy.duckdb"
    given = {
        "source": {**told.model_dump(include={"slot", *tables}), "dsn": database.dsn},
        "target": {"type": "duckdb", "path": str(copy)},
        "log": {"path": str(tmp_path / "log"), "disk_reserve_bytes": 0},
    }
    service = DataSyncService(Config.model_validate(given))
    assert isinstance(service, CDCService)

    def applied() -> int:
        (source,) = service.status()["sources"].values()
        (target,) = source["targets"].values()
        return int(target.get("rows_applied", 0))

    try:
        service.start()
        eventually(lambda: applied() >= 1, 60)
        database.execute("insert into users values ('user_124', 'Jane Doe')")
        eventually(lambda: applied() >= 2, 60)
    finally:
        service.stop()
    with duckdb.connect(str(copy), read_only=True) as connection:
        assert connection.execute("select name from users order by id").fetchall() == [("John Doe",), ("Jane Doe",)]
        assert connection.execute("select * from duckdb_tables() where table_name = 'audit_logs'").fetchall() == []
