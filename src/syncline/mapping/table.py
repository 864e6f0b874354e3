"""One table at one target: the schema that it has there, and its rows. Pure; columns in, columns out.

Order: filter, transform, pick and rename, convert. Keys stay what they are but for their names, so that the key of an
old row is always known (correctness rule 8); deletes and keys therefore only change their names.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from syncline.change import Column, TableSchema, arrow_type
from syncline.errors import Misconfigured, Rejected
from syncline.mapping.columns import Inexpressible, Taken, converted, refuse_doubles, take_columns
from syncline.mapping.embed import Embedder
from syncline.mapping.facts import Facts
from syncline.mapping.settings import KeysMapping, PointsMapping, TableMapping
from syncline.mapping.shapes import holes, needed_columns, needed_forms, shape_of
from syncline.mapping.transform import (
    Failed,
    Filter,
    PythonTransform,
    SqlTransform,
    Transform,
    empty_rows,
    source_digest,
)

__all__ = ["MappedTable", "Whole"]

Bools = np.ndarray[Any, np.dtype[np.bool_]]
# The logical type of what a transform makes.
_LOGICAL: list[tuple[pa.DataType, str]] = [
    (arrow_type(name), name)
    for name in (
        *("bool", "int2", "int4", "int8", "float4", "float8", "bytes", "date", "time", "timestamp", "timestamptz"),
        *("text", "texts", "vector"),
    )
]


@dataclass(frozen=True, slots=True)
class Whole:
    """Whole rows as the target holds them: the mapped columns; ``taken`` are the positions that they come from (None:
    all, in order), ``gone`` those of rows that the filter or the transform leaves out."""

    rows: pa.RecordBatch
    taken: pa.Array | None = None
    gone: pa.Array | None = None


class MappedTable:
    """The mapping of one table in one schema version.

    Raises:
        Misconfigured: the settings do not fit the table.
    """

    def __init__(
        self,
        facts: Facts,
        settings: TableMapping,
        all_facts: Mapping[str, Facts],
        chosen: Mapping[str, TableMapping],
    ) -> None:
        self.source = facts.schema
        self._settings = settings
        self._filter = Filter(self.source, settings.where) if settings.where else None
        self._transform = _transform(settings.transform)
        self._staged = stage = self._stage()
        facts = Facts(stage, facts.foreign_keys)
        self._taken = take_columns(stage, settings, needed_columns(facts, settings, chosen), needed_forms(settings))
        self._of_stage = self._transform is not None
        self.embedders = _embedders(stage, settings, self._taken)
        names = {stage.columns[t.position].name: t.column.name for t in self._taken if t.position >= 0}
        made = tuple(c for e in self.embedders for c in e.columns)
        columns = (*(t.column for t in self._taken), *made)
        refuse_doubles(self.source, columns)
        self.schema = TableSchema(
            self.source.namespace,
            self.source.name,
            columns,
            shape_of(facts, settings, names, all_facts, chosen),
            self._fingerprint(),
        )

    def _fingerprint(self) -> str:
        """What decides, beside columns and shape, what rows become; '' where nothing does."""
        settings = self._settings
        code: list[Any] = [settings.where, settings.transform, settings.constants]
        code += [[e.reference, e.model, e.texts] for e in self.embedders]
        if isinstance(self._transform, PythonTransform):
            code.append(source_digest(self._transform.function))
        if not (settings.where or settings.transform or settings.constants or self.embedders):
            return ""
        return hashlib.sha256(msgspec.json.encode(code)).hexdigest()[:16]

    @property
    def trivial(self) -> bool:
        """Whether rows stay exactly what they are."""
        return self.schema == self.source

    @property
    def of_every_row(self) -> bool:
        """Whether each row of the source becomes one here."""
        return self._filter is None and self._transform is None

    @property
    def names(self) -> dict[str, str]:
        """What columns of the source are called here, of those that are here as they are; without a transform."""
        if self._transform is not None:
            return {}
        taken = [t for t in self._taken if t.position >= 0]
        columns = self._staged.columns
        return {columns[t.position].name: t.column.name for t in taken if columns[t.position].type == t.column.type}

    @property
    def digest(self) -> str:
        """What rows become, in short; '' where they stay what they are. With another digest the table has to be read
        again (correctness rule 21)."""
        return "" if self.trivial else self.schema.outline

    # ------------------------------------------------------------------------------------------------- set-up

    def _stage(self) -> TableSchema:
        """The schema behind the transform."""
        if self._transform is None:
            return self.source
        what = f"The transform of table {self.source.qualified}"
        try:
            made = self._transform.rows(empty_rows(self.source))
        except Failed as error:
            raise Misconfigured(
                f"{what} fails on an empty batch: {error}{f' ({error.__cause__})' if error.__cause__ else ''}."
            ) from error
        columns = []
        known = {c.name: c for c in self.source.columns}
        for field in made.schema:
            given = known.get(field.name)
            if given is not None and arrow_type(given.type) == field.type:
                columns.append(given)
            else:
                columns.append(Column(field.name, _logical(field, what), "transform"))
        for key in self.source.key:
            if key not in columns:
                raise Misconfigured(
                    f"{what} leaves out key column {key.name}, or changes its type.",
                    remedy="Its result must hold the table's key, unchanged.",
                )
        # The columns of a key stand in the source's order, by which keys of deletes are told (correctness rule 8).
        keys = iter(self.source.key)
        columns = [next(keys) if column in self.source.key else column for column in columns]
        return TableSchema(self.source.namespace, self.source.name, tuple(columns))

    # ------------------------------------------------------------------------------------------------- rows

    def whole(self, rows: pa.RecordBatch) -> Whole:
        """Map whole rows: the source's columns (others behind them are ignored). Keys are unique.

        Raises:
            Rejected: some rows can't be mapped, with their positions.
        """
        given = rows.select(list(range(len(self.source.columns))))
        if self._filter is None and self._transform is None:
            return Whole(self._columns(given, self._taken, range(given.num_rows)))
        exact = self._exact(given)
        taken = self._filtered(exact)
        if self._transform is None:
            batch = given.take(taken)
        else:
            try:
                made, places = self._transformed(self._transform, exact.take(taken))
            except Rejected as error:  # positions of the rows that passed the filter
                raise Rejected(error.table, taken.take(pa.array(error.rows)).to_pylist(), error.reason) from error
            taken = taken.take(places)
            batch = pa.RecordBatch.from_arrays([_one(c) for c in made.columns], names=made.column_names)
        gone = pc.filter(
            pa.array(np.arange(given.num_rows)), pa.array(~np.isin(np.arange(given.num_rows), taken.to_numpy()))
        )
        return Whole(self._columns(batch, self._taken, taken.to_pylist()), taken, gone)

    def _columns(self, stage: pa.RecordBatch, taken: Sequence[Taken], positions: Sequence[int]) -> pa.RecordBatch:
        n, arrays, bad = stage.num_rows, [], np.zeros(stage.num_rows, np.bool_)
        why = ""
        for each in taken:
            if each.position < 0:
                arrays.append(pa.array([each.constant] * n, arrow_type(each.column.type)))
                continue
            try:
                arrays.append(converted(stage.column(each.position), each.form))
            except Inexpressible as error:
                why = f"column {each.column.name}: {error.why}"
                bad |= error.bad.to_numpy(zero_copy_only=False)
        if bad.any():
            raise Rejected(self.source.qualified, [positions[i] for i in np.flatnonzero(bad).tolist()], why)
        made = [a for e in self.embedders for a in e.placeholders(arrays)]
        names = [c.name for c in self.schema.columns]
        return pa.RecordBatch.from_arrays([*arrays, *made], names=names)

    def _exact(self, rows: pa.RecordBatch) -> pa.Table:
        """The rows in their columns' own types: what SQL and Python get to see.

        Raises:
            Rejected: a value that they look at came as text because it has no exact form there.
        """
        arrays, bad = [], np.zeros(rows.num_rows, np.bool_)
        for column, values in zip(self.source.columns, rows.columns, strict=True):
            wanted = arrow_type(column.type)
            if values.type != wanted:
                values, inexact = _cast_each(values, wanted)
                if self._transform is not None or (self._filter is not None and column.name in self._filter.columns):
                    bad |= inexact
            arrays.append(values)
        if bad.any():
            raise Rejected(
                self.source.qualified,
                np.flatnonzero(bad).tolist(),
                "a value has no exact form in its column's type, so its filter or transform can't be computed",
            )
        return pa.Table.from_arrays(arrays, names=[c.name for c in self.source.columns])

    def _filtered(self, rows: pa.Table) -> pa.Array:
        if self._filter is None:
            return pa.array(np.arange(rows.num_rows))
        try:
            return self._filter.positions(rows)
        except Failed as error:
            raise self._blame(rows, self._filter.positions, f"`where` fails ({error})") from error

    def _transformed(self, transform: Transform, rows: pa.Table) -> tuple[pa.Table, pa.Array]:
        """What the transform makes, and from which row each of its rows is."""

        def act(some: pa.Table) -> pa.Table:
            return self._as_staged(transform.rows(some))

        try:
            made = act(rows)
        except Failed as error:
            raise self._blame(rows, act, f"its transform fails ({error})") from error
        key = [c.name for c in self.source.key]
        keys = [f"key{i}" for i in range(len(key))]
        numbered = rows.select(key).rename_columns(keys).append_column("row", pa.array(np.arange(rows.num_rows)))
        found = made.select(key).rename_columns(keys).append_column("made", pa.array(np.arange(made.num_rows)))
        joined = found.join(numbered, keys, join_type="left outer").sort_by("made")
        places = _one(joined.column("row"))
        if places.null_count or pc.count_distinct(places).as_py() < len(places):
            raise Misconfigured(
                f"The transform of table {self.source.qualified} changed keys, or made several rows of one.",
                remedy="It gives at most one row for each row, under the same key.",
            )
        return made, places

    def _as_staged(self, made: pa.Table) -> pa.Table:
        """What a transform made, in the types that it made of no rows.

        Raises:
            Misconfigured: it has other columns.
            Failed: a value does not fit its column.
        """
        staged = pa.schema([(c.name, arrow_type(c.type)) for c in self._staged.columns])
        if sorted(made.schema.names) != sorted(staged.names):
            raise Misconfigured(f"The transform of table {self.source.qualified} makes other columns than at first.")
        try:
            return made.select(staged.names).cast(staged)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
            raise Failed("a value has not the type that its column has for no rows") from error

    def _blame(self, rows: pa.Table, act: Any, why: str) -> Rejected:
        """Which rows the user's code fails on, by halves."""

        def bad(start: int, count: int) -> list[int]:
            try:
                act(rows.slice(start, count))
                return []
            except Failed:
                if count == 1:
                    return [start]
            half = count // 2
            return bad(start, half) + bad(start + half, count - half)

        found = bad(0, rows.num_rows)
        if not found:
            raise Misconfigured(f"Of table {self.source.qualified}, {why} on a batch, but on none of its rows alone.")
        return Rejected(self.source.qualified, found, why)

    # --------------------------------------------------------------------------------- keys, deletes, partial rows

    def keys(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """Keys under their names at the target; what stands behind them stays."""
        names = [c.name for c in self.schema.key]
        return batch.rename_columns([*names, *batch.schema.names[len(names) :]])

    def source_keys(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """The reverse."""
        names = [c.name for c in self.source.key]
        return batch.rename_columns([*names, *batch.schema.names[len(names) :]])

    def incomplete(self, unchanged: Bools) -> Bools:
        """Which partial rows (a mask of rows and source columns) lack a value that the mapping computes with; they have
        to be healed first (correctness rule 6)."""
        lacking: Bools = np.any(unchanged[:, list(self._needs)], axis=1)
        for embedder in self.embedders:
            texts = unchanged[:, list(embedder.positions)]
            lacking |= np.any(texts, axis=1) & ~np.all(texts, axis=1)
        return lacking

    @cached_property
    def _needs(self) -> tuple[int, ...]:
        """Positions of source columns without which a row can't be mapped. Too many cost a healing, too few make a
        wrong row."""
        if self._of_stage:
            return tuple(range(len(self.source.columns)))
        templates = self._settings.members if isinstance(self._settings, KeysMapping) else ()
        named = {hole for m in templates for hole in holes(m.key)} | (self._filter.columns if self._filter else set())
        return tuple(i for i, c in enumerate(self.source.columns) if c.name in named)

    def partials(self, batch: pa.RecordBatch, unchanged: Bools) -> tuple[pa.RecordBatch, Bools]:
        """Partial rows (without a transform): mapped columns, and their mask. Values masked as unchanged are NULL.

        Raises:
            Rejected: as :meth:`whole`, positions among these rows.
        """
        stage = batch.select(list(range(len(self.source.columns))))
        mapped = self._columns(stage, self._taken, range(stage.num_rows))
        masks: list[Any] = [
            unchanged[:, t.position] if t.position >= 0 else np.zeros(stage.num_rows, np.bool_) for t in self._taken
        ]
        for embedder in self.embedders:
            masks += [np.all(unchanged[:, list(embedder.positions)], axis=1)] * len(embedder.columns)
        return mapped, np.stack(masks, axis=1)

    def passing(self, batch: pa.RecordBatch) -> pa.Array | None:
        """Positions of partial rows that meet the filter (whose columns they have, see :meth:`incomplete`)."""
        if self._filter is None:
            return None
        return self._filtered(self._exact(batch.select(list(range(len(self.source.columns))))))


def _transform(text: str | None) -> Transform | None:
    if text is None:
        return None
    text = text.strip()
    return SqlTransform(text) if re.search(r"\s", text) else PythonTransform(text)


def _embedders(stage: TableSchema, settings: TableMapping, taken: Sequence[Taken]) -> tuple[Embedder, ...]:
    if not isinstance(settings, PointsMapping):
        return ()
    at = {t.position: i for i, t in enumerate(taken)}
    place = {c.name: i for i, c in enumerate(stage.columns)}
    made = []
    for name, rule in settings.vectors.items():
        if rule.embed:
            positions = [place[text] for text in rule.text]
            made.append(Embedder(name, rule, positions, [at[p] for p in positions]))
    return tuple(made)


def _logical(field: pa.Field, what: str) -> str:
    kind = field.type
    if pa.types.is_decimal128(kind):
        return f"numeric({kind.precision},{kind.scale})"
    for known, name in _LOGICAL:
        if kind == known:
            return name
    raise Misconfigured(
        f"{what} makes column {field.name} of type {kind}, which no target holds.",
        remedy="Cast it, for example to varchar, bigint, double or timestamptz.",
    )


def _one(column: pa.ChunkedArray) -> pa.Array:
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()


def _cast_each(texts: pa.Array, wanted: pa.DataType) -> tuple[pa.Array, Bools]:
    """Text as values of a type, value by value, and where there is none."""
    values, bad = [], []
    for i in range(len(texts)):
        try:
            values.append(texts.slice(i, 1).cast(wanted))
            bad.append(False)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
            values.append(pa.nulls(1, wanted))
            bad.append(True)
    return pa.concat_arrays(values) if values else pa.array([], wanted), np.array(bad, np.bool_)
