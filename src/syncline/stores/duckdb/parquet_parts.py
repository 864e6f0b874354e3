"""Cutting a table of a DuckDB copy into parts by ranges of its first key column, and telling which of them changed.

One look at all columns tells for all parts at once. Versions alone would not do: a transaction that was applied in
parts writes rows twice at one version, and columns that the source does not have change without one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import duckdb
import msgspec

from syncline.change import TableSchema
from syncline.stores.duckdb.sql import VERSION_COLUMN, duckdb_type, literal, quote, target_name

__all__ = ["Part", "Table", "plan_parts", "range_of"]

# A cut is where this many sampled keys for each part say: pieces come out within a third of their size.
_SAMPLED_KEYS = 100


class Part(msgspec.Struct, frozen=True):
    """Rows whose first key column is at or above ``start`` and below the next part's (None: from the least on).

    ``file`` is below the export's folder, '' while none is written. ``digest`` is of all rows, the columns, and how the
    file is written.
    """

    start: str | None
    rows: int
    digest: str
    file: str = ""


@dataclass(frozen=True, slots=True)
class Table:
    """A table as the transaction of this connection sees it: the names and types of ``columns``, without the version.
    ``settings`` say how its files are written, as far as they are other files for it."""

    connection: duckdb.DuckDBPyConnection
    schema: TableSchema
    columns: tuple[tuple[str, str], ...]
    settings: str

    @classmethod
    def seen(cls, connection: duckdb.DuckDBPyConnection, schema: TableSchema, settings: str) -> Table:
        """Look its columns up."""
        found = connection.execute(
            "select column_name, data_type from duckdb_columns() where schema_name = $1 and table_name = $2"
            " order by column_index",
            list(target_name(schema)),
        ).fetchall()
        columns = tuple((name, kind) for name, kind in found if name != VERSION_COLUMN)
        return cls(connection, schema, columns, settings)

    @property
    def name(self) -> str:
        """The table in DuckDB, as SQL."""
        return ".".join(quote(name) for name in target_name(self.schema))

    @property
    def key(self) -> str:
        """The first key column, as SQL."""
        return quote(self.schema.key[0].name)

    def value(self, text: str) -> str:
        """A value of the first key column, as SQL."""
        return f"cast({literal(text)} as {duckdb_type(self.schema.key[0].type)})"

    @property
    def shape(self) -> str:
        """Columns and settings in short."""
        return hashlib.sha256(repr((self.columns, self.settings)).encode()).hexdigest()[:12]


def plan_parts(table: Table, known: Sequence[Part], part_rows: int) -> list[Part]:
    """The parts that the table has now; those that ``known`` has too come with their files.

    A part of more than twice ``part_rows`` rows is cut; neighbours of less than half of it together are joined.
    """
    starts = [part.start for part in known] or [None]
    found = _look(table, starts)
    cuts = {part.start: _cuts(table, part, found, part_rows) for part in found}
    wanted = [start for part in _joined(found, part_rows) for start in (part, *cuts[part])]
    if wanted != starts:
        found = _look(table, wanted)
    files = {(part.start, part.digest): part.file for part in known}
    return [msgspec.structs.replace(part, file=files.get((part.start, part.digest), "")) for part in found]


def _look(table: Table, starts: Sequence[str | None]) -> list[Part]:
    columns = ", ".join(quote(name) for name, _ in table.columns)
    rows = table.connection.execute(
        f"select {_which(table, starts, 0, len(starts))} as part, count(*),"
        f" sum(hash({columns}, coalesce({quote(VERSION_COLUMN)}, 0))::hugeint)::varchar from {table.name} group by 1"
    ).fetchall()
    found = {part: (count, digest) for part, count, digest in rows}
    parts = [(start, *found.get(i, (0, "0"))) for i, start in enumerate(starts)]
    return [Part(start, count, f"{table.shape}/{count}/{digest}") for start, count, digest in parts]


def _which(table: Table, starts: Sequence[str | None], first: int, end: int) -> str:
    """The number of a row's part, among ``first`` to ``end``, by halves: a row is compared with few of many starts."""
    if end - first == 1:
        return str(first)
    middle = (first + end) // 2
    start = starts[middle]
    assert start is not None  # only the first part begins at the least key
    below, above = _which(table, starts, first, middle), _which(table, starts, middle, end)
    return f"case when {table.key} < {table.value(start)} then {below} else {above} end"


def _joined(found: Sequence[Part], part_rows: int) -> list[str | None]:
    """The starts that are left when small parts, and empty ones, join the one before them."""
    starts: list[str | None] = []
    rows = 0
    for part in found:
        if starts and (not part.rows or rows + part.rows < part_rows / 2):
            rows += part.rows
        else:
            starts.append(part.start)
            rows = part.rows
    return starts


def _cuts(table: Table, part: Part, parts: Sequence[Part], part_rows: int) -> list[str]:
    """Where a part that grew too large is cut: at keys that leave about even pieces, by a sample of bounded size. A key
    that fills pieces alone, as the first of several columns may, is not cut."""
    if part.rows <= 2 * part_rows:
        return []
    pieces = part.rows // part_rows
    fractions = ", ".join(str(i / pieces) for i in range(1, pieces))
    where = range_of(table, part, parts)
    ((least,),) = table.connection.execute(
        f"select min({table.key})::varchar from {table.name} where {where}"
    ).fetchall()
    ((cuts,),) = table.connection.execute(
        f"select quantile_disc(key, [{fractions}])::varchar[] from (select {table.key} as key from {table.name}"
        f" where {where}) using sample reservoir({pieces * _SAMPLED_KEYS} rows)"
    ).fetchall()
    return [cut for cut in dict.fromkeys(cuts) if cut not in (least, part.start)]


def range_of(table: Table, part: Part, parts: Sequence[Part]) -> str:
    """The condition that the rows of one of these parts meet."""
    following = [other.start for other in parts[parts.index(part) + 1 :]][:1]
    bounds = [f"{table.key} >= {table.value(part.start)}"] if part.start is not None else []
    bounds += [f"{table.key} < {table.value(start)}" for start in following if start is not None]
    return " and ".join(bounds) or "true"
