"""A repair is killed at random, with the engine that it runs: nothing is lost, and the next one is done."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading

import psycopg
import pytest
from piped import Pipeline

from syncline.pipeline import SyncService
from syncline.verify import compare, verify
from syncline.verify.repair import Limits, repair

KILLS = 8
SOAK_KILLS = int(os.environ.get("SYNCLINE_SOAK_CYCLES", "1000")) // 2


@pytest.fixture
def filled(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> Pipeline:
    monkeypatch.setattr(compare, "_AGAIN_S", 0.0)
    pipeline.database.execute("create table items (id int primary key, name text, n int)")
    pipeline.database.execute("insert into items select g, 'n' || g, 0 from generate_series(1, 2000) g")
    assert pipeline.verify().differences == 0
    return pipeline


def write(pipeline: Pipeline, stop: threading.Event) -> None:
    """Changes all the while, also of what is damaged."""
    chosen = random.Random(3)
    with psycopg.connect(pipeline.database.dsn, autocommit=True) as connection:
        while not stop.wait(0.005):
            connection.execute("update items set n = n + 1 where id = %s", [chosen.randrange(1, 2001)])


@pytest.mark.parametrize("kills", [KILLS, pytest.param(SOAK_KILLS, marks=pytest.mark.soak)])
def test_repairs_that_are_killed_at_random_lose_nothing_and_the_next_one_is_clean(filled: Pipeline, kills: int) -> None:
    chosen, stop = random.Random(5), threading.Event()
    writer = threading.Thread(target=write, args=(filled, stop))
    writer.start()
    try:
        for round_ in range(kills):
            filled.damage(
                f"delete from items where id % 50 = {round_ % 50}",
                f"update items set name = 'x' where id % 50 = {(round_ + 7) % 50}",
                f"insert into items select id + {10_000 * (round_ + 1)}, name, n, _syncline_version from items"
                " where id <= 20",
                "update items set _syncline_version = 9007199254740000 where id = 9",
            )
            cut_off(filled, chosen.uniform(0.5, 8))
    finally:
        stop.set()
        writer.join()
    found = repair(filled.config, engine=SyncService, talk=lambda line: None, limits=Limits(max_share=1.0))
    assert found.clean, found.to_dict()
    assert filled.verify().differences == 0


def cut_off(pipeline: Pipeline, after_s: float) -> None:
    """Kill a repair, and with it the engine, so many seconds after its start, wherever it is then."""
    file = pipeline.path.with_name("syncline.yaml")
    arguments = [sys.executable, "-m", "syncline", "-c", str(file), "verify", "--repair", "--force"]
    process = subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        process.wait(after_s)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
    process.wait()


def test_two_that_repair_at_once_do_each_other_no_harm(filled: Pipeline) -> None:
    filled.damage("delete from items where id % 20 = 0", "update items set name = 'x' where id % 20 = 1")
    with filled.running():
        both = [
            threading.Thread(
                target=repair, args=(filled.config,), kwargs={"limits": Limits(batch_size=11, max_share=1)}
            )
            for _ in range(2)
        ]
        for one in both:
            one.start()
        for one in both:
            one.join()
        assert verify(filled.config).differences == 0
    assert filled.verify().differences == 0


def test_a_table_that_is_truncated_and_rewritten_in_the_middle_of_a_repair_ends_equal(filled: Pipeline) -> None:
    filled.damage("delete from items where id % 20 = 0")
    with filled.running():
        one = threading.Thread(
            target=repair, args=(filled.config,), kwargs={"limits": Limits(batch_size=3, max_share=1)}
        )
        one.start()
        for _ in range(3):
            filled.database.execute("truncate items")
            filled.database.execute("insert into items select g, 'again', 1 from generate_series(1, 500) g")
            filled.database.execute("alter table items alter n type bigint")
            filled.database.execute("alter table items alter n type int")

        one.join()
    found = repair(filled.config, engine=SyncService, talk=lambda line: None, limits=Limits(max_share=1.0))
    assert found.clean
    assert filled.verify().differences == 0
