"""What the rows of one table become in the graph, worked out once from its schema. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache

from syncline.change import TableSchema
from syncline.errors import Misconfigured
from syncline.shape import End, Node, Relationship
from syncline.stores.neo4j.cypher import OURS, labels_of, quote

__all__ = ["EdgeLayout", "Endpoint", "Layout", "Link", "NodeLayout", "layout_of"]


@dataclass(frozen=True)
class Endpoint:
    """A node as rows know it: its label, the properties that are its key, and the row's columns that hold it."""

    label: str
    key: tuple[str, ...]
    positions: tuple[int, ...]

    @cached_property
    def by_name(self) -> tuple[int, ...]:
        """Places in ``key`` by name: the order of a stub's name and slots, whatever order a mapping gives."""
        return tuple(sorted(range(len(self.key)), key=lambda i: self.key[i]))

    @property
    def match(self) -> str:
        """``:`Label```, under which the key is unique."""
        return labels_of((self.label,))


@dataclass(frozen=True)
class Link:
    """A relationship that a node has because of a foreign key. ``mark`` names the reference on it, and begins with the
    end at which the row is: ``>`` at its start."""

    type: str
    to: Endpoint
    incoming: bool
    mark: str

    def arrow(self, variable: str, kind: str | None = None) -> str:
        """The pattern between the row's node and the other one; ``kind``: another type."""
        inside = f"[{variable}:{quote(kind or self.type)}]"
        return f"<-{inside}-" if self.incoming else f"-{inside}->"


@dataclass(frozen=True)
class NodeLayout:
    """Rows that are nodes. ``properties`` are the positions of columns that are properties."""

    schema: TableSchema
    labels: tuple[str, ...]
    label_position: int | None
    allowed: tuple[str, ...]
    properties: tuple[int, ...]
    links: tuple[Link, ...]

    @property
    def label(self) -> str:
        """The label under which the key is unique."""
        return self.labels[0]

    @cached_property
    def identifying(self) -> frozenset[int]:
        """Columns that are part of a key, of this node or of another one."""
        return frozenset(self.schema.key_positions).union(*(link.to.positions for link in self.links))

    @cached_property
    def key(self) -> Endpoint:
        """The node itself, as others refer to it."""
        return Endpoint(self.label, tuple(c.name for c in self.schema.key), self.schema.key_positions)


@dataclass(frozen=True)
class EdgeLayout:
    """Rows that are relationships (a join table)."""

    schema: TableSchema
    start: Endpoint
    end: Endpoint
    types: tuple[str, ...]
    type_position: int | None
    properties: tuple[int, ...]

    @cached_property
    def identifying(self) -> frozenset[int]:
        """Columns that are part of a key, of the row or of its ends."""
        return frozenset((*self.schema.key_positions, *self.start.positions, *self.end.positions))


Layout = NodeLayout | EdgeLayout


@lru_cache(maxsize=512)
def layout_of(schema: TableSchema) -> Layout:
    """The layout of a schema, with or without a shape.

    Raises:
        Misconfigured: the shape is none for a graph, or it uses a name that Cypher can't write or that is ours.
    """
    layout = _layout(schema)
    _check(layout)
    return layout


def _layout(schema: TableSchema) -> Layout:
    match schema.shape:
        case None:
            return _node(schema, Node((_label(schema),)))
        case Node() as shape:
            return _node(schema, shape)
        case Relationship() as shape:
            return _edge(schema, shape)
    raise Misconfigured(
        f"Table {schema.qualified} is mapped to what Neo4j has not ({type(schema.shape).__name__.lower()}).",
        remedy="Map it to a node or a relationship.",
    )


def _label(schema: TableSchema) -> str:
    """The label of a table without a mapping: its name, with its namespace unless that is ``public``."""
    return schema.name if schema.namespace == "public" else schema.qualified


def _node(schema: TableSchema, shape: Node) -> NodeLayout:
    names = [c.name for c in schema.columns]
    links = tuple(_link(schema, r.type, r.to, r.incoming) for r in shape.references)
    held = {p for link in links for p in link.to.positions} - set(schema.key_positions)
    return NodeLayout(
        schema,
        shape.labels,
        _position(schema, shape.label_column) if shape.label_column else None,
        shape.allowed,
        tuple(i for i in range(len(names)) if i not in held and i not in schema.key_positions),
        links,
    )


def _link(schema: TableSchema, kind: str, to: End, incoming: bool) -> Link:
    return Link(kind, _endpoint(schema, to), incoming, f"{'<' if incoming else '>'}{','.join(to.columns)}")


def _edge(schema: TableSchema, shape: Relationship) -> EdgeLayout:
    start, end = _endpoint(schema, shape.start), _endpoint(schema, shape.end)
    kind = _position(schema, shape.type_column) if shape.type_column else None
    held = {*start.positions, *end.positions, kind}
    return EdgeLayout(
        schema,
        start,
        end,
        shape.allowed if kind is not None else (shape.type,),
        kind,
        tuple(i for i in range(len(schema.columns)) if i not in held),
    )


def _endpoint(schema: TableSchema, end: End) -> Endpoint:
    return Endpoint(end.label, end.key, tuple(_position(schema, c) for c in end.columns))


def _position(schema: TableSchema, name: str) -> int:
    for i, column in enumerate(schema.columns):
        if column.name == name:
            return i
    raise Misconfigured(
        f"Table {schema.qualified} has no column {name}, which its mapping names.", remedy="Correct the mapping."
    )


def _check(layout: Layout) -> None:
    """Every name can be written, and none is ours."""
    schema = layout.schema
    if isinstance(layout, NodeLayout):
        ends = [link.to for link in layout.links]
        names = [*layout.labels, *layout.allowed, *(link.type for link in layout.links)]
        marks = [(link.mark, link.type) for link in layout.links]
        if len(set(marks)) < len(marks):
            raise Misconfigured(f"Table {schema.qualified} has the same reference twice.", remedy="Remove one.")
    else:
        ends, names = [layout.start, layout.end], list(layout.types)
    for end in ends:
        names += [end.label, *end.key]
    names += [c.name for c in schema.columns]
    for name in names:
        quote(name)
        if name.lower().startswith(OURS):
            raise Misconfigured(
                f"The name {name} of table {schema.qualified} is reserved: Syncline's own begin with {OURS}.",
                remedy="Map it to another name, or exclude it.",
            )
