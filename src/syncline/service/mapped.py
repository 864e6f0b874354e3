"""What `syncline doctor` finds when it holds the mapping of each target against the tables that are there."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from syncline.capture.captured import Captured, captured
from syncline.change import TableSchema
from syncline.config import Config, hint, store_class
from syncline.errors import Misconfigured, SynclineError
from syncline.finding import Finding
from syncline.mapping import TargetMapping
from syncline.patterns import parse_pattern
from syncline.shape import Document, Hash, Keys, Node, Point, Rows

__all__ = ["mapping_findings"]


def mapping_findings(config: Config) -> Iterator[Finding]:
    """Names that are no table, tables that can't be mapped as is said, and those that would share a place. Raises
    nothing; of a source that can't be asked others have told."""
    looked: dict[str, Captured] = {}
    for name in config.sources:
        try:
            looked[name] = captured(config.source(name))
        except SynclineError:
            continue
    for target in config.targets:
        followed = {name: looked[name] for name in config.followed_by(target) if name in looked}
        if len(followed) == len(config.followed_by(target)):
            yield from _of_target(config, target, followed)


def _of_target(config: Config, target: str, sources: Mapping[str, Captured]) -> Iterator[Finding]:
    subject = f"target {target}"
    yield from _unknown(config, target, sources)
    places: dict[str, list[str]] = defaultdict(list)
    every: list[TableSchema] = []
    taken = 0
    for source, found in sources.items():
        schemas: list[TableSchema] = []
        mapping = config.targets[target].mapping(found.facts)
        for table in mapping.tables:
            taken += 1
            try:
                schema = _mapped(config, target, mapping, found.facts[table].schema)
            except SynclineError as error:
                yield Finding(error.code, "error", subject, error.message, error.remedy)
                continue
            schemas.append(schema)
            for place in _places(schema):
                places[place].append(table)
        yield from (replace(one, subject=subject) for one in _at_its_source(config, target, source, schemas))
        every += schemas
    yield from _labels(every, subject)
    for place, tables in places.items():
        if len(tables) > 1:
            message = f"Tables {' and '.join(tables)} share {place}."
            yield Finding("SL-MAPPING", "error", subject, message, "Give one of them another in the mapping.")
    if not taken and any(found.facts for found in sources.values()):
        yield Finding("SL-MAPPING", "error", subject, "It takes none of the captured tables.", "Correct its `tables`.")


def _at_its_source(config: Config, target: str, source: str, schemas: Sequence[TableSchema]) -> Iterator[Finding]:
    """What stands in the way where the target is in the source's own database."""
    look = getattr(store_class(config.targets[target].type), "check_source", None)
    if look is None or not schemas:
        return
    try:
        identity = config.source(source).identify()
    except SynclineError:
        return  # of which the source's own findings tell
    yield from look(
        config.targets[target].store, identity.system_identifier, identity.timeline, identity.database, schemas
    )


def _unknown(config: Config, target: str, sources: Mapping[str, Captured]) -> Iterator[Finding]:
    known = sorted({table for found in sources.values() for table in (*found.facts, *found.left_out)})
    for text in config.targets[target].tables or ():
        pattern = parse_pattern(text)
        name = f"{pattern.schema}.{pattern.table}"
        if pattern.exact and name not in known:
            message = f"No table that is captured is called {name}, which its `tables` name."
            yield Finding("SL-MAPPING-TABLE", "warning", f"target {target}", message, hint(name, known))


def _mapped(config: Config, target: str, mapping: TargetMapping, source: TableSchema) -> TableSchema:
    """The table as it is at the target.

    Raises:
        Misconfigured: the mapping does not fit the table, or what it makes does not fit the store.
    """
    schema = mapping.table(source).schema
    statements = getattr(store_class(config.targets[target].type), "statements", None)
    if statements is not None:
        try:
            statements(schema)
        except Misconfigured as error:
            raise Misconfigured(f"Table {source.qualified}: {error.message}", remedy=error.remedy) from error
    return schema


def _labels(schemas: Sequence[TableSchema], subject: str) -> Iterator[Finding]:
    """The first label of a table's nodes is what they are found by, so no other table's nodes may carry it."""
    heads = {s.shape.labels[0]: s.qualified for s in schemas if isinstance(s.shape, Node)}
    for schema in schemas:
        if isinstance(schema.shape, Node):
            for label in (*schema.shape.labels[1:], *schema.shape.allowed):
                known = heads.get(label, schema.qualified)
                if known != schema.qualified:
                    message = f"Nodes of {schema.qualified} may carry {label}, the label by which {known} is known."
                    yield Finding("SL-MAPPING", "error", subject, message, "Give one of them another label.")


def _places(schema: TableSchema) -> Iterator[str]:
    """What a table has for itself alone at a target."""
    match schema.shape:
        case Point(collection=collection):
            yield f"collection {collection}"
        case Node(labels=labels):
            yield f"label {labels[0]}"
        case Rows(namespace=namespace, name=name):
            yield f"table {namespace}.{name}"
        case Keys(writes=writes):
            yield from (f"key {write.key}" for write in writes if isinstance(write, Hash | Document))
