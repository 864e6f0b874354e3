"""What is installed, or made or fetched once and kept: folders that any number of processes may want at the same time.

Each is made beside its place and renamed, counted before it is used, and made anew when a file has gone missing
(temporary folders are swept). A lock lets one process make it while the others wait; it ends with its holder, however
that ends, and what a killed holder left half made is cleared away by the next.
"""

from __future__ import annotations

import contextlib
import fcntl
import importlib.util
import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from syncline.embedded.account import Account, may_enter
from syncline.errors import Misconfigured

__all__ = ["locked", "made_once", "servers_folder", "temporary_folder", "wheel_folder", "whole"]

COUNT = "files"
SERVERS = "SYNCLINE_SERVERS_DIR"


def wheel_folder(package: str) -> Path | None:
    """Where a wheel's package is installed, or None. It isn't imported: its Python is none of a server's business."""
    spec = importlib.util.find_spec(package)
    return Path(spec.submodule_search_locations[0]) if spec and spec.submodule_search_locations else None


def servers_folder() -> Path:
    """Where fetched servers are kept, by version: ``SYNCLINE_SERVERS_DIR``, else below the user's cache folder."""
    caches = os.environ.get("XDG_CACHE_HOME") or Path(os.environ.get("HOME") or "/nonexistent", ".cache")
    return Path(os.environ.get(SERVERS) or Path(caches, "syncline", "servers")).absolute()


def temporary_folder(account: Account) -> Path:
    """A folder of our own below the temporary one, which the server's account can enter and only we can write.

    Raises:
        Misconfigured: Somebody else made it.
    """
    places = dict.fromkeys(Path(p).absolute() for p in (tempfile.gettempdir(), "/var/tmp", "/tmp"))
    place = next((p for p in places if p.is_dir() and may_enter(p, account)), None)
    if place is None:
        raise Misconfigured("No temporary folder can be entered by user nobody.", remedy="Set TMPDIR to one that can.")
    folder = place / f"syncline-postgres-{os.geteuid()}"
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=0o755)
        folder.chmod(0o755)
    status = folder.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid() or status.st_mode & 0o022:
        raise Misconfigured(
            f"{folder} was made by somebody else.", remedy="Remove it, or set TMPDIR to another folder."
        )
    return folder


def made_once(folder: Path, name: str, make: Callable[[Path], None]) -> Path:
    """``folder/name``, which ``make`` fills in an empty folder unless it is there and whole.

    Raises:
        Misconfigured: It can't be made there; and whatever ``make`` raises.
    """
    final = folder / name
    if whole(final):
        return final
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise Misconfigured(
            f"{folder} can't be made: {error.strerror}.", remedy=f"Name another in TMPDIR or {SERVERS}."
        ) from error
    with locked(folder / f"{name}.lock"):
        if whole(final):
            return final
        for left in folder.glob(f"{name}.making.*"):  # by one that was killed: we hold the lock
            shutil.rmtree(left, ignore_errors=True)
        _make(final, make)
    if not whole(final):
        raise Misconfigured(f"{final} can't be made.", remedy="Look at its folder's permissions and free space.")
    return final


def _make(final: Path, make: Callable[[Path], None]) -> None:
    work = Path(tempfile.mkdtemp(prefix=f"{final.name}.making.", dir=final.parent))
    broken = Path(f"{work}.broken")
    try:
        work.chmod(0o755)
        make(work)
        (work / COUNT).write_text(str(_files(work)))
        if final.is_dir():
            final.rename(broken)
        with contextlib.suppress(OSError):  # said by the caller, who looks whether it is there
            work.rename(final)
    finally:
        shutil.rmtree(work, ignore_errors=True)
        shutil.rmtree(broken, ignore_errors=True)


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock file ``path``, waiting for whoever has it; the file stays, as removing one is a race."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise Misconfigured(
            f"{path} can't be opened: {error.strerror}.", remedy="Look at its folder's permissions."
        ) from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def whole(folder: Path) -> bool:
    """Whether a kept folder is there with as many files as it was made with."""
    try:
        return (folder / COUNT).read_text() == str(_files(folder) - 1)
    except (FileNotFoundError, NotADirectoryError):  # never made, or just being made anew
        return False


def _files(folder: Path) -> int:
    return sum(len(names) for _, _, names in os.walk(folder))
