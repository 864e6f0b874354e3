"""The exact text of each logical type, whole columns at a time, and back. Pure.

Redis holds bytes; its own functions compute in float64. So every value is text (``bytes`` and ``text`` themselves,
``vector`` the little-endian floats that vector search reads), in one stable form: docs/stores/redis.md has the table.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from syncline.change import arrow_type
from syncline.stores.redis import calendar

__all__ = ["Bools", "from_text", "none_of", "to_text"]

Bools = np.ndarray[Any, np.dtype[np.bool_]]

_TEMPORAL = ("date", "time", "timestamp", "timestamptz")
# What Arrow formats and parses as PostgreSQL does: years 1 to 9999, and times below 24:00.
_DATES = (-719_162, 2_932_896)
_STAMPS = (_DATES[0] * 86_400_000_000, (_DATES[1] + 1) * 86_400_000_000 - 1)
_ORDINARY = {"date": _DATES, "time": (0, 86_399_999_999), "timestamp": _STAMPS, "timestamptz": _STAMPS}
_SHAPES = {
    "date": r"^\d{4}-\d\d-\d\d$",
    "time": r"^([01]\d|2[0-3]):\d\d:\d\d(\.\d{1,6})?$",
    "timestamp": r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d(\.\d{1,6})?$",
    "timestamptz": r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d(\.\d{1,6})?\+00$",
}
_LISTS = {"texts": list[str | None], "sparse": dict[str, list[float]]}


def none_of(rows: int) -> Bools:
    """A mask that holds for no row."""
    return np.zeros(rows, np.bool_)


def to_text(values: pa.Array, logical: str) -> tuple[pa.Array, Bools]:
    """The texts (binary, null for NULL), and which values have none: text of PostgreSQL that has no exact form in the
    type (see :class:`syncline.change.Batch`), or a list that holds what no list of its type can."""
    bad = none_of(len(values))
    if values.type != arrow_type(logical):
        values, bad = from_text(values.cast(pa.binary()), logical)
    if logical in _TEMPORAL:
        return _temporal_text(values, logical), bad
    if logical == "vector":
        return _vector_text(values)
    if logical in _LISTS:
        texts = [None if v is None else msgspec.json.encode(v) for v in values.to_pylist()]
        return pa.array(texts, pa.binary()), bad
    return _plain_text(values, logical).cast(pa.binary()), bad


def _plain_text(values: pa.Array, logical: str) -> pa.Array:
    if logical == "uuid":
        return _uuid_text(values)
    if logical in ("text", "json", "bytes"):
        return values
    texts = values.cast(pa.string())
    if logical in ("float4", "float8"):
        for arrow, ours in (("inf", "Infinity"), ("-inf", "-Infinity"), ("nan", "NaN")):
            texts = pc.if_else(pc.equal(texts, arrow), ours, texts)
    elif logical.startswith("numeric(") and pc.any(pc.match_substring(texts, "E")).as_py():
        texts = pa.array([None if v is None else format(v, "f") for v in values.to_pylist()], pa.string())
    return texts


def _uuid_text(values: pa.Array) -> pa.Array:
    filled = pc.fill_null(values, b"\0" * 16) if values.null_count else values
    data = np.frombuffer(filled.buffers()[1], np.uint8)[filled.offset * 16 :][: len(values) * 16]
    digits = np.frombuffer(data.tobytes().hex().encode(), np.uint8).reshape(-1, 32)
    texts = np.full((len(values), 36), ord("-"), np.uint8)
    for to, begin, end in ((0, 0, 8), (9, 8, 12), (14, 12, 16), (19, 16, 20), (24, 20, 32)):
        texts[:, to : to + end - begin] = digits[:, begin:end]
    made = pa.Array.from_buffers(pa.binary(36), len(values), [None, pa.py_buffer(texts)]).cast(pa.binary())
    return pc.if_else(values.is_valid(), made, None) if values.null_count else made


def _temporal_text(values: pa.Array, logical: str) -> pa.Array:
    stored = values.view(pa.int32() if logical == "date" else pa.int64())
    low, high = _ORDINARY[logical]
    ordinary = pc.and_(pc.greater_equal(stored, low), pc.less_equal(stored, high))
    plain = pc.if_else(ordinary, stored, pa.scalar(0, stored.type))
    shown = plain.view(pa.timestamp("us") if logical == "timestamptz" else arrow_type(logical)).cast(pa.string())
    if logical != "date":
        shown = pc.replace_substring_regex(shown, r"\.?0{0,6}$", "") if _fractions(shown) else shown
    if logical == "timestamptz":
        shown = pc.binary_join_element_wise(shown, "+00", "")
    if pc.all(ordinary, min_count=0).as_py() is not False:
        return shown.cast(pa.binary())
    rare = ordinary.fill_null(True).to_numpy(zero_copy_only=False)
    texts = shown.to_pylist()
    for row in np.flatnonzero(~rare):
        texts[row] = calendar.text_of(stored[int(row)].as_py(), logical)
    return pa.array(texts, pa.string()).cast(pa.binary())


def _fractions(shown: pa.Array) -> bool:
    return bool(pc.any(pc.match_substring(shown, ".")).as_py())


def _vector_text(values: pa.Array) -> tuple[pa.Array, Bools]:
    flat = values.flatten()
    inside = values.value_lengths().fill_null(0).to_numpy(zero_copy_only=False).astype(np.int64)
    bad = none_of(len(values))
    if flat.null_count:
        holes = np.repeat(np.arange(len(values)), inside)[flat.is_null().to_numpy(zero_copy_only=False)]
        bad[holes] = True
    data = pc.fill_null(flat, 0).to_numpy(zero_copy_only=False).astype("<f4").tobytes()
    return _binary(data, np.concatenate(([0], np.cumsum(inside))) * 4, values.is_valid()), bad


def _binary(data: bytes, ends: np.ndarray[Any, Any], valid: pa.Array) -> pa.Array:
    offsets = pa.py_buffer(ends.astype(np.int32))
    made = pa.Array.from_buffers(pa.binary(), len(ends) - 1, [None, offsets, pa.py_buffer(data)])
    return pc.if_else(valid, made, pa.scalar(None, pa.binary()))


# ------------------------------------------------------------------------------------------------------- and back


def from_text(texts: pa.Array, logical: str) -> tuple[pa.Array, Bools]:
    """The values (``arrow_type(logical)``), and which texts are none of the type; those become null."""
    try:
        values = _columnar(texts, logical)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, UnicodeDecodeError):
        return _one_by_one(texts, lambda text: _columnar(text, logical), logical)
    lost = pc.and_(texts.is_valid(), values.is_null()).to_numpy(zero_copy_only=False)
    return values, lost


def _columnar(texts: pa.Array, logical: str) -> pa.Array:
    """Raises pa.ArrowInvalid where a text is no value; an unusual one may also become null."""
    if logical == "bytes":
        return texts
    if logical == "uuid":
        return _uuids(texts)
    if logical == "vector":
        return _vectors(texts)
    if logical in _LISTS:
        return _lists(texts, logical)
    strings = texts.cast(pa.string())
    if logical in _TEMPORAL:
        return _temporals(strings, logical)
    if logical == "bool":
        true = pc.is_in(strings, pa.array(["true", "t"]))
        known = pc.or_(true, pc.is_in(strings, pa.array(["false", "f"])))
        return pc.if_else(pc.and_(strings.is_valid(), known), true, pa.scalar(None, pa.bool_()))
    return strings.cast(arrow_type(logical))


def _one_by_one(texts: pa.Array, cast: Callable[[pa.Array], pa.Array], logical: str) -> tuple[pa.Array, Bools]:
    """Each distinct text on its own; so rare a case that it may be slow."""
    encoded = texts.dictionary_encode()
    wanted = arrow_type(logical)
    values = []
    for i in range(len(encoded.dictionary)):
        try:
            values.append(cast(encoded.dictionary.slice(i, 1)))
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError, UnicodeDecodeError):
            values.append(pa.nulls(1, wanted))
    found = pa.concat_arrays([*values, pa.nulls(1, wanted)]).take(encoded.indices.fill_null(len(values)))
    return found, pc.and_(texts.is_valid(), found.is_null()).to_numpy(zero_copy_only=False)


def _temporals(strings: pa.Array, logical: str) -> pa.Array:
    ordinary = pc.match_substring_regex(strings, _SHAPES[logical])
    plain = pc.if_else(ordinary, strings, pa.scalar(None, pa.string()))
    if logical == "timestamptz":
        plain = pc.utf8_slice_codeunits(plain, 0, -3)
    if logical == "date":
        values = plain.cast(pa.date32())
    elif logical == "time":  # Arrow casts no strings to times
        values = pc.binary_join_element_wise("1970-01-01", plain, " ").cast(pa.timestamp("us"))
    else:
        values = plain.cast(pa.timestamp("us"))
    storage = pa.int32() if logical == "date" else pa.int64()
    stored = values.view(storage)
    rare = pc.invert(ordinary).fill_null(False).to_numpy(zero_copy_only=False)
    if rare.any():
        listed = stored.to_pylist()
        for row in np.flatnonzero(rare):
            listed[row] = calendar.parse(strings[int(row)].as_py(), logical)
        stored = pa.array(listed, storage)
    return stored.view(arrow_type(logical))


def _uuids(texts: pa.Array) -> pa.Array:
    shape = r"^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$"
    strings = texts.cast(pa.string())
    fits = pc.match_substring_regex(strings, shape).fill_null(False)
    digits = pc.replace_substring(pc.if_else(fits, strings, "0" * 8 + ("-" + "0" * 4) * 3 + "-" + "0" * 12), "-", "")
    data = bytes.fromhex("".join(digits.to_pylist()))
    made = pa.Array.from_buffers(pa.binary(16), len(texts), [None, pa.py_buffer(data)])
    return pc.if_else(fits, made, pa.scalar(None, pa.binary(16)))


def _vectors(texts: pa.Array) -> pa.Array:
    sizes = pc.binary_length(texts).fill_null(0).to_numpy(zero_copy_only=False).astype(np.int64)
    whole = pc.and_(texts.is_valid(), pa.array(sizes % 4 == 0))
    data = b"".join(t for t, ok in zip(texts.to_pylist(), whole.to_pylist(), strict=True) if ok)
    counts = np.where(whole.to_numpy(zero_copy_only=False), sizes // 4, 0)
    ends = pa.array(np.concatenate(([0], np.cumsum(counts))).astype(np.int32))
    floats = pa.array(np.frombuffer(data, "<f4"), pa.float32())
    return pa.ListArray.from_arrays(ends, floats, mask=pc.invert(whole))


def _lists(texts: pa.Array, logical: str) -> pa.Array:
    values = []
    for text in texts.to_pylist():
        try:
            values.append(None if text is None else msgspec.json.decode(text, type=_LISTS[logical]))
        except msgspec.DecodeError:
            values.append(None)
    return pa.array(values, arrow_type(logical))
