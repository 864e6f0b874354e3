"""Parquet files of the tables of a DuckDB copy, refreshed in parts while Syncline runs.

All tables of one export are read in one transaction, at a boundary of the source's, and no file is written twice. A
table is looked at only if it was written to since the last export.
"""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import duckdb
import msgspec
import pyarrow as pa
from pydantic import BaseModel, ConfigDict, Field

from syncline.bookkeeping import bookkept
from syncline.change import Cursor, TableSchema
from syncline.errors import Misconfigured, SynclineError
from syncline.stores.duckdb.door import read_batches
from syncline.stores.duckdb.parquet_parts import Part, Table, plan_parts, range_of
from syncline.stores.duckdb.parquet_s3 import Mirror, S3Config
from syncline.stores.duckdb.parquet_versions import (
    Manifest,
    Version,
    current,
    expire,
    folder_name,
    new_version,
    sync,
    told,
)
from syncline.stores.duckdb.sql import quote, target_name

__all__ = ["Exporter", "ParquetConfig"]

# Rows of DuckDB's own vectors: what is read at once stays small, however wide rows are.
_BATCH_ROWS = 2048
_GROUP_BYTES = 64 * 1024 * 1024
# What one table has that others have not: a type that Parquet does not know, a column that is gone.
_ODD = (pa.ArrowException, duckdb.BinderException, duckdb.CatalogException)

Session = Callable[[], AbstractContextManager[duckdb.DuckDBPyConnection]]


class ParquetConfig(BaseModel):
    """Parquet files of every table of the copy, in one folder."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    folder: Path = Field(description="Folder of the exports, made if missing; `current` in it is the newest.")
    every_s: float = Field(60.0, gt=0, description="Seconds between two exports.")
    keep_s: float = Field(600.0, ge=0, description="Seconds for which a replaced export stays, for its readers.")
    compression: Literal["zstd", "snappy", "gzip", "lz4", "none"] = Field("zstd", description="How it is compressed.")
    row_group_size: int = Field(122_880, ge=1, description="Rows of a row group, at most; of 64 MB if that is less.")
    part_rows: int = Field(1_000_000, ge=1, description="Rows of a file, about; a larger table has several.")
    s3: S3Config | None = Field(
        None, description="Object store that gets every export too: `bucket` and more; null: none."
    )

    @property
    def settings(self) -> str:
        """How files are written: with other settings they are other files."""
        return f"{self.compression} {self.row_group_size}"


class _Stopped(Exception):
    """The export is not wanted any more."""


class Exporter:
    """The exports of one open file. Any thread may call it.

    ``writes`` counts, by table, the transactions that may have changed it. Each is written and counted under ``lock``.
    """

    def __init__(
        self,
        config: ParquetConfig,
        session: Session,
        lock: AbstractContextManager[object],
        writes: Mapping[str, int],
    ) -> None:
        self._config = config
        self._folder = config.folder.expanduser().absolute()
        self._session = session
        self._lock = lock
        self._writes = writes
        self._seen: dict[str, object] = {}  # what tables were when the export made at `_seen_at` was current
        self._seen_at = 0.0
        self._exporting = threading.Lock()
        self._stopped = threading.Event()
        self._mirror = Mirror(config.s3, config.keep_s, self._go_on) if config.s3 else None
        self._connection: duckdb.DuckDBPyConnection | None = None

    def stop(self) -> None:
        """Interrupt an export that is under way, and let none begin any more; none runs on return."""
        self._stopped.set()
        while not self._exporting.acquire(timeout=0.02):
            # Again and again: an interrupt between two queries is lost.
            connection = self._connection
            if connection is not None:
                with suppress(duckdb.Error):
                    connection.interrupt()
        self._exporting.release()

    def export(self) -> bool | None:
        """Export all tables as they are in one transaction; False when nothing changed since the last export, None when
        there is nothing to be exported now: no table is loaded, or the copy holds half a transaction of the source.

        Raises:
            Misconfigured: the folder or the object store can't be used, or a table can't be exported; the others were.
            Unavailable: its disk is full, or the object store is away.
            SynclineError: DuckDB failed, as the session says.
        """
        with self._exporting:
            try:
                self._go_on()
                with self._session() as connection:
                    self._connection = connection
                    # The first query fixes what the transaction sees; a count is of just that only between two writes.
                    with self._lock:
                        connection.execute("begin transaction read only")
                        cursors, writes = _cursors(connection), dict(self._writes)
                    with told(self._folder):
                        changed, odd = self._export(connection, cursors, writes)
                changed = self._brought(changed)
                if odd:
                    raise _not_exported(odd)
                return changed
            except _Stopped:
                return None
            except SynclineError:
                if self._stopped.is_set():
                    return None  # interrupted
                raise
            finally:
                self._connection = None

    def _brought(self, changed: bool | None) -> bool | None:
        """Behind the transaction, which no upload shall keep open. One that failed before is made up for, too."""
        manifest = current(self._folder) if self._mirror and changed is not None else None
        if self._mirror is None or manifest is None:
            return changed
        return self._mirror.bring(self._folder / "current", manifest) or changed

    def _go_on(self) -> None:
        if self._stopped.is_set():
            raise _Stopped

    def _export(
        self, connection: duckdb.DuckDBPyConnection, cursors: Sequence[Cursor], writes: Mapping[str, int]
    ) -> tuple[bool | None, dict[str, Exception]]:
        """Whether the export changed (None: there was nothing to export), and the tables that can't be exported."""
        loaded = {table for cursor in cursors for table in cursor.loaded}
        if not loaded or any(cursor.amid for cursor in cursors):
            return None, {}
        before = current(self._folder) or Manifest(0.0, {}, {})
        if before.made != self._seen_at:
            self._seen.clear()
        schemas = [s for s in _schemas(connection) if s.qualified in loaded or s.qualified in before.tables]
        tables = [Table.seen(connection, schema, self._config.settings) for schema in schemas]
        now = {t.schema.qualified: (writes.get(t.schema.qualified, 0), t.shape) for t in tables}
        work = _Work(self._config, before, loaded, self._go_on)
        found = [(t, work.plan(t, same=self._seen.get(t.schema.qualified) == now[t.schema.qualified])) for t in tables]
        plans = [(table, parts) for table, parts in found if parts is not None]
        made = self._publish(work, plans, {c.source: c.place for c in cursors})
        self._seen = {name: seen for name, seen in now.items() if name in loaded and name not in work.odd}
        self._seen_at = made
        expire(self._folder, time.time(), self._config.keep_s)
        return made != before.made, work.odd

    def _publish(self, work: _Work, plans: Sequence[tuple[Table, list[Part]]], sources: dict[str, int]) -> float:
        """Write what is new in the plans; the time at which the current export was made behind that."""
        before = work.before
        planned = {table.schema.qualified: parts for table, parts in plans}
        if (planned, work.older(planned)) == (before.tables, before.older):
            return before.made
        with new_version(self._folder) as version:
            written = {table.schema.qualified: work.write(version, table, parts) for table, parts in plans}
            tables = {name: parts for name, parts in written.items() if parts is not None}
            if (tables, work.older(tables)) == (before.tables, before.older):
                return before.made  # only a table that can't be exported has changed
            manifest = Manifest(time.time(), sources, tables, work.older(tables))
            version.publish(manifest)
            return manifest.made


@dataclass(frozen=True, slots=True)
class _Work:
    """What is done for one export, table by table. ``odd``: tables that can't be exported, and why."""

    config: ParquetConfig
    before: Manifest
    loaded: Collection[str]
    go_on: Callable[[], None]
    odd: dict[str, Exception] = field(default_factory=dict)

    def plan(self, table: Table, *, same: bool) -> list[Part] | None:
        """The parts of a table; None if it is not exported. One that is being read (again) is no whole one, and stays
        as it was exported. ``same``: it was not written to since then."""
        name = table.schema.qualified
        known = self.before.tables.get(name)
        self.go_on()
        if name not in self.loaded or (same and known is not None):
            return known
        try:
            return plan_parts(table, known or (), self.config.part_rows)
        except _ODD as error:
            self.odd[name] = error
            return known

    def older(self, tables: Collection[str]) -> dict[str, float]:
        """The tables that stayed as an earlier export had them, with the time of that."""
        before = self.before
        stayed = [name for name in tables if name in before.tables and (name not in self.loaded or name in self.odd)]
        return {name: before.older.get(name, before.made) for name in stayed}

    def write(self, version: Version, table: Table, parts: Sequence[Part]) -> list[Part] | None:
        """Have the files of a table in the version: those of the export before where a part has one."""
        name = table.schema.qualified
        folder = folder_name(name)
        (version.place / folder).mkdir()
        written = []
        try:
            for i, part in enumerate(parts):
                self.go_on()
                file = part.file or f"{folder}/{version.number:08}-{i:05}.parquet"
                if part.file:
                    version.take_over(file)
                else:
                    self._write_part(table, range_of(table, part, parts), version.place / file)
                written.append(msgspec.structs.replace(part, file=file))
        except _ODD as error:
            self.odd[name] = error
            shutil.rmtree(version.place / folder)
            return self._stay(version, self.before.tables.get(name))
        return written

    def _stay(self, version: Version, known: list[Part] | None) -> list[Part] | None:
        for part in known or ():
            version.take_over(part.file)
        return known

    def _write_part(self, table: Table, where: str, path: Path) -> None:
        from pyarrow.parquet import ParquetWriter  # costs every command 130 ms otherwise

        columns = ", ".join(quote(name) for name, _ in table.columns)
        keys = ", ".join(quote(column.name) for column in table.schema.key)
        found = table.connection.sql(
            f"select {columns} from {table.name} where {where} order by {keys}"
        ).to_arrow_reader(_BATCH_ROWS)
        with ParquetWriter(path, found.schema, compression=self.config.compression) as writer:
            for group in _groups(read_batches(found), found.schema, self.config.row_group_size):
                self.go_on()
                writer.write_table(group, row_group_size=self.config.row_group_size)
        self.go_on()
        sync(path)


def _not_exported(odd: Mapping[str, Exception]) -> Misconfigured:
    """An error's text may hold row values, so only its class is told (Guarantee 11)."""
    names = ", ".join(f"{name} ({type(error).__name__})" for name, error in sorted(odd.items()))
    return Misconfigured(
        f"Parquet files can't be written of {names}; the other tables were exported.",
        remedy="Drop columns of your own whose type Parquet does not know, or leave the table out of the target.",
        code="SL-PARQUET",
    )


def _schemas(connection: duckdb.DuckDBPyConnection) -> list[TableSchema]:
    """The tables that Syncline keeps, of all sources."""
    rows = connection.execute("select body from syncline.tables order by name").fetchall()
    there = set(connection.execute("select schema_name, table_name from duckdb_tables()").fetchall())
    schemas = [bookkept(body, TableSchema) for (body,) in rows]
    return [schema for schema in schemas if target_name(schema) in there]


def _cursors(connection: duckdb.DuckDBPyConnection) -> list[Cursor]:
    """None in a file that is just being made ready."""
    ready = "select 1 from duckdb_tables() where schema_name = 'syncline' and table_name = 'cursors'"
    if not connection.execute(ready).fetchall():
        return []
    rows = connection.execute("select body from syncline.cursors").fetchall()
    return [bookkept(body, Cursor) for (body,) in rows]


def _groups(batches: Iterable[pa.RecordBatch], schema: pa.Schema, rows: int) -> Iterator[pa.Table]:
    """Tables of ``rows`` rows, of fewer once they have 64 MB, the last one with what is left; an empty one where there
    is nothing."""
    waiting: list[pa.RecordBatch] = []
    count, nbytes, told = 0, 0, False
    for batch in batches:
        waiting.append(batch)
        count, nbytes = count + batch.num_rows, nbytes + batch.nbytes
        while count >= rows or nbytes >= _GROUP_BYTES:
            table = pa.Table.from_batches(waiting, schema)
            yield table.slice(0, rows)
            left = table.slice(rows)
            waiting, count, nbytes, told = left.to_batches(), left.num_rows, left.nbytes, True
    if count or not told:
        yield pa.Table.from_batches(waiting, schema)
