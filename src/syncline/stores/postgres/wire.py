"""Arrow columns as PostgreSQL's binary arrays: a batch reaches the server as one parameter a column. Pure.

An array's binary form is a header and its elements, each behind its length; so whole columns are put together by numpy
and Arrow, and no Python runs per value. What has no binary form of its own here goes as PostgreSQL's text.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from psycopg.adapt import Dumper
from psycopg.pq import Format

from syncline.change import Column, arrow_type
from syncline.pgvalues.values import EPOCH_DAYS, EPOCH_US, INFINITY_DATE, INFINITY_TIME

__all__ = ["Wire", "WireDumper", "array_of", "is_text", "sent_as"]

# logical type -> its name and oid at the server, and the big-endian layout of its values.
_FIXED: dict[str, tuple[str, int, str]] = {
    "bool": ("bool", 16, "u1"),
    "int2": ("int2", 21, ">i2"),
    "int4": ("int4", 23, ">i4"),
    "int8": ("int8", 20, ">i8"),
    "float4": ("float4", 700, ">f4"),
    "float8": ("float8", 701, ">f8"),
    "uuid": ("uuid", 2950, "V16"),
    "date": ("date", 1082, ">i4"),
    "time": ("time", 1083, ">i8"),
    "timestamp": ("timestamp", 1114, ">i8"),
    "timestamptz": ("timestamptz", 1184, ">i8"),
}
_TEXT_OID, _BYTEA_OID = 25, 17

Values = np.ndarray[Any, Any]


class Wire:
    """Bytes of an array, as they go to the server."""

    __slots__ = ("data",)

    def __init__(self, data: bytes) -> None:
        self.data = data


class WireDumper(Dumper):
    """Hands the bytes of a :class:`Wire` on; the statement's cast says what they are."""

    format = Format.BINARY

    def dump(self, obj: Wire) -> bytes:
        return obj.data


def is_text(column: Column, given: pa.DataType) -> bool:
    """Whether a batch carries this column as PostgreSQL's text instead of in its own type."""
    return bool(pa.types.is_string(given)) and arrow_type(column.type) != pa.string()


def sent_as(column: Column, given: pa.DataType) -> str:
    """The server's type that the values are sent as."""
    if column.type in _FIXED and not is_text(column, given):
        return _FIXED[column.type][0]
    return "bytea" if column.type == "bytes" and not is_text(column, given) else "text"


def array_of(values: pa.Array, column: Column, base: str) -> Wire:
    """The column's values as an array of :func:`sent_as`. ``base`` is the type of the column that they are for."""
    kind = sent_as(column, values.type)
    null = np.asarray(values.is_null()) if values.null_count else None
    if kind == "text":
        return _framed(_TEXT_OID, len(values), null, _varying(_texts(values, base)))
    if kind == "bytea":
        return _framed(_BYTEA_OID, len(values), null, _varying(values))
    _, oid, layout = _FIXED[column.type]
    return _framed(oid, len(values), null, _fixed(_numbers(values, column.type), layout, null))


def _framed(oid: int, count: int, null: Values | None, data: bytes) -> Wire:
    if not count:
        return Wire(np.array([0, 0, oid], ">i4").tobytes())
    return Wire(np.array([1, null is not None, oid, count, 1], ">i4").tobytes() + data)


def _fixed(values: Values, layout: str, null: Values | None) -> bytes:
    elements = np.empty(len(values), np.dtype([("length", ">i4"), ("value", layout)]))
    width = elements.dtype["value"].itemsize
    elements["length"], elements["value"] = width, values
    if null is None:
        return elements.tobytes()
    elements["length"][null] = -1  # and nothing behind it
    kept = np.ones((len(values), 4 + width), np.bool_)
    kept[null, 4:] = False
    return elements.view(np.uint8).reshape(kept.shape)[kept].tobytes()


def _varying(values: pa.Array) -> bytes:
    values = values.cast(pa.binary())
    lengths = pc.binary_length(values).fill_null(-1).to_numpy().astype(">i4")
    spots = pa.py_buffer(np.arange(0, 4 * len(values) + 4, 4, dtype=np.int32))
    prefixes = pa.Array.from_buffers(pa.binary(), len(values), [None, spots, pa.py_buffer(lengths)])
    nothing = pa.scalar(b"", pa.binary())
    joined = pc.binary_join_element_wise(prefixes, values, nothing, null_handling="replace", null_replacement=b"")
    _, offsets, data = joined.buffers()
    return data.slice(0, int(np.frombuffer(offsets, np.int32)[len(joined)])).to_pybytes()


def _numbers(values: pa.Array, logical: str) -> Values:
    if logical == "uuid":
        filled = values.fill_null(b"\0" * 16) if values.null_count else values
        return np.frombuffer(filled.buffers()[1], "V16")[filled.offset : filled.offset + len(filled)]
    if logical == "bool":
        return values.fill_null(False).to_numpy(zero_copy_only=False)
    if logical == "date":
        return _since_2000(_stored(values, pa.int32()).astype(np.int64), EPOCH_DAYS, INFINITY_DATE)
    if logical in ("timestamp", "timestamptz"):
        return _since_2000(_stored(values, pa.int64()), EPOCH_US, INFINITY_TIME)
    return _stored(values, pa.int64() if logical == "time" else values.type)


def _stored(values: pa.Array, kind: pa.DataType) -> Values:
    plain = values.view(kind)
    return (plain.fill_null(0) if plain.null_count else plain).to_numpy(zero_copy_only=False)


def _since_2000(since_1970: Values, shift: int, top: int) -> Values:
    """PostgreSQL's infinities are the very ends of its integers. What the shift would carry there or beyond becomes the
    number beside the lower one, which is no date to PostgreSQL either, so that it refuses the row."""
    moved = np.where(since_1970 < shift - top, -top, since_1970 - shift)
    moved[since_1970 == top] = top
    moved[since_1970 == -top] = -top - 1
    return moved


# ---------------------------------------------------------------------------------------------------------- text


def _texts(values: pa.Array, base: str) -> pa.Array:
    """The values as text that PostgreSQL reads as exactly these."""
    if pa.types.is_list(values.type):
        return _lists(values, "[]" if base.rpartition(".")[2].strip('"') == "vector" else "{}")
    if pa.types.is_struct(values.type):
        return _objects(values)
    return values if pa.types.is_string(values.type) else values.cast(pa.string())


def _lists(values: pa.Array, brackets: str) -> pa.Array:
    elements = values.flatten()
    if pa.types.is_string(elements.type):
        for sign in ("\\", '"'):
            elements = pc.replace_substring(elements, sign, "\\" + sign)
        elements = pc.binary_join_element_wise('"', elements, '"', "")
    elements = elements.cast(pa.string()).fill_null("NULL")
    counts = pc.list_value_length(values).fill_null(0).to_numpy(zero_copy_only=False)
    offsets = pa.array(np.concatenate([[0], np.cumsum(counts)]).astype(np.int32))
    joined = pc.binary_join(pa.ListArray.from_arrays(offsets, elements), ",")
    framed = pc.binary_join_element_wise(brackets[0], joined, brackets[1], "")
    return pc.if_else(values.is_valid(), framed, pa.scalar(None, pa.string()))


def _objects(values: pa.Array) -> pa.Array:
    """Structs of lists of numbers (sparse vectors) as JSON objects."""
    pieces: list[Any] = []
    for i, field in enumerate(values.type):
        pieces += [f'{"," if i else "{"}"{field.name}":', _lists(values.field(i), "[]")]
    framed = pc.binary_join_element_wise(*pieces, "}", "")
    return pc.if_else(values.is_valid(), framed, pa.scalar(None, pa.string()))
