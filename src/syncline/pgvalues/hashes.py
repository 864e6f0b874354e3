"""PostgreSQL's extended hash functions over whole columns: what ``hashtextextended`` and its like return.

Source of the method: ``src/common/hashfn.c`` of PostgreSQL, Bob Jenkins' lookup3 (2006) with a seed of 64 bits.
Hash partitioning stores rows by these functions, so they don't change between versions. They differ on big-endian
machines. All take and give int64 arrays of seeds, and chain: a result can be the next one's seed.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa

__all__ = ["hash_bytes", "hash_double", "hash_int4", "hash_int8_folded", "hash_words"]

_Ints = np.ndarray[Any, np.dtype[np.int64]]
_Words = np.ndarray[Any, np.dtype[np.uint32]]
_State = tuple[_Words, _Words, _Words]

_INITIAL = 0x9E3779B9 + 3923095
_BLOCK = 12
_LOW = np.int64(0xFFFFFFFF)


def hash_int4(values: _Ints, seeds: _Ints) -> _Ints:
    """``hashint4extended``: of the low 32 bits."""
    a, b, c = _seeded(np.full(len(values), 4, np.uint32), seeds)
    a += values.astype(np.uint32)
    return _result(_final(a, b, c))


def hash_int8_folded(values: _Ints, seeds: _Ints) -> _Ints:
    """``hashint8extended``: both halves are folded into one, so values of 64 bits have but 32 bits of hash."""
    high = (values >> 32).astype(np.uint32)
    return hash_int4((values.astype(np.uint32) ^ np.where(values >= 0, high, ~high)).astype(np.int64), seeds)


def hash_double(values: np.ndarray[Any, np.dtype[np.float64]], seeds: _Ints) -> _Ints:
    """``hashfloat8extended``: zeros of both signs hash to the seed, and all NaNs are one."""
    plain = np.where(np.isnan(values), np.float64("nan"), values)
    return np.where(values == 0, seeds, hash_words(plain.view(np.uint32).reshape(-1, 2), seeds))


def hash_words(words: _Words, seeds: _Ints) -> _Ints:
    """``hash_any_extended`` of values of one size: a row of little-endian 32-bit words for each, shape (n, words)."""
    count, size = words.shape
    state = _seeded(np.full(count, size * 4, np.uint32), seeds)
    a, b, c = state
    at = 0
    while size - at >= 3:
        a += words[:, at]
        b += words[:, at + 1]
        c += words[:, at + 2]
        _mix(a, b, c)
        at += 3
    if size - at > 0:
        a += words[:, at]
    if size - at > 1:
        b += words[:, at + 1]
    return _result(_final(a, b, c))


def hash_bytes(values: pa.Array, seeds: _Ints) -> _Ints:
    """``hashtextextended`` of strings or binaries, by their bytes (which is what collations that are deterministic
    do); what stands for a null is anything."""
    data, starts, lengths = _bytes_of(values)
    # The longest first, so that those which have a further block are always the first ones.
    order = np.argsort(-lengths, kind="stable")
    starts, lengths = starts[order], lengths[order]
    blocks = lengths // _BLOCK
    state = _seeded(lengths.astype(np.uint32), seeds[order])
    for block in range(int(blocks[0]) if len(blocks) else 0):
        active = int(np.searchsorted(-blocks, -block, side="left"))
        at = starts[:active] + block * _BLOCK
        a, b, c = (words[:active] for words in state)
        a += data[at]
        b += data[at + 4]
        c += data[at + 8]
        _mix(a, b, c)
    found = np.empty(len(lengths), np.int64)
    found[order] = _result(_final(*_tail(state, data, starts + blocks * _BLOCK, lengths - blocks * _BLOCK)))
    return found


def _bytes_of(values: pa.Array) -> tuple[_Words, _Ints, _Ints]:
    """The word that begins at each byte, and where the values begin and how long they are."""
    wide = pa.types.is_large_string(values.type) or pa.types.is_large_binary(values.type)
    _, offsets, body = values.buffers()
    kind = np.int64 if wide else np.int32
    ends = np.frombuffer(offsets, kind)[values.offset : values.offset + len(values) + 1].astype(np.int64)
    first, last = (int(ends[0]), int(ends[-1])) if len(ends) else (0, 0)
    raw = np.frombuffer(body, np.uint8)[first:last] if body is not None else np.empty(0, np.uint8)
    padded = np.concatenate([raw, np.zeros(_BLOCK + 4, np.uint8)])
    words = np.lib.stride_tricks.as_strided(
        padded[:4].view("<u4"), shape=(len(padded) - 4,), strides=(1,), writeable=False
    )
    return words, ends[:-1] - first, np.diff(ends)


def _tail(state: _State, data: _Words, at: _Ints, left: _Ints) -> _State:
    """The last, incomplete block; the lowest byte of its third word is the length's."""
    a, b, c = state
    a += data[at] & _mask(left)
    b += data[at + 4] & _mask(left - 4)
    c += (data[at + 8] & _mask(left - 8)) << np.uint32(8)
    return a, b, c


def _mask(count: _Ints) -> _Words:
    """Ones for the first ``count`` bytes of a word."""
    bits = (count.clip(0, 4) * 8).astype(np.uint64)
    return ((np.uint64(1) << bits) - np.uint64(1)).astype(np.uint32)


def _seeded(lengths: _Words, seeds: _Ints) -> _State:
    start = lengths + np.uint32(_INITIAL & 0xFFFFFFFF)
    a, b, c = start + (seeds >> 32).astype(np.uint32), start + (seeds & _LOW).astype(np.uint32), start.copy()
    _mix(a, b, c)
    bare = seeds == 0
    for words in (a, b, c):
        words[bare] = start[bare]
    return a, b, c


def _mix(a: _Words, b: _Words, c: _Words) -> None:
    """In place: arrays of this size that come and go cost more than the arithmetic."""
    turned, spare = np.empty_like(a), np.empty_like(a)

    def step(x: _Words, y: _Words, z: _Words, k: int) -> None:
        x -= z
        np.left_shift(z, np.uint32(k), out=turned)
        np.right_shift(z, np.uint32(32 - k), out=spare)
        np.bitwise_or(turned, spare, out=turned)
        x ^= turned
        z += y

    for k, m, n in ((4, 6, 8), (16, 19, 4)):
        step(a, b, c, k)
        step(b, c, a, m)
        step(c, a, b, n)


def _rot(x: _Words, k: int) -> _Words:
    return (x << np.uint32(k)) | (x >> np.uint32(32 - k))


def _final(a: _Words, b: _Words, c: _Words) -> _State:
    c = (c ^ b) - _rot(b, 14)
    a = (a ^ c) - _rot(c, 11)
    b = (b ^ a) - _rot(a, 25)
    c = (c ^ b) - _rot(b, 16)
    a = (a ^ c) - _rot(c, 4)
    b = (b ^ a) - _rot(a, 14)
    c = (c ^ b) - _rot(b, 24)
    return a, b, c


def _result(state: _State) -> _Ints:
    _, b, c = state
    return ((b.astype(np.uint64) << np.uint64(32)) | c).view(np.int64)
