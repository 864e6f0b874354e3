"""A stream of events that is polled by the commit horizon, never by number.

Numbers are drawn before their transactions commit, so a reader that goes by them passes over whatever commits late
(hard-cases: half of all events with 16 writers). Transaction ids have a horizon: below ``pg_snapshot_xmin`` every
transaction has ended, and a snapshot shows all that it wrote. So the place is a transaction id, everything before it
was read, and the events from there to the next horizon are exactly the next whole transactions.

What a cursor is ``through`` with is not the greatest number that came, but one below which none can come any more: what
the sequence stood at when every transaction that is below the horizon now was not begun yet.
"""

from __future__ import annotations

import select
import socket
import threading
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterator
from typing import Any, Generic, TypeVar

import psycopg
from psycopg import sql

from syncline.capture.horizon.lock import ReaderLock
from syncline.capture.horizon.pages import Page
from syncline.capture.horizon.settings import PolledSettings
from syncline.capture.source import connect, translated
from syncline.change import MAX_VERSION, Batch, Entry, Item, Marker, Part
from syncline.errors import Misconfigured

__all__ = ["Connection", "HorizonStream", "drawn", "harden", "horizons", "next_id"]

Connection = psycopg.Connection[Any]
P = TypeVar("P", bound=Page)

_MARKS = 1000
_SOONER = 10  # how much sooner the next poll is due behind one that found something
_HELD_S = 0.1  # and at most so long behind one that saw a number drawn whose transaction may be open
# A page is the beginning of what may be a long backlog, which the planner would sort whole for every page.
_BY_INDEX = "set enable_sort = off; set enable_bitmapscan = off; set enable_seqscan = off"


def horizons(connection: Connection) -> tuple[int, int]:
    """The transaction id below which all have ended, and the one behind the last that has ended. Some that are open may
    be above both: for a bound of those there is :func:`next_id`."""
    row = connection.execute(
        "select pg_snapshot_xmin(s)::text::int8, pg_snapshot_xmax(s)::text::int8 from pg_current_snapshot() s"
    ).fetchone()
    assert row is not None
    return int(row[0]), int(row[1])


def next_id(connection: Connection) -> int:
    """A transaction id that every transaction which has one by now is below. It is drawn for this: the end of a
    snapshot stands behind the last transaction that has *ended*, and later ones may be open."""
    row = connection.execute("select pg_current_xact_id()::text::int8").fetchone()
    assert row is not None
    return int(row[0])


def drawn(connection: Connection, schema: str, sequence: str) -> int:
    """The last number that was drawn from a sequence, 0 if none was."""
    name = sql.Identifier(schema, sequence)
    query = sql.SQL("select case when is_called then last_value else 0 end from {}").format(name)
    row = connection.execute(query).fetchone()
    assert row is not None
    return int(row[0])


def harden(connection: Connection) -> None:
    """Have the server's WAL durable up to now, so that no transaction id that was seen is drawn again (Guarantee 1).

    A crash takes back the ends of transactions that were not flushed: those that rolled back, or committed with
    ``synchronous_commit`` off. Their ids may be drawn again then, below a place that a log has for good.
    """
    row = connection.execute("select pg_current_wal_insert_lsn() > pg_current_wal_flush_lsn()").fetchone()
    if row is not None and row[0]:
        with connection.transaction():
            connection.execute("set local synchronous_commit = local")
            connection.execute("select pg_logical_emit_message(true, 'syncline', '')")


class HorizonStream(ABC, Generic[P]):
    """What every :class:`~syncline.capture.Stream` does that polls; the rest says which events, and what they are."""

    channel: str
    """What the source notifies on when there is something; only a hint, for the next poll comes anyway."""

    def __init__(self, settings: PolledSettings, lock: ReaderLock, *, base: int, incarnation: int) -> None:
        self._polled = settings
        self._reader = lock
        self._base = base
        self._incarnation = incarnation
        self._lock = threading.Lock()
        self._closed = False
        self._hinted = False  # a notification came with the answer to some statement, and not to the wait
        self._wake_read, self._wake_write = socket.socketpair()
        self._confirmed = 0
        self._tidied = 0.0
        self._told = 0.0
        self._through = base + 1  # nothing is below the first number
        self._marks: deque[tuple[int, int]] = deque()  # a number, and the horizon at which all up to it have come
        self._number = self._behind = -1  # the last number that was seen, and an id behind all that drew it

    # ------------------------------------------------------------------------------------------- what the rest says

    @abstractmethod
    def _last_number(self, connection: Connection) -> int:
        """The last number that was drawn, by whomever. Whoever draws one has a transaction id before that."""

    @abstractmethod
    def _start(self, connection: Connection, after: int) -> None:
        """What is to be done with the lock, before the first poll."""

    @abstractmethod
    def _clear(self, connection: Connection) -> None:
        """Tell the source what is durable (``_confirmed``), and have it purge what it need not keep."""

    @abstractmethod
    def _page(self, connection: Connection, after: tuple[int, int], below: int) -> P:
        """The next events behind ``after`` of transactions before ``below``, at least one if there is any."""

    @abstractmethod
    def _following(self, connection: Connection, after: tuple[int, int], below: int) -> int | None:
        """The transaction id of the event that follows ``after``, None if none does below ``below``."""

    @abstractmethod
    def _items(self, connection: Connection, page: P, cut: int, *, whole: bool) -> Iterator[Item]:
        """What the events of a page are. The place behind them is ``cut``, once they are the ``whole`` of what is
        before it: of a large transaction the last part."""

    def _awaited(self, connection: Connection, below: int) -> bool:
        """Whether somebody waits for the stream to tell that it has come to ``below``."""
        return False

    # --------------------------------------------------------------------------------------------------------- stream

    def confirm(self, place: int) -> None:
        """See :class:`~syncline.capture.Capture`. The source hears of it now and then, between two polls."""
        self._confirmed = max(self._confirmed, place)

    def close(self) -> None:
        """See :class:`~syncline.capture.Capture`."""
        with self._lock:
            if not self._closed:
                self._closed = True
                self._wake_write.close()

    def entries(self, after: int) -> Iterator[Entry]:
        """See :class:`~syncline.capture.Capture`."""
        settings, dsn = self._polled, self._polled.plain
        try:
            connection = connect(dsn, timeout_s=settings.connect_timeout_s, application="syncline-capture")
            with translated(dsn), connection:
                connection.add_notify_handler(self._hint)
                connection.execute(_BY_INDEX)
                self._reader.take(connection)
                self._start(connection, after)
                connection.execute(f"listen {self.channel}".encode())
                place = after
                while not self._closed:
                    busy = False
                    for entry in self._poll(connection, place):
                        yield entry
                        place, busy = max(place, entry.place), bool(entry.rows)
                    self._tidy(connection)
                    self._wait(connection, self._rest(busy))
        finally:
            self._wake_read.close()

    def _hint(self, _: object) -> None:
        self._hinted = True

    def _rest(self, busy: bool) -> float:
        """How many seconds the next poll may be away: nobody says when the horizon moves, so it is not waited for."""
        most = self._polled.poll_s
        if busy:
            return most / _SOONER
        return min(most, _HELD_S) if self._marks else most

    def _wait(self, connection: Connection, seconds: float) -> None:
        """Until the next poll is due, the source says that there is something, or the stream is closed."""
        if self._hinted:
            return
        poll = select.poll()
        poll.register(self._wake_read.fileno(), select.POLLIN)
        poll.register(connection.fileno(), select.POLLIN)
        poll.poll(seconds * 1000)

    def _tidy(self, connection: Connection) -> None:
        if time.monotonic() - self._tidied >= self._polled.heartbeat_s:
            self._tidied = time.monotonic()
            self._clear(connection)

    # ------------------------------------------------------------------------------------------------------- polling

    def _poll(self, connection: Connection, place: int) -> Iterator[Entry]:
        """Everything from the place up to the horizon of now; an entry without changes now and then."""
        number = self._last_number(connection)
        self._hinted = False  # whatever was told of by now is seen by the looks that follow
        if number != self._number:  # before the id: whoever drew it has an older one
            self._number, self._behind = number, next_id(connection)
        low, _ = horizons(connection)
        below, through = max(low, place), self._covered(number, low)
        if below > place:
            harden(connection)  # behind the look at the horizon
            yield from self._between(connection, place, below, through)
        due = through > self._through or time.monotonic() - self._told >= self._polled.heartbeat_s
        if self._told == 0.0 or (below > place and (due or self._awaited(connection, below))):
            yield self._entry([Marker("progress")], below, through)

    def _covered(self, number: int, low: int) -> int:
        """What the stream is through with once it has read up to the horizon ``low``."""
        if self._base + number >= MAX_VERSION:
            raise Misconfigured(
                f"Versions reached 2**53 at number {number}.", remedy="Start over with a new source incarnation."
            )
        if len(self._marks) >= _MARKS:
            self._marks.pop()
        if not self._marks or self._marks[-1][0] < number:
            self._marks.append((number, self._behind))
        through = self._through
        while self._marks and self._marks[0][1] <= low:
            through = max(through, self._base + self._marks.popleft()[0] + 1)
        return through

    def _between(self, connection: Connection, place: int, below: int, through: int) -> Iterator[Entry]:
        """The events of transactions from ``place`` to ``below``, in entries that hold whole ones, or parts of one."""
        at, index = (place, 0), 0
        while True:
            page = self._page(connection, at, below)
            if not len(page):
                return
            after = self._following(connection, page.end, below)
            if index:  # the rest of a large transaction, alone
                page, after = page.only(page.txid[0], after)
            elif after == page.txid[-1] and page.txid[0] != after:
                page = page.before(after)
            inside = after == page.txid[-1]
            at = page.end
            stands = page.txid[-1] + 1 if inside else below if after is None else after
            items = list(self._items(connection, page, stands, whole=not inside))
            part = Part(index, not inside) if inside or index else None
            index = index + 1 if inside else 0
            if inside:
                yield Entry(tuple(items) or (Marker("progress"),), incarnation=self._incarnation, part=part)
            else:
                yield self._entry(
                    items or [Marker("progress")], stands, through if after is None else self._through, part
                )
            if after is None:
                return

    def _entry(self, items: list[Item], place: int, through: int, part: Part | None = None) -> Entry:
        self._through, self._told = through, time.monotonic()
        return Entry(
            tuple(items),
            place=place,
            through=through,
            incarnation=self._incarnation,
            commit_time=max((_recorded(i) for i in items if isinstance(i, Batch) and len(i)), default=0),
            part=part,
        )


def _recorded(batch: Batch) -> int:
    return int(batch.ints("commit_time").max())
