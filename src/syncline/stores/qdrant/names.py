"""Names and ids in Qdrant: collections, payload fields, payload paths, and the id of a row's point. Pure.

Whatever comes from a schema goes through here before it becomes a name.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from syncline.errors import Misconfigured
from syncline.shape import Point
from syncline.stores.qdrant.points import PointId

if TYPE_CHECKING:
    from syncline.change import TableSchema

__all__ = [
    "BOOKS",
    "DELETED",
    "EXACT",
    "KEY",
    "MARKER",
    "MOVE",
    "NAMESPACE",
    "VERSION",
    "check_columns",
    "collection_of",
    "payload_path",
    "point_ids",
    "private_id",
]

# Fields of ours in a point's payload: the guard, the mark of a tombstone (and of our own notes), a tombstone's key, and
# values that Qdrant does not give back as they went in.
VERSION, DELETED, KEY, EXACT = "_syncline_version", "_syncline_deleted", "_syncline_key", "_syncline_exact"
MARKER, MOVE = "_syncline_marker", "_syncline_move"
_RESERVED = "_syncline_"

BOOKS = "syncline"

# UUIDv5 namespace of the ids of rows whose key is neither an unsigned integer nor a UUID.
NAMESPACE = uuid.UUID("6f3b6a52-5d3c-5d0e-9a43-3c1f0c6d7b1a")

_FORBIDDEN = re.compile(r'[<>:"/\\|?*~\x00-\x1f\x7f]|^\.')
_LONGEST = 255


def collection_of(schema: TableSchema) -> str:
    """The collection of a table: the shape's, else one named after the table (``public`` is left out, and characters
    that Qdrant does not take are written as ``~`` and their two hexadecimal digits).

    Raises:
        Misconfigured: the shape is no point, or its collection has a name that Qdrant does not take.
    """
    match schema.shape:
        case Point(collection=name):
            if not name or name == BOOKS or _FORBIDDEN.search(name) or len(name.encode()) > _LONGEST:
                raise Misconfigured(
                    f"Table {schema.qualified} can't be put into a collection called {name!r}.",
                    remedy=f'Choose a name without any of < > : " / \\ | ? * ~ that is not {BOOKS}.',
                )
            return name
        case None:
            return _named_after(schema)
    raise Misconfigured(
        f"Table {schema.qualified} is mapped to something that is no point.",
        remedy="Map it to `vectors` or to nothing.",
    )


def _named_after(schema: TableSchema) -> str:
    plain = schema.name if schema.namespace == "public" else f"{schema.namespace}.{schema.name}"
    name = _FORBIDDEN.sub(lambda found: f"~{ord(found[0]):02X}", plain)
    if name == BOOKS:
        name = f"public.{name}"
    if len(name.encode()) > _LONGEST:
        raise Misconfigured(
            f"Table {schema.qualified} has a name that is too long for a collection.",
            remedy="Name its collection in the mapping.",
        )
    return name


def check_columns(schema: TableSchema) -> None:
    """Payload fields are called like the columns, so these must leave ours alone.

    Raises:
        Misconfigured: one does not.
    """
    for column in schema.columns:
        if column.name.startswith(_RESERVED):
            raise Misconfigured(
                f"Column {column.name} of table {schema.qualified} has a name that Syncline uses in Qdrant.",
                remedy="Give it another name in the mapping.",
            )


def payload_path(column: str) -> str:
    """A payload field as a path, quoted if it has to be.

    Raises:
        Misconfigured: Qdrant has no way to spell it.
    """
    if re.fullmatch(r"[A-Za-z0-9_-]+", column):
        return column
    if '"' in column or "\\" in column:
        raise Misconfigured(
            f"A payload index on {column!r} can't be made: Qdrant's paths hold no quotes and backslashes.",
            remedy="Give the column another name in the mapping.",
        )
    return f'"{column}"'


def private_id(*parts: str) -> str:
    """The id of a note of ours."""
    return str(uuid.uuid5(NAMESPACE, "\0".join(("syncline", *parts))))


def point_ids(schema: TableSchema, keys: Sequence[Sequence[Any]]) -> list[PointId]:
    """The ids of rows, from the payload values of their key columns (a list a column).

    One column that holds unsigned integers or UUIDs is the id itself; anything else is the UUIDv5, in
    :data:`NAMESPACE`, of ``namespace.name``, a NUL and the key as a JSON array. So is a negative integer.
    """
    (first, *rest) = schema.key
    if not rest and first.type == "uuid":
        return list(keys[0])
    derived = _Derived(schema.qualified)
    if not rest and first.type in ("int2", "int4", "int8"):
        return [value if value >= 0 else derived((value,)) for value in keys[0]]
    return [derived(values) for values in zip(*keys, strict=True)]


class _Derived:
    def __init__(self, table: str) -> None:
        self._table = table

    def __call__(self, key: Sequence[Any]) -> str:
        values = [0.0 if v == 0 and isinstance(v, float) else v for v in key]  # -0.0 is the same key
        return str(uuid.uuid5(NAMESPACE, f"{self._table}\0{msgspec.json.encode(values).decode()}"))
