"""Digests of a table's rows by buckets: what both sides of a comparison agree on.

A digest tells that a bucket is equal, never that it differs: where two sides give an equal value another form (numerics
of many digits, dates beyond the calendar), the bucket is merely read.

Method. A row is a set of *facts*: that its key is there, and for each other column that is not NULL, its value. A fact
is hashed to 64 bits by PostgreSQL's own functions (:mod:`syncline.pgvalues.hashes`), which it computes several times
faster than MD5 of a row's text. The seed is the key, or the hash of the key, with a number for the column, so no
fact is worth another one. The digest of a bucket is the XOR of all facts in it, beside the number of its rows: as keys
are unique on one side, equal numbers and sums mean equal rows, but for collisions of 64 bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from syncline.change import TableSchema

__all__ = [
    "LONG_TEXT",
    "Buckets",
    "Chosen",
    "Form",
    "Ints",
    "digestible",
    "digests",
    "form_of",
    "salt",
    "spread",
    "summed",
    "whole_key",
]

Ints = np.ndarray[Any, np.dtype[np.int64]]
Form = str
"""How a value becomes a hash: ``int4``, ``int8``, ``bool``, ``float``, ``uuid``, ``moment`` (microseconds), ``bytes``
(by the MD5 of its bytes) or ``text`` (by its text; beyond :data:`LONG_TEXT` bytes by the MD5 of that)."""

LONG_TEXT = 1024

_FORMS = {
    "bool": "bool",
    "int2": "int4",
    "int4": "int4",
    "int8": "int8",
    "float4": "float",
    "float8": "float",
    "uuid": "uuid",
    "timestamp": "moment",
    "timestamptz": "moment",
    "time": "moment",
    "date": "text",
    "bytes": "bytes",
    "json": "text",
    "text": "text",
}
_GOLDEN = 0x9E3779B97F4A7C15
# So few rows that reading a bucket whose digest differs is cheap, so many that their digests are.
_BUCKET_ROWS = 32
# So many groups take PostgreSQL 18 some 23 MB of memory (EXPLAIN ANALYZE). Above that buckets have more rows.
_MOST_BITS = 18
# Keys that leave more room than this between them would make buckets of a few rows each.
_SPARSE = 8


@dataclass(frozen=True, slots=True)
class Buckets:
    """How a table's keys are spread: into ranges of 2 ** ``shift`` numbers where the key is one integer column, else
    (``shift`` None) into 2 ** ``bits`` buckets by the last bits of the key's hash."""

    bits: int
    shift: int | None = None


@dataclass(frozen=True, slots=True)
class Chosen:
    """Some of the buckets, by number (int64)."""

    buckets: Buckets
    numbers: pa.Array


def form_of(logical: str) -> Form | None:
    """How values of a logical type are hashed, None if they can't be."""
    return "text" if logical.startswith("numeric(") else _FORMS.get(logical)


def digestible(schema: TableSchema) -> bool:
    """Whether every column has a form."""
    return all(form_of(c.type) is not None for c in schema.columns)


def whole_key(schema: TableSchema) -> int | None:
    """The position of the key if it is one integer column: it is then its own seed."""
    (position, *more) = schema.key_positions
    return position if not more and schema.columns[position].type in ("int2", "int4", "int8") else None


def salt(position: int) -> int:
    """What is mixed into the seed for the column at this position (-1: the key's being there), as an int64."""
    return ((position + 2) * _GOLDEN & (2**64 - 1)) - 2**63


def spread(rows: int, least: int | None, greatest: int | None) -> Buckets:
    """Buckets for about so many rows, whose key is one integer between ``least`` and ``greatest`` (None if it is
    anything else)."""
    bits = min(_MOST_BITS, (rows // _BUCKET_ROWS).bit_length())
    if least is None or greatest is None or greatest - least >= _SPARSE * max(1, rows):
        return Buckets(bits)
    return Buckets(bits, max(0, (greatest - least).bit_length() - bits))


def digests(bucket: Ints, rows: Ints, facts: Ints) -> pa.Table:
    """``bucket``, ``rows`` and ``facts`` (their XOR), by bucket; what is given several times is summed up."""
    order = np.argsort(bucket, kind="stable")
    numbers, starts = np.unique(bucket[order], return_index=True)
    if not len(numbers):
        return pa.table({"bucket": numbers, "rows": rows, "facts": facts})
    return pa.table(
        {
            "bucket": numbers,
            "rows": np.add.reduceat(rows[order], starts),
            "facts": np.bitwise_xor.reduceat(facts[order], starts),
        }
    )


def summed(parts: Sequence[pa.Table]) -> pa.Table:
    """The digests of several parts of a table as one."""
    nothing = np.empty(0, np.int64)
    columns = [[p.column(name).to_numpy() for p in parts] for name in ("bucket", "rows", "facts")]
    bucket, rows, facts = (np.concatenate(c) if c else nothing for c in columns)
    return digests(bucket, rows, facts)
