"""The source's rows in the types that a copy holds, also where a column came as PostgreSQL's text.

A batch carries a whole column as text when one value in it has no exact form in the column's type (see
:class:`~syncline.change.Batch`), and a store then decides value by value. So does this module.
"""

from __future__ import annotations

import msgspec
import numpy as np
import pyarrow as pa

from syncline.change import TableSchema, arrow_type
from syncline.pgvalues.pgtypes import cast_text

__all__ = ["VECTORS", "comparable", "comparable_fields", "exact_rows"]

# Stores normalise and round vectors, so they are compared by what they were made of.
VECTORS = ("vector", "sparse")


def exact_rows(rows: pa.RecordBatch, schema: TableSchema) -> pa.RecordBatch:
    """The table's columns in their types, then ``inexact``: true where a value of the row has no exact form."""
    inexact = np.zeros(rows.num_rows, np.bool_)
    arrays = []
    for column, values in zip(schema.columns, rows.columns, strict=True):
        if values.type != arrow_type(column.type):
            values, bad = _value_by_value(values, column.type)
            inexact |= bad
        arrays.append(values)
    names = [c.name for c in schema.columns]
    return pa.RecordBatch.from_arrays([*arrays, pa.array(inexact)], names=[*names, "inexact"])


def _value_by_value(texts: pa.Array, logical: str) -> tuple[pa.Array, np.ndarray[tuple[int], np.dtype[np.bool_]]]:
    """Each distinct text on its own; so rare a case that it may be slow."""
    wanted = arrow_type(logical)
    encoded = texts.dictionary_encode()
    values = [cast_text(encoded.dictionary.slice(i, 1), logical) for i in range(len(encoded.dictionary))]
    exact = [v if v.type == wanted else pa.nulls(1, wanted) for v in values]
    bad = np.array([v.type != wanted for v in values], np.bool_)
    found = pa.concat_arrays([*exact, pa.nulls(1, wanted)])
    places = encoded.indices.fill_null(len(values))
    return found.take(places), np.append(bad, False)[places.to_numpy(zero_copy_only=False)]


def comparable_fields(schema: TableSchema) -> list[tuple[str, pa.DataType]]:
    """Names and types of the columns that two sides are compared by."""
    kept = [c for c in schema.columns if c.type not in VECTORS]
    return [(c.name, pa.string() if c.type == "texts" else arrow_type(c.type)) for c in kept]


def comparable(rows: pa.RecordBatch, schema: TableSchema) -> pa.RecordBatch:
    """The rows (and the one column behind the schema's) without vectors, lists as text."""
    if all(c.type not in (*VECTORS, "texts") for c in schema.columns):
        return rows
    arrays, names = [], []
    for column, values in zip(schema.columns, rows.columns, strict=False):
        if column.type not in VECTORS:
            arrays.append(_lists_as_text(values) if column.type == "texts" else values)
            names.append(column.name)
    return pa.RecordBatch.from_arrays([*arrays, rows.columns[-1]], names=[*names, rows.schema.names[-1]])


def _lists_as_text(lists: pa.Array) -> pa.Array:
    encode = msgspec.json.encode
    return pa.array([None if v is None else encode(v).decode() for v in lists.to_pylist()], pa.string())
