"""The Redis store: each work is one call of a script that compares versions and writes rows and cursor, or nothing."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pyarrow as pa

from syncline.bookkeeping import bookkept
from syncline.change import Cursor, TableSchema
from syncline.errors import Misconfigured, Unavailable
from syncline.finding import Finding
from syncline.stores import Limits, Work
from syncline.stores.redis.applying import Applier, identity
from syncline.stores.redis.check import check
from syncline.stores.redis.config import RedisConfig, shown
from syncline.stores.redis.copy import RedisCopy
from syncline.stores.redis.layout import DocumentWrite, HashWrite, Layout, layout_of
from syncline.stores.redis.packing import head_of, pack
from syncline.stores.redis.reading import Keyspace, as_rows, key_texts, read
from syncline.stores.redis.scan import rows_of
from syncline.stores.redis.server import Connection, syncs, unfit
from syncline.stores.redis.statements import commands
from syncline.stores.redis.tables import migrate_table, recorded
from syncline.stores.redis.writing import ids_of

__all__ = ["RedisStore"]

_FOR_EVER = -1  # as PTTL says it
_PAGE = 5_000


class RedisStore:
    """The contract of :class:`syncline.stores.Store` in one Redis or Valkey server.

    What a row becomes is its table's shape (:class:`syncline.shape.Keys`); without one it is a hash
    ``namespace.table:key``. Versions, tombstones, schemas and cursors are in keys of our own, below the prefix.
    """

    config_class = RedisConfig
    form = "keys"
    # The server does nothing else while the script runs, 10 to 30 us a row.
    limits = Limits(max_rows=20_000, max_bytes=16 * 1024 * 1024, load_rows=5_000, load_bytes=4 * 1024 * 1024)

    def __init__(self, config: RedisConfig, name: str) -> None:
        self.config = config
        self.name = name
        self._keys = Keyspace(config.prefix, config.both_ways)
        self._overruled = 0
        self._source = ""
        self._applier: Applier | None = None  # while open
        self._connection: Connection | None = None
        self._syncs = False
        self._readers: list[Connection] = []
        self._lock = threading.RLock()

    @staticmethod
    def reader(config: RedisConfig) -> RedisCopy:
        """A look at what the server holds, for verification. Raises as :class:`RedisCopy`."""
        return RedisCopy(config)

    @staticmethod
    def check(config: RedisConfig) -> Iterator[Finding]:
        """What `syncline doctor` should tell of the server. Raises nothing."""
        return check(config)

    @staticmethod
    def statements(schema: TableSchema) -> list[str]:
        """What a row of the table becomes, to be shown to people. Raises ``Misconfigured`` as ``migrate``."""
        return list(commands(schema, layout_of(schema, RedisConfig.model_fields["prefix"].default).writes))

    # ------------------------------------------------------------------------------------------ open and close

    def open(self, source: str) -> Cursor | None:
        """Connect, see that the server can keep what it is given, and return the durable cursor of ``source``.

        Raises:
            Misconfigured: a cluster, a replica, a server that may evict our own keys, or a newer format.
            Unavailable: the server is away.
        """
        self.close()
        with self._lock:
            self._source = source
            connection = self._connect()
            try:
                data = identity(connection, self._keys)
                body = connection.call("HGET", self._keys.cursors, source)
            except BaseException:
                connection.close()
                raise
            self._connection = connection
            self._applier = Applier(self.config, self._keys, source, data, (body or b"").decode())
        return bookkept(body, Cursor) if body else None

    def close(self) -> None:
        """Let go of the connections. Idempotent."""
        with self._lock:
            self._applier = None
            self._let_go()
            while self._readers:
                self._readers.pop().close()

    def _connect(self, *, again: bool = False) -> Connection:
        """A connection that writes, to a server that was looked at: it may be another one than before."""
        connection = Connection(self.config)
        try:
            facts = connection.facts()
            if again and facts.replica:  # a failover is under way; the url leads to the new primary soon
                raise Unavailable(f"Redis at {shown(self.config.url)} is a replica now.")
            for error in unfit(facts, self.config):
                raise error
            self._syncs = self.config.durability == "disk" and syncs(connection, facts)
        except BaseException:
            connection.close()
            raise
        return connection

    def _let_go(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    @contextmanager
    def _writing(self) -> Iterator[tuple[Connection, Applier]]:
        """The connection that writes; dropped on an error, for what was asked on it may still be under way."""
        with self._lock:
            if self._applier is None:
                raise Misconfigured(f"Target {self.name} is not open.")
            if self._connection is None:
                self._connection = self._connect(again=True)
            try:
                yield self._connection, self._applier
            except BaseException:
                self._let_go()
                raise

    @contextmanager
    def _reading(self) -> Iterator[Connection]:
        """A connection for reads in any thread."""
        if self._applier is None:
            raise Misconfigured(f"Target {self.name} is not open.")
        try:
            connection = self._readers.pop()
        except IndexError:
            connection = Connection(self.config)
        try:
            yield connection
        except BaseException:
            connection.close()
            raise
        if self._applier is None:  # closed meanwhile
            connection.close()
        else:
            self._readers.append(connection)

    # ------------------------------------------------------------------------------------------ migrate and apply

    def migrate(self, schema: TableSchema) -> TableSchema | None:
        """Make the table's keys fit the schema; see the contract.

        Raises:
            Misconfigured: a template is wrong, or could make keys of another table; another source fills the table.
        """
        layout = layout_of(schema, self.config.prefix)
        with self._writing() as (connection, applier):
            former = migrate_table(connection, self._keys, self._source, layout, applier.call, adopt=self.config.adopt)
            self._sync(connection)
        return former

    def apply(self, work: Work) -> None:
        """Write the work and its cursor in one call of the script, durable as configured on return.

        Raises:
            Rejected: a value has no exact form, or a key of another type is in the way. Positions count the upserts,
                then the partials.
            Gap: the server does not hold what this store left there: it was emptied, or goes on from an older copy.
            Unavailable, Misconfigured: as the contract says.
        """
        with self._writing() as (connection, applier):
            before = applier.overruled
            applier.apply(connection, work)
            self._overruled += applier.overruled - before
            self._sync(connection)
            applier.settled(work.cursor)

    @property
    def overruled(self) -> int:
        """Edits of applications here that changes of the source wrote over."""
        return self._overruled

    def _sync(self, connection: Connection) -> None:
        """Guarantee 3: what is told to be durable is in the append-only file, where there is one."""
        if self._syncs and not connection.synced():
            raise Unavailable(
                f"Redis at {shown(self.config.url)} did not sync its append-only file in time.",
                remedy="Its disk is slow or full: see its log.",
            )

    def forget(self, schema: TableSchema, keys: pa.RecordBatch, above: int) -> None:
        """Rows and tombstones of these keys with a version above ``above`` lose it, a key at a time; and keys of a row
        that live otherwise than they should (:func:`syncline.stores.redis.reading.read`) do no more."""
        layout = layout_of(schema, self.config.prefix)
        ids = ids_of(layout, keys).to_pylist()
        rows, dead = self._keys.rows(schema.qualified), self._keys.dead(schema.qualified)
        table, noted = self._keys.table(schema.qualified), ("truncated", "horizon")
        with self._writing() as (connection, _):
            for name, version in zip(noted, connection.call("HMGET", table, *noted), strict=True):
                if int(version or 0) > above:
                    connection.call("HSET", table, name, 0)
            for begin in range(0, len(ids), _PAGE):
                page = ids[begin : begin + _PAGE]
                for found, entry in zip(page, connection.call("HMGET", rows, *page), strict=True):
                    version, blank, tail = (entry or b"0").partition(b" ")
                    if int(version) > above:
                        connection.call("HSET", rows, found, b"0" + blank + tail)
                for found, version in zip(page, connection.call("HMGET", dead, *page), strict=True):
                    if int(version or 0) > above:
                        connection.call("HDEL", dead, found)
                self._let_live(connection, layout, pa.array(page, pa.binary()))
            self._sync(connection)

    def _let_live(self, connection: Connection, layout: Layout, ids: pa.Array) -> None:
        odd = ids.filter(pa.array(read(connection, self._keys, layout, ids, self.config.mode).odd))
        texts = key_texts(layout, odd)
        for write in layout.writes:
            if isinstance(write, HashWrite | DocumentWrite):
                for key in write.key.render(texts, len(odd)).to_pylist():
                    if write.ttl_s and connection.call("PTTL", key) == _FOR_EVER:
                        connection.call("EXPIRE", key, write.ttl_s)
                    elif not write.ttl_s and self.config.mode == "store":
                        connection.call("PERSIST", key)

    # ------------------------------------------------------------------------------------------ read and purge

    def fetch(self, schema: TableSchema, keys: pa.RecordBatch) -> pa.Table:
        """The rows of these keys whose data is all there, up to 5,000 in one moment. Version 0: adopted."""
        layout = layout_of(schema, self.config.prefix)
        ids = ids_of(layout, keys)
        with self._reading() as connection:
            found = [
                as_rows(layout, read(connection, self._keys, layout, ids.slice(begin, _PAGE)))
                for begin in range(0, max(1, len(ids)), _PAGE)
            ]
        return pa.Table.from_batches(found)

    def scan(self, schema: TableSchema) -> Iterator[pa.RecordBatch]:
        """All rows whose data is all there. A table of up to 10,000 rows is read in one moment; a larger one page by
        page, each page in one moment: docs/stores/redis.md says what that means."""
        with self._reading() as connection:
            yield from rows_of(connection, self._keys, layout_of(schema, self.config.prefix))

    def purge(self, source: str, below: int) -> int:
        """Forget tombstones below ``below`` of the tables of ``source``; the horizon is recorded first."""
        forgotten = 0
        with self._writing() as (connection, _):
            for name in sorted(connection.call("SMEMBERS", self._keys.tables)):
                table = recorded(connection, self._keys, name.decode())
                if table is None or table.source != source:
                    continue
                if table.horizon < below:
                    connection.call("HSET", self._keys.table(table.name), "horizon", below)
                forgotten += _forget(connection, self._keys.dead(table.name), below)
                _forget(connection, self._keys.moved(table.name), below)
            self._sync(connection)
        return forgotten


def _forget(connection: Connection, key: str, below: int) -> int:
    """Remove versions below ``below`` from a hash, unless they changed since they were seen."""
    forgotten, place = 0, b"0"
    while True:
        place, found = connection.call("HSCAN", key, place, "COUNT", 1_000)
        old = [(f, v) for f, v in zip(found[::2], found[1::2], strict=True) if int(v) < below]
        if old:
            seen = [pack(pa.array(list(side), pa.binary())).cut(0, len(old)) for side in zip(*old, strict=True)]
            forgotten += connection.run("forget", key.encode(), head_of(2) + b"".join(seen))
        if place == b"0":
            return forgotten
