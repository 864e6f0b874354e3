"""Writing rows of a join table as relationships, which the row's key identifies."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa

from syncline.stores.neo4j.cypher import KEY, MARK, STUB, TYPE, UNWIND, VERSION, WAITING, Parameters, assignments, quote
from syncline.stores.neo4j.database import Transaction
from syncline.stores.neo4j.layout import EdgeLayout
from syncline.stores.neo4j.nodes import CHUNK
from syncline.stores.neo4j.values import Stored, Values, key_texts, text_prefix
from syncline.stores.neo4j.waiting import match, merge_stub, stub_refs

__all__ = ["delete_edges", "edge_keys", "edge_prefix", "find_edges", "strange_edges", "write_edges"]


def edge_prefix(layout: EdgeLayout) -> str:
    """What the keys of this table's relationships begin with."""
    return text_prefix(layout.schema.qualified)


def edge_keys(layout: EdgeLayout, key: Sequence[Values]) -> pa.Array:
    """The identities of the rows of these keys."""
    return key_texts(layout.schema.qualified, key)


def find_edges(
    tx: Transaction, layout: EdgeLayout, key: Sequence[Values], keys: list[str], parameters: Parameters
) -> Iterator[str]:
    """The clauses that find the relationships ``e``, from ``a`` to ``b``, of the rows of these keys; each is found by
    one of them. ``keys`` are the identities of these rows.

    Neo4j has an index of the identities. A server that only speaks as Neo4j does reads every node to find one: there
    the ends are looked up first, if they are part of the key, and the stubs of what waits.
    """
    parameters["keys"] = keys
    known = f"e.{KEY} IN $keys"
    if not tx.compatible:
        yield from (f"MATCH (a)-[e:{quote(kind)}]->(b) WHERE {known}" for kind in (*layout.types, WAITING))
        return
    columns = layout.schema.key_positions
    if set(layout.start.positions + layout.end.positions) <= set(columns):
        start, end = (
            match(node, parameters, [key[columns.index(i)] for i in node.positions])
            for node in (layout.start, layout.end)
        )
        for kind in layout.types:
            yield f"{UNWIND} MATCH (a{start})-[e:{quote(kind)}]->(b{end}) WHERE e.{KEY} = $keys[i]"
    else:
        yield from (f"MATCH (a{layout.start.match})-[e:{quote(kind)}]->(b) WHERE {known}" for kind in layout.types)
    yield f"MATCH (a:{STUB})-[e:{WAITING}]->(b) WHERE {known}"
    yield f"MATCH (b:{STUB})<-[e:{WAITING}]-(a) WHERE {known} AND NOT a:{STUB}"


def strange_edges(layout: EdgeLayout, key: Sequence[Values], parameters: Parameters) -> Iterator[str]:
    """The clauses that find relationships ``e`` of this kind without an identity, where the ends are the key."""
    columns = layout.schema.key_positions
    if not set(layout.start.positions + layout.end.positions) <= set(columns):
        return
    start, end = (
        match(node, parameters, [key[columns.index(i)] for i in node.positions]) for node in (layout.start, layout.end)
    )
    for kind in layout.types:
        yield (
            f"{UNWIND} MATCH (a{start})-[e:{quote(kind)}]->(b{end}) WHERE e.{KEY} IS NULL AND e.{MARK} IS NULL"
            " WITH DISTINCT e"
        )


def write_edges(tx: Transaction, layout: EdgeLayout, rows: Stored) -> None:
    """Write whole rows: what was there under their keys goes, so that ends and type may change."""
    for chunk in rows.sorted(layout.schema.key_positions).chunks(CHUNK):
        key = chunk.at(layout.schema.key_positions)
        keys = edge_keys(layout, key)
        _delete(tx, layout, key, keys)
        for kind, part, texts in _by_type(layout, chunk, keys):
            missing = _create(tx, layout, kind, part, texts)
            if missing:
                _wait(tx, layout, kind, part.take(missing), [texts[i] for i in missing])


def delete_edges(tx: Transaction, layout: EdgeLayout, key: Sequence[Values]) -> None:
    """Remove the relationships of these keys."""
    _delete(tx, layout, key, edge_keys(layout, key))


def _delete(tx: Transaction, layout: EdgeLayout, key: Sequence[Values], keys: pa.Array) -> None:
    for start in range(0, len(keys), CHUNK):
        rows = pa.array(range(start, min(start + CHUNK, len(keys))), pa.int64())
        parameters = Parameters(len(rows))
        part = [values.take(rows) for values in key]
        for found in find_edges(tx, layout, part, keys.take(rows).to_pylist(), parameters):
            tx.write(f"{found} DELETE e", parameters)


def _by_type(layout: EdgeLayout, rows: Stored, keys: pa.Array) -> Iterator[tuple[str, Stored, list[str]]]:
    if layout.type_position is None:
        yield layout.types[0], rows, keys.to_pylist()
        return
    kinds = np.array(rows.columns[layout.type_position].values.to_pylist(), object)
    for kind in sorted(set(kinds)):
        chosen = np.flatnonzero(kinds == kind)
        yield kind, rows.take(chosen), keys.take(pa.array(chosen)).to_pylist()


def _properties(layout: EdgeLayout, rows: Stored, keys: list[str], parameters: Parameters) -> str:
    names = [*(layout.schema.columns[i].name for i in layout.properties), KEY, VERSION]
    values = [parameters.add(v) for v in rows.at(layout.properties)]
    values += [parameters.given(keys), parameters.given(rows.versions.to_pylist())]
    return assignments("e", names, values)


def _create(tx: Transaction, layout: EdgeLayout, kind: str, rows: Stored, keys: list[str]) -> list[int]:
    """Make the relationships; which rows could not be made, for want of an end."""
    parameters = Parameters(len(rows))
    start = match(layout.start, parameters, rows.at(layout.start.positions))
    end = match(layout.end, parameters, rows.at(layout.end.positions))
    properties = _properties(layout, rows, keys, parameters)
    made = tx.write(
        f"{UNWIND} MATCH (a{start}) MATCH (b{end}) CREATE (a)-[e:{quote(kind)}]->(b) SET {properties}", parameters
    ).relationships_created
    if made == len(rows):
        return []
    whole = tx.read(f"{UNWIND} MATCH (a{start}) MATCH (b{end}) RETURN i", parameters)
    return sorted(set(range(len(rows))) - {i for (i,) in whole})


def _wait(tx: Transaction, layout: EdgeLayout, kind: str, rows: Stored, keys: list[str]) -> None:
    """Let them wait at a stub of each end that is not there."""
    parameters = Parameters(len(rows))
    start = match(layout.start, parameters, rows.at(layout.start.positions))
    end = match(layout.end, parameters, rows.at(layout.end.positions))
    found = tx.read(
        f"{UNWIND} OPTIONAL MATCH (a{start}) OPTIONAL MATCH (b{end}) RETURN i, a IS NOT NULL, b IS NOT NULL", parameters
    )
    for ends in {(a, b) for _, a, b in found}:
        chosen = [i for i, a, b in sorted(found) if (a, b) == ends]
        part, texts = rows.take(chosen), [keys[i] for i in chosen]
        parameters = Parameters(len(part))
        clauses = []
        for variable, end_, there in zip("ab", (layout.start, layout.end), ends, strict=True):
            key = part.at(end_.positions)
            if there:
                clauses.append(f"MATCH ({variable}{match(end_, parameters, key)})")
            else:
                clauses.append(merge_stub(variable, end_, parameters, key, stub_refs(end_, key).to_pylist()))
        properties = _properties(layout, part, texts, parameters)
        tx.write(
            f"{UNWIND} {' '.join(sorted(clauses))}"  # MATCH before MERGE
            f" CREATE (a)-[e:{WAITING}]->(b) SET {properties}, e.{TYPE} = $kind",
            parameters,
            kind=kind,
        )
