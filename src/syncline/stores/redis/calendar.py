"""Dates and times beyond Arrow's calendar as text and back: infinities, years before Christ and after 9999. Pure.

The text is PostgreSQL's own (ISO, UTC). The arithmetic of the proleptic Gregorian calendar follows Howard Hinnant's
``days_from_civil`` and ``civil_from_days`` (howardhinnant.github.io/date_algorithms.html).
"""

from __future__ import annotations

import re

__all__ = ["parse", "text_of"]

_DAY_US = 86_400_000_000
_DATE = r"(\d{4,})-(\d\d)-(\d\d)"
_CLOCK = r"(\d\d):(\d\d):(\d\d)(?:\.(\d{1,6}))?"
_FORMS = {
    "date": re.compile(rf"{_DATE}(?P<bc> BC)?"),
    "time": re.compile(_CLOCK),
    "timestamp": re.compile(rf"{_DATE} {_CLOCK}(?P<bc> BC)?"),
    "timestamptz": re.compile(rf"{_DATE} {_CLOCK}(?:\+00)?(?P<bc> BC)?"),
}


def text_of(value: int, logical: str) -> str:
    """The text of a stored integer: days or microseconds since 1970, microseconds of a day for ``time``."""
    if logical == "time":
        return _clock(value)
    top = 2**31 - 1 if logical == "date" else 2**63 - 1
    if abs(value) == top:
        return "infinity" if value > 0 else "-infinity"
    days, rest = (value, 0) if logical == "date" else divmod(value, _DAY_US)
    year, month, day = _civil(days)
    date = f"{year if year > 0 else 1 - year:04d}-{month:02d}-{day:02d}"
    clock = "" if logical == "date" else " " + _clock(rest)
    zone = "+00" if logical == "timestamptz" else ""
    return date + clock + zone + ("" if year > 0 else " BC")


def parse(text: str, logical: str) -> int | None:
    """The integer that :func:`text_of` shows as this text; None if it is no such value, or one beyond 64 bits."""
    top = 2**31 - 1 if logical == "date" else 2**63 - 1
    if logical != "time" and text in ("infinity", "-infinity"):
        return top if text == "infinity" else -top
    found = _FORMS[logical].fullmatch(text)
    if found is None:
        return None
    if logical == "time":
        return _microseconds(*found.groups())
    year, month, day, *clock = found.groups()[:-1]
    days = _days(1 - int(year) if found["bc"] else int(year), int(month), int(day))
    micros = _microseconds(*clock) if clock else 0
    if days is None or micros is None or micros == _DAY_US:
        return None
    value = days * _DAY_US + micros if clock else days
    return value if abs(value) < top else None


def _clock(micros: int) -> str:
    seconds, fraction = divmod(micros, 1_000_000)
    shown = f"{seconds // 3600:02d}:{seconds // 60 % 60:02d}:{seconds % 60:02d}"
    return shown + (f".{fraction:06d}".rstrip("0") if fraction else "")


def _microseconds(hours: str, minutes: str, seconds: str, fraction: str | None) -> int | None:
    if int(minutes) > 59 or int(seconds) > 59:
        return None
    whole = (int(hours) * 60 + int(minutes)) * 60 + int(seconds)
    micros = whole * 1_000_000 + int((fraction or "").ljust(6, "0"))
    return micros if micros <= _DAY_US else None


def _days(year: int, month: int, day: int) -> int | None:
    """Days since 1970 of a date that exists; year 0 is 1 BC."""
    if not 1 <= month <= 12:
        return None
    shifted = year - (month <= 2)
    era, of_era = divmod(shifted, 400)
    of_year = (153 * (month + (-3 if month > 2 else 9)) + 2) // 5 + day - 1
    days = era * 146_097 + of_era * 365 + of_era // 4 - of_era // 100 + of_year - 719_468
    return days if _civil(days) == (year, month, day) else None


def _civil(days: int) -> tuple[int, int, int]:
    era, of_era = divmod(days + 719_468, 146_097)
    year = (of_era - of_era // 1460 + of_era // 36_524 - of_era // 146_096) // 365
    of_year = of_era - (365 * year + year // 4 - year // 100)
    month = (5 * of_year + 2) // 153
    day = of_year - (153 * month + 2) // 5 + 1
    month += 3 if month < 10 else -9
    return year + era * 400 + (month <= 2), month, day
