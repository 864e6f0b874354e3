"""Verifications and repairs are killed at random, with the engine that they run: nothing is lost, the next is done."""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest
from forked import Ended, Forks
from piped import Pipeline

from servers import eventually
from syncline.catalog import ControlSchema
from syncline.pipeline import SyncService
from syncline.verify import compare, verify
from syncline.verify.repair import Limits, repair

KILLS = 25  # of the verifier, and as many of the repair
SOAK_KILLS = int(os.environ.get("SYNCLINE_SOAK_CYCLES", "1000")) // 4


@pytest.fixture
def filled(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> Pipeline:
    monkeypatch.setattr(compare, "_AGAIN_S", 0.0)
    pipeline.database.execute("create table items (id int primary key, name text, n int)")
    pipeline.database.execute("insert into items select g, 'n' || g, 0 from generate_series(1, 2000) g")
    file = pipeline.path.with_name("syncline.yaml")
    file.write_text(file.read_text() + "repair:\n  batch_size: 10\n")  # requests enough to be killed between them
    assert pipeline.verify().differences == 0
    return pipeline


def write(pipeline: Pipeline, stop: threading.Event) -> None:
    """Changes all the while, also of what is damaged."""
    chosen = random.Random(3)
    with psycopg.connect(pipeline.database.dsn, autocommit=True) as connection:
        while not stop.wait(0.005):
            connection.execute("update items set n = n + 1 where id = %s", [chosen.randrange(1, 2001)])


class Kills:
    """Commands that are killed, each within as long as one takes that is not, so that all of it is met; of repairs
    every other one behind its asking for rows, which is the shorter part."""

    def __init__(self, pipeline: Pipeline, forks: Forks, *command: str) -> None:
        self._forks = forks
        self._command = ("-c", str(pipeline.path.with_name("syncline.yaml")), "verify", *command)
        self._chosen = random.Random(5)
        self.whole = self.finished()
        self.made = self.behind = 0

    def finished(self) -> Ended:
        """One that is left to end by itself."""
        ended = self._forks.run(*self._command)
        assert not ended.killed
        return ended

    def one(self) -> None:
        """One that is cut off, or that was done before; that is no kill, and how long a whole one takes now."""
        asks = self.whole.asked is not None and self.behind <= self.made - self.behind
        begins = self.whole.asked or 0.0 if asks else 0.0
        after_s = self._chosen.uniform(0, self.whole.seconds - begins)
        ended = self._forks.run(*self._command, kill_after_s=after_s, once_asked=asks)
        assert ended.killed or ended.code in (0, 4), ended
        if ended.killed:
            self.made += 1
            self.behind += ended.asked is not None
        else:
            self.whole = ended


@contextmanager
def writing(pipeline: Pipeline) -> Iterator[None]:
    """Changes come all the while."""
    stop = threading.Event()
    writer = threading.Thread(target=write, args=(pipeline, stop))
    writer.start()
    try:
        yield
    finally:
        stop.set()
        writer.join()


def slots(pipeline: Pipeline) -> list[str]:
    """The replication slots of this database; the temporary ones of a killed process go with its sessions."""
    found = "select slot_name from pg_replication_slots where database = current_database() order by 1"
    return [name for (name,) in pipeline.database.execute(found)]


@pytest.mark.parametrize("kills", [KILLS, pytest.param(SOAK_KILLS, marks=pytest.mark.soak)])
def test_repairs_that_are_killed_at_random_lose_nothing_and_the_next_one_is_clean(filled: Pipeline, kills: int) -> None:
    with Forks() as forks, writing(filled):
        damage(filled, 0)
        repairs = Kills(filled, forks, "--repair", "--force")
        assert repairs.whole.code == 0
        for round_ in range(1, 100 * kills):
            damage(filled, round_)
            repairs.one()
            if repairs.made == kills:
                break
    assert repairs.made == kills
    assert kills // 3 <= repairs.behind < kills
    found = repair(filled.config, engine=SyncService, talk=lambda line: None, limits=Limits(max_share=1.0))
    assert found.clean, found.to_dict()
    assert filled.verify().differences == 0
    eventually(lambda: slots(filled) == ["syncline"])


def damage(pipeline: Pipeline, round_: int) -> None:
    pipeline.damage(
        f"delete from items where id % 100 = {round_ % 100}",
        f"update items set name = 'x' where id % 100 = {(round_ + 7) % 100}",
        f"insert into items select id + {10_000 * (round_ + 1)}, name, n, _syncline_version from items where id <= 10",
        "update items set _syncline_version = 9007199254740000 where id = 9",
    )


@pytest.mark.parametrize("kills", [KILLS, pytest.param(SOAK_KILLS, marks=pytest.mark.soak)])
def test_verifiers_that_are_killed_at_random_change_nothing_and_the_next_one_finds_what_differs(
    filled: Pipeline, kills: int
) -> None:
    filled.database.execute("insert into items select g, 'n' || g, 0 from generate_series(2001, 2100) g")
    assert filled.verify().differences == 0
    filled.damage(  # where the writer writes nothing, for what changes is whole again
        "delete from items where id between 2001 and 2010",
        "update items set name = 'x' where id between 2011 and 2025",
        "insert into items select id + 10000, name, n, _syncline_version from items where id > 2095",
    )
    with Forks() as forks, writing(filled):
        verifiers = Kills(filled, forks)
        assert verifiers.whole.code == 4
        for _ in range(100 * kills):
            verifiers.one()
            if verifiers.made == kills:
                break
    assert verifiers.made == kills
    (found,) = filled.verify().tables
    assert (found.missing, found.different, found.extra) == (10, 15, 5)
    eventually(lambda: slots(filled) == ["syncline"])


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


def test_a_table_that_is_truncated_and_rewritten_in_the_middle_of_a_repair_ends_equal(
    filled: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled.damage("delete from items where id % 20 = 0")
    ask, rewritten = ControlSchema.request_repair, []

    def asking(*given: Any) -> int:
        number = ask(*given)
        if len(rewritten) < 3:  # between two requests: the repair is under way, and nothing is compared
            rewritten.append(number)
            filled.database.execute("truncate items")
            filled.database.execute("insert into items select g, 'again', 1 from generate_series(1, 500) g")
            filled.database.execute("alter table items alter n type bigint")
            filled.database.execute("alter table items alter n type int")
        return number

    monkeypatch.setattr(ControlSchema, "request_repair", asking)
    with filled.running():
        repair(filled.config, limits=Limits(batch_size=3, max_share=1))
    assert len(rewritten) == 3
    found = repair(filled.config, engine=SyncService, talk=lambda line: None, limits=Limits(max_share=1.0))
    assert found.clean
    assert filled.verify().differences == 0
