"""What a table's rows write into Redis, made from its schema and shape, and checked. Pure.

A row is identified by its *id*, the text of its key columns; the table's companion hash holds ``id -> entry``, and an
entry is the row's version and, where the layout needs it, a tail: the sets that the row is in now, and the columns that
no data key holds.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

from syncline.change import Column, TableSchema
from syncline.errors import Misconfigured
from syncline.shape import Document, Hash, Keys, Members
from syncline.stores.redis.template import Template, overlap

__all__ = ["DocumentWrite", "HashWrite", "Layout", "MembersWrite", "Write", "collision", "layout_of"]

_ANY = Column("", "text", "text")
_SCORES = ("int2", "int4", "int8", "float4", "float8")


@dataclass(frozen=True, slots=True)
class HashWrite:
    """A hash; ``fields`` are positions of columns. ``bare``: it holds no key column, so an empty one is no sign."""

    key: Template
    fields: tuple[int, ...]
    ttl_s: int
    bare: bool


@dataclass(frozen=True, slots=True)
class DocumentWrite:
    """A string that holds the columns at ``fields`` as one JSON object."""

    key: Template
    fields: tuple[int, ...]
    ttl_s: int


@dataclass(frozen=True, slots=True)
class MembersWrite:
    """A member of a sorted set. ``wanders``: which set depends on more than the table's key."""

    key: Template
    member: Template
    score: int
    wanders: bool


Write = HashWrite | DocumentWrite | MembersWrite


@dataclass(frozen=True, slots=True)
class Layout:
    """Everything that a row of ``schema`` writes. ``kept`` are positions of columns that only the entry holds."""

    schema: TableSchema
    id: Template
    writes: tuple[Write, ...]
    kept: tuple[int, ...]

    @property
    def tailed(self) -> bool:
        """Whether entries have a tail."""
        return bool(self.kept) or any(map(_leaves_a_trace, self.writes)) or bool(self.loose_json)

    @property
    def plain(self) -> bool:
        """Whether a partial row can be written without reading what is there: hashes that hold every column."""
        return not self.tailed and all(isinstance(w, HashWrite) for w in self.writes)

    @property
    def loose_json(self) -> tuple[int, ...]:
        """Columns of type json that stand in documents alone, where blanks around a value are lost."""
        hashed = {f for w in self.writes if isinstance(w, HashWrite) for f in w.fields}
        held = {f for w in self.writes if isinstance(w, DocumentWrite) for f in w.fields} - hashed
        return tuple(i for i in sorted(held) if self.schema.columns[i].type == "json")

    @property
    def places(self) -> tuple[tuple[str, ...], ...]:
        """Kinds and templates: two layouts with the same ones write the same keys."""
        return tuple(
            (type(w).__name__, *(_shown(t, self.schema) for t in (w.key, getattr(w, "member", w.key))))
            for w in self.writes
        )


def _leaves_a_trace(write: Write) -> bool:
    return (isinstance(write, MembersWrite) and write.wanders) or (isinstance(write, HashWrite) and write.bare)


def _shown(template: Template, schema: TableSchema) -> str:
    return "".join(repr(p) if isinstance(p, bytes) else "{" + schema.columns[p].name + "}" for p in template.pieces)


@lru_cache(maxsize=1024)
def layout_of(schema: TableSchema, own: str) -> Layout:
    """The layout of a table. ``own`` is the prefix of Syncline's own keys, which no template may reach.

    Raises:
        Misconfigured: the shape is none for Redis, or a template is wrong.
    """
    writes = tuple(_writes(schema))
    for i, write in enumerate(writes):
        _check(write, schema, own)
        for other in writes[:i]:
            if _clash(write, schema, other, schema):
                raise Misconfigured(f"Two of the keys that a row of table {schema.qualified} writes can be the same.")
    key = set(schema.key_positions)
    held = key | {f for w in writes if not isinstance(w, MembersWrite) for f in w.fields}
    kept = tuple(i for i in range(len(schema.columns)) if i not in held)
    return Layout(schema, _id_template(schema, b""), writes, kept)


def _id_template(schema: TableSchema, head: bytes) -> Template:
    pieces: list[bytes | int] = [head] if head else []
    for i, position in enumerate(schema.key_positions):
        pieces += [b":", position] if i else [position]
    return Template(tuple(pieces))


def _writes(schema: TableSchema) -> Iterator[Write]:
    if schema.shape is None:
        every = tuple(range(len(schema.columns)))
        yield HashWrite(_id_template(schema, f"{schema.qualified}:".encode()), every, 0, bare=False)
        return
    if not isinstance(schema.shape, Keys):
        raise Misconfigured(
            f"Table {schema.qualified} is mapped to {type(schema.shape).__name__.lower()}, which Redis does not have.",
            remedy="Map it to keys for this target.",
        )
    for wanted in schema.shape.writes:
        match wanted:
            case Hash():
                fields = _fields(schema, wanted.columns)
                bare = not set(fields) & set(schema.key_positions)
                yield HashWrite(Template.parse(wanted.key, schema, "a hash"), fields, wanted.ttl_s, bare)
            case Document():
                key = Template.parse(wanted.key, schema, "a document")
                yield DocumentWrite(key, _fields(schema, wanted.columns), wanted.ttl_s)
            case Members():
                yield _members(schema, wanted)


def _members(schema: TableSchema, wanted: Members) -> MembersWrite:
    key = Template.parse(wanted.key, schema, "a sorted set")
    member = Template.parse(wanted.member, schema, "a member")
    (score,) = _fields(schema, (wanted.score,))
    kind = schema.columns[score].type
    if kind not in _SCORES and not kind.startswith("numeric("):
        raise Misconfigured(
            f"Column {wanted.score} of table {schema.qualified} is {kind}, which is no score of a sorted set.",
            remedy="Map a number.",
        )
    return MembersWrite(key, member, score, wanders=not key.columns <= set(schema.key_positions))


def _fields(schema: TableSchema, names: tuple[str, ...]) -> tuple[int, ...]:
    known = {c.name: i for i, c in enumerate(schema.columns)}
    missing = [n for n in names if n not in known]
    if missing:
        raise Misconfigured(
            f"Table {schema.qualified} is mapped with the column {missing[0]!r}, which it does not have.",
            remedy="Correct the table's mapping for this target.",
        )
    return tuple(known[n] for n in names) if names else tuple(range(len(schema.columns)))


def _check(write: Write, schema: TableSchema, own: str) -> None:
    """Every key belongs to one row, and none is Syncline's own."""
    key = set(schema.key_positions)
    told, whole = write.key.columns, write.key
    if isinstance(write, MembersWrite):
        told, whole = told | write.member.columns, write.member
    if not whole.columns <= key:
        raise _refused(schema, "uses a column that is not of the table's key, so that an old key could not be found")
    if not told >= key:
        raise _refused(schema, "leaves out a column of the table's key, so that two rows could share one")
    if not write.key.head:
        raise _refused(schema, "does not begin with a text of its own, so that it could be any key")
    ours = Template((f"{own}:".encode(), 0))
    if overlap(write.key, schema.columns, ours, (_ANY,)):
        raise _refused(schema, f"can be one of Syncline's own keys, which begin with {own}:")


def _refused(schema: TableSchema, why: str) -> Misconfigured:
    return Misconfigured(
        f"A key template of table {schema.qualified} {why}.", remedy="Correct the table's mapping for this target."
    )


def collision(one: Layout, other: Layout) -> bool:
    """Whether rows of two tables could write the same key, or be the same member of one set."""
    return any(_clash(a, one.schema, b, other.schema) for a in one.writes for b in other.writes)


def _clash(a: Write, one: TableSchema, b: Write, other: TableSchema) -> bool:
    if not overlap(a.key, one.columns, b.key, other.columns):
        return False
    if isinstance(a, MembersWrite) and isinstance(b, MembersWrite):
        return overlap(a.member, one.columns, b.member, other.columns)
    return True
