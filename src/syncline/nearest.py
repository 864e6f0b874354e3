"""Which name was meant: the one way in which every message about an unknown name finds the right one."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = ["hint", "nearest"]

_SHOWN = 10


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name that is most like ``name``, whatever its case; None if none is."""
    folded = {one.lower(): one for one in known}
    close = difflib.get_close_matches(name.lower(), folded, n=1, cutoff=0.6)
    return folded[close[0]] if close else None


def hint(name: str, known: Iterable[str]) -> str:
    """What to say behind an unknown name: the nearest one, or some of those that there are."""
    names = list(known)
    close = nearest(name, names)
    if close is not None:
        return f"Did you mean {close}?"
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"There are: {', '.join(names[:_SHOWN]) or 'none'}{more}."
