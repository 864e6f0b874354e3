"""Reading single rows at the source, in a snapshot that is known to see given transactions (correctness rule 6)."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from typing import Any

import psycopg
import pyarrow as pa
from psycopg import sql

from syncline.capture.settings import PostgresSettings
from syncline.capture.source import connect, printed, translated
from syncline.change import TableSchema, arrow_type, without_negative_zeros
from syncline.errors import SCHEMA_DRIFT, Gap, Unavailable
from syncline.pgvalues.pgtypes import cast_text

__all__ = ["key_lists", "read_rows"]

_VISIBLE_WITHIN_S = 30.0


def read_rows(
    config: PostgresSettings, schema: TableSchema, keys: pa.RecordBatch, xids: Sequence[int], stop: threading.Event
) -> pa.RecordBatch:
    """The rows of ``schema`` with these keys, seen after all transactions ``xids`` (64-bit ids, all committed).

    Keys that are gone are missing from the result. A committed transaction may be in the WAL and still invisible (it
    waits for a synchronous standby), so visibility is waited for, for a bounded time. A slot's exported snapshot is no
    way around: making a slot waits for such transactions too.

    Raises:
        Unavailable: the source can't be reached, ``stop`` was set, or the transactions did not become visible in time.
        Gap: the table has another shape by now (:data:`~syncline.errors.SCHEMA_DRIFT`).
    """
    dsn = config.plain
    with translated(dsn), connect(dsn, timeout_s=config.connect_timeout_s, application="syncline-heal") as connection:
        deadline = time.monotonic() + _VISIBLE_WITHIN_S
        while True:
            with connection.transaction():
                connection.execute("set transaction isolation level repeatable read, read only")
                connection.execute("set local row_security = off")
                if _visible(connection, xids):
                    return _batch(schema, _found(connection, schema, keys))
            if time.monotonic() > deadline:
                raise Unavailable(
                    f"Rows of table {schema.qualified} can't be healed yet: their transaction is not visible.",
                    remedy="Look for a synchronous standby that does not answer.",
                )
            if stop.wait(0.05):
                raise Unavailable("Healing was asked to stop.")


def _found(
    connection: psycopg.Connection[Any], schema: TableSchema, keys: pa.RecordBatch
) -> list[tuple[str | None, ...]]:
    try:
        return connection.execute(_statement(schema), key_lists(schema, keys)).fetchall()
    except (psycopg.ProgrammingError, psycopg.DataError) as error:
        if isinstance(error, psycopg.errors.InsufficientPrivilege):
            raise
        raise Gap(
            f"Table {schema.qualified} has another shape by now, so its rows can't be healed.",
            remedy="The table is read again by itself.",
            code=SCHEMA_DRIFT,
        ) from error


def _visible(connection: psycopg.Connection[Any], xids: Sequence[int]) -> bool:
    row = connection.execute(
        "select coalesce(bool_and(pg_visible_in_snapshot(x::text::xid8, pg_current_snapshot())), true)"
        " from unnest(%s::int8[]) as x",
        [list(xids)],
    ).fetchone()
    return row is not None and bool(row[0])


def _statement(schema: TableSchema) -> sql.Composed:
    """Every column as its type prints it, joined to the wanted keys as text of the key's own type."""
    names = [sql.Identifier(f"k{i}") for i in range(len(schema.key))]
    matches = [
        sql.SQL("t.{} = wanted.{}::{}").format(sql.Identifier(c.name), name, sql.SQL(c.source_type))
        for c, name in zip(schema.key, names, strict=True)
    ]
    return sql.SQL("select {columns} from unnest({lists}) as wanted({names}) join {table} as t on {match}").format(
        columns=sql.SQL(", ").join([printed(sql.Identifier("t", c.name)) for c in schema.columns]),
        lists=sql.SQL(", ").join([sql.SQL("%s::text[]")] * len(names)),
        names=sql.SQL(", ").join(names),
        table=sql.Identifier(schema.namespace, schema.name),
        match=sql.SQL(" and ").join(matches),
    )


def key_lists(schema: TableSchema, keys: pa.RecordBatch) -> list[list[str]]:
    """The values of each key column as PostgreSQL reads them.

    Raises:
        Gap: Python has no value for one (:data:`~syncline.errors.SCHEMA_DRIFT`).
    """
    try:
        return [[_text(v, c.type) for v in keys.column(c.name).to_pylist()] for c in schema.key]
    except (ValueError, OverflowError) as error:
        raise Gap(
            f"A row of table {schema.qualified} can't be healed: Python has no value for its key.",
            remedy="The table is read again by itself.",
            code=SCHEMA_DRIFT,
        ) from error


def _text(value: object, logical: str) -> str:
    if isinstance(value, bytes):
        return value.hex() if logical == "uuid" else "\\x" + value.hex()
    return str(value)


def _batch(schema: TableSchema, rows: list[tuple[str | None, ...]]) -> pa.RecordBatch:
    columns = []
    for position, column in enumerate(schema.columns):
        values = pa.array([r[position] for r in rows], pa.string())
        columns.append(cast_text(values, column.type) if len(values) else pa.array([], arrow_type(column.type)))
    return pa.RecordBatch.from_arrays(without_negative_zeros(schema, columns), names=[c.name for c in schema.columns])
