"""Masks of unchanged columns: bytes in a batch, one bit a column, and matrices of rows and columns to count with.

Bit i of a mask is bit ``i % 8`` of byte ``i // 8``; all masks of a table are ``TableSchema.mask_bytes`` long.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa

from syncline.change import TableSchema

__all__ = ["Bools", "packed_masks", "unpacked_masks"]

Bools = np.ndarray[Any, np.dtype[np.bool_]]


def unpacked_masks(masks: pa.Array, schema: TableSchema) -> Bools:
    """Masks as a matrix of rows and columns, True where the column is unchanged. A row without a mask is whole."""
    width, size = len(schema.columns), schema.mask_bytes
    if masks.type == pa.null() or masks.null_count == len(masks):
        return np.zeros((len(masks), width), np.bool_)
    fixed = (masks.fill_null(bytes(size)) if masks.null_count else masks).cast(pa.binary(size))
    raw = np.frombuffer(fixed.buffers()[1], np.uint8)[fixed.offset * size :][: len(fixed) * size]
    return np.unpackbits(raw.reshape(len(fixed), size), axis=1, bitorder="little")[:, :width].astype(np.bool_)


def packed_masks(unchanged: Bools, schema: TableSchema) -> pa.Array:
    """The reverse: a mask for every row."""
    packed = np.ascontiguousarray(np.packbits(unchanged, axis=1, bitorder="little"))
    buffers = [None, pa.py_buffer(packed)]
    return pa.Array.from_buffers(pa.binary(schema.mask_bytes), len(unchanged), buffers).cast(pa.binary())
