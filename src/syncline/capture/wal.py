"""Capture from PostgreSQL's WAL: logical replication with pgoutput, decoded into columnar batches.

PostgreSQL manual, ch. "Logical Streaming Replication Protocol". Two threads of its own: one receives (``receive``), one
keeps a heartbeat; decoding happens in the thread that iterates ``entries``.
"""

from __future__ import annotations

import select
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import psycopg

from syncline.capture import Again
from syncline.capture.assemble import Chunk, Group, Truncation
from syncline.capture.messages import Relation, Run
from syncline.capture.pgoutput import decode
from syncline.capture.receive import Mailbox, Receiver
from syncline.capture.relation import relation_schema
from syncline.capture.slot import check_slot, read_slot
from syncline.capture.source import SourceConfig, connect, connect_replication, describe, translated
from syncline.capture.tables import TableInfo
from syncline.change import MAX_VERSION, Batch, Entry, Item, Marker, Part, TableSchema, Truncate
from syncline.errors import Damaged, Gap, Misconfigured, SynclineError, Unavailable
from syncline.pgvalues.pgtypes import binary_exact

__all__ = ["Heartbeat", "TextNeeded", "WalCapture", "emit_progress"]

# Logical messages with this prefix carry nothing: their commit moves every cursor (correctness rule 12).
_PREFIX = "syncline"
_MAILBOX_BYTES = 16 * 1024 * 1024


class TextNeeded(Again):
    """The stream in binary holds what is decoded from text only. The catalogue of now may not show it any more, so
    whoever starts the stream again has to ask for text (``source.binary`` false)."""


class WalCapture:
    """A :class:`~syncline.capture.Capture` over one replication slot.

    ``base`` and ``incarnation`` come from the log (correctness rule 1): a change's version is ``base`` plus the LSN of
    its transaction's commit record. ``tables`` are the monitored tables as the catalogue shows them now; what else the
    publication may hold is passed over. ``lost`` hears of a table whose changes can't be captured any more; the stream
    goes on without it (Guarantee 8).
    """

    def __init__(
        self,
        config: SourceConfig,
        tables: list[TableInfo],
        *,
        base: int,
        incarnation: int,
        lost: Callable[[str, SynclineError], None],
    ) -> None:
        self._config = config
        self._lost = lost
        self._base = base
        self._incarnation = incarnation
        self._wanted = {(t.namespace, t.name): t.oid for t in tables}
        self._binary = _use_binary(config, tables)
        self._schemas: dict[Relation, TableSchema] = {}
        self._catalogue: psycopg.Connection[Any] | None = None
        self._mailbox = Mailbox(_MAILBOX_BYTES)
        self._receiver: Receiver | None = None
        self._heartbeat: Heartbeat | None = None
        self._closed = False
        self._parts = 0
        self._xid = 0

    @property
    def binary(self) -> bool:
        """Whether the stream is in pgoutput's binary format."""
        return self._binary

    @property
    def words(self) -> str:
        return f"streaming from slot {self._config.slot}, {'binary' if self._binary else 'text'} format"

    def widen(self, tables: list[TableInfo]) -> None:
        """Take in tables that joined the publication since. Any thread."""
        self._wanted = {(t.namespace, t.name): t.oid for t in tables}
        self._schemas = {}  # under FULL the key is the catalogue's, and may be another one now

    def entries(self, after: int) -> Iterator[Entry]:
        """See :class:`~syncline.capture.Capture`."""
        config, dsn = self._config, self._config.plain
        self._catalogue = connect(dsn, timeout_s=config.connect_timeout_s)
        with translated(dsn):
            self._xid = _newest_xid(self._catalogue)
            status_s = _status_interval(self._catalogue)
            # Late, for it may have been moved while tables were loaded: the server would skip silently to its place.
            slot = read_slot(self._catalogue, config.slot)
            check_slot(slot, config.slot, self._catalogue.info.dbname, after)
        connection = connect_replication(config.replication, timeout_s=config.connect_timeout_s)
        self._receiver = Receiver(config, connection, self._mailbox, status_s)
        self._heartbeat = Heartbeat(config, self._receiver)
        options = {"proto_version": "1", "publication_names": _quoted(config.publication), "messages": "true"}
        if self._binary:
            options["binary"] = "true"
        with translated(config.replication):
            self._receiver.start(config.slot, after, options)
        self._heartbeat.start()
        while chunks := self._mailbox.take(config.batch_bytes):
            yield from self._entries(chunks)
        if not self._closed:
            raise Unavailable(f"The stream from {describe(config.replication)} ended.")

    def confirm(self, place: int) -> None:
        """See :class:`~syncline.capture.Capture`."""
        if self._receiver:
            self._receiver.confirm(place)

    def close(self) -> None:
        """See :class:`~syncline.capture.Capture`."""
        self._closed = True
        if self._heartbeat:
            self._heartbeat.close()
        self._mailbox.close()
        if self._receiver:
            self._receiver.close()
        if self._catalogue:
            self._catalogue.close()

    # --------------------------------------------------------------------------------------------------- chunk -> entry

    def _entries(self, chunks: list[Chunk]) -> Iterator[Entry]:
        """One entry, or parts of one where a table changes its shape: no entry holds two shapes of a table."""
        pieces = _one_shape_each(_joined(chunks))
        last = chunks[-1]
        through = self._base + last.place if last.place else 0
        if through >= MAX_VERSION:
            raise Misconfigured(
                f"Versions reached 2**53 at LSN {last.place:X}.", remedy="Start over with a new source incarnation."
            )
        for number, piece in enumerate(pieces):
            final = number == len(pieces) - 1
            in_parts = last.part is not None or len(pieces) > 1
            self._parts = self._parts + 1 if in_parts else 0
            yield Entry(
                tuple(self._items(piece)) or (Marker("progress"),),
                place=last.place if final else 0,
                through=through if final else 0,
                incarnation=self._incarnation,
                commit_time=last.commit_time if final else 0,
                part=Part(self._parts - 1, last.last and final) if in_parts else None,
                origin=last.origin,
            )
            if last.last and final:
                self._parts = 0

    def _items(self, piece: list[Group | Truncation]) -> Iterator[Item]:
        for item in piece:
            relations = (item.relation,) if isinstance(item, Group) else item.relations
            for relation in relations:
                if (relation.namespace, relation.name) not in self._wanted:
                    # One of ours that has another name for a while: it has to be read again once it is back.
                    yield from (Marker("left", ".".join(n)) for n, oid in self._wanted.items() if oid == relation.oid)
                    continue
                if self._replaced(relation):
                    yield Marker("reading", f"{relation.namespace}.{relation.name}")
                try:
                    if isinstance(item, Group):
                        yield self._batch(item)
                    else:
                        yield Truncate(self._schema(relation), self._base + item.lsn)
                except Damaged:
                    raise
                except (Gap, Misconfigured) as error:
                    table = f"{relation.namespace}.{relation.name}"
                    self._lost(table, error)
                    yield Marker("gap", table)

    def _replaced(self, relation: Relation) -> bool:
        """Whether another table has this name than before. Renamed there and back, it shows in the stream alone; the
        marker has the table read again."""
        name = (relation.namespace, relation.name)
        wanted = self._wanted
        if wanted.get(name, relation.oid) == relation.oid:
            return False
        wanted[name] = relation.oid
        return True

    def _batch(self, group: Group) -> Batch:
        return decode(
            self._schema(group.relation),
            group.relation,
            group.payloads,
            self._versioned(group.runs),
            binary=self._binary,
        )

    def _versioned(self, runs: list[Run]) -> list[Run]:
        """Runs with versions instead of LSNs and 64-bit instead of 32-bit transaction ids."""
        widened = []
        for run in runs:
            distance = (run.xid - self._xid + 2**31) % 2**32 - 2**31
            self._xid = max(self._xid + distance, 0)
            widened.append(Run(self._base + run.version, run.commit_time, self._xid, run.first_ordinal, run.count))
        return widened

    def _schema(self, relation: Relation) -> TableSchema:
        schema = self._schemas.get(relation)
        if schema is None:
            assert self._catalogue is not None
            if self._binary:
                self._require_exact(relation)
            with translated(self._config.plain):
                schema = relation_schema(self._catalogue, relation)
            self._schemas[relation] = schema
        return schema

    def _require_exact(self, relation: Relation) -> None:
        """A column that came while streaming in binary, or that the stream still has, may need text."""
        for column in relation.columns:
            if not binary_exact(column.type_oid, column.typmod):
                raise TextNeeded(
                    f"Column {column.name} of table {relation.namespace}.{relation.name} is decoded from text only; "
                    "the stream starts again in text format."
                )


def _one_shape_each(items: list[Group | Truncation]) -> list[list[Group | Truncation]]:
    """Cut the items where a relation comes again in another shape."""
    pieces: list[list[Group | Truncation]] = [[]]
    shapes: dict[int, Relation] = {}
    for item in items:
        relations = (item.relation,) if isinstance(item, Group) else item.relations
        if any(shapes.get(r.oid, r) != r for r in relations):
            pieces.append([])
            shapes = {}
        shapes.update((r.oid, r) for r in relations)
        pieces[-1].append(item)
    return pieces


def _newest_xid(connection: psycopg.Connection[Any]) -> int:
    """A 64-bit transaction id near those in the stream: BEGIN carries only the low half."""
    row = connection.execute("select pg_snapshot_xmax(pg_current_snapshot())::text::int8").fetchone()
    assert row is not None
    return int(row[0])


def _joined(chunks: list[Chunk]) -> list[Group | Truncation]:
    """The items of several chunks, groups of one relation made one where no TRUNCATE of it stands between."""
    if len(chunks) == 1:
        return chunks[0].items
    items: list[Group | Truncation] = []
    groups: dict[int, Group] = {}
    for item in (i for c in chunks for i in c.items):
        if isinstance(item, Truncation):
            for relation in item.relations:
                groups.pop(relation.oid, None)
            items.append(item)
            continue
        group = groups.get(item.relation.oid)
        if group is not None and group.relation == item.relation:
            group.payloads += item.payloads
            group.runs += item.runs
        else:
            groups[item.relation.oid] = item
            items.append(item)
    return items


def _use_binary(config: SourceConfig, tables: list[TableInfo]) -> bool:
    """Binary pgoutput only where the layout of every published column is decoded exactly."""
    inexact = [
        f"{t.namespace}.{t.name}.{c.name} ({c.type_name})"
        for t in tables
        for c in t.columns
        if not binary_exact(c.type_oid, c.typmod)
    ]
    if config.binary and inexact:
        raise Misconfigured(
            f"source.binary is on, but these columns are decoded from text only: {', '.join(inexact[:5])}.",
            remedy="Set source.binary to null or false.",
        )
    return not inexact if config.binary is None else config.binary


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _status_interval(connection: psycopg.Connection[Any]) -> float:
    """Seconds between status messages: a third of the server's patience, at most 10."""
    row = connection.execute("select setting::int from pg_settings where name = 'wal_sender_timeout'").fetchone()
    patience_ms = row[0] if row else 60_000
    return min(10.0, patience_ms / 3000) if patience_ms else 10.0


class Heartbeat:
    """Moves an idle source on, and hangs up when the server says good-bye.

    A server that shuts down ends ordinary connections first and then waits for its walsenders until they have confirmed
    everything; the receiver never confirms its last byte (see ``Receiver``), so it must leave by itself.
    """

    def __init__(self, config: SourceConfig, receiver: Receiver) -> None:
        self._config = config
        self._receiver = receiver
        self._wake_read, self._wake_write = socket.socketpair()
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)
        self._lock = threading.Lock()
        self._closed = False

    def start(self) -> None:
        """Begin, unless it was closed before."""
        with self._lock:
            if not self._closed:
                self._thread.start()

    def close(self) -> None:
        """End the thread. Any thread."""
        with self._lock:
            self._closed = True
            self._wake_write.close()
            began = self._thread.ident is not None
        if began:
            self._thread.join(5)
        else:
            self._wake_read.close()  # the stream could not be opened, or was not wanted any more

    def _run(self) -> None:
        dsn = self._config.plain
        try:
            timeout_s = self._config.connect_timeout_s
            with translated(dsn), connect(dsn, timeout_s=timeout_s, application="syncline-heartbeat") as connection:
                connection.execute("set statement_timeout = '30s'")
                emit_progress(connection)  # at once: until a message came, psycopg2 confirms any keepalive (Receiver)
                while not self._wait(connection):
                    emit_progress(connection)
        except SynclineError as error:
            self._receiver.interrupt(error)
        finally:
            self._wake_read.close()

    def _wait(self, connection: psycopg.Connection[Any]) -> bool:
        """Sleep until the next beat; True when closing. A connection that becomes readable is saying good-bye: the next
        statement on it fails and names the reason."""
        wake = self._wake_read.fileno()
        poll = select.poll()
        poll.register(wake, select.POLLIN)
        poll.register(connection.fileno(), select.POLLIN)
        return any(fd == wake for fd, _ in poll.poll(self._config.heartbeat_s * 1000))


def emit_progress(connection: psycopg.Connection[Any]) -> int:
    """Write an empty transaction that every capture sees; returns an LSN that its place will pass."""
    row = connection.execute(
        "select (pg_logical_emit_message(true, %s, 'progress') - '0/0'::pg_lsn)::int8", [_PREFIX]
    ).fetchone()
    assert row is not None
    return int(row[0])
