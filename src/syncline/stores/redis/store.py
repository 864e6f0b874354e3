"""The Redis store: each work is one call of a script that compares versions and writes rows and cursor, or nothing."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa

from syncline.change import Cursor, TableSchema
from syncline.errors import Gap, Misconfigured, SynclineError, Unavailable
from syncline.stores import Limits, TableWork, Work
from syncline.stores.redis.config import RedisConfig, shown
from syncline.stores.redis.copy import RedisCopy
from syncline.stores.redis.layout import Layout, layout_of
from syncline.stores.redis.packing import head_of, pack
from syncline.stores.redis.reading import Keyspace, as_rows, key_texts, read
from syncline.stores.redis.scan import companion, rows_of
from syncline.stores.redis.server import Connection, Facts
from syncline.stores.redis.tables import migrate_table, recorded
from syncline.stores.redis.writing import (
    Rows,
    TablePart,
    add_patches,
    add_rows,
    completed,
    ids_of,
    moves_of,
    part_of,
    partial_origins,
    refuse,
    removals,
)

__all__ = ["FORMAT", "RedisStore", "refuse_server"]

FORMAT = 1
_ATTEMPTS = 5
# Above this a truncation runs in batches before the work (correctness rule 19), so that the server never stops for long.
_ATOMIC_ROWS = 10_000
_BATCH = 2_000
_FOREIGN = "a key of another type is in the way at the target"


class RedisStore:
    """The contract of :class:`syncline.stores.Store` in one Redis or Valkey server.

    What a row becomes is its table's shape (:class:`syncline.shape.Keys`); without one it is a hash
    ``namespace.table:key``. Versions, tombstones, schemas and cursors are in keys of our own, below the prefix.
    """

    config_class = RedisConfig
    # The server does nothing else while the script runs: about 10 to 20 us a row.
    limits = Limits(max_rows=20_000, max_bytes=16 * 1024 * 1024, load_rows=5_000, load_bytes=4 * 1024 * 1024)

    def __init__(self, config: RedisConfig, name: str) -> None:
        self.config = config
        self.name = name
        self._keys = Keyspace(config.prefix)
        self._source = ""
        self._id = ""
        self._expected: tuple[str, ...] = ()
        self._syncs = False
        self._open = False
        self._connection: Connection | None = None
        self._readers: list[Connection] = []
        self._lock = threading.RLock()

    @staticmethod
    def reader(config: RedisConfig) -> RedisCopy:
        """A look at what the server holds, for verification. Raises as :class:`RedisCopy`."""
        return RedisCopy(config)

    # ------------------------------------------------------------------------------------------ open and close

    def open(self, source: str) -> Cursor | None:
        """Connect, see that the server can hold what it is given, and return the durable cursor of ``source``.

        Raises:
            Misconfigured: a cluster, a replica, a server that may evict our own keys, or a newer format.
            Unavailable: the server is away.
        """
        self.close()
        with self._lock:
            self._source = source
            connection = self._connect()
            try:
                self._id = _identity(connection, self._keys)
                body = connection.call("HGET", self._keys.cursors, source)
            except BaseException:
                connection.close()
                raise
            self._connection, self._open = connection, True
            self._expected = ("" if body is None else body.decode(),)
        return msgspec.json.decode(body, type=Cursor) if body else None

    def _connect(self) -> Connection:
        connection = Connection(self.config)
        try:
            facts = connection.facts()
            refuse_server(facts, self.config)
            fsync = connection.setting("appendfsync") if facts.aof else None
            self._syncs = self.config.durability == "disk" and facts.aof and fsync != "no" and facts.commands >= (7, 2)
        except BaseException:
            connection.close()
            raise
        return connection

    def close(self) -> None:
        """Let go of the connections. Idempotent."""
        with self._lock:
            self._open = False
            self._let_go()
            while self._readers:
                self._readers.pop().close()

    def _let_go(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    @contextmanager
    def _writing(self) -> Iterator[Connection]:
        """The connection that writes; dropped on an error, for what was asked for on it may still be under way."""
        with self._lock:
            if not self._open:
                raise Misconfigured(f"Target {self.name} is not open.")
            if self._connection is None:
                self._connection = self._connect()
            try:
                yield self._connection
            except BaseException:
                self._let_go()
                raise

    @contextmanager
    def _reading(self) -> Iterator[Connection]:
        """A connection for reads of any thread."""
        if not self._open:
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
        self._readers.append(connection)

    def _layout(self, schema: TableSchema) -> Layout:
        return layout_of(schema, self.config.prefix)

    # ------------------------------------------------------------------------------------------ migrate and apply

    def migrate(self, schema: TableSchema) -> TableSchema | None:
        """Make the table's keys fit the schema; see the contract.

        Raises:
            Misconfigured: a template is wrong, or could make keys of another table; another source fills the table.
        """
        layout = self._layout(schema)
        with self._writing() as connection:
            former = migrate_table(connection, self._keys, self._source, layout, self._call, adopt=self.config.adopt)
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
        parts = [(part_of(self._layout(t.schema), t), t) for t in work.tables]
        with self._writing() as connection:
            for (part, _, _), table in parts:
                self._sweep_first(connection, part, table)
            cursor = msgspec.json.encode(work.cursor).decode()
            for _ in range(_ATTEMPTS):
                if self._attempt(connection, parts, cursor):
                    self._sync(connection)
                    self._expected = (cursor,)
                    return
        raise Unavailable(f"Somebody else writes to Syncline's keys in Redis at {shown(self.config.url)}.")

    def _attempt(
        self,
        connection: Connection,
        parts: Sequence[tuple[tuple[TablePart, Rows | None, Rows | None], TableWork]],
        cursor: str,
    ) -> bool:
        """One try; False if what was read for it has changed meanwhile. Whatever happens, the cursor may be written."""
        watched = False
        ready = []
        for (part, upserts, partials), table in parts:
            fresh = TablePart(part.layout, list(part.chunks), part.lowest, part.greatest, part.truncate)
            if upserts is not None:
                add_rows(fresh, upserts)
            origins = None
            if partials is not None:
                origins = partial_origins(part.layout, partials, truncated=table.truncated is not None)
                if origins is None:
                    add_patches(fresh, partials)
            if origins is not None or table.truncated is not None:
                name = part.layout.schema.qualified
                connection.call("WATCH", self._keys.rows(name), self._keys.moved(name))
                watched = True
            if partials is not None and origins is not None:
                self._complete(connection, fresh, partials, origins)
            if table.truncated is not None:
                self._remove(connection, fresh)
            ready.append(fresh)
        self._expected = tuple(dict.fromkeys((*self._expected, cursor)))
        return self._call(connection, ready, cursor, watched=watched)

    def _complete(self, connection: Connection, part: TablePart, partials: Rows, origins: pa.Array) -> None:
        layout = part.layout
        moves = moves_of(layout, partials).to_pylist()
        name = self._keys.moved(layout.schema.qualified)
        made = [m is not None for m in connection.call("HMGET", name, *moves)]
        rows, moved = completed(layout, partials, read(connection, self._keys, layout, origins), made)
        if len(rows):
            add_rows(part, rows, moved)

    def _remove(self, connection: Connection, part: TablePart) -> None:
        """What the truncation removes, of a companion that is small (or of what the batches before left of it)."""
        for ids, entries in companion(connection, self._keys, part.layout.schema.qualified, _BATCH):
            _add_removals(part, ids, entries)

    def _sweep_first(self, connection: Connection, part: TablePart, table: TableWork) -> None:
        """A large truncation in batches. Rows that this work completes are left for its own call."""
        name = part.layout.schema.qualified
        if table.truncated is None or connection.call("HLEN", self._keys.rows(name)) <= _ATOMIC_ROWS:
            return
        spared = set()
        if table.rows.partials is not None:
            keys = pa.RecordBatch.from_arrays(
                table.rows.partials.column(len(table.schema.columns) + 2).flatten(), [c.name for c in table.schema.key]
            )
            spared = set(ids_of(part.layout, keys).to_pylist())
        for ids, entries in companion(connection, self._keys, name, _BATCH):
            left = [(i, e) for i, e in zip(ids, entries, strict=True) if i not in spared]
            batch = TablePart(part.layout, truncate=part.truncate)
            _add_removals(batch, [i for i, _ in left], [e for _, e in left])
            if batch.chunks:
                self._call(connection, [batch], None)

    def _call(
        self, connection: Connection, parts: Sequence[TablePart], cursor: str | None, *, watched: bool = False
    ) -> bool:
        """Call the script; False if a watched key was changed meanwhile, and nothing was done."""
        chunks = [(number, chunk) for number, part in enumerate(parts, 1) for chunk in part.chunks]
        # Removals first: what a truncation takes away, the rows behind it may write again.
        chunks.sort(key=lambda c: c[1].kind != "remove")
        head: dict[str, Any] = {
            "store": self._keys.store,
            "cursors": self._keys.cursors,
            "id": self._id,
            "source": self._source,
            "expected": self._expected,
            "tables": [part.head(self._keys) for part in parts],
            "chunks": [{"table": n, "kind": c.kind, "moves": c.moves} for n, c in chunks],
        }
        if cursor is not None:
            head["cursor"] = cursor
        arguments = (msgspec.msgpack.encode(head), *(c.data for _, c in chunks))
        call = connection.run_unless_changed if watched else connection.run
        answer = call("apply", *arguments)
        if answer is None:
            return False
        verdict, detail = answer[0].decode(), answer[1]
        if verdict == "refused":
            raise_refused(parts, chunks, detail)
        if verdict != "done":
            raise self._failed(verdict, detail)
        return True

    def _failed(self, verdict: str, detail: Any) -> SynclineError:
        server = shown(self.config.url)
        if verdict == "unprepared":
            name = detail.decode(errors="replace")
            return Misconfigured(f"Table {name} is not prepared for this schema.", remedy="Migrate it first.")
        if verdict == "expired":
            return Unavailable(
                f"Rows of table {detail.decode(errors='replace')} lost their keys in Redis while they were written.",
                remedy="They are read again at the source.",
            )
        if verdict == "moved" and detail and self._is_ahead(detail):
            return Misconfigured(
                f"Another engine applies source {self._source} to Redis at {server}.",
                remedy="Stop one of them, or give one another prefix.",
                code="SL-REDIS-SHARED",
            )
        return Gap(
            f"Redis at {server} does not hold what this target left there: it was emptied, restarted without its data, or"
            " goes on from an older copy.",
            remedy="`on_gap: resync` reads the tables again; so does `syncline resync`. See docs/stores/redis.md.",
            code="SL-REDIS-LOST",
        )

    def _is_ahead(self, found: bytes) -> bool:
        """Whether the cursor that is there is one that we have not reached yet."""
        last = self._expected[-1]
        there = msgspec.json.decode(found, type=Cursor)
        ours = msgspec.json.decode(last, type=Cursor) if last else None
        return ours is None or (there.position.log == ours.position.log and there.position.n > ours.position.n)

    def _sync(self, connection: Connection) -> None:
        """Guarantee 3: what is told to be durable is in the append-only file, where there is one."""
        if self._syncs and not connection.synced():
            raise Unavailable(
                f"Redis at {shown(self.config.url)} did not sync its append-only file in time.",
                remedy="Its disk is slow or full: see its log.",
            )

    # ------------------------------------------------------------------------------------------ read and purge

    def fetch(self, schema: TableSchema, keys: pa.RecordBatch) -> pa.Table:
        """The stored rows of these keys, whose data is all there; up to 5,000 in one moment. Version 0: adopted."""
        layout = self._layout(schema)
        ids = ids_of(layout, keys)
        with self._reading() as connection:
            found = [
                as_rows(layout, read(connection, self._keys, layout, ids.slice(begin, 5_000)))
                for begin in range(0, max(1, len(ids)), 5_000)
            ]
        return pa.Table.from_batches(found)

    def scan(self, schema: TableSchema) -> Iterator[pa.RecordBatch]:
        """All rows whose data is all there. A table of up to 10,000 rows is read in one moment; a larger one page by
        page, each page in one moment: docs/stores/redis.md says what that means."""
        with self._reading() as connection:
            yield from rows_of(connection, self._keys, self._layout(schema))

    def purge(self, source: str, below: int) -> int:
        """Forget tombstones below ``below`` of the tables of ``source``; the horizon is recorded first."""
        forgotten = 0
        with self._writing() as connection:
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


def _add_removals(part: TablePart, ids: Sequence[bytes], entries: Sequence[bytes]) -> None:
    versions = np.fromiter((int(e.partition(b" ")[0]) for e in entries), np.int64, len(entries))
    chosen = np.flatnonzero(versions <= part.truncate)
    if len(chosen):
        gone = pa.array([ids[i] for i in chosen], pa.binary())
        removals(part, gone, pa.array(versions[chosen]), key_texts(part.layout, gone))


def raise_refused(
    parts: Sequence[TablePart], chunks: Sequence[tuple[int, Any]], detail: Sequence[Sequence[int]]
) -> None:
    """Raise ``Rejected`` for the first table with rows that the script refused."""
    table = min(chunks[number - 1][0] for number, _, _ in detail)
    rows = {int(chunks[number - 1][1].rows[row - 1]) for number, row, _ in detail if chunks[number - 1][0] == table}
    refuse(parts[table - 1].layout.schema, {_FOREIGN: sorted(rows)})


def _forget(connection: Connection, key: str, below: int) -> int:
    forgotten, place = 0, b"0"
    while True:
        place, found = connection.call("HSCAN", key, place, "COUNT", 1_000)
        old = [(f, v) for f, v in zip(found[::2], found[1::2], strict=True) if int(v) < below]
        if old:
            fields, values = zip(*old, strict=True)
            seen = [pack(pa.array(list(side), pa.binary())).cut(0, len(old)) for side in (fields, values)]
            forgotten += connection.run("forget", key.encode(), head_of(2) + b"".join(seen))
        if place == b"0":
            return forgotten


def _identity(connection: Connection, keys: Keyspace) -> str:
    """The id of this data, made by the first who opens it.

    Raises:
        Misconfigured: a newer Syncline wrote it.
    """
    connection.call("HSETNX", keys.store, "id", uuid.uuid4().hex)
    connection.call("HSETNX", keys.store, "format", FORMAT)
    found, written = connection.call("HMGET", keys.store, "id", "format")
    if int(written) > FORMAT:
        raise Misconfigured(
            f"The keys below {keys.prefix}: were written by a newer Syncline (format {int(written)}, this one knows"
            f" {FORMAT}).",
            remedy="Upgrade Syncline.",
        )
    return found.decode()


def refuse_server(facts: Facts, config: RedisConfig) -> None:
    """Raise ``Misconfigured`` for a server that can't keep what it is given."""
    server = shown(config.url)
    if facts.clustered:
        raise Misconfigured(
            f"Redis at {server} is a cluster, where no script reaches all keys of a work.",
            remedy="Use a server without cluster mode (with replicas, if you like).",
            code="SL-REDIS-CLUSTER",
        )
    if facts.replica:
        raise Misconfigured(
            f"Redis at {server} is a replica, which takes no writes.",
            remedy="Point the target's url at the primary.",
            code="SL-REDIS-REPLICA",
        )
    if facts.evicts_anything:
        raise Misconfigured(
            f"Redis at {server} evicts any key when its memory is full (maxmemory-policy {facts.eviction}), the cursor"
            " among them.",
            remedy="Set maxmemory-policy to volatile-lru (or another volatile one) and give the mapping a ttl, or to"
            " noeviction.",
            code="SL-REDIS-EVICTION",
        )
    if facts.commands < (6, 2):
        raise Misconfigured(
            f"{facts.kind} {facts.version} at {server} is older than Redis 6.2.", remedy="Use a newer server."
        )
