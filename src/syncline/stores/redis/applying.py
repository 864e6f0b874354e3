"""Calling the script that applies a work, and what its verdicts mean."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa

from syncline.bookkeeping import bookkept
from syncline.change import Cursor
from syncline.errors import Gap, Misconfigured, SynclineError, Unavailable
from syncline.stores import TableWork, Work
from syncline.stores.redis.config import RedisConfig, shown
from syncline.stores.redis.layout import layout_of
from syncline.stores.redis.reading import Keyspace, key_texts, read
from syncline.stores.redis.scan import companion
from syncline.stores.redis.server import Connection
from syncline.stores.redis.writing import (
    Chunk,
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

__all__ = ["FORMAT", "Applier", "identity"]

FORMAT = 1
_ATTEMPTS = 5
# A truncation of more rows runs in batches before its work (correctness rule 19): the server never stops for long.
_ATOMIC_ROWS = 10_000
_BATCH = 2_000
_FOREIGN = "a key of another type is in the way at the target"


def identity(connection: Connection, keys: Keyspace) -> str:
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


@dataclass(frozen=True, slots=True)
class _Ready:
    """One table's part of a work, encoded once; what it rests on is read for each attempt."""

    part: TablePart
    upserts: Rows | None
    partials: Rows | None
    truncates: bool


class Applier:
    """Applies works of one source. It remembers what it left in the server: its id, and the cursors that may be there
    (two, once an answer was lost). The script writes only where it finds that, so data that is lost or goes back to an
    older state is noticed before anything is built on it. Used by one thread."""

    def __init__(self, config: RedisConfig, keys: Keyspace, source: str, identity: str, cursor: str) -> None:
        self._config = config
        self._keys = keys
        self._source = source
        self._id = identity
        self._echo = False
        self.overruled = 0
        self._expected: tuple[str, ...] = (cursor,)

    def apply(self, connection: Connection, work: Work) -> None:
        """Write the work and its cursor in one call of the script. Raises as the contract says, and ``Gap``."""
        self._echo = work.echo
        ready = [self._ready(table) for table in work.tables]
        for one, table in zip(ready, work.tables, strict=True):
            self._sweep_first(connection, one, table)
        cursor = msgspec.json.encode(work.cursor).decode()
        for _ in range(_ATTEMPTS):
            parts, watched = self._read_bases(connection, ready)
            if self.call(connection, parts, cursor, watched=watched):
                return
        raise Unavailable(f"Somebody else writes to Syncline's keys in Redis at {shown(self._config.url)}.")

    def settled(self, cursor: Cursor) -> None:
        """The work with this cursor is there for good."""
        self._expected = (msgspec.json.encode(cursor).decode(),)

    def _ready(self, table: TableWork) -> _Ready:
        part, upserts, partials = part_of(layout_of(table.schema, self._config.prefix), table)
        return _Ready(part, upserts, partials, table.truncated is not None)

    def _read_bases(self, connection: Connection, ready: Sequence[_Ready]) -> tuple[list[TablePart], bool]:
        """The parts with all rows whole, and whether that took reading, under WATCH."""
        parts, watched = [], False
        for one in ready:
            part = replace(one.part, chunks=list(one.part.chunks))
            parts.append(part)
            if one.upserts is not None:
                add_rows(part, one.upserts)
            origins = one.partials and partial_origins(part.layout, one.partials, truncated=one.truncates)
            if one.partials is not None and origins is None:
                add_patches(part, one.partials)
            if origins is None and not one.truncates:
                continue
            name = part.layout.schema.qualified
            connection.call("WATCH", self._keys.rows(name), self._keys.moved(name))
            watched = True
            if one.partials is not None and origins is not None:
                self._complete(connection, part, one.partials, origins)
            if one.truncates:
                for ids, entries in companion(connection, self._keys, name, _BATCH):
                    _add_removals(part, ids, entries)
        return parts, watched

    def _complete(self, connection: Connection, part: TablePart, partials: Rows, origins: pa.Array) -> None:
        layout = part.layout
        moves = moves_of(layout, partials).to_pylist()
        made = connection.call("HMGET", self._keys.moved(layout.schema.qualified), *moves)
        bases = read(connection, self._keys, layout, origins)
        rows, moved = completed(layout, partials, bases, [m is not None for m in made])
        if len(rows):
            add_rows(part, rows, moved)

    def _sweep_first(self, connection: Connection, one: _Ready, table: TableWork) -> None:
        """A large truncation in batches. Rows that this work completes are left for its own call, and so are those that
        it writes anew where applications edit them too."""
        layout = one.part.layout
        name = layout.schema.qualified
        if not one.truncates or connection.call("HLEN", self._keys.rows(name)) <= _ATOMIC_ROWS:
            return
        spared: set[bytes] = set()
        if self._keys.both_ways and one.upserts is not None:
            spared.update(layout.id.render(one.upserts.texts, len(one.upserts)).to_pylist())
        if table.rows.partials is not None:
            origins = table.rows.partials.column(len(table.schema.columns) + 2).flatten()
            names = [c.name for c in table.schema.key]
            spared.update(ids_of(layout, pa.RecordBatch.from_arrays(origins, names=names)).to_pylist())
        for ids, entries in companion(connection, self._keys, name, _BATCH):
            left = [(i, e) for i, e in zip(ids, entries, strict=True) if i not in spared]
            batch = TablePart(layout, truncate=one.part.truncate)
            _add_removals(batch, [i for i, _ in left], [e for _, e in left])
            if batch.chunks:
                self.call(connection, [batch], None)

    def call(
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
            "echo": self._echo,
            "tables": [part.head(self._keys) for part in parts],
            "chunks": [{"table": n, "kind": c.kind, "moves": c.moves} for n, c in chunks],
        }
        if cursor is not None:
            head["cursor"] = cursor
            # From here on it may be there, whether or not an answer comes.
            self._expected = tuple(dict.fromkeys((*self._expected, cursor)))
        arguments = (msgspec.msgpack.encode(head), *(c.data for _, c in chunks))
        answer = (connection.run_unless_changed if watched else connection.run)("apply", *arguments)
        if answer is None:
            return False
        verdict, detail = answer[0].decode(), answer[1]
        if verdict == "refused":
            _refuse(parts, chunks, detail)
        if verdict != "done":
            raise self._failed(verdict, detail)
        self.overruled += int(detail)
        return True

    def _failed(self, verdict: str, detail: Any) -> SynclineError:
        server = shown(self._config.url)
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
            f"Redis at {server} does not hold what this target left there: it was emptied, restarted without its data,"
            " or goes on from an older copy.",
            remedy="`syncline resync` reads the tables again; `on_gap: resync` does it by itself.",
            code="SL-REDIS-LOST",
        )

    def _is_ahead(self, found: bytes) -> bool:
        """Whether the cursor that is there is one that we have not reached yet."""
        last = self._expected[0]
        there = bookkept(found, Cursor)
        ours = bookkept(last, Cursor) if last else None
        return ours is None or (there.position.log == ours.position.log and there.position.n > ours.position.n)


def _add_removals(part: TablePart, ids: Sequence[bytes], entries: Sequence[bytes]) -> None:
    versions = np.fromiter((int(e.partition(b" ")[0]) for e in entries), np.int64, len(entries))
    chosen = np.flatnonzero(versions <= part.truncate).tolist()
    if chosen:
        gone = pa.array([ids[i] for i in chosen], pa.binary())
        removals(part, gone, pa.array(versions[chosen]), key_texts(part.layout, gone))


def _refuse(parts: Sequence[TablePart], chunks: Sequence[tuple[int, Chunk]], found: Sequence[Sequence[int]]) -> None:
    """Raise ``Rejected`` for the first table with rows that the script refused: (chunk, row in it, what it writes)."""
    table = min(chunks[number - 1][0] for number, _, _ in found)
    refused = [(chunks[number - 1], row) for number, row, _ in found]
    rows = sorted({int(chunk.rows[row - 1]) for (part, chunk), row in refused if part == table})
    refuse(parts[table - 1].layout.schema, {_FOREIGN: rows})
