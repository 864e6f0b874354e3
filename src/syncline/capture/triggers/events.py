"""Reading ``sync_events``: pages of whole transactions, and the events of one table as a batch.

The server turns the recorded JSON back into values of the table's present types, and a binary COPY brings them, decoded
like those of a load: so both give the same Arrow values for every type. Columns that JSON can't tell exactly are in
``printed``, the row as PostgreSQL prints it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import psycopg
import pyarrow as pa
from psycopg import sql

from syncline.capture.horizon.pages import Page, Span
from syncline.capture.pgoutput import decode_copy
from syncline.capture.schema import table_schema
from syncline.capture.snapshot import unframed
from syncline.capture.source import printed
from syncline.capture.tables import TableInfo
from syncline.change import Batch, Column, TableSchema, make_batch
from syncline.pgvalues.pgtypes import binary_exact

__all__ = ["EventPage", "following", "read_batch", "read_page"]

Connection = psycopg.Connection[Any]
Ints = np.ndarray[Any, np.dtype[np.int64]]


@dataclass(frozen=True, slots=True)
class EventPage(Page):
    """A page that knows of each event which table it is of, and what happened there."""

    relation: list[int]
    operation: list[str]

    def of(self, relation: int) -> list[tuple[int, str]]:
        """Number and operation of the events of one table."""
        found = zip(self.number, self.relation, self.operation, strict=True)
        return [(number, operation) for number, of, operation in found if of == relation]

    def first(self, count: int) -> Self:
        return type(self)(self.txid[:count], self.number[:count], self.relation[:count], self.operation[:count])


# Sizes as they are stored: of compressed rows, the compressed ones.
_PAGE = """
select txid::text::int8, number, relation::int8, operation from (
  select txid, number, relation, operation,
    sum(coalesce(pg_column_size(row_data), 0) + coalesce(pg_column_size(printed), 0) + 64)
      over (order by txid, number rows between unbounded preceding and 1 preceding) as before
  from (
    select * from {} where (txid, number) > (%s::text::xid8, %s) and txid < %s::text::xid8
    order by txid, number limit %s) page
) sized
where coalesce(before, 0) < %s
order by txid, number
"""


def read_page(
    connection: Connection, schema: str, after: tuple[int, int], below: int, rows: int, nbytes: int
) -> EventPage:
    """The events behind ``after`` of transactions before ``below``, as many as both bounds allow, at least one."""
    query = sql.SQL(_PAGE).format(sql.Identifier(schema, "sync_events"))
    found = connection.execute(query, [after[0], after[1], below, rows, nbytes]).fetchall()
    columns: list[list[Any]] = [list(column) for column in zip(*found, strict=True)] or [[], [], [], []]
    return EventPage(*columns)


def following(connection: Connection, schema: str, after: tuple[int, int], below: int) -> int | None:
    """The transaction id of the event that follows ``after``, None if none does below ``below``."""
    query = sql.SQL(
        "select txid::text::int8 from {} where (txid, number) > (%s::text::xid8, %s) and txid < %s::text::xid8"
        " order by txid, number limit 1"
    ).format(sql.Identifier(schema, "sync_events"))
    row = connection.execute(query, [*after, below]).fetchone()
    return int(row[0]) if row is not None else None


# What a COPY brings of each event before the table's own columns.
_SYSTEM = (
    Column("number", "int8", "bigint"),
    Column("op", "int2", "smallint"),
    Column("txid", "int8", "bigint"),
    Column("recorded_at", "int8", "bigint"),
)
_OF_EVENTS = (
    "e.number, case e.operation when 'INSERT' then 1 when 'UPDATE' then 2 else 3 end::int2, e.txid::text::int8,"
    " (extract(epoch from e.recorded_at) * 1000000)::int8"
)

_COPY = """
copy (
  select {columns}
  from {events} e
    left join lateral json_to_record(e.key) as k({key}) on e.operation = 'DELETE'
    cross join lateral (select {row} as r offset 0) x
  where (e.txid, e.number) >= ({first_txid}::text::xid8, {first})
    and (e.txid, e.number) <= ({last_txid}::text::xid8, {last})
    and e.relation = {relation} and e.operation in ('INSERT', 'UPDATE', 'DELETE')
  order by e.number
) to stdout (format binary)
"""


def read_batch(connection: Connection, schema: str, info: TableInfo, span: Span, base: int) -> Batch:
    """The rows and deletions of one table among the events of a span, by number; versions are ``base`` + number.

    Raises:
        psycopg.Error: the table has another shape than ``info`` says, or than the rows had when they were recorded.
    """
    table = table_schema(info)
    columns = [c for s in table.columns if (c := info.column(s.name)) is not None]
    binary = [binary_exact(c.type_oid, c.typmod) for c in columns]
    try:
        raw = _copied(connection, _statement(schema, info, table, binary, span, as_printed=True))
    except (psycopg.ProgrammingError, psycopg.DataError):
        # Printed before a column was added or dropped: JSON finds its columns by name, and the table is read again.
        raw = _copied(connection, _statement(schema, info, table, binary, span, as_printed=False))
    whole = TableSchema(table.namespace, table.name, (*_SYSTEM, *table.columns))
    oids = [(20, -1), (21, -1), (20, -1), (20, -1), *((c.base_type_oid, c.base_typmod) for c in columns)]
    decoded = decode_copy(
        whole, oids, raw, [True] * len(_SYSTEM) + binary, version=0, commit_time=0, first_ordinal=0
    ).data()
    return _batch(table, decoded, base)


def _batch(table: TableSchema, decoded: pa.RecordBatch, base: int) -> Batch:
    number, op, txid, at = (decoded.column(i) for i in range(len(_SYSTEM)))
    numbers: Ints = number.to_numpy()
    return make_batch(
        table,
        [decoded.column(i) for i in range(len(_SYSTEM), decoded.num_columns)],
        op=op.cast(pa.int8()),
        version=pa.array(numbers + base),
        ordinal=number,
        commit_time=at.view(pa.timestamp("us", "UTC")),
        xid=txid,
    )


def _copied(connection: Connection, statement: sql.Composed) -> list[bytes]:
    with connection.transaction(), connection.cursor() as cursor, cursor.copy(statement) as copy:
        return unframed([bytes(row) for row in copy], "sync_events")


def _statement(
    schema: str, info: TableInfo, table: TableSchema, binary: list[bool], span: Span, *, as_printed: bool
) -> sql.Composed:
    name = sql.Identifier(info.namespace, info.name)
    row = sql.SQL("case when e.row_data is not null then json_populate_record(null::{}, e.row_data) end").format(name)
    if as_printed:
        row = sql.SQL("case when e.printed is not null then e.printed::{} else {} end").format(name, row)
    return sql.SQL(_COPY).format(
        columns=sql.SQL(", ").join([sql.SQL(_OF_EVENTS), *_values(table, binary)]),
        events=sql.Identifier(schema, "sync_events"),
        key=sql.SQL(", ").join(
            sql.SQL("{} {}").format(sql.Identifier(c.name), sql.SQL(c.source_type)) for c in table.key
        ),
        row=row,
        first_txid=sql.Literal(span.first[0]),
        first=sql.Literal(span.first[1]),
        last_txid=sql.Literal(span.last[0]),
        last=sql.Literal(span.last[1]),
        relation=sql.Literal(info.oid),
    )


def _values(table: TableSchema, binary: list[bool]) -> list[sql.Composable]:
    values: list[sql.Composable] = []
    for column, exact in zip(table.columns, binary, strict=True):
        value: sql.Composable = sql.SQL("(x.r).{}").format(sql.Identifier(column.name))
        if column.key:
            of_key = sql.Identifier("k", column.name)
            value = sql.SQL("case when e.operation = 'DELETE' then {} else {} end").format(of_key, value)
        values.append(value if exact else printed(value))
    return values
