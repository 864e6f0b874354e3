"""One table's part of a work: checked, held against the guard, and written in the steps that a work has."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from syncline.change import TableSchema
from syncline.errors import Rejected
from syncline.masks import unpacked_masks
from syncline.stores import TableWork
from syncline.stores.neo4j.cypher import MOVED, REF, TOMBSTONE, UNWIND, Parameters, slot
from syncline.stores.neo4j.database import Transaction
from syncline.stores.neo4j.edges import delete_edges, write_edges
from syncline.stores.neo4j.guard import State, passing
from syncline.stores.neo4j.layout import Layout, NodeLayout, layout_of
from syncline.stores.neo4j.nodes import CHUNK, delete_nodes, drop_own, write_links, write_nodes
from syncline.stores.neo4j.reading import read_keys
from syncline.stores.neo4j.sweeping import sweep
from syncline.stores.neo4j.values import Stored, Values, exact, key_texts, refused, store

__all__ = ["Prepared", "TableWriter", "prepare"]

_Bools = np.ndarray[Any, np.dtype[np.bool_]]
_LONGEST_KEY = 7_500  # bytes; Neo4j indexes about 8 kB


@dataclass(frozen=True)
class Prepared:
    """A table's work in exact columns, known to be writable. ``upserts`` and ``partials`` are the table's columns;
    ``unchanged`` a matrix of rows and columns; ``origins`` and ``deletes`` key columns."""

    work: TableWork
    layout: Layout
    upserts: list[pa.Array]
    upsert_versions: pa.Array
    partials: list[pa.Array]
    partial_versions: pa.Array
    unchanged: _Bools
    origins: list[pa.Array]
    deletes: list[pa.Array]
    delete_versions: pa.Array

    @property
    def schema(self) -> TableSchema:
        return self.work.schema

    @property
    def span(self) -> tuple[int, int]:
        """The smallest and the greatest version."""
        versions = pa.chunked_array([self.upsert_versions, self.partial_versions, self.delete_versions])
        if not len(versions):
            return 2**63 - 1, 0
        found = pc.min_max(versions).as_py()
        return found["min"], found["max"]


def prepare(work: TableWork) -> Prepared:
    """Check every value before anything is written.

    Raises:
        Rejected: values without an exact form. Positions count the upserts, then the partials.
        Misconfigured: the table's shape or names are none for Neo4j.
    """
    schema, rows = work.schema, work.rows
    layout = layout_of(schema)
    bad = _Bad(schema)
    n, k = len(schema.columns), len(schema.key)
    none = pa.array([], pa.int64())
    upserts, partials, origins, deletes = [], [], [], []
    upsert_versions = partial_versions = delete_versions = none
    unchanged = np.zeros((0, n), np.bool_)
    if rows.upserts is not None:
        upserts, upsert_versions = bad.columns(layout, rows.upserts), rows.upserts.column(n)
    bad.offset = len(upsert_versions)
    if rows.partials is not None:
        unchanged = unpacked_masks(rows.partials.column(n + 1), schema)
        partials, partial_versions = bad.columns(layout, rows.partials, unchanged), rows.partials.column(n)
        origins = [exact(a, c)[0] for a, c in zip(rows.partials.column(n + 2).flatten(), schema.key, strict=True)]
    bad.tell()
    if rows.deletes is not None:
        deletes = [exact(rows.deletes.column(j), c)[0] for j, c in enumerate(schema.key)]
        # A key without an exact form was never stored, so there is nothing to delete.
        known = pa.array(~np.any([a.is_null().to_numpy(zero_copy_only=False) for a in deletes], axis=0))
        deletes, delete_versions = [a.filter(known) for a in deletes], rows.deletes.column(k).filter(known)
    return Prepared(
        work,
        layout,
        upserts,
        upsert_versions,
        partials,
        partial_versions,
        unchanged,
        origins,
        deletes,
        delete_versions,
    )


class _Bad:
    """Collects what is refused, and why first."""

    def __init__(self, schema: TableSchema) -> None:
        self.schema = schema
        self.offset = 0
        self._rows: set[int] = set()
        self._reason = ""

    def add(self, rows: _Bools | None, reason: str) -> None:
        if rows is not None and rows.any():
            self._rows.update((np.flatnonzero(rows) + self.offset).tolist())
            self._reason = self._reason or reason

    def columns(self, layout: Layout, batch: pa.RecordBatch, unchanged: _Bools | None = None) -> list[pa.Array]:
        """The table's columns in their exact types."""
        arrays = []
        for i, column in enumerate(self.schema.columns):
            array, wrong = exact(batch.column(i), column)
            self.add(wrong, "a value has no exact form in its column's type")
            self.add(refused(array, column), f"a list in column {column.name} holds NULL, which Neo4j can't store")
            arrays.append(array)
        self.add(
            _too_long(arrays, self.schema), f"its key is longer than {_LONGEST_KEY} bytes, which Neo4j can't index"
        )
        self._words(layout, arrays, unchanged)
        return arrays

    def _words(self, layout: Layout, arrays: list[pa.Array], unchanged: _Bools | None) -> None:
        """Labels and types from columns must be among the allowed ones."""
        if isinstance(layout, NodeLayout):
            position, allowed, required, what = layout.label_position, layout.allowed, False, "label"
        else:
            position, allowed, required, what = layout.type_position, layout.types, True, "type"
        if position is None:
            return
        known = pc.is_in(arrays[position], value_set=pa.array(allowed, pa.string()))
        if not required:
            known = pc.or_(known, arrays[position].is_null())
        wrong = pc.invert(known).to_numpy(zero_copy_only=False)
        if unchanged is not None:
            wrong = wrong & ~unchanged[:, position]
        self.add(wrong, f"column {self.schema.columns[position].name} holds a {what} that is not allowed")

    def tell(self) -> None:
        if self._rows:
            raise Rejected(self.schema.qualified, sorted(self._rows), self._reason)


def _too_long(arrays: list[pa.Array], schema: TableSchema) -> _Bools | None:
    sizes = [pc.binary_length(arrays[i]) for i in schema.key_positions if _sized(arrays[i].type)]
    if not sizes:
        return None
    total = sizes[0]
    for size in sizes[1:]:
        total = pc.add(total, size)
    return pc.greater(total, _LONGEST_KEY).fill_null(False).to_numpy(zero_copy_only=False)


def _sized(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_binary(kind))


# ------------------------------------------------------------------------------------------------ the steps


@dataclass
class TableWriter:
    """The steps of one table in a work's transaction. ``look`` comes before anything of the work is written."""

    tx: Transaction
    prepared: Prepared
    state: State
    _whole: list[Stored] = field(default_factory=list)
    _in_place: list[Stored] = field(default_factory=list)
    _deletes: Stored | None = None
    _fresh: dict[int, bool] = field(default_factory=dict)
    _moves: list[tuple[str, int]] = field(default_factory=list)

    @property
    def layout(self) -> Layout:
        return self.prepared.layout

    @property
    def schema(self) -> TableSchema:
        return self.prepared.schema

    def look(self) -> None:
        """Decide what is written: everything, where the guard can only say yes (Guarantee 5)."""
        prepared = self.prepared
        if len(prepared.upsert_versions):
            rows = self._stored(prepared.upserts, prepared.upsert_versions)
            self._whole.append(rows.take(self._passing(rows.at(self.schema.key_positions), rows.versions)))
        if len(prepared.partial_versions):
            self._look_at_partials()
        if len(prepared.delete_versions):
            keys = [store(a, c) for a, c in zip(prepared.deletes, self.schema.key, strict=True)]
            rows = Stored(dict(zip(self.schema.key_positions, keys, strict=True)), prepared.delete_versions)
            self._deletes = rows.take(self._passing(keys, rows.versions))

    def _stored(self, arrays: Sequence[pa.Array], versions: pa.Array) -> Stored:
        identifying = self.layout.identifying
        columns = {i: store(arrays[i], c, key=i in identifying) for i, c in enumerate(self.schema.columns)}
        return Stored(columns, versions)

    def _passing(self, key: Sequence[Values], versions: pa.Array) -> _Bools:
        lowest, _ = self.prepared.span
        if lowest >= max(self.state.bound, self.prepared.work.truncated or 0):
            return np.ones(len(versions), np.bool_)
        return passing(self.tx, self.layout, self.state, self.prepared.work.truncated, key, versions)

    # -------------------------------------------------------------------------------------- partials

    def _look_at_partials(self) -> None:
        """A partial of a row that stays where it is is written in place; one that takes values from another row, or
        from one that this work removes, is completed from what is stored before it."""
        p = self.prepared
        key = [store(p.partials[i], c) for i, c in zip(self.schema.key_positions, self.schema.key, strict=True)]
        origin = [store(a, c) for a, c in zip(p.origins, self.schema.key, strict=True)]
        passes = self._passing(key, p.partial_versions)
        here, there = (key_texts("", k).to_numpy(zero_copy_only=False) for k in (key, origin))
        completed = (here != there) | self._needs_base() | (p.work.truncated is not None)
        if (passes & completed).any():
            self._complete(np.flatnonzero(passes & completed), origin, here, there)
        for rows in _groups(p.unchanged, np.flatnonzero(passes & ~completed)):
            index = pa.array(rows)
            columns = {
                i: store(p.partials[i].take(index), c, key=i in self.layout.identifying)
                for i, c in enumerate(self.schema.columns)
                if c.key or not p.unchanged[rows[0], i]
            }
            self._in_place.append(Stored(columns, p.partial_versions.take(index)))

    def _needs_base(self) -> _Bools:
        """Relationships of a join table are made anew, and a reference of several columns is written as a whole."""
        unchanged = self.prepared.unchanged
        if not isinstance(self.layout, NodeLayout):
            return np.ones(len(unchanged), np.bool_)
        needed = np.zeros(len(unchanged), np.bool_)
        for link in self.layout.links:
            mine = unchanged[:, list(link.to.positions)]
            needed |= mine.any(axis=1) & ~mine.all(axis=1)
        return needed

    def _complete(self, rows: np.ndarray[Any, Any], origin: list[Values], here: Any, there: Any) -> None:
        p = self.prepared
        found, base = read_keys(self.tx, self.layout, [v.take(pa.array(rows)) for v in origin])
        at = {position: j for j, position in reversed(list(enumerate(found)))}
        versions = base.column(len(self.schema.columns)).to_pylist()
        made = self._moves_made(rows, here, there)
        usable = []
        for j, row in enumerate(rows.tolist()):
            if j not in at:
                continue
            if here[row] != there[row] and (versions[at[j]] > p.partial_versions[row].as_py() or row in made):
                continue
            usable.append((row, at[j]))
        if not usable:
            return
        mine, theirs = (pa.array(list(x), pa.int64()) for x in zip(*usable, strict=True))
        arrays = []
        for i in range(len(self.schema.columns)):
            mask = pa.array(p.unchanged[mine.to_numpy(), i])
            arrays.append(_chosen(mask, base.column(i).take(theirs), p.partials[i].take(mine)))
        self._whole.append(self._stored(arrays, p.partial_versions.take(mine)))
        self._moves += [
            (self._move(here[r], there[r], p.partial_versions[r].as_py()), p.partial_versions[r].as_py())
            for r, _ in usable
            if here[r] != there[r]
        ]

    def _moves_made(self, rows: np.ndarray[Any, Any], here: Any, there: Any) -> set[int]:
        """A row that moves takes values from the other row once: a swap, applied again, would swap back."""
        versions = self.prepared.partial_versions
        names = {self._move(here[r], there[r], versions[r].as_py()): r for r in rows.tolist() if here[r] != there[r]}
        if not names:
            return set()
        found = self.tx.read(f"MATCH (m:{MOVED}) WHERE m.{REF} IN $refs RETURN m.{REF}", refs=list(names))
        return {names[ref] for (ref,) in found}

    def _move(self, here: str, there: str, version: int) -> str:
        return f"{self.schema.qualified}{there} >{here} @{version}"

    # -------------------------------------------------------------------------------------- writes

    def sweep(self) -> None:
        """Remove what a truncation removes."""
        if self.prepared.work.truncated is not None:
            sweep(self.tx, self.layout, self.prepared.work.truncated)

    def write_nodes(self) -> None:
        """Write the rows that are nodes."""
        if isinstance(self.layout, NodeLayout):
            for number, rows in enumerate(self._whole):
                if len(rows):
                    self._fresh[number] = write_nodes(self.tx, self.layout, rows) == len(rows)
            for rows in self._in_place:
                write_nodes(self.tx, self.layout, rows, present=True)

    def write_relationships(self) -> None:
        """Write the rows that are relationships, and those of references."""
        for number, rows in enumerate([*self._whole, *self._in_place]):
            if not len(rows):
                continue
            if not isinstance(self.layout, NodeLayout):
                write_edges(self.tx, self.layout, rows)
                continue
            for link in self.layout.links:
                if all(i in rows.columns for i in link.to.positions):
                    write_links(self.tx, self.layout, link, rows, fresh=self._fresh.get(number, False))

    def drop_relationships(self) -> None:
        """Remove what goes with deleted rows, so that no stub is made for what is gone in the same work."""
        if self._deletes is None or not len(self._deletes):
            return
        key = self._deletes.at(self.schema.key_positions)
        if isinstance(self.layout, NodeLayout):
            drop_own(self.tx, self.layout, key)
        else:
            delete_edges(self.tx, self.layout, key)

    def bury(self) -> None:
        """Remove deleted nodes, and leave tombstones: also for keys that were never there."""
        for start in range(0, len(self._moves), CHUNK):
            moves = self._moves[start : start + CHUNK]
            parameters = Parameters(len(moves))
            ref, version = (parameters.given(values) for values in zip(*moves, strict=True))
            self.tx.write(
                f"{UNWIND} MERGE (m:{MOVED} {{{REF}: {ref}}}) SET m.table = $table, m.version = {version}",
                parameters,
                table=self.schema.qualified,
            )
        if self._deletes is None or not len(self._deletes):
            return
        rows = self._deletes.sorted(self.schema.key_positions)
        if isinstance(self.layout, NodeLayout):
            delete_nodes(self.tx, self.layout.key, rows.at(self.schema.key_positions))
        for chunk in rows.chunks(CHUNK):
            key = chunk.at(self.schema.key_positions)
            parameters = Parameters(len(chunk))
            name = parameters.given(key_texts(self.schema.qualified, key).to_pylist())
            slots = "".join(f", t.{slot(j)} = {parameters.add(values)}" for j, values in enumerate(key))
            versions = parameters.given(chunk.versions.to_pylist())
            self.tx.write(
                f"{UNWIND} MERGE (t:{TOMBSTONE} {{{REF}: {name}}}) SET t.table = $table, t.version = {versions}{slots}",
                parameters,
                table=self.schema.qualified,
            )


def _groups(unchanged: _Bools, rows: np.ndarray[Any, Any]) -> Iterator[np.ndarray[Any, Any]]:
    """Rows that leave the same columns unchanged."""
    if not len(rows):
        return
    _, which = np.unique(unchanged[rows], axis=0, return_inverse=True)
    for group in range(int(which.max()) + 1):
        yield rows[which.ravel() == group]


def _chosen(mask: pa.Array, yes: pa.Array, no: pa.Array) -> pa.Array:
    """``yes`` where the mask says so, also for types that Arrow's if_else does not know."""
    both = pa.concat_arrays([yes, no])
    at = np.where(mask.to_numpy(zero_copy_only=False), 0, len(yes)) + np.arange(len(yes))
    return both.take(pa.array(at))
