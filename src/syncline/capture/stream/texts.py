"""Lists of floats and jsonb as PostgreSQL prints them. Pure.

Both are compared by their text, and a copy in PostgreSQL prints what its column holds: of a float the shortest digits
that name it, with an exponent from 1e+15 on (1e+06 for ``real``) and below 1e-04; of an object its keys by length, each
once, and numbers without an exponent.
"""

from __future__ import annotations

import json
from decimal import Decimal
from typing import Any

import msgspec
import numpy as np

from syncline.capture.outbox.fields import Unfit, field_text
from syncline.change import Column

__all__ = ["printed"]

_FLOATS: dict[str, tuple[type[np.floating[Any]], int]] = {
    "real[]": (np.float32, 6),
    "double precision[]": (np.float64, 15),
}
_DIGITS = 10_000  # more than that is nobody's number, and many of them would fill the memory
_floats = msgspec.json.Decoder(list[float | None])


def printed(raw: bytes, column: Column) -> str | None:
    """The text of the value that the JSON ``raw`` stands for; None is NULL.

    Raises:
        Unfit: the column has no such value.
    """
    if raw == b"null":
        return None
    if column.source_type in _FLOATS:
        return _float_array(raw, column.source_type)
    return _jsonb(raw) if column.source_type == "jsonb" else field_text(raw, column)


def _float_array(raw: bytes, type_name: str) -> str:
    kind, digits = _FLOATS[type_name]
    try:
        given = _floats.decode(raw)
    except msgspec.DecodeError as error:
        raise Unfit(f"takes {type_name}, and the payload has no list of numbers") from error
    with np.errstate(over="ignore"):
        values = [None if value is None else kind(value) for value in given]
    if any(value is not None and not np.isfinite(value) for value in values):
        raise Unfit(f"takes {type_name}, and the payload has a number beyond it")
    return "{" + ",".join("NULL" if value is None else _float(value, digits) for value in values) + "}"


def _float(value: np.floating[Any], digits: int) -> str:
    shortest = np.format_float_scientific(value, unique=True, trim="-", exp_digits=2)
    exponent = int(shortest.partition("e")[2])
    if value == 0 or -4 <= exponent < digits:
        return np.format_float_positional(value, unique=True, trim="-")
    # Half way to the next float numpy takes the digits for this one, and PostgreSQL takes one more.
    exact, half = Decimal(float(value)), Decimal(float(np.spacing(abs(value)))) / 2
    places = sum(map(str.isdigit, shortest.partition("e")[0]))
    while exponent > digits and abs(Decimal(shortest) - exact) >= half:
        shortest = np.format_float_scientific(value, precision=places, unique=False, trim="-", exp_digits=2)
        places += 1
    return shortest


def _jsonb(raw: bytes) -> str:
    try:
        text = _json(json.loads(raw, parse_float=Decimal, parse_int=Decimal))
        text.encode()
    except (ValueError, ArithmeticError, RecursionError) as error:
        raise Unfit("takes jsonb, and the payload has what PostgreSQL does not take for one") from error
    return text


def _json(value: Any) -> str:
    if isinstance(value, dict):
        keys = sorted(value, key=lambda key: (len(key.encode()), key.encode()))
        return "{" + ", ".join(f"{_string(key)}: {_json(value[key])}" for key in keys) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_json, value)) + "]"
    if isinstance(value, Decimal):
        exponent = value.as_tuple().exponent
        if not isinstance(exponent, int) or abs(exponent) > _DIGITS:
            raise ValueError("beyond a numeric")
        return format(value if value else abs(value), "f")
    return _string(value) if isinstance(value, str) else json.dumps(value)


def _string(text: str) -> str:
    if "\0" in text:
        raise ValueError("NUL")
    return json.dumps(text, ensure_ascii=False)
