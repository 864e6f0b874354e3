"""Keys as people write them, and as they are shown to people: what is shown can be given."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa

from syncline.change import TableSchema, arrow_type
from syncline.errors import Misconfigured
from syncline.pgvalues.pgtypes import cast_text

__all__ = ["key_of", "plain", "shown"]

_BOOLS: Mapping[str, str] = {**dict.fromkeys(("true", "yes", "1"), "t"), **dict.fromkeys(("false", "no", "0"), "f")}


def plain(value: pa.Scalar) -> Any:
    """A value as people and JSON know it."""
    try:
        found = value.as_py()
    except (ValueError, OverflowError):  # beyond what Python's dates hold
        found = value.value
    if isinstance(found, bytes):
        return str(uuid.UUID(bytes=found)) if pa.types.is_fixed_size_binary(value.type) else f"\\x{found.hex()}"
    return found if found is None or isinstance(found, (bool, int, str, list, dict)) else str(found)


def shown(keys: pa.Table, row: int) -> str:
    """One of the keys in a line: its values, separated by commas."""
    return ", ".join(_text(plain(column[row])) for column in keys.columns)


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


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
            array = cast_text(pa.array([_written(text, column.type)], pa.string()), column.type)
        except (ValueError, pa.ArrowInvalid):
            array = None
        if array is None or array.type != arrow_type(column.type):
            raise Misconfigured(
                f"What is given for {column.name} is no {column.source_type}.",
                remedy="Write it as PostgreSQL does.",
            )
        arrays.append(array)
    return pa.RecordBatch.from_arrays(arrays, names=names)


def _written(text: str, logical: str) -> str:
    """A value as PostgreSQL writes it, of those types that people, and :func:`plain`, write in other ways as well."""
    if logical == "bool":
        return _BOOLS.get(text.lower(), text)
    try:
        if logical == "uuid":
            return str(uuid.UUID(text))
        if logical == "timestamptz" and (moment := datetime.fromisoformat(text)).tzinfo is not None:
            return f"{moment.astimezone(UTC).replace(tzinfo=None).isoformat(sep=' ')}+00"
    except (ValueError, OverflowError):
        pass  # as it is, then: what PostgreSQL writes is known anyway
    return text
