"""One open DuckDB file: shared by the stores of this process, opened, checkpointed, closed, and its errors translated.

DuckDB lets one process read and write a file, and within it one database instance; so several stores on one path (one
for each source) share one :class:`Database`.
"""

from __future__ import annotations

import atexit
import os
import re
import threading
import time
import weakref
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import duckdb
from pydantic import BaseModel, ConfigDict, Field

from syncline.errors import Gap, Misconfigured, SynclineError, Unavailable
from syncline.stores.duckdb.door import Door
from syncline.stores.duckdb.parquet import Exporter, ParquetConfig
from syncline.stores.duckdb.place import blocked, clash

__all__ = ["Database", "DuckDBConfig", "looks_damaged", "opening_error", "probe", "quarantine", "translate"]

_SIZE = r"^\d+(\.\d+)? ?([KMGT]i?B|B)$"


class DuckDBConfig(BaseModel):
    """One DuckDB database file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    # Variables under which documents of other systems know these settings; the configuration reads them.
    environment_names: ClassVar[dict[str, str]] = {
        "DUCKDB_DATABASE_PATH": "path",
        "DUCKDB_MEMORY_LIMIT": "memory_limit",
        "DUCKDB_WORKER_THREADS": "threads",
    }

    path: Path = Field(description="The database file, created if missing.")
    memory_limit: str = Field("2GB", pattern=_SIZE, description="Memory DuckDB may use before it spills to disk.")
    threads: int = Field(
        default_factory=lambda: min(4, os.cpu_count() or 1), ge=1, description="Threads DuckDB may use."
    )
    wal_autocheckpoint: str = Field(
        "128MB",
        pattern=_SIZE,
        description="Write-ahead log size at which a commit writes a checkpoint; at most half of memory_limit.",
    )
    temp_directory: Path | None = Field(None, description="Where DuckDB spills; null: beside the file.")
    checkpoint_idle_s: float = Field(
        5.0, ge=0, description="Seconds without changes after which a checkpoint is written; 0: only at the size above."
    )
    parquet: ParquetConfig | None = Field(
        None, description="Parquet files of the tables: `folder` and more, see docs/duckdb.md; null: none."
    )
    door: bool = Field(True, description="Let other processes query the file while the engine runs (a Unix socket).")

    def copy_place(self) -> str:
        return os.path.realpath(self.path.expanduser())

    def claims(self) -> dict[str, Path]:
        """Folders that no other target may have, by setting."""
        if self.parquet is None:
            return {}
        s3 = self.parquet.s3
        there = {"parquet.s3.prefix": Path("s3:") / (s3.endpoint or "aws").partition("//")[2] / s3.place} if s3 else {}
        return {"parquet.folder": self.parquet.folder, **there}


class Database:
    """A DuckDB instance, counted by the stores that use it. ``lock`` is held for every transaction that writes.

    A fatal error (such as a full disk while a checkpoint is written) makes DuckDB refuse the instance from then on; the
    file is sound. The next :meth:`connection` or :meth:`session` then closes everything and opens the file again.
    """

    _open: ClassVar[dict[Path, Database]] = {}
    _guard: ClassVar[threading.RLock] = threading.RLock()

    def __init__(self, config: DuckDBConfig, path: Path) -> None:
        self.config = config
        self.path = path
        self.lock = threading.RLock()
        self._users = 0
        self._broken = False
        self._damage: duckdb.Error | None = None
        self._dirty_since: float | None = None
        self._closing = threading.Event()
        self._connections: weakref.WeakSet[duckdb.DuckDBPyConnection] = weakref.WeakSet()
        self._listing = threading.Lock()
        self.writes: Counter[str] = Counter()  # by table: transactions that may have changed it
        self.exporter = Exporter(config.parquet, self.session, self.lock, self.writes) if config.parquet else None
        self._root = _connect(config, path)
        try:
            self._door = Door(path, self.guest_session) if config.door else None
        except BaseException:
            self._root.close()
            raise
        self._timer: threading.Thread | None = None
        if config.checkpoint_idle_s:
            self._timer = threading.Thread(target=self._checkpoint_when_idle, name="duckdb-checkpoint", daemon=True)
            self._timer.start()

    @classmethod
    def acquire(cls, config: DuckDBConfig) -> Database:
        """The open database of ``config.path``, opened if this is the first store that asks.

        Raises:
            Misconfigured: the path cannot be used, another process has it, or two stores want other settings for it.
            Unavailable: the disk is full.
            Gap: the file was damaged; it has been moved aside.
        """
        path = config.path.expanduser().resolve()
        with cls._guard:
            database = cls._open.get(path)
            if database is None:
                atexit.unregister(cls._close_left_open)
                atexit.register(cls._close_left_open)
                database = cls._open[path] = cls(config, path)
            elif database.config != config:
                raise Misconfigured(
                    f"Two targets use the DuckDB file {path} with different settings.", remedy="Give them the same."
                )
            database._users += 1
            return database

    def release(self) -> None:
        """Close the file when its last store leaves; DuckDB then writes a checkpoint. A file in which damage was found
        is moved aside."""
        with Database._guard:
            self._users -= 1
            if self._users:
                return
            self._closing.set()
            if self.exporter:
                self.exporter.stop()
            if self._door:
                self._door.close()
            if self._timer:
                self._timer.join()
            with self.lock:
                self._close_all()
            self._open.pop(self.path, None)
            if self._damage is not None:
                quarantine(self.path, self._damage)

    @classmethod
    def _close_left_open(cls) -> None:
        """At the end of a process that closed no store: leave a checkpoint, and no socket."""
        for database in list(cls._open.values()):
            database._users = 1
            database.release()

    def connection(self) -> duckdb.DuckDBPyConnection:
        """A connection of one's own: each thread needs one. The owner closes it.

        Raises:
            Unavailable, Misconfigured, Gap: the file had to be opened again, as :meth:`acquire` says.
        """
        if self._broken:
            self._open_again()
        connection = self._root.cursor()
        with self._listing:
            self._connections.add(connection)
        return connection

    @contextmanager
    def session(self) -> Iterator[duckdb.DuckDBPyConnection]:
        """A connection for the block, with DuckDB's errors raised as ours.

        Raises:
            Unavailable, Misconfigured, Gap: as :meth:`failed` decides.
        """
        try:
            with self.connection() as connection:
                yield connection
        except duckdb.Error as error:
            raise self.failed(error) from error

    @contextmanager
    def guest_session(self) -> Iterator[duckdb.DuckDBPyConnection]:
        """A connection for queries that are not ours, whose errors say nothing about the file: ``error('Corrupt ...')``
        is a query too."""
        with self.connection() as connection:
            yield connection

    def failed(self, error: duckdb.Error) -> SynclineError:
        """DuckDB's error as one of ours; a fatal one makes the next connection open the file again."""
        if isinstance(error, duckdb.FatalException | duckdb.InternalException):
            self._broken = True
        if _is_corrupt(error):
            self._damage = error
        return translate(error, self.path)

    def _open_again(self) -> None:
        with self.lock:
            if self._broken:
                self._close_all()
                self._root = _connect(self.config, self.path)
                self._broken = False

    def _close_all(self) -> None:
        """DuckDB lets go of a file when its last connection closes."""
        with self._listing:
            connections = list(self._connections)
        for connection in [*connections, self._root]:
            try:
                connection.close()
            except duckdb.Error:
                # The checkpoint of the last close failed; its log keeps everything for the next start.
                continue

    def touched(self) -> None:
        """Something was committed: a checkpoint is due when it gets quiet."""
        self._dirty_since = time.monotonic()

    def _checkpoint_when_idle(self) -> None:
        idle = self.config.checkpoint_idle_s
        while not self._closing.wait(min(idle, 1.0)):
            since = self._dirty_since
            if since is not None and time.monotonic() - since >= idle:
                self.checkpoint()

    def checkpoint(self) -> bool:
        """Write the log into the file, so that the next start has nothing to replay. False if it has to wait."""
        with self.lock:
            try:
                with self.session() as connection:
                    connection.execute("checkpoint")
            except SynclineError:
                # Open read transactions forbid it, or the disk is full; the log keeps everything, and whoever applies
                # next hears of what is wrong. The next quiet moment tries again.
                self.touched()
                return False
            self._dirty_since = None
            return True


def _connect(config: DuckDBConfig, path: Path) -> duckdb.DuckDBPyConnection:
    settings: dict[str, str | bool | int | float | list[str]] = {
        "memory_limit": config.memory_limit,
        "threads": config.threads,
        "wal_autocheckpoint": config.wal_autocheckpoint,
        "autoinstall_known_extensions": False,
        "allow_community_extensions": False,
        # Nothing the store does reads or writes other files, and whoever queries through the door must not.
        "enable_external_access": False,
        "python_enable_replacements": False,
    }
    if config.temp_directory is not None:
        settings["temp_directory"] = str(config.temp_directory)
    named = clash(path, ())
    if named is not None:
        raise named
    existed = path.exists()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        connection = _connected(path, settings)
        try:
            connection.execute("set global TimeZone = 'UTC'")
            probe(connection)
        except BaseException:
            connection.close()
            raise
        return connection
    except OSError as error:
        raise _in_the_way(path) or Misconfigured(
            f"The DuckDB file {path} cannot be created: {error.strerror}.", remedy="Correct the target's path."
        ) from error
    except duckdb.Error as error:
        if isinstance(error, duckdb.IOException) and (found := _in_the_way(path)):
            raise found from error
        if existed and looks_damaged(error, path):
            raise quarantine(path, error) from error
        raise opening_error(error, path) from error


def _in_the_way(path: Path) -> Misconfigured | None:
    """Why a file that could not be opened can't be there."""
    found = next(blocked(path), None)
    return (
        Misconfigured(f"The DuckDB file {path} can't be used: {found.message}", remedy=found.remedy) if found else None
    )


def _connected(path: Path, settings: dict[str, Any]) -> duckdb.DuckDBPyConnection:
    """Readers hold the file for a moment while no engine runs: wait a little for one."""
    deadline = time.monotonic() + _READERS_S
    while True:
        try:
            return duckdb.connect(str(path), config=settings)
        except duckdb.IOException as error:
            if "lock on file" not in str(error) or time.monotonic() > deadline:
                raise
            time.sleep(0.02)


def probe(connection: duckdb.DuckDBPyConnection) -> None:
    """Read the bookkeeping: a file whose catalog or first blocks are damaged fails here, not in the middle of work."""
    for (table,) in connection.execute(
        "select table_name from duckdb_tables() where schema_name = 'syncline' and table_name in ('cursors', 'tables')"
    ).fetchall():
        connection.execute(f"select * from syncline.{table}").fetchall()


_READERS_S = 3.0
_DAMAGE = re.compile(r"replaying WAL|corrupt|checksum|deserialize|metadata|not read enough bytes", re.IGNORECASE)
_NOT_DAMAGE = re.compile(r"No space left|lock on file|out of memory", re.IGNORECASE)


def looks_damaged(error: duckdb.Error, path: Path) -> bool:
    """Whether the file is to blame. When in doubt it is not: only what is surely damaged is moved aside."""
    text = str(error).replace(str(path), "")
    if isinstance(error, duckdb.OutOfMemoryException) or _NOT_DAMAGE.search(text):
        return False
    kinds = duckdb.SerializationException | duckdb.InternalException | duckdb.FatalException
    return isinstance(error, kinds) or bool(_DAMAGE.search(text))


def opening_error(error: duckdb.Error, path: Path) -> SynclineError:
    """What is wrong when a file can't be opened although it is not damaged."""
    text = str(error)
    if "Could not set lock" in text or "Conflicting lock" in text:
        holder = re.search(r"PID (\d+)", text)
        who = f"process {holder[1]}" if holder else "another process"
        return Misconfigured(
            f"The DuckDB file {path} is open in {who}; DuckDB lets one process write.",
            remedy="End that process, or query through `syncline query` while the engine runs.",
            code="SL-DUCKDB-LOCKED",
        )
    if "different configuration" in text:
        return Misconfigured(
            f"The DuckDB file {path} is already open in this process with other settings.", remedy="Close it first."
        )
    if "newer version of DuckDB" in text:
        return Misconfigured(
            f"{path} was written by a newer DuckDB than {duckdb.__version__}.",
            remedy="Upgrade Syncline and its DuckDB, or correct the target's path.",
        )
    foreign = isinstance(error, duckdb.PermissionException) and "extension" in text  # such as an SQLite file
    if foreign or "not a valid DuckDB database file" in text or "version number" in text:
        return Misconfigured(
            f"{path} is not a database that DuckDB {duckdb.__version__} can read.",
            remedy="Correct the target's path, or move the file away.",
        )
    if "Cannot open file" in text or "is a directory" in text.lower():
        return Misconfigured(f"The DuckDB file {path} cannot be opened.", remedy="Correct the target's path.")
    return translate(error, path)


def quarantine(path: Path, error: BaseException) -> Gap:
    """Move a damaged file and its log aside, and say where they are."""
    stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
    aside = path.with_name(f"{path.name}.damaged-{stamp}")
    number = 1
    while aside.exists():
        number += 1
        aside = path.with_name(f"{path.name}.damaged-{stamp}-{number}")
    for suffix in ("", ".wal", ".wal.checkpoint", ".wal.recovery"):
        part = path.with_name(path.name + suffix)
        if part.exists():
            part.rename(aside.with_name(aside.name + suffix))
    return Gap(
        f"The DuckDB file {path} is damaged ({type(error).__name__}); it was moved to {aside}.",
        remedy="Its tables are read again from the source: run `syncline resync`.",
        code="SL-DUCKDB-DAMAGED",
    )


def _is_corrupt(error: duckdb.Error) -> bool:
    """Whether a block of an open file failed its checksum or can't be read back."""
    told = type(error) is duckdb.Error or isinstance(error, duckdb.IOException)  # others may quote values
    text = str(error).lower()
    checksum = told and ("corrupt database file" in text or "not read enough bytes" in text)
    return checksum or isinstance(error, duckdb.SerializationException)


def translate(error: duckdb.Error, path: Path) -> SynclineError:
    """DuckDB's error as one of ours. Its text may hold row values, so only its class is told (Guarantee 11)."""
    text, kind = str(error), type(error).__name__
    if "No space left" in text or "disk is full" in text.lower():
        return Unavailable(f"The disk of the DuckDB file {path} is full.", remedy="Free space; work goes on by itself.")
    if isinstance(error, duckdb.OutOfMemoryException):
        return Unavailable(
            f"DuckDB ran out of memory on {path}.",
            remedy="Raise the target's memory_limit, or free its temp_directory.",
        )
    if "Permission denied" in text or "read-only" in text.lower():
        return Misconfigured(f"The DuckDB file {path} cannot be written.", remedy="Correct its owner or permissions.")
    if _is_corrupt(error):
        return Gap(
            f"The DuckDB file {path} is damaged; it is moved aside (to {path.name}.damaged-...) when it is closed.",
            remedy="Its tables are read again from the source: run `syncline resync`.",
            code="SL-DUCKDB-DAMAGED",
        )
    if isinstance(error, duckdb.CatalogException | duckdb.BinderException):
        return Misconfigured(
            f"A table of {path} is not as Syncline left it ({kind}).",
            remedy="Undo what was changed by hand, or drop the table and run `syncline resync`.",
        )
    if isinstance(error, duckdb.NotSupportedError | duckdb.ProgrammingError):
        return Misconfigured(f"DuckDB {duckdb.__version__} refused a statement on {path} ({kind}).")
    return Unavailable(f"DuckDB failed on {path} ({kind}).", remedy="It is tried again.")
