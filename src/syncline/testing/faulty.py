"""A store that fails when it is told to: before the write, or after it, when the reply is lost."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

import pyarrow as pa

from syncline.change import Cursor, TableSchema
from syncline.errors import SynclineError
from syncline.stores import Limits, Store, Work

__all__ = ["Fault", "FaultyStore"]


@dataclass(frozen=True)
class Fault:
    """What happens at one ``apply``: ``error`` is raised, after waiting for ``hang`` to be set where that is given.

    ``after``: the work is durably applied first, so that the caller does not know.
    """

    error: SynclineError | None = None
    after: bool = False
    hang: threading.Event | None = None

    def strike(self) -> None:
        """Wait, then raise."""
        if self.hang is not None:
            self.hang.wait()
        if self.error is not None:
            raise self.error


class FaultyStore:
    """A :class:`~syncline.stores.Store` around another; each ``apply`` takes the next of ``faults``, if one is left.

    ``struck`` counts the faults that were taken, ``applied`` the works that the other store took.
    """

    def __init__(self, store: Store, *faults: Fault) -> None:
        self.store = store
        self.faults: deque[Fault] = deque(faults)
        self.struck = 0
        self.applied = 0

    @property
    def limits(self) -> Limits:
        """Those of the other store."""
        return self.store.limits

    def open(self, source: str) -> Cursor | None:
        return self.store.open(source)

    def migrate(self, schema: TableSchema) -> TableSchema | None:
        return self.store.migrate(schema)

    def apply(self, work: Work) -> None:
        """Apply, with the next fault before or after it.

        Raises:
            SynclineError: the fault's.
        """
        fault = self.faults.popleft() if self.faults else Fault()
        self.struck += fault != Fault()
        if not fault.after:
            fault.strike()
        self.store.apply(work)
        self.applied += 1
        if fault.after:
            fault.strike()

    def fetch(self, schema: TableSchema, keys: pa.RecordBatch) -> pa.Table:
        return self.store.fetch(schema, keys)

    def scan(self, schema: TableSchema) -> Iterator[pa.RecordBatch]:
        return self.store.scan(schema)

    def purge(self, source: str, below: int) -> int:
        return self.store.purge(source, below)

    def close(self) -> None:
        self.store.close()
