"""The version guard where it has to be asked (Guarantee 5), and what is remembered of a table for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from syncline.change import Cursor, TableSchema
from syncline.errors import Misconfigured
from syncline.stores.neo4j.cypher import CURSOR, KEY, REF, TABLE, TOMBSTONE, UNWIND, VERSION, Parameters
from syncline.stores.neo4j.database import Transaction
from syncline.stores.neo4j.edges import edge_keys, find_edges, strange_edges
from syncline.stores.neo4j.layout import Layout, NodeLayout
from syncline.stores.neo4j.values import Values, key_texts
from syncline.stores.neo4j.waiting import match

__all__ = ["State", "advance", "forget", "lock", "passing"]

_Bools = np.ndarray[Any, np.dtype[np.bool_]]


@dataclass(frozen=True)
class State:
    """``highest`` is at least every version that the table ever held, ``truncated`` and ``horizon`` as in the contract:
    all as they were before the work."""

    highest: int
    truncated: int
    horizon: int

    @property
    def bound(self) -> int:
        """No change at or above it has to be asked about: nothing stored, buried, truncated or forgotten is newer."""
        return max(self.highest, self.truncated, self.horizon)


def lock(tx: Transaction, cursor: Cursor, body: str) -> str | None:
    """Write the source's cursor, first of all: whoever else applies this source waits here until we are done, so that
    what is read from now on stays as it is (Guarantee 3 holds all the same: it commits with the data). Returns the
    former one."""
    ((before,),) = tx.read(
        f"MERGE (c:{CURSOR} {{source: $source}}) WITH c, c.body AS before SET c.body = $body RETURN before",
        source=cursor.source,
        body=body,
    )
    return None if before is None else str(before)


def advance(
    tx: Transaction, schemas: Sequence[TableSchema], highest: Sequence[int], truncated: Sequence[int]
) -> list[State]:
    """The state of these tables before the work, which is recorded in the same statement.

    Raises:
        Misconfigured: a table was not migrated to its schema.
    """
    parameters = Parameters(len(schemas))
    name = parameters.given([s.qualified for s in schemas])
    high, cut = parameters.given(highest), parameters.given(truncated)
    rows = tx.read(
        f"{UNWIND} MATCH (t:{TABLE} {{name: {name}}})"
        " WITH i, t, t.highest AS highest, t.truncated AS truncated, t.horizon AS horizon, t.fingerprint AS fingerprint"
        f" SET t.highest = CASE WHEN highest < {high} THEN {high} ELSE highest END,"
        f" t.truncated = CASE WHEN truncated < {cut} THEN {cut} ELSE truncated END"
        " RETURN i, highest, truncated, horizon, fingerprint",
        parameters,
    )
    found = {i: (State(h, t, z), fingerprint) for i, h, t, z, fingerprint in rows}
    for i, schema in enumerate(schemas):
        if i not in found or found[i][1] != schema.fingerprint:
            raise Misconfigured(
                f"Table {schema.qualified} is not prepared for this schema.", remedy="Migrate it first."
            )
    return [found[i][0] for i in range(len(schemas))]


def passing(
    tx: Transaction,
    layout: Layout,
    state: State,
    sweep: int | None,
    key: Sequence[Values],
    versions: pa.Array,
) -> _Bools:
    """Which rows may be written. ``sweep`` is the work's own truncation: rows that it will remove don't count."""
    incoming = versions.to_numpy()
    stored = _stored_versions(tx, layout, key)
    if sweep is not None:
        stored[stored <= sweep] = -1
    buried = _buried_versions(tx, layout.schema, key)
    newest_cut = max(state.truncated, sweep or 0)
    known = np.where(stored >= 0, stored <= incoming, incoming >= state.horizon)
    return known & (incoming >= buried) & (incoming >= newest_cut)


def forget(tx: Transaction, layout: Layout, key: Sequence[Values], above: int) -> None:
    """Rows of these keys that have a version above this one lose it, and such tombstones go. So do relationships
    without an identity between the very ends that the keys say: somebody else made them."""
    parameters = Parameters(len(key[0]))
    if isinstance(layout, NodeLayout):
        clauses = [f"{UNWIND} MATCH (e{match(layout.key, parameters, key)})"]
    else:
        for clause in strange_edges(layout, key, parameters):
            tx.write(f"{clause} DELETE e", parameters)
        clauses = list(find_edges(tx, layout, key, edge_keys(layout, key).to_pylist(), parameters))
    for clause in clauses:
        tx.write(f"{clause} WITH e WHERE e.{VERSION} > $above REMOVE e.{VERSION}", parameters, above=above)
    for noted in ("truncated", "horizon"):
        tx.write(
            f"MATCH (t:{TABLE} {{name: $table}}) WHERE t.{noted} > $above SET t.{noted} = 0",
            table=layout.schema.qualified,
            above=above,
        )
    names = key_texts(layout.schema.qualified, key).to_pylist()
    tx.write(
        f"UNWIND $names AS name MATCH (t:{TOMBSTONE} {{{REF}: name}}) WHERE t.version > $above DELETE t",
        names=names,
        above=above,
    )


def _stored_versions(tx: Transaction, layout: Layout, key: Sequence[Values]) -> np.ndarray[Any, np.dtype[np.int64]]:
    """The version under each key: -1 where there is nothing, 0 where it has none."""
    found = np.full(len(key[0]), -1, np.int64)
    parameters = Parameters(len(key[0]))
    if isinstance(layout, NodeLayout):
        pattern = match(layout.key, parameters, key)
        for i, version in tx.read(f"{UNWIND} MATCH (e{pattern}) RETURN i, coalesce(e.{VERSION}, 0)", parameters):
            found[i] = version
        return found
    keys = edge_keys(layout, key).to_pylist()
    row = {name: i for i, name in enumerate(keys)}
    for clause in find_edges(tx, layout, key, keys, parameters):
        for name, version in tx.read(f"{clause} RETURN e.{KEY}, coalesce(e.{VERSION}, 0)", parameters):
            found[row[name]] = max(found[row[name]], version)
    return found


def _buried_versions(
    tx: Transaction, schema: TableSchema, key: Sequence[Values]
) -> np.ndarray[Any, np.dtype[np.int64]]:
    found = np.zeros(len(key[0]), np.int64)
    parameters = Parameters(len(key[0]))
    name = parameters.given(key_texts(schema.qualified, key).to_pylist())
    for i, version in tx.read(f"{UNWIND} MATCH (t:{TOMBSTONE} {{{REF}: {name}}}) RETURN i, t.version", parameters):
        found[i] = version
    return found
