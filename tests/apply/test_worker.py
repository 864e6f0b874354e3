"""The worker against store and log in memory: whatever fails between two steps, nothing is lost or applied twice."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pyarrow as pa
import pytest

from servers import eventually
from syncline.apply.worker import Surroundings, Worker
from syncline.change import (
    Batch,
    Column,
    Cursor,
    Entry,
    Item,
    Loaded,
    Marker,
    Op,
    Part,
    Position,
    TableSchema,
    Truncate,
)
from syncline.config import ApplyConfig
from syncline.errors import Damaged, Gap, SynclineError, Unavailable
from syncline.log.memory import MemoryLog, Shelf
from syncline.mapping import MappedTable, RowsMapping, TargetMapping
from syncline.pipeline.board import Board
from syncline.stores import TableWork, Work
from syncline.stores.memory import MemoryConfig, MemoryStore
from syncline.testing.examples import example_batch, example_entry, example_schema
from syncline.testing.faulty import Fault, FaultyStore

SCHEMA = example_schema()
WIDER = TableSchema(SCHEMA.namespace, SCHEMA.name, (*SCHEMA.columns, Column("extra", "text", "text")))
AWAY = Unavailable("The store is away.")


class Host(Board):
    """The pipeline around a worker: a board, and ears."""

    def __init__(self) -> None:
        super().__init__()
        self.mapping = TargetMapping(None, {}, RowsMapping)
        self.changed: list[str] = []
        self.done: list[str] = []
        self.retried: list[SynclineError | None] = []

    def passing(self, marker: Marker) -> bool:  # type: ignore[override]
        super().passing(marker)
        return True

    def mapped(self, schema: TableSchema) -> MappedTable:
        return self.mapping.table(schema)

    def mapping_digest(self, table: str) -> str:
        return self.mapping.digest(table)

    def schema_changed(self, schema: TableSchema) -> None:
        self.changed.append(schema.qualified)

    def loaded(self, table: str) -> None:
        self.done.append(table)

    def refused(self, table: str, error: SynclineError) -> None:
        self.open_gap(table)

    def purge_below(self) -> int | None:
        return None

    def retrying(self, error: SynclineError | None) -> None:
        self.retried.append(error)


class NoParking:
    """Dead letters that must not be needed."""

    def follow(self, work: TableWork, incarnation: int) -> TableWork:
        return work

    def settle(self, works: Sequence[TableWork], *, older: bool = False) -> None:
        """Nothing is parked."""

    def clear(self, table: str) -> None:
        """Nothing is parked."""


def no_healer(schema: TableSchema, keys: pa.RecordBatch, xids: Sequence[int]) -> pa.RecordBatch:
    raise AssertionError("nothing needs healing")


class Bench:
    """A log, a store that fails on demand, and workers on them, one after the other."""

    def __init__(self) -> None:
        self.shelf = Shelf()
        self.log = MemoryLog(self.shelf)
        self.store = FaultyStore(MemoryStore(MemoryConfig(), "main"))
        self.host = Host()
        self.config = ApplyConfig(retry_base_s=0.001, retry_max_s=0.002, max_transaction_bytes=65_536, max_rows=10)

    def start(self) -> Worker:
        cursor = self.store.open("main") or Cursor("main", Position(self.log.uuid, 0))
        self.host.begin(cursor.loaded)
        parking: Any = NoParking()
        return Worker("main", self.log, self.store, cursor, self.config, Surroundings(self.host, parking, no_healer))

    @contextmanager
    def working(self) -> Iterator[Worker]:
        worker = self.start()
        thread = threading.Thread(target=worker.run)
        thread.start()
        try:
            yield worker
        finally:
            worker.stop()
            thread.join()

    def drain(self) -> Worker:
        """Run a worker until it has everything."""
        with self.working() as worker:
            eventually(lambda: worker.cursor.position.n >= self.log.status().end)
        return worker

    def rows(self, schema: TableSchema = SCHEMA) -> dict[int, dict[str, Any]]:
        return {row["id"]: row for batch in self.store.scan(schema) for row in batch.to_pylist()}


@pytest.fixture
def bench() -> Bench:
    return Bench()


def keyed(batch: Batch) -> dict[int, str]:
    return {row["id"]: row["note"] for row in batch.rows.to_pylist()}


def notes(bench: Bench) -> dict[int, str]:
    return {key: row["note"] for key, row in bench.rows().items()}


def test_what_is_in_the_log_comes_to_the_store_with_its_cursor(bench: Bench) -> None:
    bench.log.append([example_entry(first=1 + 3 * i, version=100 + i) for i in range(5)])
    worker = bench.drain()
    assert sorted(bench.rows()) == list(range(1, 16))
    cursor = bench.store.open("main")
    assert cursor == worker.cursor
    assert cursor is not None
    assert (cursor.position.n, cursor.version, cursor.through) == (5, 104, 105)
    assert bench.log.status().cursors == {"main": 5}


@pytest.mark.parametrize("after", [False, True])
def test_disconnects_before_and_after_the_write_replay_without_loss(bench: Bench, after: bool) -> None:
    bench.store.faults.extend([Fault(AWAY, after=after)] * 7)
    history = [
        example_entry(example_batch(6, version=100)),
        example_entry(example_batch(keys=[2, 3], op=Op.UPDATE, version=101, unchanged=("email", "note"))),
        example_entry(example_batch(keys=[9], op=Op.REKEY, version=102, unchanged=("note",), old_keys=[2])),
        example_entry(example_batch(keys=[4], op=Op.DELETE, version=103)),
    ]
    for entry in history:
        bench.log.append([entry])
    bench.drain()
    assert bench.store.struck == 7
    assert notes(bench) == {1: "written at 100", 3: "written at 100", 5: "written at 100", 6: "written at 100",
                            9: "written at 100"}  # fmt: skip
    assert bench.rows()[9]["version"] == 102
    assert bench.host.retried[-1] is None


def test_a_worker_that_stops_at_any_fault_leaves_the_next_one_to_go_on(bench: Bench) -> None:
    for round_ in range(4):
        bench.log.append([example_entry(first=1 + 6 * round_ + 3 * i, version=100 + round_) for i in range(2)])
        bench.store.faults.append(Fault(AWAY, after=True))
        bench.store.faults.extend([Fault(AWAY)] * 3)
        with bench.working():
            eventually(lambda: len(bench.store.faults) < 3)
        bench.store.faults.clear()
    bench.drain()
    assert sorted(bench.rows()) == list(range(1, 25))


def test_damage_stops_before_it_and_nothing_behind_it_is_applied(bench: Bench) -> None:
    bench.log.append([example_entry(first=1 + 3 * i, version=100 + i) for i in range(6)])
    bench.shelf.damaged.add(4)
    with pytest.raises(Damaged):
        bench.start().run()
    assert sorted(bench.rows()) == list(range(1, 10))
    cursor = bench.store.open("main")
    assert cursor is not None
    assert cursor.position.n == 3


def test_another_log_is_a_gap(bench: Bench) -> None:
    bench.log.append([example_entry(version=100)])
    bench.drain()
    bench.log = MemoryLog(Shelf())
    bench.log.append([example_entry(first=50, version=200)])
    with pytest.raises(Gap):
        bench.start().run()
    assert 50 not in bench.rows()


def test_parts_below_the_stated_size_are_applied_at_once(bench: Bench) -> None:
    with bench.working() as worker:
        for i in range(3):
            bench.log.append([example_entry(example_batch(20, first=1 + 20 * i, version=100), version=100,
                                            part=Part(i, last=i == 2))])  # fmt: skip
        eventually(lambda: worker.cursor.position.n == 3)
    assert len(bench.rows()) == 60
    assert bench.store.applied == 1


def cursors_of(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, str]]:
    """Place and ``amid`` of each cursor that comes to the store."""
    written: list[tuple[int, str]] = []
    apply = bench.store.apply

    def noted(work: Work) -> None:
        apply(work)
        written.append((work.cursor.position.n, work.cursor.amid))

    monkeypatch.setattr(bench.store, "apply", noted)
    return written


def large_parts(count: int) -> list[Entry]:
    """A transaction of which a few parts are more than a target takes at once."""
    return [
        example_entry(
            example_batch(600, first=1 + 600 * i, version=100), version=100, part=Part(i, last=i == count - 1)
        )
        for i in range(count)
    ]


def test_the_cursor_tells_that_it_stands_inside_a_transaction(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    written = cursors_of(bench, monkeypatch)
    bench.config = bench.config.model_copy(update={"max_bytes": 65_536})
    bench.log.append([example_entry(version=99), *large_parts(6), example_entry(first=9000, version=101)])
    bench.drain()
    assert len(bench.rows()) == 3603
    inside = [n for n, amid in written if amid == "transaction"]
    assert inside
    assert all(1 < n < 7 for n in inside)
    assert [n for n, amid in written if not amid] == [1, 7, 8]


def test_a_worker_that_starts_inside_a_transaction_knows_it(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.store.open("main")
    bench.store.apply(Work((), Cursor("main", Position(bench.log.uuid, 1), amid="transaction")))
    written = cursors_of(bench, monkeypatch)
    bench.log.append(large_parts(1 + 3)[:1])
    bench.log.append([*load(SCHEMA, 90, [7000]), *large_parts(4)[1:]])
    bench.drain()
    assert written[-1] == (7, "")
    assert {amid for n, amid in written if n < 7} <= {"transaction"}


def test_the_cursor_tells_that_only_a_part_of_a_step_is_written(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """A column that came in two forms makes two works, and the first leaves the cursor where it is."""
    written = cursors_of(bench, monkeypatch)
    plain, other = example_batch(keys=[1], version=100), example_batch(keys=[2], version=100)
    place = [column.name for column in SCHEMA.columns].index("balance")
    as_text = other.rows.set_column(place, "balance", pa.array(["2.50"]))
    bench.log.append([example_entry(plain, Batch(SCHEMA, as_text), version=100)])
    bench.drain()
    assert written == [(0, "step"), (1, "")]


# ------------------------------------------------------------------------------------------------------ loads, shapes


def known(schema: TableSchema = SCHEMA, since: int = 0, shape: str = "s") -> Loaded:
    return Loaded(shape, since, schema.outline)


def load(schema: TableSchema, version: int, keys: Sequence[int]) -> list[Entry]:
    """The entries of a load: rows read at ``version``, and the sweep below."""

    def entry(*items: Item) -> Entry:
        return Entry(items)

    return [
        entry(Marker("load_started", schema.qualified, Loaded("s", version - 1))),
        entry(shaped(schema, version, keys)),
        entry(Truncate(schema, version - 1), Marker("loaded", schema.qualified, known(schema, version - 1))),
    ]


def shaped(schema: TableSchema, version: int, keys: Sequence[int]) -> Batch:
    """Rows of :data:`SCHEMA`, or of it with one more column."""
    batch = example_batch(keys=list(keys), version=version)
    if schema == SCHEMA:
        return batch
    extra = pa.array([f"extra at {version}"] * len(batch))
    rows = batch.rows.add_column(len(SCHEMA.columns), "extra", extra)
    return Batch(schema, rows)


def test_a_load_is_recorded_in_the_cursor_at_its_end_and_not_before(bench: Bench) -> None:
    entries = load(SCHEMA, 100, [1, 2])
    bench.log.append(entries[:2])
    assert bench.drain().cursor.loaded == {}
    bench.log.append(entries[2:])
    assert bench.drain().cursor.loaded == {SCHEMA.qualified: known(since=99)}
    assert bench.host.done == [SCHEMA.qualified]


def test_a_copy_that_is_set_aside_leaves_the_table_loaded(bench: Bench) -> None:
    bench.log.append(load(SCHEMA, 100, [1, 2]))
    before = bench.drain().cursor.loaded
    bench.log.append([Entry((Marker("backup", SCHEMA.qualified, Loaded("3", 200)), shaped(SCHEMA, 200, [1])))])
    assert bench.drain().cursor.loaded == before == {SCHEMA.qualified: known(since=99)}


def test_a_load_begun_anew_unlearns_the_one_before_it(bench: Bench) -> None:
    bench.log.append(load(SCHEMA, 100, [1, 2]))
    bench.drain()
    bench.log.append(load(SCHEMA, 200, [1])[:1])
    assert bench.drain().cursor.loaded == {}


def test_an_old_shape_behind_a_load_of_the_new_one_does_not_come_back(bench: Bench) -> None:
    bench.log.append(load(SCHEMA, 100, [1, 2, 3]))
    bench.drain()
    bench.log.append(load(WIDER, 200, [1, 2]))
    bench.log.append([Entry((shaped(SCHEMA, 150, [3]),), 151, 151), Entry((shaped(WIDER, 300, [2]),), 301, 301)])
    worker = bench.drain()
    assert {k: r["extra"] for k, r in bench.rows(WIDER).items()} == {1: "extra at 200", 2: "extra at 300"}
    assert worker.cursor.loaded == {SCHEMA.qualified: known(WIDER, 199)}
    assert bench.host.changed == []


def test_a_new_shape_unlearns_that_the_table_is_loaded_and_asks_for_a_load(bench: Bench) -> None:
    bench.log.append(load(SCHEMA, 100, [1, 2]))
    bench.drain()
    bench.log.append([Entry((shaped(WIDER, 200, [2]),), 201, 201)])
    assert bench.drain().cursor.loaded == {}
    assert bench.host.changed == [SCHEMA.qualified]


def test_a_crash_between_a_new_shape_and_its_rows_has_unlearned_it_already(bench: Bench) -> None:
    bench.log.append(load(SCHEMA, 100, [1, 2]))
    bench.drain()
    bench.store.faults.extend([Fault(), *[Fault(AWAY)] * 50])  # the forgetting works, the rows never do
    bench.log.append([Entry((shaped(WIDER, 200, [2]),), 201, 201)])
    with bench.working():
        eventually(lambda: bench.host.changed)
    cursor = bench.store.open("main")
    assert cursor is not None
    assert cursor.loaded == {}


def test_a_shape_that_only_lost_columns_stays_loaded(bench: Bench) -> None:
    bench.log.append(load(WIDER, 100, [1, 2]))
    bench.drain()
    bench.log.append([Entry((shaped(SCHEMA, 200, [2]),), 201, 201)])
    assert bench.drain().cursor.loaded == {SCHEMA.qualified: known(SCHEMA, 99)}
    assert bench.host.changed == []
    assert set(bench.rows(SCHEMA)) == {1, 2}


def test_a_gap_unlearns_the_table_and_skips_it_until_it_is_loaded(bench: Bench) -> None:
    bench.log.append(load(SCHEMA, 100, [1, 2]))
    bench.log.append([Entry((Marker("gap", SCHEMA.qualified),)), example_entry(first=50, version=150)])
    assert bench.drain().cursor.loaded == {}
    assert sorted(bench.rows()) == [1, 2]
    bench.log.append([*load(SCHEMA, 200, [1, 60]), example_entry(first=70, version=300)])
    assert bench.drain().cursor.loaded == {SCHEMA.qualified: known(since=199)}
    assert sorted(bench.rows()) == [1, 60, 70, 71, 72]


def test_a_log_that_cannot_be_read_for_a_moment_is_read_again(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.log.append([example_entry(first=1)])
    failures, read = [AWAY, AWAY], bench.log.read

    def failing(*args: Any) -> Any:
        if failures:
            raise failures.pop()
        return read(*args)

    monkeypatch.setattr(bench.log, "read", failing)
    bench.drain()
    assert sorted(bench.rows()) == [1, 2, 3]
    assert bench.host.retried == [AWAY, AWAY, None]


def test_a_purge_that_is_being_retried_ends_with_the_worker(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Asked to stop, a worker whose store is away ends without an error."""
    monkeypatch.setattr("syncline.apply.worker._PURGE_EVERY_S", 0.0)
    monkeypatch.setattr(bench.host, "purge_below", lambda: 1)

    def away(*_: object) -> int:
        raise AWAY

    monkeypatch.setattr(bench.store, "purge", away, raising=False)
    ended: list[BaseException] = []
    worker = bench.start()

    def run() -> None:
        try:
            worker.run()
        except SynclineError as error:
            ended.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    eventually(lambda: AWAY in bench.host.retried)
    worker.stop()
    thread.join(20)
    assert (thread.is_alive(), ended) == (False, [])
