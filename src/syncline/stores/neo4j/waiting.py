"""Relationships whose other end is not there: stubs, and the way to and from them (decision record 0014).

A relationship of ours with a missing end waits at a *stub*, a node that carries an internal label only, under an
internal type that holds the real one and all properties. So queries for labels and types never see it (correctness
rule 16). When the node comes, what waits for it becomes real; when the node goes, what others have with it waits again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from syncline.stores.neo4j.cypher import (
    LABEL,
    MARK,
    REF,
    STUB,
    TYPE,
    UNWIND,
    VERSION,
    WAITING,
    Parameters,
    pattern,
    quote,
    slot,
)
from syncline.stores.neo4j.database import Transaction
from syncline.stores.neo4j.layout import Endpoint
from syncline.stores.neo4j.values import Values, key_texts

__all__ = ["detach", "forget_orphans", "merge_stub", "resolve", "stub_refs"]

_DIRECTIONS = (("<-", "-"), ("-", "->"))


def stub_refs(to: Endpoint, key: Sequence[Values]) -> pa.Array:
    """The names of the stubs of these keys (columns in the order of ``to.key``)."""
    return key_texts(to.label, [key[i] for i in to.by_name])


def merge_stub(variable: str, to: Endpoint, parameters: Parameters, key: Sequence[Values], refs: Sequence[Any]) -> str:
    """The clause that finds or makes the stub of row ``i``."""
    name = parameters.given(refs)
    slots = [f"{variable}.{slot(j)} = {parameters.add(key[i])}" for j, i in enumerate(to.by_name)]
    parameters[f"label_{variable}"] = to.label
    return (
        f"MERGE ({variable}:{STUB} {{{REF}: {name}}})"
        f" ON CREATE SET {', '.join([f'{variable}.{LABEL} = $label_{variable}', *slots])}"
    )


def match(node: Endpoint, parameters: Parameters, key: Sequence[Values]) -> str:
    """``:`Label` {`id`: $c0[i]}``: the node of row ``i``."""
    return f"{node.match} {pattern(node.key, [parameters.add(values) for values in key])}"


def resolve(tx: Transaction, node: Endpoint, key: Sequence[Values]) -> None:
    """The nodes of these keys are there now: what waits for them becomes real."""
    if not tx.read(f"MATCH (s:{STUB} {{{LABEL}: $label}}) RETURN 1 LIMIT 1", label=node.label):
        return
    refs = stub_refs(node, key).to_pylist()
    found = {r for (r,) in tx.read(f"MATCH (s:{STUB}) WHERE s.{REF} IN $refs RETURN s.{REF}", refs=refs)}
    if not found:
        return
    rows = pa.array([i for i, ref in enumerate(refs) if ref in found], pa.int64())
    key, refs = [values.take(rows) for values in key], [ref for ref in refs if ref in found]
    kinds = tx.read(
        f"UNWIND $refs AS ref MATCH (s:{STUB} {{{REF}: ref}})-[w:{WAITING}]-() RETURN DISTINCT w.{TYPE}", refs=refs
    )
    for (kind,) in sorted(kinds):
        for left, right in _DIRECTIONS:
            for still_waiting in (False, True):
                _move(tx, node, key, refs, kind, left, right, still_waiting=still_waiting)
    tx.write(f"MATCH (s:{STUB}) WHERE s.{REF} IN $refs AND NOT (s)--() DELETE s", refs=refs)


def _move(
    tx: Transaction,
    node: Endpoint,
    key: Sequence[Values],
    refs: Sequence[str],
    kind: str,
    left: str,
    right: str,
    *,
    still_waiting: bool,
) -> None:
    """Move relationships of one type and direction from stubs to nodes. ``still_waiting``: those with another stub."""
    parameters = Parameters(len(refs))
    name = parameters.given(refs)
    type_after = WAITING if still_waiting else quote(kind)
    tx.write(
        f"{UNWIND} MATCH (s:{STUB} {{{REF}: {name}}}){left}[w:{WAITING}]{right}(x)"
        f" WHERE w.{TYPE} = $kind AND {'' if still_waiting else 'NOT '}x:{STUB}"
        f" MATCH (n{match(node, parameters, key)})"
        f" CREATE (n){left}[e:{type_after}]{right}(x) SET e = properties(w)"
        f"{'' if still_waiting else f' SET e.{TYPE} = null'} DELETE w",
        parameters,
        kind=kind,
    )


def detach(tx: Transaction, node: Endpoint, key: Sequence[Values]) -> None:
    """The nodes of these keys are about to go: relationships that other rows have with them wait for them again.

    Relationships by the node's own references go with it, and so do those that are not ours. First all that end at one
    of the nodes, then all that begin at one: so that one between two of them is taken twice, one end at a time.
    """
    refs = stub_refs(node, key).to_pylist()
    for (left, right), owner in zip(_DIRECTIONS, (">", "<"), strict=True):
        parameters = Parameters(len(refs))
        found = match(node, parameters, key)
        stub = merge_stub("s", node, parameters, key, refs)
        tx.write(
            f"{UNWIND} MATCH (n{found}){left}[e]{right}(x)"
            f" WHERE e.{VERSION} IS NOT NULL AND (e.{MARK} IS NULL OR (e.{MARK} STARTS WITH '{owner}' AND x <> n))"
            f" {stub}"
            f" CREATE (s){left}[w:{WAITING}]{right}(x)"
            f" SET w = properties(e) SET w.{TYPE} = coalesce(e.{TYPE}, type(e)) DELETE e",
            parameters,
        )


def forget_orphans(tx: Transaction, rows: int) -> int:
    """Remove stubs that nothing waits at any more; how many."""
    ((gone,),) = tx.read(f"MATCH (s:{STUB}) WHERE NOT (s)--() WITH s LIMIT {rows} DELETE s RETURN count(*)")
    return int(gone)
