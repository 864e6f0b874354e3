"""Killed at any moment, the DuckDB file holds whole works and the cursor behind them."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import msgspec
import pytest

from syncline.change import Column, Cursor, Position
from syncline.stores import Work
from syncline.stores.duckdb import DuckDBConfig, DuckDBStore
from syncline.testing.store_suite import ITEM, PAIR, Rows, contents

_KEYS = 40
_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["syncline.stores.duckdb", "syncline.testing.store_suite"])


def _config(path: Path) -> DuckDBConfig:
    # A tiny log, so that many of the kills fall into checkpoints.
    return DuckDBConfig(path=path, wal_autocheckpoint="64KB", threads=2, checkpoint_idle_s=0, door=False)


def _work(n: int) -> Work:
    """The n-th work: updates, inserts, a delete, a moved row, and now and then a truncation; two tables alike."""
    if n % 50 == 0:
        return _cursor(n, Rows().upsert(n, 1, f"behind {n}", None), truncated=n - 1)
    rows = Rows()
    for i in range(12):
        rows.upsert(n, (n * 7 + i) % _KEYS, f"work {n}", None)
    rows.delete(n, (n * 7 + 20) % _KEYS)
    rows.partial(n, (n * 7 + 21) % _KEYS, None, None, unchanged=["name"], origin=((n * 7 + 22) % _KEYS,))
    return _cursor(n, rows)


def _cursor(n: int, rows: Rows, truncated: int | None = None) -> Work:
    other = Rows(PAIR).upsert(n, "north", n, n.to_bytes(16, "big"), "x")
    return Work((rows.table(truncated=truncated), other.table()), Cursor("orders", Position("log", n)))


def _expected(n: int) -> dict[int, tuple[Any, ...]]:
    """What the works 1 to n leave, by the simplest means."""
    state: dict[int, tuple[Any, ...]] = {}
    for k in range(1, n + 1):
        if k % 50 == 0:
            state = {1: (f"behind {k}", None, k)}
            continue
        base = state.get((k * 7 + 22) % _KEYS)
        for i in range(12):
            state[(k * 7 + i) % _KEYS] = (f"work {k}", None, k)
        state.pop((k * 7 + 20) % _KEYS, None)
        if base is not None:
            state[(k * 7 + 21) % _KEYS] = (base[0], None, k)
    return state


def _apply_for_ever(path: Path, told: Connection) -> None:
    """Apply from the stored cursor on, and tell after each work that is durable."""
    store = DuckDBStore(_config(path), "crash")
    cursor = store.open("orders")
    store.migrate(ITEM)
    store.migrate(PAIR)
    n = cursor.position.n if cursor else 0
    while True:
        n += 1
        store.apply(_work(n))
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
    path, rng, reached = tmp_path / "killed.duckdb", random.Random(3), 0
    for _ in range(40):
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
        assert contents(store) == _expected(n)
        assert len(contents(store, PAIR)) == n
        store.close()
    assert reached > 40


def _last(told: Connection) -> int:
    last = 0
    try:
        while told.poll():
            last = told.recv()
    except EOFError:
        pass  # the child is dead, and everything it told has been read
    return last
