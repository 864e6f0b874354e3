"""Columns as MessagePack, whole columns at a time, for the scripts; and the entries of the companion hash. Pure.

The scripts' decoder knows no binary values, so everything is a string; strings may hold any bytes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from syncline.stores.redis.text import Bools

__all__ = ["Chunked", "Packed", "element", "entry_tail", "head_of", "pack", "packed_map", "pieces"]

_NULL, _FALSE = b"\xc0", b"\xc2"
_STRING = 0xDB
_CHUNK_ROWS, _CHUNK_BYTES = 1_000, 1 << 20  # a script unpacks a chunk's ids on its stack, which holds 8,000


@dataclass(frozen=True, slots=True)
class Packed:
    """A column whose values are packed one behind the other; value ``i`` is ``data[ends[i]:ends[i + 1]]``."""

    data: memoryview
    ends: np.ndarray[tuple[int], np.dtype[np.int64]]

    def cut(self, begin: int, end: int) -> bytes:
        """The array of these values."""
        return head_of(end - begin) + self.data[self.ends[begin] : self.ends[end]]


def head_of(length: int) -> bytes:
    """Begins an array of this many values."""
    return b"\xdd" + length.to_bytes(4, "big")


def element(values: pa.Array) -> pa.Array:
    """Each value (binary) as MessagePack."""
    sizes = pc.fill_null(pc.binary_length(values), 0).to_numpy(zero_copy_only=False).astype(">u4")
    heads = np.empty((len(sizes), 5), np.uint8)
    heads[:, 0] = _STRING
    heads[:, 1:] = sizes.view(np.uint8).reshape(-1, 4)
    begins = pa.Array.from_buffers(pa.binary(5), len(sizes), [None, pa.py_buffer(heads)]).cast(pa.binary())
    return pc.fill_null(pc.binary_join_element_wise(begins, values, pa.scalar(b"")), _NULL)


def pack(values: pa.Array, keep: Bools | None = None) -> Packed:
    """A column (binary; NULL is nil); ``keep`` are rows whose value is packed as false instead."""
    elements = element(values)
    if keep is not None:
        elements = pc.if_else(pa.array(keep), pa.scalar(_FALSE), elements)
    _, offsets, data = elements.buffers()
    ends = np.frombuffer(offsets, np.int32)[elements.offset :][: len(elements) + 1].astype(np.int64)
    return Packed(memoryview(data or b""), ends)


@dataclass(frozen=True, slots=True)
class Chunked:
    """A piece of some columns: its bytes, and which rows they are."""

    data: bytes
    begin: int
    end: int


def pieces(columns: Sequence[Packed], rows: int) -> Iterator[Chunked]:
    """The columns in pieces that a script takes well."""
    total = sum(int(c.ends[-1] - c.ends[0]) for c in columns) if rows else 0
    step = max(1, min(_CHUNK_ROWS, _CHUNK_BYTES * rows // max(1, total)))
    for begin in range(0, rows, step):
        end = min(rows, begin + step)
        yield Chunked(head_of(len(columns)) + b"".join(c.cut(begin, end) for c in columns), begin, end)


def packed_map(values: Sequence[tuple[int | str, pa.Array]]) -> list[pa.Array | pa.Scalar]:
    """What follows an entry's version: a blank, and a map of numbers or names to values, as parts to be joined."""
    parts: list[pa.Array | pa.Scalar] = [pa.scalar(b" \xde" + len(values).to_bytes(2, "big"))]
    for name, array in values:
        encoded = b"" if isinstance(name, int) else name.encode()
        key = bytes([name]) if isinstance(name, int) else b"\xdb" + len(encoded).to_bytes(4, "big") + encoded
        parts += [pa.scalar(key), element(array)]
    return parts


def entry_tail(entry: bytes) -> dict[int | str, bytes]:
    """The map of an entry, without NULLs."""
    place = entry.find(b" ")
    if place < 0:
        return {}
    count, place = int.from_bytes(entry[place + 2 : place + 4], "big"), place + 4
    found: dict[int | str, bytes] = {}
    for _ in range(count):
        name: int | str = entry[place]
        if name == _STRING:  # else it is a number below 32, which is its own form
            text, place = _string(entry, place)
            name = text.decode()
        else:
            place += 1
        if entry[place] == _NULL[0]:
            place += 1
        else:
            found[name], place = _string(entry, place)
    return found


def _string(entry: bytes, place: int) -> tuple[bytes, int]:
    end = place + 5 + int.from_bytes(entry[place + 1 : place + 5], "big")
    return entry[place + 5 : end], end
