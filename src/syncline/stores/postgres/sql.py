"""The SQL of the PostgreSQL store: names, bookkeeping, and the statements of one table. Pure text; nothing here runs.

A batch is a relation ``i`` with columns named by position: ``c0 c1 ...`` (the table's columns, or the key columns of
deletes and lookups), ``v`` (version), and for partials ``m`` (mask of unchanged columns) and ``f0 f1 ...`` (the key it
comes from). Columns of tables always stand behind an alias, so no name of a user can collide with these.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

from syncline.change import TableSchema
from syncline.errors import Misconfigured
from syncline.shape import Rows

__all__ = [
    "FORMAT",
    "VERSION_COLUMN",
    "Guard",
    "Incoming",
    "Statements",
    "Target",
    "bookkeeping",
    "literal",
    "place_of",
    "quote",
    "shown",
    "soft_delete_of",
]

VERSION_COLUMN = "_syncline_version"
FORMAT = 1
_MAX_NAME = 63


def quote(name: str) -> str:
    """An identifier, quoted.

    Raises:
        Misconfigured: PostgreSQL can't have such a name. A longer one it would cut, and mean another table.
    """
    if not name or "\0" in name or len(name.encode(errors="replace")) > _MAX_NAME or not name.isprintable():
        raise Misconfigured(
            f"{name.encode('ascii', 'backslashreplace').decode()[:80]} can't be a name in a PostgreSQL target.",
            remedy="Give the table or column another name with a mapping (1 to 63 bytes, printable).",
        )
    return '"' + name.replace('"', '""') + '"'


def literal(text: str) -> str:
    """A string literal, also where backslashes escape."""
    return " E'" + text.replace("\\", "\\\\").replace("'", "''") + "'"


def place_of(schema: TableSchema) -> tuple[str, str]:
    """Schema and table at the target."""
    shape = schema.shape
    return (shape.namespace, shape.name) if isinstance(shape, Rows) else (schema.namespace, schema.name)


def soft_delete_of(schema: TableSchema) -> str:
    """The column that a deletion sets instead of removing the row; empty: rows are removed."""
    return schema.shape.soft_delete if isinstance(schema.shape, Rows) else ""


def bookkeeping(own: str) -> tuple[str, ...]:
    """Statements that make our own tables in the schema ``own`` (quoted)."""
    return (
        f"create table if not exists {own}.format (version int primary key)",
        # The epoch rises with every open: whoever holds an older one writes nothing any more.
        f"create table if not exists {own}.cursors (source text primary key, epoch bigint not null, body text)",
        f"create table if not exists {own}.tables (name text primary key, number int generated always as identity,"
        " source text not null, place text[] not null unique, created bool not null, fingerprint text not null,"
        " body text not null, truncated bigint not null default 0, horizon bigint not null default 0,"
        " buried bigint not null default 0)",
        f"create table if not exists {own}.moved (name text, keys text, version bigint,"
        " primary key (name, keys, version))",
    )


def conditions(pairs: Iterable[tuple[str, str]]) -> str:
    return " and ".join(f"{a} = {b}" for a, b in pairs)


@dataclass(frozen=True, slots=True)
class Target:
    """What the statements need to know of a table at the target.

    ``number`` names its side table. ``bases`` are the types of its columns without their modifiers (behind domains),
    to which incoming text is cast: what a modifier forbids is then refused by the assignment, not cut off by a cast.
    ``unique`` are columns of ours, besides the key, in unique indexes that are checked at once; ``others`` columns
    that are not ours; ``references`` says of a row ``t`` which others refer to it.
    """

    own: str
    number: int
    schema: TableSchema
    bases: tuple[str, ...]
    unique: tuple[str, ...] = ()
    others: tuple[str, ...] = ()
    references: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Guard:
    """What decides whether a row may be written. ``sweep``: the truncation that is part of the same work, or -1."""

    truncated: int
    horizon: int
    sweep: int


@dataclass(frozen=True, slots=True)
class Incoming:
    """Parameters of a statement as a relation: names and types of the arrays, in their order."""

    columns: tuple[tuple[str, str], ...]

    @property
    def relation(self) -> str:
        arrays = ", ".join(f"${n}::{kind}[]" for n, (_, kind) in enumerate(self.columns, 1))
        return f"unnest({arrays}) as i({', '.join(name for name, _ in self.columns)})"

    def value(self, name: str, base: str) -> str:
        """An incoming value in the type that is stored."""
        sent = dict(self.columns)[name]
        return f"i.{name}" if sent == base else f"i.{name}::{base}"


@dataclass(frozen=True)
class Statements:
    """The statements of one table in one schema version."""

    target: Target

    @property
    def schema(self) -> TableSchema:
        return self.target.schema

    @cached_property
    def table(self) -> str:
        return ".".join(quote(part) for part in place_of(self.schema))

    @cached_property
    def tombstones(self) -> str:
        """The side table with the keys that were deleted: invisible where people query (correctness rule 16)."""
        return f"{self.target.own}.deleted_{self.target.number}"

    @cached_property
    def soft(self) -> str:
        name = soft_delete_of(self.schema)
        return quote(name) if name else ""

    @cached_property
    def columns(self) -> tuple[str, ...]:
        return tuple(quote(c.name) for c in self.schema.columns)

    @cached_property
    def keys(self) -> tuple[str, ...]:
        return tuple(self.columns[i] for i in self.schema.key_positions)

    @cached_property
    def key_bases(self) -> tuple[str, ...]:
        return tuple(self.target.bases[i] for i in self.schema.key_positions)

    @cached_property
    def _present(self) -> str:
        """Whether the row ``t`` is there for those who read the table."""
        return f" and t.{self.soft} is null" if self.soft else ""

    @cached_property
    def _version(self) -> str:
        return quote(VERSION_COLUMN)

    def match(self, values: Sequence[str], alias: str = "t") -> str:
        return conditions((f"{alias}.{k}", v) for k, v in zip(self.keys, values, strict=True))

    def _buried(self, values: Sequence[str], alias: str = "d") -> str:
        return conditions((f"{alias}.k{n}", v) for n, v in enumerate(values))

    def row_keys(self, given: Incoming | None) -> list[str]:
        """The key of a whole incoming row; None: of one that has the types of the table already."""
        at = self.schema.key_positions
        return [f"i.c{i}" if given is None else given.value(f"c{i}", self.target.bases[i]) for i in at]

    def lone_keys(self, given: Incoming, letter: str = "c") -> list[str]:
        """Keys that come alone, as ``c0 c1 ...`` or ``f0 f1 ...``."""
        return [given.value(f"{letter}{n}", base) for n, base in enumerate(self.key_bases)]

    # ------------------------------------------------------------------------------------------ rows that come in

    def guard(self, values: Sequence[str], guard: Guard) -> str:
        """The part of Guarantee 5 that does not look at the row itself, which the write does: tombstones, truncation
        and the horizon. Rows that the work's own truncation will remove don't count as present."""
        return (
            f"i.v >= {guard.truncated}"
            f" and not exists (select 1 from {self.tombstones} as d where {self._buried(values)} and d.version > i.v)"
            f" and (i.v >= {guard.horizon} or exists (select 1 from {self.table} as t where {self.match(values)}"
            f"{self._present} and coalesce(t.{self._version}, 0) > {guard.sweep}))"
        )

    def whole(self, given: Incoming, guard: Guard | None) -> str:
        """Whole rows in the types of the table, as a relation in parentheses."""
        values = ", ".join(f"{given.value(f'c{i}', base)} as c{i}" for i, base in enumerate(self.target.bases))
        where = f" where {self.guard(self.row_keys(given), guard)}" if guard else ""
        return f"(select {values}, i.v from {given.relation}{where})"

    def completed(self, given: Incoming, guard: Guard | None, *, moves: bool) -> str:
        """Partial rows, completed by the stored rows they come from. ``moves``: some come from another key's row; then
        ``moved`` identifies the move, old key and new."""
        values = ", ".join(
            f"case when get_bit(i.m, {i}) = 1 then b.{name} else {given.value(f'c{i}', base)} end as c{i}"
            for i, (name, base) in enumerate(zip(self.columns, self.target.bases, strict=True))
        )
        origin, row = self.lone_keys(given, "f"), self.row_keys(given)
        wanted = [self.guard(row, guard)] if guard else []
        if self.soft:
            wanted.append(f"b.{self.soft} is null")
        move = ""
        if moves:
            own = conditions(zip(origin, row, strict=True))
            texts = ", ".join(f"{key}::text" for key in (*origin, *row))
            move = f", case when not ({own}) then jsonb_build_array({texts})::text end as moved"
            done = (
                f"select 1 from {self.target.own}.moved as m where m.name = {literal(self.schema.qualified)}"
                f" and m.keys = jsonb_build_array({texts})::text and m.version = i.v"
            )
            # A row that moves takes the values once, and never from a newer row.
            wanted.append(f"(({own}) or (coalesce(b.{self._version}, 0) <= i.v and not exists ({done})))")
        where = f" where {' and '.join(wanted)}" if wanted else ""
        joined = f"{given.relation} join {self.table} as b on {self.match(origin, 'b')}"
        return f"(select {values}, i.v{move} from {joined}{where})"

    def put(self, relation: str) -> str:
        """Write rows that have the types of the table, unless a newer one stands there (Guarantee 5)."""
        names = [*self.columns, self._version, *([self.soft] if self.soft else [])]
        values = [*(f"i.c{i}" for i in range(len(self.columns))), "i.v", *(["null"] if self.soft else [])]
        changed = [n for n in names if n not in self.keys]
        return (
            f"insert into {self.table} as t ({', '.join(names)}) overriding system value"
            f" select {', '.join(values)} from {relation} as i on conflict ({', '.join(self.keys)}) do update"
            f" set {', '.join(f'{n} = excluded.{n}' for n in changed)}"
            f" where t.{self._version} is null or t.{self._version} <= excluded.{self._version}"
        )

    def keep(self, name: str, relation: str) -> str:
        """Keep a relation until the end of the transaction."""
        return f"create temp table {name} on commit drop as select * from {relation} as i"

    def record_moves(self, relation: str) -> str:
        """Remember the moves that are being made: values are taken from the old key's row once."""
        return (
            f"insert into {self.target.own}.moved select {literal(self.schema.qualified)}, i.moved, i.v"
            f" from {relation} as i where i.moved is not null on conflict do nothing"
        )

    # ------------------------------------------------------------------------------------------ unique values that move

    def movers(self, relation: str, *, acting: bool) -> str:
        """Stored rows whose unique values an incoming row of ``relation`` changes. ``acting``: foreign keys act, so
        only those that nothing refers to."""
        at = [i for i, name in enumerate(self.columns) if name in self.target.unique]
        stored, given = (
            ", ".join(parts) for parts in zip(*((f"t.{self.columns[i]}", f"i.c{i}") for i in at), strict=True)
        )
        free = "".join(f" and not {condition}" for condition in self.target.references) if acting else ""
        return (
            f"(select t.* from {self.table} as t join {relation} as i on {self.match(self.row_keys(None))}"
            f" where (t.{self._version} is null or t.{self._version} <= i.v)"
            f" and ({stored}) is distinct from ({given}){free})"
        )

    def lift(self, movers: str) -> str:
        """Take the movers out of the table."""
        return f"delete from {self.table} as t using {movers} as m where {self.match([f'm.{k}' for k in self.keys])}"

    def settle(self, relation: str, movers: str) -> str:
        """Put the movers back with their new values, and with those of columns that are not ours."""
        names = [*self.columns, self._version, *([self.soft] if self.soft else []), *self.target.others]
        values = [*(f"i.c{i}" for i in range(len(self.columns))), "i.v", *(["null"] if self.soft else [])]
        values += [f"m.{name}" for name in self.target.others]
        return (
            f"insert into {self.table} ({', '.join(names)}) overriding system value select {', '.join(values)}"
            f" from {relation} as i join {movers} as m on {self.match(self.row_keys(None), 'm')}"
        )

    # ------------------------------------------------------------------------------------------ deletes, truncation

    def delete(self, given: Incoming, truncated: int) -> str:
        """Remove rows that are not newer, and leave tombstones."""
        keys = self.lone_keys(given)
        older = f"{self.match(keys)} and (t.{self._version} is null or t.{self._version} <= i.v)"
        newer = f"select 1 from {self.table} as t where {self.match(keys)} and t.{self._version} > i.v"
        names = ", ".join(f"k{n}" for n in range(len(keys)))
        return (
            f"with i as materialized (select * from {given.relation} where i.v >= {truncated}),"
            f" gone as ({self._remove(older)})"
            f" insert into {self.tombstones} as d ({names}, version) select {', '.join(keys)}, i.v from i"
            f" where not exists ({newer}) on conflict ({names}) do update set version = excluded.version"
            " where d.version < excluded.version"
        )

    def _remove(self, where: str) -> str:
        if not self.soft:
            return f"delete from {self.table} as t using i where {where}"
        # A replay must not move the time of a deletion that is there.
        kept = f"coalesce(case when t.{self._version} = i.v then t.{self.soft} end, now())"
        return f"update {self.table} as t set {self.soft} = {kept}, {self._version} = i.v from i where {where}"

    def forget(self, given: Incoming, above: int) -> tuple[str, str]:
        """Rows of the given keys that have a version above this one lose it, and such tombstones go."""
        keys, version = self.lone_keys(given), self._version
        return (
            f"update {self.table} as t set {version} = null from {given.relation}"
            f" where {self.match(keys)} and t.{version} > {above}",
            f"delete from {self.tombstones} as d using {given.relation}"
            f" where {self._buried(keys)} and d.version > {above}",
        )

    def sweep(self, version: int, span: str = "", spared: Incoming | None = None) -> str:
        """Remove what is at or below the version, but for the keys ``spared``; a row without a version is older than
        everything."""
        older, before = f"(t.{self._version} <= {version} or t.{self._version} is null){span}", ""
        if spared is not None:
            before = f"with i as materialized (select * from {spared.relation}) "
            older += f" and not exists (select 1 from i where {self.match(self.lone_keys(spared))})"
        if self.soft:
            return f"{before}update {self.table} as t set {self.soft} = now() where t.{self.soft} is null and {older}"
        return f"{before}delete from {self.table} as t where {older}"


def shown(schema: TableSchema) -> list[str]:
    """The statements of a table as it would be made, to be shown to people."""
    bases = tuple(c.source_type or c.type for c in schema.columns)
    told = Statements(Target('"syncline_target"', 0, schema, bases))
    keys = tuple((f"c{n}", base) for n, base in enumerate(told.key_bases))
    deletes = Incoming((*keys, ("v", "int8")))
    return [told.put("changes"), told.delete(deletes, 0)]
