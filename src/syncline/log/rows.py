"""The database of an embedded log: its tables, its format, its checksums, and the translation of SQLite's errors.

One row for each entry. Small bodies are in the row, large ones in a file beside it (``bodies``). Each row carries the
sums up to it (``place``, ``max_version``, ``total``), so that the last row alone tells where the log stands; the row
of ``log`` carries them while there is no entry.
"""

from __future__ import annotations

import sqlite3
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple
from uuid import uuid4

import msgspec
import xxhash

from syncline.errors import Damaged, Gap, Misconfigured, SynclineError, Unavailable
from syncline.log import Incarnation
from syncline.log.bodies import Extent
from syncline.log.frontier import Frontier

__all__ = ["FORMAT", "Age", "Row", "Rows", "damaged", "transaction", "translated"]

FORMAT = 1

# From each older format to the next one, run in one transaction when a log is opened (correctness rule 15).
_UPGRADES: dict[int, Callable[[sqlite3.Connection], None]] = {}

_SCHEMA = """
create table log (
    uuid text not null, head integer not null, place integer not null, incarnation integer not null,
    max_version integer not null, total integer not null, removed integer not null, checksum integer not null
) strict;
create table entry (
    n integer primary key, created integer not null,
    place integer not null, incarnation integer not null, max_version integer not null, total integer not null,
    series integer, unfinished integer, size integer not null, checksum integer not null,
    file integer, offset integer, head blob not null, body blob
) strict;
create index entry_series on entry (series) where series is not null;
create index entry_file on entry (file) where file is not null;
create table cursor (target text primary key, n integer not null) strict;
create table incarnation (
    number integer primary key, system_identifier text not null, timeline integer not null, database text not null,
    base integer not null, checksum integer not null
) strict;
"""

# The best of pages of 4 to 64 KB and checkpoints every 4 to 32 MB of WAL. Large pages write much for a lone row, small
# ones make long chains for a body of 50 KB. The writer's own checkpoints of 8 MB take some milliseconds, because most
# of the WAL is the same few pages again and again.
_PAGE_BYTES = 16384
_CHECKPOINT_PAGES = 512
_BUSY_TIMEOUT_S = 10.0

_REMEDY = (
    "Stop Syncline, move the log's folder away and start again: the targets then see a new log, which is a gap, and "
    "are read again from the source as on_gap says. A target whose cursor is behind the damage needs that in any case."
)


class Row(msgspec.Struct):
    """One entry as it is stored, with the log's sums up to it.

    ``series`` is the first entry of its transaction if it is a part, ``unfinished`` whether it is not the last part;
    ``extent`` tells where the body lies (``body`` is empty then) if it is not in the row.
    """

    n: int
    created: int
    place: int
    incarnation: int
    max_version: int
    total: int
    series: int | None
    unfinished: bool
    size: int
    head: bytes
    body: bytes
    extent: Extent | None = None
    checksum: int = 0

    def digest(self, body: bytes) -> int:
        """xxh3_64 over everything but where the body lies, as SQLite's signed integer."""
        sums = (self.n, self.created, self.place, self.incarnation, self.max_version, self.total, self.series or 0)
        digest = xxhash.xxh3_64(struct.pack("<7q?", *sums, self.unfinished))
        digest.update(self.head)
        digest.update(body)
        return _signed(digest.intdigest())


class Age(NamedTuple):
    """What trimming looks at: number, time of append (microseconds), size, and the file of its body."""

    n: int
    created: int
    size: int
    file: int | None


def damaged(path: Path, what: str) -> Damaged:
    """The error of stored bytes that are not what was written."""
    return Damaged(f"The log at {path} is damaged: {what}.", remedy=_REMEDY)


def translate(error: sqlite3.Error, path: Path) -> SynclineError:
    """SQLite's error as one of ours."""
    code = getattr(error, "sqlite_errorcode", 0)
    name = getattr(error, "sqlite_errorname", type(error).__name__)
    if code == sqlite3.SQLITE_FULL:
        return Unavailable(
            f"The disk of the log at {path} is full.",
            remedy="Free space there; the log goes on by itself.",
            code="SL-DISK-FULL",
        )
    if code & 0xFF in {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CONSTRAINT} or code in {
        sqlite3.SQLITE_IOERR_SHORT_READ,
        sqlite3.SQLITE_IOERR_CORRUPTFS,
    }:
        return damaged(path, f"SQLite says {str(error) or name}")
    if code & 0xFF in {sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM}:
        return Misconfigured(
            f"The log at {path} cannot be opened: {error}.",
            remedy="Its folder (log.path) must be writable by Syncline's user.",
        )
    if code & 0xFF == sqlite3.SQLITE_TOOBIG or isinstance(error, sqlite3.DataError):
        return Gap(
            f"An entry is larger than the log at {path} can hold ({error}).",
            remedy="Exclude the column or the table that holds values of this size, then resync it.",
        )
    return Unavailable(f"The log at {path} cannot be used for now: {error} ({name}).", remedy="Check the disk.")


@contextmanager
def translated(path: Path) -> Iterator[None]:
    """Raise SQLite's errors of the block as ours."""
    try:
        yield
    except sqlite3.Error as error:
        raise translate(error, path) from error


@contextmanager
def transaction(connection: sqlite3.Connection) -> Iterator[None]:
    """One transaction, durable behind the block; rolled back by any error."""
    connection.execute("begin immediate")
    try:
        yield
        connection.execute("commit")
    except BaseException:
        if connection.in_transaction:
            connection.execute("rollback")
        raise


class Rows:
    """The tables of one log. One thread at a time calls a method, ``fetch`` apart, which has connections of its own.

    Every method raises SQLite's errors as ours: Unavailable
    with nothing written, Damaged, Misconfigured.
    """

    def __init__(self, path: Path, *, readonly: bool = False) -> None:
        self._path = path
        self._idle: list[sqlite3.Connection] = []
        self._closed = False
        self._readonly = readonly
        with translated(path):
            self._writer = self._connect(readonly=readonly)
            try:
                if readonly:
                    self._writer.execute("begin")  # all of it from one moment, and nothing is ever written
                else:
                    self._prepare()
                self._check_format()
            except BaseException:
                self._writer.close()
                raise

    # ------------------------------------------------------------------------------------------- opening

    def _connect(self, *, readonly: bool) -> sqlite3.Connection:
        uri = f"{self._path.absolute().as_uri()}?mode={'ro' if readonly else 'rwc'}"
        if self._readonly and not Path(f"{self._path}-wal").exists():
            uri += "&immutable=1"  # nobody has it open: don't leave files for sharing it behind
        connection = sqlite3.connect(
            uri, uri=True, timeout=_BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False
        )
        connection.execute("pragma cell_size_check = on")
        connection.execute("pragma trusted_schema = off")
        return connection

    def _prepare(self) -> None:
        run = self._writer.execute
        run(f"pragma page_size = {_PAGE_BYTES}")
        run("pragma auto_vacuum = incremental")
        run("pragma journal_mode = wal")
        run("pragma synchronous = full")  # Guarantee 1: what append acknowledged survives a power loss
        run(f"pragma wal_autocheckpoint = {_CHECKPOINT_PAGES}")
        run(f"pragma journal_size_limit = {4 * _CHECKPOINT_PAGES * _PAGE_BYTES}")
        run("pragma secure_delete = off")
        run("pragma cache_size = -16384")
        if self._format() == 0 and not run("select 1 from sqlite_schema limit 1").fetchall():
            with transaction(self._writer):
                for statement in _SCHEMA.split(";\n"):
                    run(statement)
                self._put_frontier(Frontier(uuid4().hex))
                run(f"pragma user_version = {FORMAT}")
        while 0 < (found := self._format()) < FORMAT:
            with transaction(self._writer):
                _UPGRADES[found](self._writer)
                run(f"pragma user_version = {found + 1}")

    def _format(self) -> int:
        return int(self._writer.execute("pragma user_version").fetchone()[0])

    def _check_format(self) -> None:
        found = self._format()
        if found == 0:
            raise damaged(self._path, "it has no format version")
        if found != FORMAT:
            raise Misconfigured(
                f"The log at {self._path} has format {found}; this version of Syncline reads format {FORMAT}.",
                remedy="Run the version of Syncline that wrote it (or open it with that version once).",
                code="SL-LOG-FORMAT",
            )

    # ------------------------------------------------------------------------------------------- reading

    def frontier(self) -> Frontier:
        """The log's own record: where it stands when it holds no entry, ``last`` being the last one it holds."""
        with translated(self._path):
            found = self._writer.execute("select * from log").fetchall()
            last = self._writer.execute("select max(n) from entry").fetchone()[0]
        if len(found) != 1 or found[0][-1] != _checksum(found[0][:-1]):
            raise damaged(self._path, "its own record fails its checksum")
        uuid, head, *sums, _ = found[0]
        return Frontier(uuid, head, max(head, last or 0), *sums)

    def fetch(self, n: int) -> Row | None:
        """An entry's row, unverified, None if it is not there. Safe in any thread."""
        with translated(self._path), self._reader() as connection:
            # fetchall ends the statement, and with it a read transaction that would keep the WAL from starting over.
            found = connection.execute(
                "select n, created, place, incarnation, max_version, total, series, unfinished, size, head, body, "
                "file, offset, checksum from entry where n = ?",
                (n,),
            ).fetchall()
        if not found:
            return None
        n, created, place, incarnation, max_version, total, series, unfinished, size, *rest = found[0]
        head, body, file, offset, checksum = rest
        return Row(
            n=n,
            created=created,
            place=place,
            incarnation=incarnation,
            max_version=max_version,
            total=total,
            series=series,
            unfinished=bool(unfinished),
            size=size,
            head=head,
            body=body or b"",
            extent=None if file is None else Extent(file, offset),
            checksum=checksum,
        )

    def unfinished(self) -> list[int]:
        """The entries that are parts of a transaction whose last part is missing, in order."""
        with translated(self._path):
            found = self._writer.execute(
                "select series, unfinished from entry where series is not null order by series desc, n desc limit 1"
            ).fetchall()
            if not found or not found[0][1]:
                return []
            rows = self._writer.execute("select n from entry where series = ? order by n", (found[0][0],)).fetchall()
        return [n for (n,) in rows]

    def files(self) -> dict[int, int]:
        """How many entries have their body in which file."""
        with translated(self._path):
            return dict(
                self._writer.execute("select file, count(*) from entry where file is not null group by file").fetchall()
            )

    def oldest(self, through: int, limit: int) -> list[Age]:
        """The first entries, in order, none behind ``through``."""
        with translated(self._path):
            found = self._writer.execute(
                "select n, created, size, file from entry where n <= ? order by n limit ?", (through, limit)
            ).fetchall()
        return [Age(*row) for row in found]

    def appended(self, since: int) -> tuple[int | None, int | None]:
        """The first entry that was appended at or after a time, and when the oldest one was (microseconds)."""
        with translated(self._path):
            (found,) = self._writer.execute(
                "select (select min(n) from entry where created >= ?), (select created from entry order by n limit 1)",
                (since,),
            ).fetchall()
        return found[0], found[1]

    def cursors(self) -> dict[str, int]:
        """The targets' cursors as last noted."""
        with translated(self._path):
            return dict(self._writer.execute("select target, n from cursor").fetchall())

    def incarnation(self) -> Incarnation | None:
        """The source incarnation recorded last."""
        with translated(self._path):
            found = self._writer.execute("select * from incarnation order by number desc limit 1").fetchall()
        if found and found[0][-1] != _checksum(found[0][:-1]):
            raise damaged(self._path, f"the record of source incarnation {found[0][0]} fails its checksum")
        return Incarnation(*found[0][:-1]) if found else None

    def free_bytes(self) -> int:
        """Bytes of the file that hold nothing and are used next."""
        with translated(self._path):
            return int(self._writer.execute("pragma freelist_count").fetchone()[0]) * _PAGE_BYTES

    # ------------------------------------------------------------------------------------------- writing

    def insert(self, rows: Sequence[Row], cursors: Mapping[str, int] | None) -> None:
        """Add entries (and note cursors) in one transaction, durable on return."""
        values = [
            (
                *(r.n, r.created, r.place, r.incarnation, r.max_version, r.total, r.series, r.unfinished or None),
                *(r.size, r.checksum, *(r.extent or (None, None)), r.head, None if r.extent else r.body),
            )
            for r in rows
        ]
        with translated(self._path), transaction(self._writer):
            self._writer.executemany("insert into entry values (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", values)
            if cursors is not None:
                self._put_cursors(cursors)

    def discard(self, rows: Sequence[Row], frontier: Frontier) -> None:
        """Put ``rows`` in the place of the ones with their numbers; durable on return."""
        with translated(self._path), transaction(self._writer):
            for row in rows:
                self._writer.execute(
                    "update entry set series = null, unfinished = null, size = ?, checksum = ?, file = null, "
                    "offset = null, head = ?, body = ? where n = ?",
                    (row.size, row.checksum, row.head, row.body, row.n),
                )
            self._put_frontier(frontier)

    def remove(self, frontier: Frontier, cursors: Mapping[str, int]) -> None:
        """Delete the entries up to ``frontier.head``, durable on return."""
        with translated(self._path), transaction(self._writer):
            self._writer.execute("delete from entry where n <= ?", (frontier.head,))
            self._put_frontier(frontier)
            self._put_cursors(cursors)

    def note(self, cursors: Mapping[str, int]) -> None:
        """Write the cursors, all of them, durable on return."""
        with translated(self._path), transaction(self._writer):
            self._put_cursors(cursors)

    def add_incarnation(self, incarnation: Incarnation) -> None:
        """Record a source incarnation, or its new timeline; durable on return."""
        fields = msgspec.structs.astuple(incarnation)
        with translated(self._path), transaction(self._writer):
            self._writer.execute(
                "insert or replace into incarnation values (?, ?, ?, ?, ?, ?)", (*fields, _checksum(fields))
            )

    def shrink(self, pages: int) -> None:
        """Give up to ``pages`` free pages at the end of the file back to the disk."""
        with translated(self._path):
            # executescript goes on to the end; execute would stop at the first page.
            self._writer.executescript(f"pragma incremental_vacuum({pages})")

    def close(self) -> None:
        """Close all connections. Idempotent."""
        self._closed = True
        while self._idle:
            self._idle.pop().close()
        self._writer.close()

    @contextmanager
    def _reader(self) -> Iterator[sqlite3.Connection]:
        if self._readonly:
            yield self._writer
            return
        try:
            connection = self._idle.pop()
        except IndexError:
            connection = self._connect(readonly=True)
        try:
            yield connection
        finally:
            if self._closed:
                connection.close()
            else:
                self._idle.append(connection)

    def _put_frontier(self, frontier: Frontier) -> None:
        f = frontier
        fields = (f.log, f.head, f.place, f.incarnation, f.max_version, f.total, f.removed)
        self._writer.execute("delete from log")
        self._writer.execute("insert into log values (?, ?, ?, ?, ?, ?, ?, ?)", (*fields, _checksum(fields)))

    def _put_cursors(self, cursors: Mapping[str, int]) -> None:
        self._writer.execute("delete from cursor")
        self._writer.executemany("insert into cursor values (?, ?)", cursors.items())


def _checksum(fields: Sequence[object]) -> int:
    return _signed(xxhash.xxh3_64_intdigest(msgspec.msgpack.encode(tuple(fields))))


def _signed(digest: int) -> int:
    return digest - (1 << 64) if digest >= 1 << 63 else digest
