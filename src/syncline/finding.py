"""What a look at a server, a file or a folder found, and what mends it: the lines of `syncline doctor`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["Finding", "Severity", "size"]

Severity = Literal["ok", "info", "warning", "error"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at. ``subject`` is what it is about: a server, a role, a slot, a table, a target.

    ``remedy`` is the statement to run or the setting to change, empty for ok and where nothing is to be done.
    """

    code: str
    severity: Severity
    subject: str
    message: str
    remedy: str = ""


def size(number: float) -> str:
    """Bytes for people."""
    for unit in ("B", "kB", "MB", "GB"):
        if number < 1024:
            return f"{number:.0f} {unit}"
        number /= 1024
    return f"{number:.1f} TB"
