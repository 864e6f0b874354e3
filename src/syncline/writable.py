"""Whether a folder can be made and written, and if not, why."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["nearest_present", "obstacle"]


def nearest_present(folder: Path) -> Path:
    """The folder, or the nearest one above it that can be seen (where it can't, ``Path.exists`` would raise)."""
    return next((p for p in (folder, *folder.parents) if os.path.exists(p)), Path("/"))


def obstacle(folder: Path) -> str | None:
    """Why files can't be made in a folder, which is made where it is missing; None if they can."""
    present = nearest_present(folder)
    if not os.path.isdir(present):
        return f"{present} is a file, not a folder"
    if os.access(present, os.W_OK | os.X_OK, effective_ids=True):
        return None
    missing = "" if present == folder else f", so {folder} can't be created"
    readonly = os.statvfs(present).f_flag & os.ST_RDONLY
    why = "its file system is mounted read-only" if readonly else f"user {os.geteuid()} has no right to"
    return f"The folder {present} can't be written{missing}: {why}"
