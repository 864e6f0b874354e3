"""Key templates: ``user:{id}`` and what it may hold, rendered whole columns at a time, and read back from keys. Pure.

One rule keeps two rows from sharing a key: where a template has several placeholders, ``%`` and the character that a
separator begins with are percent-encoded inside the values. A template with one placeholder takes values as they are.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from syncline.change import Column, TableSchema
from syncline.errors import Misconfigured

__all__ = ["Template", "overlap"]

_TOKEN = re.compile(r"\{\{|\}\}|\{([^{}]*)\}|[^{}]+")
_DIGITS = frozenset(b"-+.0123456789eE")
# What the texts of a type are made of; a type that is not here may hold anything.
_ALPHABETS = {
    "bool": frozenset(b"truefals"),
    "int2": _DIGITS,
    "int4": _DIGITS,
    "int8": _DIGITS,
    "float4": _DIGITS | frozenset(b"NaInfinity"),
    "float8": _DIGITS | frozenset(b"NaInfinity"),
    "uuid": frozenset(b"0123456789abcdef-"),
    "date": frozenset(b"0123456789- BCinfinity"),
    "time": frozenset(b"0123456789:."),
    "timestamp": frozenset(b"0123456789-:. BCinfinity"),
    "timestamptz": frozenset(b"0123456789-:.+ BCinfinity"),
}
_UNFIT = ("texts", "vector", "sparse")


@dataclass(frozen=True, slots=True)
class Template:
    """Literals (bytes) and columns (their positions in the table), in turn."""

    pieces: tuple[bytes | int, ...]

    @staticmethod
    def parse(text: str, schema: TableSchema, what: str) -> Template:
        """Read a template of one table.

        Raises:
            Misconfigured: it is malformed, or names a column that there is not or that has no single text.
        """
        positions = {c.name: i for i, c in enumerate(schema.columns)}
        pieces: list[bytes | int] = []
        place = 0
        while place < len(text):
            found = _TOKEN.match(text, place)
            if found is None:
                raise _wrong(schema, what, text, "has a brace that is neither a placeholder's nor doubled")
            place = found.end()
            if found[1] is None:
                literal = {"{{": "{", "}}": "}"}.get(found[0], found[0]).encode()
                if pieces and isinstance(pieces[-1], bytes):
                    pieces[-1] += literal
                else:
                    pieces.append(literal)
                continue
            if found[1] not in positions:
                raise _wrong(schema, what, text, f"names the column {found[1]!r}, which the table does not have")
            if schema.columns[positions[found[1]]].type in _UNFIT:
                raise _wrong(schema, what, text, f"names the column {found[1]!r}, which holds lists")
            if pieces and isinstance(pieces[-1], int):
                raise _wrong(schema, what, text, "has two placeholders with nothing between them")
            pieces.append(positions[found[1]])
        template = Template(tuple(pieces))
        if b"%" in template._stops():
            raise _wrong(schema, what, text, "has a % behind a placeholder, which could be part of a value")
        return template

    @property
    def columns(self) -> frozenset[int]:
        return frozenset(p for p in self.pieces if isinstance(p, int))

    @property
    def head(self) -> bytes:
        """The literal that it begins with."""
        return self.pieces[0] if self.pieces and isinstance(self.pieces[0], bytes) else b""

    def render(self, texts: Mapping[int, pa.Array] | Sequence[pa.Array], rows: int) -> pa.Array:
        """The key of each row (binary); null where a column in it is."""
        parts = [pa.scalar(p) if isinstance(p, bytes) else self._encoded(texts[p]) for p in self.pieces]
        if not self.columns:
            return pa.repeat(b"".join(p for p in self.pieces if isinstance(p, bytes)), rows)
        return pc.binary_join_element_wise(*parts, pa.scalar(b""))

    def read(self, keys: Sequence[bytes]) -> dict[int, list[bytes | None]]:
        """The texts of its columns in each key that it can have made, None in the others."""
        stops = self._stops()
        inside = b"[^" + b"".join(map(re.escape, stops)) + b"]*" if stops else b".*"
        pattern = re.compile(
            b"".join(re.escape(p) if isinstance(p, bytes) else b"(" + inside + b")" for p in self.pieces), re.DOTALL
        )
        found = [pattern.fullmatch(key) for key in keys]
        order = [p for p in self.pieces if isinstance(p, int)]
        return {
            column: [None if m is None else self._decoded(m[i + 1]) for m in found] for i, column in enumerate(order)
        }

    def glob(self) -> bytes:
        """A pattern of SCAN that every key of it matches."""
        return b"".join(re.sub(rb"([*?\[\]\\^-])", rb"\\\1", p) if isinstance(p, bytes) else b"*" for p in self.pieces)

    def _stops(self) -> list[bytes]:
        """The characters that separators begin with, where several placeholders need telling apart."""
        if len(self.columns) < 2:
            return []
        places = [i for i, p in enumerate(self.pieces) if isinstance(p, int)]
        between = self.pieces[places[0] : places[-1]]
        return sorted({p[:1] for p in between if isinstance(p, bytes)})

    def _encoded(self, texts: pa.Array) -> pa.Array:
        stops = self._stops()
        for stop in [b"%", *stops] if stops else []:
            texts = pc.replace_substring(texts, stop, b"%%%02X" % stop[0])
        return texts

    def _decoded(self, text: bytes) -> bytes:
        stops = self._stops()
        for stop in [*stops, b"%"] if stops else []:
            text = text.replace(b"%%%02X" % stop[0], stop)
        return text

    def alphabet(self, columns: Sequence[Column]) -> list[tuple[frozenset[int] | None, bool]]:
        """What its keys are made of: (characters, any number of them); None is every character."""
        found: list[tuple[frozenset[int] | None, bool]] = []
        for piece in self.pieces:
            if isinstance(piece, bytes):
                found += [(frozenset((character,)), False) for character in piece]
            else:
                kind = columns[piece].type
                found.append((_DIGITS if kind.startswith("numeric(") else _ALPHABETS.get(kind), True))
        return found


def overlap(one: Template, columns: Sequence[Column], other: Template, others: Sequence[Column]) -> bool:
    """Whether some key could be made by both, of tables with these columns."""
    left, right = one.alphabet(columns), other.alphabet(others)
    seen, ahead = {(0, 0)}, [(0, 0)]
    while ahead:
        i, j = ahead.pop()
        if i == len(left) and j == len(right):
            return True
        following = []
        if i < len(left) and left[i][1]:
            following.append((i + 1, j))
        if j < len(right) and right[j][1]:
            following.append((i, j + 1))
        if i < len(left) and j < len(right) and _meet(left[i][0], right[j][0]):
            following.append((i if left[i][1] else i + 1, j if right[j][1] else j + 1))
        fresh = [step for step in following if step not in seen]
        seen.update(fresh)
        ahead += fresh
    return False


def _meet(one: frozenset[int] | None, other: frozenset[int] | None) -> bool:
    return one is None or other is None or not one.isdisjoint(other)


def _wrong(schema: TableSchema, what: str, text: str, why: str) -> Misconfigured:
    return Misconfigured(
        f"The template {text!r} for {what} of table {schema.qualified} {why}.",
        remedy="Correct the table's mapping for this target.",
    )
