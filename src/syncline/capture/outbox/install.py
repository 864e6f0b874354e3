"""The outbox at the source: its SQL, and making, looking at and removing it.

Everything is in one schema: the table of events, partitioned by time; the function that applications write through;
what the engine notes of progress and failures, in bulk; and the view that tells each event's status from these.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg import sql

from syncline.capture.outbox.settings import OutboxConfig

__all__ = ["CHANNEL", "Installed", "install", "install_sql", "look", "maintain", "remove", "table_oid"]

# The second argument of hashtextextended: it keeps our locks apart from others that hash the same texts.
_SEED = 7305

_TABLES = """
create schema if not exists {schema};

create table if not exists {schema}.sync_event_log (
  id bigint generated always as identity (cache 1),
  event_id text not null default gen_random_uuid()::text,
  event_type text not null,
  entity_type text not null,
  entity_id text not null,
  payload jsonb not null default '{{}}',
  source_version bigint,
  correlation_id text,
  source text,
  txid xid8 not null default pg_current_xact_id(),
  created_at timestamptz not null default clock_timestamp(),
  primary key (id, created_at)
) partition by range (created_at);
create index if not exists sync_event_log_entity_idx on {schema}.sync_event_log (entity_type, entity_id, id);
create index if not exists sync_event_log_horizon_idx on {schema}.sync_event_log (txid, id);
drop index if exists {schema}.sync_event_log_txid_idx;
create table if not exists {schema}.sync_event_log_rest partition of {schema}.sync_event_log default;

create table if not exists {schema}.sync_event_progress (
  horizon xid8 primary key,
  place bigint not null,
  seen_at timestamptz not null default clock_timestamp(),
  published_at timestamptz,
  completed_at timestamptz
);
create table if not exists {schema}.sync_event_failures (
  event_id text not null,
  target text not null,
  error text not null,
  failed_at timestamptz not null,
  primary key (event_id, target)
);

create table if not exists {schema}.sync_event_installation (
  one boolean primary key default true check (one),
  id uuid not null default gen_random_uuid(),
  installed_at timestamptz not null default now(),
  purged xid8 not null default '0',
  place xid8,
  seen_at timestamptz
);
comment on column {schema}.sync_event_installation.purged is 'Events of transactions before this one were removed.';
comment on column {schema}.sync_event_installation.place is 'Before this one, an engine that polls has all for good.';
insert into {schema}.sync_event_installation default values on conflict do nothing;
"""

# The transaction id comes before the number: whoever polls counts on it (see capture/horizon). So does the lock: events
# of one entity are numbered in the order of their commits. Locks in the order of their keys, so that two calls can't
# wait for one another.
_FUNCTIONS = """
create or replace function {schema}.publish_events(events jsonb) returns setof bigint
language plpgsql security definer set search_path = pg_catalog, pg_temp as $function$
begin
  if exists (select from jsonb_array_elements(events) as event
      where coalesce(event -> 'targets', 'null') not in ('null', '[]')) then
    raise 'events of an outbox are for every target: leave targets out' using errcode = 'feature_not_supported';
  end if;
  perform pg_current_xact_id();{notify}
  perform pg_advisory_xact_lock(entity) from (
    select distinct hashtextextended(concat(event ->> 'entity_type', ':', event ->> 'entity_id'), {seed}) as entity
    from jsonb_array_elements(events) as event order by entity) as entities;
  return query
    insert into {schema}.sync_event_log
      (event_id, event_type, entity_type, entity_id, payload, source_version, correlation_id, source)
    select coalesce(event ->> 'event_id', gen_random_uuid()::text), event ->> 'event_type', event ->> 'entity_type',
      event ->> 'entity_id', coalesce(event -> 'payload', '{{}}'), (event ->> 'source_version')::bigint,
      event ->> 'correlation_id', event ->> 'source'
    from jsonb_array_elements(events) with ordinality as given (event, n) order by n
    returning id;
end $function$;

-- Locks are waited for briefly only: whoever publishes must not queue up behind us.
create or replace function {schema}.maintain(ahead int, span interval, keep interval) returns int
language plpgsql set search_path = pg_catalog, pg_temp as $function$
declare
  oldest timestamptz := date_bin(span, now(), 'epoch');
  begins timestamptz;
  name text;
  part record;
  last xid8;
  dropped int := 0;
begin
  perform set_config('lock_timeout', '2s', true);
  for n in 0 .. ahead - 1 loop
    begins := oldest + n * span;
    name := 'sync_event_log_' || to_char(begins at time zone 'UTC', 'YYYYMMDDHH24');
    continue when to_regclass(format('{schema}.%I', name)) is not null or exists (
      select from {schema}.sync_event_log_rest where created_at >= begins and created_at < begins + span);
    execute format('create table {schema}.%I (like {schema}.sync_event_log including all excluding identity)', name);
    execute format('alter table {schema}.sync_event_log attach partition {schema}.%I for values from (%L) to (%L)',
      name, begins, begins + span);
  end loop;
  for part in
    select c.oid::regclass::text as name, c.relname,
      substring(pg_get_expr(c.relpartbound, c.oid) from 'TO \\(''([^'']+)''\\)')::timestamptz as ends
    from pg_inherits i join pg_class c on c.oid = i.inhrelid
    where i.inhparent = '{schema}.sync_event_log'::regclass order by 3
  loop
    continue when part.ends is null or part.ends > now() - keep;
    if not {schema}.is_done(part.name::regclass) then exit; end if;
    execute format('select max(txid) from %s', part.name) into last;
    perform {schema}.note_purged(last);
    execute format('drop table %s', part.name);
    dropped := dropped + 1;
  end loop;
  with gone as (
    delete from {schema}.sync_event_log_rest where created_at < now() - keep and txid < coalesce(
      (select max(horizon) from {schema}.sync_event_progress where completed_at is not null), '0') returning txid)
  select max(txid) into last from gone;
  perform {schema}.note_purged(last);
  delete from {schema}.sync_event_progress where completed_at < now() - keep - span;
  return dropped;
end $function$;

create or replace function {schema}.is_done(part regclass) returns boolean
language plpgsql set search_path = pg_catalog, pg_temp as $function$
declare left_over boolean;
begin
  execute format('select exists (select from %s where txid >= coalesce((select max(horizon)
    from {schema}.sync_event_progress where completed_at is not null), ''0''))', part) into left_over;
  return not left_over;
end $function$;

create or replace function {schema}.note_purged(last xid8) returns void
language sql set search_path = pg_catalog, pg_temp as $function$
  update {schema}.sync_event_installation set purged = greatest(purged, ((last::text::numeric + 1)::text)::xid8)
  where last is not null;
$function$;

-- Whoever polls would not notice that events were thrown away before they were read.
create or replace function {schema}.note_thrown_away() returns trigger
language plpgsql security definer set search_path = pg_catalog, pg_temp as $function$
declare last xid8;
begin
  if tg_op = 'TRUNCATE' then
    select max(txid) into last from {schema}.sync_event_log;
  else
    select max(txid) into last from gone;
  end if;
  perform {schema}.note_purged(last);
  return null;
end $function$;
create or replace trigger note_truncated before truncate on {schema}.sync_event_log
  for each statement execute function {schema}.note_thrown_away();
create or replace trigger note_deleted after delete on {schema}.sync_event_log
  referencing old table as gone for each statement execute function {schema}.note_thrown_away();
"""

CHANNEL = "syncline_outbox"
_NOTIFY = f"""
  perform pg_notify('{CHANNEL}', '');"""

_VIEW = """
create or replace view {view} as
select e.id, e.event_id, e.correlation_id, e.event_type, e.entity_id, e.entity_type, e.payload, e.source_version,
  case when f.error is not null then 'FAILED' when p.completed_at is not null then 'COMPLETED'
       when p.published_at is not null then 'PUBLISHED' else 'PENDING' end as status,
  (p.completed_at is not null or f.error is not null)::int as attempts,
  f.error as error_message, e.created_at, p.published_at,
  case when f.error is null then p.completed_at end as completed_at,
  greatest(e.created_at, p.published_at, p.completed_at, f.failed_at) as updated_at, e.source, e.txid
from {schema}.sync_event_log e
left join lateral (select published_at, completed_at from {schema}.sync_event_progress
                   where horizon > e.txid order by horizon limit 1) p on true
left join lateral (select min(error) as error, max(failed_at) as failed_at from {schema}.sync_event_failures
                   where event_id = e.event_id having count(*) > 0) f on true;
"""

_GRANT = """
grant usage on schema {schema} to {role};
grant execute on function {schema}.publish_events(jsonb) to {role};
"""


@dataclass(frozen=True, slots=True)
class Installed:
    """What is there: how many partitions and events (estimated), and how old the oldest event is in seconds."""

    partitions: int
    events: int
    oldest_s: float | None
    statuses: dict[str, int]


def install_sql(config: OutboxConfig, roles: tuple[str, ...] = ()) -> str:
    """The script that makes the outbox, for psql; executed again it changes nothing."""
    schema = config.schema_name  # whose pattern leaves nothing to quote
    names = {"schema": schema, "seed": _SEED, "notify": _NOTIFY if config.notify else ""}
    views = [f"{schema}.sync_event_status"]
    if config.status_schema is not None:
        views.append(sql.Identifier(config.status_schema, "sync_event_log").as_string())
    script = _TABLES.format(**names) + _FUNCTIONS.format(**names)
    script += "".join(_VIEW.format(view=view, **names) for view in views)
    script += f"\nrevoke all on function {schema}.publish_events(jsonb) from public;\n"
    script += "".join(_GRANT.format(role=sql.Identifier(role).as_string(), **names) for role in roles)
    return f"{script}\nselect {schema}.maintain({_arguments(config)});\n"


def _arguments(config: OutboxConfig) -> str:
    """Partitions are made for a week ahead; without an engine, later events go to the one that takes the rest."""
    ahead = 7 * 24 // config.partition_hours
    return f"{ahead}, interval '{config.partition_hours} hours', interval '{config.retention_hours} hours'"


def install(connection: psycopg.Connection[Any], config: OutboxConfig, roles: tuple[str, ...] = ()) -> None:
    """Make the outbox, or bring it up to date, in one transaction."""
    with connection.transaction():
        connection.execute("select pg_advisory_xact_lock(hashtextextended('syncline outbox', 0))")
        connection.execute(install_sql(config, roles).encode())


def maintain(connection: psycopg.Connection[Any], config: OutboxConfig) -> int:
    """Make the partitions of the days to come, and drop those that are older than the retention and that every target
    has; how many were dropped.

    Raises:
        psycopg.errors.LockNotAvailable: somebody holds the table; try again later.
    """
    schema = sql.Identifier(config.schema_name).as_string()
    row = connection.execute(f"select {schema}.maintain({_arguments(config)})".encode()).fetchone()
    return int(row[0]) if row else 0


def table_oid(connection: psycopg.Connection[Any], config: OutboxConfig) -> int | None:
    """The table of events, None where there is none; for roles, too, that may not use its schema."""
    query = (
        "select c.oid::int8 from pg_class c join pg_namespace n on n.oid = c.relnamespace"
        " where n.nspname = %s and c.relname = 'sync_event_log' and c.relkind = 'p'"
    )
    row = connection.execute(query, [config.schema_name]).fetchone()
    return None if row is None else int(row[0])


def look(connection: psycopg.Connection[Any], config: OutboxConfig) -> Installed | None:
    """What is there, None where the outbox is not installed."""
    table = table_oid(connection, config)
    if table is None:
        return None
    schema = sql.Identifier(config.schema_name)
    parts = connection.execute("select count(*) from pg_inherits where inhparent = %s", [table]).fetchone()
    found = connection.execute(
        sql.SQL(
            "select status, count(*), extract(epoch from now() - min(created_at))::float8"
            " from {}.sync_event_status group by status"
        ).format(schema)
    ).fetchall()
    return Installed(
        partitions=parts[0] if parts else 0,
        events=sum(count for _, count, _ in found),
        oldest_s=max((age for *_, age in found), default=None),
        statuses={status: count for status, count, _ in found},
    )


def remove(connection: psycopg.Connection[Any], config: OutboxConfig) -> bool:
    """Drop the outbox with the events in it; whether there was one. Nothing else in the database may rest on it."""
    found = table_oid(connection, config)
    with connection.transaction():
        if config.status_schema is not None:
            view = sql.Identifier(config.status_schema, "sync_event_log")
            connection.execute(sql.SQL("drop view if exists {}").format(view))
        schema = sql.Identifier(config.schema_name)
        for statement in (
            "drop view if exists {}.sync_event_status",
            "drop table if exists {}.sync_event_log, {}.sync_event_progress, {}.sync_event_failures",
            "drop table if exists {}.sync_event_installation",
            "drop function if exists {}.note_thrown_away(), {}.note_purged(xid8)",
            "drop function if exists {}.publish_events(jsonb), {}.is_done(regclass)",
            "drop function if exists {}.maintain(int, interval, interval)",
            "drop schema if exists {}",
        ):
            connection.execute(sql.SQL(statement).format(*[schema] * statement.count("{}")))
    return found is not None
