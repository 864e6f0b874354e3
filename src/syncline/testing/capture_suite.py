"""The rules of :class:`~syncline.capture.Capture` as tests: an implementation subclasses :class:`CaptureConformance`.

class TestMyCapture(CaptureConformance):
    @pytest.fixture
    def place(self):
        return MyCapturePlace()

A place is a source with one table whose key is an integer ``id``. :class:`MemoryPlace` is the reference.
"""

from __future__ import annotations

import threading
import time
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol

import pytest

from syncline.capture import Capture
from syncline.change import Batch, Entry, Part
from syncline.errors import SynclineError, Unavailable
from syncline.testing.examples import example_batch

__all__ = ["CaptureConformance", "CapturePlace", "MemoryCapture", "MemoryPlace", "Reader", "keys_of"]

_LONG_S = 30.0


class CapturePlace(Protocol):
    """The source under test, and captures of it."""

    def open(self, *, max_entry_rows: int = 10_000) -> Capture:
        """A new capture, as a process makes it when it starts; a transaction of more rows comes in parts."""

    def write(self, *keys: int) -> None:
        """Insert these keys in one transaction."""

    def begin(self, *keys: int) -> Callable[[], None]:
        """Insert these keys in a transaction that stays open; what is returned commits it."""

    def end(self) -> int:
        """A place that everything committed so far lies before, and that a capture comes to."""

    def confirmed(self) -> int:
        """What the source has been told to be durable."""

    def sever(self) -> None:
        """Cut the connections of captures."""


class Reader:
    """Iterates a capture in a thread, as the engine does, and keeps what it yields."""

    def __init__(self, capture: Capture, after: int = 0) -> None:
        self.capture = capture
        self.entries: list[Entry] = []
        self.error: SynclineError | None = None
        self._after = after
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            for entry in self.capture.entries(self._after):
                self.entries.append(entry)
        except SynclineError as error:
            self.error = error

    @property
    def place(self) -> int:
        """The last place that was yielded."""
        return max((e.place for e in self.entries), default=0)

    def until(self, place: int) -> list[Entry]:
        """Wait for a place; everything so far."""
        _wait(lambda: self.place >= place or self.error is not None)
        if self.error is not None:
            raise self.error
        return list(self.entries)

    def ended(self) -> bool:
        """Whether the iteration ends soon."""
        self._thread.join(_LONG_S)
        return not self._thread.is_alive()


def keys_of(entries: Sequence[Entry]) -> list[int]:
    """The keys of all changes, in order."""
    return [
        key
        for entry in entries
        for item in entry.items
        if isinstance(item, Batch)
        for key in item.rows.column(0).to_pylist()
    ]


class CaptureConformance:
    """What every capture keeps to. Each test has a place of its own."""

    @pytest.fixture
    @abstractmethod
    def place(self) -> CapturePlace:
        """A fresh source, nothing of which was captured yet."""

    def test_transactions_come_whole_and_in_the_order_of_their_commits(self, place: CapturePlace) -> None:
        with _reading(place) as reader:
            place.write(1)
            first = place.begin(10, 11)
            second = place.begin(20)
            place.write(2, 3)
            second()
            place.write(4)
            first()
            assert keys_of(reader.until(place.end())) == [1, 2, 3, 20, 4, 10, 11]

    def test_places_and_versions_rise(self, place: CapturePlace) -> None:
        with _reading(place) as reader:
            for key in range(20):
                place.write(key)
            entries = reader.until(place.end())
        places = [e.place for e in entries if e.place]
        assert places == sorted(places)
        versions = [v for e in entries for i in e.items if isinstance(i, Batch) for v in i.ints("version").tolist()]
        assert versions == sorted(versions)
        for entry in entries:
            assert entry.max_version < entry.through or not entry.place
            assert bool(entry.place) == bool(entry.through)

    def test_resuming_after_any_place_yields_every_later_transaction_exactly_once(self, place: CapturePlace) -> None:
        with _reading(place) as reader:
            for key in range(8):
                place.write(key, 100 + key)
                reader.until(place.end())
        entries = list(reader.entries)
        for number, entry in enumerate(entries):
            if entry.place:
                with _reading(place, entry.place) as again:
                    place.write(1000 + number)
                    found = keys_of(again.until(place.end()))
                later = [1000 + n for n, e in enumerate(entries[: number + 1]) if e.place]
                assert found == keys_of(entries[number + 1 :]) + later

    def test_what_was_not_confirmed_comes_again(self, place: CapturePlace) -> None:
        place.write(1, 2)
        with _reading(place) as reader:
            reader.until(place.end())
        with _reading(place) as again:
            assert keys_of(again.until(place.end())) == [1, 2]

    def test_confirming_tells_the_source_and_never_goes_back(self, place: CapturePlace) -> None:
        with _reading(place) as reader:
            place.write(1)
            early = _last_place(reader.until(place.end()))
            place.write(2)
            late = _last_place(reader.until(place.end()))
            before = place.confirmed()
            reader.capture.confirm(late)
            place.write(3)
            reader.until(place.end())
            _wait(lambda: place.confirmed() > max(before, early))
            told = place.confirmed()
            reader.capture.confirm(early)
            place.write(4)
            reader.until(place.end())
            assert place.confirmed() >= told

    def test_nothing_is_confirmed_beyond_what_was_said_to_be_durable(self, place: CapturePlace) -> None:
        with _reading(place) as reader:
            place.write(1)
            durable = _last_place(reader.until(place.end()))
            reader.capture.confirm(durable)
            place.write(2)
            reader.until(place.end())
        assert place.confirmed() <= durable

    def test_a_large_transaction_comes_as_consecutive_parts_and_moves_the_place_at_its_end(
        self, place: CapturePlace
    ) -> None:
        with _reading(place, max_entry_rows=100) as reader:
            place.write(1)
            place.write(*range(1000, 5000))
            place.write(2)
            entries = reader.until(place.end())
        assert keys_of(entries) == [1, *range(1000, 5000), 2]
        parts = [e for e in entries if e.part is not None]
        assert len(parts) > 1
        assert [e.part for e in parts] == [Part(i, last=i == len(parts) - 1) for i in range(len(parts))]
        first = entries.index(parts[0])
        assert entries[first : first + len(parts)] == parts
        assert [bool(e.place) for e in parts] == [False] * (len(parts) - 1) + [True]

    def test_close_ends_the_iteration_and_confirms_nothing(self, place: CapturePlace) -> None:
        reader = Reader(place.open())
        place.write(1)
        reader.until(place.end())
        before = place.confirmed()
        reader.capture.close()
        reader.capture.close()
        assert reader.ended()
        assert reader.error is None
        assert place.confirmed() == before

    def test_a_severed_connection_is_unavailable_and_loses_nothing(self, place: CapturePlace) -> None:
        with _reading(place) as reader:
            place.write(1)
            reader.until(place.end())
            durable = reader.place
            place.sever()
            assert reader.ended()
            assert isinstance(reader.error, Unavailable)
        place.write(2)
        with _reading(place, durable) as again:
            assert keys_of(again.until(place.end())) == [2]


@contextmanager
def _reading(place: CapturePlace, after: int = 0, *, max_entry_rows: int = 10_000) -> Iterator[Reader]:
    reader = Reader(place.open(max_entry_rows=max_entry_rows), after)
    try:
        yield reader
    finally:
        reader.capture.close()
        assert reader.ended()


def _last_place(entries: Sequence[Entry]) -> int:
    return max(e.place for e in entries)


def _wait(fact: Callable[[], bool]) -> None:
    deadline = time.monotonic() + _LONG_S
    while not fact():
        assert time.monotonic() < deadline, f"not within {_LONG_S} s"
        time.sleep(0.01)


# ----------------------------------------------------------------------------------------------------- the reference


@dataclass
class MemoryPlace:
    """A source in memory: a list of transactions; the place behind one is its number."""

    transactions: list[tuple[int, ...]] = field(default_factory=list)
    durable: int = 0
    changed: threading.Condition = field(default_factory=threading.Condition)
    captures: list[MemoryCapture] = field(default_factory=list)

    def open(self, *, max_entry_rows: int = 10_000) -> MemoryCapture:
        """A capture of this source."""
        capture = MemoryCapture(self, max_entry_rows)
        self.captures.append(capture)
        return capture

    def write(self, *keys: int) -> None:
        with self.changed:
            self.transactions.append(keys)
            self.changed.notify_all()

    def begin(self, *keys: int) -> Callable[[], None]:
        return lambda: self.write(*keys)

    def end(self) -> int:
        return len(self.transactions)

    def confirmed(self) -> int:
        return self.durable

    def sever(self) -> None:
        with self.changed:
            for capture in self.captures:
                capture.severed = True
            self.changed.notify_all()


class MemoryCapture:
    """A :class:`~syncline.capture.Capture` of a :class:`MemoryPlace`: the reference, and a source for other tests."""

    def __init__(self, place: MemoryPlace, max_entry_rows: int = 10_000) -> None:
        self._place = place
        self._max_rows = max_entry_rows
        self._closed = False
        self.severed = False

    def entries(self, after: int) -> Iterator[Entry]:
        """Transactions behind number ``after``, or behind the confirmed one where that is later.

        Raises:
            Unavailable: the connection was cut.
        """
        number = max(after, self._place.durable)
        while (keys := self._next(number)) is not None:
            number += 1
            yield from self._entry(number, keys)

    def _next(self, number: int) -> tuple[int, ...] | None:
        with self._place.changed:
            self._place.changed.wait_for(lambda: self._closed or self.severed or len(self._place.transactions) > number)
            if self._closed:
                return None
            if self.severed:
                raise Unavailable("The source in memory was cut off.")
            return self._place.transactions[number]

    def _entry(self, number: int, keys: tuple[int, ...]) -> Iterator[Entry]:
        pieces = [keys[i : i + self._max_rows] for i in range(0, len(keys), self._max_rows)]
        for i, piece in enumerate(pieces):
            last = i == len(pieces) - 1
            yield Entry(
                (example_batch(keys=piece, version=number - 1, ordinal=i * self._max_rows),),
                place=number if last else 0,
                through=number if last else 0,
                part=Part(i, last) if len(pieces) > 1 else None,
            )

    def confirm(self, place: int) -> None:
        """The source need not keep transactions up to number ``place``."""
        with self._place.changed:
            self._place.durable = max(self._place.durable, place)

    def close(self) -> None:
        with self._place.changed:
            self._closed = True
            self._place.changed.notify_all()
