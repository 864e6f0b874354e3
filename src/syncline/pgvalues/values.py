"""One value of PostgreSQL at a time, from its text or its binary form: the reference, and the path of rare values.

A value becomes the *storage value* of its Arrow type: an int for dates and times (days or microseconds), 16 bytes for
a uuid, ``Decimal``, ``float``, ``bool``, ``bytes`` or ``str``. The columnar decoder in ``pgtypes`` gives the same
values; it calls this module for the few rows that Arrow's casts don't know, such as years before Christ.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable
from decimal import Decimal

import numpy as np

__all__ = ["Inexact", "from_binary", "from_text", "text_of_binary"]

INFINITY_DATE = 2**31 - 1
INFINITY_TIME = 2**63 - 1
# PostgreSQL counts days and microseconds from 2000-01-01, Arrow from 1970-01-01.
EPOCH_DAYS = 10_957
EPOCH_US = EPOCH_DAYS * 86_400_000_000
_DAY_US = 86_400_000_000

_DATE = re.compile(r"(\d{4,7})-(\d\d)-(\d\d)( BC)?", re.ASCII)
_TIMESTAMP = re.compile(
    r"(\d{4,7}-\d\d-\d\d)[ T](\d\d):(\d\d):(\d\d)(?:\.(\d{1,6}))?(\+00)?( BC)?",
    re.ASCII,
)
_TIME = re.compile(r"(\d\d):(\d\d):(\d\d)(?:\.(\d{1,6}))?", re.ASCII)
_INTEGER = re.compile(r"-?\d+", re.ASCII)
_NUMBER = re.compile(r"-?(\d+\.?\d*|\.\d+)", re.ASCII)
_FLOAT = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?|[+-]?(nan|inf|infinity)", re.ASCII | re.IGNORECASE)
_DAYS = (31, 29, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)


class Inexact(Exception):
    """A value that is right, but that the Arrow type of its column cannot hold."""


def _days(text: str) -> int:
    found = _DATE.fullmatch(text)
    if not found:
        raise ValueError("not a date")
    year, month, day = (int(part) for part in found.groups()[:3])
    year = 1 - year if found[4] else year
    leap = year % 4 == 0 and (year % 100 != 0 or year % 400 == 0)
    if not (1 <= month <= 12 and 1 <= day <= _DAYS[month - 1]) or (month == 2 and day == 29 and not leap):
        raise ValueError("not a date")
    # Days since 1970 in the proleptic Gregorian calendar, counted in years that begin in March.
    year -= month <= 2
    era, year_of_era = divmod(year, 400)
    day_of_year = (153 * (month - 3 if month > 2 else month + 9) + 2) // 5 + day - 1
    return era * 146_097 + year_of_era * 365 + year_of_era // 4 - year_of_era // 100 + day_of_year - 719_468


def _date(text: str) -> int:
    if text in ("infinity", "-infinity"):
        return INFINITY_DATE if text == "infinity" else -INFINITY_DATE
    return _days(text)


def _clock(hour: str, minute: str, second: str, fraction: str | None) -> int:
    if int(minute) > 59 or int(second) > 59:
        raise ValueError("not a time of day")
    return (int(hour) * 3600 + int(minute) * 60 + int(second)) * 1_000_000 + int((fraction or "0").ljust(6, "0"))


def _time(text: str) -> int:
    found = _TIME.fullmatch(text)
    if not found:
        raise ValueError("not a time of day")
    us = _clock(*found.groups())
    if us > _DAY_US or (us == _DAY_US and text != "24:00:00"):
        raise ValueError("not a time of day")
    return us


def _timestamp(text: str, zone: str | None = None) -> int:
    if text in ("infinity", "-infinity"):
        return INFINITY_TIME if text == "infinity" else -INFINITY_TIME
    found = _TIMESTAMP.fullmatch(text)
    if not found or found[6] != zone or int(found[2]) > 23:
        raise ValueError("not a timestamp")
    us = _days(found[1] + (found[7] or "")) * _DAY_US + _clock(found[2], found[3], found[4], found[5])
    # The greatest integer and its negative mean infinity.
    if abs(us) >= INFINITY_TIME:
        raise Inexact
    return us


def _integer(bits: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        value = int(text) if _INTEGER.fullmatch(text) else 2**bits
        if not -(2 ** (bits - 1)) <= value < 2 ** (bits - 1):
            raise ValueError(f"not an integer of {bits} bits")
        return value

    return parse


def _float(text: str) -> float:
    if not _FLOAT.fullmatch(text):
        raise ValueError("not a number")
    return float(text)


def _float4(text: str) -> float:
    with np.errstate(over="ignore"):
        return float(np.float32(_float(text)))


def _bool(text: str) -> bool:
    if text not in ("t", "f"):
        raise ValueError("not a boolean")
    return text == "t"


def _bytea(text: str) -> bytes:
    if not text.startswith("\\x") or not re.fullmatch("[0-9a-fA-F]*", text[2:]):
        raise ValueError("not bytea in hex")
    return bytes.fromhex(text[2:])


def _uuid(text: str) -> bytes:
    if not re.fullmatch("[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}", text):
        raise ValueError("not a uuid")
    return bytes.fromhex(text.replace("-", ""))


def _decimal(text: str, precision: int, scale: int) -> Decimal:
    if text in ("NaN", "Infinity", "-Infinity"):
        raise Inexact
    if not _NUMBER.fullmatch(text):
        raise ValueError("not a number")
    whole, _, fraction = text.lstrip("-").partition(".")
    if len(whole.lstrip("0")) > precision - scale or len(fraction) > scale:
        raise ValueError("not a number of this precision and scale")
    return Decimal(text)


_TEXT: dict[str, Callable[[str], object]] = {
    "bool": _bool,
    "int2": _integer(16),
    "int4": _integer(32),
    "int8": _integer(64),
    "float4": _float4,
    "float8": _float,
    "bytes": _bytea,
    "uuid": _uuid,
    "date": _date,
    "time": _time,
    "timestamp": _timestamp,
    "timestamptz": lambda text: _timestamp(text, "+00"),
    "json": str,
    "text": str,
}


def precision_scale(logical: str) -> tuple[int, int]:
    """Precision and scale of ``numeric(p,s)``."""
    precision, scale = logical[8:-1].split(",")
    return int(precision), int(scale)


def from_text(logical: str, text: str) -> object:
    """The storage value of PostgreSQL's text output (ISO dates, UTC, hex bytea).

    Raises:
        Inexact: the value has no exact form in ``arrow_type(logical)``.
        ValueError: PostgreSQL doesn't print a value of this type like this.
    """
    if logical.startswith("numeric("):
        return _decimal(text, *precision_scale(logical))
    return _TEXT[logical](text)


# ------------------------------------------------------------------------------------------------------- binary

_FIXED = {
    "int2": struct.Struct(">h"),
    "int4": struct.Struct(">i"),
    "int8": struct.Struct(">q"),
    "float4": struct.Struct(">f"),
    "float8": struct.Struct(">d"),
    "date": struct.Struct(">i"),
    "time": struct.Struct(">q"),
    "timestamp": struct.Struct(">q"),
    "timestamptz": struct.Struct(">q"),
}
_UNSIGNED = struct.Struct(">I")  # oid, xid, cid
UNSIGNED_OIDS = frozenset({26, 28, 29})
JSONB = 3802


def _unpack(layout: struct.Struct, value: bytes) -> int | float:
    if len(value) != layout.size:
        raise ValueError(f"not {layout.size} bytes wide")
    return layout.unpack(value)[0]


def from_binary(oid: int, logical: str, value: bytes) -> object:
    """The storage value of PostgreSQL's binary output of a type in ``pgtypes.BINARY_EXACT``.

    Raises:
        Inexact: the value has no exact form in ``arrow_type(logical)``.
        ValueError: not the layout of this type.
    """
    if oid in UNSIGNED_OIDS:
        return _unpack(_UNSIGNED, value)
    if layout := _FIXED.get(logical):
        number = _unpack(layout, value)
        return number if isinstance(number, float) else _from_epoch(logical, number)
    if logical.startswith("numeric("):
        return _decimal(_numeric_text(value), *precision_scale(logical))
    if logical == "bool":
        if value not in (b"\0", b"\1"):
            raise ValueError("not a boolean")
        return value == b"\1"
    if logical == "uuid" and len(value) != 16:
        raise ValueError("not 16 bytes wide")
    if oid == JSONB:
        if value[:1] != b"\1":
            raise ValueError("not version 1 of jsonb")
        value = value[1:]
    return value.decode() if logical in ("text", "json") else value


def _from_epoch(logical: str, number: int) -> int:
    if logical == "time" and not 0 <= number <= _DAY_US:
        raise ValueError("not a time of day")
    if logical not in ("date", "timestamp", "timestamptz"):
        return number
    top, shift = (INFINITY_DATE, EPOCH_DAYS) if logical == "date" else (INFINITY_TIME, EPOCH_US)
    if number in (top, -top - 1):
        return top if number > 0 else -top
    if abs(number + shift) >= top:
        if logical == "date":
            raise ValueError("not a date")
        raise Inexact
    return number + shift


def text_of_binary(logical: str, value: bytes) -> str:
    """PostgreSQL's text of a timestamp, timestamptz or numeric in binary form: the types that may be inexact.

    Raises:
        ValueError: not the layout of this type.
    """
    if logical.startswith("numeric("):
        return _numeric_text(value)
    us = int(_unpack(_FIXED["timestamp"], value))
    if us in (INFINITY_TIME, -INFINITY_TIME - 1):
        return "infinity" if us > 0 else "-infinity"
    days, us = divmod(us + EPOCH_US, _DAY_US)
    date, before = _date_text(days)
    fraction = f".{us % 1_000_000:06d}".rstrip("0").rstrip(".")
    second = us // 1_000_000
    clock = f"{second // 3600:02d}:{second // 60 % 60:02d}:{second % 60:02d}{fraction}"
    return f"{date} {clock}{'+00' if logical == 'timestamptz' else ''}{before}"


def _date_text(days: int) -> tuple[str, str]:
    era, day_of_era = divmod(days + 719_468, 146_097)
    year_of_era = (day_of_era - day_of_era // 1460 + day_of_era // 36_524 - day_of_era // 146_096) // 365
    day_of_year = day_of_era - (365 * year_of_era + year_of_era // 4 - year_of_era // 100)
    shifted = (5 * day_of_year + 2) // 153
    day = day_of_year - (153 * shifted + 2) // 5 + 1
    month = shifted + 3 if shifted < 10 else shifted - 9
    year = year_of_era + era * 400 + (month <= 2)
    return f"{year if year > 0 else 1 - year:04d}-{month:02d}-{day:02d}", "" if year > 0 else " BC"


_SPECIAL = {0xC000: "NaN", 0xD000: "Infinity", 0xF000: "-Infinity"}


def _numeric_text(value: bytes) -> str:
    if len(value) < 8 or len(value) % 2:
        raise ValueError("not a numeric")
    count, weight, sign, scale, *digits = struct.unpack(f">Hh2H{len(value) // 2 - 4}H", value)
    if count != len(digits) or any(d > 9999 for d in digits) or (sign not in _SPECIAL and sign not in (0, 0x4000)):
        raise ValueError("not a numeric")
    if sign in _SPECIAL:
        return _SPECIAL[sign]
    # Groups of four decimal digits; the first one stands for 10000 ** weight.
    groups = "".join(f"{d:04d}" for d in digits)
    point = 4 * (weight + 1)
    if point <= 0:
        groups, point = "0" * (4 - point) + groups, 4
    groups = groups.ljust(point + scale, "0")
    if groups[point + scale :].strip("0"):
        raise ValueError("not a numeric")
    whole = groups[:point].lstrip("0") or "0"
    fraction = f".{groups[point : point + scale]}" if scale else ""
    return f"{'-' if sign else ''}{whole}{fraction}"
