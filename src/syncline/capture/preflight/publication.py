"""The publication: what is there, what would be made of it, and whether our role may."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from psycopg import sql

from syncline.capture.identity import identity_problem, key_columns
from syncline.capture.preflight.look import Look, name
from syncline.capture.tables import TableInfo
from syncline.finding import Finding

__all__ = ["check_publication"]

_PUBLICATION = """
select p.puballtables, coalesce(to_jsonb(p) ->> 'pubgencols', 'n') <> 'n' as generated,
  p.pubinsert and p.pubupdate and p.pubdelete and p.pubtruncate as publishes_all, p.pubviaroot,
  pg_has_role(p.pubowner, 'usage') as owned,
  array(select n.nspname::text from pg_publication_namespace s join pg_namespace n on n.oid = s.pnnspid
        where s.pnpubid = p.oid) as schemas
from pg_publication p where p.pubname = %s
"""

_PUBLISHED = """
select r.prrelid::int8 as oid, n.nspname as namespace, c.relname as name, r.prqual is not null as filtered,
  case when r.prattrs is null then null else array(
    select a.attname::text from unnest(r.prattrs::int2[]) k(attnum)
    join pg_attribute a on a.attrelid = r.prrelid and a.attnum = k.attnum) end as columns
from pg_publication_rel r join pg_publication p on p.oid = r.prpubid
  join pg_class c on c.oid = r.prrelid join pg_namespace n on n.oid = c.relnamespace
where p.pubname = %s order by 2, 3
"""

_KEYLESS = """
select n.nspname as namespace, c.relname as name
from pg_publication p join pg_publication_tables t on t.pubname = p.pubname
  join pg_namespace n on n.nspname = t.schemaname
  join pg_class c on c.relnamespace = n.oid and c.relname = t.tablename
where p.pubname = %s and (p.pubupdate or p.pubdelete) and c.relkind = 'r' and case c.relreplident
  when 'd' then not exists (select from pg_index i where i.indrelid = c.oid and i.indisprimary and i.indimmediate)
  when 'i' then not exists (select from pg_index i where i.indrelid = c.oid and i.indisreplident)
  else c.relreplident = 'n' end
order by 1, 2
"""


def check_publication(look: Look) -> Iterator[Finding]:
    """Whether it publishes what is monitored, whole, or can be made to by our role."""
    publication = look.config.publication
    found = look.rows(_PUBLICATION, publication)
    if not found:
        yield _missing_publication(look)
        return
    state = found[0]
    if not state["publishes_all"]:
        yield Finding(
            "SL-PUBLICATION",
            "error",
            f"publication {publication}",
            "It leaves out some of insert, update, delete and truncate.",
            f"ALTER PUBLICATION {name(publication)} SET (publish = 'insert, update, delete, truncate');",
        )
    partitioned = [t.qualified for t in look.tables if t.relkind == "p"]
    if partitioned and not state["pubviaroot"]:
        yield Finding(
            "SL-PUBLICATION",
            "error",
            f"publication {publication}",
            f"It publishes the partitions of {partitioned[0]} instead of the table.",
            f"ALTER PUBLICATION {name(publication)} SET (publish_via_partition_root = true);",
        )
    yield from _check_published(look, state)
    yield from _check_keyless(look)
    if look.slot is not None and look.slot.before_publication:
        yield Finding(
            "SL-PUBLICATION-ORDER",
            "warning",
            f"publication {publication}",
            f"It is younger than what slot {look.config.slot} has still to deliver. If it was created after the slot "
            "(not merely altered), those changes can never be decoded.",
            f"SELECT pg_drop_replication_slot({sql.quote(look.config.slot)}); then `syncline resync`, and "
            "`syncline run`, which makes it anew and reads every table again (without the resync it ends in a gap).",
        )


def _missing_publication(look: Look) -> Finding:
    publication, tables = look.config.publication, _capturable(look)
    if not tables:
        return Finding(
            "SL-PUBLICATION",
            "info",
            f"publication {publication}",
            "It does not exist, and there is no table to publish.",
        )
    if not look.server.may_create or _foreign(look, tables):
        return Finding(
            "SL-PUBLICATION",
            "error",
            f"publication {publication}",
            f"It does not exist, and role {look.server.role} may not create it for these tables.",
            f"As the owner of the tables: CREATE PUBLICATION {name(publication)} FOR TABLE {_names(tables)} "
            "WITH (publish_via_partition_root = true);",
        )
    return Finding(
        "SL-PUBLICATION", "ok", f"publication {publication}", f"It will be created for {len(tables)} table(s)."
    )


def _check_published(look: Look, state: dict[str, Any]) -> Iterator[Finding]:
    publication = look.config.publication
    if state["generated"]:
        yield from _check_generated(look)
    if state["puballtables"]:
        yield Finding("SL-PUBLICATION", "ok", f"publication {publication}", "It covers all tables of the database.")
        return
    published = {row["oid"]: row for row in look.rows(_PUBLISHED, publication)}
    tables = _capturable(look)
    absent = [t for t in tables if t.oid not in published and t.namespace not in state["schemas"]]
    foreign = _foreign(look, absent) if state["owned"] else absent
    for table in foreign:
        yield Finding(
            "SL-NOT-PUBLISHED",
            "error",
            table.qualified,
            f"Publication {publication} lacks it, and role {look.server.role} may not add it.",
            f"As its owner: ALTER PUBLICATION {name(publication)} ADD TABLE ONLY {table.sql_name};",
        )
    absent = [t for t in absent if t not in foreign]
    if absent:
        yield Finding(
            "SL-PUBLICATION", "info", f"publication {publication}", f"Tables will be added to it: {_some(absent)}."
        )
    elif not foreign:
        yield Finding("SL-PUBLICATION", "ok", f"publication {publication}", f"It covers the {len(tables)} table(s).")
    wanted = {table.oid for table in look.tables}
    surplus = [f"{row['namespace']}.{row['name']}" for oid, row in published.items() if oid not in wanted]
    if surplus:
        names = ", ".join(surplus[:5]) + (", ..." if len(surplus) > 5 else "")
        yield Finding(
            "SL-PUBLICATION", "info", f"publication {publication}", f"Tables not monitored are passed over: {names}."
        )
    for table in look.tables:
        if table.oid in published:
            yield from _check_list(publication, table, published[table.oid])


def _check_keyless(look: Look) -> Iterator[Finding]:
    """Publishing a table takes its updates and deletes away where they name no row, monitored or not: the harm is the
    application's."""
    for row in look.rows(_KEYLESS, look.config.publication):
        table = name(row["namespace"], row["name"])
        yield Finding(
            "SL-UPDATES-REFUSED",
            "warning",
            f"{row['namespace']}.{row['name']}",
            f"Publication {look.config.publication} publishes it, and it has no replica identity: PostgreSQL refuses "
            "every UPDATE and DELETE of it.",
            f"ALTER TABLE {table} ADD PRIMARY KEY (...); or ALTER TABLE {table} REPLICA IDENTITY FULL; or make the "
            "publication FOR TABLE with the names of the others.",
        )


def _check_list(publication: str, table: TableInfo, row: dict[str, Any]) -> Iterator[Finding]:
    if row["filtered"]:
        yield Finding(
            "SL-ROW-FILTER",
            "info",
            table.qualified,
            f"Publication {publication} has a row filter for it: only matching rows are copied.",
        )
    if row["columns"] is None:
        return
    generated = [c.name for c in table.columns if c.generated and c.name in row["columns"]]
    absent = [column for column in key_columns(table) if column not in row["columns"]]
    if generated:
        yield _publishes_generated(publication, table, generated[0])
    elif absent:
        yield Finding(
            "SL-COLUMN-LIST",
            "error",
            table.qualified,
            f"The column list in publication {publication} lacks the key column {absent[0]}.",
            f"Add it with ALTER PUBLICATION {name(publication)} SET TABLE ..., naming all tables of the publication.",
        )
    else:
        yield Finding(
            "SL-COLUMN-LIST",
            "info",
            table.qualified,
            f"Publication {publication} lists {len(row['columns'])} of its columns: only those are copied.",
        )


def _check_generated(look: Look) -> Iterator[Finding]:
    """PostgreSQL 18 can publish generated columns, which loaded rows don't have: the two would never agree."""
    for table in look.tables:
        stored = [c.name for c in table.columns if c.generated == "s"]
        if stored:
            yield _publishes_generated(look.config.publication, table, stored[0])


def _publishes_generated(publication: str, table: TableInfo, column: str) -> Finding:
    return Finding(
        "SL-GENERATED",
        "error",
        table.qualified,
        f"Publication {publication} publishes its generated column {column}, which can't be captured.",
        f"ALTER PUBLICATION {name(publication)} SET (publish_generated_columns = none); or take it out of the column "
        "list.",
    )


def _capturable(look: Look) -> list[TableInfo]:
    """Those that would be published: to publish one without an identity takes its updates away, and one of which events
    tell would come twice."""
    return [t for t in look.tables if identity_problem(t) is None and not look.config.told(t.qualified)]


def _foreign(look: Look, tables: Sequence[TableInfo]) -> list[TableInfo]:
    """Those of the tables that belong to a role that ours isn't a member of."""
    query = "select oid::int8 as oid from pg_class where oid = any(%s::oid[]) and not pg_has_role(relowner, 'usage')"
    foreign = {row["oid"] for row in look.rows(query, [table.oid for table in tables])}
    return [table for table in tables if table.oid in foreign]


def _names(tables: Sequence[TableInfo]) -> str:
    """For a publication. ONLY, as Syncline writes it: inheritance children are tables of their own."""
    return ", ".join(f"ONLY {table.sql_name}" for table in tables)


def _some(tables: Sequence[TableInfo]) -> str:
    return ", ".join(table.qualified for table in tables[:5]) + (", ..." if len(tables) > 5 else "")
