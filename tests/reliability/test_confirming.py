"""Guarantee 1: the slot is never told of a place that the log does not hold, however slow the log is."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from reliability.harness import Engine, Rig
from reliability.workload import SCHEMA, Workload
from servers import Database, eventually
from syncline.change import Entry, Position
from syncline.embedded import EmbeddedPostgres
from syncline.log.embedded import EmbeddedLog

STATUS = """
select (s.confirmed_flush_lsn - '0/0')::int8, (r.sent_lsn - '0/0')::int8, r.reply_time
from pg_replication_slots s join pg_stat_replication r on r.pid = s.active_pid where s.slot_name = %s
"""


class Gate:
    """What an append of the log waits for."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._open = threading.Event()
        self._open.set()
        self.waiting = 0
        original = EmbeddedLog.append

        def append(log: EmbeddedLog, entries: Sequence[Entry]) -> Position:
            if not self._open.is_set():
                self.waiting += 1
                self._open.wait()
            return original(log, entries)

        monkeypatch.setattr(EmbeddedLog, "append", append)

    def close(self) -> None:
        self._open.clear()

    def open(self) -> None:
        self._open.set()


@pytest.fixture
def quick(pg_server: EmbeddedPostgres, tmp_path: Path) -> Rig:
    """A rig whose server is told every two seconds at most how far the engine is."""
    pg_server.create_database("quick")
    rig = Rig(Database(pg_server, "quick"), tmp_path)
    rig.database.execute("alter system set wal_sender_timeout = '5s'")
    rig.database.execute("select pg_reload_conf()")
    rig.database.execute(SCHEMA)
    return rig


def replied(rig: Rig, engine: Engine, since: datetime | None = None) -> tuple[int, int, datetime]:
    """Wait for the next time that the server was told: what it takes for confirmed, and has sent, then. Whatever is
    seen on the way is checked against the log."""
    ahead: list[int] = []

    def told() -> Any:
        found = rig.database.execute(STATUS, rig.slot)
        if not found:
            return None
        confirmed, _, at = found[0]
        # The log is asked second: what it gets in between must not hide anything.
        ahead.extend([confirmed] if confirmed > durable(engine) else [])
        return found[0] if ahead or (at is not None and (since is None or at > since)) else None

    status: tuple[int, int, datetime] = eventually(told)
    assert ahead == [], "confirmed before it was durable"
    return status


def durable(engine: Engine) -> int:
    return int(engine.source.log.status().place)


def test_the_slot_is_not_told_of_what_the_log_has_yet_to_take(quick: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = Gate(monkeypatch)
    with quick.running() as engine, Workload(quick.database, 31):
        for _ in range(2):
            _, _, at = replied(quick, engine)
            waiting = gate.waiting  # before it closes: there is one append at a time, and it may be held right then
            gate.close()
            try:
                eventually(lambda waiting=waiting: gate.waiting > waiting)
                stood, goal = durable(engine), quick.now()
                for _ in range(3):  # the server was told three times, of which twice after it had sent more
                    _, sent, at = replied(quick, engine, at)
                assert sent > goal > stood
                assert durable(engine) == stood, "the log was not held"
            finally:
                gate.open()
            eventually(lambda goal=goal: durable(engine) >= goal)
        quick_confirmed = replied(quick, engine)[0]
        eventually(lambda: replied(quick, engine)[0] > quick_confirmed)
    assert quick.gaps(ever=True) == []
