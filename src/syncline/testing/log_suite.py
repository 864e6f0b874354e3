"""The rules of :class:`~syncline.log.Log` as tests: an implementation subclasses :class:`LogConformance`.

class TestMyLog(LogConformance):
    @pytest.fixture
    def place(self, tmp_path):
        return MyLogPlace(tmp_path)
"""

from __future__ import annotations

import threading
import time
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

import msgspec
import pytest

from syncline.change import Batch, Entry, Marker, Op, Part, Position, Truncate
from syncline.errors import Damaged, Gap, Unavailable
from syncline.log import Incarnation, Log, LogStatus
from syncline.testing.examples import example_batch, example_entry, example_schema

__all__ = ["LogConformance", "LogPlace", "fill", "parts_of", "read_all"]

_LONG_S = 30.0


class LogPlace(Protocol):
    """Where the log under test is kept."""

    def open(self, max_bytes: int = 8 * 1024**3) -> Log:
        """Open the log kept here, as a process does when it starts; the former one is closed."""

    def wipe(self) -> None:
        """Delete the log, which is closed."""

    def damage(self, n: int) -> None:
        """Flip a bit of the stored entry ``n``; the log is closed."""


def parts_of(version: int, count: int, *, rows: int = 3, width: int = 0) -> list[Entry]:
    """A transaction in ``count`` parts."""
    return [
        example_entry(
            example_batch(rows, first=1 + i * rows, version=version, ordinal=i * rows, width=width),
            version=version,
            part=Part(i, last=i == count - 1),
        )
        for i in range(count)
    ]


def read_all(log: Log, after: int = 0, max_bytes: int = 1 << 40) -> list[Entry]:
    """Every visible entry behind entry ``after``, over as many reads as it takes."""
    position, entries = Position(log.uuid, after), []
    while found := log.read(position, max_bytes):
        entries += [entry for _, entry in found]
        assert [p.n for p, _ in found] == list(range(position.n + 1, found[-1][0].n + 1))
        position = found[-1][0]
    return entries


def fill(log: Log, entries: Sequence[Entry]) -> tuple[int, Unavailable | None]:
    """Append one by one until the log refuses one: how many it took, and its error."""
    for appended, entry in enumerate(entries):
        try:
            log.append([entry])
        except Unavailable as error:
            return appended, error
    return len(entries), None


def _load_entry(first: int = 500) -> Entry:
    return example_entry(example_batch(2, first=first, version=90), place=0, through=0)


def _at(log: Log, n: int) -> Position:
    return Position(log.uuid, n)


class LogConformance:
    """Every rule of the contract. A subclass gives the fixture ``place``."""

    @pytest.fixture
    @abstractmethod
    def place(self) -> LogPlace:
        """Where the log under test is kept: an empty place for each test."""

    @pytest.fixture
    def log(self, place: LogPlace) -> Iterator[Log]:
        log = place.open()
        yield log
        log.close()

    # ------------------------------------------------------------------------------------------- order and content

    def test_entries_come_back_in_order_with_their_content(self, log: Log) -> None:
        schema = example_schema()
        entries = [
            example_entry(version=100),
            example_entry(example_batch(2, op=Op.DELETE, version=110), Truncate(schema, 105), version=110),
            example_entry(example_batch(2, op=Op.UPDATE, version=120, unchanged=["note"]), targets=("a", "b")),
            example_entry(example_batch(1, op=Op.REKEY, version=130, old_keys=[77]), incarnation=3, commit_time=5),
            example_entry(version=135, origin="somebody"),
            example_entry(example_batch(5000, version=140, width=100), version=140),
            Entry((Marker("progress"), Marker("loaded", schema.qualified)), place=150, through=150),
        ]
        for some in (entries[:1], entries[1:5], entries[5:]):
            log.append(some)
        assert read_all(log) == entries
        assert read_all(log, after=4) == entries[4:]

    def test_append_returns_the_position_behind_its_last_entry(self, log: Log) -> None:
        assert log.append([]) == _at(log, 0)
        assert log.append([example_entry(), example_entry()]) == _at(log, 2)
        assert log.append([example_entry()]) == _at(log, 3)
        assert log.append([]) == _at(log, 3)

    def test_read_gives_at_least_one_entry_and_no_more_than_fit(self, log: Log) -> None:
        log.append([example_entry(rows=100, version=v) for v in (100, 110, 120, 130)])
        size = example_entry(rows=100).nbytes
        assert len(log.read(_at(log, 0), 1)) == 1
        assert len(log.read(_at(log, 0), 2 * size + size // 2)) == 2
        assert len(read_all(log, max_bytes=1)) == 4

    # ------------------------------------------------------------------------------------------- waiting

    def test_read_at_the_end_returns_nothing_when_the_wait_is_over(self, log: Log) -> None:
        log.append([example_entry()])
        assert log.read(_at(log, 1), 1 << 20) == []
        started = time.monotonic()
        assert log.read(_at(log, 1), 1 << 20, wait_s=0.05) == []
        assert time.monotonic() - started >= 0.05

    def test_a_waiting_reader_gets_the_next_entry_at_once(self, log: Log) -> None:
        with ThreadPoolExecutor(1) as pool:
            reading = pool.submit(log.read, _at(log, 0), 1 << 20, _LONG_S)
            log.append([example_entry(version=7)])
            found = reading.result(timeout=_LONG_S / 2)
        assert [(p.n, e) for p, e in found] == [(1, example_entry(version=7))]

    def test_close_wakes_a_waiting_reader(self, log: Log) -> None:
        begun = threading.Event()

        def wait() -> list[tuple[Position, Entry]]:
            begun.set()
            return log.read(_at(log, 0), 1 << 20, _LONG_S)

        with ThreadPoolExecutor(1) as pool:
            reading = pool.submit(wait)
            assert begun.wait(_LONG_S)
            log.close()
            error = reading.exception(timeout=_LONG_S / 2)  # an error if close came before it
        assert reading.result() == [] if error is None else getattr(error, "code", "") == "SL-LOG-CLOSED"

    def test_a_closed_log_refuses_everything_and_closes_again(self, log: Log) -> None:
        uuid = log.uuid
        log.close()
        log.close()
        with pytest.raises(Unavailable, match="closed"):
            log.append([example_entry()])
        with pytest.raises(Unavailable, match="closed"):
            log.read(Position(uuid, 0), 1)
        with pytest.raises(Unavailable, match="closed"):
            log.trim()

    # ------------------------------------------------------------------------------------------- durability

    def test_everything_is_there_after_reopening(self, place: LogPlace, log: Log) -> None:
        entries = [example_entry(version=v, rows=r) for v, r in ((100, 1), (110, 5000), (120, 3))]
        log.append(entries)
        log.advance("duck", _at(log, 2))
        log.start_incarnation(Incarnation(1, "7431", 1, "shop", 120))
        before = log.status()
        log.close()
        again = place.open()
        assert again.uuid == before.log
        assert read_all(again) == entries
        assert again.status() == _like(before, again)
        assert again.incarnation() == Incarnation(1, "7431", 1, "shop", 120)
        assert again.append([example_entry(version=130)]) == _at(again, 4)
        again.close()

    def test_a_deleted_log_comes_back_as_another_one(self, place: LogPlace, log: Log) -> None:
        log.append([example_entry()])
        cursor = _at(log, 1)
        log.close()
        place.wipe()
        new = place.open()
        assert new.uuid != cursor.log
        with pytest.raises(Gap, match="deleted or replaced"):
            new.read(cursor, 1 << 20)
        with pytest.raises(Gap, match="deleted or replaced"):
            new.advance("duck", cursor)
        assert new.status().cursors == {}
        new.close()

    # ------------------------------------------------------------------------------------------- large transactions

    def test_parts_are_invisible_until_the_last_is_durable(self, log: Log) -> None:
        log.append([example_entry(version=100)])
        parts = parts_of(200, 3)
        log.append(parts[:1])
        log.append(parts[1:2])
        assert log.status().end == 1
        assert log.read(_at(log, 1), 1 << 20) == []
        log.append(parts[2:])
        assert read_all(log, after=1) == parts
        assert log.status().end == 4

    def test_unfinished_parts_move_neither_place_nor_version(self, log: Log) -> None:
        log.append([example_entry(version=100)])
        parts = parts_of(200, 2)
        log.append(parts[:1])
        assert (log.status().place, log.status().max_version) == (101, 100)
        log.append(parts[1:])
        assert (log.status().place, log.status().max_version) == (201, 200)

    def test_entries_of_others_between_parts_wait_for_the_last_one(self, log: Log) -> None:
        parts, between = parts_of(200, 2), _load_entry()
        log.append(parts[:1])
        log.append([between])
        assert read_all(log) == []
        log.append(parts[1:])
        assert read_all(log) == [parts[0], between, parts[1]]

    def test_a_waiting_reader_wakes_when_the_last_part_is_durable(self, log: Log) -> None:
        parts = parts_of(200, 2)
        with ThreadPoolExecutor(1) as pool:
            reading = pool.submit(log.read, _at(log, 0), 1 << 20, _LONG_S)
            log.append(parts[:1])
            log.append(parts[1:])
            found = reading.result(timeout=_LONG_S / 2)
        assert [entry for _, entry in found] == parts

    def test_unfinished_parts_are_discarded_at_opening_and_the_rest_stays(self, place: LogPlace, log: Log) -> None:
        first, between, parts = example_entry(version=100), _load_entry(), parts_of(200, 4, rows=2000, width=50)
        log.append([first])
        log.append(parts[:2])
        log.append([between])
        log.append(parts[2:3])
        log.close()
        again = place.open()
        assert [e for e in read_all(again) if e.rows] == [first, between]
        assert all(e.part is None and e.place == 0 for e in read_all(again, after=1))
        assert (again.status().place, again.status().max_version) == (101, 100)
        assert again.status().size_bytes < parts[0].nbytes
        assert again.append(parts) == _at(again, 9)
        assert read_all(again, after=5) == parts
        again.close()

    def test_a_transaction_that_begins_anew_discards_its_unfinished_parts(self, log: Log) -> None:
        parts = parts_of(200, 3)
        log.append(parts[:2])
        log.append(parts[:1])
        log.append(parts[1:])
        assert [e for e in read_all(log) if e.rows] == parts
        assert log.status().end == 5

    def test_another_transaction_of_the_stream_discards_unfinished_parts(self, log: Log) -> None:
        between, after = _load_entry(), example_entry(version=300)
        log.append(parts_of(200, 3)[:2])
        log.append([between])
        log.append([after])
        assert [e for e in read_all(log) if e.rows] == [between, after]
        assert log.status().place == 301

    @pytest.mark.parametrize("wrong", [[1], [0, 2], [0, 1, 1]])
    def test_a_missing_or_repeated_part_is_refused(self, log: Log, wrong: Sequence[int]) -> None:
        parts = parts_of(200, 4)
        for index in wrong[:-1]:
            log.append([parts[index]])
        with pytest.raises(Gap, match="was due"):
            log.append([parts[wrong[-1]]])
        assert read_all(log) == []

    # ------------------------------------------------------------------------------------------- gaps and damage

    def test_a_position_outside_the_log_is_a_gap(self, log: Log) -> None:
        log.append([example_entry(version=v) for v in (100, 110, 120)])
        log.advance("duck", _at(log, 2))
        assert log.trim() == 2
        for wrong in (_at(log, 1), _at(log, 4), Position("0" * 32, 3)):
            with pytest.raises(Gap):
                log.read(wrong, 1 << 20)
            with pytest.raises(Gap):
                log.advance("other", wrong)
        assert log.status().cursors == {"duck": 2}
        assert read_all(log, after=2) == [example_entry(version=120)]

    @pytest.mark.parametrize("rows", [1, 5000])
    def test_a_damaged_entry_is_never_skipped(self, place: LogPlace, log: Log, rows: int) -> None:
        entries = [example_entry(version=v, rows=rows) for v in (100, 110, 120)]
        log.append(entries)
        log.close()
        place.damage(2)
        again = place.open()
        assert [e for _, e in again.read(_at(again, 0), 1 << 40)] == entries[:1]
        for _ in range(2):
            with pytest.raises(Damaged, match="entry 2") as caught:
                again.read(_at(again, 1), 1 << 40)
            assert caught.value.remedy
        assert read_all(again, after=2) == entries[2:]
        again.close()

    # ------------------------------------------------------------------------------------------- trimming

    def test_nothing_is_trimmed_while_no_cursor_is_noted(self, log: Log) -> None:
        log.append([example_entry(), example_entry()])
        assert log.trim() == 0
        assert len(read_all(log)) == 2

    def test_trimming_stops_at_the_smallest_cursor(self, log: Log) -> None:
        log.append([example_entry(version=v) for v in (100, 110, 120, 130)])
        log.advance("fast", _at(log, 4))
        log.advance("slow", _at(log, 1))
        assert log.trim() == 1
        status = log.status()
        assert (status.head, status.end, status.entries) == (1, 4, 3)
        log.forget("slow")
        log.forget("never there")
        assert log.trim() == 3
        assert log.status().cursors == {"fast": 4}

    def test_trimming_keeps_what_is_young(self, log: Log) -> None:
        log.append([example_entry()])
        log.advance("duck", _at(log, 1))
        assert log.trim(keep_s=3600) == 0
        assert log.trim() == 1

    def test_a_cursor_that_goes_back_holds_back_trimming(self, log: Log) -> None:
        log.append([example_entry(version=v) for v in (100, 110, 120)])
        log.advance("duck", _at(log, 3))
        log.advance("duck", _at(log, 1))
        assert log.trim() == 1

    def test_an_empty_log_still_knows_place_version_and_number(self, place: LogPlace, log: Log) -> None:
        log.append([example_entry(version=v, rows=5000) for v in (100, 110)])
        log.advance("duck", _at(log, 2))
        assert log.trim() == 2
        assert log.status().size_bytes == 0
        log.close()
        again = place.open()
        status = again.status()
        assert (status.head, status.end, status.entries, status.size_bytes) == (2, 2, 0, 0)
        assert (status.place, status.max_version, status.cursors) == (111, 110, {"duck": 2})
        assert again.append([example_entry(version=120)]) == _at(again, 3)
        assert read_all(again, after=2) == [example_entry(version=120)]
        again.close()

    # ------------------------------------------------------------------------------------------- budget

    def test_a_full_log_takes_nothing_until_targets_catch_up(self, place: LogPlace) -> None:
        log = place.open(max_bytes=100_000)
        entry = example_entry(example_batch(100, note="".join(chr(33 + i * 7 % 90) for i in range(300))))
        log.advance("duck", _at(log, 0))
        appended, error = fill(log, [entry] * 1000)
        assert error is not None
        assert error.code == "SL-LOG-FULL"
        assert appended > 0
        assert read_all(log) == [entry] * appended
        assert log.status().size_bytes <= 100_000
        log.advance("duck", _at(log, appended))
        assert log.append([entry]) == _at(log, appended + 1)
        log.close()

    def test_a_large_transaction_may_exceed_the_budget_alone(self, place: LogPlace) -> None:
        log = place.open(max_bytes=65_536)
        parts = [
            example_entry(example_batch(keys=_scattered(4000, i), version=200), version=200, part=Part(i, last=i == 3))
            for i in range(4)
        ]
        log.append([example_entry(version=100)])
        log.advance("duck", _at(log, 0))
        _, error = fill(log, parts)
        assert error is not None
        assert error.code == "SL-LOG-FULL"
        log.advance("duck", _at(log, 1))
        assert fill(log, parts) == (4, None)
        assert log.status().size_bytes > 65_536
        assert read_all(log, after=1)[-4:] == parts
        log.advance("duck", _at(log, log.status().end))
        log.append([example_entry(version=300)])
        log.close()

    def test_an_entry_larger_than_the_budget_passes_an_empty_log(self, place: LogPlace) -> None:
        log = place.open(max_bytes=65_536)
        entry = example_entry(example_batch(keys=_scattered(8000, 0)))
        log.append([entry])
        assert read_all(log) == [entry]
        with pytest.raises(Unavailable):
            log.append([entry])
        log.close()

    # ------------------------------------------------------------------------------------------- incarnations

    def test_incarnations_are_recorded_in_rising_order(self, place: LogPlace, log: Log) -> None:
        assert log.incarnation() is None
        first, second = Incarnation(1, "7431", 1, "shop", 0), Incarnation(2, "9000", 1, "shop", 500)
        log.start_incarnation(first)
        log.start_incarnation(first)
        log.append([example_entry(version=400)])
        log.start_incarnation(second)
        with pytest.raises(Gap, match="cannot follow"):
            log.start_incarnation(first)
        with pytest.raises(Gap, match="below version 400"):
            log.start_incarnation(Incarnation(3, "9000", 2, "shop", 300))
        log.close()
        again = place.open()
        assert again.incarnation() == second
        again.close()

    def test_an_incarnation_moves_on_to_another_timeline(self, place: LogPlace, log: Log) -> None:
        log.start_incarnation(Incarnation(1, "7431", 1, "shop", 0))
        log.append([example_entry(version=400)])
        log.start_incarnation(Incarnation(1, "7431", 2, "shop", 0))
        assert log.status().place == 401
        log.close()
        again = place.open()
        assert again.incarnation() == Incarnation(1, "7431", 2, "shop", 0)
        again.close()

    def test_the_place_of_a_former_incarnation_is_not_offered(self, log: Log) -> None:
        log.start_incarnation(Incarnation(1, "7431", 1, "shop", 0))
        log.append([example_entry(version=400)])
        assert log.status().place == 401
        log.start_incarnation(Incarnation(2, "9000", 1, "shop", 500))
        assert log.status().place == 0
        log.append([example_entry(version=510, place=10, incarnation=2)])
        assert log.status().place == 10

    # ------------------------------------------------------------------------------------------- threads

    def test_appenders_and_a_tailing_reader_agree_on_one_order(self, log: Log) -> None:
        writers, each = 4, 25

        def write(writer: int) -> list[int]:
            numbers = []
            for i in range(each):
                batch = example_batch(1, first=writer * 1000 + i, version=100 + i)
                numbers.append(log.append([example_entry(batch, place=0, through=0)]).n)
            return numbers

        def tail() -> list[int]:
            seen: list[int] = []
            position = _at(log, 0)
            while len(seen) < writers * each:
                for at, entry in log.read(position, 5000, wait_s=_LONG_S):
                    position = at
                    seen += [i.rows.column(0)[0].as_py() for i in entry.items if isinstance(i, Batch)]
            return seen

        with ThreadPoolExecutor(writers + 1) as pool:
            tailing = pool.submit(tail)
            numbers = [n for written in pool.map(write, range(writers)) for n in written]
            seen = tailing.result(timeout=2 * _LONG_S)
        assert sorted(numbers) == list(range(1, writers * each + 1))
        for writer in range(writers):
            assert [key for key in seen if key // 1000 == writer] == [writer * 1000 + i for i in range(each)]

    def test_trimming_goes_on_beside_appends_and_reads(self, log: Log) -> None:
        count = 60
        log.advance("duck", _at(log, 0))
        with ThreadPoolExecutor(2) as pool:
            writing = pool.submit(lambda: [log.append([example_entry(version=100 + i)]) for i in range(count)])
            versions: list[int] = []
            trimmed = 0
            while len(versions) < count:
                found = log.read(_at(log, len(versions)), 2000, wait_s=_LONG_S)
                versions += [entry.max_version for _, entry in found]
                log.advance("duck", found[-1][0])
                trimmed += log.trim()
            writing.result(timeout=_LONG_S)
        assert versions == [100 + i for i in range(count)]
        assert trimmed == count
        assert log.status().entries == 0


def _like(status: LogStatus, log: Log) -> LogStatus:
    """``status`` with the file size of ``log``: closing and opening may change it, and nothing else."""
    return msgspec.structs.replace(status, file_bytes=log.status().file_bytes)


def _scattered(count: int, seed: int) -> list[int]:
    """Distinct keys that hardly compress."""
    return [(i * 2_654_435_761 + seed * 97) % 1_000_003 for i in range(count)]
