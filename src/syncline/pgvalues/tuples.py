"""Row tuples of many messages, walked all at once: offset vectors instead of a loop over rows. Pure.

The payloads are joined into one buffer. For column after column, one gather reads kind and length of all rows, and
all positions move on. Nothing is checked row by row: lengths are read unsigned, so positions only grow; a read beyond
the buffer is an ``IndexError``, and a walk that leaves its message ends elsewhere than the message does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa

__all__ = ["BINARY", "MISSING", "NULL", "TEXT", "Cells", "Field", "Joined", "Malformed", "walk", "walk_copy"]

TEXT, BINARY, NULL, MISSING = b"tbnu"

Ints = np.ndarray[Any, np.dtype[np.int64]]
Bools = np.ndarray[Any, np.dtype[np.bool_]]
Bytes = np.ndarray[Any, np.dtype[np.uint8]]
Words = np.ndarray[Any, np.dtype[np.uint64]]

# Behind the joined payloads, so that a gather at the very end stays inside the buffer.
_PAD = bytes(40)


class Malformed(Exception):
    """Some message of the batch doesn't follow the format; the row-wise decoder finds out which and why."""


class Joined:
    """Payloads in one buffer: ``starts`` and ``ends`` of each, and gathers of fixed widths at any offsets."""

    __slots__ = ("_words", "buffer", "data", "ends", "last", "starts")

    def __init__(self, payloads: Sequence[bytes]) -> None:
        self.data = b"".join((*payloads, _PAD))
        self.buffer = pa.py_buffer(self.data)
        lengths = np.fromiter(map(len, payloads), np.int64, len(payloads))
        self.ends: Ints = np.cumsum(lengths)
        self.starts: Ints = self.ends - lengths
        self._words = self._view("<u8")
        self.last = len(self._words) - 1  # the last offset of a word

    def _view(self, dtype: str) -> np.ndarray[Any, Any]:
        # An unaligned item at every byte: numpy gathers it with one copy per row.
        kind = np.dtype(dtype)
        return np.ndarray((len(self.data) - kind.itemsize + 1,), kind, self.data, strides=(1,))

    def words(self, at: Ints) -> Words:
        """The 8 bytes at each offset, as a big-endian number."""
        return self._words[at].byteswap()

    def gather(self, at: Ints, width: int) -> Bytes:
        """``width`` bytes at each offset, one behind the other."""
        return self._view(f"V{width}")[at].view(np.uint8)


@lru_cache(maxsize=8)
def _even(n: int) -> pa.Array:
    return pa.array(np.arange(0, 2 * n, 2, dtype=np.int64))


@dataclass(slots=True)
class Cells:
    """One column's values: where each begins and ends in the buffer, and which rows have none."""

    joined: Joined
    begin: Ints
    end: Ints
    null: Bools | None

    @staticmethod
    def of(array: pa.Array) -> Cells:
        """The values of a binary array."""
        validity, offsets, data = array.buffers()
        joined = Joined([data.to_pybytes() if data else b""])
        spots = np.frombuffer(offsets, np.int32)[array.offset : array.offset + len(array) + 1].astype(np.int64)
        null = np.asarray(array.is_null()) if validity is not None and array.null_count else None
        return Cells(joined, spots[:-1], spots[1:], null)

    def __len__(self) -> int:
        return len(self.begin)

    def take(self, skip: int = 0, trim: int = 0) -> pa.Array:
        """A binary array of the values, without their first ``skip`` and last ``trim`` bytes (which must be there).

        The values must lie in the buffer in the order of the rows.
        """
        n = len(self.begin)
        # Values and the gaps between them are the segments of one array over the buffer; every second one is taken.
        segments = np.empty(2 * n + 1, np.int32)
        segments[:-1:2] = self._moved(self.begin, skip)
        segments[1::2] = self._moved(self.end, -trim)
        segments[-1] = self.end[-1] if n else 0
        array = pa.Array.from_buffers(pa.binary(), 2 * n, [None, pa.py_buffer(segments), self.joined.buffer])
        if self.null is None:
            return array.take(_even(n))
        return array.take(pa.array(np.arange(0, 2 * n, 2, dtype=np.int64), mask=self.null))

    def _moved(self, offsets: Ints, by: int) -> Ints:
        if not by:
            return offsets
        return offsets + by if self.null is None else np.where(self.null, offsets, offsets + by)

    def all(self, condition: Bools) -> bool:
        """Whether a condition holds for every row that has a value."""
        return bool(condition.all() if self.null is None else (condition | self.null).all())

    def fixed(self, width: int) -> Bytes:
        """The bytes of all values, which must be ``width`` wide; anything where there is no value.

        Raises:
            Malformed: a value has another width.
        """
        if not self.all((self.end - self.begin) == width):
            raise Malformed(f"a value is not {width} bytes wide")
        return self.joined.gather(self.begin, width)


@dataclass(slots=True)
class Field:
    """One column of the walked tuples; ``kind`` is None where every row has a value of the format ``form``."""

    begin: Ints
    end: Ints
    kind: Bytes | None
    form: int  # TEXT, BINARY, or 0 where no row has a value

    def is_kind(self, kind: int) -> Bools | None:
        """Which rows have this kind; None if no row does."""
        if self.kind is None:
            return None
        found = self.kind == kind
        return found if found.any() else None


def walk(joined: Joined, at: Ints, columns: int) -> tuple[list[Field], Ints]:
    """The fields of the tuples whose first kind byte is at ``at``, and where each tuple ends.

    Raises:
        Malformed: an unknown kind, or one column in both formats.
        IndexError: a length leads beyond the buffer.
    """
    fields = []
    for _ in range(columns):
        words = joined.words(at)
        kind = (words >> np.uint64(56)).astype(np.uint8)
        length = ((words >> np.uint64(24)) & np.uint64(0xFFFFFFFF)).view(np.int64)
        first = int(kind[0]) if len(kind) else TEXT
        if (first in (TEXT, BINARY)) and (kind == first).all():
            begin = at + 5
            at = begin + length
            fields.append(Field(begin, at, None, first))
        else:
            field = _mixed(at, kind, length)
            at = field.end
            fields.append(field)
    return fields, at


def _mixed(at: Ints, kind: Bytes, length: Ints) -> Field:
    text, binary = kind == TEXT, kind == BINARY
    value = text | binary
    if not (value | (kind == NULL) | (kind == MISSING)).all():
        raise Malformed("unknown kind of value")
    has_text, has_binary = bool(text.any()), bool(binary.any())
    if has_text and has_binary:
        raise Malformed("a column in both formats")
    begin = at + np.where(value, 5, 1)
    form = TEXT if has_text else BINARY if has_binary else 0
    return Field(begin, begin + np.where(value, length, 0), kind, form)


def walk_copy(joined: Joined, columns: int) -> list[Cells]:
    """The columns of rows in the binary COPY format, each payload one row.

    Raises:
        Malformed: a row has another number of columns, or its values don't fill it exactly.
        IndexError: a length leads beyond the buffer.
    """
    at = joined.starts
    if ((joined.words(at) >> np.uint64(48)) != columns).any():
        raise Malformed("number of columns")
    at = at + 2
    found = []
    for _ in range(columns):
        length = (joined.words(at) >> np.uint64(32)).view(np.int64)
        begin = at + 4
        null = length == 0xFFFFFFFF
        if null.any():
            at = begin + np.where(null, 0, length)
            found.append(Cells(joined, begin, at, null))
        else:
            at = begin + length
            found.append(Cells(joined, begin, at, None))
    if (at != joined.ends).any():
        raise Malformed("values do not fill the row")
    return found
