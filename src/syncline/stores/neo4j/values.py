"""Values on their way into properties and back: for each logical type the form that comes back exactly.

Neo4j has 64-bit integers, floats, booleans, strings, byte arrays, lists of one of these, and temporal values. What it
has no exact type for is text (docs/stores/neo4j.md has the table). Temporal values cross the wire as ISO text and are
made on the server: the driver's own conversion costs it 80 to 120 us a value, and its types end at the year 9999.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from syncline.change import Column, arrow_type

__all__ = ["Stored", "Values", "exact", "key_texts", "read_values", "refused", "shown", "store", "text_prefix"]

_Bools = np.ndarray[Any, np.dtype[np.bool_]]

# Cypher functions that make a value of its text.
_PARSE = {"date": "date", "time": "localtime", "timestamp": "localdatetime", "timestamptz": "datetime"}
# What all clients can read: the years 1 to 9999. Days and microseconds since 1970.
_FIRST_DAY, _LAST_DAY = -719_162, 2_932_896
_DAY = 86_400_000_000
_INFINITE = {"infinity": 1, "-infinity": -1}
_NOTHING = "\\N"


@dataclass(frozen=True)
class Values:
    """A column in its stored form. ``parse`` is the Cypher function that makes a value of the text, empty for none;
    ``odd`` holds, where ``values`` is null, what is stored as text though its type is temporal."""

    values: pa.Array
    parse: str = ""
    odd: pa.Array | None = None

    def __len__(self) -> int:
        return len(self.values)

    def take(self, rows: pa.Array) -> Values:
        """These rows."""
        return Values(self.values.take(rows), self.parse, None if self.odd is None else self.odd.take(rows))

    @property
    def null(self) -> _Bools:
        """Where the value is NULL."""
        nulls = self.values.is_null()
        if self.odd is not None:
            nulls = pc.and_(nulls, self.odd.is_null())
        return nulls.to_numpy(zero_copy_only=False)


@dataclass(frozen=True)
class Stored:
    """Rows in their stored form: columns by their position in the table, and versions (int64)."""

    columns: Mapping[int, Values]
    versions: pa.Array

    def __len__(self) -> int:
        return len(self.versions)

    def at(self, positions: Iterable[int]) -> list[Values]:
        """The columns at these positions."""
        return [self.columns[i] for i in positions]

    def take(self, rows: Any) -> Stored:
        """These rows: positions, or a mask."""
        rows = np.asarray(rows)
        if rows.dtype == np.bool_:
            rows = np.flatnonzero(rows)
        if len(rows) == len(self) and (rows == np.arange(len(self))).all():
            return self
        index = pa.array(rows.astype(np.int64))
        return Stored({i: c.take(index) for i, c in self.columns.items()}, self.versions.take(index))

    def sorted(self, key: Sequence[int]) -> Stored:
        """In the order of the key: writers that lock in one order rarely meet crosswise."""
        names = [str(i) for i in key]
        table = pa.table([self.columns[i].values for i in key], names=names)
        order = pc.sort_indices(table, sort_keys=[(n, "ascending") for n in names])
        return self.take(order.to_numpy())

    def chunks(self, rows: int) -> Iterator[Stored]:
        """Pieces of so many rows."""
        for start in range(0, len(self), rows):
            yield self.take(np.arange(start, min(start + rows, len(self))))


# ------------------------------------------------------------------------------------------------ what comes in


def exact(array: pa.Array, column: Column) -> tuple[pa.Array, _Bools | None]:
    """The column in its own Arrow type, and where PostgreSQL's text has no exact value in it (None: nowhere)."""
    wanted = arrow_type(column.type)
    if array.type == wanted:
        return array, None
    texts = array.to_pylist()
    found = [None if text is None else _exact(text, column.type, wanted) for text in texts]
    bad = np.array([t is not None and f is None for t, f in zip(texts, found, strict=True)])
    storage = _storage(wanted)
    typed = pa.array(found, storage).view(wanted) if storage else pa.array(found, wanted)
    return typed, bad if bad.any() else None


def _exact(text: str, logical: str, wanted: pa.DataType) -> Any:
    storage = _storage(wanted)
    if storage and text in _INFINITE:
        return _INFINITE[text] * (2 ** (storage.bit_width - 1) - 1)
    if logical == "time" and text == "24:00:00":
        return _DAY
    if logical == "time":  # Arrow reads no time of day, but a day with one
        text, wanted = f"1970-01-01 {text}", pa.timestamp("us")
    try:
        value = pa.array([text]).cast(wanted)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        return None
    return (value.view(storage) if storage else value)[0].as_py()


def _storage(wanted: pa.DataType) -> pa.DataType | None:
    if not pa.types.is_temporal(wanted):
        return None
    return pa.int32() if wanted == pa.date32() else pa.int64()


def refused(array: pa.Array, column: Column) -> _Bools | None:
    """Where a value can't be a property: NULL inside a list. None: nowhere."""
    if not pa.types.is_list(array.type) or not array.flatten().null_count:
        return None
    inside = [value is not None and None in value for value in array.to_pylist()]
    return np.array(inside) if any(inside) else None


def store(array: pa.Array, column: Column, *, key: bool | None = None) -> Values:
    """An exact column (see :func:`exact`) in its stored form. ``key``: it is part of a key, here or where it refers to;
    by default if it is one here."""
    logical, key = column.type, column.key if key is None else key
    if logical in _PARSE:
        return _temporal(array, logical)
    if logical.startswith("numeric("):
        return Values(_plain(array))
    if logical == "uuid":
        return Values(_uuids(array))
    if logical in ("float4", "float8"):
        return _floats(array, key=key)
    if logical == "bytes" and key:  # ArcadeDB finds no byte array again by its index
        return Values(pa.array([None if v is None else "\\x" + v.hex() for v in array.to_pylist()], pa.string()))
    if logical == "vector":
        return Values(array.cast(pa.list_(pa.float64())))
    if logical == "sparse":
        texts = [None if v is None else json.dumps([v["indices"], v["values"]]) for v in array.to_pylist()]
        return Values(pa.array(texts, pa.string()))
    return Values(array)


def _plain(array: pa.Array) -> pa.Array:
    """Decimals as text without exponents, which Arrow writes for small ones."""
    texts = array.cast(pa.string())
    if not pc.any(pc.match_substring(texts, "E"), min_count=0).as_py():
        return texts
    return pa.array([None if v is None else format(v, "f") for v in array.to_pylist()], pa.string())


def _uuids(array: pa.Array) -> pa.Array:
    texts = [None if v is None else v.hex() for v in array.to_pylist()]
    return pa.array(
        [None if t is None else f"{t[:8]}-{t[8:12]}-{t[12:16]}-{t[16:20]}-{t[20:]}" for t in texts], pa.string()
    )


def _floats(array: pa.Array, *, key: bool) -> Values:
    """A NaN equals nothing in Cypher, not even itself: in a key it is a text."""
    array = array.cast(pa.float64())
    if not key or not pc.any(pc.is_nan(array), min_count=0).as_py():
        return Values(array)
    nan = pc.is_nan(array)
    odd = pc.if_else(nan, pa.scalar("NaN"), pa.scalar(None, pa.string()))
    return Values(pc.if_else(nan, pa.scalar(None, pa.float64()), array), "toFloat", odd)


def _temporal(array: pa.Array, logical: str) -> Values:
    """ISO text that the server makes a value of; beyond the years 1 to 9999 the text itself."""
    parse = _PARSE[logical]
    numbers = array.view(_storage(array.type))
    low, high = _range(logical)
    if not len(numbers) or numbers.null_count == len(numbers):
        return Values(pa.nulls(len(numbers), pa.string()), parse)
    bounds = pc.min_max(numbers).as_py()
    if bounds["min"] >= low and bounds["max"] <= high:
        return Values(_iso(array, logical), parse)
    inside = pc.and_(pc.greater_equal(numbers, low), pc.less_equal(numbers, high))
    usual = pc.if_else(inside, numbers, pa.scalar(None, numbers.type)).view(array.type)
    odd = [None if n is None or low <= n <= high else _odd(n, logical) for n in numbers.to_pylist()]
    return Values(_iso(usual, logical), parse, pa.array(odd, pa.string()))


def _range(logical: str) -> tuple[int, int]:
    if logical == "date":
        return _FIRST_DAY, _LAST_DAY
    if logical == "time":
        return 0, _DAY - 1
    return _FIRST_DAY * _DAY, (_LAST_DAY + 1) * _DAY - 1


def _iso(array: pa.Array, logical: str) -> pa.Array:
    if logical in ("date", "time"):
        return array.cast(pa.string())
    texts = array.view(pa.timestamp("us")).cast(pa.string())
    texts = pc.binary_replace_slice(texts, start=10, stop=11, replacement="T")
    if logical == "timestamp":
        return texts
    return pc.binary_join_element_wise(texts, pa.scalar("Z"), pa.scalar(""))


def _odd(number: int, logical: str) -> str:
    """What has no temporal value: infinity, 24:00, years before 1 or beyond 9999 (as ISO 8601 counts: 0 is 1 BC)."""
    if logical == "time":
        return "24:00:00"
    greatest = 2 ** ((32 if logical == "date" else 64) - 1) - 1
    if abs(number) == greatest:
        return "infinity" if number > 0 else "-infinity"
    text = str(np.datetime64(number, "D" if logical == "date" else "us"))
    if text.startswith("-"):  # NumPy counts the sign among the four digits of a year
        year, _, rest = text[1:].partition("-")
        text = f"-{year:0>4}-{rest}"
    return text + "Z" if logical == "timestamptz" else text


# ------------------------------------------------------------------------------------------------ what comes back


def shown(expression: str, column: Column) -> str:
    """The expression that reads a value in a form which :func:`read_values` takes. What has no text where a temporal
    value should be (a list) gives one that is no value."""
    if column.type not in _PARSE:
        return expression
    return f"CASE WHEN {expression} IS NULL THEN null ELSE coalesce(toStringOrNull({expression}), '?') END"


def read_values(values: Sequence[Any], column: Column) -> tuple[pa.Array, _Bools | None]:
    """What was read as the contract's Arrow column, and where it is no value of that type (null there)."""
    logical, wanted = column.type, arrow_type(column.type)
    if logical in _PARSE:
        return _read_texts(values, wanted, lambda text: _moment(text, logical))
    if logical.startswith("numeric("):
        return _read_texts(values, wanted, lambda text: _exact(text, logical, wanted))
    if logical == "uuid":
        return _read_texts(values, wanted, _uuid)
    if logical == "sparse":
        return _read_texts(values, wanted, _sparse)
    if logical in ("float4", "float8"):
        values = [float("nan") if v == "NaN" else v for v in values]
    if logical == "bytes":
        values = [_bytes(v) if isinstance(v, str) else v for v in values]
    kinds = _KINDS[logical]
    bad = None
    if not {type(v) for v in values} <= kinds:
        bad = np.array([type(v) not in kinds for v in values])
        values = [None if b else v for v, b in zip(values, bad, strict=True)]
    try:
        return _fitting(pa.array(values, _WIDE.get(logical, wanted)), wanted, bad)
    except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError):
        return _one_by_one(values, wanted, bad)


_NONE = type(None)
_KINDS: dict[str, set[type]] = {
    "bool": {bool, _NONE},
    "int2": {int, _NONE},
    "int4": {int, _NONE},
    "int8": {int, _NONE},
    "float4": {float, int, _NONE},
    "float8": {float, int, _NONE},
    "bytes": {bytes, bytearray, _NONE},
    "json": {str, _NONE},
    "text": {str, _NONE},
    "texts": {list, _NONE},
    "vector": {list, _NONE},
}
_WIDE = {"float4": pa.float64(), "vector": pa.list_(pa.float64())}


def _fitting(array: pa.Array, wanted: pa.DataType, bad: _Bools | None) -> tuple[pa.Array, _Bools | None]:
    """Narrow what is stored wider; a number that changes by it is none of ours."""
    if array.type == wanted:
        return array, bad
    narrow = array.cast(wanted)
    if pa.types.is_list(wanted):
        return narrow, bad
    before, after = array.fill_null(0).to_numpy(), narrow.cast(pa.float64()).fill_null(0).to_numpy()
    changed = (before != after) & ~(np.isnan(before) & np.isnan(after))
    if not changed.any():
        return narrow, bad
    narrow = pc.if_else(pa.array(changed), pa.scalar(None, wanted), narrow)
    return narrow, changed if bad is None else bad | changed


def _one_by_one(values: Sequence[Any], wanted: pa.DataType, bad: _Bools | None) -> tuple[pa.Array, _Bools]:
    """Somebody wrote something that does not fit: find it."""
    found = np.zeros(len(values), np.bool_) if bad is None else bad
    kept = list(values)
    for i, value in enumerate(values):
        try:
            pa.array([value], wanted)
        except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError):
            kept[i], found[i] = None, True
    return pa.array(kept, wanted), found


def _read_texts(values: Sequence[Any], wanted: pa.DataType, parse: Any) -> tuple[pa.Array, _Bools | None]:
    """Texts as values of the type: all at once where Arrow can, else one by one."""
    storage = _storage(wanted)
    try:
        texts = pa.array(values, pa.string())
        if pa.types.is_time(wanted):
            return _times(texts), None
        if pa.types.is_decimal(wanted) or storage:
            return texts.cast(wanted), None
    except (pa.ArrowInvalid, pa.ArrowTypeError):
        pass  # some value is special, or none of ours
    known: dict[Any, Any] = {}
    found = []
    for value in values:
        key = value if isinstance(value, str) else None
        if key is not None and key not in known:
            known[key] = parse(key)
        found.append(known.get(key))
    bad = np.array([v is not None and f is None for v, f in zip(values, found, strict=True)], np.bool_)
    typed = pa.array(found, storage).view(wanted) if storage else pa.array(found, wanted)
    return typed, bad if bad.any() else None


def _moment(text: str, logical: str) -> int | None:
    """A temporal value as the integer that stores it, None if it is none."""
    bits = 32 if logical == "date" else 64
    if text in _INFINITE and logical != "time":
        return _INFINITE[text] * (2 ** (bits - 1) - 1)
    if logical == "time":
        return _DAY if text == "24:00:00" else _time(text)
    if logical == "timestamptz":
        text = text.removesuffix("Z")
    if not (_DATE if logical == "date" else _STAMP).fullmatch(text):
        return None
    try:
        value = int(np.datetime64(text, "D" if logical == "date" else "us").astype(np.int64))
    except ValueError:
        return None
    return value if abs(value) < 2 ** (bits - 1) - 1 else None


# NumPy would also take "now" and "NaT".
_DATE = re.compile(r"-?\d{4,}-\d\d-\d\d")
_STAMP = re.compile(_DATE.pattern + r"T\d\d:\d\d(:\d\d(\.\d{1,6})?)?")


def _times(texts: pa.Array) -> pa.Array:
    """Arrow reads no time of day, but a day with one."""
    stamps = pc.binary_join_element_wise(pa.scalar("1970-01-01"), texts, pa.scalar(" ")).cast(pa.timestamp("us"))
    return stamps.view(pa.int64()).view(pa.time64("us"))


def _time(text: str) -> int | None:
    try:
        return _times(pa.array([text])).view(pa.int64())[0].as_py()
    except pa.ArrowInvalid:
        return None


def _uuid(text: str) -> bytes | None:
    try:
        value = bytes.fromhex(text.replace("-", ""))
    except ValueError:
        return None
    return value if len(value) == 16 else None


def _bytes(text: str) -> bytes | str:
    """The bytes of a key, or the text if it is none."""
    try:
        return bytes.fromhex(text.removeprefix("\\x")) if text.startswith("\\x") else text
    except ValueError:
        return text


def _sparse(text: str) -> dict[str, Any] | None:
    try:
        indices, values = json.loads(text)
    except (ValueError, TypeError):
        return None
    return {"indices": indices, "values": values}


# ------------------------------------------------------------------------------------------------ keys as text


def text_prefix(name: str) -> str:
    """What the texts of one table's or label's keys begin with, and those of no other."""
    return name.replace("\\", "\\\\").replace(" ", "\\ ") + " "


def key_texts(name: str, columns: Iterable[Values]) -> pa.Array:
    """``name a|b``: one text for each key of a table or label, different for different keys and names. NULL has a text
    of its own."""
    parts = [_escaped(column) for column in columns]
    joined = pc.binary_join_element_wise(*parts, pa.scalar("|"))
    return pc.binary_join_element_wise(pa.scalar(text_prefix(name)), joined, pa.scalar(""))


def _escaped(column: Values) -> pa.Array:
    array = column.values
    if pa.types.is_binary(array.type):
        array = pa.array([None if v is None else v.hex() for v in array.to_pylist()], pa.string())
    elif pa.types.is_floating(array.type):
        array = pc.add(array, 0.0).cast(pa.string())  # 0.0 and -0.0 are one key
    else:
        array = array.cast(pa.string())
    if column.odd is not None:
        array = pc.coalesce(array, column.odd)
    if pa.types.is_string(column.values.type):
        array = pc.replace_substring(pc.replace_substring(array, "\\", "\\\\"), "|", "\\|")
    return array.fill_null(_NOTHING)
