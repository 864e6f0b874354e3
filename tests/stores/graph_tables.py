"""Tables that become a graph, and what that graph must be: told from the rows alone, looked at by the driver alone."""

from __future__ import annotations

from collections import Counter
from typing import Any

from stores.graphs import GraphDatabase
from syncline.change import Column, TableSchema
from syncline.shape import End, Node, Reference, Relationship

__all__ = ["ADDRESS", "EVENT", "KNOWS", "LINK", "ORDER", "PERSON", "edges", "expected_edges", "nodes"]

_PERSON_END = End(("manager_id",), "Person", ("id",))

PERSON = TableSchema(
    "public",
    "person",
    (
        Column("id", "int8", "bigint", key=True),
        Column("name", "text", "text"),
        Column("manager_id", "int8", "bigint"),
    ),
    Node(("Person",), (Reference("MANAGED_BY", _PERSON_END),)),
)
ADDRESS = TableSchema(
    "public",
    "address",
    (
        Column("country", "text", "text", key=True),
        Column("code", "text", "text", key=True),
        Column("city", "text", "text"),
    ),
    Node(("Address",)),
)
_SHIPPING = End(("ship_country", "ship_code"), "Address", ("country", "code"))
_BILLING = End(("bill_code", "bill_country"), "Address", ("code", "country"))
ORDER = TableSchema(
    "shop",
    "order",
    (
        Column("number", "text", "text", key=True),
        Column("customer", "int8", "bigint"),
        Column("ship_country", "text", "text"),
        Column("ship_code", "text", "text"),
        Column("bill_country", "text", "text"),
        Column("bill_code", "text", "text"),
        Column("total", "numeric(12,2)", "numeric(12,2)"),
    ),
    Node(
        ("Order",),
        (
            Reference("PLACED", End(("customer",), "Person", ("id",)), incoming=True),
            Reference("ADDRESS", _SHIPPING),
            Reference("ADDRESS", _BILLING),
        ),
    ),
)
KNOWS = TableSchema(
    "public",
    "knows",
    (
        Column("a", "int8", "bigint", key=True),
        Column("b", "int8", "bigint", key=True),
        Column("since", "int4", "integer"),
    ),
    Relationship(End(("a",), "Person", ("id",)), End(("b",), "Person", ("id",)), "KNOWS"),
)
LINK = TableSchema(
    "public",
    "link",
    (
        Column("id", "int8", "bigint", key=True),
        Column("kind", "text", "text"),
        Column("person", "int8", "bigint"),
        Column("order", "text", "text"),
        Column("note", "text", "text"),
    ),
    Relationship(
        End(("person",), "Person", ("id",)),
        End(("order",), "Order", ("number",)),
        type_column="kind",
        allowed=("CHECKED", "PACKED"),
    ),
)
EVENT = TableSchema(
    "public",
    "event",
    (
        Column("at", "timestamptz", "timestamptz", key=True),
        Column("kind", "text", "text"),
        Column("after", "timestamptz", "timestamptz"),
    ),
    Node(("Event", "Thing"), (Reference("AFTER", End(("after",), "Event", ("at",))),), "kind", ("Alarm", "Notice")),
)

Edge = tuple[str, str, tuple[Any, ...], tuple[Any, ...]]


def expected_edges(
    people: dict[Any, tuple[Any, ...]],
    orders: dict[Any, tuple[Any, ...]],
    addresses: dict[Any, tuple[Any, ...]],
    knows: dict[Any, tuple[Any, ...]],
    links: dict[Any, tuple[Any, ...]],
) -> Counter[Edge]:
    """Type, start, end and count of every relationship that must be there: those with both ends present.

    The tables are as ``contents`` shows them: key -> (other values..., version).
    """
    found: list[Edge] = []
    for key, (_, manager, _) in people.items():
        if manager in people:
            found.append(("MANAGED_BY", "Person", (key,), (manager,)))
    for key, (customer, ship_country, ship_code, bill_country, bill_code, _, _) in orders.items():
        if customer in people:
            found.append(("PLACED", "Person", (customer,), (key,)))
        for address in ((ship_country, ship_code), (bill_country, bill_code)):
            if address in addresses:
                found.append(("ADDRESS", "Order", (key,), address))
    found += [("KNOWS", "Person", (a,), (b,)) for a, b in knows if a in people and b in people]
    for kind, person, order, _, _ in links.values():
        if person in people and order in orders:
            found.append((kind, "Person", (person,), (order,)))
    return Counter(found)


_KEYS = {"Person": ("id",), "Order": ("number",), "Address": ("country", "code")}


def edges(graph: GraphDatabase) -> Counter[Edge]:
    """What a user's query for relationships finds between nodes of the tables."""
    rows = graph.query(
        "MATCH (a)-[e]->(b) WHERE NOT type(e) STARTS WITH '_SYNCLINE' RETURN type(e), labels(a), properties(a),"
        " labels(b), properties(b)"
    )
    found: list[Edge] = []
    for kind, (start, *_), a, (end, *_), b in rows:
        found.append((kind, start, tuple(a[k] for k in _KEYS[start]), tuple(b[k] for k in _KEYS[end])))
    return Counter(found)


def nodes(graph: GraphDatabase, label: str) -> int:
    """How many nodes a user's query for a label finds."""
    return int(graph.query(f"MATCH (n:`{label}`) RETURN count(n)")[0][0])
