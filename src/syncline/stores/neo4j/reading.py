"""Reading rows back from nodes and relationships, in the columns of the schema.

Columns that a reference holds are read from the other end of its relationship, so that verification by content covers
relationships. What can't be a row of ours shows all the same: a row with two relationships of one reference comes
twice; one with a value of another type, or without its labels, is left out; one without a readable key comes under the
zero of its type.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from syncline.change import Column, TableSchema, arrow_type
from syncline.stores import stored_columns
from syncline.stores.neo4j.cypher import (
    KEY,
    MARK,
    STUB,
    TYPE,
    UNWIND,
    VERSION,
    WAITING,
    Parameters,
    quote,
    slot,
)
from syncline.stores.neo4j.database import Transaction
from syncline.stores.neo4j.edges import edge_keys, edge_prefix, find_edges
from syncline.stores.neo4j.layout import EdgeLayout, Endpoint, Layout, Link, NodeLayout
from syncline.stores.neo4j.values import Values, read_values, shown
from syncline.stores.neo4j.waiting import match

__all__ = ["contract_schema", "read_all", "read_keys", "waiting_rows"]

_ROWS = 10_000
_Record = list[Any]


def contract_schema(schema: TableSchema) -> pa.Schema:
    """What ``scan`` and ``fetch`` return."""
    types = [*(arrow_type(c.type) for c in schema.columns), pa.int64()]
    return pa.schema(list(zip(stored_columns(schema), types, strict=True)))


def read_all(tx: Transaction, layout: Layout) -> Iterator[pa.RecordBatch]:
    """All rows of a table."""
    parameters = Parameters(0)
    if isinstance(layout, NodeLayout):
        statement = f"MATCH (n{layout.key.match}) RETURN -1 AS i, {_node_columns(layout, parameters)}"
        for records in tx.stream(statement, parameters, _ROWS):
            yield _nodes(layout, records)[1]
        return
    parameters["prefix"] = edge_prefix(layout)
    mine = f"e.{KEY} STARTS WITH $prefix"
    for kind in layout.types:
        statement = (
            f"MATCH (a{layout.start.match})-[e:{quote(kind)}]->(b{layout.end.match})"
            f" WHERE e.{MARK} IS NULL AND (e.{KEY} IS NULL OR {mine}) RETURN -1 AS i, {_edge_columns(layout)}"
        )
        for records in tx.stream(statement, parameters, _ROWS):
            yield _edges(layout, records)[1]
    statement = f"MATCH (a)-[e:{WAITING}]->(b) WHERE {mine} RETURN -1 AS i, {_edge_columns(layout)}"
    for records in tx.stream(statement, parameters, _ROWS):
        yield _edges(layout, records)[1]


def read_keys(tx: Transaction, layout: Layout, key: Sequence[Values]) -> tuple[list[int], pa.RecordBatch]:
    """The rows of these keys, and for each which key it is."""
    parameters = Parameters(len(key[0]))
    if isinstance(layout, NodeLayout):
        found = match(layout.key, parameters, key)
        return _nodes(
            layout, tx.read(f"{UNWIND} MATCH (n{found}) RETURN i, {_node_columns(layout, parameters)}", parameters)
        )
    keys = edge_keys(layout, key).to_pylist()
    read: dict[str, list[Any]] = {}
    for clause in find_edges(tx, layout, key, keys, parameters):
        for name, *rest in tx.read(f"{clause} RETURN e.{KEY}, {_edge_columns(layout)}", parameters):
            read[name] = rest
    # A key may be asked for more than once: two rows may take values from the same one.
    return _edges(layout, [[i, *read[name]] for i, name in enumerate(keys) if name in read])


def waiting_rows(layout: Layout, columns: Sequence[str]) -> tuple[str, dict[str, Any]] | None:
    """The statement, and its parameters, that gives the keys of rows whose reference by these columns waits at a stub;
    None if the table has no such reference here."""
    names = [c.name for c in layout.schema.columns]
    wanted = {names.index(c) for c in columns}
    if isinstance(layout, NodeLayout):
        link = next((link for link in layout.links if set(link.to.positions) == wanted), None)
        if link is None:
            return None
        told = ", ".join(f"n.{quote(k)}" for k in layout.key.key)
        waiting = f"MATCH (n{layout.key.match}){link.arrow('w', WAITING)}(:{STUB})"
        of_link = f"w.{MARK} = $mark AND w.{TYPE} = $type"
        return f"{waiting} WHERE {of_link} RETURN {told}", {"mark": link.mark, "type": link.type}
    ends = (("a", layout.start), ("b", layout.end))
    variable = next((name for name, end in ends if set(end.positions) == wanted), None)
    if variable is None:
        return None
    told = ", ".join(_end(layout.schema, end, name) for name, end in ends)
    mine = f"e.{KEY} STARTS WITH $prefix AND {variable}:{STUB}"
    return f"MATCH (a)-[e:{WAITING}]->(b) WHERE {mine} RETURN {told}", {"prefix": edge_prefix(layout)}


# ------------------------------------------------------------------------------------------------ nodes


def _node_columns(layout: NodeLayout, parameters: Parameters) -> str:
    """Version and labels, then the properties, then a list for each reference."""
    columns = layout.schema.columns
    held = (*layout.schema.key_positions, *layout.properties)
    values = [shown(f"n.{quote(columns[i].name)}", columns[i]) for i in held]
    labels = "labels(n)" if len(layout.labels) > 1 or layout.allowed else "[]"
    links = [_link(layout, number, link, parameters) for number, link in enumerate(layout.links)]
    return ", ".join([f"n.{VERSION}", labels, *values, *links])


def _link(layout: NodeLayout, number: int, link: Link, parameters: Parameters) -> str:
    """The keys of the other ends of a reference's relationships: one, none, or too many."""
    parameters[f"mark{number}"], parameters[f"type{number}"] = link.mark, link.type
    columns = [layout.schema.columns[i] for i in link.to.positions]
    real = ", ".join(shown(f"m.{quote(k)}", c) for k, c in zip(link.to.key, columns, strict=True))
    slots = [link.to.by_name.index(j) for j in range(len(columns))]
    stub = ", ".join(shown(f"m.{slot(s)}", c) for s, c in zip(slots, columns, strict=True))
    mark = f"$mark{number}"
    return (
        f"[(n){link.arrow('e')}(m{link.to.match}) WHERE e.{KEY} IS NULL AND coalesce(e.{MARK}, {mark}) = {mark} |"
        f" [{real}]] + [(n){link.arrow('w', WAITING)}(m:{STUB}) WHERE w.{MARK} = {mark} AND w.{TYPE} = $type{number} |"
        f" [{stub}]]"
    )


def _nodes(layout: NodeLayout, records: list[_Record]) -> tuple[list[int], pa.RecordBatch]:
    held = (*layout.schema.key_positions, *layout.properties)
    first = 3 + len(held)
    if layout.links:
        records = [single for record in records for single in _singles(record, first)]
    if layout.allowed or len(layout.labels) > 1:
        at = layout.label_position
        records = [r for r in records if _labelled(layout, r[2], None if at is None else r[3 + held.index(at)])]
    columns: dict[int, list[Any]] = {i: [r[3 + j] for r in records] for j, i in enumerate(held)}
    for number, link in enumerate(layout.links):
        for j, i in enumerate(link.to.positions):
            if i in held:
                continue
            ends = [r[first + number] for r in records]
            values = [end[j] if end else None for end in ends]
            former = columns.get(i)
            columns[i] = (
                values if former is None else [f if f is not None else v for f, v in zip(former, values, strict=True)]
            )
    return _batch(layout.schema, [r[0] for r in records], columns, [r[1] for r in records])


def _singles(record: _Record, first: int) -> Iterator[_Record]:
    """The record once for each relationship of the reference that has most of them, at least once."""
    lists = record[first:]
    for k in range(max(1, *(len(ends) for ends in lists))):
        yield [*record[:first], *(ends[min(k, len(ends) - 1)] if ends else None for ends in lists)]


def _labelled(layout: NodeLayout, labels: list[str], wanted: str | None) -> bool:
    """Whether a node has just the labels that its row gives it, besides those of others."""
    variable = {label for label in layout.allowed if label in labels and label not in layout.labels}
    return set(layout.labels) <= set(labels) and variable == ({wanted} - {None, *layout.labels})


# ------------------------------------------------------------------------------------------------ relationships


def _edge_columns(layout: EdgeLayout) -> str:
    columns = layout.schema.columns
    values = [shown(f"e.{quote(columns[i].name)}", columns[i]) for i in layout.properties]
    ends = [_end(layout.schema, end, variable) for end, variable in ((layout.start, "a"), (layout.end, "b"))]
    return ", ".join([f"e.{VERSION}", f"coalesce(e.{TYPE}, type(e))", *ends, *values])


def _end(schema: TableSchema, end: Endpoint, variable: str) -> str:
    parts = []
    for j, (name, position) in enumerate(zip(end.key, end.positions, strict=True)):
        real, stub = f"{variable}.{quote(name)}", f"{variable}.{slot(end.by_name.index(j))}"
        parts.append(shown(f"(CASE WHEN {variable}:{STUB} THEN {stub} ELSE {real} END)", schema.columns[position]))
    return f"[{', '.join(parts)}]"


def _edges(layout: EdgeLayout, records: list[_Record]) -> tuple[list[int], pa.RecordBatch]:
    columns: dict[int, list[Any]] = {}
    for place, end in ((3, layout.start), (4, layout.end)):
        for j, i in enumerate(end.positions):
            columns.setdefault(i, [r[place][j] for r in records])
    if layout.type_position is not None:
        columns[layout.type_position] = [r[2] for r in records]
    for j, i in enumerate(layout.properties):
        columns[i] = [r[5 + j] for r in records]
    return _batch(layout.schema, [r[0] for r in records], columns, [r[1] for r in records])


# ------------------------------------------------------------------------------------------------ batches


def _batch(
    schema: TableSchema, rows: list[int], columns: dict[int, list[Any]], versions: list[Any]
) -> tuple[list[int], pa.RecordBatch]:
    arrays: list[pa.Array] = []
    dropped = np.zeros(len(rows), np.bool_)
    for i, column in enumerate(schema.columns):
        array, bad = read_values(columns[i], column)
        if column.key:
            array = _present(array, column)
        elif bad is not None:
            dropped |= bad
        arrays.append(array)
    arrays.append(pa.array([v if type(v) is int else 0 for v in versions], pa.int64()))
    batch = pa.RecordBatch.from_arrays(arrays, schema=contract_schema(schema))
    if not dropped.any():
        return rows, batch
    kept = np.flatnonzero(~dropped)
    return [rows[i] for i in kept], batch.take(pa.array(kept))


def _present(array: pa.Array, column: Column) -> pa.Array:
    """A key without NULL: what has no key of ours is shown under the zero of its type."""
    if not array.null_count:
        return array
    kind = array.type
    if pa.types.is_temporal(kind):
        storage = pa.int32() if kind == pa.date32() else pa.int64()
        return pc.fill_null(array.view(storage), 0).view(kind)
    zero: Any = 0
    if pa.types.is_fixed_size_binary(kind):
        zero = bytes(16)
    elif pa.types.is_binary(kind):
        zero = b""
    elif pa.types.is_string(kind):
        zero = ""
    elif pa.types.is_boolean(kind):
        zero = False
    return pa.array([zero if v is None else v for v in array.to_pylist()], kind)
