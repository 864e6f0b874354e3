"""Large bodies of entries, in files beside the log's database: written once, in order, removed file by file.

SQLite writes a blob twice (to its WAL, then to the database), page by page: 18 to 40 ms of processor time for a body of
7 MB. One sequential write costs 3 to 10 ms through the page cache, and 1 ms around it (``O_DIRECT``), which is used
where the disk can. A body is durable before the row that names it is committed, so whatever no row names is a leftover,
and is removed when the log is opened.
"""

from __future__ import annotations

import errno
import mmap
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from syncline.log.folder import sync_folder, translate_os

__all__ = ["Bodies", "Extent", "read_body"]

# A file is closed at this size: the unit in which trimming gives disk space back.
_FILE_BYTES = 16 * 1024 * 1024
# Direct writes go from memory, offset and length that are multiples of this.
_BLOCK = 4096
_PIECE = 4 * 1024 * 1024


class Extent(NamedTuple):
    """Where a body lies: the number of its file, and its offset there."""

    file: int
    offset: int


def read_body(folder: Path, extent: Extent, size: int) -> bytes | None:
    """The body at ``extent``, None if it is missing or cut.

    Raises:
        Unavailable: the disk failed.
    """
    try:
        fd = os.open(_path(folder, extent.file), os.O_RDONLY)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise translate_os(error, folder) from error
    try:
        body = os.pread(fd, size, extent.offset)
    except OSError as error:
        raise translate_os(error, folder) from error
    finally:
        os.close(fd)
    return body if len(body) == size else None


class Bodies:
    """The files of bodies in one folder. One thread at a time calls a method; any thread may call :func:`read_body`."""

    def __init__(self, folder: Path, named: dict[int, int]) -> None:
        """Adopt the files that rows name (``named``: rows by file number) and remove all others."""
        self._folder = folder
        self._rows = Counter(named)
        self._fd = -1
        self._offset = 0
        self._piece = mmap.mmap(-1, _PIECE)  # its memory begins at a page
        numbers = {int(p.stem) for p in folder.glob("[0-9]*.bodies")}
        # A file is never written on after a restart: what lies behind its last named body may be torn.
        self._file = max([0, *numbers, *named])
        for number in numbers - set(named):
            _path(self._folder, number).unlink()

    def write(self, bodies: Sequence[bytes]) -> list[Extent]:
        """Store bodies one behind the other, durable on return; then ``commit`` or ``rollback`` is due.

        Raises:
            Unavailable: the disk is full or failed; nothing is kept.
        """
        if not bodies:
            return []
        try:
            if self._fd < 0 or self._offset >= _FILE_BYTES:
                self._begin_file()
            extents, offset = [], self._offset
            for body in bodies:
                self._write_at(body, offset)
                extents.append(Extent(self._file, offset))
                offset += _whole_blocks(len(body))
            os.fdatasync(self._fd)
        except OSError as error:
            self.rollback()
            raise translate_os(error, self._folder) from error
        return extents

    def commit(self, extents: Sequence[Extent], bodies: Sequence[bytes]) -> None:
        """The rows that name these bodies are durable."""
        for extent, body in zip(extents, bodies, strict=True):
            self._rows[extent.file] += 1
            self._offset = extent.offset + _whole_blocks(len(body))

    def rollback(self) -> None:
        """The rows that would name the last bodies are not durable: give their space back."""
        if self._fd < 0:
            return
        try:
            os.ftruncate(self._fd, self._offset)
        except OSError:
            self.close()  # its end is unknown, so the next body begins a file of its own

    def release(self, files: Iterable[int]) -> None:
        """The rows that named these files (one number for each row) are gone: remove what none names any more."""
        for number in files:
            self._rows[number] -= 1
            if self._rows[number] > 0:
                continue
            del self._rows[number]
            if number == self._file:
                self.close()
            _path(self._folder, number).unlink(missing_ok=True)

    def close(self) -> None:
        """Release the open file. Idempotent."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _begin_file(self) -> None:
        self.close()
        self._file += 1
        self._offset = 0
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
        path = _path(self._folder, self._file)
        try:
            self._fd = os.open(path, flags | os.O_DIRECT, 0o600)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            self._fd = os.open(path, flags, 0o600)
        sync_folder(self._folder)

    def _write_at(self, body: bytes, offset: int) -> None:
        """Write a body and fill its last block up with zeros."""
        for start in range(0, len(body), _PIECE):
            piece = memoryview(body)[start : start + _PIECE]
            size = _whole_blocks(len(piece))
            self._piece[: len(piece)] = piece
            self._piece[len(piece) : size] = bytes(size - len(piece))
            with memoryview(self._piece) as memory:
                written = 0
                while written < size:
                    more = os.pwrite(self._fd, memory[written:size], offset + start + written) // _BLOCK * _BLOCK
                    if not more:
                        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                    written += more


def _whole_blocks(size: int) -> int:
    return -(-size // _BLOCK) * _BLOCK


def _path(folder: Path, number: int) -> Path:
    return folder / f"{number:08d}.bodies"
