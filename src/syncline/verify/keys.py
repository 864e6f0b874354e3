"""Keys as people write them."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa

from syncline.change import TableSchema, arrow_type
from syncline.errors import Misconfigured
from syncline.pgvalues.pgtypes import cast_text

__all__ = ["key_of"]


def key_of(schema: TableSchema, given: Sequence[str]) -> pa.RecordBatch:
    """The key as a batch of one row.

    Raises:
        Misconfigured: it names other columns, or a value is none of its column's type.
    """
    names = [c.name for c in schema.key]
    split = [text.partition("=") for text in given]
    named = {name: value for name, equals, value in split if equals and name in names}
    values = [named[n] for n in names] if set(named) == set(names) and len(given) == len(names) else list(given)
    if len(values) != len(names) or (named and len(named) != len(names)):
        example = " ".join(f"--key {name}=..." for name in names)
        raise Misconfigured(f"The key of table {schema.qualified} is {', '.join(names)}.", remedy=f"Say {example}.")
    arrays = []
    for column, text in zip(schema.key, values, strict=True):
        try:
            array = cast_text(pa.array([text], pa.string()), column.type)
        except (ValueError, pa.ArrowInvalid):
            array = None
        if array is None or array.type != arrow_type(column.type):
            raise Misconfigured(
                f"What is given for {column.name} is no {column.source_type}.",
                remedy="Write it as PostgreSQL does.",
            )
        arrays.append(array)
    return pa.RecordBatch.from_arrays(arrays, names=names)
