"""What mappings want to know of captured tables besides their columns: their foreign keys."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import psycopg

from syncline.capture.schema import table_schema
from syncline.capture.tables import TableInfo
from syncline.mapping import Facts, ForeignKey

__all__ = ["table_facts"]

_FOREIGN_KEYS = """
select k.conrelid::int8, k.confrelid::int8,
  (select array_agg(a.attname::text order by u.n) from unnest(k.conkey) with ordinality u(attnum, n)
     join pg_attribute a on a.attrelid = k.conrelid and a.attnum = u.attnum),
  (select array_agg(a.attname::text order by u.n) from unnest(k.confkey) with ordinality u(attnum, n)
     join pg_attribute a on a.attrelid = k.confrelid and a.attnum = u.attnum)
from pg_constraint k
where k.contype = 'f' and k.conrelid = any(%s) and k.confrelid = any(%s)
order by k.conrelid, k.conname
"""


def table_facts(connection: psycopg.Connection[Any], tables: Sequence[TableInfo]) -> dict[str, Facts]:
    """The tables by name (``namespace.name``), with their foreign keys to one another."""
    names = {info.oid: info.qualified for info in tables}
    found: dict[int, list[ForeignKey]] = {}
    for table, to, columns, key in connection.execute(_FOREIGN_KEYS, [list(names), list(names)]):
        found.setdefault(table, []).append(ForeignKey(tuple(columns), names[to], tuple(key)))
    return {info.qualified: Facts(table_schema(info), tuple(found.get(info.oid, ()))) for info in tables}
