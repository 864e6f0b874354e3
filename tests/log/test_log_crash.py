"""What the log acknowledged survives SIGKILL at any moment, and large transactions stay whole."""

from __future__ import annotations

import multiprocessing
import os
import random
import sys
from pathlib import Path

import pytest

from log import crash_writer
from syncline.change import Position
from syncline.log.embedded import EmbeddedLog
from syncline.testing.log_suite import read_all


@pytest.mark.parametrize("cycles", [30, pytest.param(1000, marks=pytest.mark.soak)])
def test_everything_acknowledged_survives_sigkill_at_random_moments(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cycles: int
) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))  # so that the fork server finds what it preloads
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload(["log.crash_writer"])
    chance = random.Random(cycles)
    done, entries_before = 0, 0
    for _ in range(cycles):
        receiver, sender = processes.Pipe(duplex=False)
        writer = processes.Process(target=crash_writer.write, args=(tmp_path, sender))
        writer.start()
        sender.close()
        assert receiver.poll(60), "the writer never began"
        acknowledged = receiver.recv()
        writer.join(chance.uniform(0, 0.06))  # a moment in the middle of whatever it does
        writer.kill()
        writer.join()
        while receiver.poll():
            try:
                acknowledged = receiver.recv()
            except EOFError:
                break
        log = EmbeddedLog(crash_writer.config(tmp_path), "main")
        durable = log.status().max_version
        assert durable >= acknowledged > done
        # The writer goes on behind what is durable, so what was written is each transaction once, whole and in order.
        found = [e for e in read_all(log, after=entries_before) if e.rows]
        assert found == [e for version in range(done + 1, durable + 1) for e in crash_writer.transaction(version)]
        done, entries_before = durable, log.status().end
        log.advance("duck", Position(log.uuid, entries_before))
        log.trim()
        log.close()
