"""The loop that brings one target up to date: read, fold, map, apply, advance. Each verb lives elsewhere."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol, TypeVar

import msgspec
import numpy as np
import pyarrow as pa

from syncline.apply.embed import embed
from syncline.apply.fold import fold
from syncline.apply.heal import Healed, Healer, complete
from syncline.apply.map import MappedHealer, fill, map_work
from syncline.apply.parking import Parking
from syncline.apply.progress import Progress
from syncline.apply.retry import Backoff, persist
from syncline.apply.steps import Read, Scope, Size, Step, never, steps, whole
from syncline.change import BASES, MAX_VERSION, Batch, Cursor, Loaded, Marker, Position, TableSchema
from syncline.config import ApplyConfig
from syncline.errors import SCHEMA_DRIFT, Gap, Misconfigured, Policy, Rejected, SynclineError, policy
from syncline.log import Log
from syncline.mapping import MappedTable
from syncline.stores import BackingUp, Forgetting, Meeting, Store, TableWork, Work

__all__ = ["Host", "Surroundings", "Worker"]

_READ_WAIT_S = 0.1
_GATHER_WAIT_S = 0.2
_PURGE_EVERY_S = 30.0

T = TypeVar("T")


class Host(Scope, Protocol):
    """What a worker asks of, and tells to, the pipeline around it."""

    def paused(self) -> bool:
        """Whether this target rests."""

    def resumed(self) -> list[tuple[str, int]]:
        """Tables that are no longer paused, each with the ``n`` behind which nothing of it was applied."""

    def caught_up(self, table: str) -> None:
        """A resumed table has everything up to the cursor."""

    def purge_below(self) -> int | None:
        """Tombstones below this version may be forgotten; None while an older change could still come."""

    def mapped(self, schema: TableSchema) -> MappedTable:
        """What this target makes of a table."""

    def mapping_digest(self, table: str) -> str:
        """The same in short, for the table as the source has it now."""

    def loaded(self, table: str) -> None:
        """A load of the table is durable at this target."""

    def schema_changed(self, schema: TableSchema) -> None:
        """The table has a new shape at this target, and its rows have to be read again."""

    def refused(self, table: str, error: SynclineError) -> None:
        """The store can't take the table; it is not wanted any more until it is loaded again."""

    def retrying(self, error: SynclineError | None) -> None:
        """A step is tried again for this error; None when it worked."""


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What a worker turns to where a change is not simply applied.

    ``began_here``: whether changes of this origin began at the target; ``overruled`` hears how many edits lost.
    """

    host: Host
    parking: Parking
    healer: Healer
    began_here: Callable[[str], bool] = never
    overruled: Callable[[int], object] = bool


class Worker:
    """Applies one source's log to one store, from the store's own cursor on, in the calling thread."""

    def __init__(
        self, target: str, log: Log, store: Store, cursor: Cursor, config: ApplyConfig, surroundings: Surroundings
    ) -> None:
        self._target = target
        self._log = log
        self._store = store
        self.cursor = cursor
        self._config = config
        self._host = surroundings.host
        self._parking = surroundings.parking
        self._healer = surroundings.healer
        self._began_here = surroundings.began_here
        self._overruled = surroundings.overruled
        limits = store.limits
        self._stream_size = Size(min(config.max_rows, limits.max_rows), min(config.max_bytes, limits.max_bytes))
        # Who lowers apply.max_bytes has little memory.
        self._load_size = Size(limits.load_rows, min(limits.load_bytes, 4 * config.max_bytes))
        self._schemas: dict[str, TableSchema] = {}
        self._backoff = Backoff(config.retry_base_s, config.retry_max_s)
        self._stop = threading.Event()
        self._reading: dict[str, int] = {}  # tables being read, and the version up to which their rows are stale
        self._purged = time.monotonic()
        self._in_parts = cursor.amid == "transaction"  # the cursor stands inside a transaction beyond the stated size
        self.progress = Progress()

    def stop(self) -> None:
        """Let :meth:`run` end behind the step it is in. Any thread."""
        self._stop.set()

    def run(self) -> None:
        """Apply until stopped.

        Raises:
            SynclineError: a gap, damage or misconfiguration; the cursor stands before what could not be applied.
        """
        while not self._stop.is_set():
            if self._host.paused():
                self.progress.state = "paused"
                self._stop.wait(_READ_WAIT_S)
                continue
            self.progress.state = "streaming"
            for table, after in self._host.resumed():
                self._catch_up(table, after)
            found, inside = self._persist(self._read) or [], self._in_parts
            self._in_parts = len(whole(found, inside=inside)) < len(found) if found else inside
            self._take_all(found, self._host, inside=inside)
            if not found:
                self._purge()

    def _take_all(self, found: list[Read], scope: Scope, *, inside: bool = False) -> None:
        sizes = self._stream_size, self._load_size
        for step in steps(found, self._target, scope, *sizes, inside=inside, began_here=self._began_here):
            self._take(step)
            if self._stop.is_set():
                return

    def _purge(self) -> None:
        """Nothing to apply: forget old tombstones now and then."""
        if time.monotonic() - self._purged < _PURGE_EVERY_S:
            return
        self._purged = time.monotonic()
        below = self._host.purge_below()
        if below is not None:
            self._persist(lambda: self._store.purge(self.cursor.source, below))

    def _catch_up(self, table: str, after: int) -> None:
        """Apply what passed by while the table was paused; the guard makes a second time harmless."""
        position, end = Position(self._log.uuid, after), self.cursor.position
        while position < end and not self._stop.is_set():
            found = self._persist(partial(self._log.read, position, self._config.max_bytes)) or []
            found = [r for r in found if r[0] <= end]
            self._take_all(found, _Only(table, self._host))
            position = found[-1][0] if found else end
        if not self._stop.is_set():
            self._host.caught_up(table)

    def _read(self) -> list[Read]:
        """Entries up to a commit boundary; a transaction beyond the stated size comes part by part (Guarantee 4)."""
        found = self._log.read(self.cursor.position, self._config.max_bytes, _READ_WAIT_S)
        if found and not self._in_parts and all(entry.of_load for _, entry in found):
            return self._gather(found)
        if self._in_parts or len(whole(found)) == len(found):
            return found
        return whole(found) or whole(self._log.read(self.cursor.position, self._config.max_transaction_bytes)) or found

    def _gather(self, found: list[Read]) -> list[Read]:
        """While tables are loaded and nothing else comes: wait for as much as the store likes to take at once."""
        while not self._stop.is_set():
            if self._load_size.reached(sum(e.rows for _, e in found), sum(e.nbytes for _, e in found)):
                break
            more = self._log.read(found[-1][0], self._config.max_bytes, _GATHER_WAIT_S)
            found = found + whole(more)
            if not more or not more[-1][1].of_load:
                break
        return found

    def _take(self, step: Step) -> None:
        """One step, tried until it is durable."""
        done = self._persist(lambda: self._attempt(step))
        if done is not None:
            self._advance(done)

    def _persist(self, act: Callable[[], T]) -> T | None:
        """Try until it is done; None where the worker was stopped before."""
        try:
            return persist(act, self._backoff, self._stop, self._host.retrying)
        except SynclineError as error:
            if self._stop.is_set() and policy(error) is Policy.RETRY:
                return None
            raise

    def _attempt(self, step: Step) -> Step:
        """Write the step, durably; returns it."""
        self._note_reading([m for m in step.markers if m.kind != "loaded"])
        for marker in step.markers:
            if marker.kind == "left":
                self._parking.clear(marker.table)
        self._migrate(step)
        self._back_up([m for m in step.markers if m.kind == "backup"])
        works = [work for items in step.tables.values() for work in fold(items)]
        works = [self._parking.follow(work, step.incarnation) for work in works]
        repaired = {m.table for m in step.markers if m.kind == "repair"}
        begun: set[str] = set(repaired)
        works = [made for work in works for made in self._map(work, step, begun)]
        if step.based:
            works = [replace(work, bases=_bases(work.schema, step)) for work in works]
        self._make_way([work for work in works if work.schema.qualified in repaired], step)
        layers = _layers(works)
        for layer in layers[:-1]:
            amid = msgspec.structs.replace(self.cursor, amid=self.cursor.amid or "step")
            self._write(layer, amid, step)
        self._write(layers[-1], self._cursor_behind(step), step)
        return step

    def _back_up(self, markers: Sequence[Marker]) -> None:
        """Copies that changes ask for; made again after a crash, a copy of this label is the one that is there."""
        for marker in markers:
            schema = self._schemas.get(marker.table)
            if schema is not None and marker.known is not None and isinstance(self._store, BackingUp):
                self._store.back_up(schema, marker.known.since, int(marker.known.shape))

    def _make_way(self, works: Sequence[TableWork], step: Step) -> None:
        """What a repair would be hindered by goes before it. Killed in between, the same repair comes again from the
        log; the keys of other changes in the step lose nothing, for what goes did not come from the log."""
        if not works or not isinstance(self._store, Forgetting):
            return
        above = max(self.cursor.version, step.version, self._log.status().max_version)
        for work in works:
            positions = list(work.schema.key_positions)
            for rows, places in ((work.rows.upserts, positions), (work.rows.deletes, list(range(len(positions))))):
                if rows is not None and rows.num_rows:
                    self._store.forget(work.schema, rows.select(places), above)

    def _write(self, works: list[TableWork], cursor: Cursor, step: Step) -> None:
        # Older letters before the write: killed in between, the same work comes again from the log and settles the same
        # ones. Those of its very changes behind it: killed in between, they may be refused once more.
        self._parking.settle(works, older=True)
        while True:
            try:
                self._store.apply(Work(tuple(works), cursor, step.echo))
                break
            except Rejected as rejected:
                # The dead letter commits before the cursor passes it (correctness rule 26, Guarantee 7).
                works = self._parking.park(works, rejected, step.incarnation)
                self.progress.parked += len(rejected.rows)
        self._parking.settle(works)
        self._tell_overruled()

    def _tell_overruled(self) -> None:
        """Edits that lost against what was written, or the other way round, are never passed over in silence."""
        count = self._store.overruled if isinstance(self._store, Meeting) else 0
        if count > self.progress.overruled:
            self._overruled(count - self.progress.overruled)
            self.progress.overruled = count

    def _map(self, work: TableWork, step: Step, begun: set[str]) -> list[TableWork]:
        """What the target writes of one table's changes: healed where something is missing, mapped, with vectors. Of a
        table that was ``begun`` in this step, what is at the target now tells nothing of what it will rest on."""
        mapped = self._host.mapped(work.schema)
        made = []
        for filled in self._heal(work, step, lambda xids: fill(work, mapped, self._healer, xids)):
            for done in self._complete(self._parked(partial(map_work, mapped=mapped), filled, step), mapped, step):
                store = None if done.schema.qualified in begun else self._store
                begun.add(done.schema.qualified)
                made.append(self._parked(partial(embed, mapped=mapped, store=store), done, step))
        return made

    def _parked(self, make: Callable[[TableWork], T], work: TableWork, step: Step) -> T:
        """``make`` of the work, without rows that it refuses; those are parked."""
        while True:
            try:
                return make(work)
            except Rejected as rejected:
                (work,) = self._parking.park([work], rejected, step.incarnation)
                self.progress.parked += len(rejected.rows)

    def _complete(self, work: TableWork, mapped: MappedTable, step: Step) -> list[TableWork]:
        healer = self._healer if mapped.trivial else MappedHealer(self._healer, mapped)
        stale = self._reading.get(work.schema.qualified, -1)

        def healed(some: TableWork) -> list[TableWork]:
            return self._heal(some, step, lambda xids: complete(some, self._store, healer, xids, stale))

        return self._parked(healed, work, step)

    def _heal(self, work: TableWork, step: Step, act: Callable[[Sequence[int]], Healed]) -> list[TableWork]:
        if work.rows.partials is None:
            return [work]
        try:
            done, healed = act(_xids(step, work.schema.qualified))
        except Gap as drift:
            if drift.code != SCHEMA_DRIFT:
                raise
            # The source has another shape by now, so the whole table is read again, newer than these changes.
            self._forget(work.schema.qualified)
            self._host.schema_changed(work.schema)
            return [replace(work, rows=replace(work.rows, partials=None))]
        self.progress.healed += healed
        return done

    def _note_reading(self, markers: Sequence[Marker]) -> None:
        """From the announcement of a load to its end, a partial change must not rest on what was stored before the
        load's point, which is known only once the load has begun (correctness rule 6)."""
        for marker in markers:
            if marker.kind == "reading":
                self._reading[marker.table] = MAX_VERSION
            elif marker.kind == "load_started" and marker.known and marker.table in self._reading:
                self._reading[marker.table] = marker.known.since
            elif marker.kind == "loaded":
                self._reading.pop(marker.table, None)

    def _migrate(self, step: Step) -> None:
        """Prepare the step's tables. One that can't be mapped, or that the store can't take, drops out, with a gap
        (Guarantee 8)."""
        for name, schema in list(step.schemas.items()):
            try:
                mapped = self._host.mapped(schema)
                if self._schemas.get(name) == mapped.schema:
                    continue
                known = self._let_go(name, schema, mapped)
                before = self._store.migrate(mapped.schema)
            except Misconfigured as error:
                self._host.refused(name, error)
                step.drop(name)
                continue
            self._schemas[name] = mapped.schema
            lost = before is None and name in self.cursor.loaded
            if lost:
                self._forget(name)
            if (known is None and not lost) or any(m.kind == "load_started" and m.table == name for m in step.markers):
                continue
            if known is not None and before is not None and _only_lost_columns(before, mapped.schema):
                step.kept[name] = msgspec.structs.replace(known, columns=schema.outline, mapping=mapped.digest)
            else:
                self._host.schema_changed(schema)

    def _let_go(self, table: str, schema: TableSchema, mapped: MappedTable) -> Loaded | None:
        """Before a table takes another shape: forget durably that it is loaded, so that no crash can forget the load
        that is due; returns what it was. None if there is nothing to forget."""
        known = self.cursor.loaded.get(table)
        if known is None or (known.columns, known.mapping) == (schema.outline, mapped.digest):
            return None
        self._forget(table)
        return known

    def _forget(self, table: str) -> None:
        rest = {t: k for t, k in self.cursor.loaded.items() if t != table}
        cursor = msgspec.structs.replace(self.cursor, loaded=rest)
        self._store.apply(Work((), cursor))
        self.cursor = cursor

    def _cursor_behind(self, step: Step) -> Cursor:
        now = self.cursor
        return msgspec.structs.replace(
            now,
            loaded=self._loaded_behind(step) if step.markers or step.kept else now.loaded,
            position=max(now.position, step.position),
            through=max(now.through, step.through),
            place=max(now.place, step.place),
            version=max(now.version, step.version),
            incarnation=max(now.incarnation, step.incarnation),
            amid=now.amid if step.position <= now.position else "transaction" if step.inside else "",
        )

    def _loaded_behind(self, step: Step) -> dict[str, Loaded]:
        """A table is not loaded from the start of a load or a gap to the end of a load: a crash begins that anew."""
        loaded = {**self.cursor.loaded, **step.kept}
        for marker in step.markers:
            if marker.kind in ("repair", "backup"):
                continue
            known = loaded.pop(marker.table, None)
            if marker.kind == "loaded" and marker.known and self._host.wanted(marker.table):
                digest = self._host.mapping_digest(marker.table)
                loaded[marker.table] = msgspec.structs.replace(marker.known, mapping=digest)
            elif marker.kind == "reshaped" and known and marker.known:
                loaded[marker.table] = msgspec.structs.replace(known, shape=marker.known.shape)
        return loaded

    def _advance(self, step: Step) -> None:
        loaded = self.cursor.loaded
        self.cursor = self._cursor_behind(step)
        for marker in step.markers:
            if marker.kind == "loaded" and loaded.get(marker.table) != self.cursor.loaded.get(marker.table):
                self._host.loaded(marker.table)
        self._log.advance(self._target, self.cursor.position)
        self.progress.applied(step.rows, _commit_times(step))
        self._note_reading(step.markers)


class _Only:
    """The scope of one table."""

    def __init__(self, table: str, host: Host) -> None:
        self._table = table
        self._host = host

    def wanted(self, table: str) -> bool:
        return table == self._table

    def since(self, table: str) -> int:
        return self._host.since(table)

    def passing(self, marker: Marker) -> bool:
        """Markers were heeded when the cursor passed them."""
        return False


def _only_lost_columns(before: TableSchema, after: TableSchema) -> bool:
    """Whether the columns that are left are what they were, and are mapped as they were."""
    if (before.shape, before.mapping) != (after.shape, after.mapping):
        return False
    was = {(c.name, c.type, c.key) for c in before.columns}
    return was > {(c.name, c.type, c.key) for c in after.columns}


def _layers(works: list[TableWork]) -> list[list[TableWork]]:
    """Works with one part a table each. Nearly always one; a table has several parts where one column came in two forms
    (see :func:`~syncline.apply.fold.fold`), and the first ones then leave the cursor where it is."""
    layers: list[list[TableWork]] = [[]]
    for work in works:
        table = work.schema.qualified
        depth = sum(any(w.schema.qualified == table for w in layer) for layer in layers)
        if depth == len(layers):
            layers.append([])
        layers[depth].append(work)
    return layers


def _bases(schema: TableSchema, step: Step) -> pa.RecordBatch | None:
    """The keys of a table's changes, and what each rests on."""
    found = [i for i in step.tables.get(schema.qualified, ()) if isinstance(i, Batch) and i.bases is not None]
    if not found:
        return None
    keys = [pa.concat_arrays([b.rows.column(at) for b in found]) for at in found[0].schema.key_positions]
    bases = pa.concat_arrays([b.bases for b in found])
    return pa.RecordBatch.from_arrays([*keys, bases], names=[*(c.name for c in found[0].schema.key), BASES])


def _xids(step: Step, table: str) -> list[int]:
    """The source transactions of the step that changed this table."""
    batches = [i for i in step.tables[table] if isinstance(i, Batch)]
    return sorted({int(x) for b in batches for x in np.unique(b.ints("xid"))} - {0})


def _commit_times(step: Step) -> np.ndarray[Any, Any]:
    """Commit times (microseconds) of the step's streamed transactions; rows of a load have none (version only)."""
    found: Sequence[np.ndarray[Any, Any]] = [
        np.unique(item.ints("commit_time"))
        for items in step.tables.values()
        for item in items
        if isinstance(item, Batch) and len(item)
    ]
    times = np.concatenate(found) if found else np.empty(0, np.int64)
    return times[times > 0]
