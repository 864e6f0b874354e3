"""The stream of events that triggers record: see :mod:`~syncline.capture.horizon.stream` for how it is polled.

Two transactions that wrote to one key may come in the wrong order, when the horizon lay between their ids: the version
guard keeps the newer row, for per key the numbers rise, and rows are whole.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import psycopg
from psycopg import sql

from syncline.capture.horizon.lock import ReaderLock
from syncline.capture.horizon.stream import Connection, HorizonStream, drawn
from syncline.capture.schema import table_schema
from syncline.capture.source import describe, translate
from syncline.capture.tables import TableInfo, table_info
from syncline.capture.triggers.events import EventPage, following, read_batch, read_page
from syncline.capture.triggers.script import CHANNEL
from syncline.capture.triggers.settings import TriggerSettings
from syncline.change import Batch, Item, Marker, Truncate
from syncline.errors import SCHEMA_DRIFT, Gap, Misconfigured, SynclineError

__all__ = ["TriggerStream", "last_number", "reader_lock", "register"]

_AT_ONCE = 10_000  # events that one statement purges
_ROWS = ("INSERT", "UPDATE", "DELETE")


class TriggerStream(HorizonStream[EventPage]):
    """A :class:`~syncline.capture.Stream` of ``sync_events``."""

    channel = CHANNEL

    def __init__(
        self,
        settings: TriggerSettings,
        tables: list[TableInfo],
        *,
        base: int,
        incarnation: int,
        lost: Callable[[str, SynclineError], None],
    ) -> None:
        super().__init__(settings, reader_lock(settings), base=base, incarnation=incarnation)
        self._settings = settings
        self._schema = settings.events_schema
        self._tables = {t.oid: t for t in tables}
        self._lost = lost

    @property
    def words(self) -> str:
        return f"reading {self._schema}.sync_events as {self._settings.reader}"

    def widen(self, tables: list[TableInfo]) -> None:
        """See :class:`~syncline.capture.Stream`."""
        self._tables = {t.oid: t for t in tables}

    def _last_number(self, connection: Connection) -> int:
        return last_number(connection, self._schema)

    def _start(self, connection: Connection, after: int) -> None:
        register(connection, self._settings, after)

    def _clear(self, connection: Connection) -> None:
        """What every reader has had for long enough is purged."""
        readers = sql.Identifier(self._schema, "sync_readers")
        connection.execute(
            sql.SQL("update {} set seen_at = now(), place = greatest(place, %s::text::xid8) where name = %s").format(
                readers
            ),
            [self._confirmed, self._settings.reader],
        )
        purge = sql.SQL("select {}(make_interval(secs => %s), %s)").format(sql.Identifier(self._schema, "purge_events"))
        connection.execute(purge, [self._settings.keep_events_s, _AT_ONCE])

    def _page(self, connection: Connection, after: tuple[int, int], below: int) -> EventPage:
        settings = self._settings
        return read_page(connection, self._schema, after, below, settings.batch_rows, settings.max_entry_bytes)

    def _following(self, connection: Connection, after: tuple[int, int], below: int) -> int | None:
        return following(connection, self._schema, after, below)

    # --------------------------------------------------------------------------------------------------------- items

    def _items(self, connection: Connection, page: EventPage, cut: int, *, whole: bool) -> Iterator[Item]:
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

    def _of_table(self, connection: Connection, info: TableInfo, page: EventPage) -> Iterator[Item]:
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

    def _batch(self, connection: Connection, info: TableInfo, page: EventPage) -> Batch | None:
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


def last_number(connection: Connection, schema: str) -> int:
    """The last number that was drawn, by whomever: every committed event has a number up to it."""
    return drawn(connection, schema, "sync_events_number_seq")


def register(connection: Connection, settings: TriggerSettings, place: int) -> None:
    """Have events kept for this reader from the place on; one that is known already stays where it is."""
    statement = sql.SQL(
        "insert into {} (name, place) values (%s, %s::text::xid8) on conflict (name) do update set seen_at = now()"
    ).format(sql.Identifier(settings.events_schema, "sync_readers"))
    connection.execute(statement, [settings.reader, place])


def reader_lock(settings: TriggerSettings) -> ReaderLock:
    """The lock of those who read under the same name."""
    return ReaderLock(
        f"{settings.events_schema}/{settings.reader}",
        f"Events are read as {settings.reader}",
        describe(settings.plain),
        "If that is another engine, stop it, or give this one a reader and a control schema of its own "
        "(source.reader, control.schema). If it was killed, wait until the server notices.",
    )
