"""Keys as comparable bytes: one binary value a row, whatever the key's columns and types are. Columnar."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa
import pyarrow.compute as pc
import xxhash

__all__ = ["key_bytes", "key_hashes"]


def key_bytes(columns: Sequence[pa.Array]) -> pa.Array:
    """``length:value`` of each key column, joined: equal exactly where the keys are equal. Null keys give null."""
    pieces: list[pa.Array] = []
    for column in columns:
        value = _binary(column)
        length = pc.binary_length(value).cast(pa.string()).cast(pa.binary())
        pieces += [length, value]
    return pc.binary_join_element_wise(*pieces, pa.scalar(b":"))


def key_hashes(columns: Sequence[pa.Array]) -> list[bytes]:
    """16 bytes a key, as the dead letters know it. Row by row, so only for what is parked or differs."""
    return [xxhash.xxh3_128_digest(key) for key in key_bytes(columns).to_pylist()]


def _binary(column: pa.Array) -> pa.Array:
    kind = column.type
    if pa.types.is_fixed_size_binary(kind):
        return column.cast(pa.binary())
    if pa.types.is_temporal(kind):
        column = column.view(pa.int64() if kind.bit_width == 64 else pa.int32())
    if pa.types.is_binary(kind):
        return column
    return column.cast(pa.string()).cast(pa.binary())
