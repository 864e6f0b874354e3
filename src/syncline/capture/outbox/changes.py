"""Events as changes of the tables that they are about, wherever they were read from: expanded, parked, made whole."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import pyarrow as pa

from syncline.capture.heal import read_rows
from syncline.capture.outbox.expand import Entity, EventParking, complete, expand
from syncline.capture.outbox.settings import OutboxConfig
from syncline.capture.outbox.tables import entities_of
from syncline.capture.settings import PostgresSettings
from syncline.capture.tables import TableInfo
from syncline.change import Batch, TableSchema

__all__ = ["EventChanges"]


class EventChanges:
    """What the events of one outbox become. An event is parked before the entry that would have held it goes on, so no
    confirmed place ever lies behind an event that is nowhere (Guarantee 7). ``close`` may be called from any thread."""

    def __init__(
        self, database: PostgresSettings, outbox: OutboxConfig, tables: Sequence[TableInfo], parking: EventParking
    ) -> None:
        self._database = database
        self._outbox = outbox
        self._parking = parking
        self._stop = threading.Event()
        self._entities: dict[str, Entity | None] = entities_of(outbox, tables)

    def widen(self, tables: Sequence[TableInfo]) -> None:
        """What entities are is what the catalogue shows now."""
        self._entities = entities_of(self._outbox, tables)

    def close(self) -> None:
        """Wait for no rows any more."""
        self._stop.set()

    def of(self, events: Batch, incarnation: int) -> tuple[Batch, ...]:
        """The changes of events, a batch for each table, created rows as their payloads have them."""
        with self._parking.lock:
            expanded = expand(events, self._entities, self._parking.blocked())
            if expanded.parked or expanded.superseded:
                self._parking.settle(expanded.parked, dict(expanded.superseded), incarnation)
        return expanded.batches

    def whole(self, batch: Batch) -> Batch:
        """The same with the columns of created rows that their payloads lack.

        Raises:
            Unavailable, Gap: as :func:`~syncline.capture.heal.read_rows` says.
        """
        return complete(batch, self._read)

    def _read(self, schema: TableSchema, keys: pa.RecordBatch, xids: Sequence[int]) -> pa.RecordBatch:
        return read_rows(self._database, schema, keys, xids, self._stop)
