"""What a mapped table becomes at a target: rows, nodes, relationships, points or keys. Frozen data, no behaviour.

A :class:`~syncline.change.TableSchema` carries the shape that the mapping gave it (none: rows under the table's own
name). Its namespace and name stay those of the source's table, which identify it everywhere in Syncline; where it
stands at the target, and under which words, is the shape's. Column names are those of the target.
"""

from __future__ import annotations

import msgspec

__all__ = [
    "Document",
    "End",
    "Hash",
    "Keys",
    "Members",
    "Node",
    "PayloadIndex",
    "Point",
    "Reference",
    "Relationship",
    "Rows",
    "Shape",
    "Vector",
]


class Rows(msgspec.Struct, frozen=True, tag_field="shape", tag="rows", omit_defaults=True):
    """Rows of the table ``namespace.name`` at the target.

    ``soft_delete`` names a timestamptz column of the target, none of the source's, that a deletion or truncation sets
    (to the time at which it is applied) instead of removing the row; empty: rows are removed. Such a row is no row of
    the copy any more: ``fetch`` and ``scan`` pass it over, and a tombstone stands for it.
    """

    namespace: str
    name: str
    soft_delete: str = ""


class End(msgspec.Struct, frozen=True):
    """One end of a relationship: the columns of this table that hold the key of a node, that node's label and the
    properties that are its key there, in the same order."""

    columns: tuple[str, ...]
    label: str
    key: tuple[str, ...]


class Reference(msgspec.Struct, frozen=True, omit_defaults=True):
    """A relationship that a node has because of a foreign key: from it to the node at ``to``, or, ``incoming``, from
    there to it. The columns of ``to`` are not properties. A key with a NULL in it refers to nothing."""

    type: str
    to: End
    incoming: bool = False


class Node(msgspec.Struct, frozen=True, tag_field="shape", tag="node", omit_defaults=True):
    """A node a row. ``labels``: the first is the one that its key is unique under. ``label_column`` holds the name of
    one more label, which must be among ``allowed`` (a row with another one is rejected; NULL: none)."""

    labels: tuple[str, ...]
    references: tuple[Reference, ...] = ()
    label_column: str = ""
    allowed: tuple[str, ...] = ()


class Relationship(msgspec.Struct, frozen=True, tag_field="shape", tag="relationship", omit_defaults=True):
    """A relationship a row (a join table), identified by the table's key. Columns of its ends are not properties.

    ``type_column`` holds the type instead of ``type``, among ``allowed``.
    """

    start: End
    end: End
    type: str = ""
    type_column: str = ""
    allowed: tuple[str, ...] = ()


class Vector(msgspec.Struct, frozen=True, omit_defaults=True):
    """A named vector of a point, from a column of type ``vector`` (``sparse``: of type ``sparse``). NULL: none.

    ``size`` is its number of dimensions (0 for sparse ones); ``distance`` is cosine, dot, euclid or manhattan.
    ``digest``: where an embedder makes it, the payload column that tells from what (model and text) it was made.
    """

    name: str
    column: str
    size: int = 0
    distance: str = "cosine"
    sparse: bool = False
    digest: str = ""


class PayloadIndex(msgspec.Struct, frozen=True):
    """An index on a payload column; ``kind`` is keyword, integer, float, bool, datetime, uuid or text."""

    column: str
    kind: str


class Point(msgspec.Struct, frozen=True, tag_field="shape", tag="point", omit_defaults=True):
    """A point a row. Columns of vectors are no payload."""

    collection: str
    vectors: tuple[Vector, ...] = ()
    indexes: tuple[PayloadIndex, ...] = ()


class Hash(msgspec.Struct, frozen=True, tag_field="shape", tag="hash", omit_defaults=True):
    """A hash under the key that ``key`` gives (``user:{id}``: columns of the table's key alone), a field a column
    (``columns``; empty: all). A NULL is a field that is not there. ``ttl_s``: 0 for ever."""

    key: str
    columns: tuple[str, ...] = ()
    ttl_s: int = 0


class Document(msgspec.Struct, frozen=True, tag_field="shape", tag="json", omit_defaults=True):
    """A string under ``key`` that holds the columns as one JSON object."""

    key: str
    columns: tuple[str, ...] = ()
    ttl_s: int = 0


class Members(msgspec.Struct, frozen=True, tag_field="shape", tag="members", omit_defaults=True):
    """A member of the sorted set ``key``, named by ``member`` (columns of the table's key) with the number in ``score``
    (NULL: not a member). ``key`` may use any column: a row that moves to another set leaves the one it was in."""

    key: str
    member: str
    score: str


class Keys(msgspec.Struct, frozen=True, tag_field="shape", tag="keys", omit_defaults=True):
    """What a row writes into a key-value store, all of it or nothing."""

    writes: tuple[Hash | Document | Members, ...]


Shape = Rows | Node | Relationship | Point | Keys
