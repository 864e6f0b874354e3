"""Removing rows by the thousand: what a truncation removes, and what a former mapping wrote."""

from __future__ import annotations

from syncline.stores.neo4j.cypher import KEY, MARK, VERSION, WAITING, quote
from syncline.stores.neo4j.database import Database, Transaction
from syncline.stores.neo4j.edges import edge_prefix
from syncline.stores.neo4j.layout import EdgeLayout, Layout, NodeLayout
from syncline.stores.neo4j.nodes import delete_nodes
from syncline.stores.neo4j.values import read_values, shown, store

__all__ = ["IN_ONE", "sweep", "sweep_large", "wipe"]

# Rows that are removed in one transaction; beyond, in several before it (correctness rule 19).
IN_ONE = 20_000
_STEP = 5_000
EVERYTHING = 2**63 - 1


def sweep_large(database: Database, layout: Layout, version: int) -> None:
    """Remove rows at or below the version, some thousands a transaction, until few enough for one are left."""
    with database.transaction() as tx:
        left = _count(tx, layout, version, IN_ONE + 1)
    while left > IN_ONE:
        with database.transaction() as tx:
            if not _step(tx, layout, version):
                _rest(tx, layout, version)
            left = _count(tx, layout, version, IN_ONE + 1)


def wipe(database: Database, layout: Layout) -> None:
    """Remove everything that was written for a table by a former mapping, and nothing else."""
    while True:
        with database.transaction() as tx:
            if not _step(tx, layout, EVERYTHING, ours=True):
                return


def sweep(tx: Transaction, layout: Layout, version: int) -> None:
    """Remove all rows at or below the version; one without a version is older than everything."""
    while _step(tx, layout, version):
        pass
    _rest(tx, layout, version)


def _old(variable: str, *, ours: bool = False) -> str:
    """A row without a version is older than everything, but none of ours."""
    version = f"{variable}.{VERSION}"
    return f"{version} <= $version" if ours else f"coalesce({version}, 0) <= $version"


def _count(tx: Transaction, layout: Layout, version: int, limit: int) -> int:
    if isinstance(layout, NodeLayout):
        found = tx.read(
            f"MATCH (n{layout.key.match}) WHERE {_old('n')} WITH n LIMIT {limit} RETURN count(*)", version=version
        )
        return int(found[0][0])
    total = 0
    for pattern in _edge_patterns(layout):
        found = tx.read(
            f"{pattern} AND {_old('e')} WITH e LIMIT {limit} RETURN count(*)",
            version=version,
            prefix=edge_prefix(layout),
        )
        total += int(found[0][0])
    return total


def _step(tx: Transaction, layout: Layout, version: int, *, ours: bool = False) -> int:
    """Remove some of them; how many."""
    if isinstance(layout, NodeLayout):
        return _nodes(tx, layout, version, ours=ours)
    gone = 0
    for pattern in _edge_patterns(layout):
        ((count,),) = tx.read(
            f"{pattern} AND {_old('e', ours=ours)} WITH e LIMIT {_STEP} DELETE e RETURN count(*)",
            version=version,
            prefix=edge_prefix(layout),
        )
        gone += int(count)
    return gone


def _edge_patterns(layout: EdgeLayout) -> list[str]:
    mine = f"e.{KEY} STARTS WITH $prefix"
    real = [
        f"MATCH (a{layout.start.match})-[e:{quote(kind)}]->(b{layout.end.match})"
        f" WHERE e.{MARK} IS NULL AND (e.{KEY} IS NULL OR {mine})"
        for kind in layout.types
    ]
    return [*real, f"MATCH (a)-[e:{WAITING}]->(b) WHERE {mine}"]


def _nodes(tx: Transaction, layout: NodeLayout, version: int, *, ours: bool) -> int:
    """Nodes go one by one key, so that what others have with them waits for them."""
    columns = layout.schema.key
    values = ", ".join(shown(f"n.{quote(c.name)}", c) for c in columns)
    rows = tx.read(
        f"MATCH (n{layout.key.match}) WHERE {_old('n', ours=ours)} RETURN {values} LIMIT {_STEP}", version=version
    )
    if not rows:
        return 0
    key = [store(read_values([r[j] for r in rows], c)[0], c) for j, c in enumerate(columns)]
    return delete_nodes(tx, layout.key, key)


def _rest(tx: Transaction, layout: Layout, version: int) -> None:
    """Nodes whose key is none of ours: no row refers to them."""
    if isinstance(layout, NodeLayout):
        tx.write(f"MATCH (n{layout.key.match}) WHERE {_old('n')} DETACH DELETE n", version=version)
