"""Temporary folders that a kill does not leave behind for good: one is locked while somebody works in it, and whoever
makes the next one removes those that nobody holds."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

__all__ = ["scratch_folder", "sweep"]


@contextmanager
def scratch_folder(prefix: str, parent: Path | None = None) -> Iterator[Path]:
    """A new folder in ``parent`` (None: the system's temporary one), gone behind the block. Folders of that prefix
    that killed processes of this user left are removed first.

    Raises:
        OSError: there is no room for it, or it may not be made.
    """
    parent = parent or Path(tempfile.gettempdir())
    sweep(parent, prefix)
    folder, held = _made(parent, prefix)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(held)


def _made(parent: Path, prefix: str) -> tuple[Path, int]:
    """A new folder, and what holds its lock, by which a folder of somebody at work is known."""
    while True:
        folder = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
        try:
            held = os.open(folder, os.O_RDONLY)
        except FileNotFoundError:
            continue  # swept before it was locked
        fcntl.flock(held, fcntl.LOCK_EX)
        if folder.exists():
            return folder, held
        os.close(held)


def sweep(parent: Path, prefix: str) -> None:
    """Remove the folders of that prefix that killed processes of this user left."""
    for left in parent.glob(f"{prefix}*"):
        with suppress(OSError):  # somebody removes it, is at work in it, or owns it alone; or it is no folder
            held = os.open(left, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                if os.fstat(held).st_uid == os.geteuid():
                    fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(left, ignore_errors=True)
            finally:
                os.close(held)
