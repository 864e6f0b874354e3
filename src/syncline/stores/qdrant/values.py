"""Columns as values of a payload, and back. Pure.

A payload is JSON, so what JSON has no exact word for is text in one stable form (docs/stores/qdrant.md has the table).
Qdrant reads numbers with the last bit rounded and forgets the order of an object's keys; where that would change a
value, its exact text is kept beside it (*exact*), under :data:`~syncline.stores.qdrant.names.EXACT`.
"""

from __future__ import annotations

import json
import math
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from functools import lru_cache, partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from syncline.change import Column, arrow_type
from syncline.stores.qdrant.texts import date_text, moment, moment_text, storage_of, typed

__all__ = ["Encoded", "decode", "encode"]

_DAY_US = 86_400_000_000
_DEEPEST = 60


@dataclass(slots=True)
class Encoded:
    """A column's payload values, the exact texts that go beside some of them (by row), and rows that have no form."""

    values: list[Any]
    exact: dict[int, str] = field(default_factory=dict)
    bad: list[int] = field(default_factory=list)


def encode(column: Column, array: pa.Array) -> Encoded:
    """The values of a column, which may have come as PostgreSQL's text."""
    bad: list[int] = []
    if array.type != arrow_type(column.type):
        array, bad = typed(array, column.type)
    if column.type == "json" and column.key:
        encoded = Encoded(array.to_pylist())
    else:
        encoded = _ENCODERS.get(column.type.partition("(")[0], _plain)(array)
    encoded.bad += bad
    return encoded


def _plain(array: pa.Array) -> Encoded:
    return Encoded(array.to_pylist())


_WORDS = {"NaN": float("nan"), "Infinity": float("inf"), "-Infinity": float("-inf")}


def _word(value: float) -> str:
    return "NaN" if value != value else "Infinity" if value > 0 else "-Infinity"


def _float4(array: pa.Array) -> Encoded:
    """As float64 numbers, whose last bits the nearest float32 does not depend on."""
    values = array.to_pylist()
    for row in _not_finite(array):
        values[row] = _word(values[row])
    return Encoded(values)


def _not_finite(array: pa.Array) -> list[int]:
    return np.flatnonzero(pc.fill_null(pc.invert(pc.is_finite(array)), False).to_numpy(zero_copy_only=False)).tolist()


def _float8(array: pa.Array) -> Encoded:
    encoded = _float4(array)
    values = encoded.values
    encoded.exact = {
        row: repr(value) for row, value in enumerate(values) if isinstance(value, float) and not _read_exactly(value)
    }
    return encoded


def _read_exactly(value: float) -> bool:
    """Whether the simplest reader of decimal numbers gets it right: few digits, times or by an exact power of ten."""
    return value == 0 or (1e-6 < abs(value) < 1e15 and float(f"{value:.15g}") == value)


def _numeric(array: pa.Array) -> Encoded:
    return Encoded([None if v is None else format(v, "f") for v in array.to_pylist()])


def _bytes(array: pa.Array) -> Encoded:
    return Encoded([None if v is None else "\\x" + v.hex() for v in array.to_pylist()])


def _uuid(array: pa.Array) -> Encoded:
    filled = array.fill_null(b"\0" * 16) if array.null_count else array
    digits = bytes(memoryview(filled.buffers()[1])[16 * filled.offset :][: 16 * len(filled)]).hex() if filled else ""
    each = (digits[i : i + 32] for i in range(0, len(digits), 32))
    return Encoded(_with_nulls(array, [f"{d[:8]}-{d[8:12]}-{d[12:16]}-{d[16:20]}-{d[20:]}" for d in each]))


def _integers(array: pa.Array, storage: pa.DataType) -> np.ndarray[Any, Any]:
    values: np.ndarray[Any, Any] = array.view(storage).fill_null(0).to_numpy(zero_copy_only=False)
    return values


# Days from 1970 to the years 1 and 9999.
_FIRST_DAY, _LAST_DAY = -719_162, 2_932_532


def _moments(array: pa.Array, unit: str, text: Callable[[int], str], suffix: str = "") -> Encoded:
    """Years 1 to 9998 in one go, the others one by one, infinities as words."""
    storage, a_day = (pa.int32(), 1) if unit == "D" else (pa.int64(), _DAY_US)
    raw = _integers(array, storage)
    shown = np.datetime_as_string(raw.astype(f"datetime64[{unit}]"))
    values = (np.char.add(shown, suffix) if suffix else shown).tolist()
    greatest = 2 ** (storage.bit_width - 1) - 1
    for row in np.flatnonzero((raw < _FIRST_DAY * a_day) | (raw >= _LAST_DAY * a_day)).tolist():
        value = int(raw[row])
        values[row] = text(value) if abs(value) < greatest else "infinity" if value > 0 else "-infinity"
    return Encoded(_with_nulls(array, values))


def _with_nulls(array: pa.Array, values: list[Any]) -> list[Any]:
    if array.null_count:
        for row in np.flatnonzero(array.is_null().to_numpy(zero_copy_only=False)).tolist():
            values[row] = None
    return values


def _times(array: pa.Array) -> Encoded:
    raw = _integers(array, pa.int64())
    shown = np.datetime_as_string(raw.astype("datetime64[us]"))
    values = [
        "24:00:00.000000" if us >= _DAY_US else s[11:] for s, us in zip(shown.tolist(), raw.tolist(), strict=True)
    ]
    return Encoded(_with_nulls(array, values))


def _json(array: pa.Array) -> Encoded:
    """Documents as what they are, so that filters reach into them; their text beside those that would come back
    otherwise."""
    texts = array.to_pylist()
    encoded = Encoded([None if t is None else _document(t) for t in texts])
    for row, text in enumerate(texts):
        if text is not None and (encoded.values[row] is None or _canonical(encoded.values[row]) != text):
            encoded.exact[row] = text
    return encoded


class _Unkept(Exception):
    """Qdrant would change this document."""


def _document(text: str) -> Any:
    """The document, or its text where Qdrant has no form for it. The text must come back from it to be left out."""
    try:
        found = json.loads(text)
        _check(found, 0)
        if "\\u" in text:
            _canonical(found).encode()  # half of a surrogate pair is no character
    except (ValueError, RecursionError, _Unkept):
        return text
    return found


def _check(value: Any, depth: int) -> None:
    """Raise where a number would lose bits, or where nesting is too deep to be handed on."""
    if depth > _DEEPEST:
        raise _Unkept
    kind = type(value)
    if kind is str:  # by far the most
        return
    if kind is dict or kind is list:
        for part in value.values() if kind is dict else value:
            _check(part, depth + 1)
    elif (kind is int and not -(2**63) <= value < 2**63) or (kind is float and not _read_exactly(value)):
        raise _Unkept


_WRITER = json.JSONEncoder(ensure_ascii=False, separators=(", ", ": "))  # json.dumps would make one for each document


def _canonical(value: Any) -> str:
    """As PostgreSQL writes jsonb: keys by length, then by bytes."""
    return _WRITER.encode(_sorted(value))


def _sorted(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _sorted(v) if type(v := value[k]) in _NESTING else v for k in _ordered(tuple(value))}
    return [_sorted(v) for v in value] if isinstance(value, list) else value


_NESTING = (dict, list)


@lru_cache(maxsize=256)
def _ordered(keys: tuple[str, ...]) -> tuple[str, ...]:
    """The documents of a table have few sets of keys."""
    return tuple(sorted(keys, key=lambda key: (len(key.encode()), key.encode())))


_ENCODERS: dict[str, Callable[[pa.Array], Encoded]] = {
    "float4": _float4,
    "float8": _float8,
    "numeric": _numeric,
    "bytes": _bytes,
    "uuid": _uuid,
    "date": partial(_moments, unit="D", text=date_text),
    "timestamp": partial(_moments, unit="us", text=partial(moment_text, zoned=False)),
    "timestamptz": partial(_moments, unit="us", text=partial(moment_text, zoned=True), suffix="Z"),
    "time": _times,
    "json": _json,
}


# ---------------------------------------------------------------------------------------------------------- reading


_LAST_BITS = 1e-14  # of a number of more than fifteen digits, relative to it
_UNREADABLE = (pa.ArrowException, ArithmeticError, AttributeError, TypeError, ValueError)


def decode(column: Column, values: Sequence[Any], exact: Sequence[str | None]) -> pa.Array:
    """The column of these payload values; ``exact`` holds the texts beside them, which count while the value is what
    they became: somebody else may have changed it.

    What no writer of ours put there (points that were in the collection before) is NULL where it has no such form.
    """
    exact = [e if e is not None and _became(column, e, v) else None for v, e in zip(values, exact, strict=True)]
    if column.type == "json" and not column.key:
        values = [None if v is None else _canonical(v) for v in values]
    texts = [v if e is None else e for v, e in zip(values, exact, strict=True)]
    try:
        return _decoded(column, texts)
    except _UNREADABLE:
        wanted = arrow_type(column.type)
        return pa.concat_arrays([pa.array([], wanted), *(_lone(column, text) for text in texts)])


def _became(column: Column, text: str, value: Any) -> bool:
    """Whether Qdrant gives back ``value`` for what has this exact text."""
    try:
        if column.type == "json":
            return bool(_document(text) == value)
        return math.isclose(float(text), value, rel_tol=_LAST_BITS)
    except _UNREADABLE:
        return False


def _lone(column: Column, value: Any) -> pa.Array:
    try:
        return _decoded(column, [value])
    except _UNREADABLE:
        return pa.nulls(1, arrow_type(column.type))


def _decoded(column: Column, values: list[Any]) -> pa.Array:
    logical, wanted = column.type, arrow_type(column.type)
    storage = storage_of(logical)
    if storage is not None:
        return pa.array(_raw_moments(values, logical), storage).view(wanted)
    read = _DECODERS.get(logical.partition("(")[0])
    if read is not None:
        values = [None if v is None else read(v) for v in values]
    return pa.array(values, wanted)


def _raw_moments(values: list[Any], logical: str) -> list[int | None]:
    if logical == "time":
        return [None if v is None else _time(v) for v in values]
    unit, bits = (1, 32) if logical == "date" else (_DAY_US, 64)
    found = [None if v is None else moment(v, unit, bits) for v in values]
    if any(f is None and v is not None for f, v in zip(found, values, strict=True)):
        raise ValueError
    return found


def _time(text: str) -> int:
    hour, minute, second = text.split(":")
    whole, part = second.split(".")
    return (int(hour) * 3600 + int(minute) * 60 + int(whole)) * 1_000_000 + int(part)


def _number(value: Any) -> float:
    return _WORDS.get(value) or float(value)


_DECODERS: dict[str, Callable[[Any], Any]] = {
    "float4": _number,
    "float8": _number,
    "numeric": lambda value: Decimal(str(value)),
    "bytes": lambda value: bytes.fromhex(value[2:]),
    "uuid": lambda value: uuid.UUID(value).bytes,
}
