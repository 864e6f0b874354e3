"""How tables are named and chosen in settings: ``schema.table``, with ``*`` and ``?`` as wildcards."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

from syncline.errors import Misconfigured

__all__ = ["Named", "TablePattern", "parse_pattern", "qualified"]


def qualified(table: str) -> str:
    """The name with its schema, which is public where none is given, as in PostgreSQL."""
    return table if "." in table else f"public.{table}"


class Named(Protocol):
    """What has a schema and a name there: a relation, a table's schema."""

    @property
    def namespace(self) -> str: ...
    @property
    def name(self) -> str: ...


@dataclass(frozen=True, slots=True)
class TablePattern:
    """A parsed name or pattern. ``exact`` when it holds no wildcard; ``schema`` and ``table`` None where they do."""

    text: str
    namespace: re.Pattern[str]
    name: re.Pattern[str]
    exact: bool
    schema: str | None
    table: str | None

    def matches(self, relation: Named) -> bool:
        return bool(self.namespace.fullmatch(relation.namespace) and self.name.fullmatch(relation.name))


_PIECE = re.compile(r'"(?:[^"]|"")+"|[^".]|\.')


def parse_pattern(text: str) -> TablePattern:
    """``schema.table`` or ``table`` (of schema public), where ``*`` and ``?`` are wildcards.

    Case counts. Inside double quotes everything is literal, dots and wildcards too; ``""`` is one quote.

    Raises:
        Misconfigured: the text is empty, has a stray quote, or has more than one dot outside of quotes.
    """
    pieces = _PIECE.findall(text)
    if not text or "".join(pieces) != text or pieces.count(".") > 1:
        raise _bad_pattern(text)
    if "." in pieces:
        dot = pieces.index(".")
        schema, table = pieces[:dot], pieces[dot + 1 :]
    else:
        schema, table = ["public"], pieces
    if not schema or not table:
        raise _bad_pattern(text)
    exact = "*" not in pieces and "?" not in pieces
    return TablePattern(text, _glob(schema), _glob(table), exact, _plain(schema), _plain(table))


def _bad_pattern(text: str) -> Misconfigured:
    return Misconfigured(
        f"{text!r} is not a table name or pattern.",
        remedy='Write schema.table, with * and ? as wildcards; names that hold dots or quotes as "odd.schema"."table".',
    )


def _glob(pieces: Iterable[str]) -> re.Pattern[str]:
    wild = {"*": ".*", "?": "."}
    pairs = zip(pieces, _literal(pieces), strict=True)
    return re.compile("".join(wild.get(p) or re.escape(q) for p, q in pairs), re.DOTALL)


def _plain(pieces: list[str]) -> str | None:
    return None if {"*", "?"} & set(pieces) else "".join(_literal(pieces))


def _literal(pieces: Iterable[str]) -> list[str]:
    return [p[1:-1].replace('""', '"') if len(p) > 1 and p[0] == '"' else p for p in pieces]
