"""What the events of a stream said, row by row and by whom it was for; how far they were read; which ones came.

A SQLite file beside the log. What a batch of entries says is durable here before the first of its changes is yielded,
under the numbers of those entries. So nothing is written over: a row has several states until the log has the newest of
them (:meth:`Told.settle`), and what never got into the log is taken back by its number (:meth:`Told.continue_at`). Then
the same entries are read once more, and are the same changes with the same numbers.
"""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import msgspec

from syncline.capture.redis.told import Told as Folder
from syncline.errors import Gap, Misconfigured, Unavailable

__all__ = [
    "ALL",
    "BLOCKED",
    "LOST",
    "Row",
    "Seat",
    "State",
    "Told",
    "block",
    "blocked_for",
    "is_new",
    "latest",
    "order",
    "put",
    "put_seat",
    "reaches",
]

LOST = "SL-TOLD-LOST"
ALL = "*"
"""The audience of what is for every target."""
BLOCKED = "!"
"""No audience, but that something of the key is parked (:attr:`Row.gone`: not any more)."""

Row = dict[str, str | None]
"""A row's values as PostgreSQL prints them, by column."""

_SCHEMA = """
create table if not exists rows (
  key text not null, audience text not null, number integer not null, gone integer not null, row blob not null,
  primary key (key, audience, number)) without rowid;
create index if not exists rows_number on rows (number);
create table if not exists seen (event_id text primary key, number integer not null) without rowid;
create index if not exists seen_number on seen (number);
create table if not exists places (
  number integer primary key, entry text not null, read integer, deleted text not null);
create table if not exists settled (number integer not null);
"""
_encode, _decode = msgspec.json.Encoder().encode, msgspec.json.Decoder(Row).decode


@dataclass(frozen=True, slots=True)
class Seat:
    """A place: ``number`` counts the entries that were read, the last of which was ``entry``. ``read`` is how many were
    ever added to the stream up to there, None if that is yet to be seen; the last deletion that was accepted of one
    behind it is ``deleted``."""

    number: int
    entry: str = "0-0"
    read: int | None = None
    deleted: str = "0-0"


@dataclass(frozen=True, slots=True)
class State:
    """Rows as they are behind the entry with this number, whatever comes meanwhile."""

    number: int
    connection: sqlite3.Connection

    def rows(self, target: str) -> Iterator[Row]:
        """Those that a target was told, by key; of '' the latest that anybody was told."""
        found = self.connection.execute(
            "select key, audience, gone, row from rows where number <= ? and audience <> ? "
            "order by key, number desc, audience = ?",
            (self.number, BLOCKED, ALL),
        )
        for _, states in groupby(found, key=lambda state: state[0]):
            for _, audience, gone, row in states:
                if not target or reaches(audience, target):
                    if not gone:
                        yield _decode(row)
                    break


def reaches(audience: str, target: str) -> bool:
    """Whether a target is in an audience."""
    return audience == ALL or target in audience.split(",")


class Told:
    """One file of it. Who reads the stream opens it; :meth:`state` and :meth:`seat` may be asked by any process."""

    def __init__(self, folder: Path, where: str) -> None:
        self._file = folder / "told.sqlite"
        self._where = where
        self._folder = Folder(folder, where)
        self._lock = threading.RLock()
        self._opened: sqlite3.Connection | None = None
        self._known = 0  # settled, as far as this object knows

    # ------------------------------------------------------------------------------------------------------- who reads

    def alone(self) -> AbstractContextManager[None]:
        """Be the only one on this machine who reads the stream for this file, for the block. Raises ``Unavailable``
        (``SL-SLOT-IN-USE``) if somebody else does, ``Misconfigured`` if the folder can't be written."""
        return self._folder.lock()

    @property
    def is_read(self) -> bool:
        """Whether somebody reads it now."""
        return self._folder.is_locked

    def refuse_read(self) -> None:
        """Raise ``Unavailable`` if somebody does."""
        if self.is_read:
            raise self._folder.in_use()

    # ------------------------------------------------------------------------------------------------------- the file

    @contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """A transaction that is durable behind the block, or never was."""
        with self._lock, self._translated():
            connection = self._connection()
            connection.execute("begin immediate")
            try:
                yield connection
            except BaseException:
                connection.execute("rollback")
                raise
            connection.execute("commit")

    def close(self) -> None:
        """Let go of the file; it is opened again when it is needed."""
        with self._lock:
            if self._opened is not None:
                self._opened.close()
                self._opened = None

    def _connection(self) -> sqlite3.Connection:
        if self._opened is None:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            if not self._file.exists():
                os.close(os.open(self._file, os.O_CREAT | os.O_RDWR, 0o600))  # it holds rows
            self._opened = sqlite3.connect(self._file, isolation_level=None, check_same_thread=False, timeout=30)
            self._opened.execute("pragma journal_mode=wal")
            self._opened.execute("pragma synchronous=full")
            self._opened.executescript(_SCHEMA)
        return self._opened

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            raise Misconfigured(
                f"What was told of {self._where} can't be kept in {self._file} ({type(error).__name__}).",
                remedy="It must be on a local disk with room, writable by Syncline's user (log.path).",
                code="SL-TOLD-FOLDER",
            ) from error

    @contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection | None]:
        if not self._file.exists():
            yield None
            return
        with self._translated():
            connection = sqlite3.connect(self._file, isolation_level=None, check_same_thread=False, timeout=30)
            try:
                made = connection.execute("select 1 from sqlite_master where name = 'settled'").fetchone()
                yield connection if made else None  # its last table: before that, it is only being made
            finally:
                connection.close()

    # -------------------------------------------------------------------------------------------------------- places

    def seat(self) -> Seat | None:
        """The last place, whether or not the log has it; None before the first."""
        with self._reading() as connection:
            return None if connection is None else _seat(connection)

    def settled(self) -> int:
        """The number of the last entry whose changes are in the log, 0 before the first."""
        with self._reading() as connection:
            return 0 if connection is None else _settled(connection)

    def has_read(self, entry: str) -> bool:
        """Whether everything up to an entry is in the log."""
        with self._reading() as connection:
            if connection is None:
                return False
            query = "select entry from places where number <= ? order by number desc limit 1"
            found = connection.execute(query, (_settled(connection),)).fetchone()
            return found is not None and order(found[0]) >= order(entry)

    def begin(self, seat: Seat) -> None:
        """Go on from there, for a log that begins: whatever was read is told by its load."""
        with self.writing() as connection:
            put_seat(connection, seat)
            _settle(connection, seat.number, None)

    def continue_at(self, number: int) -> Seat:
        """Go on from the log's place; what never got into the log is taken back.

        Raises:
            Gap: there is no such place.
        """
        self.refuse_lost(number)
        with self.writing() as connection:
            for table in ("rows", "seen", "places"):
                connection.execute(f"delete from {table} where number > ?", (number,))
            _settle(connection, number, None)
            self._known = number
            seat = _seat(connection)
            assert seat is not None
            return seat

    def refuse_lost(self, number: int) -> None:
        """Raise ``Gap`` if the place of the log is not in it."""
        with self._reading() as connection:
            place = "select 1 from places where number = ?"
            if (
                connection is not None
                and _settled(connection) <= number
                and connection.execute(place, (number,)).fetchone()
            ):
                return
        raise Gap(
            f"What was told of {self._where} up to event {number} is not in {self._file}.",
            remedy="Put the file back that belongs to the log, or run `syncline resync`, which tells what is in the"
            " file and in the stream now.",
            code=LOST,
        )

    def settle(self, number: int, remember: int) -> None:
        """The log has everything up to this number, so former states of rows can go. Idempotent."""
        if number > self._known:
            with self.writing() as connection:
                _settle(connection, number, remember)
            self._known = number

    # --------------------------------------------------------------------------------------------------------- states

    @contextmanager
    def state(self) -> Iterator[State]:
        """The newest state that is in the log, held for the block. Raises ``Unavailable`` before there is one."""
        with self._reading() as connection:
            if connection is not None:
                connection.execute("begin")
                if number := _settled(connection):
                    yield State(number, connection)
                    return
        raise Unavailable(f"Nothing was read of {self._where} yet.", remedy="Start `syncline run`.")


def order(entry: str) -> tuple[int, int]:
    """Ids of entries in their order."""
    milliseconds, _, sequence = entry.partition("-")
    return int(milliseconds), int(sequence or 0)


def put_seat(connection: sqlite3.Connection, seat: Seat) -> None:
    """Note a place."""
    values = (seat.number, seat.entry, seat.read, seat.deleted)
    connection.execute("insert or replace into places values (?, ?, ?, ?)", values)


def is_new(connection: sqlite3.Connection, event_id: str, number: int) -> bool:
    """Whether no event of this id came before; from now on one did."""
    done = connection.execute("insert or ignore into seen values (?, ?)", (event_id, number))
    return done.rowcount == 1


def put(connection: sqlite3.Connection, key: str, audience: str, number: int, row: Row | None) -> None:
    """A row as its audience has it from this number on; None: it is gone."""
    values = (key, audience, number, row is None, b"" if row is None else _encode(row))
    connection.execute("insert or replace into rows values (?, ?, ?, ?, ?)", values)


def block(connection: sqlite3.Connection, key: str, number: int, audience: str) -> None:
    """Note that something of the key is parked that was for this audience; '' for nobody any more."""
    put(connection, key, BLOCKED, number, {"for": audience} if audience else None)


def blocked_for(connection: sqlite3.Connection, key: str) -> str:
    """Whom what is parked of the key was for, '' where nothing is."""
    query = "select gone, row from rows where key = ? and audience = ? order by number desc limit 1"
    found = connection.execute(query, (key, BLOCKED)).fetchone()
    return "" if found is None or found[0] else _decode(found[1]).get("for") or ALL


def latest(connection: sqlite3.Connection, key: str) -> list[tuple[str, int, Row | None]]:
    """The states of one key: audience, number, and the row, None where it is gone; the one that counts first."""
    query = "select audience, number, gone, row from rows where key = ? and audience <> ?"
    query += " order by number desc, audience = ?"
    found = connection.execute(query, (key, BLOCKED, ALL))
    return [(audience, number, None if gone else _decode(row)) for audience, number, gone, row in found]


def _seat(connection: sqlite3.Connection) -> Seat | None:
    query = "select number, entry, read, deleted from places order by number desc limit 1"
    found = connection.execute(query).fetchone()
    return None if found is None else Seat(*found)


def _settled(connection: sqlite3.Connection) -> int:
    found = connection.execute("select number from settled").fetchone()
    return 0 if found is None else int(found[0])


def _settle(connection: sqlite3.Connection, number: int, remember: int | None) -> None:
    since = _settled(connection)
    connection.execute("delete from settled")
    connection.execute("insert into settled values (?)", (number,))
    connection.execute("delete from places where number < ?", (number,))
    if remember is not None:
        connection.execute("delete from seen where number <= ?", (number - remember,))
    touched = "select distinct key from rows where number > ? and number <= ?"
    for (key,) in connection.execute(touched, (since, number)).fetchall():
        _compact(connection, key, number)


def _compact(connection: sqlite3.Connection, key: str, number: int) -> None:
    """Let former states of one key go that nobody is told any more, and deletions that hide nothing."""
    query = "select audience, number, gone from rows where key = ? and number <= ? order by number desc, audience = ?"
    states = connection.execute(query, (key, number, ALL)).fetchall()
    covered: set[str] = set()
    kept: list[tuple[str, int, int]] = []
    for audience, at, gone in states:
        members = set(audience.split(","))
        if members <= covered or (ALL in covered and audience != BLOCKED):
            _drop(connection, key, audience, at)
            continue
        covered |= members
        kept.append((audience, at, gone))
    for audience, at, gone in reversed(kept):  # the oldest first
        if not gone:
            if audience == BLOCKED:
                continue
            break
        _drop(connection, key, audience, at)


def _drop(connection: sqlite3.Connection, key: str, audience: str, number: int) -> None:
    connection.execute("delete from rows where key = ? and audience = ? and number = ?", (key, audience, number))
