"""Taking over keys that were there before the table was: they get an entry of version 0, older than everything."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import pyarrow as pa
import pyarrow.compute as pc

from syncline.stores.redis.layout import HashWrite, Layout, MembersWrite
from syncline.stores.redis.packing import packed_map
from syncline.stores.redis.reading import Keyspace
from syncline.stores.redis.server import Connection
from syncline.stores.redis.text import from_text, to_text

__all__ = ["adopt_rows"]

_PAGE = 1_000


def adopt_rows(connection: Connection, keys: Keyspace, layout: Layout) -> None:
    """Give every key that a row of this table could have written an entry, so that a load sweeps it out or replaces it.

    Hashes and documents stand for their rows; where there are none, members of sets do. Keys of another type, and those
    whose placeholders hold no value of their column's type, are somebody else's.
    """
    rows = keys.rows(layout.schema.qualified)
    write = min(layout.writes, key=lambda w: isinstance(w, MembersWrite))
    if isinstance(write, MembersWrite):
        _adopt_members(connection, rows, layout, write)
        return
    for found in _scan(connection, write.key.glob(), "hash" if isinstance(write, HashWrite) else "string"):
        _enter(connection, rows, layout, write.key.read(found), {})


def _adopt_members(connection: Connection, rows: str, layout: Layout, write: MembersWrite) -> None:
    for found in _scan(connection, write.key.glob(), "zset"):
        told = write.key.read(found)
        for number, key in enumerate(found):
            place = {layout.writes.index(write) + 1: key} if write.wanders else {}
            for members in _members(connection, key):
                known = {column: [texts[number]] * len(members) for column, texts in told.items()}
                _enter(connection, rows, layout, known | write.member.read(members), place)


def _scan(connection: Connection, pattern: bytes, kind: str) -> Iterator[Sequence[bytes]]:
    place = b"0"
    while True:
        place, found = connection.call("SCAN", place, "MATCH", pattern, "COUNT", _PAGE, "TYPE", kind)
        if found:
            yield found
        if place == b"0":
            return


def _members(connection: Connection, key: bytes) -> Iterator[Sequence[bytes]]:
    place = b"0"
    while True:
        place, found = connection.call("ZSCAN", key, place, "COUNT", _PAGE)
        if found:
            yield found[::2]
        if place == b"0":
            return


def _enter(
    connection: Connection,
    rows: str,
    layout: Layout,
    told: Mapping[int, Sequence[bytes | None]],
    place: Mapping[int, bytes],
) -> None:
    texts = {}
    fits = None
    for position in layout.schema.key_positions:
        texts[position] = pa.array(told[position], pa.binary())
        canonical = _canonical(texts[position], layout.schema.columns[position].type)
        fits = canonical if fits is None else pc.and_(fits, canonical)
    ids = layout.id.render(texts, len(next(iter(texts.values())))).filter(fits)
    entry = b"0" + b"".join(part.as_py() for p in place.items() for part in _tail(*p))
    if len(ids):
        connection.calls([("HSETNX", rows, i, entry) for i in ids.to_pylist()])


def _canonical(texts: pa.Array, logical: str) -> pa.Array:
    """Which texts are what this store would have written."""
    values, _ = from_text(texts, logical)
    again, _ = to_text(values, logical)
    return pc.fill_null(pc.equal(again, texts), False)


def _tail(index: int, place: bytes) -> Iterator[pa.Scalar]:
    for part in packed_map([(index, pa.array([place], pa.binary()))]):
        yield part if isinstance(part, pa.Scalar) else part[0]
