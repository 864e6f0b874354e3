"""What Redis holds as bytes, as columns of the table's types; values that can't be are found by halves. Pure."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from syncline.change import arrow_type

__all__ = ["OTHER_KIND", "parsed"]

# Stands for each value of a key of another kind. It is no UTF-8, so no value of any type.
OTHER_KIND = b"\xffother kind"

Bools = np.ndarray[Any, np.dtype[np.bool_]]
_OFFSET = r"(Z|[+-]\d\d(:?\d\d)?)$"
_NUMBER = r"^-?\d+(\.\d+)?$"
_CLOCK = r"\d\d:\d\d"


def parsed(raw: pa.Array, kind: str, timezone: str) -> tuple[pa.Array, Bools]:
    """Values of a logical type, and which of them can't be read as one (they are null). Null stays null.

    ``raw`` is a binary array. ``timezone`` is the zone of times that are written without one. Times may be ISO 8601, or
    seconds since 1970.
    """
    bad = np.zeros(len(raw), np.bool_)
    pieces: list[pa.Array] = []
    _halve(raw, 0, lambda some: _converted(some, kind, timezone), pieces, bad)
    whole = pa.concat_arrays(pieces) if pieces else pa.array([], arrow_type(kind))
    return whole, bad


def _halve(
    raw: pa.Array, first: int, convert: Callable[[pa.Array], pa.Array], into: list[pa.Array], bad: Bools
) -> None:
    """Convert as much at once as can be: what a cast refuses is not said by place."""
    try:
        into.append(convert(raw))
        return
    except (pa.ArrowInvalid, UnicodeDecodeError, OverflowError):
        if len(raw) == 1:
            bad[first] = True
            into.append(convert(pa.nulls(1, pa.binary())))
            return
    middle = len(raw) // 2
    _halve(raw.slice(0, middle), first, convert, into, bad)
    _halve(raw.slice(middle), first + middle, convert, into, bad)


def _converted(raw: pa.Array, kind: str, timezone: str) -> pa.Array:
    texts = raw.cast(pa.string())  # refuses what is not UTF-8
    if kind in ("timestamptz", "timestamp"):
        moments = _moments(texts, timezone)
        return moments if kind == "timestamptz" else moments.cast(pa.timestamp("us"))
    if kind == "text":
        if pc.any(pc.match_substring(texts, "\0")).as_py():
            raise pa.ArrowInvalid("NUL")
        return texts
    if kind.startswith("int"):
        return _integers(texts, arrow_type(kind))
    return texts.cast(arrow_type(kind))


def _integers(texts: pa.Array, kind: pa.DataType) -> pa.Array:
    """Whole numbers, however they are written: a score beyond 17 digits is in scientific notation."""
    try:
        return texts.cast(kind)
    except pa.ArrowInvalid:
        return texts.cast(pa.float64()).cast(kind)  # refuses fractions, and what float64 does not hold exactly


def _moments(texts: pa.Array, timezone: str) -> pa.Array:
    """Moments in UTC, of three ways of writing them: with an offset, without one, and in seconds since 1970."""
    zoned = pc.and_(pc.match_substring_regex(texts, _OFFSET), pc.match_substring_regex(texts, _CLOCK))
    numbers = pc.match_substring_regex(texts, _NUMBER)
    none = pa.scalar(None, pa.string())
    aware = pc.if_else(zoned, texts, none).cast(pa.timestamp("us", "UTC"))
    naive = pc.if_else(pc.or_(zoned, numbers), none, texts).cast(pa.timestamp("us"))
    local = pc.assume_timezone(naive, timezone, ambiguous="earliest", nonexistent="latest")
    seconds = pc.if_else(numbers, texts, none).cast(pa.float64())
    counted = pc.round(pc.multiply(seconds, 1e6)).cast(pa.int64()).cast(pa.timestamp("us", "UTC"))
    return pc.coalesce(aware, local.cast(pa.timestamp("us", "UTC")), counted)
