"""Verification while the source is written to without pause: no row differs, so none is said to."""

from __future__ import annotations

import itertools
import random
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import psycopg
import pyarrow as pa
import pytest
from piped import Pipeline

from syncline.pipeline import SyncService
from syncline.verify import digest as verify_digest
from syncline.verify import verify

_ROWS = 14_000  # at first; what stays of them is enough for digests to be worth it
_BATCH = 100  # rows of one statement
_RATE = 5_000  # row changes a second, of all writers together
_WRITERS = 3
_TABLES = f"""
create table items (id int primary key, n int not null, body text); alter table items alter body set storage external;
insert into items select g, 0, case when g % 5 = 0 then repeat(md5(g::text), 80) else 'b' || g end
from generate_series(1, {_ROWS}) g;
create table small (id int primary key, n int); insert into small select g, 0 from generate_series(1, 50) g;
analyze items
"""
_KEYS = "id = any(%(keys)s)"
# An update that leaves the large value where it is arrives without it. A key that is negated comes back one day; under
# both of them there may be a row by then.
_WORKS: dict[str, tuple[float, tuple[str, ...]]] = {
    "update": (0.45, (f"update items set n = n + 1 where {_KEYS}",)),
    "new large value": (
        0.1,
        (f"update items set body = repeat(md5(random()::text), 1 + 79 * (id %% 2)) where {_KEYS}",),
    ),
    "delete": (0.04, (f"delete from items where {_KEYS}",)),
    "insert": (
        0.25,
        ("insert into items select k, -1, repeat('again', 500) from unnest(%(keys)s) k on conflict do nothing",),
    ),
    "delete and insert": (
        0.06,
        (
            f"delete from items where {_KEYS}",
            "insert into items select k, -2, 'at once' from unnest(%(keys)s) k on conflict do nothing",
        ),
    ),
    "key change": (
        0.1,
        ("update items i set id = -id where id = any(%(keys)s || %(negated)s::int[]) and not exists"
         " (select from items o where o.id = -i.id)",),
    ),
}  # fmt: skip


@dataclass
class Load:
    """Writers that change rows at about :data:`_RATE` until they are stopped, and what they did. They rest while the
    engine is ``behind``: of rows that are all in flight nothing would be shown, however long it took."""

    dsn: str
    behind: Callable[[], bool]
    stop: threading.Event = field(default_factory=threading.Event)
    emptying: threading.Event = field(default_factory=threading.Event)
    changed: Counter[str] = field(default_factory=Counter)
    failed: list[Exception] = field(default_factory=list)
    began: float = 0.0
    seconds: float = 0.0
    asked: float = 0.0
    rests: bool = False

    def __enter__(self) -> Load:
        self.began = time.monotonic()
        works = [threading.Thread(target=self._guarded, args=(self._write, seed)) for seed in range(_WRITERS)]
        self._threads = [*works, threading.Thread(target=self._guarded, args=(self._empty,))]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop.set()
        self.emptying.set()
        for thread in self._threads:
            thread.join()
        self.seconds = time.monotonic() - self.began

    @property
    def rate(self) -> float:
        """Row changes a second."""
        return self.changed.total() / self.seconds

    def _guarded(self, work: Any, *arguments: int) -> None:
        try:
            work(*arguments)
        except Exception as error:  # noqa: BLE001 - the test fails by it: without writers it would show nothing
            self.failed.append(error)

    def _write(self, seed: int) -> None:
        """Transactions of some statements, each on keys that no other writer touches."""
        chosen, mine, began = random.Random(seed), Counter[str](), time.monotonic()
        names, weights = list(_WORKS), [weight for weight, _ in _WORKS.values()]
        with psycopg.connect(self.dsn) as connection:
            while not self.stop.wait(max(0.0, began + mine.total() * _WRITERS / _RATE - time.monotonic())):
                for name in chosen.choices(names, weights, k=chosen.randrange(1, 4)):
                    keys = chosen.sample(range(1 + seed, _ROWS + 1, _WRITERS), _BATCH)
                    for statement in _WORKS[name][1]:
                        given = {"keys": keys, "negated": [-key for key in keys]}
                        mine[name] += connection.execute(statement.encode(), given).rowcount
                connection.commit()
                while self._rests() and not self.stop.wait(0.1):
                    began += 0.1
        self.changed += mine

    def _rests(self) -> bool:
        """Whether the engine was behind a moment ago."""
        if time.monotonic() - self.asked > 0.25:
            self.asked = time.monotonic()
            self.rests = self.behind()
        return self.rests

    def _empty(self) -> None:
        """Truncate the small table and fill it again, each time that it is asked for."""
        with psycopg.connect(self.dsn) as connection:
            for n in itertools.count(1):
                self.emptying.wait()
                if self.stop.is_set():
                    return
                self.emptying.clear()
                connection.execute("truncate small")
                connection.execute("insert into small select g, %s from generate_series(1, 50) g", [n])
                connection.commit()


def behind(service: SyncService) -> float:
    """Seconds."""
    return float(service.status()["sources"]["main"]["targets"]["main"].get("lag_s", 0.0))


@pytest.mark.parametrize("checks", [100_000, pytest.param(1_000_000, marks=pytest.mark.soak)])
def test_no_row_is_said_to_differ_that_does_not(
    pipeline: Pipeline, checks: int, record_property: pytest.RecordProperty, monkeypatch: pytest.MonkeyPatch
) -> None:
    by_digests = 0
    unequal = verify_digest._unequal

    def counted(mine: pa.Table, theirs: pa.Table) -> Any:
        nonlocal by_digests
        by_digests += 1
        return unequal(mine, theirs)

    monkeypatch.setattr(verify_digest, "_unequal", counted)
    pipeline.database.execute(_TABLES)
    assert pipeline.verify().differences == 0
    looked = in_flight = verifications = 0
    with pipeline.running() as service:
        with Load(pipeline.database.dsn, lambda: behind(service) > 5) as load:
            for full in itertools.cycle([False, True]):
                load.emptying.set()
                report = verify(pipeline.config, full=full)
                assert [(t.table, t.state) for t in report.tables] == [
                    ("public.items", "compared"),
                    ("public.small", "compared"),
                ]
                assert report.differences == 0, report.to_dict(show_keys=True)
                assert load.failed == []
                looked += sum(t.rows for t in report.tables)
                in_flight += sum(t.in_flight for t in report.tables)
                verifications += 1
                if looked - in_flight >= checks:
                    break
        last = verify(pipeline.config, full=True)
    said = (
        f"{looked - in_flight:,} row checks in {verifications} verifications, {in_flight:,} rows in flight, beside"
        f" {load.rate:,.0f} row changes/s ({dict(load.changed)})"
    )
    print(said)
    record_property("load", said)
    assert load.failed == []
    assert in_flight, "nothing was written while rows were compared"
    assert by_digests >= verifications // 2, "the table became too small for digests"
    assert min(load.changed[work] for work in _WORKS) > 0
    assert (last.differences, sum(t.in_flight for t in last.tables)) == (0, 0)
