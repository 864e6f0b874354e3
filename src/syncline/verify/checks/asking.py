"""What people ask a database, as a check: no violating row, or one boolean that is true."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import islice
from typing import Any

from syncline.errors import SynclineError
from syncline.verify.checks.at import not_checked
from syncline.verify.report import BROKEN, Check

__all__ = ["answered"]

_MOST = 10_000  # violating rows that are read of one question; more are "at least"

Rows = Iterator[tuple[Any, ...]]


def answered(begun: Check, ask: Callable[[], Rows], *, boolean: bool) -> Check:
    """The check as the rows decide it: each one violates, or (``boolean``) the only one is true or not. What can't be
    asked is not checked, for the reason that is given."""
    try:
        asked = ask()
        rows = list(islice(asked, _MOST + 1))
        close = getattr(asked, "close", None)
        if close is not None:  # what is left of it is not wanted
            close()
    except SynclineError as error:
        return not_checked(begun, error.message)
    if boolean and len(rows) == 1 and len(rows[0]) == 1 and (rows[0][0] is None or isinstance(rows[0][0], bool)):
        if rows[0][0] is None:
            return not_checked(begun, "Its query says neither true nor false, but NULL.")
        return begun if rows[0][0] else replace(begun, state=BROKEN, violations=1)
    if not rows:
        return begun
    told = tuple(tuple(map(_text, row)) for row in rows[:_MOST])
    return replace(begun, state=BROKEN, violations=len(told), more=len(rows) > _MOST, rows=told)


def _text(value: Any) -> str:
    return value.hex() if isinstance(value, bytes) else str(value)
