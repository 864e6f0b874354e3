"""Writing rows of a join table as relationships, which the row's key identifies."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa

from syncline.stores.neo4j.cypher import KEY, TYPE, UNWIND, VERSION, WAITING, Parameters, assignments, quote
from syncline.stores.neo4j.database import Transaction
from syncline.stores.neo4j.layout import EdgeLayout
from syncline.stores.neo4j.nodes import CHUNK
from syncline.stores.neo4j.values import Stored, Values, key_texts
from syncline.stores.neo4j.waiting import match, merge_stub, stub_refs

__all__ = ["delete_edges", "edge_keys", "edge_prefix", "write_edges"]


def edge_prefix(layout: EdgeLayout) -> str:
    """What the keys of this table's relationships begin with."""
    return f"{layout.schema.qualified} "


def edge_keys(layout: EdgeLayout, key: Sequence[Values]) -> pa.Array:
    """The identities of the rows of these keys."""
    return key_texts(layout.schema.qualified, key)


def write_edges(tx: Transaction, layout: EdgeLayout, rows: Stored) -> None:
    """Write whole rows: what was there under their keys goes, so that ends and type may change."""
    for chunk in rows.sorted(layout.schema.key_positions).chunks(CHUNK):
        keys = edge_keys(layout, chunk.at(layout.schema.key_positions))
        _delete(tx, layout, keys.to_pylist())
        for kind, part, texts in _by_type(layout, chunk, keys):
            missing = _create(tx, layout, kind, part, texts)
            if missing:
                _wait(tx, layout, kind, part.take(missing), [texts[i] for i in missing])


def delete_edges(tx: Transaction, layout: EdgeLayout, key: Sequence[Values]) -> None:
    """Remove the relationships of these keys."""
    _delete(tx, layout, edge_keys(layout, key).to_pylist())


def _delete(tx: Transaction, layout: EdgeLayout, keys: list[str]) -> None:
    for kind in (*layout.types, WAITING):
        for start in range(0, len(keys), CHUNK):
            part = keys[start : start + CHUNK]
            tx.write(f"UNWIND $keys AS key MATCH ()-[e:{quote(kind)} {{{KEY}: key}}]->() DELETE e", keys=part)


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
    present = tx.read(
        f"UNWIND range(0, size($keys) - 1) AS i MATCH ()-[e:{quote(kind)} {{{KEY}: $keys[i]}}]->() RETURN i", keys=keys
    )
    return sorted(set(range(len(rows))) - {i for (i,) in present})


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
