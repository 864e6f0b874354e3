"""The SQL of capture by triggers: what is installed once, and what for each table. Pure.

A table's function runs once per statement, over its transition tables, and writes all events of the statement at once.
It records the rows *as they are now*, found by the keys of the transition tables, not the transition tables' rows: a
row trigger of the user's that writes to the same table has been captured by then, with smaller numbers and newer rows.
The row locks of the statement are still held while the numbers are drawn, so that per key they rise in the order of the
commits. (Sequences have CACHE 1: a session that had numbers in reserve would draw old ones.)

Nothing that an ALTER TABLE does may make the user's own statements fail. The functions name the key's columns only, and
look whether these are still there before they run a statement which names them; rows are turned to JSON as a whole. Nor
may what their columns are called: every column is qualified, and ``t.*`` is the row even where there is a column t.

TRUNCATE of one partition empties a part of the table, which no event can say: the table is read again.
"""

from __future__ import annotations

from dataclasses import dataclass

import xxhash
from psycopg import sql

__all__ = [
    "CHANNEL",
    "OPERATIONS",
    "TRIGGERS",
    "Captured",
    "base_script",
    "function_name",
    "remove_script",
    "table_script",
    "wanted_comment",
]

CHANNEL = "syncline_events"
OPERATIONS = ("INSERT", "UPDATE", "DELETE", "TRUNCATE")
TRIGGERS = {operation: f"syncline_{operation.lower()}" for operation in OPERATIONS}


@dataclass(frozen=True, slots=True)
class Captured:
    """A table as its function knows it. ``key``: its columns, each with the qualified operator that compares it.

    ``exact``: JSON tells every value of its columns from every other one. Else (arrays, composites, json itself and
    types of extensions) rows are recorded as PostgreSQL prints them, too.
    """

    oid: int
    namespace: str
    name: str
    key: tuple[tuple[str, str], ...]
    exact: bool
    partitioned: bool = False


_BASE = """
create schema if not exists {schema};
create table if not exists {schema}.sync_events (
  txid xid8 not null,
  number bigint generated always as identity (cache 1),
  recorded_at timestamptz not null default clock_timestamp(),
  relation oid not null,
  table_name text not null,
  operation text not null,
  key json,
  row_data json,
  printed text,
  primary key (txid, number)
);
comment on table {schema}.sync_events is
  'Changes captured by triggers. RESHAPED: the table''s key was altered, so that it has to be read again.';
create table if not exists {schema}.sync_installation (
  one boolean primary key default true check (one),
  id uuid not null default gen_random_uuid(),
  installed_at timestamptz not null default now(),
  purged xid8 not null default '0'
);
comment on column {schema}.sync_installation.purged is 'Events of transactions before this one were removed.';
insert into {schema}.sync_installation default values on conflict do nothing;
create table if not exists {schema}.sync_readers (
  name text primary key,
  place xid8 not null,
  seen_at timestamptz not null default now()
);
comment on table {schema}.sync_readers is 'Engines, and the transaction id before which each has all events for good.';
create or replace function {schema}.purge_events(keep interval default '1 hour', at_most integer default 10000)
returns bigint language plpgsql set search_path = pg_catalog, pg_temp as $syncline$
declare
  horizon xid8 := (select min(place) from {schema}.sync_readers);
  last xid8;
  removed bigint;
begin
  with old as (
    select txid, number from {schema}.sync_events
    where txid < horizon and recorded_at < clock_timestamp() - keep
    order by txid, number limit at_most
  ), gone as (
    delete from {schema}.sync_events e using old where e.txid = old.txid and e.number = old.number returning e.txid
  )
  select count(*), max(txid) into removed, last from gone;
  if removed > 0 then
    update {schema}.sync_installation
    set purged = greatest(purged, ((last::text::numeric + 1)::text)::xid8);
  end if;
  return removed;
end $syncline$;
comment on function {schema}.purge_events is 'Remove events that every reader has and that are older; how many.';
create or replace function {schema}.forget_readers(unseen_for interval default '7 days')
returns bigint language sql set search_path = pg_catalog, pg_temp as $syncline$
  with gone as (delete from {schema}.sync_readers where seen_at < now() - unseen_for returning 1)
  select count(*) from gone
$syncline$;
comment on function {schema}.forget_readers is
  'Keep no events for readers that were not seen for so long; should one come back, its tables are read again.';
grant usage on schema {schema} to {role};
grant select, delete on {schema}.sync_events to {role};
grant select on sequence {schema}.sync_events_number_seq to {role};
grant select, insert, update, delete on {schema}.sync_readers to {role};
grant select, update on {schema}.sync_installation to {role};
"""

# Plans are kept, and made for the first statement's number of rows: a hash or a scan chosen for a million of them must
# not meet the next single row, so the tables are only ever asked by index.
_SETTINGS = (
    "set search_path = pg_catalog, pg_temp set datestyle = 'ISO' set intervalstyle = 'postgres'"
    " set extra_float_digits = '3' set enable_hashjoin = 'off' set enable_mergejoin = 'off' set enable_seqscan = 'off'"
)

_TABLE = """
create or replace function {function}() returns trigger language plpgsql security definer {settings} as $syncline$
begin
  if to_regclass({qualified})::oid is distinct from {oid}::oid
    or (select count(*) from pg_attribute where attrelid = {oid}::oid and attname = any ({key_names})) <> {key_count}
  then
    insert into {events} (txid, relation, table_name, operation)
    values (pg_current_xact_id(), {oid}, {table_name}, 'RESHAPED');
  elsif tg_op = 'INSERT' then
    insert into {events} (txid, relation, table_name, operation, key, row_data, printed)
    select pg_current_xact_id(), {oid}, {table_name}, 'INSERT', {key_of_t}, row_to_json(t.*), {printed}
    from syncline_new n join {rows} t on {n_is_t};
  elsif tg_op = 'UPDATE' then
    insert into {events} (txid, relation, table_name, operation, key, row_data, printed)
    select pg_current_xact_id(), {oid}, {table_name}, 'UPDATE', {key_of_t}, row_to_json(t.*), {printed}
    from syncline_new n join {rows} t on {n_is_t};
    insert into {events} (txid, relation, table_name, operation, key)
    select pg_current_xact_id(), {oid}, {table_name}, 'DELETE', {key_of_o}
    from (select {key_columns} from syncline_old s except select {key_columns} from syncline_new s) o
    where not exists (select from {rows} t where {o_is_t});
  elsif tg_op = 'DELETE' then
    insert into {events} (txid, relation, table_name, operation, key)
    select pg_current_xact_id(), {oid}, {table_name}, 'DELETE', {key_of_o}
    from syncline_old o where not exists (select from {rows} t where {o_is_t});
  else
    insert into {events} (txid, relation, table_name, operation)
    values (pg_current_xact_id(), {oid}, {table_name},
      case when tg_relid = {oid}::oid then 'TRUNCATE' else 'RESHAPED' end);
  end if;{notify}
  return null;
end $syncline$;
revoke all on function {function}() from public;
"""

_TRIGGER = (
    "create or replace trigger {name} after {operation} on {table}{referencing}"
    " for each statement execute function {function}();\n"
)
_REFERENCING = {
    "INSERT": " referencing new table as syncline_new",
    "UPDATE": " referencing old table as syncline_old new table as syncline_new",
    "DELETE": " referencing old table as syncline_old",
    "TRUNCATE": "",
}


def base_script(schema: str, role: str) -> str:
    """What is there once: tables and the functions that people may call, and what the engine's ``role`` may do with
    them, whoever runs this. Runs again without harm."""
    return sql.SQL(_BASE).format(schema=sql.Identifier(schema), role=sql.Identifier(role)).as_string(None)


def function_name(table: Captured) -> str:
    """The name of a table's function, without its schema."""
    return f"capture_{table.oid}"


def table_script(schema: str, table: Captured, on: tuple[tuple[str, str], ...], *, notify: bool) -> str:
    """The function of a table, with a digest of it as its comment, and its triggers on the table itself and the
    partitions (``on``, by schema and name): a statement fires those of the table that it names."""
    text = _function(schema, table, notify=notify)
    function = sql.Identifier(schema, function_name(table))
    comment = sql.SQL("comment on function {}() is {};\n").format(function, sql.Literal(_comment(text))).as_string(None)
    triggers = [
        sql.SQL(_TRIGGER)
        .format(
            name=sql.Identifier(TRIGGERS[operation]),
            operation=sql.SQL(operation.lower()),
            table=sql.Identifier(*name),
            referencing=sql.SQL(_REFERENCING[operation]),
            function=function,
        )
        .as_string(None)
        for name in on
        for operation in OPERATIONS
    ]
    return "".join([text, comment, *triggers])


def wanted_comment(schema: str, table: Captured, *, notify: bool) -> str:
    """What the comment of the table's function is if it is as it should be."""
    return _comment(_function(schema, table, notify=notify))


def _comment(text: str) -> str:
    return f"syncline {xxhash.xxh3_64_hexdigest(text.encode())}"


def remove_script(schema: str, functions: tuple[str, ...], *, everything: bool) -> str:
    """Remove functions together with their triggers; ``everything``: the schema and all events, too."""
    if everything:
        return sql.SQL("drop schema if exists {} cascade;\n").format(sql.Identifier(schema)).as_string(None)
    drop = sql.SQL("drop function if exists {}() cascade;\n")
    return "".join(drop.format(sql.Identifier(schema, name)).as_string(None) for name in functions)


def _function(schema: str, table: Captured, *, notify: bool) -> str:
    names = [name for name, _ in table.key]
    return (
        sql.SQL(_TABLE)
        .format(
            function=sql.Identifier(schema, function_name(table)),
            settings=sql.SQL(_SETTINGS),
            events=sql.Identifier(schema, "sync_events"),
            rows=sql.SQL("{}" if table.partitioned else "only {}").format(sql.Identifier(table.namespace, table.name)),
            qualified=sql.Literal(sql.Identifier(table.namespace, table.name).as_string(None)),
            oid=sql.Literal(table.oid),
            table_name=sql.Literal(f"{table.namespace}.{table.name}"),
            key_names=sql.SQL("array[{}]").format(sql.SQL(", ").join(sql.Literal(name) for name in names)),
            key_count=sql.Literal(len(names)),
            key_columns=sql.SQL(", ").join(sql.Identifier("s", name) for name in names),
            key_of_t=_key("t", names),
            key_of_o=_key("o", names),
            n_is_t=_same("n", table),
            o_is_t=_same("o", table),
            printed=sql.SQL("null" if table.exact else "(t.*)::text"),
            notify=sql.SQL(f"\n  notify {CHANNEL};" if notify else ""),
        )
        .as_string(None)
    )


def _key(alias: str, names: list[str]) -> sql.Composed:
    pairs = [sql.SQL("{}, {}").format(sql.Literal(name), sql.Identifier(alias, name)) for name in names]
    return sql.SQL("json_build_object({})").format(sql.SQL(", ").join(pairs))


def _same(alias: str, table: Captured) -> sql.Composed:
    same = [
        sql.SQL("{} {} {}").format(sql.Identifier(alias, name), sql.SQL(operator), sql.Identifier("t", name))
        for name, operator in table.key
    ]
    return sql.SQL(" and ").join(same)
