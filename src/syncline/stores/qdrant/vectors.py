"""Columns of vectors as Qdrant's vectors, and back. Pure.

Qdrant keeps the direction of a vector whose distance is cosine, and sorts sparse ones. Where what it gives back would
not be what went in, the vector's own bytes are kept beside it, as text (*exact*).
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from syncline.change import arrow_type
from syncline.shape import Vector
from syncline.stores.qdrant.points import Sparse

__all__ = ["EncodedVectors", "decode_vectors", "encode_vectors"]

# Qdrant leaves a vector alone whose squared length is within 1e-6 of 1 (measured); half of that leaves room for sums
# that are rounded otherwise.
_UNIT = 5e-7


@dataclass(slots=True)
class EncodedVectors:
    """The vectors of a column (None where there is none), exact texts beside some of them, and why rows are refused."""

    values: list[list[float] | Sparse | None]
    exact: dict[int, str] = field(default_factory=dict)
    bad: dict[int, str] = field(default_factory=dict)


def encode_vectors(vector: Vector, array: pa.Array) -> EncodedVectors:
    """The vectors of a column of type ``vector`` or ``sparse``."""
    return _sparse(array) if vector.sparse else _dense(vector, array)


def _dense(vector: Vector, array: pa.Array) -> EncodedVectors:
    rows, matrix, bad = _matrix(vector, array)
    values: list[list[float] | Sparse | None] = [None] * len(array)
    for row, value in zip(rows.tolist(), matrix.tolist(), strict=True):
        values[row] = value
    exact: dict[int, str] = {}
    if vector.distance == "cosine":
        squares = np.einsum("ij,ij->i", matrix, matrix, dtype=np.float64)
        kept = (np.abs(squares - 1.0) <= _UNIT) | ~matrix.any(axis=1)
        exact = {int(rows[i]): _bytes_text(matrix[i]) for i in np.flatnonzero(~kept)}
    return EncodedVectors(values, exact, bad)


def _matrix(vector: Vector, array: pa.Array) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any], dict[int, str]]:
    """The rows that hold a sound vector, these vectors, and what is wrong with the others."""
    lists = array.cast(arrow_type("vector"))
    numbers = lists.values.to_numpy(zero_copy_only=False)  # NULL among them is NaN
    offsets = lists.offsets.to_numpy()
    lengths = np.diff(offsets)
    there = ~lists.is_null().to_numpy(zero_copy_only=False)
    sized = there & (lengths == vector.size)
    bad = {
        row: f"its vector {vector.name} has {lengths[row]} dimensions instead of {vector.size}"
        for row in np.flatnonzero(there & ~sized).tolist()
    }
    rows = np.flatnonzero(sized)
    matrix = numbers[offsets[rows][:, None] + np.arange(vector.size)].astype("<f4", copy=False)
    finite = np.isfinite(matrix).all(axis=1)
    bad |= dict.fromkeys(rows[~finite].tolist(), f"its vector {vector.name} holds a value that is no finite number")
    return rows[finite], matrix[finite], bad


def _sparse(array: pa.Array) -> EncodedVectors:
    encoded = EncodedVectors([None] * len(array))
    for row, value in enumerate(array.to_pylist()):
        if value is None:
            continue
        indices, numbers = value["indices"], value["values"]
        wrong = _wrong(indices, numbers)
        if wrong:
            encoded.bad[row] = f"its sparse vector {wrong}"
            continue
        encoded.values[row] = Sparse(indices, numbers)
        if indices != sorted(indices):
            pairs = sorted(zip(indices, numbers, strict=True))
            encoded.values[row] = Sparse([i for i, _ in pairs], [n for _, n in pairs])
            encoded.exact[row] = f"{_bytes_text(np.array(indices, '<u4'))}:{_bytes_text(np.array(numbers, '<f4'))}"
    return encoded


def _wrong(indices: list[int] | None, numbers: list[float] | None) -> str:
    if indices is None or numbers is None or None in indices or None in numbers:
        return "holds NULL"
    if len(indices) != len(numbers):
        return "has more or fewer indices than values"
    if len(set(indices)) < len(indices):
        return "names an index twice"
    return "" if np.isfinite(numbers).all() else "holds a value that is no finite number"


def _bytes_text(numbers: np.ndarray[Any, Any]) -> str:
    return base64.b64encode(numbers.tobytes()).decode()


def decode_vectors(
    vector: Vector, values: Sequence[list[float] | Sparse | None], exact: Sequence[str | None]
) -> pa.Array:
    """The column of these vectors; ``exact`` holds the texts beside them, which count while the vector is what they
    became: somebody else may have changed it. One of a wrong form is NULL."""
    if vector.sparse:
        rows = [_pairs(v, e) for v, e in zip(values, exact, strict=True)]
        return pa.array(rows, arrow_type("sparse"))
    lists = [_direction(v, e) for v, e in zip(values, exact, strict=True)]
    return pa.array(lists, arrow_type("vector"))


def _direction(value: list[float] | Sparse | None, exact: str | None) -> list[float] | None:
    if not isinstance(value, list) or exact is None:
        return value if isinstance(value, list) else None
    whole, kept = _numbers(exact, "<f4"), np.array(value)
    if len(whole) == len(kept) and np.allclose(whole / np.linalg.norm(whole.astype("f8")), kept, rtol=0, atol=_UNIT):
        return whole.tolist()
    return value


def _pairs(value: list[float] | Sparse | None, exact: str | None) -> dict[str, list[Any]] | None:
    if not isinstance(value, Sparse):
        return None
    found: dict[str, list[Any]] = {"indices": list(value.indices), "values": list(value.values)}
    if exact is None:
        return found
    indices, numbers = (_numbers(part, kind) for part, kind in zip(exact.split(":"), ("<u4", "<f4"), strict=True))
    order = np.argsort(indices)
    same = np.array_equal(indices[order], value.indices) and np.array_equal(
        numbers[order], np.array(value.values, "<f4")
    )
    return {"indices": indices.tolist(), "values": numbers.tolist()} if same else found


def _numbers(text: str, kind: str) -> np.ndarray[Any, Any]:
    return np.frombuffer(base64.b64decode(text), kind)
