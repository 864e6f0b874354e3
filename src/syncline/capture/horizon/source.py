"""A database whose changes are rows of a table of events, as the engine sees it: identity, gaps and points."""

from __future__ import annotations

import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import psycopg

from syncline.capture import SOURCE_OLDER, Again, Identity, Point
from syncline.capture.horizon.lock import ReaderLock
from syncline.capture.horizon.stream import harden, horizons, next_id
from syncline.capture.postgres import PostgresTables
from syncline.capture.source import describe
from syncline.errors import Gap

__all__ = ["HorizonSource", "Installation", "one", "purged"]

Connection = psycopg.Connection[Any]
Talk = Callable[[str], None]

_TELL_S = 3.0
_RESYNC = "Run `syncline resync` to read the tables again, or set on_gap: resync."

_WHO = """
select system_identifier::text, ('x' || substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8))::bit(32)::int,
  (select datname || ':' || oid from pg_database where datname = current_database())
from pg_control_system()
"""
# Whoever has an older id than xmax and still runs, or has prepared its transaction.
_OLDER = """
select coalesce(string_agg(distinct pid::text, ', '), 'a prepared transaction') from pg_locks
where locktype = 'transactionid' and mode = 'ExclusiveLock' and granted and pid is not null
  and pid <> pg_backend_pid()
"""


@dataclass(frozen=True, slots=True)
class Installation:
    """A table of events that is there: its id, and the transaction id below which events were purged."""

    id: str
    purged: int


class HorizonSource(PostgresTables, ABC):
    """What every :class:`~syncline.capture.Source` does that polls events; the rest says which."""

    seen_as: ClassVar[str] = "events"
    way: ClassVar[str]
    """What :class:`~syncline.capture.Identity` calls this way of capturing."""

    # ------------------------------------------------------------------------------------------- what the rest says

    @property
    @abstractmethod
    def lock(self) -> ReaderLock:
        """The lock of who reads."""

    @abstractmethod
    def installation(self, connection: Connection) -> Installation | None:
        """What is there, None if nothing is."""

    @abstractmethod
    def require(self, connection: Connection) -> Installation:
        """The same. Raises ``Misconfigured`` if nothing is there."""

    @abstractmethod
    def last_number(self, connection: Connection) -> int:
        """The last number that was drawn, by whomever."""

    @abstractmethod
    def register(self, connection: Connection, place: int) -> None:
        """Have events kept from the place on, for a log that begins there."""

    @abstractmethod
    def forget(self, connection: Connection) -> None:
        """Have nothing kept any more."""

    @abstractmethod
    def confirmed(self, connection: Connection) -> int:
        """The place up to which the reader has told that it has all for good, 0 if it never did."""

    # ------------------------------------------------------------------------------------------------- who and where

    def identify(self) -> Identity:
        with self.connected() as connection:
            system, timeline, database = one(connection, _WHO)
            there = self.installation(connection)
        return Identity(system, timeline, database, f"{self.way} {there.id if there else '-'}")

    def number(self) -> int:
        with self.connected() as connection:
            self.require(connection)
            return self.last_number(connection)

    def attach(self, identity: Identity, durable: int, talk: Talk) -> int:
        """See :class:`~syncline.capture.Source`. A gap: events behind the log were purged, or the source is older."""
        with self.connected() as connection:
            there = self.require(connection)
            self.lock.refuse_held(connection)
            low, high = horizons(connection)
            if durable > high:
                raise Gap(
                    f"The source stands at transaction {high}, but the log holds its changes up to {durable}: it was "
                    "restored from an older copy.",
                    remedy=_RESYNC,
                    code=SOURCE_OLDER,
                )
            if durable and durable < there.purged:
                raise purged(there.purged, durable, describe(self._settings.plain))
            if not durable:
                harden(connection)
                self.register(connection, low)
            return durable or low

    def retire(self, identity: Identity) -> None:
        """Let go of what is kept for us. Raises ``Unavailable`` when somebody else reads."""
        with self.connected() as connection:
            self.lock.refuse_held(connection)
            if self.installation(connection) is not None:
                self.forget(connection)

    def again(self, error: Again) -> None:
        """Its stream never asks for this."""

    @contextmanager
    def point(self, purpose: str, talk: Talk) -> Iterator[Point]:
        """See :class:`~syncline.capture.Source`. Every number up to the first one that is read here belongs to a
        transaction that has ended before the snapshot is taken (correctness rule 24), so what the snapshot shows holds
        all of them: the point waits for the transactions that are open now, as the making of a slot does."""
        where = describe(self._settings.plain)
        with self.connected(f"{purpose}-holder") as holder:
            self.require(holder)
            number = self.last_number(holder)
            _await_older(
                holder,
                threading.Event(),
                lambda pids: talk(f"{where}: waiting for open transactions to end (pid {pids})"),
            )
            for name in ("statement_timeout", "transaction_timeout", "idle_in_transaction_session_timeout"):
                holder.execute("select set_config(name, '0', false) from pg_settings where name = %s", [name])
            holder.execute("begin isolation level repeatable read, read only")
            (snapshot,) = one(holder, "select pg_export_snapshot()")
            with self.connected() as other:  # a sequence is not part of any snapshot, but a number drawn now is behind
                reached = self.last_number(other)
            yield Point(number + 1, reached + 1, str(snapshot))

    def advance(self) -> None:
        """Nothing has to be written for it: the stream is through with every number once its transaction has ended."""

    # -------------------------------------------------------------------------------------------------------- looking

    def reader(self) -> int | None:
        with self.connected("verify") as connection:
            if self.installation(connection) is None or not self.lock.is_held(connection):
                return None
            return self.confirmed(connection)

    def refuse_in_use(self) -> None:
        with self.connected() as connection:
            self.lock.refuse_held(connection)

    def shown(self, number: int) -> str:
        return f"number {number}"

    def lag(self, place: int) -> int | None:
        return None


def purged(upto: int, place: int, where: str) -> Gap:
    """The gap of a log that ends at a place before which events were purged."""
    return Gap(
        f"Events up to transaction {upto} were purged at {where}, but the log ends at {place}: what lies between was "
        "never captured.",
        remedy=_RESYNC,
    )


def one(connection: Connection, query: str) -> tuple[Any, ...]:
    """The first row of a query."""
    row = connection.execute(query.encode()).fetchone()
    assert row is not None
    return tuple(row)


def _await_older(connection: Connection, stop: threading.Event, tell: Callable[[str], None]) -> None:
    """Wait until every transaction that is open now has ended."""
    high = next_id(connection)
    began, told = time.monotonic(), 0.0
    while horizons(connection)[0] < high:
        now = time.monotonic()
        if now - max(began, told) >= _TELL_S:
            (pids,) = one(connection, _OLDER)
            tell(pids)
            told = now
        stop.wait(0.05)
