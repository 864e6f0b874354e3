"""The control schema in PostgreSQL: what operators see and ask for, and what must outlive the engine's own files.

:class:`ControlSchema` is the whole interface; the tables are in :mod:`syncline.catalog.models`, their history in
``migrations``. It is never captured itself.
"""

from __future__ import annotations

from syncline.catalog.repository import ControlSchema, DeadLetter, Pause, Request, StatusRow

__all__ = ["ControlSchema", "DeadLetter", "Pause", "Request", "StatusRow"]
