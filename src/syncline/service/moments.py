"""Points in time as people give them: how long ago, or when."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

from syncline.errors import Misconfigured

__all__ = ["moment"]

_AGO = re.compile(r"(\d+(?:\.\d+)?)\s*([smhd])\Z")
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}


def moment(text: str, option: str) -> datetime:
    """``90s``, ``15m``, ``2h``, ``1d`` ago, or an ISO 8601 time, in UTC where it has no offset of its own.

    Raises:
        Misconfigured: it is neither, or lies ahead.
    """
    now = datetime.now(UTC)
    try:
        ago = _AGO.match(text)
        found = now - timedelta(**{_UNITS[ago[2]]: float(ago[1])}) if ago else datetime.fromisoformat(text)
    except (ValueError, OverflowError):
        raise Misconfigured(
            f"{option} {text!r} is no time.", remedy="Say how long ago (90s, 15m, 2h, 1d), or when (2026-01-31T12:00Z)."
        ) from None
    found = found if found.tzinfo else found.replace(tzinfo=UTC)
    if found > now:
        raise Misconfigured(f"{option} {text!r} is yet to come.", remedy="Say a time that is over, in UTC or with +02.")
    return found
