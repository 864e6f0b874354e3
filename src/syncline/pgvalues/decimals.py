"""PostgreSQL's binary numeric as 128-bit decimals, a column at a time. Pure.

The wire form is a header of four 16-bit words (number of groups, weight, sign, display scale) and groups of four
decimal digits, the first of which stands for ``10000 ** weight``.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from syncline.pgvalues.tuples import Cells, Malformed

__all__ = ["decimals"]

Words = np.ndarray[Any, np.dtype[np.uint64]]
_NEGATIVE, _NAN = 0x4000, 0xC000
_LIMB = 19  # decimal digits of one unsigned 64-bit limb
_POWERS = np.array([10**e for e in range(_LIMB + 1)], np.uint64)
_LOW = np.uint64(0xFFFFFFFF)
_HALF = np.uint64(32)


def decimals(cells: Cells, precision: int, scale: int) -> Words | None:
    """The values times ``10 ** scale`` as 128-bit integers (two little-endian 64-bit words each).

    None if some value is NaN, which no decimal can hold.

    Raises:
        Malformed: not the layout of a numeric of this precision and scale.
    """
    present = slice(None) if cells.null is None else ~cells.null
    begin, width = cells.begin[present], (cells.end - cells.begin)[present]
    head = cells.joined.words(begin)
    count = (head >> np.uint64(48)).astype(np.int64)
    sign = (head >> np.uint64(16)) & np.uint64(0xFFFF)
    if (width != 8 + 2 * count).any():
        raise Malformed("not a numeric")
    if (special := sign >= _NAN).any():
        if np.isin(sign[special], (_NAN, 0xD000, 0xF000)).all():
            return None
        raise Malformed("not a numeric")
    if ((sign != 0) & (sign != _NEGATIVE)).any() or ((head & np.uint64(0xFFFF)) != scale).any():
        raise Malformed("not a numeric")
    weight = (head >> np.uint64(32)).astype(np.uint16).astype(np.int16).astype(np.int64)
    high, low = _limbs(cells, begin, count, 4 * weight + scale)
    _check_precision(high, low, precision)
    found = np.zeros((len(cells), 2), np.uint64)
    found[present] = _signed(*_multiply(high, low), sign == _NEGATIVE)
    return found


def _limbs(cells: Cells, begin: Any, count: Any, exponent: Any) -> tuple[Words, Words]:
    """The digits as ``high * 10 ** 19 + low``; ``exponent`` is the power of ten of each value's first group."""
    high, low = np.zeros(len(begin), np.uint64), np.zeros(len(begin), np.uint64)
    words = low
    for group in range(int(count.max()) if len(count) else 0):
        if group % 4 == 0:
            # Behind the end of a short value lies another one, and at last the padding.
            words = cells.joined.words(np.minimum(begin + 8 + 2 * group, cells.joined.last))
        shift = np.uint64(48 - 16 * (group % 4))
        digits = np.where(group < count, (words >> shift) & np.uint64(0xFFFF), np.uint64(0))
        _add(high, low, digits, exponent - 4 * group)
    return high, low


def _add(high: Words, low: Words, digits: Words, exponent: Any) -> None:
    if (digits > 9999).any():
        raise Malformed("not a numeric")
    if ((digits != 0) & ((exponent < -3) | (exponent > 2 * _LIMB - 1))).any():
        raise Malformed("more digits than the column's precision")
    if int(exponent.min()) >= 0 and int(exponent.max()) <= _LIMB - 4:
        low += digits * _POWERS[exponent]
        return
    below = np.clip(-exponent, 0, 3)
    whole, rest = np.divmod(digits, _POWERS[below])
    if rest.any():
        raise Malformed("more digits than the column's scale")
    # A group may straddle the limbs: what is left of the border goes to the high one.
    cut = _POWERS[np.clip(_LIMB - exponent, 0, 4)]
    left, right = np.divmod(whole, cut)
    low += right * _POWERS[np.clip(exponent, 0, _LIMB - 1)]
    lift = np.clip(exponent - _LIMB, 0, _LIMB)
    if ((left != 0) & (left > (_POWERS[_LIMB] - np.uint64(1)) // _POWERS[lift])).any():
        raise Malformed("more digits than the column's precision")
    high += left * _POWERS[lift]


def _check_precision(high: Words, low: Words, precision: int) -> None:
    top, limb = (high, precision - _LIMB) if precision > _LIMB else (low, precision)
    if (top >= _POWERS[limb]).any() or (precision <= _LIMB and high.any()):
        raise Malformed("more digits than the column's precision")


def _multiply(high: Words, low: Words) -> tuple[Words, Words]:
    """``high * 10 ** 19 + low`` as 128 bits: upper and lower half."""
    if not high.any():
        return high, low
    factor = int(_POWERS[_LIMB])
    f1, f0 = np.uint64(factor >> 32), np.uint64(factor & 0xFFFFFFFF)
    h1, h0 = high >> _HALF, high & _LOW
    bottom, middle, cross = h0 * f0, h0 * f1, h1 * f0
    carry = (bottom >> _HALF) + (middle & _LOW) + (cross & _LOW)
    lower = (bottom & _LOW) | (carry << _HALF)
    upper = h1 * f1 + (middle >> _HALF) + (cross >> _HALF) + (carry >> _HALF)
    total = lower + low
    return upper + (total < lower), total


def _signed(upper: Words, lower: Words, negative: Any) -> Words:
    found = np.stack((lower, upper), axis=1)
    if negative.any():
        flipped = ~found[negative]
        flipped[:, 0] += np.uint64(1)
        flipped[:, 1] += flipped[:, 0] == 0
        found[negative] = flipped
    return found
