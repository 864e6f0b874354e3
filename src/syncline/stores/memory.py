"""The in-memory store: the reference that every other store is held against.

Plain Python, one row at a time, obviously right rather than fast; for tests and for trying Syncline out.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
from pydantic import BaseModel, ConfigDict, Field

from syncline.change import Column, Cursor, TableSchema, arrow_type
from syncline.errors import Misconfigured, Rejected
from syncline.stores import Folded, Limits, TableWork, Work

__all__ = ["MemoryConfig", "MemoryStore"]

Key = tuple[Any, ...]
_INFINITE = {"infinity": 1, "-infinity": -1}


class MemoryConfig(BaseModel):
    """Tables in this process's memory."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    database: str = Field(
        "", description="Stores naming the same database share its tables for the life of the process; empty: private."
    )


@dataclass
class _Row:
    values: dict[str, Any]
    version: int


@dataclass
class _Table:
    schema: TableSchema
    rows: dict[Key, _Row] = field(default_factory=dict)
    tombstones: dict[Key, int] = field(default_factory=dict)
    moved: set[tuple[Key, Key, int]] = field(default_factory=set)
    truncated: int = 0
    horizon: int = 0


@dataclass
class _Database:
    tables: dict[str, _Table] = field(default_factory=dict)
    sources: dict[str, str] = field(default_factory=dict)
    cursors: dict[str, Cursor] = field(default_factory=dict)
    lock: threading.RLock = field(default_factory=threading.RLock)


_DATABASES: dict[str, _Database] = {}


class MemoryStore:
    """The contract of :class:`syncline.stores.Store` in dictionaries."""

    config_class = MemoryConfig
    form = "rows"
    limits = Limits()

    def __init__(self, config: MemoryConfig, name: str) -> None:
        self.name = name
        self._database = _DATABASES.setdefault(config.database, _Database()) if config.database else _Database()
        self._source = ""

    def open(self, source: str) -> Cursor | None:
        """The cursor of ``source``, None if nothing was applied for it yet."""
        self._source = source
        return self._database.cursors.get(source)

    def migrate(self, schema: TableSchema) -> TableSchema | None:
        """Create the table, or give its rows the columns of ``schema``; the former schema."""
        with self._database.lock:
            self._database.sources[schema.qualified] = self._source
            table = self._database.tables.get(schema.qualified)
            if table is None:
                self._database.tables[schema.qualified] = _Table(schema)
                return None
            former = table.schema
            if former != schema:
                _reshape(table, schema)
            return former

    def apply(self, work: Work) -> None:
        """Apply to a copy, then put the copy in place: whole works or nothing.

        Raises:
            Rejected: a value has no exact form in its column's type.
            Misconfigured: ``migrate`` was not called for one of the tables.
        """
        with self._database.lock:
            changed: dict[str, _Table] = {}
            for part in work.tables:
                table = self._database.tables.get(part.schema.qualified)
                if table is None:
                    raise Misconfigured(f"Table {part.schema.qualified} is not in this store.", remedy="Migrate first.")
                table = changed.get(part.schema.qualified, table)
                changed[part.schema.qualified] = _applied(table, part)
            self._database.tables.update(changed)
            self._database.cursors[work.cursor.source] = work.cursor

    def forget(self, schema: TableSchema, keys: pa.RecordBatch, above: int) -> None:
        """Rows and tombstones of these keys with a version above ``above`` no longer hinder anything."""
        with self._database.lock:
            table = self._database.tables[schema.qualified]
            table.truncated = table.truncated if table.truncated <= above else 0
            table.horizon = table.horizon if table.horizon <= above else 0
            for key in _keys(keys, schema.key):
                if key in table.rows and table.rows[key].version > above:
                    table.rows[key] = _Row(table.rows[key].values, 0)
                if table.tombstones.get(key, 0) > above:
                    del table.tombstones[key]

    def fetch(self, schema: TableSchema, keys: pa.RecordBatch) -> pa.Table:
        """The stored rows of these keys."""
        with self._database.lock:
            table = self._database.tables[schema.qualified]
            wanted = _keys(keys, schema.key)
            return _as_table(schema, [table.rows[k] for k in wanted if k in table.rows])

    def scan(self, schema: TableSchema) -> Iterator[pa.RecordBatch]:
        """All rows, as they were when the first batch was asked for."""
        with self._database.lock:
            rows = list(self._database.tables[schema.qualified].rows.values())
        yield from _as_table(schema, rows).to_batches(max_chunksize=10_000)

    def purge(self, source: str, below: int) -> int:
        """Forget tombstones with a version below ``below`` in the tables of ``source``."""
        forgotten = 0
        with self._database.lock:
            for name, table in self._database.tables.items():
                if self._database.sources[name] != source:
                    continue
                kept = {k: v for k, v in table.tombstones.items() if v >= below}
                forgotten += len(table.tombstones) - len(kept)
                table.tombstones = kept
                table.moved = {m for m in table.moved if m[2] >= below}
                table.horizon = max(table.horizon, below)
        return forgotten

    def close(self) -> None:
        """Nothing to release; the tables stay for other stores of the same database."""


def _reshape(table: _Table, schema: TableSchema) -> None:
    """Keep the values of columns whose type stays, forget the others."""
    kept = {c.name for c in schema.columns} & {
        c.name for c in table.schema.columns for d in schema.columns if (c.name, c.type) == (d.name, d.type)
    }
    for row in table.rows.values():
        row.values = {c.name: row.values.get(c.name) if c.name in kept else None for c in schema.columns}
    if table.schema.key != schema.key:
        table.rows = {tuple(r.values[c.name] for c in schema.key): r for r in table.rows.values()}
        table.tombstones, table.moved = {}, set()
    table.schema = schema


def _applied(table: _Table, work: TableWork) -> _Table:
    """The table after the work, guard and all (Guarantee 5)."""
    schema = work.schema
    upserts, partials = _incoming(schema, work.rows)
    before = table.rows
    after = _Table(schema, dict(before), dict(table.tombstones), set(table.moved), table.truncated, table.horizon)
    if work.truncated is not None:
        after.truncated = max(table.truncated, work.truncated)
        after.rows = {k: r for k, r in before.items() if r.version > work.truncated}
    for key, row in upserts:
        if _wins(after, key, row.version):
            after.rows[key] = row
    for key, row, origin, unchanged in partials:
        base = before.get(origin)
        if base is None or not _wins(after, key, row.version) or not _movable(after, key, origin, base, row.version):
            continue
        values = {n: base.values[n] if n in unchanged else v for n, v in row.values.items()}
        after.rows[key] = _Row(values, row.version)
    for key, version in _deletes(schema, work.rows):
        if _wins(after, key, version):
            after.rows.pop(key, None)
            after.tombstones[key] = max(version, after.tombstones.get(key, version))
    return after


def _movable(table: _Table, key: Key, origin: Key, base: _Row, version: int) -> bool:
    """Whether a partial may take values from ``base``. A row that moves takes them once, and never from a newer row."""
    if origin == key:
        return True
    if base.version > version or (key, origin, version) in table.moved:
        return False
    table.moved.add((key, origin, version))
    return True


def _wins(table: _Table, key: Key, version: int) -> bool:
    """The guard: whether a change of this version may be written."""
    if version < table.truncated or version < table.tombstones.get(key, 0):
        return False
    stored = table.rows.get(key)
    return version >= table.horizon if stored is None else stored.version <= version


def _incoming(
    schema: TableSchema, rows: Folded
) -> tuple[list[tuple[Key, _Row]], list[tuple[Key, _Row, Key, set[str]]]]:
    """Upserts and partials as Python values.

    Raises:
        Rejected: with positions among the upserts, then the partials.
    """
    bad: set[int] = set()
    upserts, count = [], 0
    if rows.upserts is not None:
        count = rows.upserts.num_rows
        upserts = list(_rows(schema, rows.upserts, bad, 0))
    partials = []
    if rows.partials is not None:
        whole = list(_rows(schema, rows.partials, bad, count))
        n = len(schema.columns)
        masks = rows.partials.column(n + 1).to_pylist()
        struct = rows.partials.column(n + 2)
        origins = _keys(pa.RecordBatch.from_arrays(struct.flatten(), [c.name for c in schema.key]), schema.key)
        for (key, row), mask, origin in zip(whole, masks, origins, strict=True):
            names = {c.name for i, c in enumerate(schema.columns) if mask[i // 8] >> (i % 8) & 1}
            partials.append((key, row, origin, names))
    if bad:
        raise Rejected(schema.qualified, sorted(bad), "a value has no exact form in its column's type")
    return upserts, partials


def _rows(schema: TableSchema, batch: pa.RecordBatch, bad: set[int], offset: int) -> Iterator[tuple[Key, _Row]]:
    columns = [_values(batch.column(i), c, bad, offset) for i, c in enumerate(schema.columns)]
    versions = batch.column(len(schema.columns)).to_pylist()
    for i, version in enumerate(versions):
        values = {c.name: column[i] for c, column in zip(schema.columns, columns, strict=True)}
        yield tuple(values[c.name] for c in schema.key), _Row(values, version)


def _deletes(schema: TableSchema, rows: Folded) -> list[tuple[Key, int]]:
    """Deleted keys; one that has no exact form was never stored, so there is nothing to delete."""
    if rows.deletes is None:
        return []
    keys = _keys(rows.deletes, schema.key)
    versions = rows.deletes.column(len(schema.key)).to_pylist()
    return [(k, v) for k, v in zip(keys, versions, strict=True) if None not in k]


def _keys(batch: pa.RecordBatch, key: Sequence[Column]) -> list[Key]:
    columns = [_values(batch.column(i), c, set(), 0) for i, c in enumerate(key)]
    return list(zip(*columns, strict=True))


def _values(array: pa.Array, column: Column, bad: set[int], offset: int) -> list[Any]:
    """Comparable Python values: temporal types as their integers, which also hold infinities and ``24:00``."""
    wanted = arrow_type(column.type)
    if array.type != wanted:
        texts = array.to_pylist()
        cast = [None if t is None else _exact(t, column.type) for t in texts]
        bad.update(offset + i for i, (t, v) in enumerate(zip(texts, cast, strict=True)) if t is not None and v is None)
        return cast
    storage = _storage(wanted)
    return list((array.view(storage) if storage else array).to_pylist())


def _exact(text: str, logical: str) -> Any:
    """PostgreSQL's text as the value :func:`_values` would give, None when there is no exact one."""
    wanted = arrow_type(logical)
    storage = _storage(wanted)
    if storage and text in _INFINITE:
        return _INFINITE[text] * (2 ** (storage.bit_width - 1) - 1)
    if logical == "time" and text == "24:00:00":
        return 86_400_000_000
    if logical == "time":  # Arrow reads no time of day, but a day with one
        text, wanted = f"1970-01-01 {text}", pa.timestamp("us")
    try:
        value = pa.array([text]).cast(wanted)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        return None
    return (value.view(storage) if storage else value)[0].as_py()


def _storage(wanted: pa.DataType) -> pa.DataType | None:
    """The integer type under a temporal type."""
    return (pa.int32() if wanted == pa.date32() else pa.int64()) if pa.types.is_temporal(wanted) else None


def _as_table(schema: TableSchema, rows: list[_Row]) -> pa.Table:
    arrays = []
    for column in schema.columns:
        wanted = arrow_type(column.type)
        values = [copy.copy(row.values[column.name]) for row in rows]
        storage = _storage(wanted)
        arrays.append(pa.array(values, storage).view(wanted) if storage else pa.array(values, wanted))
    arrays.append(pa.array([row.version for row in rows], pa.int64()))
    return pa.Table.from_arrays(arrays, names=[*(c.name for c in schema.columns), "version"])
