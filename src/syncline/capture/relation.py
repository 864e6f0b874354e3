"""From a RELATION message to a table schema: the message is *then*, the catalogue is *now* (correctness rule 20).

Names, types and order come from the message, so that replaying an old shape stays right after a later ALTER. The
catalogue only gives what cannot change under a type's oid: its name, and the base type of a domain; and, under REPLICA
IDENTITY FULL, where the message flags every column, which of them are the key.
"""

from __future__ import annotations

from typing import Any

import psycopg

from syncline.capture.identity import key_columns
from syncline.capture.messages import Relation
from syncline.capture.tables import table_info
from syncline.change import Column, TableSchema
from syncline.errors import Gap, Misconfigured
from syncline.pgvalues.pgtypes import logical_type

__all__ = ["relation_schema"]

_TYPES = """
with recursive base(n, oid, typmod, depth) as (
  select n, oid, typmod, 0 from unnest(%(oids)s::oid[], %(typmods)s::int4[]) with ordinality given(oid, typmod, n)
  union all
  select base.n, t.typbasetype, t.typtypmod, base.depth + 1
  from base join pg_type t on t.oid = base.oid and t.typtype = 'd'
)
select distinct on (b.n) format_type(g.oid, g.typmod), b.oid::int8, b.typmod
from base b join unnest(%(oids)s::oid[], %(typmods)s::int4[]) with ordinality g(oid, typmod, n) on g.n = b.n
order by b.n, b.depth desc
"""


def relation_schema(connection: psycopg.Connection[Any], relation: Relation) -> TableSchema:
    """The schema of batches of this relation.

    Raises:
        Gap: the table's key can't be told any more (dropped since, or changed under REPLICA IDENTITY FULL).
        Misconfigured: it never had a usable one.
    """
    key = _key(connection, relation)
    rows = connection.execute(
        _TYPES,
        {"oids": [c.type_oid for c in relation.columns], "typmods": [c.typmod for c in relation.columns]},
    ).fetchall()
    columns = tuple(
        Column(c.name, logical_type(base, typmod), source, c.name in key)
        for c, (source, base, typmod) in zip(relation.columns, rows, strict=True)
    )
    return TableSchema(relation.namespace, relation.name, columns)


def _key(connection: psycopg.Connection[Any], relation: Relation) -> frozenset[str]:
    table = f"{relation.namespace}.{relation.name}"
    if relation.replica_identity != "f":
        key = frozenset(c.name for c in relation.columns if c.key)
        if not key:
            raise Misconfigured(
                f"Table {table} is captured without a replica identity.",
                remedy=f"ALTER TABLE {table} ADD PRIMARY KEY (...), then `syncline resync --table {table}`.",
            )
        return key
    info = table_info(connection, relation.oid)
    key = frozenset(key_columns(info)) if info else frozenset()
    if not key or not key <= {c.name for c in relation.columns}:
        raise Gap(
            f"Table {table} has REPLICA IDENTITY FULL and its primary key can no longer be told.",
            remedy=f"Give it a primary key, then run `syncline resync --table {table}`.",
        )
    return key
