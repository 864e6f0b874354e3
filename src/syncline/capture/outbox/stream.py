"""A stream from the WAL in which events have become changes of the tables that they are about."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import pyarrow as pa

from syncline.capture.heal import read_rows
from syncline.capture.outbox.expand import Entity, EventParking, complete, expand
from syncline.capture.outbox.settings import OutboxConfig
from syncline.capture.outbox.tables import entities_of, streamed
from syncline.capture.source import SourceConfig
from syncline.capture.tables import TableInfo
from syncline.capture.wal import WalCapture
from syncline.change import Batch, Entry, Item, Marker, TableSchema, Truncate
from syncline.errors import SynclineError

__all__ = ["OutboxCapture"]


class OutboxCapture(WalCapture):
    """A :class:`~syncline.capture.wal.WalCapture` that streams the outbox and the tables that no event is about.

    ``tables`` are all that are captured, ``outbox`` the table of events. An event is parked before the entry that would
    have held it goes on, so no confirmed place ever lies behind an event that is nowhere (Guarantee 7).
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
        self._parking = parking
        self._stop = threading.Event()
        self._entities: dict[str, Entity | None] = entities_of(self._settings, tables)

        def lose(table: str, error: SynclineError) -> None:
            for name in self._meant(table):
                lost(name, error)

        super().__init__(
            config, streamed(self._settings, outbox, tables), base=base, incarnation=incarnation, lost=lose
        )

    def widen(self, tables: list[TableInfo]) -> None:
        """See :meth:`WalCapture.widen`; what entities are is what the catalogue shows now."""
        self._entities = entities_of(self._settings, tables)
        super().widen(streamed(self._settings, self._outbox, tables))

    def close(self) -> None:
        """See :class:`~syncline.capture.Capture`."""
        self._stop.set()
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
        with self._parking.lock:
            expanded = expand(events, self._entities, self._parking.blocked())
            if expanded.parked or expanded.superseded:
                self._parking.settle(expanded.parked, dict(expanded.superseded), entry.incarnation)
        for batch in expanded.batches:
            whole = complete(batch, self._read)
            if len(whole):
                yield whole

    def _read(self, schema: TableSchema, keys: pa.RecordBatch, xids: Sequence[int]) -> pa.RecordBatch:
        return read_rows(self._config, schema, keys, xids, self._stop)

    def _meant(self, table: str) -> list[str]:
        """What is lost of the outbox is lost of the tables that it tells of."""
        return sorted(self._settings.tables) if table == self._settings.table else [table]
