"""The source's rows in the types that a copy holds, also where a column came as PostgreSQL's text.

A batch carries a whole column as text when one value in it has no exact form in the column's type (see
:class:`~syncline.change.Batch`), and a store then decides value by value. So does this module.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from syncline.capture.pgtypes import cast_text
from syncline.change import TableSchema, arrow_type

__all__ = ["exact_rows"]


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
