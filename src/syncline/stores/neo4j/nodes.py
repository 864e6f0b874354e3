"""Writing rows as nodes: properties, labels, and the relationships of their references."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa

from syncline.stores.neo4j.cypher import (
    KEY,
    MARK,
    REF,
    STUB,
    TYPE,
    UNWIND,
    VERSION,
    WAITING,
    Parameters,
    assignments,
    labels_of,
    quote,
)
from syncline.stores.neo4j.database import Transaction
from syncline.stores.neo4j.layout import Endpoint, Link, NodeLayout
from syncline.stores.neo4j.values import Stored, Values
from syncline.stores.neo4j.waiting import detach, match, merge_stub, resolve, stub_refs

__all__ = ["CHUNK", "delete_nodes", "drop_own", "drop_references", "link_condition", "write_links", "write_nodes"]

CHUNK = 10_000  # rows a statement


def key_of(layout: NodeLayout, rows: Stored) -> list[Values]:
    """The key columns of whole rows."""
    return rows.at(layout.schema.key_positions)


def write_nodes(tx: Transaction, layout: NodeLayout, rows: Stored, *, present: bool = False) -> int:
    """Write the columns that ``rows`` carry; how many nodes are new. ``present``: only to nodes that are there.

    What waited for a new node becomes real.
    """
    created = 0
    columns = layout.schema.columns
    # A float that is a key is written with the rest: -0.0 is found under 0.0.
    floats = [i for i in layout.schema.key_positions if columns[i].type in ("float4", "float8")]
    carried = [*floats, *(i for i in layout.properties if i in rows.columns)]
    names = [*(columns[i].name for i in carried), VERSION]
    for chunk in rows.sorted(layout.schema.key_positions).chunks(CHUNK):
        for labels, part in _by_labels(layout, chunk):
            parameters = Parameters(len(part))
            found = match(layout.key, parameters, key_of(layout, part))
            if labels is not None and (len(labels) > 1 or layout.allowed):
                _relabel(tx, layout, labels, part)
                found = labels_of(labels[1:]) + found if not present else found
            values = [*(parameters.add(v) for v in part.at(carried)), parameters.given(part.versions.to_pylist())]
            verb = "MATCH" if present else "MERGE"
            counters = tx.write(f"{UNWIND} {verb} (n{found}) SET {assignments('n', names, values)}", parameters)
            created += counters.nodes_created
    if not present:
        resolve(tx, layout.key, key_of(layout, rows))
    return created


def _by_labels(layout: NodeLayout, rows: Stored) -> Iterator[tuple[tuple[str, ...] | None, Stored]]:
    """Rows with the same labels. A partial that leaves the label column alone leaves the labels alone: None."""
    if layout.label_position is None:
        yield layout.labels, rows
    elif layout.label_position not in rows.columns:
        yield None, rows
    else:
        wanted = np.array(rows.columns[layout.label_position].values.to_pylist(), object)
        for label in sorted({w for w in wanted if w is not None}):
            yield (*layout.labels, label), rows.take(wanted == label)
        bare = np.array([w is None for w in wanted])
        if bare.any():
            yield layout.labels, rows.take(bare)


def _relabel(tx: Transaction, layout: NodeLayout, labels: Sequence[str], rows: Stored) -> None:
    """Give nodes that are there the labels that their rows have now.

    The key is taken off meanwhile: ArcadeDB moves a node to another type as a new one before it lets go of the old, and
    its constraint would see the key twice.
    """
    others = [label for label in (*layout.allowed, *layout.labels[1:]) if label not in labels]
    conditions = [f"NOT n:{quote(label)}" for label in labels[1:]] + [f"n:{quote(label)}" for label in others]
    parameters = Parameters(len(rows))
    key = key_of(layout, rows)
    found = match(layout.key, parameters, key)
    again = assignments("n", layout.key.key, [parameters.add(v) for v in key])
    empty = assignments("n", layout.key.key, ["null"] * len(key))
    remove = f" WITH n, i REMOVE n{labels_of(others)}" if others else ""
    give = f" WITH n, i SET n{labels_of(labels[1:])}" if labels[1:] else ""
    tx.write(
        f"{UNWIND} MATCH (n{found}) WHERE {' OR '.join(conditions)} SET {empty}{remove}{give} WITH n, i SET {again}",
        parameters,
    )


# ------------------------------------------------------------------------------------------------ references


def link_condition(variable: str) -> str:
    """Whether a relationship of a reference's type belongs to it. One that somebody made by hand is taken for ours,
    so that it is found and removed."""
    return f"{variable}.{KEY} IS NULL AND coalesce({variable}.{MARK}, $mark) = $mark"


def write_links(tx: Transaction, layout: NodeLayout, link: Link, rows: Stored, *, fresh: bool) -> None:
    """Bring the relationships of one reference to what these rows say. ``fresh``: the nodes are new, so have none."""
    for chunk in rows.sorted(layout.schema.key_positions).chunks(CHUNK):
        if not fresh:
            chunk = _changed(tx, layout, link, chunk)
            if not len(chunk):
                continue
            drop_references(tx, layout.key, key_of(layout, chunk), link)
        nulls = np.array([v.null for v in chunk.at(link.to.positions)])
        whole = chunk.take(~nulls.any(axis=0))
        missing = _connect(tx, layout, link, whole) if len(whole) else whole
        _wait(tx, layout, link, missing)
        _wait(tx, layout, link, chunk.take(nulls.any(axis=0) & ~nulls.all(axis=0)))


def _changed(tx: Transaction, layout: NodeLayout, link: Link, rows: Stored) -> Stored:
    """The rows whose relationships differ from what they say."""
    to = rows.at(link.to.positions)
    nulls = np.array([v.null for v in to])
    parameters = Parameters(len(rows))
    found = match(layout.key, parameters, key_of(layout, rows))
    whole = parameters.given(np.invert(nulls.any(axis=0)).tolist())
    some = parameters.given(np.invert(nulls.all(axis=0)).tolist())
    wanted = ", ".join(parameters.add(v) for v in to)
    ref = parameters.given(stub_refs(link.to, to).to_pylist())
    shown = ", ".join(f"m.{quote(k)}" for k in link.to.key)
    result = tx.read(
        f"{UNWIND} MATCH (n{found}) WITH i,"
        f" [(n){link.arrow('e')}(m{link.to.match}) WHERE {link_condition('e')} | [{shown}]] AS have,"
        f" [(n){link.arrow('w', WAITING)}(s:{STUB}) WHERE w.{MARK} = $mark AND w.{TYPE} = $type | s.{REF}] AS waits,"
        f" CASE WHEN {whole} THEN [[{wanted}]] ELSE [] END AS want,"
        f" CASE WHEN {some} THEN [{ref}] ELSE [] END AS wait"
        f" WHERE NOT ((size(waits) = 0 AND have = want AND {whole} = {some})"
        f" OR (size(have) = 0 AND waits = wait)) RETURN i",
        parameters,
        mark=link.mark,
        type=link.type,
    )
    return rows.take(np.array([i for (i,) in result], np.int64))


def _connect(tx: Transaction, layout: NodeLayout, link: Link, rows: Stored) -> Stored:
    """Make the relationships; the rows whose other end is not there."""
    parameters = Parameters(len(rows))
    found = match(layout.key, parameters, key_of(layout, rows))
    other = match(link.to, parameters, rows.at(link.to.positions))
    version = parameters.given(rows.versions.to_pylist())
    made = tx.write(
        f"{UNWIND} MATCH (n{found}) MATCH (m{other}) CREATE (n){link.arrow('e')}(m)"
        f" SET e.{MARK} = $mark, e.{VERSION} = {version}",
        parameters,
        mark=link.mark,
    ).relationships_created
    if made == len(rows):
        return rows.take([])
    result = tx.read(
        f"{UNWIND} MATCH (n{found}) OPTIONAL MATCH (m{other}) WITH i, m WHERE m IS NULL RETURN i", parameters
    )
    return rows.take(np.array([i for (i,) in result], np.int64))


def _wait(tx: Transaction, layout: NodeLayout, link: Link, rows: Stored) -> None:
    """Let the relationships of these rows wait at stubs."""
    if not len(rows):
        return
    to = rows.at(link.to.positions)
    parameters = Parameters(len(rows))
    found = match(layout.key, parameters, key_of(layout, rows))
    stub = merge_stub("s", link.to, parameters, to, stub_refs(link.to, to).to_pylist())
    version = parameters.given(rows.versions.to_pylist())
    tx.write(
        f"{UNWIND} MATCH (n{found}) {stub} CREATE (n){link.arrow('w', WAITING)}(s)"
        f" SET w.{MARK} = $mark, w.{TYPE} = $type, w.{VERSION} = {version}",
        parameters,
        mark=link.mark,
        type=link.type,
    )


def drop_references(tx: Transaction, node: Endpoint, key: Sequence[Values], link: Link) -> None:
    """Remove the relationships of one reference from these nodes, waiting ones too."""
    for pattern, condition in (
        (f"{link.arrow('e')}({link.to.match})", link_condition("e")),
        (f"{link.arrow('e', WAITING)}(:{STUB})", f"e.{MARK} = $mark AND e.{TYPE} = $type"),
    ):
        parameters = Parameters(len(key[0]))
        found = match(node, parameters, key)
        tx.write(
            f"{UNWIND} MATCH (n{found}){pattern} WHERE {condition} DELETE e", parameters, mark=link.mark, type=link.type
        )


def drop_own(tx: Transaction, layout: NodeLayout, key: Sequence[Values]) -> None:
    """Remove the relationships of all references of these nodes."""
    for link in layout.links:
        for start in range(0, len(key[0]), CHUNK):
            rows = pa.array(range(start, min(start + CHUNK, len(key[0]))), pa.int64())
            drop_references(tx, layout.key, [values.take(rows) for values in key], link)


def delete_nodes(tx: Transaction, node: Endpoint, key: Sequence[Values]) -> int:
    """Remove nodes; what others have with them waits for them. How many were there."""
    gone = 0
    for start in range(0, len(key[0]), CHUNK):
        rows = pa.array(range(start, min(start + CHUNK, len(key[0]))), pa.int64())
        part = [values.take(rows) for values in key]
        detach(tx, node, part)
        parameters = Parameters(len(part[0]))
        gone += tx.write(f"{UNWIND} MATCH (n{match(node, parameters, part)}) DETACH DELETE n", parameters).nodes_deleted
    return gone
