"""Cutting a table of a DuckDB copy into parts by ranges of its first key column, and telling which of them changed.

Nothing changes a row but with its version, so a part is what it was when its keys and versions are: one look at those
columns tells for all parts at once.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import duckdb
import msgspec

from syncline.change import TableSchema
from syncline.stores.duckdb.sql import VERSION_COLUMN, duckdb_type, literal, quote, target_name

__all__ = ["Part", "columns_of", "plan_parts", "range_of", "table_name"]


class Part(msgspec.Struct, frozen=True):
    """Rows whose first key column is at or above ``start`` and below the next part's (None: from the least on).

    ``file`` is below the export's folder, '' while none is written. ``digest`` is of keys, versions and columns.
    """

    start: str | None
    rows: int
    digest: str
    file: str = ""


def plan_parts(
    connection: duckdb.DuckDBPyConnection, schema: TableSchema, known: Sequence[Part], part_rows: int
) -> list[Part]:
    """The parts that the table has now; those that ``known`` has too come with their files.

    A part of more than twice ``part_rows`` rows is cut, an empty one joins the one before it.
    """
    starts = [part.start for part in known] or [None]
    found = _look(connection, schema, starts)
    cuts = {part.start: _cuts(connection, schema, part, found, part_rows) for part in found}
    kept = [part.start for part in found[:1]] + [part.start for part in found[1:] if part.rows]
    wanted = [start for part in kept for start in (part, *cuts[part])]
    if wanted != starts:
        found = _look(connection, schema, wanted)
    files = {(part.start, part.digest): part.file for part in known}
    return [msgspec.structs.replace(part, file=files.get((part.start, part.digest), "")) for part in found]


def _look(connection: duckdb.DuckDBPyConnection, schema: TableSchema, starts: Sequence[str | None]) -> list[Part]:
    key, kind = _first_key(schema)
    below = " ".join(
        f"when {key} < cast({literal(start)} as {kind}) then {i}" for i, start in enumerate(starts[1:]) if start
    )
    which = f"case {below} else {len(starts) - 1} end" if below else "0"
    keys = ", ".join(quote(column.name) for column in schema.key)
    rows = connection.execute(
        f"select {which} as part, count(*), sum(hash({keys}, coalesce({quote(VERSION_COLUMN)}, 0))::hugeint)::varchar"
        f" from {table_name(schema)} group by 1"
    ).fetchall()
    found = {part: (count, digest) for part, count, digest in rows}
    shape = hashlib.sha256(repr(columns_of(connection, schema)).encode()).hexdigest()[:12]
    parts = [(start, *found.get(i, (0, "0"))) for i, start in enumerate(starts)]
    return [Part(start, count, f"{shape}/{count}/{digest}") for start, count, digest in parts]


def _cuts(
    connection: duckdb.DuckDBPyConnection, schema: TableSchema, part: Part, parts: Sequence[Part], part_rows: int
) -> list[str]:
    """Where a part that grew too large is cut: at keys that leave even pieces. A key that fills pieces alone, as the
    first of several columns may, is not cut."""
    if part.rows <= 2 * part_rows:
        return []
    pieces = part.rows // part_rows
    fractions = ", ".join(str(i / pieces) for i in range(1, pieces))
    key, _ = _first_key(schema)
    ((least, cuts),) = connection.execute(
        f"select min({key})::varchar, quantile_disc({key}, [{fractions}])::varchar[] from {table_name(schema)}"
        f" where {range_of(schema, part, parts)}"
    ).fetchall()
    return [cut for cut in dict.fromkeys(cuts) if cut not in (least, part.start)]


def range_of(schema: TableSchema, part: Part, parts: Sequence[Part]) -> str:
    """The condition that the rows of one of these parts meet."""
    key, kind = _first_key(schema)
    following = [other.start for other in parts[parts.index(part) + 1 :]][:1]
    bounds = [f"{key} >= cast({literal(part.start)} as {kind})"] if part.start is not None else []
    bounds += [f"{key} < cast({literal(start)} as {kind})" for start in following if start is not None]
    return " and ".join(bounds) or "true"


def columns_of(connection: duckdb.DuckDBPyConnection, schema: TableSchema) -> list[tuple[str, str]]:
    """Names and types of the table's columns, without the version."""
    found = connection.execute(
        "select column_name, data_type from duckdb_columns() where schema_name = $1 and table_name = $2"
        " order by column_index",
        list(target_name(schema)),
    ).fetchall()
    return [(name, kind) for name, kind in found if name != VERSION_COLUMN]


def table_name(schema: TableSchema) -> str:
    """The table in DuckDB, as SQL."""
    return ".".join(quote(name) for name in target_name(schema))


def _first_key(schema: TableSchema) -> tuple[str, str]:
    return quote(schema.key[0].name), duckdb_type(schema.key[0].type)
