"""What will hurt before long is said while there is time: WAL that the slot keeps, transactions that nobody ends."""

from __future__ import annotations

from pathlib import Path

import psycopg
import pytest

from reliability.harness import Rig
from reliability.workload import SCHEMA
from servers import Database, eventually


def raised(rig: Rig) -> dict[str, str]:
    """Open alerts: subject -> code."""
    rows = rig.database.execute("select subject, code from syncline.sync_alerts where resolved_at is null")
    return {str(subject): str(code) for subject, code in rows}


@pytest.fixture
def watched(database: Database, tmp_path: Path) -> Rig:
    found = Rig(database, tmp_path, source={"long_transaction_s": 0.5, "slot_budget_bytes": 1024**2})
    found.database.execute(SCHEMA)
    return found


def test_a_transaction_that_stays_open_is_named_with_its_process_until_it_ends(watched: Rig) -> None:
    with watched.running():
        with psycopg.connect(watched.database.dsn) as forgotten:
            forgotten.execute("insert into item (id, name) values (1, 'kept back')")
            pid = forgotten.info.backend_pid
            eventually(lambda: raised(watched).get(f"main/pid {pid}") == "SL-LONG-TRANSACTION")
            (said,) = watched.database.execute(
                "select message, remedy from syncline.sync_alerts where resolved_at is null"
            )
            assert f"pid {pid}" in said[0]
            assert f"pg_terminate_backend({pid})" in said[1]
        eventually(lambda: raised(watched) == {})


def test_wal_that_the_slot_keeps_beyond_its_budget_is_told_until_it_is_let_go(watched: Rig) -> None:
    with watched.running():
        with psycopg.connect(watched.database.dsn) as forgotten:
            forgotten.execute("insert into item (id, name) values (1, 'kept back')")
            watched.database.execute("create table noise (id int primary key, t text)")
            watched.database.execute(
                "insert into noise select g, repeat(md5(g::text), 8) from generate_series(1, 20000) g"
            )
            eventually(lambda: raised(watched).get("main/slot") == "SL-SLOT-BUDGET")

        def let_go() -> bool:
            watched.database.execute("select pg_log_standby_snapshot()")
            return raised(watched) == {}

        eventually(let_go)
