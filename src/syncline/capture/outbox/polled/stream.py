"""The stream of a polled outbox: see :mod:`~syncline.capture.horizon.stream` for how it is polled.

Events of an entity have to come in the order of their numbers, for a payload may hold some fields only: the version
guard would drop the older of two patches that come in the wrong order, with its fields. Their transaction ids may have
another order than their numbers. So a page comes by number, and an event is *held back* while one of its entity with a
lower number lies beyond the page (correctness rule 30). What is held back follows from the table and the place alone:
all of what lies before the place came but for the events that wait for one behind it. So a reader that begins at a
place finds them again, and nothing has to be kept for it.

What an event waits for has a number above the *floor*: whatever is drawn up to it is of transactions before the place.
It is known from what the stream is through with. Before that is told first, the events from the place on are looked at:
those that can be seen now are all that matter to this poll, and to no later one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from syncline.capture.horizon.lock import ReaderLock
from syncline.capture.horizon.pages import Page
from syncline.capture.horizon.source import purged
from syncline.capture.horizon.stream import Connection, HorizonStream, drawn
from syncline.capture.outbox.changes import EventChanges
from syncline.capture.outbox.expand import EventParking
from syncline.capture.outbox.install import CHANNEL
from syncline.capture.outbox.polled.installed import confirm, installation
from syncline.capture.outbox.polled.reading import (
    first_beyond,
    following,
    lowest,
    read_events,
    read_page,
    unfinished,
    waits,
)
from syncline.capture.outbox.polled.settings import PolledOutboxSettings
from syncline.capture.outbox.progress import waits_for
from syncline.capture.source import describe
from syncline.capture.tables import TableInfo
from syncline.change import Entry, Item, Marker
from syncline.errors import Gap, SynclineError

__all__ = ["PolledOutboxStream", "last_number", "reader_lock"]


class PolledOutboxStream(HorizonStream[Page]):
    """A :class:`~syncline.capture.Stream` of ``sync_event_log``."""

    channel = CHANNEL

    def __init__(
        self,
        settings: PolledOutboxSettings,
        tables: list[TableInfo],
        parking: EventParking,
        *,
        base: int,
        incarnation: int,
        lost: Callable[[str, SynclineError], None],
    ) -> None:
        super().__init__(settings, reader_lock(settings), base=base, incarnation=incarnation)
        self._settings = settings
        self._schema = settings.outbox.schema_name
        self._events = EventChanges(settings, settings.outbox, tables, parking)
        self._lost = lost
        self._place = 0  # the last one that was told
        self._held: dict[int, int] = {}  # number -> the transaction behind whose events it comes
        self._floor = 0
        self._beyond = 0  # numbers up to it are of transactions before the page

    @property
    def words(self) -> str:
        return f"polling {self._settings.outbox.table}"

    def widen(self, tables: list[TableInfo]) -> None:
        """See :class:`~syncline.capture.Stream`."""
        self._events.widen(tables)

    def close(self) -> None:
        """See :class:`~syncline.capture.Capture`."""
        self._events.close()
        super().close()

    def _last_number(self, connection: Connection) -> int:
        return last_number(connection, self._schema)

    def _start(self, connection: Connection, after: int) -> None:
        confirm(connection, self._schema, 0)
        self._held = unfinished(connection, self._schema, after)

    def _clear(self, connection: Connection) -> None:
        confirm(connection, self._schema, self._confirmed)

    def _awaited(self, connection: Connection, below: int) -> bool:
        return waits_for(connection, self._schema, self._place, below)

    # --------------------------------------------------------------------------------------------------------- pages

    def _poll(self, connection: Connection, place: int) -> Iterator[Entry]:
        self._place = place
        return super()._poll(connection, place)

    def _between(self, connection: Connection, place: int, below: int, through: int) -> Iterator[Entry]:
        self._floor = self._through - self._base - 1
        if self._floor <= 0:
            self._floor = (lowest(connection, self._schema, place) or 1) - 1
        self._beyond = self._floor
        for entry in super()._between(connection, place, below, through):
            yield entry
            self._place = max(self._place, entry.place)
        self._refuse_purged(connection)

    def _page(self, connection: Connection, after: tuple[int, int], below: int) -> Page:
        settings = self._settings
        return read_page(connection, self._schema, after, below, settings.batch_rows, settings.max_entry_bytes)

    def _following(self, connection: Connection, after: tuple[int, int], below: int) -> int | None:
        return following(connection, self._schema, after, below)

    def _refuse_purged(self, connection: Connection) -> None:
        """Raise ``Gap`` if events were thrown away that were not read. Asked behind a page: they are gone together with
        the note of it."""
        there = installation(connection, self._schema)
        if there is None or there.purged > self._place:
            raise purged(there.purged if there else self._place, self._place, describe(self._settings.plain))

    # --------------------------------------------------------------------------------------------------------- items

    def _items(self, connection: Connection, page: Page, cut: int, *, whole: bool) -> Iterator[Item]:
        self._hold_back(connection, page, cut)
        freed = [number for number, txid in self._held.items() if txid < cut] if whole else []
        for number in freed:
            del self._held[number]
        events = read_events(connection, self._schema, page, without=self._held, also=freed, base=self._base)
        self._refuse_purged(connection)
        for batch in self._events.of(events, self._incarnation):
            try:
                made = self._events.whole(batch)
            except Gap as error:
                self._lost(batch.schema.qualified, error)
                yield Marker("gap", batch.schema.qualified)
                continue
            if len(made):
                yield made

    def _hold_back(self, connection: Connection, page: Page, cut: int) -> None:
        """Note the events of a page that wait for one behind it: only those can with a number above the first there."""
        first = first_beyond(connection, self._schema, self._beyond, cut)
        if first is None:
            return
        self._beyond = first - 1
        suspects = [number for number in page.number if number > first]
        if suspects:
            found = waits(connection, self._schema, suspects, self._floor)
            self._held |= {number: txid for number, txid in found.items() if txid >= cut}


def last_number(connection: Connection, schema: str) -> int:
    """The last number that was drawn, by whomever: every committed event has a number up to it."""
    return drawn(connection, schema, "sync_event_log_id_seq")


def reader_lock(settings: PolledOutboxSettings) -> ReaderLock:
    """The lock of who polls this outbox: one engine, for it notes how far the events are."""
    return ReaderLock(
        f"{settings.outbox.schema_name}/poller",
        f"The outbox {settings.outbox.table} is read",
        describe(settings.plain),
        "If that is another engine, stop one of the two; an outbox has one engine. If it was killed, wait until the "
        "server notices.",
    )
