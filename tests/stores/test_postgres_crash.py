"""The server dies in the middle of works, again and again: data and cursor stay in step, and nothing told is lost."""

from __future__ import annotations

import random
import threading
import time
from contextlib import closing
from typing import Any

import psycopg
import pytest
from pydantic import SecretStr

from servers import eventually
from syncline.change import Cursor, Position
from syncline.embedded import EmbeddedPostgres
from syncline.errors import Unavailable
from syncline.stores import Work
from syncline.stores.postgres import PostgresConfig, PostgresStore
from syncline.testing.store_suite import ITEM, PAIR, Rows, contents

_KEYS = 40


def _work(n: int) -> Work:
    """The n-th work: updates, inserts, a delete, a moved row, and now and then a truncation; two tables alike."""
    other = Rows(PAIR).upsert(n, "north", n, n.to_bytes(16, "big"), "x")
    if n % 50 == 0:
        tables = (Rows().upsert(n, 1, f"behind {n}", None).table(truncated=n - 1), other.table())
        return Work(tables, Cursor("orders", Position("log", n)))
    rows = Rows()
    for i in range(12):
        rows.upsert(n, (n * 7 + i) % _KEYS, f"work {n}", None)
    rows.delete(n, (n * 7 + 20) % _KEYS)
    rows.partial(n, (n * 7 + 21) % _KEYS, None, None, unchanged=["name"], origin=((n * 7 + 22) % _KEYS,))
    return Work((rows.table(), other.table()), Cursor("orders", Position("log", n)))


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


class _Applier(threading.Thread):
    """Applies from the stored cursor on until the server is gone; ``reached`` is the last work it was told of."""

    def __init__(self, config: PostgresConfig) -> None:
        super().__init__(daemon=True)
        self.reached = 0
        self.error: BaseException | None = None
        self._store = PostgresStore(config, "crash")

    def run(self) -> None:
        try:
            cursor = self._store.open("orders")
            self._store.migrate(ITEM)
            self._store.migrate(PAIR)
            n = cursor.position.n if cursor else 0
            while True:
                n += 1
                self._store.apply(_work(n))
                self.reached = n
        except BaseException as error:  # noqa: BLE001 - looked at by the test
            self.error = error
        finally:
            self._store.close()


@pytest.mark.slow
def test_twenty_kills_of_the_server_leave_data_and_cursor_in_step(pg_server: EmbeddedPostgres) -> None:
    _kill_and_compare(pg_server, 20)


@pytest.mark.soak
def test_two_hundred_kills_of_the_server_leave_data_and_cursor_in_step(pg_server: EmbeddedPostgres) -> None:
    _kill_and_compare(pg_server, 200)


def _kill_and_compare(pg_server: EmbeddedPostgres, kills: int) -> None:
    config, rng, reached = PostgresConfig(dsn=SecretStr(pg_server.dsn())), random.Random(3), 0
    for _ in range(kills):
        applier = _Applier(config)
        applier.start()
        eventually(lambda told=applier: told.reached > 0 or told.error, 60)  # type: ignore[misc]
        time.sleep(rng.uniform(0, 0.3))  # the moment of the kill
        pg_server.kill()
        applier.join(60)
        assert isinstance(applier.error, Unavailable), applier.error
        pg_server.restart()
        reached = max(reached, applier.reached)
        with psycopg.connect(pg_server.dsn()) as plain:
            found = plain.execute("select (body::json->'position'->>'n')::int from syncline_target.cursors").fetchone()
            rows = plain.execute("select id, name, amount, _syncline_version from item").fetchall()
            pairs = plain.execute("select count(*) from shop.pair").fetchone()
        assert found is not None
        n = found[0]
        assert n >= reached, "a work that was told to be durable is gone"
        assert {row[0]: row[1:] for row in rows} == _expected(n)
        assert pairs == (n,)
    assert reached > kills


def test_a_server_that_stops_in_the_middle_of_a_work_takes_it_again_when_it_is_back(
    pg_server: EmbeddedPostgres,
) -> None:
    store = PostgresStore(PostgresConfig(dsn=SecretStr(pg_server.dsn())), "target")
    store.open("orders")
    store.migrate(ITEM)
    store.apply(Work((Rows().upsert(5, 1, "one", None).table(),), Cursor("orders", Position("log", 1))))
    with closing(psycopg.connect(pg_server.dsn())) as holder:
        holder.execute("select from item for update")
        step = Work((Rows().upsert(6, 1, "two", None).table(),), Cursor("orders", Position("log", 2)))
        failed: list[BaseException] = []

        def apply() -> None:
            try:
                store.apply(step)
            except BaseException as error:  # noqa: BLE001 - looked at below
                failed.append(error)

        applying = threading.Thread(target=apply)
        applying.start()
        waiting = "select count(*) from pg_stat_activity where wait_event_type = 'Lock'"
        with psycopg.connect(pg_server.dsn(), autocommit=True) as looking:
            eventually(lambda: looking.execute(waiting).fetchone() == (1,))
        pg_server.stop("immediate")
        applying.join(30)
    assert isinstance(failed[0], Unavailable)
    pg_server.restart()
    store.apply(step)
    assert contents(store) == {1: ("two", None, 6)}
    store.close()
