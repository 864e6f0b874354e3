"""One record everywhere: at the source and in every copy, field by field, with version, tombstone and parked letters.

Read without a point: the record at the source now, then what each target holds of it. What differs while an engine runs
is read again for a moment, so that a change on its way is no difference.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import pyarrow as pa

from syncline.apply.keys import key_bytes, key_hashes
from syncline.capture import Source
from syncline.capture.captured import Captured, captured
from syncline.capture.schema import table_schema
from syncline.capture.tables import TableInfo
from syncline.catalog.repository import ControlSchema
from syncline.change import TableSchema, arrow_type
from syncline.config import Config
from syncline.errors import Misconfigured, Rejected, SynclineError
from syncline.finding import Finding
from syncline.mapping import MappedTable
from syncline.nearest import hint
from syncline.stores import CopyReader, Fetching
from syncline.verify.checks.data_hash import digest
from syncline.verify.exact import INEXACT, comparable, exact_rows
from syncline.verify.keys import key_of
from syncline.verify.point import open_copy

__all__ = ["Letter", "Seen", "record"]

_SETTLE_S = 5.0
_LOOK_S = 0.2


@dataclass(frozen=True, slots=True)
class Letter:
    """A change of the record that a target refused."""

    version: int
    reason: str
    parked_at: datetime


@dataclass(frozen=True, slots=True)
class Seen:
    """The record at one place. ``target`` is empty for the source. ``state``: ``there``, ``absent``, ``deleted`` (a
    tombstone of ``version``), ``not held`` (the target does not take the table), or ``unknown`` for the ``reason``.
    ``shown`` is the version as people of the source write it. ``expected`` says whether the row should be
    there, ``differs`` names the fields that are other than they should be (``rows``: there are several). ``fields``
    are values: for the eyes of who asked, never for a log (Guarantee 11)."""

    source: str
    target: str
    state: str
    fields: Mapping[str, Any] = field(default_factory=dict, repr=False)
    version: int = 0
    shown: str = ""
    expected: bool = True
    differs: tuple[str, ...] = ()
    letters: tuple[Letter, ...] = ()
    reason: str = ""

    @property
    def equal(self) -> bool:
        """Whether it is as the source has it, as far as that is known."""
        return self.state == "unknown" or (not self.differs and (self.state == "there") == self.expected)


def record(config: Config, table: str, key: Sequence[str], target: str | None = None) -> list[Seen]:
    """The record of ``table`` (``namespace.name``) with this key: a value for each key column, in their order or as
    ``column=value``. For each source that captures the table the source itself, then its targets (or the one named).

    Raises:
        Misconfigured: there is no such table, or the key is none of it.
        Unavailable: a source is away.
    """
    found: list[Seen] = []
    known: set[str] = set()
    left_out: Finding | None = None
    for name in config.sources:
        source = config.source(name)
        now = captured(source)
        known |= {info.qualified for info in now.tables}
        left_out = now.left_out.get(table, left_out)
        if any(info.qualified == table for info in now.tables):
            found += _settled(_Lookup(config, name, source, now, table, tuple(key), target))
    if not found and left_out is not None:
        raise Misconfigured(f"Table {table}: {left_out.message}", remedy=left_out.remedy)
    if not found:
        raise Misconfigured(f"No table that is captured is called {table}.", remedy=hint(table, sorted(known)))
    return found


def _settled(lookup: _Lookup) -> list[Seen]:
    """What is found once nothing that differs is on its way any more, as far as that is waited for."""
    deadline = time.monotonic() + _SETTLE_S
    while True:
        found = list(lookup.look())
        if all(one.equal for one in found) or time.monotonic() > deadline or lookup.source.reader() is None:
            return found
        time.sleep(_LOOK_S)


@dataclass(frozen=True, slots=True)
class _Lookup:
    """One record of one source."""

    config: Config
    name: str
    source: Source
    now: Captured
    table: str
    key: tuple[str, ...]
    target: str | None

    def look(self) -> Iterator[Seen]:
        info = next(i for i in self.now.tables if i.qualified == self.table)
        schema = table_schema(info)
        keys = key_of(schema, self.key)
        row = self._row(info, schema, keys)
        state = "there" if row.num_rows else "absent"
        yield Seen(self.name, "", state, _fields(row), expected=bool(row.num_rows))
        for target in self.config.targets:
            if self.target in (None, target) and self.name in self.config.followed_by(target):
                yield self._at(target, schema, keys, row)

    def _row(self, info: TableInfo, schema: TableSchema, keys: pa.RecordBatch) -> pa.RecordBatch:
        """The record at the source, looked up where it can be, else found among all that the source last told."""
        fetch = getattr(self.source, "fetch", None)
        if fetch is not None:
            row: pa.RecordBatch = fetch(schema, keys)
            return row
        with self.source.point("record", lambda _: None) as point:
            for batch in self.source.rows(info, point, 0, threading.Event(), lambda _: None):
                found = _of_key(batch.data(), schema.key_positions, keys)
                if found.num_rows:
                    return found
        return pa.RecordBatch.from_pylist([], pa.schema([(c.name, arrow_type(c.type)) for c in schema.columns]))

    def _at(self, target: str, schema: TableSchema, keys: pa.RecordBatch, row: pa.RecordBatch) -> Seen:
        mapping = self.config.targets[target].mapping(self.now.facts)
        if not mapping.takes(self.table):
            return Seen(self.name, target, "not held", expected=False)
        mapped = mapping.table(schema)
        try:
            with closing(open_copy(self.config.targets[target])) as reader:
                return self._held(target, reader, mapped, mapped.keys(keys), row)
        except SynclineError as error:
            return Seen(self.name, target, "unknown", reason=error.message)

    def _held(
        self, target: str, reader: CopyReader, mapped: MappedTable, keys: pa.RecordBatch, row: pa.RecordBatch
    ) -> Seen:
        letters = self._letters(target, keys)
        try:
            wanted = mapped.whole(row).rows
        except Rejected:
            wanted = row.slice(0, 0)  # it can't be there: its change is parked
        expected = bool(wanted.num_rows)
        recorded = reader.recorded(self.table)
        cursor = reader.cursor(self.name)
        if recorded is None or cursor is None:
            return Seen(self.name, target, "absent", expected=expected, letters=letters)
        held = _fetched(reader, recorded, keys)
        if not held.num_rows:
            buried = _buried(reader, recorded, keys)
            shown = self.source.shown(buried - cursor.base) if buried else ""
            return Seen(
                self.name, target, "deleted" if buried else "absent", {}, buried, shown, expected, letters=letters
            )
        version = max(held["version"].to_pylist())
        one = held.combine_chunks().to_batches()[0].slice(0, 1)
        differs = ("rows",) if held.num_rows > 1 else _differing(wanted, one, mapped, recorded) if expected else ()
        shown = self.source.shown(version - cursor.base) if version > cursor.base else ""
        fields = _fields(one.select(list(range(len(recorded.columns)))))
        return Seen(self.name, target, "there", fields, version, shown, expected, differs, letters)

    def _letters(self, target: str, keys: pa.RecordBatch) -> tuple[Letter, ...]:
        (mine,) = key_hashes(keys.columns)
        with ControlSchema(self.config.control_dsn, self.config.control.schema_name) as control:
            rows = control.letters_of(self.name, [self.table], "")
        mine_at = [r for r in rows if r["target"] == target and bytes(r["key_hash"]) == mine]
        return tuple(Letter(r["version"], r["reason"], r["parked_at"]) for r in mine_at)


def _fetched(reader: CopyReader, schema: TableSchema, keys: pa.RecordBatch) -> pa.Table:
    """The rows under the key: looked up where the reader can, else found among all."""
    if isinstance(reader, Fetching):
        return reader.fetch(schema, keys)
    batches = [_of_key(batch, schema.key_positions, keys) for batch in reader.scan(schema)]
    return pa.Table.from_batches(batches) if batches else pa.table({"version": pa.array([], pa.int64())})


def _of_key(rows: pa.RecordBatch, positions: Sequence[int], keys: pa.RecordBatch) -> pa.RecordBatch:
    (wanted,) = key_bytes(keys.columns).to_pylist()
    found = key_bytes([rows.column(i) for i in positions]).to_pylist() if rows.num_rows else []
    return rows.filter(pa.array([one == wanted for one in found], pa.bool_()))


def _buried(reader: CopyReader, schema: TableSchema, keys: pa.RecordBatch) -> int:
    """The version of the key's newest tombstone, 0 without one."""
    buried, places = reader.buried(schema, 0), range(len(schema.key))
    found = [_of_key(batch, places, keys).column("version").to_pylist() for batch in buried.to_batches()]
    return max((version for versions in found for version in versions), default=0)


def _differing(
    wanted: pa.RecordBatch, held: pa.RecordBatch, mapped: MappedTable, recorded: TableSchema
) -> tuple[str, ...]:
    """The columns that hold something else, or that only one side has."""
    made = {embedder.columns[0].name: embedder.columns[1].name for embedder in mapped.embedders}
    mine = comparable(exact_rows(wanted, mapped.schema), mapped.schema, made, source=True)
    theirs = comparable(exact_rows(held, recorded), recorded, made, source=False)
    types = {c.name: c.type for c in recorded.columns}
    shared = [c.name for c in mapped.schema.columns if types.get(c.name) == c.type]
    odd = {c.name for c in mapped.schema.columns} ^ set(types)
    odd |= {c.name for c in mapped.schema.columns if c.name in types and types[c.name] != c.type}
    differs = [name for name in shared if _one(mine, name) != _one(theirs, name)]
    texts = [batch.column(INEXACT)[0].as_py() or "" for batch in (mine, theirs)]
    inexact = set(texts[0].split("\0")) ^ set(texts[1].split("\0"))
    differs += [mapped.schema.columns[int(part.partition("=")[0])].name for part in inexact if part]
    return tuple(dict.fromkeys([*differs, *sorted(odd)]))


def _one(batch: pa.RecordBatch, name: str) -> str:
    return digest([batch.select([name])], [name], "xxh3")


def _fields(row: pa.RecordBatch) -> dict[str, Any]:
    """The values of the row, None without one."""
    return {name: column[0] for name, column in zip(row.schema.names, row.columns, strict=True)} if len(row) else {}
