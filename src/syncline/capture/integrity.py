"""Foreign keys as the source declares them, and the rows that break them.

PostgreSQL checks a foreign key when rows change, so a row may break one that was added NOT VALID, whose triggers were
off (``session_replication_role = replica``), or that a restore brought.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg import sql

from syncline.capture.tables import TableInfo

__all__ = ["Constraint", "asked", "constraints", "orphans", "row_filters"]

_FETCHED = 1_000  # rows of an answer at a time

# Constraints of partitions are parts of their root's. One with PERIOD is met by ranges, not by equal values.
_CONSTRAINTS = """
select k.conname, k.conrelid::int8, k.convalidated, k.confmatchtype::text, n.nspname, c.relname,
  (select array_agg(a.attname::text order by u.n) from unnest(k.conkey) with ordinality u(attnum, n)
     join pg_attribute a on a.attrelid = k.conrelid and a.attnum = u.attnum),
  (select array_agg(a.attname::text order by u.n) from unnest(k.confkey) with ordinality u(attnum, n)
     join pg_attribute a on a.attrelid = k.confrelid and a.attnum = u.attnum)
from pg_constraint k join pg_class c on c.oid = k.confrelid join pg_namespace n on n.oid = c.relnamespace
where k.contype = 'f' and k.conrelid = any(%s) and k.conparentid = 0
  and coalesce((to_jsonb(k) ->> 'conperiod')::bool, false) is false
order by k.conrelid, k.conname
"""


@dataclass(frozen=True, slots=True)
class Constraint:
    """A foreign key of ``table`` (both by ``namespace, name``). ``valid``: PostgreSQL has checked the rows that were
    there before it. ``full``: MATCH FULL, by which some columns may not be NULL alone. ``told`` are the columns by
    which people know a row of the table."""

    name: str
    table: tuple[str, str]
    columns: tuple[str, ...]
    to: tuple[str, str]
    key: tuple[str, ...]
    valid: bool
    full: bool
    told: tuple[str, ...]

    @property
    def qualified(self) -> str:
        """The table's name everywhere in Syncline."""
        return ".".join(self.table)

    @property
    def parent(self) -> str:
        """The same of the table that it refers to."""
        return ".".join(self.to)


def constraints(connection: psycopg.Connection[Any], tables: Sequence[TableInfo]) -> list[Constraint]:
    """The foreign keys of these tables, to whatever table."""
    known = {info.oid: info for info in tables}
    found = []
    for name, oid, valid, match, namespace, to, columns, key in connection.execute(_CONSTRAINTS, [list(known)]):
        info = known[oid]
        told = tuple(info.primary_key or info.identity_columns or columns)
        table = (info.namespace, info.name)
        found.append(Constraint(name, table, tuple(columns), (namespace, to), tuple(key), valid, match == "f", told))
    return found


def row_filters(connection: psycopg.Connection[Any], publication: str, oids: Sequence[int]) -> set[int]:
    """Which of these tables the publication has with a row filter."""
    found = connection.execute(
        "select r.prrelid::int8 from pg_publication_rel r join pg_publication p on p.oid = r.prpubid"
        " where p.pubname = %s and r.prrelid = any(%s) and r.prqual is not null",
        [publication, list(oids)],
    )
    return {oid for (oid,) in found}


def orphans(constraint: Constraint) -> sql.Composed:
    """The query for the rows that break a foreign key."""
    mine = [sql.Identifier("t", c) for c in constraint.columns]
    null = sql.SQL(" and ").join(sql.SQL("{} is null").format(c) for c in mine)
    given = sql.SQL(" and ").join(sql.SQL("{} is not null").format(c) for c in mine)
    match = sql.SQL(" and ").join(
        sql.SQL("p.{} = {}").format(sql.Identifier(k), c) for k, c in zip(constraint.key, mine, strict=True)
    )
    # By MATCH FULL a row with some NULLs refers to nothing that there could be.
    refers = sql.SQL("not ({})").format(null) if constraint.full else given
    return sql.SQL(
        "select {told} from {table} as t where {refers} and not exists (select from {parent} as p where {match})"
    ).format(
        told=sql.SQL(", ").join(sql.Identifier("t", c) for c in constraint.told),
        table=sql.Identifier(*constraint.table),
        refers=refers,
        parent=sql.Identifier(*constraint.to),
        match=match,
    )


def asked(
    connection: psycopg.Connection[Any], query: str | sql.Composed, timeout_s: float
) -> Iterator[tuple[Any, ...]]:
    """The rows of a query, through a cursor in a transaction that only reads: what nobody fetches is not computed.

    Raises:
        psycopg.Error: as the server refuses it, also when it takes longer than ``timeout_s``.
    """
    text = query if isinstance(query, sql.Composed) else sql.SQL(query.strip().rstrip(";"))
    with connection.transaction():
        connection.execute("set transaction isolation level repeatable read, read only")
        connection.execute("set local row_security = off")
        connection.execute(sql.SQL("set local statement_timeout = {}").format(int(timeout_s * 1000)))
        # The extended protocol, which `binary` asks for, takes one statement: another one could commit, and then write.
        connection.execute(sql.SQL("declare asked no scroll cursor for {}").format(text), binary=True)
        fetch = sql.SQL("fetch forward {} from asked").format(sql.Literal(_FETCHED))
        while rows := connection.execute(fetch).fetchall():
            yield from rows
