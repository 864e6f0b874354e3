"""What the source's catalogue says about its tables: which ones are captured, and what each looks like *now*.

The catalogue is now and the WAL is then (correctness rule 20): a :class:`TableInfo` describes the present table, and a
stream that replays older changes must take the columns from its RELATION messages and only their meaning from here.

Nothing in this module waits for a table lock: sizes of tables that someone holds or awaits exclusively come from the
statistics instead of from the file, so that a running ALTER TABLE can't stall the stream or the preflight.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import psycopg
import xxhash

from syncline.change import Column, TableSchema
from syncline.errors import SCHEMA_DRIFT, Gap, Misconfigured
from syncline.pgvalues.pgtypes import logical_type

__all__ = [
    "CatalogColumn",
    "Leaf",
    "Matching",
    "Relation",
    "TableInfo",
    "TablePattern",
    "catalogue_mark",
    "identity_problem",
    "key_columns",
    "matching",
    "matching_tables",
    "only_lost_columns",
    "parse_pattern",
    "relations",
    "reshaped",
    "table_info",
    "table_schema",
    "tables_info",
    "usable_identity",
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
    of its columns, are replaced. ``labels`` are those of the enums in its columns, 4 digits each in the order in which
    they came; ``refuses_updates`` names a generated column for which PostgreSQL 18 refuses updates and deletes under
    FULL once the table is published; ``published`` is what the publication's catalogue has of it (see
    :func:`~syncline.capture.slot.with_publication`).
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
        and before.published == now.published
        and was > {_drawn(c) for c in now.columns}
    )


_CATALOGUE = """
select count(*), sum(a.xmin::text::int8), sum(a.attrelid::int8),
  sum(c.relfilenode::int8) filter (where c.relispartition),
  (select sum(inhrelid::int8) from pg_inherits where inhrelid >= 16384),
  (select sum(xmin::text::int8) from pg_enum),
  (select sum(xmin::text::int8) from pg_publication),
  (select sum(oid::int8) from pg_publication_rel),
  (select sum(oid::int8) from pg_publication_namespace)
from pg_class c join pg_attribute a on a.attrelid = c.oid
where c.relkind in ('r', 'p') and c.relpersistence = 'p' and c.oid >= 16384 and a.attnum > 0
  and c.relnamespace <> all(select oid from pg_namespace where nspname = any(%s))
"""


def catalogue_mark(connection: Connection, never: Sequence[str] = ()) -> tuple[Any, ...]:
    """Some numbers that change when a permanent table outside the schemas ``never`` is made, altered or dropped, or
    an enum or a publication altered."""
    row = connection.execute(_CATALOGUE, [list(never)]).fetchone()
    return tuple(row or ())


@dataclass(frozen=True, slots=True)
class Relation:
    """A relation that a pattern can meet. ``ancestors`` are the oids above a partition, the nearest first."""

    oid: int
    namespace: str
    name: str
    relkind: str
    persistence: str
    ancestors: tuple[int, ...]

    @property
    def qualified(self) -> str:
        return f"{self.namespace}.{self.name}"


@dataclass(frozen=True, slots=True)
class Matching:
    """Relations that the patterns chose, and those that they met but that can't be captured, with the reason."""

    chosen: tuple[Relation, ...]
    refused: tuple[tuple[Relation, str], ...]


@dataclass(frozen=True, slots=True)
class TablePattern:
    """A parsed entry of ``monitored_tables``. ``exact`` when it holds no wildcard."""

    text: str
    namespace: re.Pattern[str]
    name: re.Pattern[str]
    exact: bool

    def matches(self, relation: Relation) -> bool:
        return bool(self.namespace.fullmatch(relation.namespace) and self.name.fullmatch(relation.name))


# ------------------------------------------------------------------------------------------------------- patterns

_PIECE = re.compile(r'"(?:[^"]|"")+"|[^".]|\.')


def parse_pattern(text: str) -> TablePattern:
    """``schema.table`` or ``table`` (of schema public), where ``*`` and ``?`` are wildcards.

    Case counts. Inside double quotes everything is literal, dots and wildcards too; ``""`` is one quote.

    Raises:
        Misconfigured: the text is empty, has a stray quote, or has more than one dot outside of quotes.
    """
    pieces = _PIECE.findall(text)
    if not text or "".join(pieces) != text or pieces.count(".") > 1:
        raise _bad_pattern(text)
    if "." in pieces:
        dot = pieces.index(".")
        schema, table = pieces[:dot], pieces[dot + 1 :]
    else:
        schema, table = ["public"], pieces
    if not schema or not table:
        raise _bad_pattern(text)
    exact = "*" not in pieces and "?" not in pieces
    return TablePattern(text, _glob(schema), _glob(table), exact)


def _bad_pattern(text: str) -> Misconfigured:
    return Misconfigured(
        f"{text!r} is not a table name or pattern.",
        remedy='Write schema.table, with * and ? as wildcards; names that hold dots or quotes as "odd.schema"."table".',
    )


def _glob(pieces: Iterable[str]) -> re.Pattern[str]:
    wild = {"*": ".*", "?": "."}
    literal = (p[1:-1].replace('""', '"') if len(p) > 1 and p[0] == '"' else p for p in pieces)
    return re.compile("".join(wild.get(p) or re.escape(q) for p, q in zip(pieces, literal, strict=True)), re.DOTALL)


# ------------------------------------------------------------------------------------------------------ selection

_RELATIONS = """
with recursive up(oid, parent, depth) as (
  select inhrelid, inhparent, 1 from pg_inherits join pg_class on pg_class.oid = inhrelid where relispartition
  union all
  select up.oid, i.inhparent, up.depth + 1
  from up join pg_class p on p.oid = up.parent and p.relispartition join pg_inherits i on i.inhrelid = p.oid
)
select c.oid::int8, n.nspname, c.relname, c.relkind::text, c.relpersistence::text,
       coalesce((select array_agg(up.parent::int8 order by up.depth) from up where up.oid = c.oid), '{}')
from pg_class c join pg_namespace n on n.oid = c.relnamespace
where c.relkind in ('r', 'p', 'v', 'm', 'f') and c.relpersistence <> 't'
  and n.nspname not like 'pg\\_%%' and n.nspname <> 'information_schema' and n.nspname <> all(%s::text[])
order by n.nspname, c.relname
"""

_REFUSED_KINDS = {
    "v": "a view has no changes of its own; name the tables below it",
    "m": "a materialized view has no changes of its own; name the tables below it",
    "f": "a foreign table's changes are not in this server's WAL; capture it at its own server",
}


def relations(connection: Connection, never: Sequence[str] = ()) -> list[Relation]:
    """Every permanent or unlogged table, view and foreign table outside the system's schemas and ``never``."""
    rows = connection.execute(_RELATIONS, [list(never)]).fetchall()
    return [Relation(oid, ns, name, kind, kept, tuple(up)) for oid, ns, name, kind, kept, up in rows]


def matching(found: Sequence[Relation], monitored: Sequence[str], excluded: Sequence[str]) -> Matching:
    """Which of the relations the patterns choose.

    A partitioned table stands for its partitions, as ``publish_via_partition_root`` publishes them. A partition is
    chosen only when it is named without wildcards and no table above it is chosen.

    Raises:
        Misconfigured: a pattern can't be read.
    """
    wanted = [parse_pattern(p) for p in monitored]
    unwanted = [parse_pattern(p) for p in excluded]
    met = [r for r in found if any(p.matches(r) for p in wanted) and not any(p.matches(r) for p in unwanted)]
    named = {r.oid for r in met if any(p.exact and p.matches(r) for p in wanted)}
    candidates = {r.oid for r in met if _refusal(r) is None and (not r.ancestors or r.oid in named)}
    names = {r.oid: r.qualified for r in found}
    chosen, refused = [], []
    for relation in met:
        reason = _refusal(relation)
        covered = not candidates.isdisjoint(relation.ancestors)
        if reason is None and not covered and relation.oid not in candidates:
            root = names.get(relation.ancestors[-1], "another table")
            reason = f"it is a partition of {root}; name that table, or this one without wildcards"
        if reason is not None:
            refused.append((relation, reason))
        elif not covered:
            chosen.append(relation)
    return Matching(tuple(chosen), tuple(refused))


def _refusal(relation: Relation) -> str | None:
    if relation.persistence == "u":
        return "an unlogged table is never written to the WAL"
    return _REFUSED_KINDS.get(relation.relkind)


def matching_tables(
    connection: Connection, monitored: Sequence[str], excluded: Sequence[str] = (), never: Sequence[str] = ()
) -> list[TableInfo]:
    """The tables to capture, by qualified name. ``never`` names schemas that are left out whatever the patterns say.

    :func:`matching` says what was met and left out.

    Raises:
        Misconfigured: a pattern can't be read.
        psycopg.Error: as the connection raises it; translate with :func:`syncline.capture.source.translated`.
    """
    chosen = matching(relations(connection, never), monitored, excluded).chosen
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
    from (select enumtypid as oid, string_agg(left(md5(enumlabel), 4), '' order by oid) as labels
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


def key_columns(info: TableInfo) -> tuple[str, ...]:
    """The columns that name a row at every target, in the order of their index.

    The index of the replica identity where that is chosen, else the primary key. Empty when there is neither.
    """
    return info.identity_columns if info.replica_identity == "i" else info.primary_key


def table_schema(info: TableInfo, column_names: Sequence[str] | None = None) -> TableSchema:
    """The schema of batches of this table, with these columns in this order (as a RELATION message has them).

    Without names: all columns that pgoutput publishes unasked, which are those that are not generated.

    Raises:
        Gap: the catalogue no longer has one of the columns (``SL-SCHEMA-DRIFT``).
        Misconfigured: the columns don't hold the whole key.
    """
    if column_names is None:
        column_names = [c.name for c in info.columns if not c.generated]
    key = key_columns(info)
    absent = [c for c in key if c not in column_names]
    if absent or not key:
        raise Misconfigured(
            f"Table {info.qualified} is captured without its whole key ({', '.join(absent) or 'it has none'}).",
            remedy=usable_identity(info) or "Add these columns to the column list of the publication.",
        )
    return TableSchema(info.namespace, info.name, tuple(_column(info, name, name in key) for name in column_names))


def _column(info: TableInfo, name: str, key: bool) -> Column:
    found = info.column(name)
    if found is None:
        raise Gap(
            f"Column {name} of table {info.qualified} is in the stream, but no longer in the catalogue.",
            remedy="The table has to be read again, which on_gap: resync does by itself.",
            code=SCHEMA_DRIFT,
        )
    return Column(name, logical_type(found.base_type_oid, found.base_typmod), found.type_name, key)


# ------------------------------------------------------------------------------------------------- replica identity


def usable_identity(info: TableInfo) -> str | None:
    """None when updates and deletes of the table can be told apart; else one sentence that ends with the statement
    that mends it (:func:`identity_problem` has the two apart)."""
    problem = identity_problem(info)
    return None if problem is None else ": ".join(problem)


def identity_problem(info: TableInfo) -> tuple[str, str] | None:
    """What is wrong with the table's replica identity, and the statement that mends it; None when nothing is."""
    key = key_columns(info)
    if info.replica_identity == "n":
        return "its replica identity is NOTHING, so updates and deletes name no row", _mend(info)
    if info.replica_identity == "i" and not info.identity_columns:
        return "the index of its replica identity is gone", _mend(info)
    if info.replica_identity == "f" and not key:
        return "REPLICA IDENTITY FULL without a primary key can't tell identical rows apart", _mend(info)
    if not key:
        return "it has no primary key, so updates and deletes name no row", _mend(info)
    if not info.identity_columns:
        return (
            "its primary key is deferrable (or invalid), which PostgreSQL doesn't take as replica identity",
            _identity_of_an_index(info)
            if any(c.generated for c in info.columns)
            else f"ALTER TABLE {info.sql_name} REPLICA IDENTITY FULL;",
        )
    if info.refuses_updates:
        return (
            "PostgreSQL 18 and newer refuse updates and deletes of a published table with REPLICA IDENTITY FULL and "
            f"a generated column ({info.refuses_updates})",
            _mend(info),
        )
    generated = [c.name for c in info.columns if c.name in key and c.generated]
    if generated:
        return (
            f"its key column {generated[0]} is generated and not part of what is published",
            _identity_of_an_index(info),
        )
    return _leaf_problem(info)


def _identity_of_an_index(info: TableInfo) -> str:
    return (
        "CREATE UNIQUE INDEX over plain NOT NULL columns, "
        f"then ALTER TABLE {info.sql_name} REPLICA IDENTITY USING INDEX that_index;"
    )


def _mend(info: TableInfo) -> str:
    """The statement that gives the table an identity, from what it already has."""
    if info.primary_key:
        return f"ALTER TABLE {info.sql_name} REPLICA IDENTITY DEFAULT;"
    if info.usable_index:
        return f"ALTER TABLE {info.sql_name} REPLICA IDENTITY USING INDEX {info.usable_index};"
    return f"ALTER TABLE {info.sql_name} ADD PRIMARY KEY (...);"


def _leaf_problem(info: TableInfo) -> tuple[str, str] | None:
    """A partitioned table is described to us by its root, but each old row is written as its leaf's identity says: they
    must agree, or old rows hold NULL where the root promises values."""
    for leaf in info.partition_leaves:
        if leaf.relkind == "f":
            return (
                f"its partition {leaf.sql_name} is a foreign table, whose changes are not in this server's WAL",
                f"ALTER TABLE ... DETACH PARTITION {leaf.sql_name}; or exclude the table.",
            )
        if leaf.replica_identity == info.replica_identity and set(leaf.identity_columns) == set(info.identity_columns):
            continue
        how = {"d": "DEFAULT", "f": "FULL", "i": "USING INDEX its_own_index", "n": "NOTHING"}[info.replica_identity]
        return (
            f"its partition {leaf.sql_name} has another replica identity",
            f"ALTER TABLE {leaf.sql_name} REPLICA IDENTITY {how};",
        )
    return None
