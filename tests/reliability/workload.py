"""Transactions of every kind at once, from a seed: what an application that nobody waits for may do."""

from __future__ import annotations

import random
import threading
from typing import Any

import psycopg

from servers import Database

SCHEMA = """
create table item (id bigint primary key, name text, amount numeric(12, 2), at timestamptz default now(), doc text);
alter table item alter doc set storage external;
create table line (item bigint, n int, note text, doc text, primary key (item, n));
alter table line alter doc set storage external;
create table "Log ""of"" it" (id bigint generated always as identity primary key, "What" text);
"""
KEYS = 300


class Workload:
    """Writes to the tables of :data:`SCHEMA` in a thread, one transaction after the other, until it is paused."""

    def __init__(self, database: Database, seed: int, *, pause_s: float = 0.002) -> None:
        self._database = database
        self._random = random.Random(seed)
        self._pause_s = pause_s
        self._quiet = threading.Lock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="workload")
        self.failed: Exception | None = None
        self.transactions = 0

    def __enter__(self) -> Workload:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        if self.failed is not None:
            raise self.failed

    @property
    def quiet(self) -> threading.Lock:
        """Held: no transaction is open, none begins."""
        return self._quiet

    def _run(self) -> None:
        try:
            with self._database.connect(autocommit=False) as connection:
                while not self._stop.wait(self._pause_s):
                    with self._quiet:
                        self.transaction(connection)
        except Exception as error:  # noqa: BLE001 - raised again where the workload is left
            self.failed = error

    def transaction(self, connection: psycopg.Connection[Any]) -> None:
        """One transaction: some statements, at times a savepoint that is rolled back, at times rolled back itself."""
        choose = self._random
        for _ in range(choose.choice((1, 1, 2, 3, 8))):
            self.statement(connection)
            if choose.random() < 0.1:
                with connection.transaction(force_rollback=True):
                    self.statement(connection)
        if choose.random() < 0.05:
            connection.rollback()
        else:
            connection.commit()
            self.transactions += 1

    def statement(self, connection: psycopg.Connection[Any]) -> None:
        """One change, of a kind and to rows drawn by lot."""
        draw = self._random.random()
        key, other, size = self._key(), self._key(), self._random.choice((5, 3000, 20_000))
        text = f"{self._random.random():.12f}"
        if draw < 0.25:
            connection.execute(
                "insert into item (id, name, amount, doc) values (%s, %s, %s, repeat(%s, %s)) on conflict (id)"
                " do update set name = excluded.name, amount = excluded.amount, doc = excluded.doc",
                [key, text, key * 1.25, text[-4:], size // 4],
            )
        elif draw < 0.45:
            connection.execute("update item set name = %s where id between %s and %s", [text, key, key + 5])
        elif draw < 0.55:
            connection.execute("delete from item where id = %s", [key])
        elif draw < 0.65:
            connection.execute("update item set id = %s where id = %s and not exists (select from item where id = %s)",
                               [other, key, other])  # fmt: skip
        elif draw < 0.70:
            self._swap(connection, key, other)
        elif draw < 0.82:
            connection.execute(
                "insert into line select %s, g, %s, repeat('z', %s) from generate_series(1, %s) g"
                " on conflict do nothing",
                [key, text, size, self._random.randint(1, 20)],
            )
        elif draw < 0.90:
            connection.execute("update line set item = %s, note = 'moved' where item = %s and n = 1"
                               " and not exists (select from line where item = %s)", [other, key, other])  # fmt: skip
        elif draw < 0.95:
            connection.execute('insert into "Log ""of"" it" ("What") select %s from generate_series(1, 30)', [text])
        elif draw < 0.98:
            connection.execute("delete from line where item > %s", [key])
        elif draw < 0.99:
            connection.execute('truncate "Log ""of"" it"')
        else:
            connection.execute("truncate line, item")

    def _swap(self, connection: psycopg.Connection[Any], one: int, other: int) -> None:
        """Exchange the keys of two rows by way of a third."""
        present = connection.execute("select count(*) from item where id in (%s, %s)", [one, other]).fetchone()
        if one != other and present == (2,):
            for new, old in ((-1, one), (one, other), (other, -1)):
                connection.execute("update item set id = %s where id = %s", [new, old])

    def _key(self) -> int:
        return self._random.randint(1, KEYS)
