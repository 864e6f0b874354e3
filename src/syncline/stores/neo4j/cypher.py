"""Cypher of the Neo4j store: names, quoting, and parameters by column. Pure text; nothing here runs.

Rows travel as columns: a statement begins with ``UNWIND range(0, $n - 1) AS i`` and reads ``$c0[i]``, ``$c1[i]``, ...
That spares a list or a map a row on both sides of the wire (decision record 0015).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from syncline.errors import Misconfigured
from syncline.stores.neo4j.values import Values

__all__ = [
    "CURSOR",
    "KEY",
    "LABEL",
    "MARK",
    "MOVED",
    "OURS",
    "REF",
    "STUB",
    "TABLE",
    "TOMBSTONE",
    "TYPE",
    "UNWIND",
    "VERSION",
    "WAITING",
    "Parameters",
    "assignments",
    "labels_of",
    "pattern",
    "quote",
    "slot",
]

# Internal labels: nothing that carries one carries a label of a table (correctness rule 16).
CURSOR, TABLE, TOMBSTONE, STUB, MOVED = (
    "_SynclineCursor",
    "_SynclineTable",
    "_SynclineTombstone",
    "_SynclineStub",
    "_SynclineMoved",
)
# The type of every relationship with a stub at one of its ends; its real type is its property TYPE.
WAITING = "_SYNCLINE_WAITING"

VERSION = "_syncline_version"
MARK = "_syncline_reference"  # on the relationships of a foreign key: which one, and at which end its row is
KEY = "_syncline_key"  # on the relationships of a join table: table and key of the row
TYPE = "_syncline_type"
REF = "_syncline_ref"  # on stubs: label and key; on tombstones: table and key
LABEL = "_syncline_label"  # on stubs
OURS = "_syncline"  # what names of ours begin with, whatever the case

UNWIND = "UNWIND range(0, $n - 1) AS i"
_LONGEST = 16_000  # Neo4j takes names of 16,383 characters


def quote(name: str) -> str:
    """A label, type or property name, quoted: the only way by which a name gets into a statement.

    Raises:
        Misconfigured: Cypher has no way to write it. Neo4j 5 reads a backslash, u and 0060 as a backtick even between
            backticks, so a name that holds a backslash and u is refused.
    """
    wrong = _wrong(name)
    if wrong:
        raise Misconfigured(
            f"The name {name[:80]!a} cannot be used in Neo4j: it {wrong}.",
            remedy="Map it to another name, or exclude the column or table.",
        )
    return "`" + name.replace("`", "``") + "`"


def _wrong(name: str) -> str:
    if not name.strip():
        return "is blank"
    if "\0" in name:
        return "holds a NUL"
    if "\\u" in name or "\\U" in name:
        return "holds \\u, which Cypher reads as an escape"
    if len(name) > _LONGEST:
        return f"is longer than {_LONGEST} characters"
    if any("\ud800" <= c <= "\udfff" for c in name):
        return "is not valid Unicode"
    return ""


class Parameters(dict[str, Any]):
    """The columns of one statement, named as they come."""

    def __init__(self, rows: int) -> None:
        super().__init__(n=rows)

    def add(self, values: Values) -> str:
        """Take a column in, and give the expression of its value in row ``i``."""
        name = self._name()
        self[name] = values.values.to_pylist()
        plain = f"${name}[i]"
        if not values.parse:
            return plain
        if values.odd is None:
            return f"{values.parse}({plain})"
        odd = self._name()
        self[odd] = values.odd.to_pylist()
        return f"coalesce({values.parse}({plain}), ${odd}[i])"

    def _name(self) -> str:
        return f"c{len(self)}"

    def given(self, values: Sequence[Any]) -> str:
        """The same for a list that needs no conversion."""
        name = self._name()
        self[name] = list(values)
        return f"${name}[i]"


def pattern(names: Iterable[str], expressions: Iterable[str]) -> str:
    """``{`a`: $c0[i], ...}``: the properties by which a node is found."""
    return "{" + ", ".join(f"{quote(n)}: {e}" for n, e in zip(names, expressions, strict=True)) + "}"


def assignments(variable: str, names: Iterable[str], expressions: Iterable[str]) -> str:
    """``n.`a` = $c0[i], ...``, where NULL removes the property."""
    return ", ".join(f"{variable}.{quote(n)} = {e}" for n, e in zip(names, expressions, strict=True))


def labels_of(labels: Iterable[str]) -> str:
    """``:`A`:`B```."""
    return "".join(f":{quote(label)}" for label in labels)


def slot(number: int) -> str:
    """The property that holds the key value of this number on stubs and tombstones."""
    return f"_syncline_k{number}"
