"""Parquet files of the tables of a DuckDB copy, refreshed in parts while Syncline runs.

All tables of one export are read in one transaction, and no file is written twice. ``versions/<n>`` holds the whole of
an export, with the files of unchanged parts as hard links; ``current`` is a symbolic link to the newest, which changes
in one step. Whoever reads through it while it changes finds one export, the other, or no file of that name; never a
mixture.
"""

from __future__ import annotations

import errno
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import duckdb
import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, Field

from syncline.change import Cursor, TableSchema
from syncline.errors import Misconfigured, Unavailable
from syncline.stores.duckdb.parts import Part, columns_of, plan_parts, range_of, table_name
from syncline.stores.duckdb.sql import quote, target_name

__all__ = ["MANIFEST", "Manifest", "ParquetConfig", "export"]

MANIFEST = "manifest.json"
_BATCH_ROWS = 50_000
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT)


class ParquetConfig(BaseModel):
    """Parquet files of every table of the copy, in one folder."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    folder: Path = Field(description="Folder of the exports, made if missing; `current` in it is the newest.")
    every_s: float = Field(60.0, gt=0, description="Seconds between two exports.")
    keep_s: float = Field(600.0, ge=0, description="Seconds for which a replaced export stays, for its readers.")
    compression: Literal["zstd", "snappy", "gzip", "lz4", "none"] = Field("zstd", description="How it is compressed.")
    row_group_size: int = Field(122_880, ge=1, description="Rows of a row group.")
    part_rows: int = Field(1_000_000, ge=1, description="Rows of a file, about; a larger table has several.")


class Manifest(msgspec.Struct, frozen=True):
    """What an export holds: its parts by table, and the LSN that the copy had of each source."""

    made: float
    sources: dict[str, int]
    tables: dict[str, list[Part]]


def export(connection: duckdb.DuckDBPyConnection, config: ParquetConfig) -> bool:
    """Export all tables as they are in one transaction of this connection; False when nothing changed since the last.

    Raises:
        Misconfigured: the folder can't be used.
        Unavailable: its disk is full.
        duckdb.Error: as the connection raises it.
    """
    folder = config.folder.expanduser().absolute()
    with _told(folder):
        connection.execute("begin")
        try:
            known, cursors = _current(folder), _cursors(connection)
            loaded = {table for cursor in cursors for table in cursor.loaded}
            # A table that is being read (again) is no whole one: what was exported of it stays.
            schemas = {s.qualified: s for s in _schemas(connection) if s.qualified in loaded or s.qualified in known}
            plans = {
                table: plan_parts(connection, schema, known.get(table, ()), config.part_rows)
                if table in loaded
                else known[table]
                for table, schema in schemas.items()
            }
            if plans == known:
                return False
            version = _Version.begin(folder, config)
            tables = {table: version.write(connection, schemas[table], parts) for table, parts in plans.items()}
            version.publish(Manifest(time.time(), {c.source: c.place for c in cursors}, tables))
            return True
        finally:
            connection.execute("rollback")


@contextmanager
def _told(folder: Path) -> Iterator[None]:
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


def _current(folder: Path) -> dict[str, list[Part]]:
    """The parts of the newest export; without a whole one, everything is written anew."""
    try:
        tables = msgspec.json.decode((folder / "current" / MANIFEST).read_bytes(), type=Manifest).tables
    except (FileNotFoundError, msgspec.DecodeError):
        return {}
    whole = all((folder / "current" / part.file).is_file() for parts in tables.values() for part in parts)
    return tables if whole else {}


def _schemas(connection: duckdb.DuckDBPyConnection) -> list[TableSchema]:
    """The tables that Syncline keeps, of all sources."""
    rows = connection.execute("select body from syncline.tables order by name").fetchall()
    there = set(connection.execute("select schema_name, table_name from duckdb_tables()").fetchall())
    schemas = [msgspec.json.decode(body, type=TableSchema) for (body,) in rows]
    return [schema for schema in schemas if target_name(schema) in there]


def _cursors(connection: duckdb.DuckDBPyConnection) -> list[Cursor]:
    rows = connection.execute("select body from syncline.cursors").fetchall()
    return [msgspec.json.decode(body, type=Cursor) for (body,) in rows]


@dataclass(frozen=True, slots=True)
class _Version:
    """An export that is being written, in a folder that nobody reads yet."""

    folder: Path
    config: ParquetConfig
    number: int
    place: Path

    @classmethod
    def begin(cls, folder: Path, config: ParquetConfig) -> _Version:
        versions = folder / "versions"
        versions.mkdir(parents=True, exist_ok=True)
        for left in versions.glob("*.part"):  # by a process that was killed
            shutil.rmtree(left)
        number = max((int(p.name) for p in versions.iterdir() if p.name.isdigit()), default=0) + 1
        place = versions / f"{number}.part"
        place.mkdir()
        return cls(folder, config, number, place)

    def write(self, connection: duckdb.DuckDBPyConnection, schema: TableSchema, parts: Sequence[Part]) -> list[Part]:
        """Link the files of the parts that have one and write the others."""
        (self.place / schema.qualified).mkdir()
        written = []
        for i, part in enumerate(parts):
            name = part.file or f"{schema.qualified}/{self.number:08}-{i:05}.parquet"
            if part.file:
                os.link(self.folder / "current" / part.file, self.place / part.file)
            else:
                self._write_part(connection, schema, range_of(schema, part, parts), self.place / name)
            written.append(msgspec.structs.replace(part, file=name))
        return written

    def _write_part(self, connection: duckdb.DuckDBPyConnection, schema: TableSchema, where: str, path: Path) -> None:
        columns = ", ".join(quote(name) for name, _ in columns_of(connection, schema))
        keys = ", ".join(quote(column.name) for column in schema.key)
        found = connection.sql(
            f"select {columns} from {table_name(schema)} where {where} order by {keys}"
        ).to_arrow_reader(_BATCH_ROWS)
        with pq.ParquetWriter(path, found.schema, compression=self.config.compression) as writer:
            for group in _groups(found, self.config.row_group_size):
                writer.write_table(group, row_group_size=self.config.row_group_size)
        _sync(path)

    def publish(self, manifest: Manifest) -> None:
        """Make it the current one in one step, and let those go that nobody may rely on any more."""
        body = self.place / MANIFEST
        body.write_bytes(msgspec.json.format(msgspec.json.encode(manifest)))
        _sync(body)
        done = self.place.with_suffix("")
        self.place.rename(done)
        link = self.folder / "current.new"
        link.unlink(missing_ok=True)
        link.symlink_to(Path("versions") / done.name, target_is_directory=True)
        link.replace(self.folder / "current")
        for version in done.parent.iterdir():
            if version.name.isdigit() and version != done and self._is_over(version, manifest.made):
                shutil.rmtree(version)

    def _is_over(self, version: Path, now: float) -> bool:
        """Whether the export was replaced ``keep_s`` ago: the next one's age tells."""
        behind = version.with_name(str(int(version.name) + 1)) / MANIFEST
        return not behind.exists() or now - behind.stat().st_mtime >= self.config.keep_s


def _sync(path: Path) -> None:
    """A power cut must not leave a link to files without content."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _groups(batches: pa.RecordBatchReader, rows: int) -> Iterator[pa.Table]:
    """Tables of ``rows`` rows, the last one with what is left; an empty one where there is nothing."""
    waiting: list[pa.RecordBatch] = []
    count, told = 0, False
    for batch in batches:
        waiting.append(batch)
        count += batch.num_rows
        while count >= rows:
            table = pa.Table.from_batches(waiting, batches.schema)
            yield table.slice(0, rows)
            waiting, count, told = table.slice(rows).to_batches(), count - rows, True
    if count or not told:
        yield pa.Table.from_batches(waiting, batches.schema)
