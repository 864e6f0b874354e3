"""Killed, cut off or put back at any moment, a Qdrant copy loses nothing: the cursor is never ahead of the rows, and
what is applied again makes the copy whole."""

from __future__ import annotations

import multiprocessing
import os
import random
import resource
import shutil
import signal
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
from crash_works import expected, nth_work, touched

from syncline.change import Cursor, Position, TableSchema
from syncline.errors import Gap, Misconfigured, Rejected, Unavailable
from syncline.stores import Work
from syncline.stores.qdrant import QdrantConfig, QdrantStore
from syncline.stores.qdrant.edge import EdgePoints
from syncline.stores.qdrant.points import Points, Refused, Spec, Stored
from syncline.testing.store_suite import ITEM, PAIR, Rows, contents, work

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["syncline.stores.qdrant.edge", "syncline.testing.store_suite"])


def opened(path: Path, *schemas: TableSchema) -> tuple[QdrantStore, Cursor | None]:
    store = QdrantStore(QdrantConfig(path=path, door=False), "crash")
    cursor = store.open("orders")
    for schema in schemas or (ITEM,):
        store.migrate(schema)
    return store, cursor


def _apply_for_ever(path: Path, told: Connection) -> None:
    """Apply from the stored cursor on, and tell after each work that is durable."""
    store, cursor = opened(path, ITEM, PAIR)
    n = cursor.position.n if cursor else 0
    while True:
        n += 1
        store.apply(nth_work(n))
        told.send(n)


@pytest.mark.slow
def test_twenty_kills_leave_nothing_that_applying_again_does_not_heal(tmp_path: Path) -> None:
    _kill_and_heal(tmp_path, 20)


@pytest.mark.soak
def test_two_hundred_kills_leave_nothing_that_applying_again_does_not_heal(tmp_path: Path) -> None:
    _kill_and_heal(tmp_path, 200)


def _kill_and_heal(tmp_path: Path, kills: int) -> None:
    path, rng, reached = tmp_path / "killed", random.Random(3), 0
    for _ in range(kills):
        here, there = _context.Pipe(duplex=False)
        child = _context.Process(target=_apply_for_ever, args=(path, there), daemon=True)
        child.start()
        there.close()
        assert here.poll(120)
        time.sleep(rng.uniform(0, 0.5))  # the moment of the kill
        assert child.pid is not None
        os.kill(child.pid, signal.SIGKILL)
        child.join()
        reached = max(reached, _last(here))
        store, cursor = opened(path, ITEM, PAIR)
        assert cursor is not None
        n = cursor.position.n
        assert n >= reached, "a work that was told to be durable is gone"
        behind = expected(n)
        untouched = {k: row for k, row in contents(store).items() if k not in touched(n + 1)}
        assert untouched == {k: row for k, row in behind.items() if k not in touched(n + 1)}
        store.apply(nth_work(n + 1))
        assert contents(store) == expected(n + 1)
        assert len(contents(store, PAIR)) == n + 1
        reached = n + 1
        store.close()
    assert reached > kills


def _note_for_ever(path: Path, number: int, told: Connection) -> None:
    """One point, written and flushed again and again, from an opened shard's very first operation on."""
    points = EdgePoints.acquire(path)
    while True:
        number += 1
        points.put("notes", [Stored(1, {"number": number, "of any size": "x" * random.randrange(400)})])
        points.sync(["notes"])
        told.send(number)


@pytest.mark.slow
def test_what_was_flushed_survives_a_kill_amid_the_next_flush(tmp_path: Path) -> None:
    """Without the operation that says nothing behind the opening, some of these kills lose a note."""
    path, rng, number = tmp_path / "killed", random.Random(1), 0
    points = EdgePoints.acquire(path)
    points.create("notes", Spec())
    points.close()
    for _ in range(60):
        here, there = _context.Pipe(duplex=False)
        child = _context.Process(target=_note_for_ever, args=(path, number, there), daemon=True)
        child.start()
        there.close()
        assert here.poll(120)
        time.sleep(rng.uniform(0, 0.02))  # the moment of the kill
        assert child.pid is not None
        os.kill(child.pid, signal.SIGKILL)
        child.join()
        told = _last(here)
        points = EdgePoints.acquire(path)
        (found,) = points.retrieve("notes", [1], vectors=False)
        points.close()
        assert found.payload["number"] >= told, "a note that was flushed is gone"
        number = found.payload["number"]


def _last(told: Connection) -> int:
    last = 0
    try:
        while told.poll():
            last = told.recv()
    except EOFError:
        pass  # the child is dead, and everything it told has been read
    return last


# ------------------------------------------------------------------------------------------- cut off at every step


class Cut(EdgePoints):
    """Breaks behind the ``left``-th write: it was done, and its reply is lost."""

    left = 10**9

    def _count(self) -> None:
        self.left -= 1
        if self.left < 0:
            raise Unavailable("The line is cut.")

    def upsert(self, collection: str, points: Sequence[Stored], versions: Sequence[int]) -> None:
        super().upsert(collection, points, versions)
        self._count()

    def overwrite(self, collection: str, points: Sequence[Stored], versions: Sequence[int]) -> None:
        super().overwrite(collection, points, versions)
        self._count()

    def put(self, collection: str, points: Sequence[Stored]) -> None:
        super().put(collection, points)
        self._count()

    def delete(self, collection: str, ids: Sequence[Any]) -> None:
        super().delete(collection, ids)
        self._count()

    def sync(self, collections: Sequence[str]) -> None:
        super().sync(collections)
        self._count()


class CutStore(QdrantStore):
    def _connect(self) -> Points:
        assert self.config.path is not None
        return Cut.acquire(self.config.path)


def test_a_work_cut_off_behind_any_of_its_writes_is_made_whole_by_applying_it_again(quick_folder: Path) -> None:
    """Two keys that swap are the hard part: each takes values that the other's write replaces."""
    rows = Rows()
    for key in range(1, 8):
        rows.upsert(100, key, f"was {key}", None)
    before = work(rows, n=1)
    hard = work(
        Rows()
        .partial(110, 1, None, None, unchanged=["name"], origin=(2,))
        .partial(110, 2, None, None, unchanged=["name"], origin=(1,))
        .partial(111, 8, None, None, unchanged=["name"], origin=(3,))
        .partial(112, 4, "said", None, unchanged=["amount"])
        .upsert(113, 5, "new", None)
        .delete(114, 3)
        .delete(115, 6),
        truncated=99,
        n=2,
    )
    whole = {1: "was 2", 2: "was 1", 8: "was 3", 4: "said", 5: "new", 7: "was 7"}
    cuts = 0
    for left in range(100):
        path = quick_folder / str(left)
        store, _ = opened(path)
        store.apply(before)
        store.close()
        cut = CutStore(QdrantConfig(path=path), "cut")
        cut.open("orders")
        cut.migrate(ITEM)
        cut._points.left = left  # type: ignore[attr-defined]
        try:
            cut.apply(hard)
        except Unavailable:
            cuts += 1
        else:
            cut.close()
            break
        cut.close()
        for _ in range(2):
            store, cursor = opened(path)
            assert cursor is not None
            assert cursor.position.n in (1, 2)
            store.apply(hard)
            assert {k: row[0] for k, row in contents(store).items()} == whole
            store.close()
    assert cuts > 8


def test_rows_that_qdrant_refuses_are_found_by_halves_and_the_others_are_written(quick_folder: Path) -> None:
    class Picky(EdgePoints):
        def upsert(self, collection: str, points: Sequence[Stored], versions: Sequence[int]) -> None:
            if any(p.payload.get("name") == "bad" for p in points):
                raise Refused("Qdrant does not take a value")
            super().upsert(collection, points, versions)

    class PickyStore(QdrantStore):
        def _connect(self) -> Points:
            return Picky.acquire(quick_folder)

    store = PickyStore(QdrantConfig(path=quick_folder), "picky")
    store.open("orders")
    store.migrate(ITEM)
    rows = Rows()
    for key in range(1_300):
        rows.upsert(100 + key % 3, key, "bad" if key in (7, 700, 1_299) else "good", None)
    with pytest.raises(Rejected) as refused:
        store.apply(work(rows, n=1))
    assert refused.value.rows == (7, 700, 1_299)
    assert len(contents(store)) == 1_297
    store.close()
    store, cursor = opened(quick_folder)
    assert cursor is None
    store.close()


# ------------------------------------------------------------------------------------------------- put back, damaged


def test_a_collection_put_back_from_an_older_copy_takes_the_cursor_back_with_it(quick_folder: Path) -> None:
    path = quick_folder / "points"
    store, _ = opened(path, ITEM, PAIR)
    for n in range(1, 4):
        store.apply(nth_work(n))
    store.close()
    shutil.copytree(path / "collections" / "item", quick_folder / "saved")
    store, _ = opened(path, ITEM, PAIR)
    for n in range(4, 9):
        store.apply(nth_work(n))
    store.apply(Work((), Cursor("orders", Position("log", 20))))
    store.close()
    shutil.rmtree(path / "collections" / "item")
    shutil.move(quick_folder / "saved", path / "collections" / "item")
    store, cursor = opened(path, ITEM, PAIR)
    assert cursor == nth_work(3).cursor
    for n in range(4, 9):
        store.apply(nth_work(n))
    assert contents(store) == expected(8)
    store.close()
    store, cursor = opened(path, ITEM, PAIR)
    assert cursor == nth_work(8).cursor
    store.close()


def test_a_damaged_shard_is_moved_aside_and_its_table_read_again(quick_folder: Path) -> None:
    store, _ = opened(quick_folder)
    store.apply(work(Rows().upsert(100, 1, "one", None)))
    store.close()
    (config,) = (quick_folder / "collections" / "item").glob("edge_config.json")
    for file in (quick_folder / "collections" / "item" / "segments").rglob("segment.json"):
        file.write_bytes(b"\0" * 10)
    config.write_text("{")
    store = QdrantStore(QdrantConfig(path=quick_folder, door=False), "crash")
    with pytest.raises(Gap) as gap:
        store.open("orders")
    assert gap.value.code == "SL-QDRANT-DAMAGED"
    assert list(quick_folder.glob("item.damaged-*"))
    assert store.open("orders") is not None
    assert store.migrate(ITEM) is None
    store.close()


def test_a_shard_that_the_system_does_not_let_open_is_not_taken_for_damaged(quick_folder: Path) -> None:
    store, _ = opened(quick_folder)
    store.apply(work(Rows().upsert(100, 1, "one", None)))
    store.close()
    points = EdgePoints.acquire(quick_folder)
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    with open(os.devnull) as lowest:
        number = lowest.fileno()
    resource.setrlimit(resource.RLIMIT_NOFILE, (number, before[1]))  # no file can be opened any more
    try:
        with pytest.raises(Unavailable, match="os error 24"):
            points.spec("item")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    assert points.spec("item") is not None
    points.close()
    assert not list(quick_folder.glob("item.damaged-*"))


def test_a_folder_whose_door_cannot_be_made_is_let_go_of(quick_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> None:
        raise OSError("no socket")

    with monkeypatch.context() as patched:
        patched.setattr("syncline.stores.qdrant.edge.Door", fails)
        with pytest.raises(OSError, match="no socket"):
            EdgePoints.acquire(quick_folder, door=True)
    EdgePoints.acquire(quick_folder, door=True).close()


def test_a_folder_is_for_one_process_and_says_whose(quick_folder: Path) -> None:
    here, there = _context.Pipe(duplex=False)
    child = _context.Process(target=_apply_for_ever, args=(quick_folder, there), daemon=True)
    child.start()
    assert here.poll(120)
    with pytest.raises(Misconfigured) as refused:
        opened(quick_folder)
    assert refused.value.code == "SL-QDRANT-LOCKED"
    child.kill()
    child.join()
    store, _ = opened(quick_folder)
    store.close()
