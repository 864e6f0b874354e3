"""The source's rows in the types that a copy holds, also where a column came as PostgreSQL's text.

A batch carries a whole column as text when one value in it has no exact form in the column's type (see
:class:`~syncline.change.Batch`), and a store then decides value by value. So does this module.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from syncline.change import TableSchema, arrow_type
from syncline.pgvalues.pgtypes import cast_text

__all__ = ["INEXACT", "comparable", "comparable_fields", "exact_rows"]

INEXACT = "inexact\0"  # no column of PostgreSQL can have such a name

# Arrow compares no lists, so these are compared in another form.
_COMPARED_AS = {"texts": pa.string(), "vector": pa.binary(), "sparse": pa.binary()}


def exact_rows(rows: pa.RecordBatch, schema: TableSchema) -> pa.RecordBatch:
    """The table's columns in their types, what stands behind them, then :data:`INEXACT`: PostgreSQL's text of a row's
    values that have no exact form (NULL in their columns), null where all have one."""
    n = len(schema.columns)
    arrays, inexact = list(rows.columns[:n]), pa.nulls(rows.num_rows, pa.string())
    for i, column in enumerate(schema.columns):
        if arrays[i].type != arrow_type(column.type):
            arrays[i], texts = _value_by_value(arrays[i], column.type)
            named = pc.binary_join_element_wise(str(i), texts, "=")
            inexact = pc.coalesce(pc.binary_join_element_wise(inexact, named, "\0"), inexact, named)
    names = [*(c.name for c in schema.columns), *rows.schema.names[n:], INEXACT]
    return pa.RecordBatch.from_arrays([*arrays, *rows.columns[n:], inexact], names=names)


def _value_by_value(texts: pa.Array, logical: str) -> tuple[pa.Array, pa.Array]:
    """Each distinct text on its own: its value, and the text where it has none. So rare a case that it may be slow."""
    wanted = arrow_type(logical)
    encoded = texts.dictionary_encode()
    values = [_cast(encoded.dictionary.slice(i, 1), logical) for i in range(len(encoded.dictionary))]
    exact = [v if v.type == wanted else pa.nulls(1, wanted) for v in values]
    bad = np.array([v.type != wanted for v in values], np.bool_)
    found = pa.concat_arrays([*exact, pa.nulls(1, wanted)])
    places = encoded.indices.fill_null(len(values))
    inexact = pa.array(np.append(bad, False)[places.to_numpy(zero_copy_only=False)])
    return found.take(places), pc.if_else(inexact, texts, pa.scalar(None, pa.string()))


def _cast(text: pa.Array, logical: str) -> pa.Array:
    """One value; still text where it has no exact form, also for more digits than the source's type has."""
    try:
        return cast_text(text, logical)
    except (ValueError, pa.ArrowInvalid):
        return text


def comparable_fields(schema: TableSchema, made: Mapping[str, str]) -> list[tuple[str, pa.DataType]]:
    """Names and types of the columns as two sides are compared by them (see :func:`comparable`)."""
    return [
        (c.name, pa.bool_() if c.name in made else _COMPARED_AS.get(c.type, arrow_type(c.type))) for c in schema.columns
    ]


def comparable(rows: pa.RecordBatch, schema: TableSchema, made: Mapping[str, str], *, source: bool) -> pa.RecordBatch:
    """The rows (and what stands behind the schema's columns) with lists as text and vectors as bytes.

    ``made`` are vectors that an embedder makes, and the columns that hold a digest of their text. They are not made for
    this again: of the ``source`` it is compared whether there is a text, of the target whether there is a vector.
    """
    arrays, names = [], rows.schema.names
    for column, values in zip(schema.columns, rows.columns, strict=False):
        if column.name in made:
            values = (rows.column(names.index(made[column.name])) if source else values).is_valid()
        elif column.type == "texts":
            values = _lists_as_text(values)
        elif column.type == "vector":
            values = _numbers_as_bytes(values)
        elif column.type == "sparse":
            parts = [_numbers_as_bytes(values.field(i)) for i in range(2)]
            values = pc.if_else(
                values.is_valid(), pc.binary_join_element_wise(*parts, pa.scalar(b"|")), pa.scalar(None, pa.binary())
            )
        arrays.append(values)
    return pa.RecordBatch.from_arrays([*arrays, *rows.columns[len(schema.columns) :]], names=names)


def _lists_as_text(lists: pa.Array) -> pa.Array:
    encode = msgspec.json.encode
    return pa.array([None if v is None else encode(v).decode() for v in lists.to_pylist()], pa.string())


def _numbers_as_bytes(lists: pa.ListArray) -> pa.Array:
    """Each list of numbers as the bytes of its numbers in four bytes each; no number (NULL) is NaN, and -0 is 0."""
    numbers = lists.flatten()
    kind = "<f4" if pa.types.is_floating(numbers.type) else "<u4"
    data = np.ascontiguousarray(numbers.to_numpy(zero_copy_only=False), kind)
    if kind == "<f4":
        data = data + np.float32(0)
    lengths = pc.fill_null(pc.list_value_length(lists), 0).to_numpy(zero_copy_only=False)
    ends = np.concatenate(([0], np.cumsum(lengths, dtype=np.int64))) * 4
    made = pa.LargeBinaryArray.from_buffers(
        pa.large_binary(), len(lists), [None, pa.py_buffer(ends), pa.py_buffer(data)]
    )
    return pc.if_else(lists.is_valid(), made, pa.scalar(None, pa.large_binary())).cast(pa.binary())
