"""A stream from the WAL in which events have become changes of the tables that they are about."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

from syncline.capture.outbox.changes import EventChanges
from syncline.capture.outbox.expand import EventParking
from syncline.capture.outbox.settings import OutboxConfig
from syncline.capture.outbox.tables import streamed
from syncline.capture.source import SourceConfig
from syncline.capture.tables import TableInfo
from syncline.capture.wal import WalCapture
from syncline.change import Batch, Entry, Item, Marker, Truncate
from syncline.errors import SynclineError

__all__ = ["OutboxCapture"]


class OutboxCapture(WalCapture):
    """A :class:`~syncline.capture.wal.WalCapture` that streams the outbox and the tables that no event is about.

    ``tables`` are all that are captured, ``outbox`` the table of events.
    """

    def __init__(
        self,
        config: SourceConfig,
        outbox: TableInfo,
        tables: list[TableInfo],
        parking: EventParking,
        *,
        base: int,
        incarnation: int,
        lost: Callable[[str, SynclineError], None],
    ) -> None:
        assert config.outbox is not None
        self._settings: OutboxConfig = config.outbox
        self._outbox = outbox
        self._events = EventChanges(config, self._settings, tables, parking)

        def lose(table: str, error: SynclineError) -> None:
            for name in self._meant(table):
                lost(name, error)

        super().__init__(
            config, streamed(self._settings, outbox, tables), base=base, incarnation=incarnation, lost=lose
        )

    def widen(self, tables: list[TableInfo]) -> None:
        """See :meth:`WalCapture.widen`; what entities are is what the catalogue shows now."""
        self._events.widen(tables)
        super().widen(streamed(self._settings, self._outbox, tables))

    def close(self) -> None:
        """See :class:`~syncline.capture.Capture`."""
        self._events.close()
        super().close()

    def entries(self, after: int) -> Iterator[Entry]:
        """See :class:`~syncline.capture.Capture`."""
        for entry in super().entries(after):
            items = tuple(piece for item in entry.items for piece in self._told(item, entry))
            yield replace(entry, items=items or (Marker("progress"),))

    def _told(self, item: Item, entry: Entry) -> Iterator[Item]:
        table = item.table if isinstance(item, Marker) else item.schema.qualified
        if table != self._settings.table:
            yield item
        elif isinstance(item, Batch):
            yield from self._changes(item, entry)
        elif isinstance(item, Truncate):
            return  # old events were thrown away, which is no change of what they are about
        else:
            yield from (replace(item, table=name) for name in self._meant(table))

    def _changes(self, events: Batch, entry: Entry) -> Iterator[Batch]:
        for batch in self._events.of(events, entry.incarnation):
            whole = self._events.whole(batch)
            if len(whole):
                yield whole

    def _meant(self, table: str) -> list[str]:
        """What is lost of the outbox is lost of the tables that it tells of."""
        return sorted(self._settings.tables) if table == self._settings.table else [table]
