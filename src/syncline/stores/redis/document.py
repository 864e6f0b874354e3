"""Rows as JSON objects, whole columns at a time, and back to the exact texts of their columns. Pure.

Integers of up to 32 bits, finite floats and booleans are JSON's own; 64-bit integers, decimals, temporal values and
uuids are strings, because JavaScript and Lua read numbers as float64; json is embedded as it is. A NULL is a member
that is not there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from syncline.change import Column
from syncline.stores.redis.text import Bools, none_of

__all__ = ["documents", "embedded_json", "members", "unreadable"]

_BARE = ("bool", "int2", "int4")
_FLOATS = ("float4", "float8")
_EMBEDDED = ("json", "texts", "sparse")
_decoder = msgspec.json.Decoder(dict[str, msgspec.Raw])


def documents(columns: Sequence[Column], texts: Sequence[pa.Array], rows: int) -> pa.Array:
    """One JSON object a row (binary) of these columns' texts."""
    if not rows:
        return pa.array([], pa.binary())
    pieces = []
    for column, values in zip(columns, texts, strict=True):
        name = b"," + msgspec.json.encode(column.name) + b":"
        shown = pc.binary_join_element_wise(pa.scalar(name), _value(values, column.type), pa.scalar(b""))
        pieces.append(pc.fill_null(shown, b""))
    joined = pc.binary_join_element_wise(*pieces, pa.scalar(b"")) if pieces else pa.repeat(b"", rows)
    return pc.binary_join_element_wise(pc.binary_replace_slice(joined, 0, 1, b"{"), pa.scalar(b"}"), pa.scalar(b""))


def unreadable(columns: Sequence[Column], texts: Sequence[pa.Array], rows: int) -> Bools:
    """Rows whose embedded values would not be read back as they are: no JSON, nested too deep, half a surrogate pair,
    or a vector with a value that is no number."""
    embedded = [i for i, c in enumerate(columns) if c.type in _EMBEDDED]
    bad = none_of(rows)
    for column, values in zip(columns, texts, strict=True):
        if column.type == "vector":
            bad |= np.fromiter((v is not None and not _finite(v) for v in values.to_pylist()), bool, rows)
    if embedded:
        objects = documents([columns[i] for i in embedded], [texts[i] for i in embedded], rows)
        found, whole = members([columns[i] for i in embedded], objects.to_pylist())
        bad |= ~whole
        for i, back in zip(embedded, found, strict=True):
            same = pc.equal(back, embedded_json(texts[i])).fill_null(False)
            neither = pc.and_(back.is_null(), texts[i].is_null())
            bad |= ~pc.or_(same, neither).to_numpy(zero_copy_only=False)
    return bad


def _value(texts: pa.Array, logical: str) -> pa.Array:
    if logical in _BARE or logical in _EMBEDDED:
        return texts
    if logical in _FLOATS:
        infinite = pc.is_in(texts, pa.array([b"NaN", b"Infinity", b"-Infinity"], pa.binary()))
        return pc.if_else(infinite, _quoted(texts), texts)
    if logical == "vector":
        return pa.array([None if t is None else _floats(t) for t in texts.to_pylist()], pa.binary())
    if logical == "bytes":
        texts = pa.array([None if t is None else "\\x" + t.hex() for t in texts.to_pylist()], pa.string())
    return _quoted(_escaped(texts.cast(pa.string())).cast(pa.binary()))


def _quoted(texts: pa.Array) -> pa.Array:
    return pc.binary_join_element_wise(pa.scalar(b'"'), texts, pa.scalar(b'"'), pa.scalar(b""))


def _escaped(strings: pa.Array) -> pa.Array:
    strings = pc.replace_substring(pc.replace_substring(strings, "\\", "\\\\"), '"', '\\"')
    if pc.any(pc.match_substring_regex(strings, r"[\x00-\x1f]")).as_py():
        for code in range(32):
            strings = pc.replace_substring(strings, chr(code), f"\\u{code:04x}")
    return strings


def _finite(text: bytes) -> bool:
    return bool(np.isfinite(np.frombuffer(text, "<f4")).all())


def _floats(text: bytes) -> bytes:
    return msgspec.json.encode(np.frombuffer(text, "<f4").tolist())


# ------------------------------------------------------------------------------------------------------- and back


def embedded_json(texts: pa.Array) -> pa.Array:
    """What is left of these JSON texts once they stood in a document: without the blanks around them."""
    return pc.utf8_trim(texts.cast(pa.string()), " \t\r\n").cast(pa.binary())


def members(columns: Sequence[Column], objects: Sequence[bytes | None]) -> tuple[list[pa.Array], Bools]:
    """The texts of the columns in each document, and which documents are there and of this form."""
    found = [None if o is None else _decoded(o) for o in objects]
    whole = np.fromiter((f is not None for f in found), bool, len(found))
    arrays = []
    for column in columns:
        raw = [None if f is None or column.name not in f else bytes(f[column.name]) for f in found]
        texts, bad = _texts(raw, column.type)
        arrays.append(pa.array(texts, pa.binary()))
        whole[bad] = False
    return arrays, whole


def _decoded(text: bytes) -> dict[str, msgspec.Raw] | None:
    """The members as they are written; None for what is no object that can be read: another form, too deep a nesting,
    half a surrogate pair."""
    try:
        return _decoder.decode(text)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        return None


def _texts(raw: list[bytes | None], logical: str) -> tuple[list[bytes | None], list[int]]:
    """The texts, and the places where the value is not of the form that this type has."""
    if logical in _BARE or logical in _EMBEDDED:
        return raw, []
    if logical in _FLOATS:
        return [None if r is None else r.strip(b'"') for r in raw], []
    try:
        return [_text(v, logical) for v in _values(raw, logical)], []
    except (msgspec.DecodeError, ValueError):
        return _one_by_one(raw, logical)


def _one_by_one(raw: list[bytes | None], logical: str) -> tuple[list[bytes | None], list[int]]:
    texts: list[bytes | None] = []
    bad = []
    for i, value in enumerate(raw):
        try:
            texts.append(_text(_values([value], logical)[0], logical))
        except (msgspec.DecodeError, ValueError):
            texts.append(None)
            bad.append(i)
    return texts, bad


def _values(raw: list[bytes | None], logical: str) -> list[Any]:
    joined = b"[" + b",".join(b"null" if r is None else r for r in raw) + b"]"
    kind: Any = list[float] if logical == "vector" else str
    return msgspec.json.decode(joined, type=list[kind | None])


def _text(value: Any, logical: str) -> bytes | None:
    if value is None:
        return None
    if logical == "vector":
        return np.array(value, "<f4").tobytes()
    if logical != "bytes":
        return value.encode()
    if value[:2] != "\\x":
        raise ValueError("not hexadecimal")
    return bytes.fromhex(value[2:])
