"""The folder of a DuckDB copy's Parquet files: versions, and the link to the newest.

``versions/<n>`` holds the whole of an export, with the files of unchanged parts as hard links; ``current`` is a
symbolic link to the newest, which changes in one step. Whoever reads through it while it changes finds one export, the
other, or no file of that name; never a mixture.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import msgspec

from syncline.errors import Misconfigured, Unavailable
from syncline.stores.duckdb.parquet_parts import Part

__all__ = ["MANIFEST", "Manifest", "Version", "current", "expire", "folder_name", "new_version", "sync", "told"]

MANIFEST = "manifest.json"
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT)
_NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EXDEV, errno.EMLINK)
# What a file system, a shell, or the pattern of a reader would take for something else than a letter of the name.
_UNSAFE = re.compile(r"[\x00-\x1f\x7f%/\\*?\[\]{}:\"<>|]|^\.")
_LONGEST = 240  # bytes; file systems take 255


class Manifest(msgspec.Struct, frozen=True):
    """What an export holds: its parts by table, and the LSN that the copy had of each source.

    ``older``: tables that were no whole ones then, and stayed as an earlier export had them, with the time of that.
    Times are seconds since 1970.
    """

    made: float
    sources: dict[str, int]
    tables: dict[str, list[Part]]
    older: dict[str, float] = {}


def folder_name(table: str) -> str:
    """The folder of a table (``namespace.name``) in an export: its name, with what is not safe as ``%XX``."""
    name = _UNSAFE.sub(lambda match: "".join(f"%{byte:02X}" for byte in match[0].encode()), table)
    if name.lower() == MANIFEST:
        name = name.replace(".", "%2E")
    if len(name.encode()) > _LONGEST:
        digest = hashlib.sha256(table.encode()).hexdigest()[:16]
        name = name.encode()[: _LONGEST - 18].decode(errors="ignore") + "%~" + digest
    return name


@contextmanager
def told(folder: Path) -> Iterator[None]:
    """Raise what the file system says as ours."""
    try:
        yield
    except OSError as error:
        if error.errno in _NO_SPACE:
            raise Unavailable(
                f"The disk of {folder} is full.", remedy="Free some space on it.", code="SL-DISK-FULL"
            ) from error
        raise Misconfigured(
            f"Parquet files can't be written to {folder}: {error.strerror or type(error).__name__}.",
            remedy="Correct parquet.folder of the target, or the rights on it.",
            code="SL-PARQUET",
        ) from error


def current(folder: Path) -> Manifest | None:
    """What the newest export holds; None without a whole one, so that everything is written anew."""
    try:
        manifest = msgspec.json.decode((folder / "current" / MANIFEST).read_bytes(), type=Manifest)
    except (FileNotFoundError, msgspec.DecodeError):
        return None
    files = [folder / "current" / part.file for parts in manifest.tables.values() for part in parts]
    return manifest if all(file.is_file() for file in files) else None


@dataclass(frozen=True, slots=True)
class Version:
    """An export that is being written: in ``place``, a folder that nobody reads yet, until it is ``published``."""

    folder: Path
    number: int

    @property
    def published(self) -> Path:
        return self.folder / "versions" / str(self.number)

    @property
    def place(self) -> Path:
        return self.published.with_suffix(".part")

    @property
    def link(self) -> Path:
        """The link that becomes ``current``."""
        return self.folder / "current.new"

    def take_over(self, file: str) -> None:
        """Have a file of the current export in this one too."""
        path = self.place / file
        path.parent.mkdir(exist_ok=True)
        try:
            os.link(self.folder / "current" / file, path)
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            shutil.copyfile(self.folder / "current" / file, path)
            sync(path)

    def publish(self, manifest: Manifest) -> None:
        """Make it the current one in one step."""
        body = self.place / MANIFEST
        body.write_bytes(msgspec.json.format(msgspec.json.encode(manifest)))
        sync(body)
        self.place.rename(self.published)
        self.link.replace(self.folder / "current")


@contextmanager
def new_version(folder: Path) -> Iterator[Version]:
    """A version for the block; nothing is left of one that was not published in it.

    Raises:
        Misconfigured: there can't be a link ``current`` to it, which is tried before anything is written.
    """
    versions = folder / "versions"
    versions.mkdir(parents=True, exist_ok=True)
    for left in versions.glob("*.part"):  # by a process that was killed
        shutil.rmtree(left)
    number = max((int(p.name) for p in versions.iterdir() if p.name.isdigit()), default=0) + 1
    version = Version(folder, number)
    try:
        _make_link(version)
        version.place.mkdir()
        yield version
    finally:
        with suppress(OSError):
            version.link.unlink(missing_ok=True)
        shutil.rmtree(version.place, ignore_errors=True)
        if _current_number(folder) != number:
            shutil.rmtree(version.published, ignore_errors=True)


def _make_link(version: Version) -> None:
    link = version.folder / "current"
    if link.exists() and not link.is_symlink():
        raise Misconfigured(
            f"{link} is no link of Syncline's, so no export can take its place.",
            remedy="Move it away, or give the target another parquet.folder.",
            code="SL-PARQUET",
        )
    version.link.unlink(missing_ok=True)
    try:
        version.link.symlink_to(Path("versions") / str(version.number), target_is_directory=True)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        raise Misconfigured(
            f"The file system of {version.folder} has no symbolic links, which an export needs to change in one step.",
            remedy="Set the target's parquet.folder to a local disk that has them.",
            code="SL-PARQUET",
        ) from error


def _current_number(folder: Path) -> int:
    """The number of the current version, 0 without one."""
    try:
        return int(os.readlink(folder / "current").rpartition("/")[2])
    except (OSError, ValueError):
        return 0


def expire(folder: Path, now: float, keep_s: float) -> None:
    """Let the versions go that were replaced ``keep_s`` ago, or never became the current one."""
    newest = _current_number(folder)
    if not newest:
        return
    for version in (folder / "versions").iterdir():
        if version.name.isdigit() and int(version.name) != newest:
            behind = version.with_name(str(int(version.name) + 1)) / MANIFEST
            replaced = behind.stat().st_mtime if behind.exists() else 0.0
            if int(version.name) > newest or now - replaced >= keep_s:
                shutil.rmtree(version)


def sync(path: Path) -> None:
    """A power cut must not leave a link to files without content."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
