"""SIGKILL at named points and at random: the copy always ends equal, and no gap is ever seen where there is none."""

from __future__ import annotations

import os
import random
import signal
import time

import pytest

from reliability.engine import POINTS
from reliability.harness import Nursery, Rig
from reliability.workload import SCHEMA, Workload

CYCLES = int(os.environ.get("SYNCLINE_SOAK_CYCLES", "1000"))
LARGE = "insert into item select g, 'large', g, now(), 'd' from generate_series(1000, 13000) g"


def prepared(rig: Rig, *, rows: int = 400) -> None:
    rig.set("source", max_entry_bytes=65_536, batch_bytes=65_536, load_chunk_bytes=65_536)
    rig.set("apply", max_rows=500)
    rig.database.execute(SCHEMA)
    rig.database.execute(
        "insert into item select g, 'n' || g, g * 1.5, now(), repeat('x', 3000) from generate_series(1, %s) g", rows
    )
    rig.database.execute("insert into line select g, 1, 'x', repeat('y', 3000) from generate_series(1, %s) g", rows)


@pytest.mark.parametrize("point", sorted(set(POINTS) - {"after parking"}))
def test_a_kill_at_any_point_of_a_load_and_of_the_stream_ends_equal(rig: Rig, nursery: Nursery, point: str) -> None:
    prepared(rig)
    died = [nursery.run(rig, point=point) == -signal.SIGKILL]
    rig.database.execute(LARGE)
    rig.database.execute("update item set name = name || '!' where id < 100; delete from item where id % 7 = 0")
    rig.database.execute("update item set id = id + 1000000 where id between 20 and 30; update line set note = 'l'")
    died.append(nursery.run(rig, point=point, nth=3) == -signal.SIGKILL)
    rig.database.execute("truncate line; insert into line select g, 2, 'again', 'x' from generate_series(1, 50) g")
    rig.database.execute("delete from item where id >= 1000")
    died.append(nursery.run(rig, point=point, nth=2) == -signal.SIGKILL)
    nursery.finish(rig)
    assert rig.difference() == ""
    assert any(died), "the engine never came to this point"
    assert rig.gaps(ever=True) == []


def cycles(rig: Rig, nursery: Nursery, count: int, seed: int) -> None:
    """Kill an engine at a random time, again and again, under a workload; compare after each."""
    chance = random.Random(seed)
    prepared(rig, rows=100)
    with Workload(rig.database, seed) as workload:
        for cycle in range(count):
            if chance.random() < 0.5:
                child = nursery.start(rig, point=chance.choice(sorted(POINTS)), nth=chance.randint(1, 30))
            else:
                child = nursery.start(rig)
            time.sleep(chance.uniform(0.05, 0.6))  # the moment of the kill, not a wait for anything
            assert child.kill() == -signal.SIGKILL
            with workload.quiet:
                nursery.finish(rig)
                assert rig.difference() == "", f"cycle {cycle} of seed {seed}"
            assert rig.gaps(ever=True) == []
        assert workload.transactions > count


@pytest.mark.parametrize("seed", [1, 2, 3, 4, 5])
def test_ten_kills_at_random_times_under_a_workload_each_end_equal(rig: Rig, nursery: Nursery, seed: int) -> None:
    cycles(rig, nursery, 10, seed)


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(100, 110))
def test_many_kills_at_random_times_under_a_workload_each_end_equal(rig: Rig, nursery: Nursery, seed: int) -> None:
    cycles(rig, nursery, max(1, CYCLES // 10), seed)


def test_sigterm_at_random_times_ends_with_exit_code_0_and_loses_nothing(rig: Rig, nursery: Nursery) -> None:
    prepared(rig, rows=100)
    chance = random.Random(7)
    with Workload(rig.database, 7) as workload:
        for _ in range(6):
            child = nursery.start(rig)
            time.sleep(chance.uniform(0.05, 0.8))
            assert child.terminate() == 0
        with workload.quiet:
            nursery.finish(rig)
            assert rig.difference() == ""
    assert rig.gaps(ever=True) == []
