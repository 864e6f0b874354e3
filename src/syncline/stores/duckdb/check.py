"""What stands in the way of a DuckDB file, found without changing anything: the contract's optional ``check``."""

from __future__ import annotations

import os
import re
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

import duckdb

from syncline.errors import Misconfigured, SynclineError, Unavailable
from syncline.finding import Finding, Severity, size
from syncline.stores.duckdb.database import DuckDBConfig, looks_damaged, opening_error, probe
from syncline.stores.duckdb.door import socket_path
from syncline.stores.duckdb.parquet_s3 import S3Config
from syncline.stores.duckdb.parquet_s3 import probe as probe_bucket
from syncline.stores.duckdb.place import blocked, unwritable
from syncline.stores.duckdb.sql import FORMAT
from syncline.writable import nearest_present

__all__ = ["check"]

_SIZE = re.compile(r"(?P<number>[\d.]+) ?(?P<unit>[KMGT]?)(?P<binary>i?)B")


def check(config: DuckDBConfig) -> Iterator[Finding]:
    """Folder, file, room and memory of one DuckDB file; findings without a subject."""
    path = config.path.expanduser().resolve()
    yield from _memory(config)
    stopped = list(blocked(path))
    yield from stopped
    if stopped:
        return
    yield from _room(config, path)
    if config.temp_directory is not None:
        yield from unwritable(config.temp_directory.expanduser().resolve(), "temp_directory")
    if config.parquet is not None:
        yield from unwritable(config.parquet.folder.expanduser().resolve(), "parquet.folder")
        if config.parquet.s3 is not None:
            yield _bucket(config.parquet.s3)
    if not os.path.exists(path):
        fresh = "" if os.path.isdir(path.parent) else f", with its folder {path.parent}"
        yield _found("SL-DUCKDB", "ok", f"{path} is not there yet; `syncline run` creates it{fresh}.")
    elif _has_engine(path):
        yield _found("SL-DUCKDB-OPEN", "info", f"A running engine has {path} open, and answers queries.")
    else:
        yield _file(config, path)


def _found(code: str, severity: Severity, message: str, remedy: str = "") -> Finding:
    return Finding(code, severity, "", message, remedy)


def _bucket(config: S3Config) -> Finding:
    """Whether an object can be put where the exports go, and removed again."""
    try:
        probe_bucket(config)
    except SynclineError as error:
        code = Unavailable.code if isinstance(error, Unavailable) else error.code
        return _found(code, "error", error.message, error.remedy)
    message = f"Bucket {config.bucket} at {config.server} takes Parquet files, and lets go of them again."
    return _found("SL-PARQUET", "ok", message)


def _memory(config: DuckDBConfig) -> Iterator[Finding]:
    """A checkpoint holds what the write-ahead log holds."""
    if _bytes(config.wal_autocheckpoint) * 2 > _bytes(config.memory_limit):
        yield _found(
            "SL-DUCKDB-MEMORY",
            "warning",
            f"wal_autocheckpoint ({config.wal_autocheckpoint}) is more than half of memory_limit"
            f" ({config.memory_limit}): a checkpoint may run out of memory.",
            "Raise the target's memory_limit, or lower its wal_autocheckpoint.",
        )


def _bytes(text: str) -> float:
    """The size that a setting says, as DuckDB reads it."""
    match = _SIZE.fullmatch(text)
    assert match is not None  # the setting's pattern
    return float(match["number"]) * (1024 if match["binary"] else 1000) ** " KMGT".index(match["unit"] or " ")


def _room(config: DuckDBConfig, path: Path) -> Iterator[Finding]:
    """A checkpoint writes the rows of the write-ahead log a second time before it lets go of the log."""
    free = shutil.disk_usage(nearest_present(path.parent)).free
    log = _bytes(config.wal_autocheckpoint)
    if free < 4 * log:
        yield _found(
            "SL-DUCKDB-DISK",
            "error" if free < log else "warning",
            f"Only {size(free)} are free on the disk of {path}; its write-ahead log alone grows to"
            f" {config.wal_autocheckpoint}.",
            "Free some space, or set the target's path to another disk.",
        )


def _has_engine(path: Path) -> bool:
    """Whether an engine listens at the file's query door."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        return client.connect_ex(os.fspath(socket_path(path))) == 0


def _file(config: DuckDBConfig, path: Path) -> Finding:
    """Open the file read-only, which leaves it and its write-ahead log as they are."""
    settings: dict[str, str | bool | int | float | list[str]] = {
        "memory_limit": config.memory_limit,
        "threads": config.threads,
        "enable_external_access": False,
    }
    try:
        with duckdb.connect(str(path), read_only=True, config=settings) as connection:
            probe(connection)
            newer = _newer_format(connection)
    except duckdb.Error as error:
        return _unreadable(config, path, error)
    if newer:
        return _found("SL-DUCKDB-FILE", "error", f"{path} was written by a newer Syncline.", "Upgrade Syncline.")
    return _found("SL-DUCKDB", "ok", f"{path} can be read and written.")


def _newer_format(connection: duckdb.DuckDBPyConnection) -> bool:
    known = "select 1 from duckdb_tables() where schema_name = 'syncline' and table_name = 'format'"
    if not connection.execute(known).fetchall():
        return False
    ((written,),) = connection.execute("select max(version) from syncline.format").fetchall()
    return written is not None and written > FORMAT


def _unreadable(config: DuckDBConfig, path: Path, error: duckdb.Error) -> Finding:
    if looks_damaged(error, path):
        remedy = "`syncline run` moves it aside; `syncline resync` then has its tables read again from the source."
        return _found("SL-DUCKDB-DAMAGED", "error", f"{path} is damaged ({type(error).__name__}).", remedy)
    ours = opening_error(error, path)
    code = "SL-DUCKDB-FILE" if ours.code == Misconfigured.code else ours.code
    if code == "SL-DUCKDB-LOCKED" and not config.door:
        # Without a door nobody can be asked who it is.
        remedy = "If that is not Syncline's engine, end it."
        return _found(code, "warning", ours.message, remedy)
    return _found(code, "error", ours.message, ours.remedy)
