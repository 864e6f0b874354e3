"""One field of a payload: from JSON to the text that PostgreSQL prints for the same value in a column. Pure.

What the text of a column means is known by ``pgvalues``, for all that comes from PostgreSQL. So a payload's values go
through the same door, and end as the same Arrow values as if the row had been captured from the WAL.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import UTC, datetime, time
from decimal import ROUND_HALF_UP, Decimal, InvalidOperation
from uuid import UUID

import msgspec

from syncline.change import Column

__all__ = ["Unfit", "field_text"]

_QUOTED = re.compile(r'[\s{}",\\]')
_decoder = msgspec.json.Decoder(str)
_list_decoder = msgspec.json.Decoder(list[msgspec.Raw])


class Unfit(Exception):
    """The value can't be one of the column's. Says what the column takes, never what the value is."""


def field_text(raw: bytes, column: Column) -> str | None:
    """The text of the value that the JSON ``raw`` stands for; None is NULL.

    Raises:
        Unfit: it has no such value.
    """
    if raw == b"null":
        return None
    if column.type == "json":
        return raw.decode()
    if raw[:1] == b"[" and column.source_type.endswith("[]"):
        return _array(raw)
    if raw[:1] in (b"{", b"["):
        raise Unfit(f"takes {column.source_type}, and the payload has an object or a list")
    if raw in (b"true", b"false"):
        return _boolean(raw, column)
    text = _decoder.decode(raw) if raw[:1] == b'"' else raw.decode()
    if raw[:1] != b'"' and column.type in _FROM_TEXT_ONLY:
        raise Unfit(f"takes {column.source_type}, which JSON has as a text only")
    normal = _numeric if column.type.startswith("numeric(") else _NORMAL.get(column.type)
    if normal is None:
        return text
    try:
        return normal(text, column)
    except (ValueError, InvalidOperation) as error:
        raise Unfit(f"takes {column.source_type}, and the payload has none") from error


def _boolean(raw: bytes, column: Column) -> str:
    if column.type == "bool":
        return raw[:1].decode()
    if column.type == "text":
        return raw.decode()
    raise Unfit(f"takes {column.source_type}, and the payload has a boolean")


def _bool(text: str, _: Column) -> str:
    if text not in ("t", "f", "true", "false"):
        raise ValueError
    return text[0]


def _numeric(text: str, column: Column) -> str:
    """Rounded to the scale as PostgreSQL does it: halves away from zero."""
    if text in ("NaN", "Infinity", "-Infinity"):
        return text
    scale = int(column.type[8:-1].partition(",")[2])
    return format(Decimal(text).quantize(Decimal(1).scaleb(-scale), ROUND_HALF_UP), "f")


def _is_special(text: str) -> bool:
    return text in ("infinity", "-infinity") or text.endswith(" BC")


def _date(text: str, _: Column) -> str:
    return text if _is_special(text) else datetime.fromisoformat(text).date().isoformat()


def _timestamp(text: str, _: Column) -> str:
    """PostgreSQL reads such a text without its zone."""
    return text if _is_special(text) else datetime.fromisoformat(text).replace(tzinfo=None).isoformat(" ")


def _timestamptz(text: str, _: Column) -> str:
    """A time without a zone is one in UTC."""
    if _is_special(text):
        return text
    moment = datetime.fromisoformat(text)
    moment = moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    return moment.replace(tzinfo=None).isoformat(" ") + "+00"


def _time(text: str, _: Column) -> str:
    return text if text == "24:00:00" else time.fromisoformat(text).isoformat()


def _uuid(text: str, _: Column) -> str:
    return str(UUID(text))


def _bytes(text: str, _: Column) -> str:
    if not text.startswith("\\x"):
        raise ValueError
    return "\\x" + bytes.fromhex(text[2:]).hex()


_FROM_TEXT_ONLY = frozenset({"date", "time", "timestamp", "timestamptz", "uuid", "bytes", "bool"})
_NORMAL: dict[str, Callable[[str, Column], str]] = {
    "bool": _bool,
    "date": _date,
    "timestamp": _timestamp,
    "timestamptz": _timestamptz,
    "time": _time,
    "uuid": _uuid,
    "bytes": _bytes,
}


def _array(raw: bytes) -> str:
    """A JSON list as PostgreSQL prints an array."""
    return "{" + ",".join(_element(bytes(item)) for item in _list_decoder.decode(raw)) + "}"


def _element(raw: bytes) -> str:
    if raw[:1] == b"[":
        return _array(raw)
    if raw[:1] == b"{":
        raise Unfit("is an array, and the payload has an object in it")
    if raw in (b"null", b"true", b"false"):
        return {b"null": "NULL", b"true": "t", b"false": "f"}[raw]
    if raw[:1] != b'"':
        return raw.decode()
    text = _decoder.decode(raw)
    if text and not _QUOTED.search(text) and text.lower() != "null":
        return text
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
