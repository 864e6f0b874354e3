"""What a table becomes at a target of each kind, from its settings and what is known of the other tables."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from syncline.change import TableSchema
from syncline.errors import Misconfigured
from syncline.mapping.embed import digest_column
from syncline.mapping.facts import Facts, ForeignKey
from syncline.mapping.settings import (
    EndRule,
    GraphMapping,
    KeysMapping,
    PointsMapping,
    RowsMapping,
    TableMapping,
)
from syncline.shape import (
    Document,
    End,
    Hash,
    Keys,
    Members,
    Node,
    PayloadIndex,
    Point,
    Reference,
    Relationship,
    Rows,
    Shape,
    Vector,
)

__all__ = ["holes", "label_of", "needed_columns", "needed_forms", "shape_of"]

Chosen = Mapping[str, TableMapping]


def needed_columns(facts: Facts, settings: TableMapping, chosen: Chosen) -> list[str]:
    """Columns of the source that the shape needs, whether or not they were asked for."""
    if isinstance(settings, GraphMapping):
        ends = [end.columns or () for end in (settings.start, settings.end) if end]
        found = [c for columns in ends for c in columns]
        found += [c for end in _ends(settings) for c in _foreign_key(facts, end).columns if end.columns is None]
        found += [c for key in _references(facts, settings, chosen) for c in key.columns]
        return [*found, *(c for c in (settings.label_column, settings.type_column) if c)]
    if isinstance(settings, PointsMapping):
        return [c for v in settings.vectors.values() for c in ((v.column,) if v.column else v.text)]
    if isinstance(settings, KeysMapping):
        return [m.score for m in settings.members] + [c for m in settings.members for c in holes(m.key)]
    return []


def needed_forms(settings: TableMapping) -> dict[str, str]:
    """The forms that the shape needs columns of the source in."""
    if not isinstance(settings, PointsMapping):
        return {}
    return {v.column: "sparse" if v.sparse else "vector" for v in settings.vectors.values() if v.column}


def shape_of(
    facts: Facts, settings: TableMapping, names: Mapping[str, str], all_facts: Mapping[str, Facts], chosen: Chosen
) -> Shape | None:
    """The shape. ``names`` maps columns of the source to those of the target, ``chosen`` the target's tables to what is
    said of them.

    Raises:
        Misconfigured: something that it names is not there, or does not fit.
    """
    match settings:
        case GraphMapping():
            return _Graph(facts, names, all_facts, chosen).shape(settings)
        case PointsMapping():
            return _point(facts.schema, settings, names)
        case KeysMapping():
            return _keys(facts.schema, settings, names)
        case RowsMapping():
            return _rows(facts.schema, settings, names)
    return None


# -------------------------------------------------------------------------------------------------------------- rows


def _rows(source: TableSchema, settings: RowsMapping, names: Mapping[str, str]) -> Shape | None:
    if settings.soft_delete in (*names.values(), *settings.constants):
        raise Misconfigured(
            f"Column {settings.soft_delete} of table {source.qualified} can't be its `soft_delete`: the source has it.",
            remedy="Name a column that the source does not have.",
        )
    if settings.table is None and settings.soft_delete is None:
        return None
    namespace, _, name = (settings.table or "").rpartition(".")
    return Rows(namespace or source.namespace, name or source.name, settings.soft_delete or "")


# ------------------------------------------------------------------------------------------------------------- graph


def label_of(source: TableSchema, settings: GraphMapping) -> str:
    """``public.learning_paths`` becomes ``LearningPaths`` unless told otherwise."""
    return settings.node or "".join(part[:1].upper() + part[1:] for part in re.split(r"[\W_]+", source.name))


def _ends(settings: GraphMapping) -> list[EndRule]:
    return [end for end in (settings.start, settings.end) if end]


def _references(facts: Facts, settings: GraphMapping, chosen: Chosen) -> list[ForeignKey]:
    """Foreign keys that become relationships of a node: those told, and those found to nodes of this target."""
    if settings.relationship or settings.type_column:
        return []
    found: dict[tuple[str, ...], ForeignKey] = {}
    if settings.foreign_keys:
        here = {c.name for c in facts.schema.columns}
        found = {
            key.columns: key
            for key in facts.foreign_keys
            if _is_node(chosen.get(key.to)) and here.issuperset(key.columns)
        }
    for text, rule in settings.references.items():
        columns = _names(text)
        known = next((k for k in facts.foreign_keys if k.columns == columns), None)
        if rule.to is None and known is None:
            raise Misconfigured(
                f"Table {facts.schema.qualified} has no foreign key on {text}.", remedy="Say `to:`, the table it means."
            )
        to = rule.to or (known.to if known else "")
        found[columns] = known if known and known.to == to else ForeignKey(columns, to, ())
    return list(found.values())


def _names(text: str) -> tuple[str, ...]:
    """The columns of a reference, from ``a, b``."""
    return tuple(part.strip() for part in text.split(","))


def _is_node(settings: TableMapping | None) -> bool:
    return isinstance(settings, GraphMapping) and not (settings.relationship or settings.type_column)


def _foreign_key(facts: Facts, end: EndRule) -> ForeignKey:
    if end.columns is not None:
        return ForeignKey(end.columns, end.table, ())
    found = [key for key in facts.foreign_keys if key.to == end.table]
    if len(found) != 1:
        many = "no foreign key" if not found else "several foreign keys"
        raise Misconfigured(
            f"Table {facts.schema.qualified} has {many} to {end.table}.", remedy="Say which `columns:` are meant."
        )
    return found[0]


class _Graph:
    """Nodes and relationships of one table."""

    def __init__(self, facts: Facts, names: Mapping[str, str], all_facts: Mapping[str, Facts], chosen: Chosen) -> None:
        self._facts = facts
        self._source = facts.schema
        self._names = names
        self._all = all_facts
        self._chosen = chosen

    def shape(self, settings: GraphMapping) -> Shape:
        if settings.relationship or settings.type_column:
            assert settings.start is not None
            assert settings.end is not None
            return Relationship(
                self._end(_foreign_key(self._facts, settings.start)),
                self._end(_foreign_key(self._facts, settings.end)),
                settings.relationship or "",
                self._names[settings.type_column] if settings.type_column else "",
                settings.allowed_types,
            )
        references = tuple(self._reference(key, settings) for key in _references(self._facts, settings, self._chosen))
        return Node(
            (label_of(self._source, settings), *settings.labels),
            references,
            self._names[settings.label_column] if settings.label_column else "",
            settings.allowed_labels,
        )

    def _reference(self, key: ForeignKey, settings: GraphMapping) -> Reference:
        rule = next((rule for text, rule in settings.references.items() if _names(text) == key.columns), None)
        name = "_".join(key.columns).upper()
        kind = (rule and rule.type) or re.sub(r"_(ID|UUID|KEY|FK)$", "", name)
        return Reference(kind, self._end(key), bool(rule and rule.incoming))

    def _end(self, key: ForeignKey) -> End:
        """The node that a key refers to, in this target's words."""
        other, settings = self._all.get(key.to), self._chosen.get(key.to)
        if other is None or not isinstance(settings, GraphMapping) or not _is_node(settings):
            raise Misconfigured(
                f"Table {self._source.qualified} refers to {key.to}, which is no node of this target.",
                remedy="Map that table to a node, or leave the reference out.",
            )
        columns = key.columns
        if key.key:  # in the order of the key at the other table
            columns = tuple(c for _, c in sorted(zip(self._order(other, key), key.columns, strict=True)))
        names = {c.name: c.name for c in other.schema.columns}
        names |= {n: r.name for n, r in (settings.columns or {}).items() if r.name}
        wanted = tuple(names[c.name] for c in other.schema.key)
        if len(columns) != len(wanted):
            raise Misconfigured(
                f"Columns {', '.join(columns)} of table {self._source.qualified} do not hold a key of {key.to}, "
                f"which is {', '.join(wanted)}.",
                remedy="Relationships refer to the key by which a node is known: its table's replica identity.",
            )
        return End(tuple(self._names[c] for c in columns), label_of(other.schema, settings), wanted)

    def _order(self, other: Facts, key: ForeignKey) -> list[int]:
        place = {c.name: i for i, c in enumerate(other.schema.key)}
        if set(key.key) != set(place):
            raise Misconfigured(
                f"A foreign key of table {self._source.qualified} refers to columns of {key.to} that are not its key.",
                remedy="Leave it out (`foreign_keys: false`), or make them its replica identity.",
            )
        return [place[name] for name in key.key]


# ------------------------------------------------------------------------------------------------------------ points


def _point(source: TableSchema, settings: PointsMapping, names: Mapping[str, str]) -> Shape:
    vectors = []
    for name, rule in settings.vectors.items():
        if rule.column:
            vectors.append(Vector(name, names[rule.column], rule.size, rule.distance, rule.sparse))
        else:
            vectors.append(Vector(name, name, rule.size, rule.distance, rule.sparse, digest_column(name)))
    for column in settings.indexes:
        _known(column, {*names.values(), *settings.constants}, source, "indexes")
    indexes = tuple(PayloadIndex(column, kind) for column, kind in settings.indexes.items())
    return Point(settings.collection or source.name, tuple(vectors), indexes)


def _known(column: str, names: Sequence[str] | set[str], source: TableSchema, where: str) -> None:
    if column not in names:
        raise Misconfigured(
            f"`{where}` of table {source.qualified} names {column}, which is no column at the target.",
            remedy=f"There are: {', '.join(sorted(names))}.",
        )


# -------------------------------------------------------------------------------------------------------------- keys

_HOLE = re.compile(r"\{([^{}]*)\}")


def holes(template: str) -> list[str]:
    """Names in the braces of a template."""
    return _HOLE.findall(template)


def _keys(source: TableSchema, settings: KeysMapping, names: Mapping[str, str]) -> Shape | None:
    """Templates name columns of the source; the shape's name those of the target."""
    key = {c.name for c in source.key}
    writes: list[Hash | Document | Members] = []
    makers: list[tuple[Any, Callable[..., Hash | Document]]] = [(settings.hash, Hash), (settings.json_, Document)]
    for rule, make in makers:
        if rule is not None:
            for column in rule.columns:
                _known(column, set(names.values()) | set(settings.constants), source, "columns")
            writes.append(make(_template(rule.key, key, names, source), rule.columns, rule.ttl_s))
    for member in settings.members:
        any_column = set(names)
        writes.append(
            Members(
                _template(member.key, any_column, names, source, whole=False),
                _template(member.member, key, names, source),
                names[member.score],
            )
        )
    return Keys(tuple(writes)) if writes else None


def _template(
    template: str, allowed: set[str], names: Mapping[str, str], source: TableSchema, *, whole: bool = True
) -> str:
    """A template in the target's words. ``whole``: it must hold the whole key, else two rows could share it."""
    named = holes(template)
    wrong = [hole for hole in named if hole not in allowed]
    if wrong:
        raise Misconfigured(
            f"Template {template} of table {source.qualified} names {', '.join(wrong)}.",
            remedy=f"It may hold: {', '.join('{' + c + '}' for c in sorted(allowed))}.",
        )
    missing = {c.name for c in source.key} - set(named) if whole else set()
    if missing:
        raise Misconfigured(
            f"Template {template} of table {source.qualified} leaves out {', '.join(sorted(missing))} of its key, so "
            "that two rows could share it.",
            remedy="Put every column of the key in it.",
        )
    return _HOLE.sub(lambda found: "{" + names[found[1]] + "}", template)
