"""The Neo4j store: tables as nodes and relationships, a work and its cursor in one transaction."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import msgspec
import pyarrow as pa

from syncline.bookkeeping import bookkept
from syncline.change import Cursor, TableSchema
from syncline.cursors import Left
from syncline.errors import Misconfigured, Rejected, SynclineError, Unavailable
from syncline.stores import Folded, Limits, TableWork, Work
from syncline.stores.neo4j.cypher import CURSOR, MOVED, TABLE, TOMBSTONE
from syncline.stores.neo4j.database import Database, Neo4jConfig, Refused, Transaction
from syncline.stores.neo4j.guard import advance, forget, lock
from syncline.stores.neo4j.layout import layout_of
from syncline.stores.neo4j.reading import contract_schema, read_all, read_keys
from syncline.stores.neo4j.statements import statements
from syncline.stores.neo4j.sweeping import sweep_large
from syncline.stores.neo4j.tables import migrate_table, prepare_database
from syncline.stores.neo4j.values import exact, store
from syncline.stores.neo4j.waiting import forget_orphans
from syncline.stores.neo4j.writing import Prepared, TableWriter, prepare

if TYPE_CHECKING:
    from syncline.finding import Finding
    from syncline.stores.neo4j.copy import Neo4jCopy

__all__ = ["Neo4jConfig", "Neo4jStore"]

_STEP = 10_000


class Neo4jStore:
    """The contract of :class:`syncline.stores.Store` in a Neo4j database (5.7 and newer), or one that speaks its Bolt
    and Cypher (ArcadeDB).

    A table without a shape becomes nodes labelled with its name. Nodes and relationships get one more property,
    ``_syncline_version``. Everything else of Syncline's carries labels and types that begin with ``_Syncline``.
    """

    config_class = Neo4jConfig
    form = "graph"
    limits = Limits(max_rows=50_000, max_bytes=32 * 1024 * 1024, load_rows=20_000, load_bytes=16 * 1024 * 1024)

    def __init__(self, config: Neo4jConfig, name: str) -> None:
        self.config = config
        self.name = name
        self._database: Database | None = None
        self._source = ""
        self._left = Left(f"Neo4j at {config.uri}")

    @staticmethod
    def reader(config: Neo4jConfig) -> Neo4jCopy:
        """A read-only look at the database. Raises as :meth:`open`."""
        from syncline.stores.neo4j.copy import Neo4jCopy

        return Neo4jCopy(config)

    @staticmethod
    def statements(schema: TableSchema) -> list[str]:
        """What rows of the table become, to be shown to people. Raises ``Misconfigured`` as :meth:`migrate`."""
        return list(statements(schema))

    @staticmethod
    def check(config: Neo4jConfig) -> Iterator[Finding]:
        """What stands in the way of the database, for `syncline doctor`. Changes nothing."""
        from syncline.stores.neo4j.check import check

        return check(config)

    # ------------------------------------------------------------------------------------------ open and close

    def open(self, source: str) -> Cursor | None:
        """Connect, prepare what is ours, and return the durable cursor of ``source``.

        Raises:
            Misconfigured: address, database, user or rights are wrong, or the server is too old.
            Unavailable: nobody answers.
        """
        self.close()
        self._source = source
        database = Database(self.config)
        try:
            database.greet()
            prepare_database(database)
            found = database.run(f"MATCH (c:{CURSOR} {{source: $source}}) RETURN c.body", source=source)
        except BaseException:
            database.close()
            raise
        self._database = database
        self._left.opened(found[0][0] if found else None)
        return bookkept(found[0][0], Cursor) if found else None

    def close(self) -> None:
        """Close all connections. Idempotent."""
        database, self._database = self._database, None
        if database is not None:
            database.close()

    @property
    def _db(self) -> Database:
        if self._database is None:
            raise Misconfigured(f"Target {self.name} is not open.")
        return self._database

    # ------------------------------------------------------------------------------------------ migrate and apply

    def migrate(self, schema: TableSchema) -> TableSchema | None:
        """Constraints first, and what a former shape wrote goes; see the contract.

        Raises:
            Misconfigured: a name can't be used, another table or source has the label, or what is there can't be
                adopted.
        """
        return migrate_table(self._db, self._source, schema)

    def apply(self, work: Work) -> None:
        """Write the work and its cursor in one transaction, durable on return.

        Raises:
            Rejected: a value has no exact form, or Neo4j refuses it. Positions count the upserts, then the partials.
            Unavailable, Misconfigured: as the contract says.
        """
        prepared = [prepare(table) for table in work.tables]
        for table in prepared:
            if table.work.truncated is not None:
                sweep_large(self._db, table.layout, table.work.truncated)
        try:
            with self._db.transaction() as tx:
                self._write(tx, prepared, work.cursor)
        except Refused as error:
            raise self._blame(work, error) from error
        self._left.written(_body(work.cursor))

    def _write(self, tx: Transaction, prepared: Sequence[Prepared], cursor: Cursor) -> None:
        self._left.check(lock(tx, cursor, _body(cursor)))
        self._left.writing(_body(cursor))
        states = advance(
            tx,
            [p.schema for p in prepared],
            [max(p.span[1], p.work.truncated or 0) for p in prepared],
            [p.work.truncated or 0 for p in prepared],
        )
        writers = [TableWriter(tx, p, state) for p, state in zip(prepared, states, strict=True)]
        # Whatever a step of one table needs of another was written by an earlier step, in whatever order they come.
        for step in (
            TableWriter.look,
            TableWriter.sweep,
            TableWriter.write_nodes,
            TableWriter.write_relationships,
            TableWriter.drop_relationships,
            TableWriter.bury,
        ):
            for writer in writers:
                step(writer)

    def _blame(self, work: Work, error: Refused) -> SynclineError:
        """Neo4j refused values without saying whose: try each table's rows by halves, and roll everything back."""
        code = getattr(error.__cause__, "code", "")
        for table in work.tables:
            count = sum(0 if b is None else b.num_rows for b in (table.rows.upserts, table.rows.partials))
            rows = self._refused_of(table, list(range(count)), work.cursor)
            if rows:
                return Rejected(table.schema.qualified, rows, f"Neo4j does not take a value ({code})")
        if self._db.compatible:  # it has no locks: another writer was in between
            return Unavailable(f"Neo4j at {self.config.uri} met another writer ({code}).", remedy="It is tried again.")
        return Misconfigured(
            f"Neo4j refused changes of {', '.join(t.schema.qualified for t in work.tables)} ({code}), though it takes"
            " each of them alone.",
            remedy="Drop constraints of your own on their labels and types: the source keeps them.",
        )

    def _refused_of(self, table: TableWork, rows: list[int], cursor: Cursor) -> list[int]:
        if not rows or not self._refuses(_only(table, rows), cursor):
            return []
        if len(rows) == 1:
            return rows
        middle = len(rows) // 2
        return self._refused_of(table, rows[:middle], cursor) + self._refused_of(table, rows[middle:], cursor)

    def _refuses(self, table: TableWork, cursor: Cursor) -> bool:
        try:
            with self._db.transaction(keep=False) as tx:
                self._write(tx, [prepare(table)], cursor)
        except Refused:
            return True
        return False

    def forget(self, schema: TableSchema, keys: pa.RecordBatch, above: int) -> None:
        """Nodes or relationships, and tombstones, of these keys with a version above ``above`` lose it."""
        layout = layout_of(schema)
        with self._db.transaction() as tx:
            forget(tx, layout, [store(exact(keys.column(j), c)[0], c) for j, c in enumerate(schema.key)], above)

    # ------------------------------------------------------------------------------------------ read and purge

    def fetch(self, schema: TableSchema, keys: pa.RecordBatch) -> pa.Table:
        """The stored rows of these keys. A row without a version has version 0."""
        layout = layout_of(schema)
        columns = [store(exact(keys.column(j), c)[0], c) for j, c in enumerate(schema.key)]
        with self._db.transaction(keep=False) as tx:
            self._hold_up(tx)
            _, batch = read_keys(tx, layout, columns)
        return pa.Table.from_batches([batch], contract_schema(schema))

    def scan(self, schema: TableSchema) -> Iterator[pa.RecordBatch]:
        """All rows, streamed. Neo4j has no snapshots, so for one view of whole works this source's writer is held up
        until the iterator is exhausted or closed; ``reader`` does without."""
        with self._db.reading() as tx:
            self._hold_up(tx)
            yield from read_all(tx, layout_of(schema))

    def _hold_up(self, tx: Transaction) -> None:
        """Let nobody apply this source until the transaction ends, of which nothing is kept."""
        tx.write(f"MATCH (c:{CURSOR} {{source: $source}}) SET c.read = true", source=self._source)

    def purge(self, source: str, below: int) -> int:
        """Record the horizon, then forget tombstones below it, some thousands a transaction."""
        with self._db.transaction() as tx:
            names = [
                name
                for (name,) in tx.read(
                    f"MATCH (t:{TABLE} {{source: $source}})"
                    " SET t.horizon = CASE WHEN t.horizon < $below THEN $below ELSE t.horizon END RETURN t.name",
                    source=source,
                    below=below,
                )
            ]
        forgotten = self._forget(TOMBSTONE, names, below)
        self._forget(MOVED, names, below)
        more = True
        while more:
            with self._db.transaction() as tx:
                more = forget_orphans(tx, _STEP) == _STEP
        return forgotten

    def _forget(self, label: str, tables: list[str], below: int) -> int:
        forgotten = 0
        while True:
            with self._db.transaction() as tx:
                ((count,),) = tx.read(
                    f"MATCH (x:{label}) WHERE x.table IN $tables AND x.version < $below"
                    f" WITH x LIMIT {_STEP} DELETE x RETURN count(*)",
                    tables=tables,
                    below=below,
                )
            forgotten += int(count)
            if count < _STEP:
                return forgotten


def _body(cursor: Cursor) -> str:
    return msgspec.json.encode(cursor).decode()


def _only(table: TableWork, rows: Sequence[int]) -> TableWork:
    """These positions of the upserts, then the partials."""
    upserts = 0 if table.rows.upserts is None else table.rows.upserts.num_rows

    def take(batch: pa.RecordBatch | None, wanted: list[int]) -> pa.RecordBatch | None:
        return batch.take(pa.array(wanted, pa.int64())) if batch is not None and wanted else None

    first = take(table.rows.upserts, [r for r in rows if r < upserts])
    second = take(table.rows.partials, [r - upserts for r in rows if r >= upserts])
    return TableWork(table.schema, Folded(first, second), table.truncated)
