"""The folder of an embedded log: who holds it, how much space its disk has, and what its errors mean."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
from pathlib import Path

from syncline.errors import Misconfigured, SynclineError, Unavailable
from syncline.writable import obstacle

__all__ = ["file_bytes", "free_bytes", "inode", "is_held", "lock_folder", "sync_folder", "translate_os"]


def translate_os(error: OSError, path: Path) -> SynclineError:
    """An operating system's error as one of ours."""
    if error.errno in {errno.ENOSPC, errno.EDQUOT}:
        return Unavailable(
            f"The disk of the log at {path} is full.",
            remedy="Free space there; the log goes on by itself.",
            code="SL-DISK-FULL",
        )
    reason = error.strerror or type(error).__name__
    return Unavailable(f"The log at {path} cannot be used: {reason}.", remedy="Check the disk and its permissions.")


def sync_folder(path: Path) -> None:
    """Make names created in a folder survive a power loss."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def lock_folder(folder: Path) -> int:
    """Make the folder if it is missing; an open file that holds it for this process until it is closed.

    Raises:
        Misconfigured: another process holds it, or it cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        fd = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise Misconfigured(
            f"The log at {folder} cannot be made: {obstacle(folder) or error.strerror}.",
            remedy="Its folder (log.path) must be on a local disk and writable by Syncline's user.",
        ) from error
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        owner = os.pread(fd, 32, 0).decode("ascii", "replace").strip() or "unknown"
        os.close(fd)
        raise Misconfigured(
            f"The log at {folder} is in use by process {owner}.",
            remedy="Stop that process, or give this one a log.path of its own.",
            code="SL-LOG-LOCKED",
        ) from error
    os.ftruncate(fd, 0)
    os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
    return fd


def is_held(folder: Path) -> bool | None:
    """Whether a process of this machine holds the folder just now; None where that can't be seen."""
    try:
        fd = os.open(folder / "lock", os.O_RDONLY)
    except FileNotFoundError:
        return False
    except OSError:
        return None
    try:
        pid = int(os.pread(fd, 32, 0) or b"0")
        with contextlib.suppress(PermissionError):  # a process of somebody else's, which may not be the same any more
            os.kill(pid, 0)  # before the lock is tried: an engine that begins must not be refused for our look
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return False
    except (ProcessLookupError, ValueError):
        return False
    except BlockingIOError:
        return True
    finally:
        os.close(fd)


def free_bytes(folder: Path) -> int:
    """Free bytes of the disk that the folder is on.

    Raises:
        Unavailable: the disk failed.
    """
    try:
        disk = os.statvfs(folder)
    except OSError as error:
        raise translate_os(error, folder) from error
    return disk.f_bavail * disk.f_frsize


def file_bytes(folder: Path) -> int:
    """Bytes of the files in the folder, 0 if it is not there."""
    total = 0
    try:
        for path in list(folder.iterdir()):
            total += _size(path)
    except FileNotFoundError:
        return 0
    return total


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0  # trimmed while we look


def inode(path: Path) -> int:
    """What tells a file from another one of its name, 0 if there is none."""
    try:
        return path.stat().st_ino
    except FileNotFoundError:
        return 0
