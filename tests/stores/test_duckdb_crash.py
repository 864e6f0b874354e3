"""Killed at any moment, the DuckDB file holds whole works and the cursor behind them."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import time
from multiprocessing.connection import Connection
from pathlib import Path

import msgspec
import pytest
from crash_works import expected, nth_work

from syncline.change import Column, Cursor, Position
from syncline.stores import Work
from syncline.stores.duckdb import DuckDBConfig, DuckDBStore
from syncline.testing.store_suite import ITEM, PAIR, Rows, contents

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["syncline.stores.duckdb", "syncline.testing.store_suite"])


def _config(path: Path) -> DuckDBConfig:
    # A tiny log, so that many of the kills fall into checkpoints.
    return DuckDBConfig(path=path, wal_autocheckpoint="64KB", threads=2, checkpoint_idle_s=0, door=False)


def _apply_for_ever(path: Path, told: Connection) -> None:
    """Apply from the stored cursor on, and tell after each work that is durable."""
    store = DuckDBStore(_config(path), "crash")
    cursor = store.open("orders")
    store.migrate(ITEM)
    store.migrate(PAIR)
    n = cursor.position.n if cursor else 0
    while True:
        n += 1
        store.apply(nth_work(n))
        told.send(n)


_WIDER = msgspec.structs.replace(
    ITEM,
    columns=(
        Column("added", "timestamptz", "timestamptz"),
        Column("id", "int8", "bigint", key=True),
        Column("amount", "text", "numeric"),
        Column("name", "text", "text"),
    ),
)
_NARROW = msgspec.structs.replace(ITEM, columns=(_WIDER.columns[1], _WIDER.columns[3]))


def _change_the_table_and_die(path: Path, number: int) -> None:
    """Works before and behind changes of the table, all in one log that no checkpoint ends."""
    store = DuckDBStore(_config(path).model_copy(update={"wal_autocheckpoint": "1GB"}), "crash")
    store.open("orders")
    if number == 0:
        store.migrate(ITEM)
        store.apply(_cursor_only(Rows().upsert(100, 1, "one", None).upsert(100, 2, "two", None).delete(100, 3)))
        store.migrate(_WIDER)
    else:
        store.migrate(_WIDER)
        store.apply(_cursor_only(Rows(_WIDER).upsert(110, 5, 2, "1.5", "TWO").upsert(99, 5, 3, "1", "dead")))
        store.migrate(_NARROW)
        store.apply(_cursor_only(Rows(_NARROW).upsert(120, 4, "four")))
    os.kill(os.getpid(), signal.SIGKILL)


def _cursor_only(rows: Rows) -> Work:
    return Work((rows.table(),), Cursor("orders", Position("log", 1)))


def test_a_log_with_changed_tables_is_replayed_after_a_kill(tmp_path: Path) -> None:
    path = tmp_path / "altered.duckdb"
    for number, schema in ((0, _WIDER), (1, _NARROW)):
        child = _context.Process(target=_change_the_table_and_die, args=(path, number), daemon=True)
        child.start()
        child.join(60)
        assert child.exitcode == -signal.SIGKILL
        assert path.with_name(path.name + ".wal").stat().st_size
        store = DuckDBStore(_config(path), "crash")
        store.open("orders")
        assert store.migrate(schema) == schema
        found = contents(store, schema)
        store.close()
    assert found == {1: ("one", 100), 2: ("TWO", 110), 4: ("four", 120)}


@pytest.mark.slow
def test_forty_kills_leave_data_and_cursor_in_step(tmp_path: Path) -> None:
    _kill_and_compare(tmp_path, 40)


@pytest.mark.soak
def test_two_hundred_kills_leave_data_and_cursor_in_step(tmp_path: Path) -> None:
    _kill_and_compare(tmp_path, 200)


def _kill_and_compare(tmp_path: Path, kills: int) -> None:
    path, rng, reached = tmp_path / "killed.duckdb", random.Random(3), 0
    for _ in range(kills):
        here, there = _context.Pipe(duplex=False)
        child = _context.Process(target=_apply_for_ever, args=(path, there), daemon=True)
        child.start()
        there.close()
        assert here.poll(60)
        time.sleep(rng.uniform(0, 0.25))  # the moment of the kill
        assert child.pid is not None
        os.kill(child.pid, signal.SIGKILL)
        child.join()
        reached = max(reached, _last(here))
        store = DuckDBStore(_config(path), "crash")
        cursor = store.open("orders")
        store.migrate(ITEM)
        store.migrate(PAIR)
        assert cursor is not None
        n = cursor.position.n
        assert n >= reached, "a work that was told to be durable is gone"
        assert contents(store) == expected(n)
        assert len(contents(store, PAIR)) == n
        store.close()
    assert reached > kills


def _last(told: Connection) -> int:
    last = 0
    try:
        while told.poll():
            last = told.recv()
    except EOFError:
        pass  # the child is dead, and everything it told has been read
    return last
