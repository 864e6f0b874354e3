"""Which relations of the source are chosen: the patterns of ``monitored_tables``, and what they can meet."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import psycopg

from syncline.patterns import parse_pattern

__all__ = ["Candidate", "Matching", "candidates", "matching", "named_schemas"]

Connection = psycopg.Connection[Any]


@dataclass(frozen=True, slots=True)
class Candidate:
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

    chosen: tuple[Candidate, ...]
    refused: tuple[tuple[Candidate, str], ...]


def named_schemas(patterns: Iterable[str]) -> set[str]:
    """The schemas that patterns name without a wildcard."""
    return {schema for text in patterns if (schema := parse_pattern(text).schema) is not None}


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


def candidates(connection: Connection, never: Sequence[str] = ()) -> list[Candidate]:
    """Every permanent or unlogged table, view and foreign table outside the system's schemas and ``never``."""
    rows = connection.execute(_RELATIONS, [list(never)]).fetchall()
    return [Candidate(oid, ns, name, kind, kept, tuple(up)) for oid, ns, name, kind, kept, up in rows]


def matching(found: Sequence[Candidate], monitored: Sequence[str], excluded: Sequence[str]) -> Matching:
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
    eligible = {r.oid for r in met if _refusal(r) is None and (not r.ancestors or r.oid in named)}
    names = {r.oid: r.qualified for r in found}
    chosen, refused = [], []
    for relation in met:
        reason = _refusal(relation)
        covered = not eligible.isdisjoint(relation.ancestors)
        if reason is None and not covered and relation.oid not in eligible:
            root = names.get(relation.ancestors[-1], "another table")
            reason = f"it is a partition of {root}; name that table, or this one without wildcards"
        if reason is not None:
            refused.append((relation, reason))
        elif not covered:
            chosen.append(relation)
    return Matching(tuple(chosen), tuple(refused))


def _refusal(relation: Candidate) -> str | None:
    if relation.persistence == "u":
        return "an unlogged table is never written to the WAL"
    return _REFUSED_KINDS.get(relation.relkind)
