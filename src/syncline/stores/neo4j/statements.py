"""What rows of a table become, as Cypher that people can read: for `syncline mapping show`.

Columns go by their own names here (``$title[i]``); what the store runs calls them ``$c0``, ``$c1``, ... and also asks
for versions, tombstones and stubs where it has to.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from syncline.change import TableSchema
from syncline.stores.neo4j.cypher import KEY, MARK, UNWIND, VERSION, assignments, labels_of, pattern, quote
from syncline.stores.neo4j.layout import EdgeLayout, Endpoint, NodeLayout, layout_of

__all__ = ["statements"]


def statements(schema: TableSchema) -> Iterator[str]:
    """One statement for each thing that changed rows write, and one for deleted ones.

    Raises:
        Misconfigured: the table's shape is none for a graph.
    """
    layout = layout_of(schema)
    yield from _node(layout) if isinstance(layout, NodeLayout) else _edge(layout)


def _node(layout: NodeLayout) -> Iterator[str]:
    node = f"n{_found(layout.schema, layout.key)}"
    clauses = [f"{UNWIND} MERGE ({node}) SET {_set('n', layout.schema, layout.properties)}"]
    if len(layout.labels) > 1:
        clauses.append(f"SET n{labels_of(layout.labels[1:])}")
    if layout.label_position is not None:
        clauses.append(f"// and the label that {_name(layout.schema, layout.label_position)} says")
    yield " ".join(clauses)
    for link in layout.links:
        other = f"m{_found(layout.schema, link.to)}"
        yield (
            f"{UNWIND} MATCH ({node}) MATCH ({other}) CREATE (n){link.arrow('e')}(m)"
            f" SET e.{MARK} = '{link.mark}', e.{VERSION} = $version[i]"
        )
    yield f"{UNWIND} MATCH ({node}) DETACH DELETE n"


def _edge(layout: EdgeLayout) -> Iterator[str]:
    start, end = f"a{_found(layout.schema, layout.start)}", f"b{_found(layout.schema, layout.end)}"
    for kind in layout.types:
        yield (
            f"{UNWIND} MATCH ({start}) MATCH ({end}) CREATE (a)-[e:{quote(kind)}]->(b)"
            f" SET {_set('e', layout.schema, layout.properties, [f'e.{KEY} = $key[i]'])}"
        )
        yield f"MATCH (a)-[e:{quote(kind)}]->(b) WHERE e.{KEY} IN $keys DELETE e"


def _name(schema: TableSchema, position: int) -> str:
    return schema.columns[position].name


def _given(schema: TableSchema, position: int) -> str:
    return f"${_name(schema, position)}[i]"


def _found(schema: TableSchema, node: Endpoint) -> str:
    return f"{node.match} {pattern(node.key, [_given(schema, i) for i in node.positions])}"


def _set(variable: str, schema: TableSchema, positions: Iterable[int], more: Iterable[str] = ()) -> str:
    places = list(positions)
    own = assignments(variable, [_name(schema, i) for i in places], [_given(schema, i) for i in places])
    return ", ".join([*([own] if own else []), *more, f"{variable}.{VERSION} = $version[i]"])
