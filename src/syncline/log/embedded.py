"""The embedded log: SQLite for entries, numbers and cursors, and files for large bodies, in one folder a source.

The folder ``<path>/<name>.log`` holds ``log.sqlite`` (WAL mode, ``synchronous=FULL``; see ``rows``), ``*.bodies``
(see ``bodies``) and ``lock``. Recent entries are also kept in memory, so that targets that are up to date read nothing
from disk.
"""

from __future__ import annotations

import os
import re
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import takewhile
from pathlib import Path

import msgspec
from pydantic import BaseModel, ConfigDict, Field

from syncline.change import Entry, Position
from syncline.errors import Damaged, Gap, Misconfigured, SynclineError, Unavailable
from syncline.log import Incarnation, LogStatus
from syncline.log.bodies import Bodies
from syncline.log.folder import file_bytes, free_bytes, inode, lock_folder, sync_folder
from syncline.log.frontier import DISCARDED, Frontier, Series, closed, full, next_incarnation
from syncline.log.reading import frontier_of, read_entry
from syncline.log.rows import Row, Rows, damaged
from syncline.log.tail import Tail
from syncline.wire import encode_entry

__all__ = ["DATABASE", "EmbeddedLog", "EmbeddedLogConfig"]

# Smaller bodies are stored in their row: one write and one fsync.
_INLINE_BYTES = 64 * 1024
# One step of trimming or discarding: what an append may have to wait for.
_STEP_ROWS = 256
# Cursors that go on are written with the next append, or this long after they were last written.
_NOTE_CURSORS_S = 1.0
# Above this much free space in the database, trimming gives some of it back to the disk.
_SHRINK_BYTES = 64 * 1024 * 1024
_SHRINK_PAGES = 64
_SHRINK_STEPS = 32
# How long a transaction that fills the disk waits for others to free space there, if it is smaller than the reserve.
_PATIENCE_S = 600.0
DATABASE = "log.sqlite"


class EmbeddedLogConfig(BaseModel):
    """The durable log between a source and its targets, in files on this machine."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: Path = Field(description="Folder of the log, on a local disk.")
    max_bytes: int = Field(
        8 * 1024**3,
        ge=65536,
        description="Budget for changes that a target has not applied yet; beyond it the source is held back.",
    )
    retention_s: float = Field(
        0.0, ge=0, description="How long changes are kept that every target has applied, as far as the budget allows."
    )
    disk_reserve_bytes: int = Field(
        256 * 1024**2, ge=0, description="Free disk space that the log leaves; below it the source is held back."
    )
    tail_bytes: int = Field(32 * 1024**2, ge=0, description="Memory for the latest changes; older ones are on disk.")

    def folder(self, name: str) -> Path:
        """The folder of the log of source ``name``."""
        if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}", name):
            raise Misconfigured(
                f"A log cannot be named {name!r}.", remedy="Name the source with letters, digits, _, - and dots."
            )
        return self.path / f"{name}.log"


class EmbeddedLog:
    """A :class:`~syncline.log.Log` in one folder; one process at a time.

    A transaction in parts that is begun anew, or followed by something else of the stream, was given up by its capture:
    its parts are discarded (Guarantee 2). Discarded parts leave empty entries in their places, so that the numbers have
    no holes. Memory holds ``tail_bytes`` of entries, the disk ``max_bytes`` (Guarantee 10).

    Raises:
        Misconfigured: the folder is not writable, another process has the log open, or a newer version wrote it.
        Damaged: the log's own record or its last entry fails its checksum, or SQLite finds its file malformed.
        Unavailable: the disk is full or failed.
    """

    def __init__(self, config: EmbeddedLogConfig, name: str) -> None:
        self._config = config
        self._folder = config.folder(name)
        self._where = f"The log at {self._folder}"
        self._writing = threading.Lock()  # taken before _changed where both are needed
        self._changed = threading.Condition()
        self._closed = False
        self._lock = lock_folder(self._folder)
        try:
            self._rows = Rows(self._folder / DATABASE)
            try:
                self._load()
            except BaseException:
                self._rows.close()
                raise
        except BaseException:
            os.close(self._lock)
            raise

    def _load(self) -> None:
        sync_folder(self._folder)
        self._inode = inode(self._folder / DATABASE)
        self._frontier = frontier_of(self._rows, self._folder)
        self._incarnation = self._rows.incarnation()
        self._cursors = self._rows.cursors()
        self._noted, self._noted_at = True, time.monotonic()
        self._stuck: tuple[Series, float] | None = None
        self._bodies = Bodies(self._folder, self._rows.files())
        self._tail = Tail(self._config.tail_bytes)
        self._discard(self._rows.unfinished())

    @property
    def uuid(self) -> str:
        return self._frontier.log

    # ------------------------------------------------------------------------------------------- appending

    def append(self, entries: Sequence[Entry]) -> Position:
        if not entries:
            return Position(self.uuid, self._frontier.last)
        encoded = [encode_entry(e) for e in entries]
        sizes = [len(head) + len(body) for head, body in encoded]
        with self._writer():
            if self._frontier.abandoned_by(entries):
                self._discard(self._rows.unfinished())
            self._make_room(sum(sizes), parts=all(e.part for e in entries))
            rows, frontier = self._plan(entries, encoded)
            self._store(rows)
            with self._changed:
                self._frontier = frontier
                for row, entry in zip(rows, entries, strict=True):
                    self._tail.add(row.n, entry)
                self._changed.notify_all()
            return Position(frontier.log, frontier.last)

    def _plan(self, entries: Sequence[Entry], encoded: Sequence[tuple[bytes, bytes]]) -> tuple[list[Row], Frontier]:
        f, rows, created = self._frontier, [], _now_us()
        for entry, (head, body) in zip(entries, encoded, strict=True):
            first = f.series.first if f.series else f.last + 1
            f = f.step(entry, len(head) + len(body))
            row = Row(
                n=f.last,
                created=created,
                place=f.place,
                incarnation=f.incarnation,
                max_version=f.max_version,
                total=f.total,
                series=first if entry.part else None,
                unfinished=not entry.boundary,
                size=len(head) + len(body),
                head=head,
                body=body,
            )
            row.checksum = row.digest(body)
            rows.append(row)
        return rows, f

    def _store(self, rows: Sequence[Row]) -> None:
        """Bodies first, then the rows that name them: durable on return, or an error and nothing kept."""
        large = [r for r in rows if len(r.body) >= _INLINE_BYTES]
        bodies = [r.body for r in large]
        extents = self._bodies.write(bodies)
        for row, extent in zip(large, extents, strict=True):
            row.extent = extent
        try:
            with self._changed:
                cursors = None if self._noted else dict(self._cursors)
            self._rows.insert(rows, cursors)
        except BaseException:
            self._bodies.rollback()
            raise
        self._bodies.commit(extents, bodies)
        if cursors is not None:
            self._were_noted(cursors)

    def _make_room(self, new: int, *, parts: bool) -> None:
        """Return when ``new`` bytes may be written; remove what every cursor has passed if that helps.

        Raises:
            Unavailable: a target that catches up makes room.
            Gap: one transaction fills the disk alone, and no target ever makes room for the rest of it.
        """
        while (shortage := self._shortage(new)) is not None:
            if not self._trim_step(None):
                break
        if shortage is None:
            return
        state = self._frontier
        alone = state.head == state.end and (parts or state.size == 0)
        if alone and shortage.code != "SL-DISK-FULL":
            return
        if alone and state.series and self._fills_the_disk(state.series):
            self._discard(self._rows.unfinished())
            raise self._too_large(state.series.size + new)
        raise shortage

    def _fills_the_disk(self, series: Series) -> bool:
        """Whether the disk is full of one transaction, rather than of something that goes away again."""
        if self._stuck is None or self._stuck[0] != series:
            self._stuck = (series, time.monotonic())
        waited_s = time.monotonic() - self._stuck[1]
        return series.size > self._config.disk_reserve_bytes or waited_s > _PATIENCE_S

    def _shortage(self, new: int) -> Unavailable | None:
        free = free_bytes(self._folder)
        if free - new < self._config.disk_reserve_bytes:
            free += self._rows.free_bytes()
            if free - new < self._config.disk_reserve_bytes:
                return Unavailable(
                    f"{self._where} takes nothing more: its disk has {free:,} bytes left, of which "
                    f"{self._config.disk_reserve_bytes:,} are kept free (log.disk_reserve_bytes).",
                    remedy="Free space there, or let the slowest target catch up; the log goes on by itself.",
                    code="SL-DISK-FULL",
                )
        if self._frontier.size + new > self._config.max_bytes:
            return full(self._frontier.size, new, self._config.max_bytes, self._where)
        return None

    def _too_large(self, needed: int) -> Gap:
        return Gap(
            f"A transaction is larger than the disk of the log at {self._folder}: {needed:,} bytes of it, compressed, "
            "and more to come. It was discarded.",
            remedy=f"Give that disk at least {2 * needed:,} free bytes (or move log.path), then resync.",
            code="SL-LOG-TRANSACTION",
        )

    def _discard(self, numbers: Sequence[int]) -> None:
        """Replace the parts of an unfinished transaction by empty entries, the last first, in bounded steps."""
        while numbers:
            step, numbers = numbers[-_STEP_ROWS:], numbers[:-_STEP_ROWS]
            self._discard_step(step)
        with self._changed:
            self._frontier = msgspec.structs.replace(self._frontier, series=None)
            self._changed.notify_all()

    def _discard_step(self, numbers: Sequence[int]) -> None:
        head, body = encode_entry(DISCARDED)
        size = len(head) + len(body)
        frontier, rows, files = self._frontier, [], []
        for n in numbers:
            old = self._rows.fetch(n)
            if old is None:
                raise damaged(self._folder, f"entry {n} is missing")
            row = msgspec.structs.replace(
                old, series=None, unfinished=False, size=size, extent=None, head=head, body=body
            )
            row.checksum = row.digest(body)
            rows.append(row)
            files += [old.extent.file] if old.extent else []
            frontier = msgspec.structs.replace(frontier, removed=frontier.removed + old.size - size)
        self._rows.discard(rows, frontier)
        self._bodies.release(files)
        with self._changed:
            self._frontier = frontier
            for n in numbers:
                self._tail.replace(n, DISCARDED)

    # ------------------------------------------------------------------------------------------- reading

    def read(self, after: Position, max_bytes: int, wait_s: float = 0.0) -> list[tuple[Position, Entry]]:
        deadline = time.monotonic() + wait_s
        with self._changed:
            if self._closed:
                raise closed(self._where)
            self._frontier.check(after)
            while self._frontier.end == after.n:
                rest = deadline - time.monotonic()
                if rest <= 0 or self._closed:
                    return []
                self._changed.wait(rest)
                self._frontier.check(after)
            end = self._frontier.end
            found = self._tail.take(after.n + 1, end, max_bytes)
        if not found:
            found = self._read_disk(after, end, max_bytes)
        return [(Position(after.log, n), entry) for n, entry in found]

    def _read_disk(self, after: Position, end: int, max_bytes: int) -> list[tuple[int, Entry]]:
        found: list[tuple[int, Entry]] = []
        size = 0
        for n in range(after.n + 1, end + 1):
            try:
                entry = self._decode(n, after)
            except SynclineError:
                if found:
                    break  # what lies before it is good; the next read meets it first
                raise
            size += entry.nbytes
            if found and size > max_bytes:
                break
            found.append((n, entry))
            if size >= max_bytes or self._tail.holds(n + 1):
                break
        return found

    def _decode(self, n: int, after: Position) -> Entry:
        try:
            return read_entry(self._rows, self._folder, n)
        except Damaged:
            with self._changed:
                self._frontier.check(after)  # a Gap if it was trimmed in the meantime
            raise

    # ------------------------------------------------------------------------------------------- cursors, trimming

    def advance(self, target: str, position: Position) -> None:
        with self._changed:
            self._frontier.check(position)
            known = self._cursors.get(target)
            if known == position.n:
                return
            self._cursors[target] = position.n
            self._noted = False
        # A cursor that is new or goes back holds back trimming from now on, also after a crash; others can wait.
        if known is None or position.n < known or time.monotonic() - self._noted_at > _NOTE_CURSORS_S:
            self._note()

    def forget(self, target: str) -> None:
        with self._changed:
            if self._cursors.pop(target, None) is None:
                return
            self._noted = False
        self._note()

    def _note(self) -> None:
        """Write the cursors; on a full disk later, with whatever is written next: a target never waits for that."""
        with self._writer():
            with self._changed:
                cursors = dict(self._cursors)
            self._noted_at = time.monotonic()
            try:
                self._rows.note(cursors)
            except Unavailable:
                return
            self._were_noted(cursors)

    def _were_noted(self, cursors: dict[str, int]) -> None:
        with self._changed:
            self._noted = self._cursors == cursors

    def trim(self, keep_s: float = 0.0) -> int:
        cutoff = _now_us() - int(max(keep_s, self._config.retention_s) * 1e6)
        removed = 0
        while step := self._in_turn(lambda: self._trim_step(cutoff)):
            removed += step
        for _ in range(_SHRINK_STEPS):
            if not self._in_turn(self._shrink_step):
                break
        return removed

    def _in_turn(self, step: Callable[[], int]) -> int:
        with self._writer():
            done = step()
        time.sleep(0)  # an append that waits for the lock goes first
        return done

    def _shrink_step(self) -> int:
        """Give some of the database's free space back to the disk if there is much of it; how many pages."""
        if self._rows.free_bytes() <= _SHRINK_BYTES:
            return 0
        self._rows.shrink(_SHRINK_PAGES)
        return _SHRINK_PAGES

    def _trim_step(self, cutoff: int | None) -> int:
        """Remove some of the first entries that every cursor has passed, appended by ``cutoff``; how many."""
        with self._changed:
            frontier, cursors = self._frontier, dict(self._cursors)
        passed = min(frontier.end, *cursors.values()) if cursors else 0
        if passed <= frontier.head:
            return 0
        oldest = self._rows.oldest(passed, _STEP_ROWS)
        due = list(takewhile(lambda r: cutoff is None or r.created <= cutoff, oldest))
        if not due:
            return 0
        size = sum(r.size for r in due)
        frontier = msgspec.structs.replace(frontier, head=due[-1].n, removed=frontier.removed + size)
        self._rows.remove(frontier, cursors)
        self._bodies.release(r.file for r in due if r.file is not None)
        self._were_noted(cursors)
        with self._changed:
            self._frontier = frontier
            self._tail.drop(frontier.head)
        return len(due)

    # ------------------------------------------------------------------------------------------- the rest

    def incarnation(self) -> Incarnation | None:
        return self._incarnation

    def start_incarnation(self, incarnation: Incarnation) -> None:
        with self._writer():
            if next_incarnation(self._incarnation, incarnation, self._frontier.max_version):
                self._rows.add_incarnation(incarnation)
                self._incarnation = incarnation

    def status(self) -> LogStatus:
        size = file_bytes(self._folder)
        with self._changed:
            return self._frontier.status(self._cursors, self._incarnation, size)

    @staticmethod
    def peek(config: EmbeddedLogConfig, name: str) -> LogStatus | None:
        """The status of a log that another process may have open, None if there is none; nothing is written.

        Cursors are those last written, up to seconds old.
        """
        folder = config.folder(name)
        if not (folder / DATABASE).exists():
            return None
        rows = Rows(folder / DATABASE, readonly=True)
        try:
            frontier = frontier_of(rows, folder, verify=False)
            parts = rows.unfinished()
            series = Series(parts[0], len(parts), 0, 0) if parts else None
            frontier = msgspec.structs.replace(frontier, series=series)
            return frontier.status(rows.cursors(), rows.incarnation(), file_bytes(folder))
        finally:
            rows.close()

    @staticmethod
    def peek_incarnation(config: EmbeddedLogConfig, name: str) -> Incarnation | None:
        """The source incarnation of a log that another process may have open; nothing is written."""
        database = config.folder(name) / DATABASE
        if not database.exists():
            return None
        rows = Rows(database, readonly=True)
        try:
            return rows.incarnation()
        finally:
            rows.close()

    def close(self) -> None:
        with self._changed:
            if self._closed:
                return
            self._closed = True
            self._changed.notify_all()
        with self._writing:
            try:
                if not self._noted:
                    self._rows.note(self._cursors)
            except Unavailable:
                pass  # older cursors on disk only delay trimming
            finally:
                self._bodies.close()
                self._rows.close()
                os.close(self._lock)

    @contextmanager
    def _writer(self) -> Iterator[None]:
        with self._writing:
            if self._closed:
                raise closed(self._where)
            # SQLite would go on in a file without a name, and what it acknowledges would be lost (Guarantee 1).
            if inode(self._folder / DATABASE) != self._inode:
                raise damaged(self._folder, "its database was deleted or replaced while it was open")
            yield


def _now_us() -> int:
    return time.time_ns() // 1000
