"""The DuckDB store: works applied in one transaction with their cursor, under the version guard.

How it writes (decision record 0003): rows are deleted by key and inserted again, without an index. When every version
of a work is at or above the greatest version its table ever held, which is the normal case, the guard holds by itself
and no stored version is looked at; otherwise the rows that pass it are picked first and written the same way.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import TYPE_CHECKING

import duckdb
import msgspec
import pyarrow as pa

from syncline.bookkeeping import bookkept
from syncline.change import Cursor, TableSchema, arrow_type
from syncline.errors import Misconfigured, Rejected, SynclineError
from syncline.stores import Limits, TableWork, Work, stored_columns
from syncline.stores.duckdb.database import Database, DuckDBConfig
from syncline.stores.duckdb.door import read_batches
from syncline.stores.duckdb.place import offline
from syncline.stores.duckdb.sql import BOOKKEEPING, FORMAT, VERSION_COLUMN, Statements, quote
from syncline.stores.duckdb.tables import TableState, migrate_table, table_state
from syncline.stores.duckdb.writing import refused_rows, view_of_keys, write_table

if TYPE_CHECKING:
    from syncline.finding import Finding
    from syncline.stores.duckdb.copy import DuckDBCopy

__all__ = ["DuckDBConfig", "DuckDBStore", "as_contract", "contract_schema"]

_SCAN_ROWS = 20_000
_REFUSALS = (duckdb.DataError, duckdb.IntegrityError)


class DuckDBStore:
    """The contract of :class:`syncline.stores.Store` in a DuckDB file.

    Tables keep their names (``public`` becomes DuckDB's ``main``) and get one more column, ``_syncline_version``.
    Everything else of Syncline's is in the schema ``syncline`` of the file.
    """

    config_class = DuckDBConfig
    form = "rows"
    # A row group: DuckDB compresses a transaction of that size straight into the file, instead of writing it to its log
    # and rewriting it in a checkpoint (measured: 160 instead of 430 bytes written for a row of 400).
    limits = Limits(load_rows=122_880, load_bytes=64 * 1024 * 1024)

    def __init__(self, config: DuckDBConfig, name: str) -> None:
        self.config = config
        self.name = name
        self._database: Database | None = None
        self._connection: duckdb.DuckDBPyConnection | None = None
        self._source = ""
        self._states: dict[str, TableState] = {}

    @staticmethod
    def reader(config: DuckDBConfig) -> DuckDBCopy:
        """A read-only look at the file, through the engine's door while one runs. Raises as ``open_reader``."""
        from syncline.stores.duckdb.copy import DuckDBCopy

        return DuckDBCopy(config)

    @staticmethod
    def check(config: DuckDBConfig) -> Iterator[Finding]:
        """What stands in the way of the file, for `syncline doctor`. Changes nothing."""
        from syncline.stores.duckdb.check import check

        return check(config)

    @staticmethod
    def check_offline(config: DuckDBConfig, schemas: Collection[str]) -> Iterator[Finding]:
        """What is wrong with the path and the other folders, for `syncline check`."""
        folders = {"temp_directory": config.temp_directory, "parquet.folder": config.parquet and config.parquet.folder}
        return offline(config.path, schemas, {setting: folder for setting, folder in folders.items() if folder})

    @staticmethod
    def statements(schema: TableSchema) -> list[str]:
        """What a changed row of the table becomes, to be shown to people."""
        types = tuple(arrow_type(c.type) for c in schema.columns)
        told = Statements(schema, types, tuple(arrow_type(c.type) for c in schema.key))
        return [told.delete("changes", whole=True), told.insert("changes"), told.remove("deletions")]

    # ------------------------------------------------------------------------------------------ open and close

    def open(self, source: str) -> Cursor | None:
        """Open the file, prepare the bookkeeping, and return the durable cursor of ``source``.

        Raises:
            Misconfigured: the path cannot be used, or another process has the file.
            Gap: the file is damaged. It has been moved aside; the next ``open`` starts an empty one.
            Unavailable: the disk is full.
        """
        self.close()
        self._source = source
        self._database = Database.acquire(self.config)
        try:
            with self._transaction() as connection:
                self._prepare(connection)
                found = connection.execute("select body from syncline.cursors where source = $1", [source]).fetchall()
        except BaseException:
            self.close()
            raise
        return bookkept(found[0][0], Cursor) if found else None

    def _prepare(self, connection: duckdb.DuckDBPyConnection) -> None:
        for statement in BOOKKEEPING:
            connection.execute(statement)
        ((written,),) = connection.execute("select max(version) from syncline.format").fetchall()
        if written is None:
            connection.execute(f"insert into syncline.format values ({FORMAT})")
        elif written > FORMAT:
            raise Misconfigured(
                f"The DuckDB file {self.config.path} was written by a newer Syncline (format {written}, this one knows"
                f" {FORMAT}).",
                remedy="Upgrade Syncline.",
            )
        elif written < FORMAT:
            _upgrade(connection)

    def close(self) -> None:
        """Close the file (with a checkpoint) if no other store of this process uses it. Idempotent."""
        self._let_go()
        database, self._database = self._database, None
        if database is not None:
            database.release()

    @property
    def _db(self) -> Database:
        if self._database is None:
            raise Misconfigured(f"Target {self.name} is not open.")
        return self._database

    @contextmanager
    def _transaction(self) -> Iterator[duckdb.DuckDBPyConnection]:
        """One write transaction: committed and durable behind the block, or rolled back if it raises.

        Raises:
            Unavailable, Misconfigured, Gap: DuckDB failed; its error is the cause.
        """
        database = self._db
        with database.lock:
            try:
                if self._connection is None:
                    self._connection = database.connection()
                self._connection.execute("begin")
                yield self._connection
                self._connection.execute("commit")
            except duckdb.Error as error:
                self._let_go()
                raise database.failed(error) from error
            except BaseException:
                self._let_go()
                raise
            database.touched()

    def _let_go(self) -> None:
        """Close the connection, which rolls back, and forget what is known of the tables: a commit that failed may or
        may not have happened."""
        self._states.clear()
        connection, self._connection = self._connection, None
        if connection is not None:
            try:
                connection.close()
            except duckdb.Error:
                # The instance is lost after a fatal error; the next connection opens the file again.
                return

    # ------------------------------------------------------------------------------------------ migrate and apply

    def migrate(self, schema: TableSchema) -> TableSchema | None:
        """Make the table fit the schema; see the contract.

        Raises:
            Misconfigured: an existing table can't be adopted, names collide in DuckDB, or another source owns it.
        """
        with self._counted([schema]), self._transaction() as connection:
            state, former = migrate_table(connection, self._source, schema)
        self._states[schema.qualified] = state
        return former

    @contextmanager
    def _counted(self, schemas: Collection[TableSchema]) -> Iterator[None]:
        """Note that the tables may be others behind the block, even if it fails: its commit may have happened."""
        database = self._db
        with database.lock:
            try:
                yield
            finally:
                database.writes.update(schema.qualified for schema in schemas)

    def apply(self, work: Work) -> None:
        """Write the work and its cursor in one transaction, durable on return.

        Raises:
            Rejected: a value has no exact form in its column's type. Positions count the upserts, then the partials.
            Unavailable, Misconfigured: as the contract says.
        """
        with self._counted([table.schema for table in work.tables]):
            try:
                with self._transaction() as connection:
                    for table in work.tables:
                        write_table(connection, table, self._state(connection, table.schema))
                    _write_cursor(connection, work.cursor)
            except SynclineError as error:
                if not isinstance(error.__cause__, _REFUSALS):
                    raise
                raise self._blame(work, error.__cause__) from error.__cause__

    def _state(self, connection: duckdb.DuckDBPyConnection, schema: TableSchema) -> TableState:
        state = self._states.get(schema.qualified)
        if state is None or state.fingerprint != schema.fingerprint:
            state = self._states[schema.qualified] = table_state(connection, schema)
        return state

    def _blame(self, work: Work, error: BaseException) -> SynclineError:
        """DuckDB refused values without saying which: try each table's rows by halves, and roll everything back."""
        kind = type(error).__name__
        for table in work.tables:
            rows = refused_rows(table, self._refuses)
            if rows:
                return Rejected(table.schema.qualified, rows, f"DuckDB does not take a value ({kind})")
        return Misconfigured(
            f"DuckDB refused changes of {', '.join(t.schema.qualified for t in work.tables)} ({kind}), though it takes"
            " each of them alone.",
            remedy="Drop the constraints of adopted tables: the source keeps them.",
        )

    def _refuses(self, table: TableWork) -> bool:
        try:
            with self._transaction() as connection:
                write_table(connection, table, self._state(connection, table.schema))
                raise _Undo
        except _Undo:
            return False
        except SynclineError as error:
            if not isinstance(error.__cause__, _REFUSALS):
                raise
            return True

    def forget(self, schema: TableSchema, keys: pa.RecordBatch, above: int) -> None:
        """Rows and tombstones of these keys with a version above ``above`` lose it, in one transaction."""
        statements = Statements(schema, keys=tuple(keys.schema.types[: len(schema.key)]))
        with self._counted([schema]), self._transaction() as connection:
            connection.register("syncline_keys", view_of_keys(schema, keys))
            for statement in statements.forget("syncline_keys", above):
                connection.execute(statement)
            connection.unregister("syncline_keys")
        self._states.pop(schema.qualified, None)  # its greatest version may be a lower one now

    # ------------------------------------------------------------------------------------------ read and purge

    def fetch(self, schema: TableSchema, keys: pa.RecordBatch) -> pa.Table:
        """The stored rows of these keys, in one look. A row without a version has version 0."""
        types = tuple(keys.schema.types[: len(schema.key)])
        with self._db.session() as connection:
            connection.register("syncline_keys", view_of_keys(schema, keys))
            query = Statements(schema, keys=types).select("syncline_keys")
            found = connection.sql(query).to_arrow_table()
        batches = [as_contract(schema, b) for b in found.to_batches()]
        return pa.Table.from_batches(batches, contract_schema(schema))

    def scan(self, schema: TableSchema) -> Iterator[pa.RecordBatch]:
        """All rows in one consistent view, streamed. A row without a version has version 0.

        The view holds back checkpoints until the iterator is exhausted or closed.
        """
        with self._db.session() as connection:
            for batch in read_batches(connection.sql(Statements(schema).select()).to_arrow_reader(_SCAN_ROWS)):
                yield as_contract(schema, batch)

    @property
    def export_every_s(self) -> float | None:
        return self.config.parquet.every_s if self.config.parquet else None

    def export(self) -> bool | None:
        """Refresh the Parquet files of the whole file, all sources' tables; see the contract.

        Raises:
            Misconfigured, Unavailable: the folder can't be written to, or DuckDB failed.
        """
        database = self._database
        return database.exporter.export() if database is not None and database.exporter is not None else None

    def stop_export(self) -> None:
        """Interrupt an export of the file that is under way; see the contract."""
        database = self._database
        if database is not None and database.exporter is not None:
            database.exporter.stop()

    def purge(self, source: str, below: int) -> int:
        """Forget tombstones below ``below`` of the tables of ``source``, and record the horizon, in one transaction."""
        with self._transaction() as connection:
            rows = connection.execute("select body from syncline.tables where source = $1", [source]).fetchall()
            schemas = [bookkept(body, TableSchema) for (body,) in rows]
            forgotten = sum(_purge_table(connection, schema, below) for schema in schemas)
            connection.execute(
                "update syncline.tables set horizon = $1 where source = $2 and horizon < $1", [below, source]
            )
        self._states.clear()
        return forgotten


class _Undo(Exception):
    """Rolls back a trial."""


def _write_cursor(connection: duckdb.DuckDBPyConnection, cursor: Cursor) -> None:
    """The cursor commits with the data (Guarantee 3). Updated in place: one row a source."""
    body = msgspec.json.encode(cursor).decode()
    ((updated,),) = connection.execute(
        "update syncline.cursors set body = $1 where source = $2", [body, cursor.source]
    ).fetchall()
    if not updated:
        connection.execute("insert into syncline.cursors values ($1, $2)", [cursor.source, body])


def _upgrade(connection: duckdb.DuckDBPyConnection) -> None:
    """From format 1, whose tombstones could not be those of a key that is called ``version``."""
    tables = connection.execute(
        "select table_name from duckdb_tables() where schema_name = 'syncline' and table_name like 'deleted %'"
    ).fetchall()
    for (table,) in tables:
        connection.execute(f"alter table syncline.{quote(table)} rename column version to {quote(VERSION_COLUMN)}")
    connection.execute(f"update syncline.format set version = {FORMAT}")


def _purge_table(connection: duckdb.DuckDBPyConnection, schema: TableSchema, below: int) -> int:
    """A key may have several tombstones; it is forgotten when the newest is."""
    table, keys = Statements(schema).tombstones, ", ".join(quote(c.name) for c in schema.key)
    version = quote(VERSION_COLUMN)
    ((forgotten,),) = connection.execute(
        f"select count(*) from (select 1 from {table} group by {keys} having max({version}) < $1)", [below]
    ).fetchall()
    connection.execute(f"delete from {table} where {version} < $1", [below])
    connection.execute("delete from syncline.moved where name = $1 and version < $2", [schema.qualified, below])
    return int(forgotten)


@lru_cache(maxsize=256)
def contract_schema(schema: TableSchema) -> pa.Schema:
    """What ``scan`` and ``fetch`` return."""
    types = [*(arrow_type(c.type) for c in schema.columns), pa.int64()]
    return pa.schema(list(zip(stored_columns(schema), types, strict=True)))


def as_contract(schema: TableSchema, batch: pa.RecordBatch) -> pa.RecordBatch:
    """DuckDB's batch with the names and types of the contract: 16-byte uuids, and UTC spelled as such."""
    wanted = contract_schema(schema)
    arrays = [a if a.type == f.type else a.cast(f.type) for a, f in zip(batch.columns, wanted, strict=True)]
    return pa.RecordBatch.from_arrays(arrays, schema=wanted)
