"""One table at one target, compared at one point: both sides read, spread over buckets, paired and counted."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field, replace
from functools import reduce
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from syncline.apply.keys import key_bytes, key_hashes
from syncline.capture import LoadProgress, Source
from syncline.capture import Point as Place
from syncline.capture.schema import table_schema
from syncline.capture.tables import TableInfo
from syncline.change import TableSchema
from syncline.config import LogConfig
from syncline.errors import Gap, Rejected
from syncline.log.embedded import EmbeddedLog
from syncline.mapping import MappedTable, TargetMapping
from syncline.scratch import scratch_folder
from syncline.stores import Choosing, CopyReader, Fetching
from syncline.verify.digest import equal_buckets
from syncline.verify.exact import INEXACT, comparable, comparable_fields, exact_rows
from syncline.verify.keys import shown
from syncline.verify.pairing import VERSION, Bounds, Side, pair
from syncline.verify.part import OfBuckets, OfKeys, Part, Whole, distinct, fits
from syncline.verify.report import EXAMPLES, KINDS, TableReport

__all__ = ["Collect", "Copy", "Outcome", "Point", "Progress", "Suspects", "compare_table"]

_BUCKET_BYTES = 16 * 1024 * 1024
_MAX_BUCKETS = 400  # each an open file while its side is read
_MOST_CHOSEN = 40_000  # buckets that a statement names; of more, reading all is the shorter way
_REMEMBERED = 100_000  # keys of a table that a second look goes by; above that they are not differences of timing

Progress = Callable[[str, int, int | None], None]
Collect = Callable[[str, pa.Table], None]
"""Hears a kind and the key columns (as they are at the target) of each row that differs; parked ones are none."""
Suspects = dict[str, frozenset[bytes] | None]
"""Keys that differed on the first look, by kind; None: too many to remember."""


def _nobody(kind: str, keys: pa.Table) -> None:
    """Differing keys that nobody asked for."""


@dataclass(frozen=True, slots=True)
class Point:
    """Where the source is read, and the version (base + native number) from which on changes are behind it."""

    source: Source
    place: Place
    version: int
    progress: Progress


@dataclass(frozen=True, slots=True)
class Copy:
    """The target behind the point, and what it makes of tables. ``parked`` are hashes of keys by table, ``gaps`` names
    of tables ('': all). ``full``: every row is read, whatever digests say."""

    source: str
    target: str
    reader: CopyReader
    mapping: TargetMapping
    log: LogConfig
    parked: Mapping[str, frozenset[bytes]]
    gaps: frozenset[str]
    full: bool = False
    collect: Collect = _nobody


@dataclass(slots=True)
class Outcome:
    """The report of one table, and what a second look at it should confirm: the ``suspects``, with their keys as they
    are at the target in ``keys``, and the ``part`` of the table in which they are, None if it has to be found."""

    report: TableReport
    suspects: Suspects
    part: Part | None = None
    keys: list[pa.Table] = field(default_factory=list)


def compare_table(
    info: TableInfo, point: Point, copy: Copy, before: Outcome | None, keys: OfKeys | None = None
) -> Outcome:
    """Compare one table, or its rows with these ``keys``; on a second look only rows that differed ``before`` count.

    Where both sides compute digests, rows are read only of the buckets whose digests differ.

    Raises:
        Rewritten: the table was truncated or rewritten while it was read.
        Unavailable, Misconfigured: a server or the copy can't be read.
        Gap: rows that somebody named can't be looked up by their keys.
    """
    report = TableReport(copy.source, copy.target, info.qualified)
    report.state = "gap" if copy.gaps & {"", info.qualified} else "compared"
    outcome = Outcome(report, {kind: frozenset() for kind in KINDS})
    if before is not None and before.part is not None:
        part = _narrowed(before, before.part, info, copy)
        if part is not before.part:  # of rows that are passed over now, what was seen holds
            report.in_flight, report.parked = before.report.in_flight, before.report.parked
    elif keys is not None and isinstance(copy.reader, Fetching):
        part = keys
    else:
        part = _unequal(info, point, copy)
    outcome.part, report.rows = part, part.rows or 0
    if not isinstance(part, OfBuckets) or len(part.chosen.numbers):
        suspects = before.suspects if before is not None else None
        try:
            _compare_rows(info, point, copy, outcome, suspects)
        except Gap:  # it has another key by now than when the keys were seen, or one that can't be looked up
            if not isinstance(part, OfKeys) or part.alone:
                raise
            outcome = Outcome(replace(report, in_flight=0, parked=0), {kind: frozenset() for kind in KINDS}, Whole())
            _compare_rows(info, point, copy, outcome, suspects)
    return outcome


def _unequal(info: TableInfo, point: Point, copy: Copy) -> Part:
    """The buckets whose digests differ; the whole table where digests do not tell."""

    def told(rows: int) -> None:
        point.progress(info.qualified, rows, max(info.estimated_rows, rows))

    equal = None if copy.full else equal_buckets(point.source, info, point.place, copy.reader, copy.mapping, told)
    if equal is None or equal.newest > _greatest(copy) or len(equal.chosen.numbers) > _MOST_CHOSEN:
        return Whole()
    return OfBuckets(equal.chosen, equal.rows)


def _narrowed(before: Outcome, part: Part, info: TableInfo, copy: Copy) -> Part:
    """What a second look reads: the rows that differed by their keys, where they can be looked up. A row that is extra
    may lie where nothing looks that goes by the key, so for that the first look is done again."""
    suspects = before.suspects
    if isinstance(copy.reader, Choosing) or not isinstance(copy.reader, Fetching):
        return part
    if suspects.get("extra") != frozenset() or None in suspects.values() or not before.keys:
        return part
    keys, source = pa.concat_tables(before.keys), table_schema(info)
    if not fits(keys, source) or any(column.null_count for column in keys.columns):
        return part
    (batch,) = keys.rename_columns([c.name for c in source.key]).combine_chunks().to_batches()
    return OfKeys(distinct(batch), before.report.rows)


def _compare_rows(info: TableInfo, point: Point, copy: Copy, outcome: Outcome, suspects: Suspects | None) -> None:
    """Read the outcome's part of both sides, and count what differs."""
    report, part = outcome.report, outcome.part
    assert part is not None
    buckets = min(_MAX_BUCKETS, 1 + info.size_bytes // _BUCKET_BYTES)
    recorded = copy.reader.recorded(info.qualified)
    with ExitStack() as stack:
        folder = stack.enter_context(scratch_folder("syncline-compare-"))
        reading = _Source(folder, info, point, buckets, recorded, copy.mapping, part)
        left = stack.enter_context(closing(reading.side()))
        schema = reading.schema
        if part.rows is None:
            report.rows = left.rows + reading.refused_rows
        columns, report.columns = _shared(schema, recorded or schema)
        names = [c.name for c in schema.key]
        if not set(names) <= set(columns):
            return
        right = _side(folder / "target", recorded or schema, reading.made, names, buckets, (VERSION, pa.int64()))
        stack.enter_context(closing(right))
        if recorded is not None:
            for batch in part.stored(copy.reader, recorded):
                rows = comparable(exact_rows(_versioned(batch), recorded), recorded, reading.made, source=False)
                rows, keyless = _keyless(rows, names)
                right.add(rows)
                _count(outcome, (0, {"extra": keyless}), suspects, None, copy.collect)
        right.finish()
        bounds = _bounds(copy, schema, recorded, point.version)
        parked = copy.parked.get(info.qualified)
        for mine, theirs in zip(left.tables(), right.tables(), strict=True):
            in_flight, found = pair(mine, theirs, names, columns, bounds)
            found["extra"] = _without(found["extra"], reading.refused_keys)
            _count(outcome, (in_flight, found), suspects, parked, copy.collect)
        for keys in reading.refused:  # what can't be mapped has to be parked; else it is missing
            _count(outcome, (0, {"missing": pa.Table.from_batches([keys])}), suspects, parked, copy.collect)


def _greatest(copy: Copy) -> int:
    """The greatest version that a row can have, read behind the rows (correctness rule 4)."""
    cursor, log = copy.reader.cursor(copy.source), EmbeddedLog.peek(copy.log, copy.source)
    return max(cursor.version if cursor else 0, log.max_version if log else 0)


class _Source:
    """Reading the source's side, as the target's mapping makes it. ``schema`` are the columns that are published, known
    once a row was read, ``made`` which of them embedders make, of which digests; ``refused`` the keys of rows that
    can't be mapped."""

    def __init__(
        self,
        folder: Path,
        info: TableInfo,
        point: Point,
        buckets: int,
        recorded: TableSchema | None,
        mapping: TargetMapping,
        part: Part,
    ) -> None:
        self._folder = folder / "source"
        self._info = info
        self._point = point
        self._buckets = buckets
        self._mapping = mapping
        self._part = part
        # What an empty table publishes can't be told apart from what it has: trust what the copy was told.
        mapped = mapping.table(table_schema(info))
        self.schema, self.made = recorded or mapped.schema, _made(mapped)
        self.refused: list[pa.RecordBatch] = []

    @property
    def refused_rows(self) -> int:
        return sum(keys.num_rows for keys in self.refused)

    @property
    def refused_keys(self) -> frozenset[bytes]:
        return frozenset(key for keys in self.refused for key in key_bytes(keys.columns).to_pylist())

    def side(self) -> Side:
        side: Side | None = None
        point = self._point
        for batch in self._part.published(point.source, self._info, point.place, self._tell):
            mapped = self._mapping.table(batch.schema)
            if side is None:
                self.schema, self.made = mapped.schema, _made(mapped)
                side = self._open()
            rows = self._mapped(batch.data(), mapped)
            side.add(comparable(exact_rows(rows, mapped.schema), mapped.schema, self.made, source=True))
        side = side or self._open()
        side.finish()
        return side

    def _mapped(self, rows: pa.RecordBatch, mapped: MappedTable) -> pa.RecordBatch:
        """What the target should hold of the rows."""
        if mapped.trivial:
            return rows
        while True:
            try:
                return mapped.whole(rows).rows
            except Rejected as refused:
                keep = np.ones(rows.num_rows, np.bool_)
                keep[list(refused.rows)] = False
                gone = rows.filter(pa.array(~keep)).select(list(mapped.source.key_positions))
                keys = TableSchema(mapped.schema.namespace, mapped.schema.name, mapped.schema.key)
                self.refused.append(exact_rows(mapped.keys(gone), keys).select(list(range(len(keys.columns)))))
                rows = rows.filter(pa.array(keep))

    def _open(self) -> Side:
        return _side(self._folder, self.schema, self.made, [c.name for c in self.schema.key], self._buckets)

    def _tell(self, loaded: LoadProgress) -> None:
        self._point.progress(loaded.table, loaded.rows, max(self._part.rows or self._info.estimated_rows, loaded.rows))


def _made(mapped: MappedTable) -> dict[str, str]:
    """Columns of vectors that embedders make, and the columns with the digests of their texts."""
    return {embedder.columns[0].name: embedder.columns[1].name for embedder in mapped.embedders}


def _without(rows: pa.Table, keys: frozenset[bytes]) -> pa.Table:
    """The rows that are not under these keys."""
    if not keys or not rows.num_rows:
        return rows
    known = key_bytes([c.combine_chunks() if c.num_chunks != 1 else c.chunk(0) for c in rows.columns]).to_pylist()
    return rows.filter(pa.array([key not in keys for key in known], pa.bool_()))


def _keyless(rows: pa.RecordBatch, names: Sequence[str]) -> tuple[pa.RecordBatch, pa.Table]:
    """The rows that have a key, and the keys of those that lack it or a part of it: no source has such rows."""
    keys = pa.Table.from_batches([rows]).select(list(names))
    if not any(column.null_count for column in keys.columns):
        return rows, keys.slice(0, 0)
    lacking = reduce(pc.or_, [column.combine_chunks().is_null() for column in keys.columns])
    return rows.filter(pc.invert(lacking)), keys.filter(lacking)


def _versioned(rows: pa.RecordBatch) -> pa.RecordBatch:
    """A copy's rows, their version under a name that no column can have."""
    return rows.rename_columns([*rows.schema.names[:-1], VERSION])


def _side(
    folder: Path,
    schema: TableSchema,
    made: Mapping[str, str],
    keys: Sequence[str],
    buckets: int,
    *more: tuple[str, pa.DataType],
) -> Side:
    """A side that holds the table's columns, ``more``, and what has no exact form."""
    folder.mkdir()
    fields = comparable_fields(schema, made)
    names = [name for name, _ in fields]
    arrow = pa.schema([*fields, *more, (INEXACT, pa.string())])
    return Side(folder, arrow, [names.index(k) for k in keys], buckets)


def _shared(left: TableSchema, right: TableSchema) -> tuple[list[str], tuple[str, ...]]:
    """Columns that both sides have with one type, and those that they don't."""
    mine, theirs = ({(c.name, c.type) for c in side.columns} for side in (left, right))
    return [c.name for c in left.columns if (c.name, c.type) in theirs], tuple(sorted({n for n, _ in mine ^ theirs}))


def _bounds(copy: Copy, schema: TableSchema, recorded: TableSchema | None, version: int) -> Bounds:
    """Read behind the rows: what was deleted or emptied since, and the greatest version that can be (rule 4)."""
    nothing = pa.array([], pa.binary())
    if recorded is None:
        return Bounds(version, version, nothing, emptied=False)
    buried = copy.reader.buried(recorded, version)
    truncated, horizon = copy.reader.swept(recorded.qualified)
    greatest = _greatest(copy)
    # A later one no change left. What a cache has evicted stands at the point, which may be behind every change.
    buried = buried.filter(pc.less_equal(buried.column(-1), max(greatest, version))).combine_chunks()
    columns = [buried.column(c.name) for c in schema.key]
    keys = key_bytes([c.chunk(0) for c in columns]) if buried.num_rows else nothing
    # Nor did one empty the table above that: it would hide whatever is missing for good.
    return Bounds(version, greatest, keys, emptied=any(version <= swept <= greatest for swept in (truncated, horizon)))


def _count(
    outcome: Outcome,
    pairs: tuple[int, dict[str, pa.Table]],
    suspects: Suspects | None,
    parked: frozenset[bytes] | None,
    collect: Collect,
) -> None:
    """Add one bucket's findings to the report."""
    in_flight, rows = pairs
    outcome.report.in_flight += in_flight
    for kind, keys in rows.items():
        if not keys.num_rows:
            continue
        columns = [c.combine_chunks() if c.num_chunks != 1 else c.chunk(0) for c in keys.columns]
        known = key_bytes(columns).to_pylist()
        chosen = list(range(len(known)))
        if parked:
            hashes = key_hashes(columns)
            outcome.report.parked += sum(h in parked for h in hashes)
            chosen = [i for i in chosen if hashes[i] not in parked]
        if suspects is not None:
            sure = [i for i in chosen if _suspected(known[i], suspects)]
            outcome.report.in_flight += len(chosen) - len(sure)
            chosen = sure
        setattr(outcome.report, kind, getattr(outcome.report, kind) + len(chosen))
        found = keys if len(chosen) == keys.num_rows else keys.take(pa.array(chosen, pa.int64()))
        _remember(outcome, kind, [known[i] for i in chosen], found)
        collect(kind, found)
        examples = outcome.report.examples.setdefault(kind, [])
        examples += [shown(keys, i) for i in chosen[: EXAMPLES - len(examples)]]


def _suspected(key: bytes, suspects: Suspects) -> bool:
    return any(keys is None or key in keys for keys in suspects.values())


def _remember(outcome: Outcome, kind: str, keys: list[bytes], columns: pa.Table) -> None:
    before = outcome.suspects.get(kind)
    if before is None or len(before) + len(keys) > _REMEMBERED:
        outcome.suspects[kind] = None
    else:
        outcome.suspects[kind] = before | frozenset(keys)
        outcome.keys += [columns] if keys else []
