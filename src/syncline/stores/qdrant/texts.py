"""Values as text: columns that came as PostgreSQL's, and the forms of dates and times in payloads. Pure."""

from __future__ import annotations

import re

import pyarrow as pa

from syncline.change import arrow_type
from syncline.pgvalues.pgtypes import cast_text

__all__ = ["date_text", "moment", "moment_text", "storage_of", "typed"]

_MOMENT = re.compile(
    r"(?P<year>\d{4,7})-(?P<month>\d\d)-(?P<day>\d\d)"
    r"(?:[ T](?P<hour>\d\d):(?P<minute>\d\d):(?P<second>\d\d)(?:\.(?P<part>\d{1,6}))?)?(?:\+00|Z)?(?P<era> BC)?"
)
_DAY_US = 86_400_000_000


def storage_of(logical: str) -> pa.DataType | None:
    """The integer type under a temporal type, None for others."""
    kind = arrow_type(logical)
    if not pa.types.is_temporal(kind):
        return None
    return pa.int32() if kind == pa.date32() else pa.int64()


def typed(texts: pa.Array, logical: str) -> tuple[pa.Array, list[int]]:
    """A column that came as PostgreSQL's text, in its own type, and the rows whose value has no exact form there (NULL
    in what is returned). Each distinct text on its own: so rare a case that it may be slow."""
    wanted = arrow_type(logical)
    encoded = texts.dictionary_encode()
    values = [_cast(encoded.dictionary.slice(i, 1), logical) for i in range(len(encoded.dictionary))]
    exact = [v if v.type == wanted else pa.nulls(1, wanted) for v in values]
    places = encoded.indices.fill_null(len(values)).to_pylist()
    bad = [row for row, place in enumerate(places) if place < len(values) and values[place].type != wanted]
    return pa.concat_arrays([*exact, pa.nulls(1, wanted)]).take(pa.array(places, pa.int64())), bad


def _cast(text: pa.Array, logical: str) -> pa.Array:
    """One value; still text where it has no exact form, also for more digits than the source's type has."""
    try:
        return cast_text(text, logical)
    except (ValueError, pa.ArrowInvalid):
        return text


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
