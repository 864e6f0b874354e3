"""PostgreSQL's text as exact values, one by one: for columns that came as text because of one value in them. Pure."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa

from syncline.change import arrow_type

__all__ = ["date_text", "moment", "moment_text", "storage_of", "typed"]

_MOMENT = re.compile(
    r"(?P<year>\d{4,7})-(?P<month>\d\d)-(?P<day>\d\d)"
    r"(?:[ T](?P<hour>\d\d):(?P<minute>\d\d):(?P<second>\d\d)(?:\.(?P<part>\d{1,6}))?)?(?:\+00|Z)?(?P<era> BC)?"
)
_TIME = re.compile(r"(\d\d):(\d\d):(\d\d)(?:\.(\d{1,6}))?")
_DAY_US = 86_400_000_000


def storage_of(logical: str) -> pa.DataType | None:
    """The integer type under a temporal type, None for others."""
    kind = arrow_type(logical)
    if not pa.types.is_temporal(kind):
        return None
    return pa.int32() if kind == pa.date32() else pa.int64()


def typed(texts: pa.Array, logical: str) -> tuple[pa.Array, list[int]]:
    """The column in its own type, and the rows whose value has no exact form there (NULL in what is returned)."""
    wanted, storage = arrow_type(logical), storage_of(logical)
    encoded = texts.dictionary_encode()
    values = [_exact(text, logical) for text in encoded.dictionary.to_pylist()]
    array = pa.array([*values, None], storage or wanted)
    array = array.view(wanted) if storage else array
    places = encoded.indices.fill_null(len(values)).to_pylist()
    bad = [row for row, place in enumerate(places) if place < len(values) and values[place] is None]
    return array.take(pa.array(places, pa.int64())), bad


def _exact(text: str, logical: str) -> Any:
    """The value, None where there is no exact one."""
    read = _READERS.get(logical)
    if read is not None:
        return read(text)
    try:
        if not re.fullmatch(r"-?\d+(\.\d+)?", text):
            return None
        return pa.array([text]).cast(arrow_type(logical))[0].as_py()
    except pa.ArrowInvalid:
        return None


def _float(text: str, kind: type[np.floating[Any]]) -> float | None:
    value = float(kind(text)) if re.fullmatch(r"-?[\d.]+(e[+-]?\d+)?|NaN|-?Infinity", text) else None
    return None if value is None or (math.isinf(value) and "Infinity" not in text) else value


def _bytes(text: str) -> bytes | None:
    return bytes.fromhex(text[2:]) if re.fullmatch(r"\\x([0-9a-f]{2})*", text) else None


def _uuid(text: str) -> bytes | None:
    digits = text.replace("-", "")
    return bytes.fromhex(digits) if re.fullmatch(r"[0-9a-f]{32}", digits) else None


def _time(text: str) -> int | None:
    found = _TIME.fullmatch(text)
    if not found:
        return None
    hour, minute, second = (int(found[i]) for i in (1, 2, 3))
    value = (hour * 3600 + minute * 60 + second) * 1_000_000 + int((found[4] or "").ljust(6, "0"))
    return value if value <= _DAY_US else None


def moment(text: str, unit: int, bits: int) -> int | None:
    """A date or timestamp as its integer: ``unit`` is how many of them make a day. None beyond ``bits`` bits.

    Reads PostgreSQL's output (in UTC) and what :func:`moment_text` writes.
    """
    greatest = 2 ** (bits - 1) - 1
    if text in ("infinity", "-infinity"):
        return greatest if text == "infinity" else -greatest
    found = _MOMENT.fullmatch(text)
    if not found:
        return None
    year = 1 - int(found["year"]) if found["era"] else int(found["year"])
    value = _days(year, int(found["month"]), int(found["day"])) * unit
    if found["hour"] and unit > 1:
        seconds = int(found["hour"]) * 3600 + int(found["minute"]) * 60 + int(found["second"])
        value += seconds * 1_000_000 + int((found["part"] or "").ljust(6, "0"))
    return value if -greatest < value < greatest else None


def moment_text(value: int, *, zoned: bool) -> str:
    """A timestamp in any year: ``2026-01-02T03:04:05.000006``, with ``Z`` if ``zoned``, `` BC`` before the year 1."""
    days, rest = divmod(value, _DAY_US)
    day, era = _civil(days)
    seconds, part = divmod(rest, 1_000_000)
    clock = f"{seconds // 3600:02}:{seconds // 60 % 60:02}:{seconds % 60:02}.{part:06}"
    return f"{day}T{clock}{'Z' if zoned else ''}{era}"


def date_text(days: int) -> str:
    """A date in any year, with `` BC`` before the year 1."""
    return "".join(_civil(days))


# Days since 1970 and the Gregorian calendar. Method: H. Hinnant, "chrono-Compatible Low-Level Date Algorithms".


def _days(year: int, month: int, day: int) -> int:
    year -= month <= 2
    era, of_era = divmod(year, 400)
    of_year = (153 * (month + (-3 if month > 2 else 9)) + 2) // 5 + day - 1
    return era * 146_097 + of_era * 365 + of_era // 4 - of_era // 100 + of_year - 719_468


def _civil(days: int) -> tuple[str, str]:
    """The date as text, and its era."""
    era, of_era = divmod(days + 719_468, 146_097)
    year = (of_era - of_era // 1460 + of_era // 36_524 - of_era // 146_096) // 365
    of_year = of_era - (365 * year + year // 4 - year // 100)
    part = (5 * of_year + 2) // 153
    month = part + (3 if part < 10 else -9)
    year += era * 400 + (month <= 2)
    shown, suffix = (year, "") if year > 0 else (1 - year, " BC")
    return f"{shown:04}-{month:02}-{of_year - (153 * part + 2) // 5 + 1:02}", suffix


_READERS: dict[str, Callable[[str], Any]] = {
    "bool": {"t": True, "true": True, "f": False, "false": False}.get,
    "float4": lambda text: _float(text, np.float32),
    "float8": lambda text: _float(text, np.float64),
    "bytes": _bytes,
    "uuid": _uuid,
    "date": lambda text: moment(text, 1, 32),
    "time": _time,
    "timestamp": lambda text: moment(text, _DAY_US, 64),
    "timestamptz": lambda text: moment(text, _DAY_US, 64),
    "text": lambda text: text,
    "json": lambda text: text,
}
