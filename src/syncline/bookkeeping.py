"""What Syncline keeps at a target beside the rows: cursors and the columns of tables, as JSON.

It lies among data that people may reach, so it is read as what anybody may have written.
"""

from __future__ import annotations

from typing import TypeVar

import msgspec

from syncline.errors import Misconfigured

__all__ = ["bookkept"]

T = TypeVar("T")


def bookkept(body: str | bytes, kind: type[T]) -> T:
    """What was written there as a ``kind``.

    Raises:
        Misconfigured: with code ``SL-TARGET-BOOKS``, it is something else by now.
    """
    try:
        return msgspec.json.decode(body, type=kind)
    except (msgspec.DecodeError, UnicodeError, TypeError) as error:
        raise Misconfigured(
            f"What Syncline keeps beside the rows of this target was changed by somebody else, and can't be read as a"
            f" {kind.__name__.strip('_').lower()} any more: {error}.",
            remedy="Put it back, or remove all of Syncline's from the target: then the tables are read again.",
            code="SL-TARGET-BOOKS",
        ) from error
