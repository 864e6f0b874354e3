"""Wiring: one source's capture, log and targets as threads; starting, supervising, draining, stopping.

``service`` runs every source of a configuration, ``source`` one of them: its session and stream, with ``attach`` for
the slot, ``catalogue`` for its tables, ``loads`` for reading them, and ``targets`` for all its targets. ``target`` is a
worker with its store, ``board`` what holds tables back, ``reports`` the talk with the control schema, ``housekeeping``
what recurs.
"""

from __future__ import annotations

from syncline.pipeline.service import SyncService

__all__ = ["SyncService"]
