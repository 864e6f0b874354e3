"""Reading a copy back: streamed in PostgreSQL's binary form, and decoded by the code that decodes sources."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import psycopg
import pyarrow as pa
import pyarrow.compute as pc

from syncline.change import Column, arrow_type
from syncline.pgvalues.pgtypes import binary_cells, binary_exact, logical_type, text_cells
from syncline.pgvalues.tuples import Cells, Joined, Malformed, walk_copy
from syncline.stores.postgres.columns import Kind
from syncline.stores.postgres.server import Connection
from syncline.stores.postgres.sql import VERSION_COLUMN, Incoming, Statements, quote
from syncline.stores.postgres.tables import TableState
from syncline.stores.postgres.wire import Wire

__all__ = ["fetch_rows", "scan_rows", "scan_tombstones"]

_ROWS = 20_000
_BYTES = 16 * 1024 * 1024
_HEADER = 19  # of a binary COPY, in front of its first row; a message with the trailer comes last
_INT8 = Kind("bigint", 20, -1)
_VERSION = Column("version", "int8", "bigint")


def _binary(kind: Kind, column: Column) -> bool:
    """Whether the column's binary form is decoded as it is; else it is read as text."""
    return logical_type(kind.oid, kind.typmod) == column.type and binary_exact(kind.oid, kind.typmod)


def _shown(name: str, kind: Kind, column: Column) -> str:
    """SQL for a column: as it is, or as its type's output function prints it (not ``::text``, which trims a char(n) and
    adds a mask to an inet); NULL stays NULL."""
    if _binary(kind, column):
        return name
    if column.type in ("texts", "sparse"):
        return f"to_jsonb({name})::text"
    if column.type.startswith("numeric("):
        name = f"trim_scale({name})"
    return f"case when {name} is distinct from null then concat({name}) end"


def _select(state: TableState) -> str:
    statements = Statements(state.target)
    columns = zip(statements.columns, state.kinds, state.target.schema.columns, strict=True)
    shown = ", ".join(_shown(f"t.{name}", kind, column) for name, kind, column in columns)
    return f"select {shown}, coalesce(t.{quote(VERSION_COLUMN)}, 0) from {statements.table} as t"


def _decoders(kinds: Sequence[Kind], columns: Sequence[Column]) -> list[tuple[Kind | None, Column]]:
    """The binary form (None: text) and the meaning of what is selected, the version behind it."""
    found = [(kind if _binary(kind, c) else None, c) for kind, c in zip(kinds, columns, strict=True)]
    return [*found, (_INT8, _VERSION)]


def scan_rows(connection: Connection, state: TableState) -> Iterator[pa.RecordBatch]:
    """All rows that are there, as the contract's ``scan``."""
    soft = Statements(state.target).soft
    where = f" where t.{soft} is null" if soft else ""
    yield from _copied(connection, _select(state) + where, _decoders(state.kinds, state.target.schema.columns))


def scan_tombstones(connection: Connection, state: TableState, since: int) -> Iterator[pa.RecordBatch]:
    """Keys of tombstones with a version at or above ``since``, then that version."""
    schema = state.target.schema
    kinds = [state.kinds[i] for i in schema.key_positions]
    shown = ", ".join(_shown(f"d.k{n}", kind, c) for n, (kind, c) in enumerate(zip(kinds, schema.key, strict=True)))
    query = f"select {shown}, d.version from {Statements(state.target).tombstones} as d where d.version >= {int(since)}"
    yield from _copied(connection, query, _decoders(kinds, schema.key))


def fetch_rows(connection: Connection, state: TableState, given: Incoming, keys: Sequence[Wire]) -> pa.Table:
    """The rows of these keys, in one look."""
    statements = Statements(state.target)
    soft = f" and t.{statements.soft} is null" if statements.soft else ""
    values = ", ".join(f"{k} as k{n}" for n, k in enumerate(statements.lone_keys(given)))
    # Keys may come twice, rows must not.
    query = (
        f"{_select(state)} join (select distinct {values} from {given.relation}) as i"
        f" on {statements.match([f'i.k{n}' for n in range(len(statements.keys))])}{soft}"
    )
    with psycopg.RawCursor(connection) as cursor:
        result = cursor.execute(query, list(keys), binary=True).pgresult
    assert result is not None
    decoders = _decoders(state.kinds, state.target.schema.columns)
    cells = [
        Cells.of(pa.array([result.get_value(row, n) for row in range(result.ntuples)], pa.binary()))
        for n in range(len(decoders))
    ]
    return pa.Table.from_batches([_decoded(cells, decoders)])


def _copied(
    connection: Connection, query: str, decoders: Sequence[tuple[Kind | None, Column]]
) -> Iterator[pa.RecordBatch]:
    with connection.cursor() as cursor, cursor.copy(f"copy ({query}) to stdout (format binary)") as copy:
        for rows in _pieces(copy):
            yield _decoded(walk_copy(Joined(rows), len(decoders)), decoders)


def _pieces(messages: Iterable[Any]) -> Iterator[list[bytes]]:
    """The rows of a COPY, some at a time; at least once, so that a reader always learns the columns."""
    rows: list[bytes] = []
    size, pieces, last = 0, 0, b""
    for n, message in enumerate(messages):
        if n:
            rows.append(last)
            size += len(last)
        last = bytes(message)[_HEADER:] if n == 0 else bytes(message)
        if len(rows) >= _ROWS or size >= _BYTES:
            yield rows
            rows, size, pieces = [], 0, pieces + 1
    if rows or not pieces:
        yield rows


def _decoded(cells: Sequence[Cells], decoders: Sequence[tuple[Kind | None, Column]]) -> pa.RecordBatch:
    arrays = [_column(values, kind, column) for values, (kind, column) in zip(cells, decoders, strict=True)]
    return pa.RecordBatch.from_arrays(arrays, names=[column.name for _, column in decoders])


def _column(cells: Cells, kind: Kind | None, column: Column) -> pa.Array:
    """In the type of the contract; as PostgreSQL's text where some value has no exact form in it, like in a batch."""
    if kind is not None:
        return binary_cells(cells, kind.oid, column.type)
    texts = text_cells(cells, "text")
    if column.type in ("texts", "sparse"):
        return pa.array([None if t is None else json.loads(t) for t in texts.to_pylist()], arrow_type(column.type))
    if column.type == "vector":
        return _vectors(texts)
    try:
        return text_cells(cells, column.type)
    except (Malformed, pa.ArrowInvalid):
        return texts


def _vectors(texts: pa.Array) -> pa.Array:
    """Lists of floats, from ``{1,2}`` or ``[1,2]``."""
    pieces = pc.split_pattern(pc.utf8_trim(texts, "{}[]"), ",")
    values = pieces.values.slice(pieces.offset)
    values = pc.if_else(pc.is_in(values, pa.array(["NULL", ""])), pa.scalar(None, pa.string()), values)
    lists = pa.ListArray.from_arrays(pieces.offsets, values.cast(pa.float32()))
    empty = pc.is_in(texts, pa.array(["{}", "[]"]))
    lists = pc.if_else(empty, pa.scalar([], pa.list_(pa.float32())), lists)
    return pc.if_else(texts.is_valid(), lists, pa.scalar(None, pa.list_(pa.float32())))
