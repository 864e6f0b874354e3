"""Writing one table's part of a work: guard, complete, truncate, delete and insert, bury."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import duckdb
import numpy as np
import pyarrow as pa

from syncline.change import Column, TableSchema, arrow_type
from syncline.errors import Rejected
from syncline.masks import unpacked_masks
from syncline.stores import Folded, TableWork
from syncline.stores.duckdb.sql import Guard, Statements
from syncline.stores.duckdb.tables import TableState

__all__ = ["refused_rows", "view_of_keys", "write_table"]

_UPSERTS, _PARTIALS, _DELETES = "syncline_upserts", "syncline_partials", "syncline_deletes"
_COMPLETED = "syncline_completed"
# A registered view keeps its batch in memory until the next one; larger batches are let go at once.
_KEEP_BYTES = 1 << 20

_Connection = duckdb.DuckDBPyConnection


def write_table(cursor: _Connection, work: TableWork, state: TableState) -> None:
    """Write one table's rows inside the caller's transaction, and move ``state`` on.

    Raises:
        Rejected: a value has no exact form. Positions count the upserts, then the partials.
    """
    schema, rows = work.schema, work.rows
    keys = _key_types(schema, rows)
    lowest, highest = _version_span(rows)
    if work.truncated is not None:
        state.truncated = max(state.truncated, work.truncated)
    # Guarantee 5, without asking the guard where it can only say yes: nothing stored, buried, truncated or forgotten is
    # newer than the oldest incoming change, so all of them win.
    guard = None
    if lowest < max(state.highest, state.truncated):
        guard = Guard(state.truncated, state.horizon, -1 if work.truncated is None else work.truncated)
    writer = _Writer(cursor, schema, keys, guard)
    writer.check(rows)
    upserts = writer.upserts(rows.upserts)
    partials = writer.partials(rows.partials)
    deletes = writer.deletes(rows.deletes)
    if work.truncated is not None:
        cursor.execute(Statements(schema).truncate(work.truncated))
        cursor.execute("update syncline.tables set truncated = $1 where name = $2", [state.truncated, schema.qualified])
    for write in (upserts, partials, deletes):
        if write:
            write()
    state.highest = max(state.highest, highest, state.truncated)


def _version_span(rows: Folded) -> tuple[int, int]:
    lowest, highest = 2**63 - 1, 0
    for batch, place in ((rows.upserts, -1), (rows.partials, -3), (rows.deletes, -1)):
        if batch is not None and batch.num_rows:
            versions = batch.column(batch.num_columns + place).to_numpy()
            lowest, highest = min(lowest, int(versions.min())), max(highest, int(versions.max()))
    return lowest, highest


def _key_types(schema: TableSchema, rows: Folded) -> tuple[pa.DataType, ...]:
    """Arrow types of the keys that come alone, in deletes."""
    if rows.deletes is None:
        return tuple(arrow_type(c.type) for c in schema.key)
    return tuple(rows.deletes.schema.types[: len(schema.key)])


@dataclass
class _Writer:
    """The steps of one table. Each of ``upserts``, ``partials`` and ``deletes`` looks first and returns the write."""

    cursor: _Connection
    schema: TableSchema
    keys: tuple[pa.DataType, ...]
    guard: Guard | None

    def check(self, rows: Folded) -> None:
        """Find the values that arrive as text and have no exact form, before anything is written."""
        bad: list[int] = []
        offset = 0
        for batch in (rows.upserts, rows.partials):
            if batch is None:
                continue
            types = tuple(batch.schema.types[: len(self.schema.columns)])
            query = Statements(self.schema, types).inexact(_UPSERTS)
            if query:
                self.cursor.register(_UPSERTS, _rows_view(self.schema, batch))
                bad.extend(offset + n for (n,) in self.cursor.execute(query).fetchall())
            offset += batch.num_rows
        if bad:
            raise Rejected(self.schema.qualified, bad, "a value has no exact form in its column's type")

    def upserts(self, batch: pa.RecordBatch | None) -> Callable[[], None] | None:
        if batch is None or not batch.num_rows:
            return None
        statements = Statements(self.schema, tuple(batch.schema.types[: len(self.schema.columns)]))
        if not self._register(_UPSERTS, _rows_view(self.schema, batch), statements, whole=True):
            return None

        def write() -> None:
            self.cursor.execute(statements.delete(_UPSERTS, whole=True))
            self.cursor.execute(statements.insert(_UPSERTS))
            self._let_go(_UPSERTS, batch)

        return write

    def deletes(self, batch: pa.RecordBatch | None) -> Callable[[], None] | None:
        if batch is None or not batch.num_rows:
            return None
        statements = Statements(self.schema, keys=self.keys)
        if not self._register(_DELETES, view_of_keys(self.schema, batch), statements, whole=False):
            return None

        def write() -> None:
            self.cursor.execute(statements.remove(_DELETES))
            self.cursor.execute(statements.bury(_DELETES))
            self._let_go(_DELETES, batch)

        return write

    def partials(self, batch: pa.RecordBatch | None) -> Callable[[], None] | None:
        if batch is None or not batch.num_rows:
            return None
        n = len(self.schema.columns)
        origins = batch.column(n + 2).flatten()
        statements = Statements(self.schema, tuple(batch.schema.types[:n]), tuple(a.type for a in origins))
        moves = not all(a.equals(batch.column(i)) for i, a in zip(self.schema.key_positions, origins, strict=True))
        self.cursor.register(_PARTIALS, _partials_view(self.schema, batch, origins))
        self.cursor.execute(statements.complete(_PARTIALS, _COMPLETED, self.guard, moves=moves))
        self._drop_duplicates()

        def write() -> None:
            if moves:
                self.cursor.execute(statements.record_moves(_PARTIALS, _COMPLETED))
            self.cursor.execute(statements.delete_completed(_COMPLETED))
            self.cursor.execute(statements.insert_completed(_COMPLETED))
            self.cursor.execute(f"drop table {_COMPLETED}")
            self._let_go(_PARTIALS, batch)

        return write

    def _drop_duplicates(self) -> None:
        """A row that someone inserted by hand must not become two: of the rows of one key the newest completes."""
        ((doubled,),) = self.cursor.execute(f"select count(*) > count(distinct n) from {_COMPLETED}").fetchall()
        if doubled:
            newest = f"select arg_max(rowid, coalesce(base, 0)) from {_COMPLETED} group by n"
            self.cursor.execute(f"delete from {_COMPLETED} where rowid not in ({newest})")

    def _register(self, name: str, view: pa.Table, statements: Statements, *, whole: bool) -> bool:
        """Register the rows that pass the guard; False if none does."""
        self.cursor.register(name, view)
        if self.guard is None:
            return True
        found = self.cursor.execute(statements.accepted(name, self.guard, whole=whole)).fetchnumpy()["n"]
        if len(found) == view.num_rows:
            return True
        self.cursor.register(name, view.take(pa.array(np.asarray(found, dtype=np.int64))))
        return bool(len(found))

    def _let_go(self, name: str, batch: pa.RecordBatch) -> None:
        if batch.nbytes > _KEEP_BYTES:
            self.cursor.unregister(name)


def _as_stored(array: pa.Array, column: Column) -> pa.Array:
    """DuckDB takes 16 bytes as a UUID when Arrow says that they are one; no copy."""
    if column.type == "uuid" and pa.types.is_fixed_size_binary(array.type):
        return pa.ExtensionArray.from_storage(pa.uuid(), array)
    return array


def _table(arrays: Sequence[pa.Array], names: Sequence[str], rows: int) -> pa.Table:
    return pa.Table.from_arrays([*arrays, pa.array(np.arange(rows))], names=[*names, "n"])


def _rows_view(schema: TableSchema, batch: pa.RecordBatch) -> pa.Table:
    n = len(schema.columns)
    arrays = [_as_stored(batch.column(i), c) for i, c in enumerate(schema.columns)]
    return _table([*arrays, batch.column(n)], [*(f"c{i}" for i in range(n)), "v"], batch.num_rows)


def view_of_keys(schema: TableSchema, batch: pa.RecordBatch) -> pa.Table:
    """The view of keys alone, with their version if the batch has one."""
    n = len(schema.key)
    arrays = [_as_stored(batch.column(i), c) for i, c in enumerate(schema.key)]
    names = [f"c{i}" for i in range(n)]
    if batch.num_columns > n:
        arrays.append(batch.column(n))
        names.append("v")
    return _table(arrays, names, batch.num_rows)


def _partials_view(schema: TableSchema, batch: pa.RecordBatch, origins: Sequence[pa.Array]) -> pa.Table:
    n = len(schema.columns)
    bits = unpacked_masks(batch.column(n + 1), schema)
    view = _rows_view(schema, batch)
    for i in range(n):
        view = view.append_column(f"u{i}", pa.array(bits[:, i]))
    for j, (array, column) in enumerate(zip(origins, schema.key, strict=True)):
        view = view.append_column(f"f{j}", _as_stored(array, column))
    return view


def refused_rows(work: TableWork, fails: Callable[[TableWork], bool]) -> list[int]:
    """Positions of the upserts, then the partials, that ``fails`` refuses, found by halving.

    For errors that no check foresees, such as a CHECK constraint of an adopted table.
    """
    upserts = 0 if work.rows.upserts is None else work.rows.upserts.num_rows
    partials = 0 if work.rows.partials is None else work.rows.partials.num_rows

    def bad(positions: list[int]) -> list[int]:
        if not positions or not fails(_subset(work, positions, upserts)):
            return []
        if len(positions) == 1:
            return positions
        middle = len(positions) // 2
        return bad(positions[:middle]) + bad(positions[middle:])

    return bad(list(range(upserts + partials)))


def _subset(work: TableWork, positions: list[int], upserts: int) -> TableWork:
    def take(batch: pa.RecordBatch | None, wanted: list[int]) -> pa.RecordBatch | None:
        return batch.take(pa.array(wanted, pa.int64())) if batch is not None and wanted else None

    first = take(work.rows.upserts, [p for p in positions if p < upserts])
    second = take(work.rows.partials, [p - upserts for p in positions if p >= upserts])
    return TableWork(work.schema, Folded(first, second), work.truncated)
