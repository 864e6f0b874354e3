"""The SQL of the DuckDB store: types, names, and the statements of one table. Pure text; nothing here runs.

Incoming batches are registered as views with columns named by position: ``c0 c1 ...`` (the table's columns, or the key
columns of deletes and lookups), ``v`` (version), ``n`` (position in the batch), and for partials ``u0 u1 ...`` (is
column i unchanged?) and ``f0 f1 ...`` (the key it comes from). No column name of a user can collide with these.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import pyarrow as pa

from syncline.change import Column, TableSchema, arrow_type
from syncline.digests import Chosen
from syncline.errors import Misconfigured
from syncline.shape import Rows

__all__ = [
    "BOOKKEEPING",
    "FORMAT",
    "VERSION_COLUMN",
    "Guard",
    "Statements",
    "duckdb_type",
    "literal",
    "quote",
    "soft_delete",
    "target_name",
]

VERSION_COLUMN = "_syncline_version"
FORMAT = 2

BOOKKEEPING = (
    "create schema if not exists syncline",
    "create table if not exists syncline.format (version integer)",
    "create table if not exists syncline.cursors (source varchar, body varchar)",
    "create table if not exists syncline.tables"
    " (name varchar, source varchar, fingerprint varchar, body varchar, truncated bigint, horizon bigint)",
    "create table if not exists syncline.moved (name varchar, keys varchar, version bigint)",
)

_TYPES = {
    "bool": "BOOLEAN",
    "int2": "SMALLINT",
    "int4": "INTEGER",
    "int8": "BIGINT",
    "float4": "FLOAT",
    "float8": "DOUBLE",
    "bytes": "BLOB",
    "uuid": "UUID",
    "date": "DATE",
    "time": "TIME",
    "timestamp": "TIMESTAMP",
    "timestamptz": "TIMESTAMP WITH TIME ZONE",
    "json": "VARCHAR",
    "text": "VARCHAR",
}
_INTEGERS = ("int2", "int4", "int8")
_TEMPORAL = ("date", "time", "timestamp", "timestamptz")


def quote(name: str) -> str:
    """An identifier, quoted."""
    return '"' + name.replace('"', '""') + '"'


def literal(text: str) -> str:
    """A string literal."""
    return "'" + text.replace("'", "''") + "'"


def duckdb_type(logical: str) -> str:
    """The DuckDB type of a logical type, spelled as DuckDB itself spells it.

    Raises:
        Misconfigured: it is a form that a mapping gives to other kinds of target.
    """
    if logical.startswith("numeric("):
        return "DECIMAL" + logical[7:]
    if logical not in _TYPES:
        raise Misconfigured(
            f"A DuckDB target has no columns that are `as: {logical}`.", remedy="Leave `as` out: arrays are text there."
        )
    return _TYPES[logical]


def target_name(schema: TableSchema) -> tuple[str, str]:
    """Schema and table in DuckDB: ``public`` is DuckDB's default ``main``, other namespaces keep their name."""
    namespace, name = schema.namespace, schema.name
    if isinstance(schema.shape, Rows):
        namespace, name = schema.shape.namespace, schema.shape.name
    return ("main" if namespace == "public" else namespace, name)


def soft_delete(schema: TableSchema) -> str:
    """The column that marks deleted rows, '' if they are removed."""
    return schema.shape.soft_delete if isinstance(schema.shape, Rows) else ""


def cast_text(x: str, logical: str) -> str:
    """PostgreSQL's text ``x`` as a value of the type, NULL where DuckDB has no exact one."""
    kind = duckdb_type(logical)
    value = f"try_cast({x} as {kind})"
    if logical in ("text", "json"):
        return x
    if logical.startswith("numeric("):
        scale = logical[8:-1].split(",")[1]
        plain = f"regexp_full_match({x}, '-?[0-9]+([.][0-9]+)?')"
        return f"case when {plain} and length(rtrim(split_part({x}, '.', 2), '0')) <= {scale} then {value} end"
    if logical in _INTEGERS:
        return f"case when regexp_full_match({x}, '-?[0-9]+') then {value} end"
    if logical in _TEMPORAL:
        # DuckDB writes the era behind the date and in parentheses, PostgreSQL at the end.
        return f"try_cast(regexp_replace({x}, '^(\\S+)(.*) BC$', '\\1 (BC)\\2') as {kind})"
    if logical == "bytes":
        return f"case when regexp_full_match({x}, '\\\\x([0-9a-f][0-9a-f])*') then unhex(substr({x}, 3)) end"
    if logical in ("float4", "float8"):
        return f"case when not isinf({value}) or regexp_full_match({x}, '-?Infinity') then {value} end"
    return value


def incoming(i: int, column: Column, given: pa.DataType, prefix: str = "") -> str:
    """The value of incoming column ``c<i>`` (or another name) in the type that is stored."""
    name = f"{prefix}c{i}"
    return cast_text(name, column.type) if is_text(column, given) else name


def is_text(column: Column, given: pa.DataType) -> bool:
    """Whether a batch carries this column as PostgreSQL's text instead of in its own type."""
    return bool(pa.types.is_string(given)) and arrow_type(column.type) != pa.string()


def _shown(column: Column, *, wider: bool) -> str:
    """A stored value ``t`` in the type of the contract, or as text."""
    value, kind = f"t.{quote(column.name)}", duckdb_type(column.type)
    if wider:
        narrow = f"try_cast({value} as {kind})"
        return f"case when {narrow} = {value} then {narrow}::VARCHAR else {value}::VARCHAR end"
    return f"{value}::{kind}{'::BLOB' if column.type == 'uuid' else ''}"


def _conditions(pairs: Iterable[tuple[str, str]]) -> str:
    return " and ".join(f"{a} = {b}" for a, b in pairs)


@dataclass(frozen=True, slots=True)
class Guard:
    """What decides whether a row may be written. ``sweep``: the truncation that is part of the same work, or -1."""

    truncated: int
    horizon: int
    sweep: int


@dataclass(frozen=True)
class Statements:
    """The statements of one table in one schema version.

    ``given`` are the Arrow types of the incoming table columns, ``keys`` those of keys that come alone (of deletes,
    lookups, and the ``from_key`` of partials): they decide where text has to be cast.
    """

    schema: TableSchema
    given: tuple[pa.DataType, ...] = ()
    keys: tuple[pa.DataType, ...] = ()

    @cached_property
    def target(self) -> str:
        return ".".join(quote(part) for part in target_name(self.schema))

    @cached_property
    def tombstones(self) -> str:
        """The side table with the keys that were deleted: invisible where people query (correctness rule 16)."""
        return f"syncline.{quote('deleted ' + self.schema.qualified)}"

    @cached_property
    def _keys(self) -> tuple[str, ...]:
        return tuple(quote(c.name) for c in self.schema.key)

    def _row_keys(self, prefix: str = "i.") -> list[str]:
        """The incoming key of a whole row."""
        return [incoming(i, self.schema.columns[i], self.given[i], prefix) for i in self.schema.key_positions]

    def _match(self, alias: str, keys: Sequence[str]) -> str:
        return _conditions((f"{alias}.{k}", given) for k, given in zip(self._keys, keys, strict=True))

    @cached_property
    def _insert(self) -> str:
        names = ", ".join(quote(c.name) for c in self.schema.columns)
        return f"insert into {self.target} ({names}, {quote(VERSION_COLUMN)})"

    def delete(self, view: str, *, whole: bool) -> str:
        """Delete the rows of the view's keys. ``whole``: the view holds rows, else keys alone."""
        keys = self._row_keys() if whole else self.key_values()
        return f"delete from {self.target} as t using {view} as i where {self._match('t', keys)}"

    @cached_property
    def mark(self) -> str:
        """The column that marks deleted rows, quoted; '' if they are removed."""
        return quote(soft_delete(self.schema)) if soft_delete(self.schema) else ""

    @cached_property
    def _present(self) -> str:
        """A condition on top: rows that are marked as deleted are none of the copy's."""
        return f" and {{alias}}.{self.mark} is null" if self.mark else ""

    def remove(self, view: str) -> str:
        """Delete the rows of the view's keys, or mark them."""
        if not self.mark:
            return self.delete(view, whole=False)
        matching = self._match("t", self.key_values())
        return (
            f"update {self.target} as t set {self.mark} = now(), {quote(VERSION_COLUMN)} = i.v"
            f" from (select * from {view}) as i where {matching}{self._present.format(alias='t')}"
        )

    def insert(self, view: str) -> str:
        """Insert the view's rows."""
        values = ", ".join(incoming(i, c, self.given[i]) for i, c in enumerate(self.schema.columns))
        return f"{self._insert} select {values}, v from {view}"

    def key_values(self, prefix: str = "i.c") -> list[str]:
        """Keys alone, as ``c0 c1 ...``. Text keys that have no exact value become NULL, which matches nothing."""
        return [
            cast_text(f"{prefix}{j}", c.type) if is_text(c, given) else f"{prefix}{j}"
            for j, (c, given) in enumerate(zip(self.schema.key, self.keys, strict=True))
        ]

    def bury(self, view: str) -> str:
        """Leave tombstones. One key may get several; the newest counts."""
        keys = self.key_values()
        present = " and ".join(f"{k} is not null" for k in keys)
        return f"insert into {self.tombstones} select {', '.join(keys)}, i.v from {view} as i where {present}"

    def forget(self, view: str, above: int) -> Iterator[str]:
        """Rows of the view's keys that have a version above this one lose it, and such tombstones go, and what is
        noted of the table above it."""
        version = quote(VERSION_COLUMN)
        for noted in ("truncated", "horizon"):
            yield (
                f"update syncline.tables set {noted} = 0"
                f" where name = {literal(self.schema.qualified)} and {noted} > {above}"
            )
        found = f"{self._match('t', self.key_values())} and t.{version} > {above}"
        yield f"update {self.target} as t set {version} = null from {view} as i where {found}"
        yield f"delete from {self.tombstones} as t using {view} as i where {found}"

    def guard(self, keys: Sequence[str], guard: Guard) -> str:
        """The condition under which an incoming row ``i`` may be written (Guarantee 5).

        It is asked before the work's own truncation, so rows that this will remove don't count as present.
        """
        stored, buried = self._match("t", keys), self._match("d", keys)
        version = f"t.{quote(VERSION_COLUMN)}"
        return (
            f"i.v >= {guard.truncated}"
            f" and not exists (select 1 from {self.target} as t where {stored} and {version} > i.v)"
            f" and not exists (select 1 from {self.tombstones} as d where {buried} and d.{quote(VERSION_COLUMN)} > i.v)"
            f" and (i.v >= {guard.horizon} or exists"
            f" (select 1 from {self.target} as t where {stored} and coalesce({version}, 0) > {guard.sweep}"
            f"{self._present.format(alias='t')}))"
        )

    def accepted(self, view: str, guard: Guard, *, whole: bool) -> str:
        """Positions of the view's rows that pass the guard."""
        keys = self._row_keys() if whole else self.key_values()
        return f"select n from {view} as i where {self.guard(keys, guard)} order by n"

    def complete(self, view: str, into: str, guard: Guard | None, *, moves: bool) -> str:
        """Keep the view's partial rows, completed by the stored rows they come from, in a temporary table."""
        values = ", ".join(
            f"case when i.u{i} then b.{quote(c.name)} else {incoming(i, c, self.given[i], 'i.')} end as c{i}"
            for i, c in enumerate(self.schema.columns)
        )
        version = f"b.{quote(VERSION_COLUMN)}"
        conditions = [self.guard(self._row_keys(), guard)] if guard else []
        if moves:
            own = _conditions(zip(self.key_values("i.f"), self._row_keys(), strict=True))
            moved = f"select 1 from syncline.moved as m where {self._moved('m')} and m.version = i.v"
            conditions.append(f"(({own}) or (coalesce({version}, 0) <= i.v and not exists ({moved})))")
        return (
            f"create or replace temp table {into} as select i.n, {values}, i.v, {version} as base"
            f" from {view} as i join {self.target} as b"
            f" on {self._match('b', self.key_values('i.f'))}{self._present.format(alias='b')}"
            f"{' where ' if conditions else ''}{' and '.join(conditions)}"
        )

    def _move(self) -> str:
        """The identity of a move, old key and new, as text."""
        keys = [f"{k}::varchar" for k in (*self.key_values("i.f"), *self._row_keys())]
        return f"[{', '.join(keys)}]::varchar"

    def _moved(self, alias: str) -> str:
        return f"{alias}.name = {literal(self.schema.qualified)} and {alias}.keys = {self._move()}"

    def record_moves(self, view: str, completed: str) -> str:
        """Remember the moves that are being made: values are taken from the old key's row once."""
        own = _conditions(zip(self.key_values("i.f"), self._row_keys(), strict=True))
        return (
            f"insert into syncline.moved select {literal(self.schema.qualified)}, {self._move()}, i.v"
            f" from {view} as i where not ({own}) and i.n in (select n from {completed})"
        )

    def delete_completed(self, table: str) -> str:
        keys = [f"i.c{i}" for i in self.schema.key_positions]
        return f"delete from {self.target} as t using {table} as i where {self._match('t', keys)}"

    def insert_completed(self, table: str) -> str:
        values = ", ".join(f"c{i}" for i in range(len(self.schema.columns)))
        return f"{self._insert} select {values}, v from {table}"

    def inexact(self, view: str) -> str | None:
        """Positions of rows that hold a text without an exact value in its column's type, None if there is no text."""
        tests = [
            f"(c{i} is not null and {incoming(i, c, self.given[i])} is null)"
            for i, c in enumerate(self.schema.columns)
            if is_text(c, self.given[i])
        ]
        return f"select n from {view} where {' or '.join(tests)} order by n" if tests else None

    def truncate(self, version: int) -> str:
        """Remove what is at or below the version; a row without one is older than everything."""
        column = quote(VERSION_COLUMN)
        older = f"({column} <= {version} or {column} is null)"
        if self.mark:
            return f"update {self.target} set {self.mark} = now() where {older} and {self.mark} is null"
        return f"delete from {self.target} where {older}"

    def highest(self) -> str:
        """The greatest version of any row or tombstone."""
        return (
            f"select greatest((select max({quote(VERSION_COLUMN)}) from {self.target}),"
            f" (select max({quote(VERSION_COLUMN)}) from {self.tombstones}), 0)"
        )

    def select(self, keys: str | None = None, wider: Collection[str] = ()) -> str:
        """All rows, or those of a view's keys, in the types of the contract: columns, then ``version``.

        Columns that are ``wider`` in the file than in the contract come as text, exactly as they are there.
        """
        shown = [f"{_shown(c, wider=c.name in wider)} as c{i}" for i, c in enumerate(self.schema.columns)]
        source = f"select {', '.join(shown)}, coalesce(t.{quote(VERSION_COLUMN)}, 0) as v from {self.target} as t"
        conditions = [f"t.{self.mark} is null"] if self.mark else []
        if keys is not None:
            conditions.append(f"exists (select 1 from {keys} as i where {self._match('t', self.key_values())})")
        return f"{source}{' where ' if conditions else ''}{' and '.join(conditions)}"

    def chosen(self, chosen: Chosen, wider: Collection[str] = ()) -> str:
        """As :meth:`select`, of the rows in some ranges of the key, and of those that have none.

        They are looked for by the key alone: DuckDB reads the other columns only where rows are. That a key is NULL
        stands apart from the list, which it would have DuckDB go through for each row.
        """
        key = f"{quote(self.schema.key[0].name)}::BIGINT"
        numbers = ", ".join(map(str, chosen.numbers.to_pylist())) or "null"
        there = f"select rowid from {self.target} where"
        found = f"{there} ({key} >> {chosen.buckets.shift}) in ({numbers}) union all {there} {key} is null"
        return f"{self.select(wider=wider)} {'and' if self.mark else 'where'} t.rowid in ({found})"
