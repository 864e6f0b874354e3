"""Repairs: rows of single keys, read again at the source for one target, and written to its log like any change.

Method: as a load (:mod:`syncline.capture.snapshot`), for chosen keys. What is read at the point S carries the version
S - 1, also the deletes of keys that are not there, so whatever changed meanwhile is newer and wins (correctness rule 3,
Guarantee 5). A repair that is done twice, or for keys that do not differ, changes nothing.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import ipc

from syncline.apply.keys import key_bytes
from syncline.capture import Point
from syncline.capture.snapshot import Rewritten
from syncline.capture.tables import TableInfo, reshaped
from syncline.catalog.repository import Request
from syncline.change import Batch, Entry, Marker, Op, TableSchema, arrow_type, make_batch
from syncline.errors import Gap, Misconfigured, SynclineError, defect
from syncline.log import Incarnation
from syncline.pipeline.context import Context
from syncline.pipeline.target import Target

__all__ = ["DONE", "Repairs"]

DONE = "done"
_AGAIN_S = 1.0
_ATTEMPTS = 5


@dataclass(frozen=True, slots=True)
class _Appended:
    """A repair in the log: its target has it once its cursor is there."""

    target: str
    log: str
    n: int


class Repairs:
    """The repairs of one source. ``append`` writes an entry to the log and says where it is, as log and number."""

    def __init__(
        self,
        context: Context,
        targets: dict[str, Target],
        append: Callable[[Entry], tuple[str, int]],
        stop: threading.Event,
    ) -> None:
        self._context = context
        self._targets = targets
        self._append = append
        self._stop = stop
        self._lock = threading.Lock()
        self._due: list[Request] = []
        self._attempts: dict[int, int] = {}
        self._appended: dict[int, _Appended] = {}
        self._refused: dict[int, str] = {}
        self._thread: threading.Thread | None = None

    @property
    def running(self) -> bool:
        """Whether rows are being read; that ends soon once the engine stops."""
        return self._thread is not None and self._thread.is_alive()

    @property
    def busy(self) -> bool:
        """Whether rows are read, or are about to be: what they carry is older than the point at which they will be."""
        with self._lock:
            return bool(self._due) or self.running

    @property
    def due(self) -> bool:
        """Whether a round can and should start."""
        with self._lock:
            return bool(self._due) and not self.running

    def request(self, request: Request) -> None:
        """Have it done in the next round. Any thread."""
        with self._lock:
            self._due.append(request)

    def outcome(self, request_id: int) -> str | None:
        """How a repair ended: :data:`DONE` once its target has it, else why it could not be made; None before that."""
        with self._lock:
            refused, appended = self._refused.get(request_id), self._appended.get(request_id)
        if refused is not None or appended is None:
            return refused
        worker = self._targets[appended.target].worker
        if worker is None:
            return None
        at = worker.cursor.position
        # A new log begins with every table read again, which repairs whatever it was.
        return DONE if at.log != appended.log or at.n >= appended.n else None

    def forget(self, request_id: int) -> None:
        """Its outcome is noted."""
        with self._lock:
            for known in (self._appended, self._refused, self._attempts):
                known.pop(request_id, None)

    def start_due(self, incarnation: Incarnation) -> None:
        """Begin a round, in a thread of its own."""
        with self._lock:
            due, self._due = self._due, []
            self._thread = threading.Thread(
                target=self._round, args=(due, incarnation), name=f"repair-{self._context.name}", daemon=True
            )
            self._thread.start()

    # ---------------------------------------------------------------------------------------------- the round's thread

    def _round(self, due: list[Request], incarnation: Incarnation) -> None:
        """What fails for now is due again."""
        waiting = {request.id: request for request in due}
        try:
            self._at_one_point(waiting, incarnation)
        except (SynclineError, Rewritten) as error:
            self._failed(waiting, error)
        except Exception as error:  # noqa: BLE001 - a defect must not leave a repair undone without a word
            self._failed(waiting, defect(f"A repair of source {self._context.name}", error))

    def _failed(self, waiting: dict[int, Request], error: SynclineError | Rewritten) -> None:
        """A few attempts, so that somebody who waits hears why; not at once, for the source may be away."""
        why = error.message if isinstance(error, SynclineError) else f"Table {error} was rewritten while it was read."
        self._stop.wait(_AGAIN_S)
        with self._lock:
            for request in waiting.values():
                self._attempts[request.id] = self._attempts.get(request.id, 0) + 1
                if self._attempts[request.id] < _ATTEMPTS:
                    self._due.append(request)
                else:
                    self._refused[request.id] = why

    def _at_one_point(self, waiting: dict[int, Request], incarnation: Incarnation) -> None:
        """Do what waits; what is done or refused waits no more."""
        source, context = self._context.source, self._context
        # An ALTER after this look is seen by the next one, so no row of a former shape follows one of a newer.
        seen = source.mark()
        tables = {info.qualified: info for info in source.described(source.tables())}
        with source.point("repair", context.talk) as point:
            for request in list(waiting.values()):
                if self._stop.is_set():
                    return
                try:
                    entry = self._entry(request, tables, point, incarnation)
                except (Gap, Misconfigured) as error:
                    self._refuse(request, error.message)
                    del waiting[request.id]
                    continue
                if source.mark() != seen:
                    raise Gap("A table was altered while rows of it were read.")
                log, n = self._append(entry)
                with self._lock:
                    self._appended[request.id] = _Appended(request.target, log, n)
                del waiting[request.id]

    def _refuse(self, request: Request, why: str) -> None:
        with self._lock:
            self._refused[request.id] = why

    def _entry(self, request: Request, tables: dict[str, TableInfo], point: Point, incarnation: Incarnation) -> Entry:
        """What the log gets of a repair.

        Raises:
            Misconfigured: nothing can be written at the target now.
            Gap: the keys are not those of the table any more.
            Rewritten, Unavailable: the rows can't be read just now.
        """
        (table,) = request.tables or ("",)
        info = tables.get(table)
        if info is None or request.target not in self._targets:
            raise Misconfigured(f"Table {table} is not copied to target {request.target} any more.")
        self._refuse_altered(info, self._targets[request.target])
        keys = ipc.open_stream(request.keys or b"").read_all().combine_chunks().to_batches()
        items: list[Batch] = []
        if keys:
            version = incarnation.base + point.number - 1
            found = self._context.source.rows_of(info, replace(point, target=request.target), keys[0], version)
            items = [batch for batch in (found, _deletes(found.schema, keys[0], found, version)) if len(batch)]
        return Entry((Marker("repair", table), *items), incarnation=incarnation.number, targets=(request.target,))

    def _refuse_altered(self, info: TableInfo, target: Target) -> None:
        known = target.worker.cursor.loaded.get(info.qualified) if target.worker is not None else None
        if known is None or reshaped(known.shape, info.shape):
            raise Misconfigured(
                f"Table {info.qualified} is about to be read again for target {target.name}, which repairs it."
            )


def _deletes(schema: TableSchema, keys: pa.RecordBatch, found: Batch, version: int) -> Batch:
    """Deletes of the keys that were not found. None where a key came as text: it has no exact form to look for."""
    own = [found.rows.column(i) for i in schema.key_positions]
    if not len(found):
        own = [pa.array([], arrow_type(c.type)) for c in schema.key]
    keys = pa.RecordBatch.from_arrays(
        [
            a if a.type == arrow_type(c.type) else a.cast(arrow_type(c.type))
            for a, c in zip(keys, schema.key, strict=True)
        ],
        names=[c.name for c in schema.key],
    )
    if [a.type for a in own] == [a.type for a in keys.columns]:
        there = pc.is_in(key_bytes(keys.columns), value_set=key_bytes(own)) if len(found) else None
        gone = keys if there is None else keys.filter(pc.invert(there))
    else:
        gone = keys.slice(0, 0)
    given = dict(zip(gone.schema.names, gone.columns, strict=True))
    n = gone.num_rows
    return make_batch(
        schema,
        [given[c.name] if c.key else pa.nulls(n, arrow_type(c.type)) for c in schema.columns],
        op=pa.array(np.full(n, int(Op.DELETE), np.int8)),
        version=pa.array(np.full(n, version)),
        ordinal=pa.array(np.arange(n)),
        commit_time=pa.array(np.zeros(n, np.int64)).cast(pa.timestamp("us", "UTC")),
        xid=pa.array(np.zeros(n, np.int64)),
    )
