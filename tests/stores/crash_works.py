"""Works for tests that kill a store: what the n-th is, and what the first n leave behind."""

from __future__ import annotations

from typing import Any

from syncline.change import Cursor, Position
from syncline.stores import Work
from syncline.testing.store_suite import PAIR, Rows

__all__ = ["expected", "nth_work", "touched"]

KEYS = 40


def nth_work(n: int) -> Work:
    """The n-th work: updates, inserts, a delete, a moved row, and now and then a truncation; two tables alike."""
    if n % 50 == 0:
        return _cursor(n, Rows().upsert(n, 1, f"behind {n}", None), truncated=n - 1)
    rows = Rows()
    for i in range(12):
        rows.upsert(n, (n * 7 + i) % KEYS, f"work {n}", None)
    rows.delete(n, (n * 7 + 20) % KEYS)
    rows.partial(n, (n * 7 + 21) % KEYS, None, None, unchanged=["name"], origin=((n * 7 + 22) % KEYS,))
    return _cursor(n, rows)


def _cursor(n: int, rows: Rows, truncated: int | None = None) -> Work:
    other = Rows(PAIR).upsert(n, "north", n, n.to_bytes(16, "big"), "x")
    return Work((rows.table(truncated=truncated), other.table()), Cursor("orders", Position("log", n)))


def expected(n: int) -> dict[int, tuple[Any, ...]]:
    """What the works 1 to n leave, by the simplest means."""
    state: dict[int, tuple[Any, ...]] = {}
    for k in range(1, n + 1):
        if k % 50 == 0:
            state = {1: (f"behind {k}", None, k)}
            continue
        base = state.get((k * 7 + 22) % KEYS)
        for i in range(12):
            state[(k * 7 + i) % KEYS] = (f"work {k}", None, k)
        state.pop((k * 7 + 20) % KEYS, None)
        if base is not None:
            state[(k * 7 + 21) % KEYS] = (base[0], None, k)
    return state


def touched(n: int) -> set[int]:
    """The keys that the n-th work may change."""
    return set(range(KEYS)) if n % 50 == 0 else {(n * 7 + i) % KEYS for i in range(22)}
