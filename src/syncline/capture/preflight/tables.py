"""The part of the preflight that looks at tables, one by one."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator
from typing import Any

from syncline.capture.identity import identity_problem
from syncline.capture.preflight.look import Look, name
from syncline.capture.tables import CatalogColumn, TableInfo
from syncline.finding import Finding, size
from syncline.patterns import parse_pattern, qualified
from syncline.pgvalues.pgtypes import logical_type

__all__ = ["check_tables"]

Identity = Callable[[TableInfo], tuple[str, str] | None]

# Names of columns that stores add beside the table's own.
RESERVED = "_syncline"


def check_tables(look: Look, identity: Identity = identity_problem) -> Iterator[Finding]:
    """Whether the patterns choose what was meant, and whether each table can be captured as it is.

    ``identity`` says what keeps its rows from being told apart; another one than the WAL's stands for a capture that
    brings whole rows.
    """
    yield from _check_patterns(look)
    yield from _check_left_out(look)
    if not look.tables:
        return
    rights = {row["oid"]: row for row in look.rows(_RIGHTS, [table.oid for table in look.tables])}
    plain = _textual_types(look)
    ready = 0
    for table in look.tables:
        findings = list(_check_table(look, table, rights.get(table.oid), plain, identity))
        yield from findings
        ready += all(finding.severity != "error" for finding in findings)
    rows, held = sum(t.estimated_rows for t in look.tables), sum(t.size_bytes for t in look.tables)
    yield Finding(
        "SL-TABLES",
        "ok" if ready else "info",
        look.where,
        f"{ready} of {len(look.tables)} table(s) can be captured (about {rows:,} rows, {size(held)} in all).",
    )


def _check_patterns(look: Look) -> Iterator[Finding]:
    met = [*look.matched.chosen, *(relation for relation, _ in look.matched.refused)]
    for text in look.config.monitored_tables:
        pattern = parse_pattern(text)
        if any(pattern.matches(relation) for relation in met):
            continue
        near = difflib.get_close_matches(qualified(text), look.known, n=3, cutoff=0.5)
        hint = f" Nearest: {', '.join(near)}." if near else ""
        yield Finding(
            "SL-NO-TABLE",
            "error" if pattern.exact or not look.matched.chosen else "warning",
            text,
            f"No table to capture is called that in {look.where}.{hint}",
            "Correct monitored_tables (or excluded_tables); names are schema.table, and case counts.",
        )


def _check_left_out(look: Look) -> Iterator[Finding]:
    """Relations that a pattern met, but that can't be captured: an error only where one was asked for by name."""
    exact = [p for p in map(parse_pattern, look.config.monitored_tables) if p.exact]
    for relation, reason in look.matched.refused:
        unlogged = relation.persistence == "u"
        asked = any(pattern.matches(relation) for pattern in exact)
        yield Finding(
            "SL-UNLOGGED" if unlogged else "SL-NOT-A-TABLE",
            "error" if asked else "warning" if unlogged else "info",
            relation.qualified,
            f"It is not captured: {reason}.",
            f"ALTER TABLE {name(relation.namespace, relation.name)} SET LOGGED; or add it to excluded_tables."
            if unlogged
            else "Take it out of monitored_tables."
            if asked
            else "",
        )


_RIGHTS = """
select c.oid::int8 as oid, has_table_privilege(c.oid, 'select') as readable, row_security_active(c.oid) as hidden,
  has_schema_privilege(c.relnamespace, 'usage') as usable,
  exists (select from pg_class t where t.oid = c.reltoastrelid and t.relpages > 0) as toasted
from pg_class c where c.oid = any(%s::oid[])
"""


def _check_table(
    look: Look, table: TableInfo, rights: dict[str, Any] | None, plain: frozenset[int], identity: Identity
) -> Iterator[Finding]:
    if rights is None:
        return  # dropped since it was listed
    problem = identity(table)
    if problem is not None:
        yield Finding("SL-IDENTITY", "error", table.qualified, f"It can't be captured: {problem[0]}.", problem[1])
    yield from _check_rights(look, table, rights)
    yield from _check_columns(table, plain, written_back=look.config.is_written_back(table.qualified))
    yield from _check_partitions(table)
    toastable = [c.name for c in table.columns if c.storage in "ex"]
    could_be_full = table.replica_identity != "f" and not any(c.generated for c in table.columns)
    if rights["toasted"] and toastable and could_be_full and identity is identity_problem:
        yield Finding(
            "SL-TOAST",
            "info",
            table.qualified,
            f"Updates that leave a large value untouched ({', '.join(toastable[:3])}) arrive without it, and are "
            "applied to the other columns only.",
            f"Only if many rows are healed: ALTER TABLE {table.sql_name} REPLICA IDENTITY FULL;",
        )
    if table.has_children:
        yield Finding(
            "SL-INHERITANCE",
            "info",
            table.qualified,
            "It has inheritance children, which are tables of their own: name them to capture them.",
        )


def _check_rights(look: Look, table: TableInfo, rights: dict[str, Any]) -> Iterator[Finding]:
    role = name(look.server.role)
    if not rights["usable"] or not rights["readable"]:
        grants = [] if rights["usable"] else [f"GRANT USAGE ON SCHEMA {name(table.namespace)} TO {role};"]
        grants += [] if rights["readable"] else [f"GRANT SELECT ON {table.sql_name} TO {role};"]
        yield Finding(
            "SL-PRIVILEGE",
            "error",
            table.qualified,
            f"Role {look.server.role} may not read it.",
            " ".join(grants),
        )
    elif rights["hidden"]:
        yield Finding(
            "SL-ROW-SECURITY",
            "error",
            table.qualified,
            f"Row security hides rows of it from role {look.server.role}; the load would fail rather than miss them.",
            f"ALTER ROLE {role} BYPASSRLS;",
        )


def _check_columns(table: TableInfo, plain: frozenset[int], *, written_back: bool) -> Iterator[Finding]:
    reserved = [c.name for c in table.columns if c.name.lower().startswith(RESERVED)]
    if reserved and not written_back:
        yield Finding(
            "SL-RESERVED",
            "error",
            table.qualified,
            f"Its column {reserved[0]} has a name that Syncline's targets use themselves.",
            f"ALTER TABLE {table.sql_name} RENAME COLUMN {name(reserved[0])} TO another_name; or exclude the table.",
        )
    generated = [c.name for c in table.columns if c.generated]
    if generated:
        yield Finding(
            "SL-GENERATED",
            "info",
            table.qualified,
            f"Generated columns are not captured: {', '.join(generated)}.",
        )
    as_text = [f"{c.name} {c.type_name}" for c in table.columns if not c.generated and _as_text(c, plain)]
    if as_text:
        yield Finding(
            "SL-AS-TEXT",
            "info",
            table.qualified,
            f"Arrive as text, as PostgreSQL prints them: {', '.join(as_text)}.",
        )


def _check_partitions(table: TableInfo) -> Iterator[Finding]:
    if table.relkind == "p":
        count = len(table.partition_leaves)
        yield Finding("SL-PARTITIONED", "info", table.qualified, f"Captured as one table, from {count} partitions.")
    for leaf in table.partition_leaves:
        if leaf.persistence == "u":
            yield Finding(
                "SL-UNLOGGED",
                "error",
                table.qualified,
                f"Its partition {leaf.sql_name} is unlogged, so changes of its rows are never captured.",
                f"ALTER TABLE {leaf.sql_name} SET LOGGED;",
            )


def _as_text(column: CatalogColumn, plain: frozenset[int]) -> bool:
    return logical_type(column.base_type_oid, column.base_typmod) == "text" and column.base_type_oid not in plain


def _textual_types(look: Look) -> frozenset[int]:
    """Types that are text anyway (strings and enums), among those of the tables."""
    oids = list({column.base_type_oid for table in look.tables for column in table.columns})
    query = "select oid::int8 as oid from pg_type where oid = any(%s::oid[]) and typcategory in ('S', 'E')"
    return frozenset(row["oid"] for row in look.rows(query, oids))
