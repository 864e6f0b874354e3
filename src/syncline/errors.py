"""The errors of Syncline, classified by what happens next.

    SynclineError
    ├── Retry          try again: nothing was lost, the other side is away or busy
    │   └── Unavailable
    ├── Park           set these changes aside with their reason, let the rest flow
    │   └── Rejected
    └── Stop           a person has to act; the message says what to do
        ├── Misconfigured
        ├── Gap
        └── Damaged

Every message says what happened, where, and what to do about it, and carries a stable code. Row values and
secrets are never part of a message (Guarantee 11).
"""

from __future__ import annotations

import traceback
from enum import Enum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = [
    "SCHEMA_DRIFT",
    "Damaged",
    "Gap",
    "Misconfigured",
    "Policy",
    "Rejected",
    "SynclineError",
    "Unavailable",
    "defect",
    "origin",
    "policy",
]


# The code of a gap that comes from a shape of a table that the source no longer has.
SCHEMA_DRIFT = "SL-SCHEMA-DRIFT"


class Policy(Enum):
    """What the engine does about an error."""

    RETRY = "retry"
    PARK = "park"
    STOP = "stop"


class SynclineError(Exception):
    """An error with a stable code and a remedy.

    ``code`` is stable across releases (``SL-`` and a short name); ``remedy`` is the operator's next step.
    """

    code = "SL-INTERNAL"
    policy = Policy.STOP

    def __init__(self, message: str, *, remedy: str = "", code: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy
        if code:
            self.code = code

    def __str__(self) -> str:
        return f"{self.message} {self.remedy}".strip()


class Unavailable(SynclineError):
    """A server, a disk or a connection is away for now. Trying the same thing again is safe."""

    code = "SL-UNAVAILABLE"
    policy = Policy.RETRY


class Rejected(SynclineError):
    """A store refuses some changes for what they hold; without them the rest applies.

    ``table`` is the qualified name, ``rows`` the positions of the refused changes in the folded batch that was
    handed in. Nothing of that batch has been written.
    """

    code = "SL-REJECTED"
    policy = Policy.PARK

    def __init__(self, table: str, rows: Sequence[int], reason: str, *, remedy: str = "") -> None:
        super().__init__(
            f"{len(rows)} change(s) of table {table} were refused: {reason}.",
            remedy=remedy or "They are parked in sync_dead_letters with this reason.",
        )
        self.table = table
        self.rows = tuple(rows)
        self.reason = reason


class Misconfigured(SynclineError):
    """A setting, a privilege or a server option is wrong; trying again cannot help."""

    code = "SL-CONFIG"


class Gap(SynclineError):
    """Changes are known to be missing between two places (slot lost or moved, log deleted or damaged).

    Never "continue from now": the tables concerned stay as they are until they are read again from the source.
    """

    code = "SL-GAP"


class Receded(Gap):
    """A target stands before where the engine left it. It is opened anew, and what is missing applied again, if the log
    reaches back as far."""

    code = "SL-TARGET-RECEDED"


class Damaged(Gap):
    """Stored bytes fail their checksum, or a message does not follow its protocol."""

    code = "SL-DAMAGED"


def policy(error: BaseException) -> Policy:
    """What happens next after ``error``. Anything that is not a :class:`SynclineError` stops: never guess."""
    return error.policy if isinstance(error, SynclineError) else Policy.STOP


def defect(what: str, error: Exception) -> SynclineError:
    """An error that nobody foresaw, as one of ours. What it says may hold row values (Arrow's and DuckDB's quote them),
    so only its class and its place are told (Guarantee 11); it is the cause of the one returned."""
    failure = SynclineError(
        f"{what} failed: {type(error).__name__} at {origin(error) or 'unknown place'}.",
        remedy="This is a bug; report it.",
    )
    failure.__cause__ = error
    return failure


def origin(error: BaseException) -> str:
    """Where the first cause of ``error`` was raised, as ``file:line in function``: never with values of variables."""
    while error.__cause__ is not None:
        error = error.__cause__
    frames = traceback.extract_tb(error.__traceback__)
    if not frames:
        return ""
    last = frames[-1]
    return f"{last.filename.rpartition('/')[2]}:{last.lineno} in {last.name}"
