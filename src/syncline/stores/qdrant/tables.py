"""Making collections fit their tables: create, adopt, change vectors and payload indexes, forget dropped columns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from syncline.change import TableSchema
from syncline.errors import Misconfigured
from syncline.shape import Point, Vector
from syncline.stores.qdrant.books import Books, Marker, Table
from syncline.stores.qdrant.names import (
    DELETED,
    EXACT,
    VERSION,
    check_columns,
    collection_of,
    payload_path,
)
from syncline.stores.qdrant.points import Dense, Points, Spec, Which, scroll

__all__ = ["TableState", "migrate_table", "table_state", "vectors_of"]

_DISTANCES = ("cosine", "dot", "euclid", "manhattan")


@dataclass(slots=True)
class TableState:
    """What writing a table needs to know. ``highest`` is at least every version that the collection ever held."""

    schema: TableSchema
    collection: str
    truncated: int
    horizon: int
    highest: int


def vectors_of(schema: TableSchema) -> tuple[Vector, ...]:
    """The vectors that the table's points have."""
    return schema.shape.vectors if isinstance(schema.shape, Point) else ()


def wanted_spec(schema: TableSchema) -> Spec:
    """What the table's collection has to have.

    Raises:
        Misconfigured: a vector has no size, or one or a payload index a name that can't be.
    """
    dense: dict[str, Dense] = {}
    sparse = set()
    for vector in vectors_of(schema):
        if not vector.name or vector.name.startswith("_syncline"):
            raise Misconfigured(f"Table {schema.qualified} can't have a vector called {vector.name!r}.")
        if vector.sparse:
            sparse.add(vector.name)
        elif vector.size < 1 or vector.distance not in _DISTANCES:
            raise Misconfigured(
                f"Vector {vector.name} of table {schema.qualified} has no size or an unknown distance.",
                remedy=f"Say its `size`, and a `distance` among {', '.join(_DISTANCES)}.",
            )
        else:
            dense[vector.name] = Dense(vector.size, vector.distance)
    indexes = {VERSION: "integer", DELETED: "bool"}
    if isinstance(schema.shape, Point):
        indexes |= {payload_path(index.column): index.kind for index in schema.shape.indexes}
    return Spec(dense, frozenset(sparse), indexes)


def migrate_table(
    points: Points, books: Books, source: str, schema: TableSchema
) -> tuple[TableState, TableSchema | None]:
    """Make the collection fit, and note the schema; the table's state, and its former schema.

    Raises:
        Misconfigured: another table or source has the collection, or it can't be adopted.
    """
    check_columns(schema)
    collection, wanted = collection_of(schema), wanted_spec(schema)
    _check_owner(books, source, schema, collection)
    recorded = books.table(schema.qualified)
    former = recorded.schema if recorded else None
    replaced = recorded is not None and (recorded.collection != collection or _key(recorded.schema) != _key(schema))
    if recorded is not None and replaced:
        # Another place (correctness rule 21), or other ids for all points: what is there is of no use.
        _leave(points, recorded)
    there = points.spec(collection)
    adopted = there is not None and (recorded is None or recorded.collection != collection or recorded.adopted)
    lost = there is None or Marker.read(points, collection, schema.qualified) is None
    if there is None:
        points.create(collection, wanted)
    else:
        _fit(points, collection, there, wanted, former if not lost else None, schema)
        if not lost and former is not None and former != schema:
            _forget_columns(points, collection, former, schema)
    if lost:
        points.put(collection, [Marker(schema.qualified).point()])
    points.sync([collection])
    table = Table(source, collection, schema, adopted)
    if recorded != table:
        books.write_table(table)
    # A collection that somebody removed or put back empty was not ours any more: its rows have to be read again.
    return table_state(points, books, schema), former if replaced or not lost else None


def _key(schema: TableSchema) -> list[tuple[str, str]]:
    """What ids of points are made of."""
    return [(column.name, column.type) for column in schema.key]


def _leave(points: Points, table: Table) -> None:
    """Remove what a table has in its collection: all of it, or, if it was there before, the points that are ours."""
    if not table.adopted:
        points.drop(table.collection)
        return
    if points.spec(table.collection) is None:
        return
    points.delete(table.collection, [Marker.id_of(table.schema.qualified)])
    for page in scroll(points, table.collection, Which(since=0), payload=False):
        points.delete(table.collection, [point.id for point in page])
    points.sync([table.collection])


def table_state(points: Points, books: Books, schema: TableSchema) -> TableState:
    """The table's state as noted.

    Raises:
        Misconfigured: the table was not migrated to this schema.
    """
    recorded = books.table(schema.qualified)
    marker = None
    if recorded is not None and recorded.schema == schema:
        marker = Marker.read(points, recorded.collection, schema.qualified)
    if recorded is None or marker is None:
        raise Misconfigured(f"Table {schema.qualified} is not prepared for this schema.", remedy="Migrate it first.")
    highest = max(points.newest(recorded.collection), marker.truncated, marker.horizon)
    return TableState(schema, recorded.collection, marker.truncated, marker.horizon, highest)


def _check_owner(books: Books, source: str, schema: TableSchema, collection: str) -> None:
    """Ids of two tables could be the same, so each has a collection of its own."""
    for table in books.tables():
        if table.schema.qualified == schema.qualified and table.source != source:
            raise Misconfigured(
                f"Table {schema.qualified} of source {source} is already filled by source {table.source}.",
                remedy="Give the sources different servers or folders, or other collections in their mappings.",
            )
        if table.collection == collection and table.schema.qualified != schema.qualified:
            raise Misconfigured(
                f"Tables {table.schema.qualified} and {schema.qualified} share collection {collection}.",
                remedy="Give one of them another `collection` in the mapping.",
            )


def _fit(
    points: Points, collection: str, there: Spec, wanted: Spec, former: TableSchema | None, schema: TableSchema
) -> None:
    """Add what is missing; replace vectors of ours that are wanted in another form; refuse those that were not ours."""
    ours = {vector.name for vector in vectors_of(former)} if former else set()
    wrong = {name for name, dense in wanted.dense.items() if name in there.dense and there.dense[name] != dense}
    wrong |= {name for name in there.sparse if name in wanted.dense} | {
        name for name in there.dense if name in wanted.sparse
    }
    foreign = sorted(wrong - ours)
    if foreign:
        raise _misfit(collection, foreign[0], there, wanted, schema)
    had = (set(there.dense) | there.sparse) - wrong
    gone = sorted(wrong | (ours & had - set(wanted.dense) - wanted.sparse))
    add = Spec(
        {name: dense for name, dense in wanted.dense.items() if name not in had},
        frozenset(name for name in wanted.sparse if name not in had),
        {path: kind for path, kind in wanted.indexes.items() if there.indexes.get(path) != kind},
    )
    if former is not None:
        points.unindex(collection, sorted(set(wanted_spec(former).indexes) & set(there.indexes) - set(wanted.indexes)))
    points.change(collection, add, gone)


def _misfit(collection: str, name: str, there: Spec, wanted: Spec, schema: TableSchema) -> Misconfigured:
    found, asked = there.dense.get(name), wanted.dense.get(name)
    if found is None or asked is None:
        what = "is of the other kind (dense or sparse)"
    elif found.size != asked.size:
        what = f"has {found.size} dimensions, and the mapping says {asked.size}"
    elif found.distance != asked.distance:
        what = f"is compared by {found.distance}, and the mapping says {asked.distance}"
    else:
        what = "is not kept as float32, so that its values are not those of the source"
    return Misconfigured(
        f"Vector {name} of collection {collection} {what} (table {schema.qualified}).",
        remedy="Correct the vector's size or distance in the mapping, name another collection, or delete this one.",
        code="SL-QDRANT-VECTOR",
    )


def _forget_columns(points: Points, collection: str, former: TableSchema, schema: TableSchema) -> None:
    """Take values of dropped columns out of all payloads, and of those whose type changed, which nobody could read."""
    gone = {name for name, _ in _payload_columns(former) - _payload_columns(schema)}
    gone |= {vector.column for vector in set(vectors_of(former)) - set(vectors_of(schema))}
    if not gone:
        return
    for page in scroll(points, collection, Which(buried=False)):
        changed = [point._replace(payload=_without(point.payload, gone)) for point in page]
        points.overwrite(collection, changed, [int(p.payload.get(VERSION) or 0) for p in page])


def _payload_columns(schema: TableSchema) -> set[tuple[str, str]]:
    vectors = {vector.column for vector in vectors_of(schema)}
    return {(c.name, c.type) for c in schema.columns if c.name not in vectors}


def _without(payload: Mapping[str, Any], gone: set[str]) -> dict[str, Any]:
    rest = {name: value for name, value in payload.items() if name not in gone}
    exact = {name: text for name, text in (rest.pop(EXACT, None) or {}).items() if name not in gone}
    return {**rest, EXACT: exact} if exact else rest
