"""What of the triggers is installed at a source, and installing it. Functions over one connection."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import psycopg
from psycopg import sql

from syncline.capture.identity import key_columns
from syncline.capture.tables import TableInfo
from syncline.capture.triggers.script import (
    OPERATIONS,
    TRIGGERS,
    Captured,
    base_script,
    remove_script,
    table_script,
    wanted_comment,
)
from syncline.errors import Misconfigured

__all__ = [
    "Installed",
    "captured_tables",
    "figures",
    "install",
    "installation",
    "look",
    "remove",
    "script",
    "with_triggers",
]

Connection = psycopg.Connection[Any]

# How long a user's statement may have to wait for ours, which waits for all that write to the table.
_LOCK_TIMEOUT = "5s"

_DETAILS = """
select i.relation::int8,
  (select bool_and(typtype.kind in ('b', 'e', 'r', 'm') and not typtype.nested) from (
     with recursive base(oid) as (
       select a.atttypid union select t.typbasetype from base join pg_type t on t.oid = base.oid where t.typtype = 'd')
     select t.typtype as kind, t.typcategory = 'A' or t.oid in (114, 3802) or (t.typtype = 'b' and t.oid >= 16384)
       as nested
     from base join pg_type t on t.oid = base.oid where t.typtype <> 'd') typtype),
  a.attname::text,
  (select format('operator(%%I.%%s)', n.nspname, o.oprname)
   from pg_index x cross join lateral unnest(x.indkey::int2[], x.indclass::oid[]) k(attnum, opclass)
     join pg_opclass c on c.oid = k.opclass
     join pg_amop m on m.amopfamily = c.opcfamily and m.amopstrategy = 3 and m.amoplefttype = c.opcintype
       and m.amoprighttype = c.opcintype
     join pg_operator o on o.oid = m.amopopr join pg_namespace n on n.oid = o.oprnamespace
   where x.indrelid = a.attrelid and x.indisunique and k.attnum = a.attnum limit 1)
from unnest(%s::oid[]) i(relation) join pg_attribute a on a.attrelid = i.relation and a.attnum > 0
  and not a.attisdropped
order by 1, a.attnum
"""


def captured_tables(connection: Connection, tables: Sequence[TableInfo]) -> list[Captured]:
    """The tables as their functions have to know them."""
    found: dict[int, list[tuple[bool, str, str | None]]] = {}
    for oid, exact, name, operator in connection.execute(_DETAILS, [[t.oid for t in tables]]):
        found.setdefault(oid, []).append((exact, name, operator))
    return [_captured(info, found.get(info.oid, [])) for info in tables]


def _captured(info: TableInfo, columns: Sequence[tuple[bool, str, str | None]]) -> Captured:
    operators = {name: operator or "operator(pg_catalog.=)" for _, name, operator in columns}
    key = tuple((name, operators.get(name, "operator(pg_catalog.=)")) for name in key_columns(info))
    exact = all(exact for exact, _, _ in columns)
    return Captured(info.oid, info.namespace, info.name, key, exact, info.relkind == "p")


@dataclass(frozen=True, slots=True)
class Installed:
    """What is there for one table: ``current`` if all of it is as it should be, else ``missing`` (some trigger is) or
    ``disabled`` triggers, by the table or partition that lacks them; ``mark`` changes when somebody touches one."""

    current: bool
    missing: tuple[str, ...]
    disabled: tuple[str, ...]
    mark: str

    @property
    def words(self) -> str:
        """The same for people."""
        if self.disabled:
            return f"disabled on {', '.join(self.disabled)}"
        if self.missing:
            return f"missing on {', '.join(self.missing)}"
        return "captured" if self.current else "outdated"


_TRIGGERS = """
select w.relation::int8, c.oid::regclass::text, count(t.oid), count(t.oid) filter (where t.tgenabled = 'D'),
  coalesce(string_agg(concat_ws(':', t.oid, t.xmin, t.tgenabled::text), ' ' order by t.tgname), ''),
  obj_description(to_regproc(format('%%I.%%I', %s::text, 'capture_' || w.relation)), 'pg_proc')
from unnest(%s::oid[], %s::oid[]) w(relation, place) join pg_class c on c.oid = w.place
  left join pg_trigger t on t.tgrelid = w.place and not t.tgisinternal and t.tgname = any(%s)
    and t.tgfoid = to_regproc(format('%%I.%%I', %s::text, 'capture_' || w.relation))
group by w.relation, c.oid
"""


def look(connection: Connection, schema: str, tables: Sequence[TableInfo], *, notify: bool) -> dict[int, Installed]:
    """What is there for each table, by its oid."""
    wanted = {t.oid: wanted_comment(schema, t, notify=notify) for t in captured_tables(connection, tables)}
    places = [(t.oid, oid) for t in tables for oid in (t.oid, *(leaf.oid for leaf in t.partition_leaves))]
    names = list(TRIGGERS.values())
    arguments = [schema, [p[0] for p in places], [p[1] for p in places], names, schema]
    found: dict[int, list[tuple[Any, ...]]] = {}
    for row in connection.execute(_TRIGGERS, arguments):
        found.setdefault(row[0], []).append(row)
    return {t.oid: _installed(found.get(t.oid, []), wanted[t.oid]) for t in tables}


def _installed(rows: Sequence[tuple[Any, ...]], wanted: str) -> Installed:
    missing = tuple(place for _, place, count, _, _, _ in rows if count < len(OPERATIONS))
    disabled = tuple(place for _, place, _, off, _, _ in rows if off)
    current = bool(rows) and not missing and all(comment == wanted for *_, comment in rows)
    return Installed(current, missing, disabled, " ".join(mark for *_, mark, _ in rows))


def with_triggers(connection: Connection, schema: str, tables: Sequence[TableInfo], *, notify: bool) -> list[TableInfo]:
    """The tables with what makes them captured. It changes when somebody drops a trigger and makes it anew, or disables
    it for a while: whatever was written in between was never recorded."""
    found = look(connection, schema, tables, notify=notify)
    return [replace(t, published=found[t.oid].mark) for t in tables]


def installation(connection: Connection, schema: str) -> tuple[str, int] | None:
    """The id of what is installed, and the transaction id below which events were purged; None if nothing is."""
    there = connection.execute("select to_regclass(%s) is not null", [f'"{schema}".sync_installation']).fetchone()
    if there is None or not there[0]:
        return None
    query = sql.SQL("select id::text, purged::text::int8 from {}").format(sql.Identifier(schema, "sync_installation"))
    row = connection.execute(query).fetchone()
    return (str(row[0]), int(row[1])) if row is not None else None


def script(connection: Connection, schema: str, tables: Sequence[TableInfo], *, notify: bool) -> str:
    """All that is to be run for these tables."""
    parts = [base_script(schema, _role(connection))]
    for info, captured in zip(tables, captured_tables(connection, tables), strict=True):
        parts.append(table_script(schema, captured, _places(info), notify=notify))
    return "\n".join(parts)


def _role(connection: Connection) -> str:
    row = connection.execute("select current_user::text").fetchone()
    assert row is not None
    return str(row[0])


def _places(info: TableInfo) -> tuple[tuple[str, str], ...]:
    """The table itself, and the partitions that a statement can name."""
    return ((info.namespace, info.name), *((leaf.namespace, leaf.name) for leaf in info.partition_leaves))


def install(connection: Connection, schema: str, tables: Sequence[TableInfo], *, notify: bool) -> list[str]:
    """Install what is not there, or not as it should be; the names of the tables that were not captured until now.

    A trigger is made once no transaction that writes to its table is open, so from then on every change is recorded.
    Each table has a transaction of its own, in which others wait for its lock for no longer than some seconds.

    Raises:
        Misconfigured: our role may not. ``Unavailable``: a table stays locked.
    """
    if installation(connection, schema) is None:
        _run(connection, base_script(schema, _role(connection)), schema)
    found = look(connection, schema, tables, notify=notify)
    captured = {t.oid: t for t in captured_tables(connection, tables)}
    added = []
    for info in tables:
        state = found[info.oid]
        if not state.current:
            text = table_script(schema, captured[info.oid], _places(info), notify=notify)
            _run(connection, f"set local lock_timeout = '{_LOCK_TIMEOUT}';\n{text}", info.qualified)
            if state.missing:
                added.append(info.qualified)
    return added


_FUNCTIONS = """
select proname::text from pg_proc where pronamespace = to_regnamespace(%s) and proname like 'capture\\_%%'
"""


def remove(connection: Connection, schema: str, *, everything: bool) -> int:
    """Remove all triggers and their functions (``everything``: the schema with all events, too); of how many tables."""
    names = connection.execute(_FUNCTIONS, [sql.Identifier(schema).as_string(None)]).fetchall()
    functions = tuple(name for (name,) in names)
    _run(connection, remove_script(schema, functions, everything=everything), schema)
    return len(functions)


def figures(connection: Connection, schema: str) -> dict[str, Any]:
    """How many events there are (as the statistics know), what they take, and how far each reader is."""
    events = sql.Identifier(schema, "sync_events").as_string(None)
    row = connection.execute(
        "select greatest(reltuples, 0)::int8, pg_total_relation_size(oid) from pg_class where oid = %s::regclass",
        [events],
    ).fetchone()
    readers = connection.execute(
        sql.SQL(
            "select name, place::text::int8, extract(epoch from now() - seen_at)::int8 from {} order by name"
        ).format(sql.Identifier(schema, "sync_readers"))
    ).fetchall()
    return {
        "events": row[0] if row else 0,
        "kept_bytes": row[1] if row else 0,
        "readers": [{"name": name, "place": place, "seen_s": seen} for name, place, seen in readers],
    }


def _run(connection: Connection, text: str, what: str) -> None:
    try:
        with connection.transaction():
            connection.execute(text.encode())
    except psycopg.errors.InsufficientPrivilege as error:
        raise Misconfigured(
            f"The role may not install triggers for {what}: {error.diag.message_primary}.",
            remedy="As the owner of the tables run what `syncline triggers install --sql` prints, and set install to "
            "false.",
        ) from error
