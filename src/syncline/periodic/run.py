"""One run: read the members, compare, look again at what seems to be gone, and write under the version guard.

A run has the lock of its synchronisation, a lease with an epoch. Versions are epochs, so that what an earlier run still
writes is older; the target shuts out whoever opened it before; and before each write the lease is renewed. So two
runners at once never mix, whichever of them sleeps (correctness rules 1 and 31).
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc

from syncline.capture.redis.connection import Connection
from syncline.capture.redis.difference import Counts, Difference
from syncline.capture.redis.reading import KeyReader, Stopped
from syncline.capture.redis.settings import Group, groups_of
from syncline.capture.redis.values import parsed
from syncline.catalog.periodic import PeriodicRecords, RunRow
from syncline.change import Cursor, Op, Position, TableSchema
from syncline.config import TargetConfig, hint, store_class
from syncline.config.periodic import PeriodicConfig
from syncline.errors import Misconfigured, SynclineError, Unavailable, defect
from syncline.logs import logger
from syncline.periodic.writing import Refused, write
from syncline.stores import BackingUp, Store

__all__ = ["DELETES", "Place", "Result", "Stopped", "Wish", "perform"]

_log = logger()
DELETES = "SL-PERIODIC-DELETES"
_TRIES, _AGAIN_S = 4, 0.5
Kind = Literal["auto", "full", "changed", "members"]


@dataclass(frozen=True, slots=True)
class Place:
    """What a run works on."""

    name: str
    config: PeriodicConfig
    target: TargetConfig
    records: PeriodicRecords
    stop: threading.Event = field(default_factory=threading.Event)

    @property
    def source(self) -> str:
        """What the target knows it by: never the name of a source."""
        return f"periodic:{self.name}"


@dataclass(frozen=True, slots=True)
class Wish:
    """What is asked of a run. ``columns``: only these, and nothing is deleted. ``members``: only these; with
    ``allow_deletes`` they are deleted whatever is known of their keys."""

    kind: Kind = "auto"
    columns: tuple[str, ...] | None = None
    members: tuple[str, ...] | None = None
    dry_run: bool = False
    allow_deletes: bool = False


@dataclass(frozen=True, slots=True)
class Result:
    """How a run ended: ``done``, or ``asking`` where it would delete more than it may by itself.

    ``kept``: rows without a member that stay, since keys are gone as a whole or the configuration says so.
    ``set_aside``: members that can't be written; ``reasons`` counts why, ``members_aside`` names some of them.
    """

    state: str
    kind: str
    dry_run: bool
    members: int = 0
    created: int = 0
    updated: int = 0
    deleted: int = 0
    kept: int = 0
    set_aside: int = 0
    reasons: dict[str, int] = field(default_factory=dict)
    members_aside: tuple[tuple[str, str], ...] = ()
    missing_keys: tuple[str, ...] = ()
    backup: str = ""
    code: str = ""
    message: str = ""
    changed_up_to: float | None = None
    seconds: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    @property
    def row(self) -> RunRow:
        """For the records; they name no member (Guarantee 11)."""
        figures = {n: getattr(self, n) for n in ("members", "created", "updated", "deleted", "kept", "set_aside")}
        return RunRow(
            self.state, figures, self.changed_up_to, self.reasons, self.backup, code=self.code, message=self.message
        )


class _Lease:
    """The run lock, held on as long as the run is heard of."""

    def __init__(self, place: Place, epoch: int) -> None:
        self._place, self.epoch = place, epoch
        self._renewed = time.monotonic()

    def hold(self, *, surely: bool = False) -> None:
        """Renew it when due, or ``surely``: what follows must not be done without it.

        Raises:
            Misconfigured: somebody else has it.
        """
        lease_s = self._place.config.lease_s
        if not surely and time.monotonic() - self._renewed < lease_s / 4:
            return
        if not self._place.records.renew(self.epoch, lease_s):
            raise _fenced(self._place.name)
        self._renewed = time.monotonic()

    def lift_above(self, version: int) -> None:
        """The records are older than the target: go on above what was written there (correctness rule 1)."""
        if version >= self.epoch:
            if not self._place.records.lift(self.epoch, version + 1):
                raise _fenced(self._place.name)
            self.epoch = version + 1


def _fenced(name: str) -> Misconfigured:
    return Misconfigured(
        f"Another run of {name} has taken over, since this one was not heard of for too long.",
        remedy="Nothing is lost: the other run does the work. Raise lease_s if the machine is that slow.",
        code="SL-PERIODIC-FENCED",
    )


def perform(place: Place, wish: Wish) -> Result:
    """Do one run, and record it.

    Raises:
        Unavailable: a server is away, or another run is under way.
        Misconfigured: a key is of another kind, the table can't be taken over, a right is missing.
        Stopped: ``place.stop`` was set.
    """
    epoch = place.records.take(f"{socket.gethostname()}:{os.getpid()}", place.config.lease_s)
    if epoch is None:
        raise Unavailable(
            f"A run of {place.name} is under way.",
            remedy="`syncline periodic status` says whose; a run that died gives way after lease_s.",
            code="SL-PERIODIC-RUNNING",
        )
    lease = _Lease(place, epoch)
    try:
        return _recorded(place, wish, lease)
    finally:
        place.records.release(lease.epoch)


def _recorded(place: Place, wish: Wish, lease: _Lease) -> Result:
    kind, since = _kind(place, wish)
    run = place.records.begin(lease.epoch, kind, dry_run=wish.dry_run)
    _log.info("periodic sync started", name=place.name, kind=kind, dry_run=wish.dry_run)
    started = time.monotonic()
    try:
        result = _Run(place, wish, lease, kind, since).result()
    except SynclineError as error:
        place.records.end(run, RunRow("failed", {}, code=error.code, message=error.message))
        raise
    except (Stopped, KeyboardInterrupt):
        place.records.end(run, RunRow("stopped", {}))
        raise
    except Exception as error:
        found = defect(f"The periodic synchronisation {place.name}", error)
        place.records.end(run, RunRow("failed", {}, code=found.code, message=found.message))
        raise found from error
    seconds = time.monotonic() - started
    place.records.end(run, result.row)
    _log.info("periodic sync completed", name=place.name, state=result.state, **result.row.figures)
    return Result(**{**asdict(result), "seconds": round(seconds, 4)})


def _kind(place: Place, wish: Wish) -> tuple[str, float | None]:
    """What kind of run it is, and since when changed members are looked at."""
    if wish.members is not None:
        return "members", None
    if place.config.changed is None or wish.kind == "full" or wish.columns or wish.dry_run:
        return "full", None
    before = [r for r in place.records.runs(place.config.full_every) if r["state"] == "done" and not r["dry_run"]]
    whole = [r for r in before if r["kind"] in ("full", "changed")]
    noted = next((r["changed_up_to"] for r in whole if r["changed_up_to"] is not None), None)
    recent = any(r["kind"] == "full" for r in whole[: place.config.full_every - 1])
    if noted is None or (wish.kind == "auto" and not recent):
        return "full", None
    return "changed", noted - place.config.changed_overlap_s


class _Run:
    """The parts of one run, in the order in which they are done."""

    def __init__(self, place: Place, wish: Wish, lease: _Lease, kind: str, since: float | None) -> None:
        self._place, self._wish, self._lease = place, wish, lease
        self._kind, self._since = kind, since
        self._config = place.config
        self._up_to: float | None = None
        self._missing: frozenset[str] = frozenset()

    def result(self) -> Result:
        self._refuse_unknown()
        with Connection(self._config) as connection, closing(Difference(self._config)) as difference:
            reader = KeyReader(self._config, connection, self._place.stop)
            chosen = [g for g in difference.groups if self._is_chosen(g)]
            self._up_to = self._last_note(reader)  # before the scan: what is noted meanwhile is looked at again
            members = self._members(reader)
            self._missing = reader.missing(difference.groups)
            self._read(reader, difference, chosen, members)
            if self._wish.dry_run:
                return self._tried(reader, difference, members)
            with closing(self._opened()) as store:
                return self._written(reader, difference, store, members)

    def _refuse_unknown(self) -> None:
        known = {*self._config.columns, *(g.key for g in groups_of(self._config))}
        for name in self._wish.columns or ():
            if name not in known:
                raise Misconfigured(f"There is no column or key {name}.", remedy=hint(name, sorted(known)))

    def _is_chosen(self, group: Group) -> bool:
        wanted = self._wish.columns
        return wanted is None or group.key in wanted or any(name in wanted for name in group.columns)

    # ------------------------------------------------------------------------------------------------------- reading

    def _last_note(self, reader: KeyReader) -> float | None:
        return None if self._config.changed is None else reader.last_change(self._config.changed)

    def _members(self, reader: KeyReader) -> list[bytes] | None:
        """The members to be looked at; None is all."""
        if self._wish.members is not None:
            return [name.encode() for name in self._wish.members]
        if self._since is None or self._config.changed is None:
            return None
        found: set[bytes] = set()
        for some in reader.changed(self._config.changed, self._since):
            found.update(some)
        return sorted(found)

    def _read(
        self, reader: KeyReader, into: Difference, groups: Sequence[Group], members: Sequence[bytes] | None
    ) -> None:
        for group in groups:
            for batch in reader.scan(group) if members is None else [reader.look(group, members)]:
                into.add(group, batch)
                self._lease.hold()
        self._missing |= reader.missing(into.groups)

    def _hold(self, rows: Iterator[pa.RecordBatch], into: Difference) -> None:
        for batch in rows:
            into.hold(batch)
            self._lease.hold()

    # ----------------------------------------------------------------------------------------------------- comparing

    def _unknown(self, difference: Difference) -> list[str]:
        """Columns that an existing row keeps."""
        keeps = self._config.expired == "keep"
        groups = [
            g for g in difference.groups if not self._is_chosen(g) or (keeps and g.whole and g.key in self._missing)
        ]
        return [name for group in groups for name in group.columns]

    def _compared(self, reader: KeyReader, difference: Difference) -> tuple[Counts, int]:
        """What is to be done, once what seems new or gone was looked at by name; and how many rows are kept."""
        counts = difference.compare(self._unknown(difference))
        if self._wish.columns is not None:
            return self._completed(reader, difference, counts), 0
        if not counts.deleted:
            return counts, 0
        for some in difference.members(Op.DELETE):
            self._read(reader, difference, difference.groups, some)
        counts = difference.compare(self._unknown(difference))
        if self._may_delete(difference):
            return counts, 0
        difference.forget_deletes()
        return difference.counts(), counts.deleted

    def _completed(self, reader: KeyReader, difference: Difference, counts: Counts) -> Counts:
        """A run of some columns reads the others of new members too, and says nothing about who is gone."""
        rest = [g for g in difference.groups if not self._is_chosen(g)]
        if counts.created:
            for some in difference.members(Op.INSERT):
                self._read(reader, difference, rest, some)
            difference.compare(self._unknown(difference))
        difference.forget_deletes()
        return difference.counts()

    def _may_delete(self, difference: Difference) -> bool:
        """An expired or evicted key says nothing about its members, unless the configuration says so."""
        if self._wish.members is not None and self._wish.allow_deletes:
            return True
        if self._config.deletes == "removed":
            return not self._missing and any(g.whole for g in difference.groups)
        return self._config.deletes == "gone"

    def _asks(self, counts: Counts) -> bool:
        """Whether a person has to allow what would be deleted."""
        if self._wish.allow_deletes or not counts.deleted:
            return False
        return counts.deleted > self._config.delete_share * self._rows(counts)

    def _rows(self, counts: Counts) -> int:
        """Rows of the table; a run that looks at some of them goes by what the last full one counted."""
        if self._kind == "full":
            return counts.rows
        full = (r for r in self._place.records.runs(1000) if r["kind"] == "full" and r["state"] == "done")
        return max(counts.rows, next((int(r["members"]) for r in full), 0))

    # ------------------------------------------------------------------------------------------------------- writing

    def _tried(self, reader: KeyReader, difference: Difference, members: Sequence[bytes] | None) -> Result:
        """What would be done. Nothing is opened for writing."""
        copy = store_class(self._place.target.type).reader(self._place.target.store)
        message = ""
        with closing(copy):
            if copy.recorded(difference.schema.qualified) is None:
                message = "The table is not followed yet, so that its rows are not known: every member counts as new."
            else:
                self._hold(_only(copy.scan(difference.schema), self._keys(difference.schema, members)), difference)
        counts, kept = self._compared(reader, difference)
        result = self._result("asking" if self._asks(counts) else "done", difference, counts, kept, Refused())
        return Result(**{**asdict(result), "message": result.message or message})

    def _opened(self) -> Store:
        place = self._place
        store: Store = store_class(place.target.type)(place.target.store, place.config.target)
        if not isinstance(store, BackingUp) and self._config.backup_share < 1:
            raise Misconfigured(
                f"Target {place.config.target} of type {place.target.type} can't set a copy of a table aside.",
                remedy="Name a target of type postgres, or set backup_share: 1.",
            )
        return store

    def _written(
        self, reader: KeyReader, difference: Difference, store: Store, members: Sequence[bytes] | None
    ) -> Result:
        self._lease.hold(surely=True)
        cursor = self._prepared(store, difference.schema)
        self._lease.lift_above(cursor.version if cursor else 0)
        keys = self._keys(difference.schema, members)
        held = (
            store.scan(difference.schema) if keys is None else iter(store.fetch(difference.schema, keys).to_batches())
        )
        self._hold(held, difference)
        counts, kept = self._compared(reader, difference)
        if self._asks(counts):
            return self._result("asking", difference, counts, kept, Refused())
        backup = self._backed_up(store, difference.schema, counts)
        refused = self._write(store, difference)
        return self._result("done", difference, counts, kept, refused, backup)

    def _prepared(self, store: Store, schema: TableSchema) -> Cursor | None:
        """Open it and make the table fit. A session of a run before this one may have to be ended first."""
        for left in reversed(range(_TRIES)):
            try:
                cursor = store.open(self._place.source)
                store.migrate(schema)
                return cursor
            except Unavailable:
                if not left or self._place.stop.wait(_AGAIN_S):
                    raise
        raise AssertionError("unreachable")

    def _keys(self, schema: TableSchema, members: Sequence[bytes] | None) -> pa.RecordBatch | None:
        if members is None:
            return None
        key = schema.key[0]
        values, bad = parsed(pa.array(members, pa.binary()), key.type, self._config.timezone)
        return pa.RecordBatch.from_arrays([values.filter(pa.array(~bad))], names=[key.name])

    def _backed_up(self, store: Store, schema: TableSchema, counts: Counts) -> str:
        changes = counts.updated + counts.deleted
        if not changes or not isinstance(store, BackingUp) or changes <= self._config.backup_share * self._rows(counts):
            return ""
        self._lease.hold(surely=True)
        return store.back_up(schema, self._lease.epoch, self._config.keep_backups)

    def _write(self, store: Store, difference: Difference) -> Refused:
        version, refused = self._lease.epoch, Refused()
        cursor = Cursor(self._place.source, Position(self._place.source, version), version=version)
        for batch in difference.batches(version, time.time_ns() // 1000, self._unknown(difference)):
            self._lease.hold(surely=True)
            refused += write(store, batch, cursor)
        # Nothing older can arrive any more: whoever had an earlier version is shut out.
        store.purge(self._place.source, version + 1)
        return refused

    def _result(
        self, state: str, difference: Difference, counts: Counts, kept: int, refused: Refused, backup: str = ""
    ) -> Result:
        aside = list(difference.set_aside())
        reasons = Counter(reason for _, reason in aside) + Counter(refused.reasons)
        nameless = counts.set_aside - len(aside)
        if nameless:
            reasons["the member's name is no value of the key column"] += nameless
        asking = state == "asking"
        return Result(
            state=state,
            kind=self._kind,
            dry_run=self._wish.dry_run,
            members=counts.members,
            created=counts.created - refused.created,
            updated=counts.updated - refused.updated,
            deleted=counts.deleted,
            kept=kept,
            set_aside=counts.set_aside + refused.created + refused.updated,
            reasons=dict(reasons),
            members_aside=(*aside[:20], *refused.members[:20]),
            missing_keys=tuple(sorted(self._missing)),
            backup=backup,
            code=DELETES if asking else "",
            message=self._question(counts) if asking else "",
            changed_up_to=None if asking or self._kind == "members" or self._wish.columns else self._up_to,
        )

    def _question(self, counts: Counts) -> str:
        return (
            f"{counts.deleted:,} of {self._rows(counts):,} rows of table {self._config.table} have no member any more,"
            f" more than delete_share allows ({self._config.delete_share:g}): nothing was changed."
        )


def _only(rows: Iterator[pa.RecordBatch], keys: pa.RecordBatch | None) -> Iterator[pa.RecordBatch]:
    """Those of these keys, or all."""
    for batch in rows:
        yield batch if keys is None else batch.filter(pc.is_in(batch.column(0), keys.column(0)))
