"""Making a table's keys fit its schema: record it, adopt what is there, take columns and keys away."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import msgspec
import numpy as np
import pyarrow as pa

from syncline.bookkeeping import bookkept
from syncline.change import TableSchema
from syncline.errors import Misconfigured
from syncline.stores.redis.adopt import adopt_rows
from syncline.stores.redis.layout import HashWrite, Layout, MembersWrite, collision, layout_of
from syncline.stores.redis.reading import Keyspace, key_texts, read
from syncline.stores.redis.scan import companion
from syncline.stores.redis.server import Connection
from syncline.stores.redis.writing import Rows, TablePart, add_rows, removals

__all__ = ["Recorded", "migrate_table", "recorded"]

_PAGE = 1_000
Call = Callable[[Connection, Sequence[TablePart], str | None], bool]


@dataclass(frozen=True, slots=True)
class Recorded:
    """What is known of a table here."""

    name: str
    source: str
    schema: TableSchema
    truncated: int
    horizon: int
    both_ways: bool


def recorded(connection: Connection, keys: Keyspace, table: str) -> Recorded | None:
    """The table as it was last migrated, None if it never was."""
    source, schema, truncated, horizon, both_ways = connection.call(
        "HMGET", keys.table(table), "source", "schema", "truncated", "horizon", "both_ways"
    )
    if schema is None:
        return None
    known = bookkept(schema, TableSchema)
    return Recorded(table, source.decode(), known, int(truncated), int(horizon), bool(both_ways))


def migrate_table(
    connection: Connection, keys: Keyspace, source: str, layout: Layout, call: Call, *, adopt: bool
) -> TableSchema | None:
    """Make the table fit, and record it last, so that a crash in between only has it done again; its former schema.

    Raises:
        Misconfigured: its keys could be those of another table, or another source fills it.
    """
    schema = layout.schema
    if keys.both_ways and not (len(layout.writes) == 1 and isinstance(layout.writes[0], HashWrite) and not layout.kept):
        raise Misconfigured(
            f"Table {schema.qualified} is edited in Redis too (both_ways), so each of its rows must be one hash.",
            remedy="Map it to one hash with all its columns, and leave out the columns that are not in it.",
        )
    known = _others(connection, keys, layout)
    if known is not None and known.source != source:
        raise Misconfigured(
            f"Table {schema.qualified} of source {source} is already filled by source {known.source} in this Redis.",
            remedy="Give the sources targets with different prefixes, and their mappings different keys.",
        )
    former = known.schema if known else None
    kept = known is None or known.both_ways == keys.both_ways
    if former == schema and kept:
        return former
    # The record comes last, so that a crash in between only has it all done again.
    if former is not None:
        _fit(connection, keys, layout_of(former, keys.prefix), layout, call)
    elif adopt:
        adopt_rows(connection, keys, layout)
    if not kept:
        connection.call("UNLINK", keys.base(schema.qualified))
    _record(connection, keys, source, schema)
    return former if kept or not keys.both_ways else None  # what was last written is not known: it is loaded


def _others(connection: Connection, keys: Keyspace, layout: Layout) -> Recorded | None:
    """What is known of this table, once the keys of no other one can be taken for its own."""
    known = None
    for name in sorted(connection.call("SMEMBERS", keys.tables)):
        found = recorded(connection, keys, name.decode())
        if found is None:
            continue
        if found.name == layout.schema.qualified:
            known = found
        elif collision(layout, layout_of(found.schema, keys.prefix)):
            raise Misconfigured(
                f"Tables {found.name} and {layout.schema.qualified} could write the same keys in Redis.",
                remedy="Give the key templates of their mappings different beginnings.",
            )
    return known


def _record(connection: Connection, keys: Keyspace, source: str, schema: TableSchema) -> None:
    table = keys.table(schema.qualified)
    state = {"highest": 0, "truncated": 0, "horizon": 0, "works": 0}
    both_ways = "yes" if keys.both_ways else ""
    body = msgspec.json.encode(schema)
    connection.calls(
        [
            ("MULTI",),
            *(("HSETNX", table, name, value) for name, value in state.items()),
            ("HSET", table, "source", source, "fingerprint", schema.fingerprint, "schema", body),
            ("HSET", table, "both_ways", both_ways),
            ("SADD", keys.tables, schema.qualified),
            ("EXEC",),
        ]
    )


def _fit(connection: Connection, keys: Keyspace, former: Layout, layout: Layout, call: Call) -> None:
    """Keys that have another place go (a load follows); else columns that are gone, or have another type, do."""
    rekeyed = [(c.name, c.type) for c in former.schema.key] != [(c.name, c.type) for c in layout.schema.key]
    if rekeyed or former.places != layout.places:
        _remove_all(connection, keys, former, call)
        if rekeyed:  # tombstones of another key mean nothing
            connection.call("UNLINK", keys.dead(layout.schema.qualified), keys.moved(layout.schema.qualified))
    elif not _held(former) <= _held(layout) or _lives(former) != _lives(layout):
        _rewrite(connection, keys, former, layout, call)


def _held(layout: Layout) -> set[tuple[int, str, str]]:
    """Which thing that a row writes holds which column; 0 is the entry."""
    columns = layout.schema.columns
    held = {(0, columns[p].name, columns[p].type) for p in (*layout.kept, *layout.loose_json)}
    for number, write in enumerate(layout.writes, 1):
        fields = (write.score,) if isinstance(write, MembersWrite) else write.fields
        held |= {(number, columns[f].name, columns[f].type) for f in fields}
    return held


def _lives(layout: Layout) -> list[int]:
    return [getattr(w, "ttl_s", 0) for w in layout.writes]


def _remove_all(connection: Connection, keys: Keyspace, former: Layout, call: Call) -> None:
    """Take away all that the table wrote (correctness rule 21). Tombstones and what the guard knows stay."""
    for ids, entries in companion(connection, keys, former.schema.qualified, _PAGE):
        part = TablePart(former)
        gone = pa.array(ids, pa.binary())
        versions = pa.array([int(e.partition(b" ")[0]) for e in entries], pa.int64())
        removals(part, gone, versions, key_texts(former, gone))
        call(connection, [part], None)


def _rewrite(connection: Connection, keys: Keyspace, former: Layout, layout: Layout, call: Call) -> None:
    """Write every row again, with its version: values of columns that stay what they were, nothing in the others.

    Entries name their columns, so that one that was rewritten before a crash reads the same in the former layout.
    """
    was = {(c.name, c.type): i for i, c in enumerate(former.schema.columns)}
    for ids, _ in companion(connection, keys, former.schema.qualified, _PAGE):
        stored = read(connection, keys, former, pa.array(ids, pa.binary()))
        nothing = pa.nulls(len(stored.ids), pa.binary())
        texts = [
            stored.texts[was[c.name, c.type]] if (c.name, c.type) in was else nothing for c in layout.schema.columns
        ]
        rows = Rows(texts, pa.array(stored.versions), np.arange(len(stored.ids))).take(stored.whole)
        part = TablePart(layout, before=former)
        add_rows(part, rows)
        if part.chunks:
            call(connection, [part], None)
