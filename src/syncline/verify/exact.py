"""The source's rows in the types that a copy holds, also where a column came as PostgreSQL's text.

A batch carries a whole column as text when one value in it has no exact form in the column's type (see
:class:`~syncline.change.Batch`), and a store then decides value by value. So does this module.
"""

from __future__ import annotations

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from syncline.change import TableSchema, arrow_type
from syncline.pgvalues.pgtypes import cast_text

__all__ = ["INEXACT", "VECTORS", "comparable", "comparable_fields", "exact_rows"]

INEXACT = "inexact\0"  # no column of PostgreSQL can have such a name

# Stores normalise and round vectors, so they are compared by what they were made of.
VECTORS = ("vector", "sparse")


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


def comparable_fields(schema: TableSchema) -> list[tuple[str, pa.DataType]]:
    """Names and types of the columns that two sides are compared by."""
    kept = [c for c in schema.columns if c.type not in VECTORS]
    return [(c.name, pa.string() if c.type == "texts" else arrow_type(c.type)) for c in kept]


def comparable(rows: pa.RecordBatch, schema: TableSchema) -> pa.RecordBatch:
    """The rows (and what stands behind the schema's columns) without vectors, lists as text."""
    if all(c.type not in (*VECTORS, "texts") for c in schema.columns):
        return rows
    arrays, names = [], []
    for column, values in zip(schema.columns, rows.columns, strict=False):
        if column.type not in VECTORS:
            arrays.append(_lists_as_text(values) if column.type == "texts" else values)
            names.append(column.name)
    n = len(schema.columns)
    return pa.RecordBatch.from_arrays([*arrays, *rows.columns[n:]], names=[*names, *rows.schema.names[n:]])


def _lists_as_text(lists: pa.Array) -> pa.Array:
    encode = msgspec.json.encode
    return pa.array([None if v is None else encode(v).decode() for v in lists.to_pylist()], pa.string())
