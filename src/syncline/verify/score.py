"""The consistency score: the share of what was looked at that is as it should be. Pure.

A table's score is the mean over the types of checks that were made of it, a place's (target or source) the mean over
its tables, a pipeline's the mean over its places. So every table weighs the same: a small one that is all wrong can't
hide behind a large one that is right. A mean of shares is 1 only where each of them is.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

__all__ = ["place_scores", "rounded"]


def place_scores(facts: Iterable[tuple[str, str, str, float]]) -> dict[str, float]:
    """The score of each place, of ``(place, table, type of check, share that holds)``, in the order in which they
    come."""
    places: dict[str, dict[str, dict[str, list[float]]]] = {}
    for place, table, kind, share in facts:
        places.setdefault(place, {}).setdefault(table, {}).setdefault(kind, []).append(share)
    return {
        place: _mean(_mean(_mean(shares) for shares in kinds.values()) for kinds in tables.values())
        for place, tables in places.items()
    }


def _mean(values: Iterable[float]) -> float:
    found = list(values)
    return math.fsum(found) / len(found)


def rounded(score: float, digits: int = 6) -> float:
    """Rounded down, so that nothing but 1 becomes 1."""
    return math.floor(score * 10**digits) / 10**digits
