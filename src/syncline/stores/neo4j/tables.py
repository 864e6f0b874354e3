"""Making the graph fit the schemas: constraints, what a former mapping left, and the record of each table."""

from __future__ import annotations

import msgspec

from syncline.bookkeeping import bookkept
from syncline.change import TableSchema
from syncline.errors import Misconfigured
from syncline.stores.neo4j.cypher import (
    CURSOR,
    KEY,
    LABEL,
    MARK,
    MOVED,
    REF,
    STUB,
    TABLE,
    TOMBSTONE,
    TYPE,
    WAITING,
    labels_of,
    quote,
)
from syncline.stores.neo4j.database import Constraint, Database
from syncline.stores.neo4j.layout import Endpoint, Layout, Link, NodeLayout, layout_of
from syncline.stores.neo4j.nodes import link_condition
from syncline.stores.neo4j.sweeping import wipe

__all__ = ["BOOKKEEPING", "FORMAT", "STORE", "migrate_table", "prepare_database", "recorded", "written_format"]

FORMAT = 1
STORE = "_SynclineStore"
_STEP = 10_000

BOOKKEEPING = (
    Constraint(STORE, ("id",)),
    Constraint(CURSOR, ("source",)),
    Constraint(TABLE, ("name",)),
    Constraint(TOMBSTONE, (REF,)),
    Constraint(STUB, (REF,)),
    Constraint(MOVED, (REF,)),
    Constraint(STUB, (LABEL,), unique=False),
    Constraint(WAITING, (KEY,), relationship=True, unique=False),
)


def prepare_database(database: Database) -> None:
    """Constraints, indexes and the format of what is ours in this database.

    Raises:
        Misconfigured: a newer Syncline wrote it.
    """
    database.constrain(*BOOKKEEPING)
    with database.transaction() as tx:
        ((written,),) = tx.read(
            f"MERGE (s:{STORE} {{id: 1}}) ON CREATE SET s.format = $format RETURN s.format", format=FORMAT
        )
    if written > FORMAT:
        raise Misconfigured(
            f"The database was written by a newer Syncline (format {written}, this one knows {FORMAT}).",
            remedy="Upgrade Syncline.",
        )


def written_format(database: Database) -> int | None:
    """The format of what is here, None if nothing is ours yet."""
    found = database.run(f"MATCH (s:{STORE} {{id: 1}}) RETURN s.format")
    return int(found[0][0]) if found else None


def recorded(database: Database) -> dict[str, tuple[str, TableSchema]]:
    """The source and the schema of each table here, by its name."""
    rows = database.run(f"MATCH (t:{TABLE}) RETURN t.name, t.source, t.body")
    return {name: (source, bookkept(body, TableSchema)) for name, source, body in rows}


def migrate_table(database: Database, source: str, schema: TableSchema) -> TableSchema | None:
    """Make the graph fit the schema, then record it: what a crash cuts short begins anew. The former schema.

    Raises:
        Misconfigured: a name can't be used, another table or source has the label, or what is there can't be adopted.
    """
    layout = layout_of(schema)
    tables = recorded(database)
    _check_owner(tables, source, layout)
    former = tables[schema.qualified][1] if schema.qualified in tables else None
    if former is not None and former != schema:
        _reshape(database, layout_of(former), layout)
    database.constrain(*_constraints(layout))
    if former != schema:
        _record(database, source, schema)
    return former


def _check_owner(tables: dict[str, tuple[str, TableSchema]], source: str, layout: Layout) -> None:
    name = layout.schema.qualified
    if name in tables and tables[name][0] != source:
        raise Misconfigured(
            f"Table {name} of source {source} is already filled by source {tables[name][0]} in this database.",
            remedy="Give the sources different databases, or map the table to another label.",
        )
    if not isinstance(layout, NodeLayout):
        return
    for other, (_, schema) in tables.items():
        theirs = layout_of(schema)
        if other != name and isinstance(theirs, NodeLayout) and theirs.label == layout.label:
            raise Misconfigured(
                f"Tables {other} and {name} would both be nodes with the label {layout.label}.",
                remedy="Map one of them to another label.",
            )
        if other != name and isinstance(theirs, NodeLayout):
            for one, two in ((layout, theirs), (theirs, layout)):
                if one.label in (*two.labels[1:], *two.allowed):
                    raise Misconfigured(
                        f"Nodes of {two.schema.qualified} may carry the label {one.label}, by which nodes of "
                        f"{one.schema.qualified} are known.",
                        remedy="Give one of them another label.",
                    )


def _constraints(layout: Layout) -> list[Constraint]:
    """Of the rows themselves, and of the nodes that they refer to, whose own table may come later."""
    if isinstance(layout, NodeLayout):
        return [_unique(end) for end in (layout.key, *(link.to for link in layout.links))]
    kinds = [Constraint(kind, (KEY,), relationship=True) for kind in layout.types]
    return [_unique(layout.start), _unique(layout.end), *kinds]


def _unique(node: Endpoint) -> Constraint:
    return Constraint(node.label, tuple(sorted(node.key)))


def _record(database: Database, source: str, schema: TableSchema) -> None:
    with database.transaction() as tx:
        tx.write(
            f"MERGE (t:{TABLE} {{name: $name}}) ON CREATE SET t.highest = 0, t.truncated = 0, t.horizon = 0"
            " SET t.source = $source, t.fingerprint = $fingerprint, t.body = $body",
            name=schema.qualified,
            source=source,
            fingerprint=schema.fingerprint,
            body=msgspec.json.encode(schema).decode(),
        )


# ------------------------------------------------------------------------------------------------ another shape


def _reshape(database: Database, former: Layout, layout: Layout) -> None:
    """Remove what the former schema wrote and this one does not."""
    if _key(former.schema) != _key(layout.schema):
        _forget_tombstones(database, former.schema)
    if _place(former) != _place(layout):
        wipe(database, former)
        if isinstance(former, NodeLayout) and (
            not isinstance(layout, NodeLayout) or _unique(former.key) != _unique(layout.key)
        ):
            database.release(_unique(former.key))
        return
    for pattern in _patterns(former):
        for name in _lost(former, layout):
            variable = f"x.{quote(name)}"
            _repeat(database, f"{pattern} WHERE {variable} IS NOT NULL WITH x LIMIT {_STEP} SET {variable} = null", {})
    if isinstance(former, NodeLayout) and isinstance(layout, NodeLayout):
        for link in set(_by_names(former)) - set(_by_names(layout)):
            _drop_link(database, former, _by_names(former)[link])


def _key(schema: TableSchema) -> list[tuple[str, str]]:
    return [(c.name, c.type) for c in schema.key]


def _place(layout: Layout) -> tuple[object, ...]:
    """What decides where rows stand: with another one they are other nodes or relationships."""
    if isinstance(layout, NodeLayout):
        label = None if layout.label_position is None else layout.schema.columns[layout.label_position].name
        return (layout.labels, label, layout.allowed, _key(layout.schema))
    kind = None if layout.type_position is None else layout.schema.columns[layout.type_position].name
    ends = [_names(layout.schema, end) for end in (layout.start, layout.end)]
    return (*ends, layout.types, kind, _key(layout.schema))


def _names(schema: TableSchema, end: Endpoint) -> tuple[object, ...]:
    return (end.label, end.key, tuple((schema.columns[i].name, schema.columns[i].type) for i in end.positions))


def _lost(former: Layout, layout: Layout) -> list[str]:
    """Properties that go, or that have another type now."""
    kept = {(layout.schema.columns[i].name, layout.schema.columns[i].type) for i in layout.properties}
    before = [former.schema.columns[i] for i in former.properties]
    return [c.name for c in before if (c.name, c.type) not in kept]


def _patterns(layout: Layout) -> list[str]:
    """Where the properties ``x`` of a table's rows are."""
    if isinstance(layout, NodeLayout):
        return [f"MATCH (x{layout.key.match})"]
    return [f"MATCH ()-[x:{quote(kind)}]->()" for kind in layout.types]


def _by_names(layout: NodeLayout) -> dict[tuple[object, ...], Link]:
    return {(link.type, link.incoming, link.mark, _names(layout.schema, link.to)): link for link in layout.links}


def _drop_link(database: Database, layout: NodeLayout, link: Link) -> None:
    parameters = {"mark": link.mark, "type": link.type}
    node = f"MATCH (n{labels_of((layout.label,))})"
    real = f"{node}{link.arrow('e')}({link.to.match}) WHERE {link_condition('e')}"
    waiting = f"{node}{link.arrow('e', WAITING)}(:{STUB}) WHERE e.{MARK} = $mark AND e.{TYPE} = $type"
    for pattern in (real, waiting):
        _repeat(database, f"{pattern} WITH e LIMIT {_STEP} DELETE e", parameters)


def _forget_tombstones(database: Database, schema: TableSchema) -> None:
    """A new key has no use for tombstones of the old one: the reload that follows a key change sweeps."""
    for label in (TOMBSTONE, MOVED):
        _repeat(
            database,
            f"MATCH (x:{label}) WHERE x.table = $table WITH x LIMIT {_STEP} DELETE x",
            {"table": schema.qualified},
        )


def _repeat(database: Database, statement: str, parameters: dict[str, str]) -> None:
    """Run a statement that changes some of many, until it finds none."""
    while True:
        with database.transaction() as tx:
            ((count,),) = tx.read(f"{statement} RETURN count(*)", parameters)
        if not count:
            return
