"""A digest of each side of a table, so that two people can compare what they hold without showing it to one another.

Every row, in the form in which rows are compared (:mod:`syncline.verify.exact`), is hashed, and the hashes are added
up: the order of rows does not matter, a row that is there twice does. Whether a copy equals its source is decided by
the comparison, not by digests: while somebody writes, they are of two moments.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import pyarrow as pa
import pyarrow.compute as pc
import xxhash

from syncline.apply.keys import key_bytes
from syncline.capture.snapshot import Reshaped, Rewritten
from syncline.capture.tables import TableInfo
from syncline.errors import Misconfigured
from syncline.mapping import MappedTable
from syncline.verify.checks.at import At, Copy
from syncline.verify.checks.mapped import mapped_rows
from syncline.verify.exact import INEXACT, comparable, exact_rows

__all__ = ["digests"]

# How long a digest is, in bytes, and how it is made.
_ALGORITHMS: Mapping[str, tuple[int, Callable[[bytes], bytes]]] = {
    "xxh3": (16, xxhash.xxh3_128_digest),
    "sha256": (32, lambda data: hashlib.sha256(data).digest()),
    "sha512": (64, lambda data: hashlib.sha512(data).digest()),
    "blake2b": (64, lambda data: hashlib.blake2b(data).digest()),
    "md5": (16, lambda data: hashlib.md5(data, usedforsecurity=False).digest()),
}


def digests(at: At) -> Iterator[tuple[str, dict[str, str]]]:
    """The tables of a target by name, each with the algorithm and the digests of ``source`` and ``target``. A table
    that can't be read now is left out: the comparison says why."""
    algorithm = at.wanted.config.verify.data_hash
    for info in at.tables if at.copy is not None else ():
        if at.copy is None or at.apart(info.qualified):
            continue
        try:
            mine, theirs = _both(at, at.copy, info, algorithm)
        except (Rewritten, Reshaped):
            continue
        except Misconfigured:
            if not at.left_out_now(info.qualified):
                raise
            continue
        yield info.qualified, {"algorithm": algorithm, "source": mine, "target": theirs}


def _both(at: At, copy: Copy, info: TableInfo, algorithm: str) -> tuple[str, str]:
    recorded = copy.reader.recorded(info.qualified)
    mapped = copy.mapped(info)
    known = {(c.name, c.type) for c in (recorded or mapped.schema).columns}
    names = sorted(c.name for c in mapped.schema.columns if (c.name, c.type) in known)
    mine = digest((_source(made.rows, made.mapped) for made in mapped_rows(at, copy, info)), names, algorithm)
    if recorded is None:
        return mine, digest((), names, algorithm)
    embedded = _embedded(mapped)
    held = (comparable(exact_rows(b, recorded), recorded, embedded, source=False) for b in copy.reader.scan(recorded))
    return mine, digest(held, names, algorithm)


def _source(rows: pa.RecordBatch, mapped: MappedTable) -> pa.RecordBatch:
    return comparable(exact_rows(rows, mapped.schema), mapped.schema, _embedded(mapped), source=True)


def _embedded(mapped: MappedTable) -> dict[str, str]:
    """Vectors that an embedder makes, and the columns with the digests of their texts."""
    return {embedder.columns[0].name: embedder.columns[1].name for embedder in mapped.embedders}


def digest(batches: Iterable[pa.RecordBatch], names: Sequence[str], algorithm: str) -> str:
    """The sum of the hashes of all rows by these columns, in hexadecimal digits."""
    size, hashed = _ALGORITHMS[algorithm]
    total = 0
    for batch in batches:
        columns = [*names, *([INEXACT] if INEXACT in batch.schema.names else [])]
        if batch.num_rows:
            rows = _row_bytes([batch.column(name) for name in columns])
            total += sum(int.from_bytes(hashed(row), "big") for row in rows.to_pylist())
    return f"{total % (1 << 8 * size):0{2 * size}x}"


def _row_bytes(columns: Sequence[pa.Array]) -> pa.Array:
    """``length:value`` of each column, or a dash for NULL, joined: equal exactly where the rows are equal."""
    pieces = [pc.fill_null(key_bytes([_plain(column)]), b"-") for column in columns]
    return pc.binary_join_element_wise(*pieces, pa.scalar(b","))


def _plain(values: pa.Array) -> pa.Array:
    """Floats by their bits, where every NaN is the same; what else has bytes of its own stays."""
    if not pa.types.is_floating(values.type):
        return values
    nan = pa.scalar(float("nan"), values.type)
    return pc.if_else(pc.is_nan(values), nan, values).view(pa.int32() if values.type == pa.float32() else pa.int64())
