"""The stream of events: polled by the commit horizon, never by number.

Numbers are drawn before their transactions commit, so a reader that goes by them passes over whatever commits late
(hard-cases: half of all events with 16 writers). Transaction ids have a horizon: below ``pg_snapshot_xmin`` every
transaction has ended, and a snapshot shows all that it wrote. So the place is a transaction id, everything before it
was read, and the events from there to the next horizon are exactly the next whole transactions.

Two transactions that wrote to one key may come in the wrong order, when the horizon lay between their ids: the version
guard keeps the newer row, for per key the numbers rise. What a cursor is ``through`` with is therefore not the greatest
number that came, but one below which none can come any more: what the sequence stood at when every transaction that is
below the horizon now was not begun yet.
"""

from __future__ import annotations

import select
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
from psycopg import sql

from syncline.capture import IN_USE
from syncline.capture.schema import table_schema
from syncline.capture.source import connect, describe, translate, translated
from syncline.capture.tables import TableInfo, table_info
from syncline.capture.triggers.events import Page, following, read_batch, read_page
from syncline.capture.triggers.script import CHANNEL
from syncline.capture.triggers.settings import TriggerSettings
from syncline.change import MAX_VERSION, Batch, Entry, Item, Marker, Part, Truncate
from syncline.errors import SCHEMA_DRIFT, Gap, Misconfigured, SynclineError, Unavailable

__all__ = ["TriggerStream", "last_number", "lock_name", "refuse_held", "register"]

Connection = psycopg.Connection[Any]

_AT_ONCE = 10_000  # events that one statement purges
_MARKS = 1000
_ROWS = ("INSERT", "UPDATE", "DELETE")


class TriggerStream:
    """A :class:`~syncline.capture.Stream` of ``sync_events``."""

    def __init__(
        self,
        settings: TriggerSettings,
        tables: list[TableInfo],
        *,
        base: int,
        incarnation: int,
        lost: Callable[[str, SynclineError], None],
    ) -> None:
        self._settings = settings
        self._schema = settings.events_schema
        self._tables = {t.oid: t for t in tables}
        self._base = base
        self._incarnation = incarnation
        self._lost = lost
        self._lock = threading.Lock()
        self._closed = False
        self._wake_read, self._wake_write = socket.socketpair()
        self._confirmed = 0
        self._tidied = 0.0
        self._told = 0.0
        self._through = base + 1  # nothing is below the first number
        self._marks: deque[tuple[int, int]] = deque()  # a number, and the horizon at which all up to it have come

    @property
    def words(self) -> str:
        return f"reading {self._schema}.sync_events as {self._settings.reader}"

    def widen(self, tables: list[TableInfo]) -> None:
        """See :class:`~syncline.capture.Stream`."""
        self._tables = {t.oid: t for t in tables}

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
        settings, dsn = self._settings, self._settings.plain
        try:
            connection = connect(dsn, timeout_s=settings.connect_timeout_s, application="syncline-capture")
            with translated(dsn), connection:
                connection.add_notify_handler(lambda _: None)
                self._take(connection, after)
                place = after
                while not self._closed:
                    busy = False
                    for entry in self._poll(connection, place):
                        yield entry
                        place, busy = max(place, entry.place), bool(entry.rows)
                    self._tidy(connection)
                    if not busy:
                        self._wait(connection)
        finally:
            self._wake_read.close()

    # ------------------------------------------------------------------------------------------------- between polls

    def _take(self, connection: Connection, after: int) -> None:
        """Be the only one who reads under this name, for as long as the connection lasts."""
        name = lock_name(self._settings)
        row = connection.execute("select pg_try_advisory_lock(hashtextextended(%s, 0))", [name]).fetchone()
        if row is None or not row[0]:
            refuse_held(connection, self._settings)
            raise Unavailable(f"Reader {self._settings.reader} was taken just now.", code=IN_USE)
        register(connection, self._settings, after)
        connection.execute(f"listen {CHANNEL}".encode())

    def _wait(self, connection: Connection) -> None:
        """Until the next poll is due, a trigger says that there is something, or the stream is closed."""
        poll = select.poll()
        poll.register(self._wake_read.fileno(), select.POLLIN)
        poll.register(connection.fileno(), select.POLLIN)
        poll.poll(self._settings.poll_s * 1000)

    def _tidy(self, connection: Connection) -> None:
        """Tell the source what is durable, and have it purge what every reader has had for long enough."""
        if time.monotonic() - self._tidied < self._settings.heartbeat_s:
            return
        self._tidied = time.monotonic()
        readers = sql.Identifier(self._schema, "sync_readers")
        connection.execute(
            sql.SQL("update {} set seen_at = now(), place = greatest(place, %s::text::xid8) where name = %s").format(
                readers
            ),
            [self._confirmed, self._settings.reader],
        )
        purge = sql.SQL("select {}(make_interval(secs => %s), %s)").format(sql.Identifier(self._schema, "purge_events"))
        connection.execute(purge, [self._settings.keep_events_s, _AT_ONCE])

    # ------------------------------------------------------------------------------------------------------- polling

    def _poll(self, connection: Connection, place: int) -> Iterator[Entry]:
        """Everything from the place up to the horizon of now; an entry without changes now and then."""
        number = last_number(connection, self._schema)  # before the horizon: who drew it has an older id than xmax
        row = connection.execute(
            "select pg_snapshot_xmin(s)::text::int8, pg_snapshot_xmax(s)::text::int8 from pg_current_snapshot() s"
        ).fetchone()
        assert row is not None
        below, through = max(int(row[0]), place), self._covered(number, *map(int, row))
        if below > place:
            yield from self._events(connection, place, below, through)
        due = through > self._through or time.monotonic() - self._told >= self._settings.heartbeat_s
        if self._told == 0.0 or (below > place and due):
            yield self._entry([Marker("progress")], below, through)

    def _covered(self, number: int, xmin: int, xmax: int) -> int:
        """What the stream is through with once it has read up to the horizon ``xmin``."""
        if self._base + number >= MAX_VERSION:
            raise Misconfigured(
                f"Versions reached 2**53 at number {number}.", remedy="Start over with a new source incarnation."
            )
        if len(self._marks) >= _MARKS:
            self._marks.pop()
        if not self._marks or self._marks[-1][0] < number:
            self._marks.append((number, xmax))
        through = self._through
        while self._marks and self._marks[0][1] <= xmin:
            through = max(through, self._base + self._marks.popleft()[0] + 1)
        return through

    def _events(self, connection: Connection, place: int, below: int, through: int) -> Iterator[Entry]:
        """The events of transactions from ``place`` to ``below``, in entries that hold whole ones, or parts of one."""
        settings, at, index = self._settings, (place, 0), 0
        while True:
            page = read_page(connection, self._schema, at, below, settings.batch_rows, settings.max_entry_bytes)
            if not len(page):
                return
            after = following(connection, self._schema, page.end, below)
            if index:  # the rest of a large transaction, alone
                page, after = page.only(page.txid[0], after)
            elif after == page.txid[-1] and page.txid[0] != after:
                page = page.before(after)
            inside = after == page.txid[-1]
            at = page.end
            items = list(self._items(connection, page))
            part = Part(index, not inside) if inside or index else None
            index = index + 1 if inside else 0
            last = after is None
            if part is not None and inside:
                yield Entry(tuple(items) or (Marker("progress"),), incarnation=self._incarnation, part=part)
            else:
                stands = below if after is None else after
                yield self._entry(items or [Marker("progress")], stands, through if last else self._through, part)
            if last:
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

    # --------------------------------------------------------------------------------------------------------- items

    def _items(self, connection: Connection, page: Page) -> Iterator[Item]:
        """What the events of a page are, table by table; those of tables that nobody wants are passed over."""
        for relation in dict.fromkeys(page.relation):
            info = self._tables.get(relation)
            if info is None:
                continue
            try:
                yield from self._of_table(connection, info, page)
            except (Gap, Misconfigured) as error:
                self._lost(info.qualified, error)
                yield Marker("gap", info.qualified)

    def _of_table(self, connection: Connection, info: TableInfo, page: Page) -> Iterator[Item]:
        events = page.of(info.oid)
        if any(operation == "RESHAPED" for _, operation in events):
            yield Marker("reading", info.qualified)  # what was written then is in no event: it is read again
        batch = None
        if any(operation in _ROWS for _, operation in events):
            batch = self._batch(connection, info, page)
            if batch is None:
                yield Marker("left", info.qualified)
                return
        for number in sorted(number for number, operation in events if operation == "TRUNCATE"):
            version = self._base + number
            if batch is not None:
                before, batch = _cut(batch, version)
                if len(before):
                    yield before
            yield Truncate(table_schema(info), version)
        if batch is not None and len(batch):
            yield batch

    def _batch(self, connection: Connection, info: TableInfo, page: Page) -> Batch | None:
        """The page's rows of a table; None if the table is gone, or has another name by now."""
        try:
            return read_batch(connection, self._schema, info, page.span, self._base)
        except (psycopg.ProgrammingError, psycopg.DataError):
            now = table_info(connection, info.oid)
        if now is None or now.qualified != info.qualified:
            return None
        try:
            return read_batch(connection, self._schema, now, page.span, self._base)
        except (psycopg.ProgrammingError, psycopg.DataError) as error:
            if isinstance(error, psycopg.errors.InsufficientPrivilege):
                raise translate(error, self._settings.plain) from error
            raise Gap(
                f"Changes of table {info.qualified} were recorded in another shape than it has now.",
                remedy="The table has to be read again, which on_gap: resync does by itself.",
                code=SCHEMA_DRIFT,
            ) from error


def _cut(batch: Batch, version: int) -> tuple[Batch, Batch]:
    """The changes below a version and those above it; they are in the order of their versions."""
    count = int(batch.ints("version").searchsorted(version))
    return Batch(batch.schema, batch.rows.slice(0, count)), Batch(batch.schema, batch.rows.slice(count))


def _recorded(batch: Batch) -> int:
    return int(batch.ints("commit_time").max())


def last_number(connection: Connection, schema: str) -> int:
    """The last number that was drawn, by whomever: every committed event has a number up to it."""
    sequence = sql.Identifier(schema, "sync_events_number_seq")
    row = connection.execute(sql.SQL("select case when is_called then last_value else 0 end from {}").format(sequence))
    found = row.fetchone()
    assert found is not None
    return int(found[0])


def register(connection: Connection, settings: TriggerSettings, place: int) -> None:
    """Have events kept for this reader from the place on; one that is known already stays where it is."""
    statement = sql.SQL(
        "insert into {} (name, place) values (%s, %s::text::xid8) on conflict (name) do update set seen_at = now()"
    ).format(sql.Identifier(settings.events_schema, "sync_readers"))
    connection.execute(statement, [settings.reader, place])


def lock_name(settings: TriggerSettings) -> str:
    """What the advisory lock of a reader is called."""
    return f"{settings.events_schema}/{settings.reader}"


_HOLDER = """
select l.pid, coalesce(nullif(a.application_name, ''), 'a program without a name')
from pg_locks l left join pg_stat_activity a on a.pid = l.pid
where l.locktype = 'advisory' and l.granted
  and l.database = (select oid from pg_database where datname = current_database())
  and (l.classid::int8 << 32 | l.objid::int8) = hashtextextended(%s, 0) and l.objsubid = 1
"""


def refuse_held(connection: Connection, settings: TriggerSettings) -> None:
    """Raise ``Unavailable`` while somebody reads under this name."""
    row = connection.execute(_HOLDER, [lock_name(settings)]).fetchone()
    if row is not None:
        raise Unavailable(
            f"Events are read as {settings.reader} already: {row[1]} at {describe(settings.plain)} (server process"
            f" {row[0]}).",
            remedy="If that is another engine, stop it, or give this one a reader and a control schema of its own "
            "(source.reader, control.schema). If it was killed, wait until the server notices.",
            code=IN_USE,
        )
