"""Stopping when something does not end: it says what it waits for, it ends all the same, and nothing is lost."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from reliability.harness import Rig
from reliability.test_server import faulty
from reliability.workload import SCHEMA
from servers import eventually
from syncline.capture.slot import Identity
from syncline.log import Incarnation
from syncline.pipeline import service
from syncline.pipeline.source import SourcePipeline
from syncline.pipeline.targets import Targets
from syncline.testing.faulty import Fault

# `syncline run` whose target never ends its first step.
HANGING = """
import sys, threading
from syncline.pipeline import SyncService
from syncline.service.cli import main
from syncline.testing.faulty import Fault, FaultyStore

class Hang(Fault):
    def strike(self):
        print("the target hangs", file=sys.stderr, flush=True)
        threading.Event().wait()

original = SyncService._stores

def stores(self, source):
    return {name: FaultyStore(store, Hang(after=True)) for name, store in original(self, source).items()}

SyncService._stores = stores
main(["run"])
"""


@pytest.mark.parametrize("after", [False, True], ids=["before the write", "after it"])
def test_a_step_that_outlasts_the_patience_of_stopping_is_done_again_at_the_next_start(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, after: bool
) -> None:
    monkeypatch.setattr(service, "_PATIENCE_S", 0.3)
    rig.database.execute(SCHEMA)
    rig.database.execute("insert into item (id, name) select g, 'n' || g from generate_series(1, 50) g")
    stores = faulty(monkeypatch)
    hang = threading.Event()
    with rig.running() as engine:
        stores["main"].faults.append(Fault(hang=hang, after=after))
        rig.database.execute("update item set name = 'late' where id < 10; delete from item where id > 40")
        eventually(lambda: stores["main"].struck)
        worker = engine.source.targets["main"]
        began = time.monotonic()
        engine.service.stop(1.0)
        assert 1.0 <= time.monotonic() - began < 15
        assert "stopping waits, at most 1 s in all, for target main, which is writing" in engine.talk
        assert engine.talk[-1].startswith("not ended after 1 s: target main")
        hang.set()
        eventually(lambda: not worker.running)
        assert engine.service.errors() == [], "it failed because it was cut off"
        assert engine.service.exit_code() == 0
    monkeypatch.undo()
    rig.sync()
    assert rig.difference() == ""
    assert rig.gaps(ever=True) == []
    assert rig.alerts() == []


def test_stopping_that_is_quick_says_nothing_of_waiting(rig: Rig) -> None:
    rig.database.execute(SCHEMA)
    with rig.running() as engine:
        engine.service.stop()
        assert not [line for line in engine.talk if "waits" in line or "not ended" in line]


def test_targets_that_are_started_while_it_is_asked_to_stop_end_too(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    rig.database.execute(SCHEMA)
    rig.sync()
    reached, asked = threading.Event(), threading.Event()
    original = Targets.start

    def start(self: Targets, incarnation: Incarnation, identity: Identity) -> None:
        reached.set()
        asked.wait()
        original(self, incarnation, identity)

    monkeypatch.setattr(Targets, "start", start)
    ask = SourcePipeline.ask_to_stop

    def ask_to_stop(self: SourcePipeline) -> None:
        ask(self)
        asked.set()

    monkeypatch.setattr(SourcePipeline, "ask_to_stop", ask_to_stop)
    with rig.running(until_loaded=False) as engine:
        assert reached.wait(30)
        engine.service.stop()
        assert not [line for line in engine.talk if line.startswith("not ended")]


def test_a_second_sigterm_ends_a_run_that_can_not_stop_and_nothing_is_lost(rig: Rig) -> None:
    rig.database.execute(SCHEMA)
    rig.database.execute("insert into item (id, name) select g, 'n' || g from generate_series(1, 50) g")
    said = rig.folder / "said"
    environment = {**os.environ, "SYNCLINE_CONFIG": str(rig.config)}
    with said.open("w") as stderr:
        process = subprocess.Popen([sys.executable, "-c", HANGING], stderr=stderr, cwd=rig.folder, env=environment)
    try:
        eventually(lambda: "the target hangs" in said.read_text() and "Syncline runs" in said.read_text(), 60)
        process.send_signal(signal.SIGTERM)
        eventually(lambda: "for target main, which is writing" in said.read_text())
        assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        assert process.wait(5) == 130
    finally:
        process.kill()
        process.wait()
    assert "Aborted. Nothing is lost" in said.read_text()
    assert "Traceback" not in said.read_text()
    rig.sync()
    assert rig.difference() == ""
