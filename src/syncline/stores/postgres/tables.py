"""Making tables of a PostgreSQL target fit their schemas: create, adopt, add, drop and change columns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec
import psycopg

from syncline.bookkeeping import bookkept
from syncline.change import Column, TableSchema
from syncline.errors import Misconfigured
from syncline.stores.postgres.columns import Kind, fits, kind_of
from syncline.stores.postgres.server import Connection
from syncline.stores.postgres.sql import VERSION_COLUMN, Target, place_of, quote, soft_delete_of

__all__ = ["Setting", "TableState", "migrate_table", "refuse_itself", "table_state"]


@dataclass(frozen=True, slots=True)
class Setting:
    """Where tables are migrated: our own schema (quoted), the source that they come from, whether triggers and foreign
    keys act in our session although they should not, and whether the source is this very database."""

    own: str
    source: str
    unwanted: bool
    at_home: bool


@dataclass(frozen=True, slots=True)
class TableState:
    """What the writing of a table needs to know. ``buried`` is at least every version of a tombstone; ``parents`` are
    the tables that it refers to; ``deferrable``: some constraint waits for the commit if asked to."""

    target: Target
    oid: int
    kinds: tuple[Kind, ...]
    parents: frozenset[int]
    deferrable: bool
    partitioned: bool
    truncated: int
    horizon: int
    buried: int

    @property
    def fingerprint(self) -> str:
        return self.target.schema.fingerprint


@dataclass(frozen=True, slots=True)
class _Actual:
    """A column that is there. ``required``: a row can't be inserted without it."""

    kind: Kind
    base: str
    required: bool
    generated: bool
    pinned: bool  # GENERATED ALWAYS AS IDENTITY


_COLUMNS = """
with recursive deep as (
  select a.attnum, a.atttypid as oid, a.atttypmod as typmod from pg_attribute a
  where a.attrelid = $1 and a.attnum > 0 and not a.attisdropped
  union all
  select deep.attnum, t.typbasetype, t.typtypmod from deep join pg_type t on t.oid = deep.oid where t.typtype = 'd'
)
select a.attname, format_type(a.atttypid, a.atttypmod), deep.oid::int8, deep.typmod, format_type(deep.oid, -1),
  a.attnotnull and not a.atthasdef and a.attidentity = '', a.attgenerated <> '', a.attidentity = 'a'
from deep join pg_type t on t.oid = deep.oid and t.typtype <> 'd'
  join pg_attribute a on a.attrelid = $1 and a.attnum = deep.attnum
order by a.attnum
"""
_RELATION = """
select c.oid::int8, c.relkind::text from pg_class c join pg_namespace n on n.oid = c.relnamespace
where n.nspname = $1 and c.relname = $2
"""
# Unique and exclusion indexes that are checked row by row, with the columns that they rest on, also by expressions.
_UNIQUE = """
select x.indexprs is null and x.indpred is null and x.indisunique,
  array(select distinct a.attname::text from pg_attribute a where a.attrelid = x.indrelid and (
          a.attnum = any(x.indkey[0:x.indnkeyatts - 1]) or exists (
            select 1 from pg_depend d where d.classid = 'pg_class'::regclass and d.objid = x.indexrelid
              and d.refclassid = 'pg_class'::regclass and d.refobjid = x.indrelid and d.refobjsubid = a.attnum
              and (x.indexprs is not null or x.indpred is not null))))
from pg_index x where x.indrelid = $1 and (x.indisunique or x.indisexclusion) and x.indimmediate and x.indisvalid
"""
_REFERENCES = """
select c.conrelid::regclass::text,
  array(select quote_ident(a.attname) from unnest(c.conkey) with ordinality k(n, o)
        join pg_attribute a on a.attrelid = c.conrelid and a.attnum = k.n order by k.o),
  array(select quote_ident(a.attname) from unnest(c.confkey) with ordinality k(n, o)
        join pg_attribute a on a.attrelid = c.confrelid and a.attnum = k.n order by k.o)
from pg_constraint c where c.contype = 'f' and c.confrelid = $1 and c.conparentid = 0
"""
_PARENTS = """
select coalesce(array_agg(c.confrelid::int8) filter (where c.contype = 'f'), '{}'),
  coalesce(bool_or(c.condeferrable), false)
from pg_constraint c where c.conrelid = $1
"""
# Triggers that people made, and those of foreign keys, as far as they act in an ordinary session.
_TRIGGERS = """
select t.tgname::text, t.tgconstraint <> 0 from pg_trigger t
where t.tgrelid = $1 and t.tgenabled in ('O', 'A') and (not t.tgisinternal or exists (
  select 1 from pg_constraint c where c.oid = t.tgconstraint and c.contype = 'f'))
order by 2, 1 limit 1
"""


def migrate_table(
    connection: Connection, setting: Setting, schema: TableSchema
) -> tuple[TableState, TableSchema | None]:
    """Make the table fit, inside the caller's transaction, and record the schema; its state, and its former schema.

    Raises:
        Misconfigured: the table can't be had or adopted here; the message says why and what to do.
    """
    _check_names(setting, schema)
    former, created = _recorded(connection, setting, schema)
    stays = former is not None and place_of(former) == place_of(schema)
    if former is not None and not stays:
        _retire(connection, setting, former, created=created)
    oid = _relation(connection, schema)
    if oid is None:
        _create(connection, schema)
        created = True
    elif former is None or not stays:
        _adopt(connection, schema, oid)
        created = False
    elif former != schema:
        _alter(connection, schema, former, oid, created=created)
    # A table that somebody dropped here was not ours any more: what it held has to be read again.
    lost = stays and oid is None
    _check_triggers(connection, setting, schema)
    number = _record(connection, setting, schema, created=created)
    if former is None or not stays or _key_of(former) != _key_of(schema):
        _create_tombstones(connection, setting.own, number, schema)
    return table_state(connection, setting.own, schema), None if lost else former


def _key_of(schema: TableSchema) -> list[tuple[str, str]]:
    return [(c.name, c.type) for c in schema.key]


def table_state(connection: Connection, own: str, schema: TableSchema) -> TableState:
    """The table's state, as recorded and as the catalogue has it.

    Raises:
        Misconfigured: the table was not migrated to this schema, or somebody changed it since.
    """
    row = connection.execute(
        f"select number, fingerprint, truncated, horizon, buried from {own}.tables where name = $1", [schema.qualified]
    ).fetchone()
    found = connection.execute(_RELATION, list(place_of(schema))).fetchone()
    if row is None or row[1] != schema.fingerprint or found is None:
        raise Misconfigured(f"Table {schema.qualified} is not prepared for this schema.", remedy="Migrate it first.")
    oid, relkind = found
    actual = _actual(connection, oid)
    missing = [c.name for c in schema.columns if c.name not in actual] + [VERSION_COLUMN] * (
        VERSION_COLUMN not in actual
    )
    if missing:
        raise Misconfigured(
            f"Column {missing[0]} of table {'.'.join(place_of(schema))} at the target is gone.",
            remedy="Add it again, or drop the table and restart; then its rows are read again.",
        )
    parents, deferrable = connection.execute(_PARENTS, [oid]).fetchone() or ((), False)
    ours = {c.name for c in schema.columns} | {VERSION_COLUMN, soft_delete_of(schema)}
    target = Target(
        own,
        row[0],
        schema,
        tuple(actual[c.name].base for c in schema.columns),
        _unique(connection, oid, schema),
        tuple(quote(n) for n, a in actual.items() if n not in ours and not a.generated),
        _references(connection, oid),
    )
    kinds = tuple(actual[c.name].kind for c in schema.columns)
    return TableState(
        target, oid, kinds, frozenset(parents) - {oid}, deferrable, relkind == "p", row[2], row[3], row[4]
    )


# --------------------------------------------------------------------------------------------------- what is there


def _relation(connection: Connection, schema: TableSchema) -> int | None:
    """The oid of the table at the target, None if there is none.

    Raises:
        Misconfigured: something else has the name.
    """
    place = place_of(schema)
    found = connection.execute(_RELATION, list(place)).fetchone()
    if found is not None and found[1] not in ("r", "p"):
        kind = {"v": "a view", "m": "a materialized view", "f": "a foreign table"}.get(found[1], "no table")
        raise Misconfigured(
            f"{'.'.join(place)} at the target is {kind}.", remedy="Drop it, rename it, or map elsewhere."
        )
    return None if found is None else int(found[0])


def _actual(connection: Connection, oid: int) -> dict[str, _Actual]:
    return {
        name: _Actual(Kind(sql, int(base_oid), typmod), base, required, generated, pinned)
        for name, sql, base_oid, typmod, base, required, generated, pinned in connection.execute(_COLUMNS, [oid])
    }


def _unique(connection: Connection, oid: int, schema: TableSchema) -> tuple[str, ...]:
    """Columns of ours in unique indexes besides the one of the key."""
    ours, key = {c.name for c in schema.columns}, {c.name for c in schema.key}
    found: set[str] = set()
    for plain, columns in connection.execute(_UNIQUE, [oid]):
        if not (plain and set(columns) == key):
            found |= set(columns) & ours - key
    return tuple(quote(c.name) for c in schema.columns if c.name in found)


def _references(connection: Connection, oid: int) -> tuple[str, ...]:
    return tuple(
        f"exists (select 1 from {child} as r where "
        + " and ".join(f"r.{a} = t.{b}" for a, b in zip(columns, keys, strict=True))
        + ")"
        for child, columns, keys in connection.execute(_REFERENCES, [oid])
    )


# ------------------------------------------------------------------------------------------------ what is allowed


def _check_names(setting: Setting, schema: TableSchema) -> None:
    place, soft = place_of(schema), soft_delete_of(schema)
    names = [c.name for c in schema.columns]
    for name in (*place, *names, *([soft] if soft else [])):
        quote(name)
    if VERSION_COLUMN in names:
        raise Misconfigured(
            f"Table {schema.qualified} has a column {VERSION_COLUMN}: it is itself a copy that Syncline writes.",
            remedy="Leave the column out with a mapping, or exclude the table from monitored_tables.",
            code="SL-POSTGRES-COPY",
        )
    if soft in names or soft == VERSION_COLUMN:
        raise Misconfigured(
            f"soft_delete of table {schema.qualified} names {soft}, which is filled otherwise.",
            remedy="Give it a column of its own.",
        )
    if quote(place[0]) == setting.own or place[0].startswith("pg_") or place[0] == "information_schema":
        raise Misconfigured(f"Schema {place[0]} is no place for table {schema.qualified}.", remedy="Map it elsewhere.")
    if setting.at_home:
        refuse_itself(schema)


def refuse_itself(schema: TableSchema) -> None:
    """Where source and target are one database: raise ``Misconfigured`` for a table that is its own target."""
    if ".".join(place_of(schema)) == schema.qualified:
        raise Misconfigured(
            f"The target of table {schema.qualified} is the table itself: source and target are one database.",
            remedy="Correct the target's dsn, or map the table to another schema or name.",
            code="SL-POSTGRES-LOOP",
        )


def _check_triggers(connection: Connection, setting: Setting, schema: TableSchema) -> None:
    """Where the role may not silence triggers and foreign keys, a table that has some is not written as configured."""
    found = connection.execute(_TRIGGERS, [_relation(connection, schema)]).fetchone() if setting.unwanted else None
    if found is not None:
        what = "foreign keys" if found[1] else f"a trigger ({found[0]})"
        raise Misconfigured(
            f"Table {'.'.join(place_of(schema))} at the target has {what}, which session_replication_role: replica"
            " should silence, but the role may not set that.",
            remedy="As a superuser: GRANT SET ON PARAMETER session_replication_role TO the role; or set the target's"
            " session_replication_role to origin, which lets them act on what is copied.",
            code="SL-POSTGRES-TRIGGERS",
        )


def _recorded(connection: Connection, setting: Setting, schema: TableSchema) -> tuple[TableSchema | None, bool]:
    """The schema that the table had here, and whether the table was made by us.

    Raises:
        Misconfigured: another source, or another table, has the name or the place.
    """
    rows = connection.execute(
        f"select name, source, body, created from {setting.own}.tables where name = $1 or place = $2",
        [schema.qualified, list(place_of(schema))],
    ).fetchall()
    former: tuple[TableSchema | None, bool] = (None, True)
    for name, owner, body, created in rows:
        if owner != setting.source:
            raise Misconfigured(
                f"Table {name} of source {setting.source} is already filled by source {owner} in this database.",
                remedy="Give the sources different databases, or different values of the target's schema setting.",
            )
        if name != schema.qualified:
            raise Misconfigured(
                f"Tables {name} and {schema.qualified} are both mapped to {'.'.join(place_of(schema))}.",
                remedy="Map one of them elsewhere.",
            )
        former = (bookkept(body, TableSchema), created)
    return former


def _record(connection: Connection, setting: Setting, schema: TableSchema, *, created: bool) -> int:
    row = connection.execute(
        f"insert into {setting.own}.tables (name, source, place, created, fingerprint, body)"
        " values ($1, $2, $3, $4, $5, $6) on conflict (name) do update set place = excluded.place,"
        " created = excluded.created, fingerprint = excluded.fingerprint, body = excluded.body returning number",
        [
            schema.qualified,
            setting.source,
            list(place_of(schema)),
            created,
            schema.fingerprint,
            msgspec.json.encode(schema).decode(),
        ],
    ).fetchone()
    assert row is not None
    return int(row[0])


# ------------------------------------------------------------------------------------------------- create and adopt


def _create(connection: Connection, schema: TableSchema) -> None:
    namespace, name = place_of(schema)
    if connection.execute("select 1 from pg_namespace where nspname = $1", [namespace]).fetchone() is None:
        connection.execute(f"create schema {quote(namespace)}")
    columns = [f"{quote(c.name)} {kind_of(connection, c).sql}" for c in schema.columns]
    columns += [f"{quote(VERSION_COLUMN)} bigint", *_soft_column(schema)]
    keys = ", ".join(quote(c.name) for c in schema.key)
    connection.execute(f"create table {quote(namespace)}.{quote(name)} ({', '.join(columns)}, primary key ({keys}))")


def _soft_column(schema: TableSchema) -> list[str]:
    soft = soft_delete_of(schema)
    return [f"{quote(soft)} timestamptz"] if soft else []


def _create_tombstones(connection: Connection, own: str, number: int, schema: TableSchema) -> None:
    """A new key has no use for tombstones of the old one: the reload that follows a key change sweeps."""
    oid = _relation(connection, schema)
    assert oid is not None
    actual = _actual(connection, oid)
    table = f"{own}.deleted_{number}"
    columns = ", ".join(f"k{n} {actual[c.name].base}" for n, c in enumerate(schema.key))
    keys = ", ".join(f"k{n}" for n in range(len(schema.key)))
    connection.execute(f"drop table if exists {table}")
    connection.execute(f"create table {table} ({columns}, version bigint not null, primary key ({keys}))")


def _adopt(connection: Connection, schema: TableSchema, oid: int) -> None:
    """Take over a table that was there before: its rows have no version, so they are older than everything."""
    actual, place = _actual(connection, oid), ".".join(place_of(schema))
    for column in schema.columns:
        found = actual.get(column.name)
        if found is None and column.key:
            raise Misconfigured(
                f"Table {place} exists at the target without the key column {column.name}.",
                remedy="Add the column and fill it, or rename or drop the table there.",
            )
        if found is not None:
            _check_column(connection, column, found, place)
    _check_rest(schema, actual, place)
    _check_key(connection, schema, oid, place)
    missing = [f"{quote(c.name)} {kind_of(connection, c).sql}" for c in schema.columns if c.name not in actual]
    soft = soft_delete_of(schema)
    if soft and soft in actual and actual[soft].kind.oid != 1184:
        raise Misconfigured(f"Column {soft} of table {place} is not timestamptz.", remedy="Change it, or name another.")
    missing += _soft_column(schema) if soft not in actual else []
    if VERSION_COLUMN not in actual:
        missing.append(f"{quote(VERSION_COLUMN)} bigint")
    elif actual[VERSION_COLUMN].kind.oid != 20:
        raise Misconfigured(f"Column {VERSION_COLUMN} of table {place} is not bigint.", remedy="Drop it.")
    _add_columns(connection, schema, missing)


def _check_column(connection: Connection, column: Column, found: _Actual, place: str) -> None:
    wanted = kind_of(connection, column)
    if not fits(found.kind, wanted, column):
        raise Misconfigured(
            f"Column {column.name} of table {place} exists at the target as {found.kind.sql}, which does not hold every"
            f" {column.source_type or column.type}.",
            remedy=f"Change it (alter table ... alter {column.name} type {wanted.sql}), or rename or drop the table.",
        )
    if found.generated or (found.pinned and not column.key):
        what, mend = (
            ("generated", "drop expression") if found.generated else ("an identity", "set generated by default")
        )
        raise Misconfigured(
            f"Column {column.name} of table {place} is {what} at the target, so no value can be written to it.",
            remedy=f"alter table ... alter {column.name} {mend}; or leave the column out with a mapping.",
        )


def _check_rest(schema: TableSchema, actual: dict[str, _Actual], place: str) -> None:
    ours = {c.name for c in schema.columns} | {VERSION_COLUMN, soft_delete_of(schema)}
    for name, column in actual.items():
        if name not in ours and column.required:
            raise Misconfigured(
                f"Column {name} of table {place} at the target is NOT NULL without a default, and not the source's.",
                remedy="Give it a default, or drop the constraint or the column.",
            )


def _check_key(connection: Connection, schema: TableSchema, oid: int, place: str) -> None:
    """Rows are found by a unique index on exactly the key."""
    key = {c.name for c in schema.key}
    if not any(plain and set(columns) == key for plain, columns in connection.execute(_UNIQUE, [oid])):
        names = ", ".join(quote(c.name) for c in schema.key)
        raise Misconfigured(
            f"Table {place} exists at the target without a unique index on its key ({names}) that is checked at once.",
            remedy=f"ALTER TABLE ... ADD PRIMARY KEY ({names}), or CREATE UNIQUE INDEX; not DEFERRABLE.",
        )


def _add_columns(connection: Connection, schema: TableSchema, columns: Sequence[str]) -> None:
    if not columns:
        return
    table = ".".join(quote(part) for part in place_of(schema))
    statement = f"ALTER TABLE {table} {', '.join(f'ADD COLUMN {c}' for c in columns)}"
    try:
        connection.execute(statement)
    except psycopg.errors.InsufficientPrivilege as error:
        raise Misconfigured(
            f"Table {'.'.join(place_of(schema))} at the target lacks columns, and only its owner may add them.",
            remedy=f"As its owner: {statement};",
            code="SL-POSTGRES-OWNER",
        ) from error


# ------------------------------------------------------------------------------------------------- alter and retire


def _alter(connection: Connection, schema: TableSchema, former: TableSchema, oid: int, *, created: bool) -> None:
    """Drop what is gone or has another type, then add what is new. Columns that were never ours stay."""
    table = ".".join(quote(part) for part in place_of(schema))
    actual, wanted = _actual(connection, oid), {c.name: c for c in schema.columns}
    former_soft, soft = soft_delete_of(former), soft_delete_of(schema)
    if former_soft and former_soft != soft and former_soft in actual:
        connection.execute(f"delete from {table} where {quote(former_soft)} is not null")
        if created:
            connection.execute(f"alter table {table} drop column {quote(former_soft)}")
    gone = [c for c in former.columns if c.name in actual and (c.name not in wanted or wanted[c.name].type != c.type)]
    for column in gone:
        connection.execute(f"alter table {table} drop column {quote(column.name)}")
    dropped = {c.name for c in gone}
    added = [c for c in schema.columns if c.name not in actual or c.name in dropped]
    columns = [f"{quote(c.name)} {kind_of(connection, c).sql}" for c in added]
    columns += _soft_column(schema) if soft and soft not in actual else []
    _add_columns(connection, schema, columns)
    _retype(connection, table, schema, former, dropped)
    if former.key != schema.key or dropped & {c.name for c in schema.key}:
        _rekey(connection, table, schema, oid, created=created)


def _retype(connection: Connection, table: str, schema: TableSchema, former: TableSchema, dropped: set[str]) -> None:
    """A longer varchar, another precision of a timestamp: the same logical type, so the values stay."""
    before = {c.name: c for c in former.columns}
    for column in schema.columns:
        was = before.get(column.name)
        if was is None or column.name in dropped or was.source_type == column.source_type:
            continue
        kind = kind_of(connection, column)
        if kind != kind_of(connection, was):
            name = quote(column.name)
            connection.execute(f"alter table {table} alter column {name} type {kind.sql} using {name}::{kind.sql}")


def _rekey(connection: Connection, table: str, schema: TableSchema, oid: int, *, created: bool) -> None:
    """A new key. In a table of ours the newest row of each stays; the reload that follows mends the rest."""
    if not created:
        _check_key(connection, schema, oid, ".".join(place_of(schema)))
        return
    keys = ", ".join(quote(c.name) for c in schema.key)
    found = connection.execute("select conname from pg_constraint where conrelid = $1 and contype = 'p'", [oid])
    for (name,) in found.fetchall():
        connection.execute(f"alter table {table} drop constraint {quote(name)}")
    null = " or ".join(f"{quote(c.name)} is null" for c in schema.key)
    newest = f"row_number() over (partition by {keys} order by {quote(VERSION_COLUMN)} desc nulls last)"
    numbered = f"select ctid, {newest} as n from {table}"
    connection.execute(f"delete from {table} where {null}")
    connection.execute(f"delete from {table} where ctid in (select ctid from ({numbered}) as x where n > 1)")
    connection.execute(f"alter table {table} add primary key ({keys})")


def _retire(connection: Connection, setting: Setting, former: TableSchema, *, created: bool) -> None:
    """Remove what a table held under its former place (correctness rule 21): all of a table of ours, of one that was
    adopted what we wrote."""
    if _relation(connection, former) is None:
        return
    table = ".".join(quote(part) for part in place_of(former))
    if created:
        try:
            with connection.transaction():
                connection.execute(f"drop table {table}")
        except psycopg.errors.DependentObjectsStillExist as error:
            raise Misconfigured(
                f"Table {'.'.join(place_of(former))} is not written any more, but other objects depend on it.",
                remedy="Drop or move them; then the table is removed.",
            ) from error
        return
    connection.execute(f"delete from {table} where {quote(VERSION_COLUMN)} is not null")
    connection.execute(f"alter table {table} drop column {quote(VERSION_COLUMN)}")
