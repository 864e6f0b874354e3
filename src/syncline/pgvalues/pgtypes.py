"""PostgreSQL's types as Arrow columns: which type becomes which, and the decoding of whole columns. Pure.

Text is the path that is always right; the binary layout is used for the types in :data:`BINARY_EXACT` only, where it is
known exactly. Both give the same Arrow arrays. There is no Python per value, except for the rows of a column whose
text Arrow's casts don't know (infinity, years before Christ or after 9999), and for columns that fall back to text.
"""

from __future__ import annotations

import binascii
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from syncline.change import arrow_type
from syncline.pgvalues.decimals import decimals
from syncline.pgvalues.tuples import Bools, Cells, Malformed, Words
from syncline.pgvalues.values import (
    EPOCH_DAYS,
    EPOCH_US,
    INFINITY_DATE,
    INFINITY_TIME,
    JSONB,
    UNSIGNED_OIDS,
    Inexact,
    from_binary,
    from_text,
    precision_scale,
    text_of_binary,
)

__all__ = ["BINARY_EXACT", "binary_exact", "cast_binary", "cast_text", "logical_type"]

_NUMERIC = 1700
_LOGICAL = {
    16: "bool",
    17: "bytes",
    20: "int8",
    21: "int2",
    23: "int4",
    26: "int8",  # oid, xid and cid are unsigned and 32 bits wide
    28: "int8",
    29: "int8",
    114: "json",
    700: "float4",
    701: "float8",
    1082: "date",
    1083: "time",
    1114: "timestamp",
    1184: "timestamptz",
    2950: "uuid",
    JSONB: "json",
}

# All of the above, and the types whose binary form is their text: name, text, bpchar, varchar.
BINARY_EXACT: frozenset[int] = frozenset(_LOGICAL) | {_NUMERIC, 19, 25, 1042, 1043}


def logical_type(oid: int, typmod: int) -> str:
    """Syncline's type (``Column.type``) of a built-in base type; ``text`` for whatever has no exact one.

    ``typmod`` is the column's type modifier (-1 for none). Domains are the caller's: it passes base type and modifier.
    """
    if oid == _NUMERIC and typmod >= 4:
        precision = ((typmod - 4) >> 16) & 0xFFFF
        scale = (((typmod - 4) & 0x7FF) ^ 1024) - 1024
        if 1 <= precision <= 38 and 0 <= scale <= precision:
            return f"numeric({precision},{scale})"
    return _LOGICAL.get(oid, "text")


def binary_exact(oid: int, typmod: int) -> bool:
    """Whether the binary form of this type is decoded to the same values as its text."""
    if oid == _NUMERIC:
        return logical_type(oid, typmod) != "text"
    return oid in BINARY_EXACT


def cast_text(column: pa.Array, logical: str) -> pa.Array:
    """PostgreSQL's text output (a binary or string array) as ``arrow_type(logical)``.

    If a value has no exact form in that type, the whole column is ``string`` with PostgreSQL's text.

    Raises:
        ValueError: PostgreSQL doesn't print a value of this type like that.
    """
    return _raising(text_cells, Cells.of(column), logical)


def cast_binary(column: pa.Array, oid: int, logical: str) -> pa.Array:
    """PostgreSQL's binary output (a binary array) of a type in :data:`BINARY_EXACT` as ``arrow_type(logical)``.

    If a value has no exact form in that type, the whole column is ``string`` with PostgreSQL's text.

    Raises:
        ValueError: not the binary layout of this type.
    """
    return _raising(binary_cells, Cells.of(column), oid, logical)


def _raising(cast: Any, *args: Any) -> pa.Array:
    try:
        return cast(*args)
    except Malformed as error:
        raise ValueError(str(error)) from error


# ---------------------------------------------------------------------------------------------------------- text


# The kernel itself, with its options made once: half the cost of Array.cast for a lone change.
_CAST, _TO_STRING = pc.get_function("cast"), pc.CastOptions.safe(pa.string())


def _strings(array: pa.Array) -> pa.Array:
    """A binary array as strings, without a copy; not UTF-8 is an ArrowInvalid."""
    return _CAST.call([array], options=_TO_STRING)


def text_cells(cells: Cells, logical: str, *, as_text: bool = False) -> pa.Array:
    """As :func:`cast_text`, of the cells of a walk; ``as_text`` asks for the string array in any case.

    Raises:
        Malformed, pyarrow.ArrowInvalid: PostgreSQL doesn't print a value of this type like that.
    """
    if as_text or logical in ("text", "json"):
        return _strings(cells.take())
    if logical.startswith("numeric("):
        return _numeric_from_text(cells, logical)
    match logical:
        case "date" | "time" | "timestamp" | "timestamptz":
            return _temporal_from_text(cells, logical)
        case "uuid":
            return _uuid_from_text(cells)
        case "bool":
            return _bool(cells, ord("t"), ord("f"))
        case "bytes":
            return _bytes_from_text(cells)
        case "float4" | "float8":
            return _strings(cells.take()).cast(arrow_type(logical))
        case _:
            return _plain_digits(cells.take()).cast(arrow_type(logical))


def _values(array: pa.Array) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """The bytes of all values of a freshly made binary array."""
    _, offsets, data = array.buffers()
    if not len(array) or data is None:
        return np.empty(0, np.uint8)
    ends = np.frombuffer(offsets, np.int32)
    return np.frombuffer(data, np.uint8)[ends[0] : ends[len(array)]]


def _plain_digits(array: pa.Array) -> pa.Array:
    """The array as strings, of which all consist of digits, ``-``, ``.`` and ``/`` only.

    Arrow also reads ``0x1F`` and ``1e2``, which PostgreSQL never prints; ``/`` it refuses itself.
    """
    values = _values(array)
    if len(values) and int((values - np.uint8(ord("-"))).max()) > ord("9") - ord("-"):
        raise Malformed("not a number")
    return _strings(array)


def _numeric_from_text(cells: Cells, logical: str) -> pa.Array:
    array = cells.take()
    try:
        return _plain_digits(array).cast(arrow_type(logical))
    except Malformed:
        # NaN and the infinities have no decimal; anything else that isn't a number is damage.
        strings = _strings(array)
        special = pc.is_in(strings, pa.array(["NaN", "Infinity", "-Infinity"]))
        _plain_digits(array.filter(pc.invert(special))).cast(arrow_type(logical))
        return strings


def _uuid_from_text(cells: Cells) -> pa.Array:
    text = cells.fixed(36).reshape(-1, 36)
    if cells.null is not None:
        text[cells.null] = np.frombuffer(b"00000000-0000-0000-0000-000000000000", np.uint8)
    if not (text[:, (8, 13, 18, 23)] == ord("-")).all():
        raise Malformed("not a uuid")
    digits = np.empty((len(cells), 32), np.uint8)
    for to, begin, end in ((0, 0, 8), (8, 9, 13), (12, 14, 18), (16, 19, 23), (20, 24, 36)):
        digits[:, to : to + end - begin] = text[:, begin:end]
    return _fixed(pa.binary(16), _unhex(digits), cells.null)


def _unhex(digits: np.ndarray[Any, np.dtype[np.uint8]]) -> bytes:
    # Faster than any table in numpy, and it refuses what is not hexadecimal (ValueError).
    return binascii.unhexlify(digits.reshape(-1).data)


def _bytes_from_text(cells: Cells) -> pa.Array:
    width = cells.end - cells.begin
    prefix = (cells.joined.words(cells.begin) >> np.uint64(48)) == int.from_bytes(b"\\x", "big")
    if not cells.all((width >= 2) & (width % 2 == 0) & prefix):
        raise Malformed("not bytea in hex")
    digits = cells.take(skip=2)
    validity, offsets, _ = digits.buffers()
    ends = np.frombuffer(offsets, np.int32)[: len(cells) + 1] // 2
    data = pa.py_buffer(_unhex(_values(digits)))
    return pa.Array.from_buffers(pa.binary(), len(cells), [validity, pa.py_buffer(ends), data])


# Ordinary values, as Arrow's casts know them; it also reads shortened forms, which PostgreSQL never prints.
_SHORTEST = {"date": 10, "time": 8, "timestamp": 19, "timestamptz": 22}
_ORDINARY = {
    "date": r"^\d{4}-\d\d-\d\d$",
    "time": r"^([01]\d|2[0-3]):\d\d:\d\d(\.\d{1,6})?$",
    "timestamp": r"^\d{4}-\d\d-\d\d[ T]\d\d:\d\d:\d\d(\.\d{1,6})?$",
    "timestamptz": r"^\d{4}-\d\d-\d\d[ T]\d\d:\d\d:\d\d(\.\d{1,6})?\+00$",
}


def _temporal_from_text(cells: Cells, logical: str) -> pa.Array:
    zone = len("+00") if logical == "timestamptz" else 0
    if cells.all(cells.end - cells.begin >= _SHORTEST[logical]) and (not zone or _in_utc(cells)):
        try:
            return _ordinary(_strings(cells.take(trim=zone)), logical)
        except pa.ArrowInvalid:
            pass  # some value is not ordinary
    return _rare(_strings(cells.take()), logical, zone)


def _in_utc(cells: Cells) -> bool:
    tails: Words = cells.joined.words(np.maximum(cells.end - 8, 0)) & np.uint64(0xFFFFFF)
    return cells.all(tails == int.from_bytes(b"+00", "big"))


def _ordinary(strings: pa.Array, logical: str) -> pa.Array:
    if logical == "date":
        return strings.cast(pa.date32())
    if logical == "time":  # Arrow casts no strings to times
        dated = pc.binary_join_element_wise("1970-01-01", strings, " ")
        return dated.cast(pa.timestamp("us")).view(pa.int64()).view(pa.time64("us"))
    return strings.cast(pa.timestamp("us")).view(arrow_type(logical))


def _rare(strings: pa.Array, logical: str, zone: int) -> pa.Array:
    ordinary = pc.match_substring_regex(strings, _ORDINARY[logical])
    plain = pc.if_else(ordinary, strings, pa.scalar(None, pa.string()))
    if zone:
        plain = pc.utf8_slice_codeunits(plain, 0, -zone)
    storage = pa.int32() if logical == "date" else pa.int64()
    stored = _ordinary(plain, logical).view(storage).fill_null(0).to_numpy(zero_copy_only=False).copy()
    for row in np.flatnonzero(~ordinary.fill_null(True).to_numpy(zero_copy_only=False)):
        try:
            stored[row] = from_text(logical, strings[int(row)].as_py())
        except Inexact:
            return strings
    null = strings.is_null().to_numpy(zero_copy_only=False) if strings.null_count else None
    return _fixed(arrow_type(logical), stored, null)


# -------------------------------------------------------------------------------------------------------- binary

_BIG_ENDIAN = {
    "int2": ">i2",
    "int4": ">i4",
    "int8": ">i8",
    "float4": ">f4",
    "float8": ">f8",
    "date": ">i4",
    "time": ">i8",
    "timestamp": ">i8",
    "timestamptz": ">i8",
}


def binary_cells(cells: Cells, oid: int, logical: str, *, as_text: bool = False) -> pa.Array:
    """As :func:`cast_binary`, of the cells of a walk; ``as_text`` asks for the string array in any case.

    Raises:
        Malformed, pyarrow.ArrowInvalid: not the binary layout of this type.
    """
    if as_text and logical not in ("text", "json"):
        return _text_of_binary(cells, oid, logical)
    if oid == JSONB:
        if not cells.all((cells.joined.words(cells.begin) >> np.uint64(56) == 1) & (cells.end > cells.begin)):
            raise Malformed("not version 1 of jsonb")
        return _strings(cells.take(skip=1))
    if logical in ("text", "json"):
        return _strings(cells.take())
    if logical == "bytes":
        return cells.take()
    if logical == "uuid":
        return _fixed(pa.binary(16), cells.fixed(16), cells.null)
    if logical == "bool":
        return _bool(cells, 1, 0)
    if logical.startswith("numeric("):
        found = decimals(cells, *precision_scale(logical))
        if found is None:
            return _text_of_binary(cells, oid, logical)
        return _fixed(arrow_type(logical), found, cells.null)
    numbers = _numbers(cells, ">u4" if oid in UNSIGNED_OIDS else _BIG_ENDIAN[logical])
    if logical in ("date", "timestamp", "timestamptz"):
        return _since_1970(cells, numbers, oid, logical)
    if logical == "time" and not cells.all((numbers >= 0) & (numbers <= 86_400_000_000)):
        raise Malformed("not a time of day")
    return _fixed(arrow_type(logical), numbers.astype(np.int64) if oid in UNSIGNED_OIDS else numbers, cells.null)


def _numbers(cells: Cells, dtype: str) -> np.ndarray[Any, Any]:
    big = np.dtype(dtype)
    return cells.fixed(big.itemsize).view(big).astype(big.newbyteorder("="))


def _since_1970(cells: Cells, numbers: np.ndarray[Any, Any], oid: int, logical: str) -> pa.Array:
    top, shift = (INFINITY_DATE, EPOCH_DAYS) if logical == "date" else (INFINITY_TIME, EPOCH_US)
    high = numbers >= top - shift  # infinity, and what the shift would carry there or beyond
    low = numbers == -top - 1
    infinite = low | (numbers == top)
    if not cells.all(~high | infinite):
        if logical == "date":
            raise Malformed("not a date")
        return _text_of_binary(cells, oid, logical)
    stored = np.where(high | infinite, 0, numbers) + numbers.dtype.type(shift)
    if infinite.any():
        stored[infinite] = np.where(low[infinite], -top, top)
    return _fixed(arrow_type(logical), stored, cells.null)


def _text_of_binary(cells: Cells, oid: int, logical: str) -> pa.Array:
    # A column with a value that has no exact form: so rare that value by value is fine.
    texts = []
    for value in cells.take().to_pylist():
        if value is not None:
            try:
                from_binary(oid, logical, value)  # refuses what is no value at all
            except Inexact:
                pass  # the reason to be here
        texts.append(None if value is None else text_of_binary(logical, value))
    return pa.array(texts, pa.string())


# ---------------------------------------------------------------------------------------------------------- both


def _bool(cells: Cells, true: int, false: int) -> pa.Array:
    values = cells.fixed(1)
    found = values == true
    if not cells.all(found | (values == false)):
        raise Malformed("not a boolean")
    return pa.array(found, pa.bool_(), mask=cells.null)


def _fixed(arrow: pa.DataType, values: Any, null: Bools | None) -> pa.Array:
    """An array of a fixed-width type over its values' bytes, without a copy."""
    validity = None if null is None else pa.py_buffer(np.packbits(~null, bitorder="little"))
    data = pa.py_buffer(values)
    return pa.Array.from_buffers(arrow, data.size // (arrow.bit_width // 8), [validity, data])
