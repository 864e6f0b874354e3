"""One target away, and values that are large: what the other targets and the source notice of it."""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from harness import Engine, Rig

from servers import Database, eventually, fresh_database
from syncline.config import load_config
from syncline.embedded import EmbeddedPostgres, EmbeddedValkey
from syncline.pipeline import SyncService
from syncline.verify import verify

_RATE = 500  # changes a second
_STEP = 25


@pytest.fixture
def server(tmp_path: Path) -> Iterator[EmbeddedValkey]:
    """A Valkey of this test's own, which keeps what it was given over a kill."""
    durable = {"appendonly": "yes", "appendfsync": "always"}
    with EmbeddedValkey.start(tmp_path / "valkey", settings=durable) as server:
        yield server


@contextmanager
def changing(database: Database) -> Iterator[None]:
    """New rows and changed ones, at an even pace, until the block ends. What a stall cost is not made up for: it slows
    this as it slows the engine."""
    done = threading.Event()

    def work() -> None:
        with database.connect() as connection:
            due, n = time.monotonic(), 10_000
            while not done.wait(max(0.0, due - time.monotonic())):
                connection.execute(
                    "insert into t select g, 'n' || g from generate_series(%s::int, %s) g"
                    " on conflict (id) do update set v = t.v || '!'",
                    [n, n + _STEP - 1],
                )
                n += _STEP - 5  # five of them are changed once more
                due = max(due + _STEP / _RATE, time.monotonic() - 0.25)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def seconds_behind(engine: Engine, target: str) -> float:
    """How long it takes until what is committed now is at the target."""
    goal, since = engine.rig.now(), time.monotonic()
    eventually(lambda: engine.targets()[target]["place"] >= goal, 60)
    return time.monotonic() - since


def confirmed(rig: Rig) -> int:
    query = "select (confirmed_flush_lsn - '0/0')::int8 from pg_replication_slots where slot_name = %s"
    return int(rig.database.value(query, rig.slot))


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("away_s", [15, pytest.param(180, marks=pytest.mark.soak)])
def test_a_target_that_is_away_is_not_noticed_by_the_others_and_catches_up_at_five_times_the_live_rate(
    database: Database, tmp_path: Path, server: EmbeddedValkey, away_s: int
) -> None:
    database.execute(
        "create table t (id int primary key, v text); insert into t select g from generate_series(1, 100) g"
    )
    rig = Rig(database, tmp_path, target={"door": True})
    rig.settings["targets"]["cache"] = {"type": "redis", "url": server.url()}
    rig.set("apply", max_rows=500)  # what has piled up is several steps, so that the first of them is not all
    with rig.running() as engine, changing(database):
        before = [seconds_behind(engine, "main") for _ in range(20)]

        server.kill()
        eventually(lambda: "SL-TARGET-AWAY" in rig.alerts())
        since, mark, during = time.monotonic(), confirmed(rig), []
        stuck = engine.targets()["cache"]["place"]
        while time.monotonic() - since < away_s:
            during.append(seconds_behind(engine, "main"))
        half = len(during) // 2
        assert statistics.median(during) < 2 * statistics.median(before) + 0.2
        assert statistics.median(during[half:]) < 2 * statistics.median(during[:half]) + 0.2
        assert confirmed(rig) > mark, "the source was held up"
        assert engine.targets()["cache"]["place"] == stuck

        server.restart()
        goal = rig.now()
        eventually(lambda: engine.targets()["cache"]["place"] >= goal, 60)  # it was found again, and caught up
        caught_up, written = engine.targets()["cache"]["place"] - stuck, rig.now() - goal
        assert caught_up >= 5 * written  # in the same time, so that a stall costs both of them
        eventually(lambda: "SL-TARGET-AWAY" not in rig.alerts())
    report = verify(load_config(rig.config), talk=lambda _: None, engine=SyncService)
    assert report.differences == 0
    assert min(table.rows for table in report.tables) > away_s * _RATE * 0.2


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["duckdb", "postgres", "redis", "qdrant"])
def test_a_field_of_fifty_megabytes_arrives_with_its_neighbours_by_the_load_and_by_the_stream(
    database: Database, postgres: EmbeddedPostgres, tmp_path: Path, kind: str, request: pytest.FixtureRequest
) -> None:
    rig = Rig(database, tmp_path, target={"door": True})
    with fresh_database(postgres) as copy:
        targets: dict[str, dict[str, Any]] = {
            "duckdb": rig.settings["targets"]["main"],
            "postgres": {"type": "postgres", "dsn": copy.dsn},
            "qdrant": {"type": "qdrant", "path": str(tmp_path / "points"), "door": False},
        }
        if kind == "redis":
            targets["redis"] = {"type": "redis", "url": request.getfixturevalue("valkey").url()}
        rig.settings["targets"]["main"] = targets[kind]
        rig.write()
        database.execute("create table t (id int primary key, v text)")
        database.execute("insert into t values (1, 'one'), (2, repeat('x', 50 * 1024 * 1024)), (3, 'three')")
        with rig.running() as engine:
            database.execute(
                "update t set v = repeat('y', 50 * 1024 * 1024) where id = 1; update t set v = 'z' where id = 3"
            )
            engine.settle(timeout_s=120)
        assert rig.letters() == []
        report = verify(load_config(rig.config), talk=lambda _: None, engine=SyncService)
        assert (report.differences, report.tables[0].rows) == (0, 3)
