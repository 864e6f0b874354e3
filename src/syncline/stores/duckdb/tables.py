"""Making tables of the DuckDB file fit their schemas: create, adopt, add, drop and change columns."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import duckdb
import msgspec

from syncline.bookkeeping import bookkept
from syncline.change import Column, TableSchema
from syncline.errors import Misconfigured
from syncline.shape import Rows
from syncline.stores.duckdb.place import clash
from syncline.stores.duckdb.sql import VERSION_COLUMN, Statements, duckdb_type, quote, soft_delete, target_name

__all__ = ["TableState", "fits", "migrate_table", "table_state"]


@dataclass(slots=True)
class TableState:
    """What the guard needs to know of a table. ``highest`` is at least every version the table ever held."""

    fingerprint: str
    truncated: int
    horizon: int
    highest: int


_MARK_TYPE = "TIMESTAMP WITH TIME ZONE"

# Types of an existing column that hold every value of a logical type exactly.
_WIDER = {
    "int2": ("SMALLINT", "INTEGER", "BIGINT", "HUGEINT"),
    "int4": ("INTEGER", "BIGINT", "HUGEINT"),
    "int8": ("BIGINT", "HUGEINT"),
    "float4": ("FLOAT", "DOUBLE"),
    "json": ("VARCHAR",),
    "text": ("VARCHAR",),
}


def fits(actual: str, logical: str) -> bool:
    """Whether an existing column of type ``actual`` holds every value of ``logical`` exactly."""
    if logical.startswith("numeric("):
        precision, scale = (int(x) for x in logical[8:-1].split(","))
        found = re.fullmatch(r"DECIMAL\((\d+),(\d+)\)", actual)
        return bool(found) and int(found[2]) >= scale and int(found[1]) - int(found[2]) >= precision - scale  # type: ignore[index]
    return actual in _WIDER.get(logical, (duckdb_type(logical),))


def migrate_table(
    cursor: duckdb.DuckDBPyConnection, source: str, schema: TableSchema
) -> tuple[TableState, TableSchema | None]:
    """Make the table fit, inside the caller's transaction, and record the schema; its state, and its former schema.

    Raises:
        Misconfigured: names collide in DuckDB, another source owns the table, or it can't be adopted.
    """
    _check_names(cursor, source, schema)
    recorded = cursor.execute("select body from syncline.tables where name = $1", [schema.qualified]).fetchall()
    former = bookkept(recorded[0][0], TableSchema) if recorded else None
    moved = former is not None and target_name(former) != target_name(schema)
    if former is not None and moved:
        # What another mapping wrote (correctness rule 21).
        cursor.execute(f"drop table if exists {Statements(former).target}")
    actual = _actual_columns(cursor, schema)
    if actual is None:
        _create(cursor, schema)
    elif former is None or moved:
        _adopt(cursor, schema, actual)
    elif former != schema:
        _alter(cursor, schema, former, actual)
    if actual is not None:
        _mark_deleted(cursor, schema, former, actual)
    _create_tombstones(cursor, schema, anew=former is None or former.key != schema.key)
    body = msgspec.json.encode(schema).decode()
    if former is None:
        cursor.execute(
            "insert into syncline.tables values ($1, $2, $3, $4, 0, 0)",
            [schema.qualified, source, schema.fingerprint, body],
        )
    elif former != schema:
        cursor.execute(
            "update syncline.tables set fingerprint = $1, body = $2 where name = $3",
            [schema.fingerprint, body, schema.qualified],
        )
    # A table that somebody dropped here was not ours any more: what it held has to be read again.
    return table_state(cursor, schema), former if moved or actual is not None else None


def table_state(cursor: duckdb.DuckDBPyConnection, schema: TableSchema) -> TableState:
    """The table's state as recorded.

    Raises:
        Misconfigured: the table was not migrated to this schema.
    """
    found = cursor.execute(
        "select fingerprint, coalesce(truncated, 0), coalesce(horizon, 0) from syncline.tables where name = $1",
        [schema.qualified],
    ).fetchall()
    if not found or found[0][0] != schema.fingerprint:
        raise Misconfigured(f"Table {schema.qualified} is not prepared for this schema.", remedy="Migrate it first.")
    fingerprint, truncated, horizon = found[0]
    ((highest,),) = cursor.execute(Statements(schema).highest()).fetchall()
    return TableState(fingerprint, truncated, horizon, max(highest, truncated, horizon))


def _check_names(cursor: duckdb.DuckDBPyConnection, source: str, schema: TableSchema) -> None:
    """DuckDB compares names without case, and the version column's name is ours."""
    ((file,),) = cursor.execute(
        "select path from duckdb_databases() where database_name = current_database()"
    ).fetchall()
    named = clash(Path(file), [target_name(schema)[0]]) if file else None
    if named is not None:
        raise named
    seen: dict[str, str] = {VERSION_COLUMN: VERSION_COLUMN}
    for column in schema.columns:
        other = seen.setdefault(column.name.lower(), column.name)
        if other != column.name or column.name.lower() == VERSION_COLUMN:
            raise Misconfigured(
                f"Columns {other} and {column.name} of table {schema.qualified} have one name in DuckDB.",
                remedy="Rename one at the source, or exclude the table.",
            )
    mark = soft_delete(schema)
    if mark and mark.lower() in seen:
        raise Misconfigured(
            f"Column {mark} of table {schema.qualified} can't mark deleted rows: the source has it.",
            remedy="Name another column in soft_delete.",
        )
    namespace = schema.shape.namespace if isinstance(schema.shape, Rows) else schema.namespace
    if namespace.lower() in ("syncline", "information_schema", "pg_catalog", "temp", "main"):
        raise Misconfigured(
            f"Namespace {namespace} of table {schema.qualified} is taken in DuckDB.",
            remedy="Rename the schema at the source, or exclude the table.",
        )
    place = ".".join(target_name(schema)).lower()
    for name, owner, body in cursor.execute("select name, source, body from syncline.tables").fetchall():
        other = ".".join(target_name(bookkept(body, TableSchema))).lower()
        if name != schema.qualified:
            if other == place or name.lower() == schema.qualified.lower():
                raise Misconfigured(
                    f"Tables {name} and {schema.qualified} have one name in DuckDB.",
                    remedy="Rename one at the source or in its mapping, or exclude it.",
                )
            continue
        if owner != source:
            raise Misconfigured(
                f"Table {name} of source {source} is already filled by source {owner} in this DuckDB file.",
                remedy="Give the sources different paths.",
            )


def _actual_columns(cursor: duckdb.DuckDBPyConnection, schema: TableSchema) -> dict[str, tuple[str, bool]] | None:
    """Lower-case name -> (type, must be given a value) of the existing table, None if there is none."""
    place = [*target_name(schema)]
    kind = cursor.execute(
        "select table_type from information_schema.tables where lower(table_schema) = lower($1)"
        " and lower(table_name) = lower($2) and table_catalog = current_database()",
        place,
    ).fetchall()
    if not kind:
        return None
    if kind[0][0] != "BASE TABLE":
        raise Misconfigured(f"{'.'.join(place)} in DuckDB is a view, not a table.", remedy="Drop it or rename it.")
    rows = cursor.execute(
        "select lower(column_name), data_type, not is_nullable and column_default is null from duckdb_columns()"
        " where lower(schema_name) = lower($1) and lower(table_name) = lower($2)"
        " and database_name = current_database()",
        place,
    ).fetchall()
    return {name: (kind, required) for name, kind, required in rows}


def _create(cursor: duckdb.DuckDBPyConnection, schema: TableSchema) -> None:
    statements = Statements(schema)
    columns = [f"{quote(c.name)} {duckdb_type(c.type)}" for c in schema.columns]
    cursor.execute(f"create schema if not exists {quote(target_name(schema)[0])}")
    if statements.mark:
        columns.append(f"{statements.mark} {_MARK_TYPE}")
    cursor.execute(f"create table {statements.target} ({', '.join(columns)}, {quote(VERSION_COLUMN)} BIGINT)")


def _mark_deleted(
    cursor: duckdb.DuckDBPyConnection,
    schema: TableSchema,
    former: TableSchema | None,
    actual: dict[str, tuple[str, bool]],
) -> None:
    """Make sure of the column that marks deleted rows. Where rows are removed again, the marked ones go with it."""
    statements, before = Statements(schema), soft_delete(former) if former else ""
    moved = former is None or target_name(former) != target_name(schema)
    if before and not moved and before != soft_delete(schema):
        cursor.execute(f"delete from {statements.target} where {quote(before)} is not null")
        cursor.execute(f"alter table {statements.target} drop column {quote(before)}")
    if not statements.mark:
        return
    found = actual.get(soft_delete(schema).lower(), (_MARK_TYPE,))[0]
    if found != _MARK_TYPE:
        raise Misconfigured(
            f"Column {soft_delete(schema)} of table {schema.qualified} exists in DuckDB as {found}, not {_MARK_TYPE}.",
            remedy="Name another column in soft_delete, or change its type.",
        )
    cursor.execute(f"alter table {statements.target} add column if not exists {statements.mark} {_MARK_TYPE}")


def _create_tombstones(cursor: duckdb.DuckDBPyConnection, schema: TableSchema, *, anew: bool) -> None:
    """A new key has no use for tombstones of the old one: the reload that follows a key change sweeps. Else they stay,
    and where somebody dropped their table there is one again."""
    keys = ", ".join(f"{quote(c.name)} {duckdb_type(c.type)}" for c in schema.key)
    create, place = "create or replace table" if anew else "create table if not exists", Statements(schema).tombstones
    cursor.execute(f"{create} {place} ({keys}, {quote(VERSION_COLUMN)} BIGINT)")


def _adopt(cursor: duckdb.DuckDBPyConnection, schema: TableSchema, actual: dict[str, tuple[str, bool]]) -> None:
    """Take over a table that was there before: its rows have no version, so they are older than everything."""
    for column in schema.columns:
        found = actual.get(column.name.lower())
        if found is None and column.key:
            raise Misconfigured(
                f"Table {schema.qualified} exists in DuckDB without the key column {column.name}.",
                remedy="Add the column and fill it, or rename or drop the table in DuckDB.",
            )
        if found is not None and not fits(found[0], column.type):
            wanted = duckdb_type(column.type)
            raise Misconfigured(
                f"Column {column.name} of table {schema.qualified} exists in DuckDB as {found[0]},"
                f" which does not hold every {column.source_type}.",
                remedy=f"Change it (alter table ... alter {column.name} type {wanted}), or rename or drop the table.",
            )
    for name, (_, required) in actual.items():
        if required and name not in {c.name.lower() for c in schema.columns}:
            raise Misconfigured(
                f"Column {name} of table {schema.qualified} in DuckDB is NOT NULL and unknown at the source.",
                remedy="Drop the constraint or the column.",
            )
    _add_columns(cursor, schema, [c for c in schema.columns if c.name.lower() not in actual])
    if actual.get(VERSION_COLUMN, ("BIGINT",))[0] != "BIGINT":
        raise Misconfigured(f"Column {VERSION_COLUMN} of table {schema.qualified} is not BIGINT.", remedy="Drop it.")
    cursor.execute(f"alter table {Statements(schema).target} add column if not exists {quote(VERSION_COLUMN)} BIGINT")


def _alter(
    cursor: duckdb.DuckDBPyConnection,
    schema: TableSchema,
    former: TableSchema,
    actual: dict[str, tuple[str, bool]],
) -> None:
    """Drop what is gone or has another type, then add what is new. Columns that were never ours stay."""
    target = Statements(schema).target
    wanted = {c.name.lower(): c.type for c in schema.columns}
    gone = [c for c in former.columns if wanted.get(c.name.lower()) != c.type and c.name.lower() in actual]
    added = [
        c for c in schema.columns if c.name.lower() not in actual or c.name.lower() in {g.name.lower() for g in gone}
    ]
    # DuckDB refuses to drop a table's last column, so the new ones come first where the names allow it.
    fresh = [c for c in added if c.name.lower() not in actual]
    _add_columns(cursor, schema, fresh)
    for column in gone:
        cursor.execute(f"alter table {target} drop column {quote(column.name)}")
    _add_columns(cursor, schema, [c for c in added if c not in fresh])


def _add_columns(cursor: duckdb.DuckDBPyConnection, schema: TableSchema, columns: list[Column]) -> None:
    for column in columns:
        cursor.execute(
            f"alter table {Statements(schema).target} add column {quote(column.name)} {duckdb_type(column.type)}"
        )
