"""What the source's catalogue says about its tables: which ones are captured, and what each looks like *now*.

The catalogue is now and the WAL is then (correctness rule 20): a :class:`TableInfo` describes the present table, and a
stream that replays older changes must take the columns from its RELATION messages and only their meaning from here.

Nothing in this module waits for a table lock: sizes of tables that someone holds or awaits exclusively come from the
statistics instead of from the file, so that a running ALTER TABLE can't stall the stream or the preflight.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import psycopg
import xxhash

from syncline.capture.patterns import candidates, matching

__all__ = [
    "CatalogColumn",
    "Leaf",
    "TableInfo",
    "catalogue_mark",
    "matching_tables",
    "only_lost_columns",
    "reshaped",
    "table_info",
    "tables_info",
]

Connection = psycopg.Connection[Any]


@dataclass(frozen=True, slots=True)
class CatalogColumn:
    """One live column. ``base_*`` see through domains (of domains); ``generated`` is '', 's' (stored) or 'v' (virtual).

    ``has_missing_value``: rows older than its ADD COLUMN ... DEFAULT don't hold it, the catalogue does.
    ``storage`` is TOAST's: 'p' plain, 'm' main, 'e' external, 'x' extended.
    """

    name: str
    attnum: int
    type_oid: int
    typmod: int
    type_name: str
    base_type_oid: int
    base_typmod: int
    not_null: bool
    generated: str
    has_missing_value: bool
    storage: str

    @property
    def toastable(self) -> bool:
        """Whether a value may be stored out of line, and so arrive as unchanged."""
        return self.storage != "p"


@dataclass(frozen=True, slots=True)
class Leaf:
    """One partition that holds rows. Its own replica identity decides what the WAL holds, not the root's."""

    oid: int
    namespace: str
    name: str
    sql_name: str
    relkind: str
    persistence: str
    replica_identity: str
    identity_columns: tuple[str, ...]
    heap_bytes: int


@dataclass(frozen=True, slots=True)
class TableInfo:
    """A table of the source as its catalogue has it now.

    ``relkind`` is 'r' or 'p' (partitioned; ``partition_leaves`` are then where its rows are). ``replica_identity`` is
    'd' default, 'n' nothing, 'f' full or 'i' index; ``identity_columns`` are the columns of an old row that the WAL
    holds: those of the index or primary key, all under FULL, none when there is no identity (a deferrable primary key
    is none). ``usable_index`` names a unique index that could serve as identity, quoted for SQL. ``sql_name`` is the
    quoted qualified name. ``heap_bytes`` is the main fork, ``size_bytes`` counts TOAST as well; both and
    ``estimated_rows`` add up the leaves. ``filenodes`` and ``altered`` change when its files, or the catalogue's rows
    of its columns, are replaced. ``labels`` are those of the enums in its columns, 16 digits each in the order in which
    they came, ``attributes`` what its composite types are made of; ``attached`` changes when a partition is attached
    (detached, its changes are not in the stream). ``refuses_updates`` names a generated column for
    which PostgreSQL 18 refuses updates and deletes under FULL once the table is published; ``published`` is what the
    publication's catalogue has of it (see :func:`~syncline.capture.slot.with_publication`).
    """

    oid: int
    namespace: str
    name: str
    sql_name: str
    relkind: str
    persistence: str
    replica_identity: str
    primary_key: tuple[str, ...]
    identity_columns: tuple[str, ...]
    usable_index: str | None
    columns: tuple[CatalogColumn, ...]
    partition_leaves: tuple[Leaf, ...]
    has_children: bool
    row_security: bool
    estimated_rows: int
    heap_bytes: int
    size_bytes: int
    filenodes: int = 0
    altered: int = 0
    labels: str = ""
    attributes: str = ""
    attached: int = 0
    refuses_updates: str = ""
    published: str = ""

    @property
    def qualified(self) -> str:
        """``namespace.name``, as in :class:`~syncline.change.TableSchema`."""
        return f"{self.namespace}.{self.name}"

    @property
    def shape(self) -> str:
        """What would change if rows changed without a row event, in short; see :func:`reshaped`."""
        leaves = sorted(leaf.oid for leaf in self.partition_leaves)
        described = [self.oid, [_drawn(c) for c in self.columns], self.identity_columns, leaves, self.published]
        described += [self.primary_key, self.attributes, self.attached]
        if self.relkind == "p":
            described.append(self.filenodes)  # the TRUNCATE of one partition is not published under the root
        digest = xxhash.xxh3_64_hexdigest(msgspec.json.encode(described))
        return f"{digest}.{self.filenodes:x}.{self.altered:x}.{self.labels}"

    def column(self, name: str) -> CatalogColumn | None:
        """The live column of this name, None if there is none."""
        return next((c for c in self.columns if c.name == name), None)


def reshaped(known: str, now: str) -> bool:
    """Whether rows may have changed without a row event between two shapes of a table.

    Another table of that name, other columns, other partitions, another membership in the publication (while it had
    none, nothing was sent); new files (as VACUUM FULL and TRUNCATE make them too) together with altered columns:
    ALTER TABLE ... TYPE ... USING to the same type; a renamed label of an enum (labels that are added come last).
    """
    one, other = known.split("."), now.split(".")
    if one[0] != other[0] or (one[1] != other[1] and one[2] != other[2]):
        return True
    was, labels = (",".join(parts[3:]).split(",") for parts in (one, other))
    return len(was) != len(labels) or any(not b.startswith(a) for a, b in zip(was, labels, strict=True))


def _drawn(column: CatalogColumn) -> tuple[int, str, int, int, str]:
    """What can't change in a column without its rows changing."""
    return (column.attnum, column.name, column.type_oid, column.typmod, column.generated)


def only_lost_columns(before: TableInfo, now: TableInfo) -> bool:
    """Whether all that happened to a table is that columns were dropped, which leaves the rest of its rows alone."""
    was = {_drawn(c) for c in before.columns}
    return (
        before.oid == now.oid
        and before.filenodes == now.filenodes
        and before.partition_leaves == now.partition_leaves
        and before.identity_columns == now.identity_columns
        and before.labels == now.labels
        and before.attributes == now.attributes
        and before.attached == now.attached
        and before.primary_key == now.primary_key
        and before.published == now.published
        and was > {_drawn(c) for c in now.columns}
    )


_CATALOGUE = """
select count(*), sum(a.xmin::text::int8), sum(a.attrelid::int8),
  sum(hashtextextended(format('%%s %%s %%s %%s %%s %%s %%s', c.oid, c.relnamespace,
    c.relname, c.relreplident, c.relowner, c.relrowsecurity, c.relacl), 0)) filter (where a.attnum = 1),
  sum(c.relfilenode::int8) filter (where c.relispartition),
  (select sum(xmin::text::int8) from pg_inherits where inhrelid >= 16384),
  (select sum(inhrelid::int8) from pg_inherits where inhrelid >= 16384),
  (select sum(xmin::text::int8) from pg_enum),
  (select sum(a.xmin::text::int8) from pg_attribute a join pg_class c on c.oid = a.attrelid
   where c.relkind = 'c' and c.oid >= 16384),
  (select sum(i.xmin::text::int8) from pg_index i where i.indexrelid >= 16384),
  (select sum(xmin::text::int8) from pg_publication),
  (select sum(oid::int8) from pg_publication_rel),
  (select sum(oid::int8) from pg_publication_namespace),
  (select sum(hashtextextended(format('%%s %%s', oid, nspacl), 0)) from pg_namespace where oid >= 2200),
  (select array[rolsuper, rolbypassrls] from pg_roles where rolname = current_user),
  (select sum(hashtextextended(format('%%s %%s', roleid, member), 0)) from pg_auth_members)
from pg_class c join pg_attribute a on a.attrelid = c.oid
where c.relkind in ('r', 'p') and c.relpersistence = 'p' and c.oid >= 16384 and a.attnum > 0
  and c.relnamespace <> all(select oid from pg_namespace where nspname = any(%s))
"""


def catalogue_mark(connection: Connection, never: Sequence[str] = ()) -> tuple[Any, ...]:
    """Some numbers that change when a permanent table outside the schemas ``never`` is made, altered or dropped, or
    an enum or a publication altered, or what our role may read."""
    row = connection.execute(_CATALOGUE, [list(never)]).fetchone()
    return tuple(row or ())


def matching_tables(
    connection: Connection, monitored: Sequence[str], excluded: Sequence[str] = (), never: Sequence[str] = ()
) -> list[TableInfo]:
    """The tables to capture, by qualified name. ``never`` names schemas that are left out whatever the patterns say.

    :func:`matching` says what was met and left out.

    Raises:
        Misconfigured: a pattern can't be read.
        psycopg.Error: as the connection raises it; translate with :func:`syncline.capture.source.translated`.
    """
    chosen = matching(candidates(connection, never), monitored, excluded).chosen
    return tables_info(connection, [r.oid for r in chosen])


# ---------------------------------------------------------------------------------------------------- description

_INDEX_COLUMNS = """
array(select a.attname from unnest(i.indkey::int2[]) with ordinality k(attnum, n)
      join pg_attribute a on a.attrelid = i.indrelid and a.attnum = k.attnum
      where k.n <= i.indnkeyatts order by k.n)
"""

_TABLES = f"""
with recursive tree(root, oid) as (
  select oid, oid from pg_class where oid = any(%s::oid[]) and relkind in ('r', 'p')
  union all
  select t.root, i.inhrelid
  from tree t join pg_class p on p.oid = t.oid and p.relkind = 'p' join pg_inherits i on i.inhparent = t.oid
), locked as materialized (
  select distinct relation from pg_locks
  where locktype = 'relation' and mode = 'AccessExclusiveLock' and pid <> pg_backend_pid()
    and database = (select oid from pg_database where datname = current_database())
), rel as (
  select t.root, c.oid, c.relfilenode, n.nspname, c.relname, format('%%I.%%I', n.nspname, c.relname) as sql_name,
    c.relkind::text as relkind, c.relpersistence::text as relpersistence, c.relreplident::text as relreplident,
    c.relrowsecurity, c.relhassubclass and c.relkind = 'r' as has_children, c.reltuples, c.relpages,
    case when l.relation is null then coalesce(pg_relation_size(c.oid), 0)
         else c.relpages * current_setting('block_size')::int8 end as heap_bytes,
    case when l.relation is null then coalesce(pg_table_size(c.oid), 0)
         else c.relpages * current_setting('block_size')::int8 end as size_bytes,
    (select sum(case when a.attlen > 0 then a.attlen else 32 end) + 28
     from pg_attribute a where a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped) as width,
    case c.relreplident
      when 'f' then array(select a.attname from pg_attribute a
                          where a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped order by a.attnum)
      else coalesce((select {_INDEX_COLUMNS} from pg_index i where i.indrelid = c.oid and i.indisvalid
                      and case c.relreplident when 'd' then i.indisprimary and i.indimmediate
                                              when 'i' then i.indisreplident else false end), '{{}}')
    end as identity_columns
  from tree t join pg_class c on c.oid = t.oid join pg_namespace n on n.oid = c.relnamespace
    left join locked l on l.relation = c.oid
), size as (
  select root, sum(relfilenode::int8)::int8 as filenodes, sum(heap_bytes)::int8 as heap_bytes,
    sum(size_bytes)::int8 as size_bytes,
    sum(case when relkind <> 'r' then 0
             when relpages > 0 and reltuples >= 0
               then reltuples / relpages * (heap_bytes / current_setting('block_size')::int8)
             else heap_bytes / coalesce(width, 28) end)::int8 as estimated_rows
  from rel group by root
)
select json_build_object(
  'oid', r.oid::int8, 'namespace', r.nspname, 'name', r.relname, 'sql_name', r.sql_name,
  'relkind', r.relkind, 'persistence', r.relpersistence, 'replica_identity', r.relreplident,
  'primary_key', coalesce((select {_INDEX_COLUMNS} from pg_index i
                           where i.indrelid = r.oid and i.indisprimary), '{{}}'),
  'identity_columns', r.identity_columns,
  'usable_index', (select format('%%I', x.relname) from pg_index i join pg_class x on x.oid = i.indexrelid
     where i.indrelid = r.oid and i.indisunique and i.indimmediate and i.indisvalid and i.indpred is null
       and i.indexprs is null and not exists (select from unnest(i.indkey::int2[]) k(attnum)
         join pg_attribute a on a.attrelid = r.oid and a.attnum = k.attnum
         where not a.attnotnull or a.attgenerated <> '')
     order by i.indisprimary desc, i.indnkeyatts, x.relname limit 1),
  'columns', coalesce((select json_agg(json_build_object(
      'name', a.attname, 'attnum', a.attnum, 'type_oid', a.atttypid::int8, 'typmod', a.atttypmod,
      'type_name', format_type(a.atttypid, a.atttypmod), 'base_type_oid', b.oid::int8, 'base_typmod', b.typmod,
      'not_null', a.attnotnull, 'generated', a.attgenerated::text, 'has_missing_value', a.atthasmissing,
      'storage', a.attstorage::text) order by a.attnum)
    from pg_attribute a cross join lateral (
      with recursive base(oid, typmod, depth) as (
        select a.atttypid, a.atttypmod, 0
        union all
        select t.typbasetype, t.typtypmod, base.depth + 1
        from base join pg_type t on t.oid = base.oid and t.typtype = 'd')
      select oid, typmod from base order by depth desc limit 1) b
    where a.attrelid = r.oid and a.attnum > 0 and not a.attisdropped), '[]'),
  'partition_leaves', coalesce((select json_agg(json_build_object(
      'oid', l.oid::int8, 'namespace', l.nspname, 'name', l.relname, 'sql_name', l.sql_name, 'relkind', l.relkind,
      'persistence', l.relpersistence, 'replica_identity', l.relreplident, 'identity_columns', l.identity_columns,
      'heap_bytes', l.heap_bytes) order by l.nspname, l.relname)
    from rel l where l.root = r.oid and l.oid <> r.oid and l.relkind <> 'p'), '[]'),
  'has_children', r.has_children, 'row_security', r.relrowsecurity, 'estimated_rows', s.estimated_rows,
  'heap_bytes', s.heap_bytes, 'size_bytes', s.size_bytes, 'filenodes', s.filenodes,
  'attached', coalesce((select sum(i.xmin::text::int8)::int8 from tree x join pg_inherits i on i.inhrelid = x.oid
                        where x.root = r.oid and x.oid <> r.oid), 0),
  'attributes', coalesce((
    with recursive used(oid) as (
      select atttypid from pg_attribute where attrelid = r.oid and attnum > 0 and not attisdropped
      union
      select x.oid from used u join pg_type t on t.oid = u.oid cross join lateral (
        select t.typbasetype as oid union all select t.typelem
        union all select atttypid from pg_attribute
                  where attrelid = t.typrelid and t.typtype = 'c' and attnum > 0 and not attisdropped) x
    )
    select string_agg(format('%%s %%s %%s %%s', a.attrelid, a.attnum, a.atttypid, a.atttypmod), ','
                      order by a.attrelid, a.attnum)
    from used u join pg_type t on t.oid = u.oid and t.typtype = 'c'
      join pg_attribute a on a.attrelid = t.typrelid and a.attnum > 0 and not a.attisdropped), ''),
  'labels', coalesce((
    with recursive used(oid) as (
      select atttypid from pg_attribute where attrelid = r.oid and attnum > 0 and not attisdropped
      union
      select x.oid from used u join pg_type t on t.oid = u.oid cross join lateral (
        select t.typbasetype as oid union all select t.typelem
        union all select rngsubtype from pg_range where t.oid in (rngtypid, rngmultitypid)
        union all select atttypid from pg_attribute
                  where attrelid = t.typrelid and t.typtype = 'c' and attnum > 0 and not attisdropped) x
    )
    select string_agg(e.labels, ',' order by e.oid)
    from (select enumtypid as oid, string_agg(left(md5(enumlabel), 16), '' order by oid) as labels
          from pg_enum where enumtypid in (select oid from used) group by enumtypid) e), ''),
  'refuses_updates', coalesce((select min(a.attname) from pg_attribute a
    where a.attrelid = r.oid and r.relreplident = 'f' and a.attgenerated <> '' and not a.attisdropped
      and current_setting('server_version_num')::int >= 180000), ''),
  'altered', (select sum(xmin::text::int8)::int8 from pg_attribute where attrelid = r.oid and attnum > 0))::text
from rel r join size s on s.root = r.oid
where r.oid = r.root
order by r.nspname, r.relname
"""

_decoder = msgspec.json.Decoder(TableInfo)


def tables_info(connection: Connection, oids: Sequence[int]) -> list[TableInfo]:
    """Descriptions of these tables in one query, by qualified name; tables that are gone are missing from it."""
    return [_decoder.decode(text) for (text,) in connection.execute(_TABLES, [list(oids)])]


def table_info(connection: Connection, oid: int) -> TableInfo | None:
    """The description of one table, None when it is gone (or is no table)."""
    found = tables_info(connection, [oid])
    return found[0] if found else None
