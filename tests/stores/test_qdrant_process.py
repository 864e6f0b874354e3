"""Qdrant Edge in a process of its own: whichever side dies, nothing that was told to be kept is lost, and nothing that
was not kept is taken for kept."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import threading
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
from crash_works import expected, nth_work

from servers import eventually
from syncline.errors import Misconfigured, Unavailable
from syncline.stores.qdrant import QdrantConfig, QdrantStore, open_reader
from syncline.stores.qdrant.points import Dense, Refused, Sparse, Spec, Stored, Which
from syncline.stores.qdrant.process import ProcessPoints
from syncline.testing.store_suite import ITEM, PAIR, contents

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["syncline.stores.qdrant.store", "syncline.testing.store_suite"])

SPEC = Spec({"dense": Dense(2, "dot")}, frozenset({"words"}))


@pytest.fixture
def points(quick_folder: Path) -> Iterator[ProcessPoints]:
    points = ProcessPoints.acquire(quick_folder)
    points.create("notes", SPEC)
    points.sync(["notes"])
    yield points
    points.close()


def point(key: int, version: int, *vector: float, **payload: object) -> Stored:
    return Stored(key, {"_syncline_version": version, **payload}, {"dense": list(vector or (1.0, 2.0))})


def alive(pid: int) -> bool:
    """Whether a process is there, and is more than its exit code."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
    eventually(lambda: not alive(pid))


def opened(path: Path) -> QdrantStore:
    store = QdrantStore(QdrantConfig(path=path, door=False), "killed")
    store.open("orders")
    store.migrate(ITEM)
    store.migrate(PAIR)
    return store


def process_of(store: QdrantStore) -> ProcessPoints:
    assert isinstance(store._points, ProcessPoints)
    return store._points


# ----------------------------------------------------------------------------------------------------------- killed


def _applied(store: QdrantStore, n: int) -> int:
    """Apply a work as the engine does, again from its start where it failed; how often it did."""
    failed = 0
    while True:
        try:
            store.apply(nth_work(n))
        except Unavailable:
            failed += 1
        else:
            return failed


@pytest.mark.slow
def test_a_process_killed_amid_works_costs_nothing_but_a_second_try(tmp_path: Path) -> None:
    _kill_and_go_on(tmp_path / "killed", 20)


@pytest.mark.soak
def test_two_hundred_processes_killed_amid_works_cost_nothing_but_second_tries(tmp_path: Path) -> None:
    _kill_and_go_on(tmp_path / "killed", 200)


def _kill_and_go_on(path: Path, kills: int) -> None:
    store, rng, n, failed = opened(path), random.Random(5), 0, 0
    for _ in range(kills):
        pid = process_of(store).pid
        killer = threading.Timer(rng.uniform(0, 0.1), os.kill, [pid, signal.SIGKILL])  # the moment of the kill
        killer.start()
        while True:
            n += 1
            now = _applied(store, n)
            if now or not alive(pid):
                break
        failed += now
        killer.join()
        assert contents(store) == expected(n)
    assert failed > kills // 10
    assert len(contents(store, PAIR)) == n
    store.close()
    assert store.open("orders") == nth_work(n).cursor
    store.close()


def _hold(path: Path, told: Connection) -> None:
    """Have works written, and be killed."""
    store = opened(path)
    told.send(process_of(store).pid)
    n = 0
    while True:
        n += 1
        store.apply(nth_work(n))
        told.send(n)


def test_a_killed_engine_takes_its_process_along_and_the_next_one_starts_at_once(tmp_path: Path) -> None:
    here, there = _context.Pipe(duplex=False)
    engine = _context.Process(target=_hold, args=(tmp_path / "held", there), daemon=True)
    engine.start()
    there.close()
    pid, reached = here.recv(), 0
    while reached < 5:
        reached = here.recv()
    assert alive(pid)
    engine.kill()
    store = QdrantStore(QdrantConfig(path=tmp_path / "held", door=False), "next")
    cursor = store.open("orders")
    assert cursor is not None
    assert cursor.position.n >= reached
    eventually(lambda: not alive(pid))  # it let go of the folder, and has still to end
    store.migrate(ITEM)
    store.migrate(PAIR)
    _applied(store, cursor.position.n + 1)
    assert contents(store) == expected(cursor.position.n + 1)
    store.close()
    engine.join()


def test_a_writer_never_goes_on_in_another_process_than_it_began_in_although_a_reader_does(
    points: ProcessPoints, quick_folder: Path
) -> None:
    """What was not flushed died with the first one; a cursor behind it would be a lie."""
    points.upsert("notes", [point(1, 5)], [5])
    kill(points.pid)
    reader = ProcessPoints.share(quick_folder.resolve())
    assert reader is not None
    assert reader.retrieve("notes", [1], vectors=False) == []
    with pytest.raises(Unavailable):
        points.sync(["notes"])
    points.upsert("notes", [point(1, 5)], [5])
    points.sync(["notes"])
    kill(points.pid)
    assert [p.id for p in reader.retrieve("notes", [1], vectors=False)] == [1]
    reader.close()


def test_it_ends_with_its_last_store_and_leaves_the_folder_to_others(points: ProcessPoints, quick_folder: Path) -> None:
    again = ProcessPoints.acquire(quick_folder)
    assert again.pid == points.pid
    pid = again.pid
    again.close()
    again.close()
    assert alive(pid)
    points.close()
    assert not alive(pid)
    with pytest.raises(Unavailable):
        points.page("notes", Which(), None, vectors=False)
    with open_reader(quick_folder) as reader:  # no process: in this one
        assert reader.points("notes", [1]) == []
    assert ProcessPoints.share(quick_folder.resolve()) is None


@pytest.mark.parametrize("name", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_for_the_engine_does_not_end_it(points: ProcessPoints, name: signal.Signals) -> None:
    pid = points.pid
    assert os.getsid(pid) != os.getsid(0)  # a terminal's signals do not even reach it
    os.kill(pid, name)
    points.upsert("notes", [point(1, 5)], [5])
    points.sync(["notes"])
    assert points.pid == pid


# ------------------------------------------------------------------------------------------------------------ calls


def test_batches_are_written_in_order_under_the_guard_and_those_that_are_refused_are_told(
    points: ProcessPoints,
) -> None:
    batches = [([point(1, v, n=v), point(2, v - 1, n=v - 1)], [v, v - 1]) for v in range(10, 30)]
    batches.insert(3, ([point(3, 5, 1.0, 2.0, 3.0)], [5]))  # another size
    batches.insert(9, ([point(4, 5, n=2**70)], [5]))  # no such integer
    batches.insert(11, ([point(5, 5, n="\ud800")], [5]))  # half of a character
    batches.append(([point(1, 7, n=7), point(6, 7, n=7)], [7, 7]))  # too old for the first
    assert points.upserts("notes", batches) == [3, 9, 11]
    found = {p.id: p.payload["n"] for p in points.retrieve("notes", list(range(9)), vectors=False)}
    assert found == {1: 29, 2: 28, 6: 7}


def test_behind_an_error_no_batch_is_written_and_the_next_call_is_understood(points: ProcessPoints) -> None:
    def batches() -> Iterator[tuple[list[Stored], list[int]]]:
        yield from (([point(key, 5)], [5]) for key in range(1, 50))

    with pytest.raises(Misconfigured, match="gone") as gone:
        points.upserts("another", batches())
    assert "resync" in gone.value.remedy
    assert points.upserts("notes", batches()) == []
    assert len(points.retrieve("notes", list(range(1, 60)), vectors=False)) == 49


def test_a_call_that_breaks_off_half_way_leaves_no_answer_to_the_next_one(points: ProcessPoints) -> None:
    def broken() -> Iterator[tuple[list[Stored], list[int]]]:
        yield [point(1, 5)], [5]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        points.upserts("notes", broken())
    points.put("notes", [Stored(2, {}, {"words": Sparse([1, 7], [0.5, 2.0])})])
    (found,) = points.retrieve("notes", [2], vectors=True)
    assert found.vectors == {"words": Sparse([1, 7], [0.5, 2.0])}


def test_a_reader_is_answered_while_a_writer_hands_in_batch_after_batch(points: ProcessPoints) -> None:
    points.upsert("notes", [point(0, 1)], [1])
    read = 0

    def batches() -> Iterator[tuple[list[Stored], list[int]]]:
        nonlocal read
        for n in range(10):
            yield [point(key, 5) for key in range(n * 400, n * 400 + 400)], [5] * 400
            read += len(points.retrieve("notes", [0], vectors=False))  # while this very call has not returned

    assert points.upserts("notes", batches()) == []
    assert read == 10


def test_what_it_refuses_crosses_as_refused(points: ProcessPoints) -> None:
    with pytest.raises(Refused):
        points.upsert("notes", [point(1, 5, 1.0)], [5])
    with pytest.raises(Refused):
        points.put("notes", [Stored(1, {"n": object()})])
    with pytest.raises(Refused):
        points.search("notes", "unknown", [1.0, 2.0], 5, {})
    assert points.search("notes", "dense", [1.0, 2.0], 5, {"which": "one"}) == []
