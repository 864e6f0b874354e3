"""Reading rows back: what their keys hold, put together again, and whether it is all there and says the same."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from syncline.change import MAX_VERSION, arrow_type
from syncline.stores import stored_columns
from syncline.stores.redis.config import Mode
from syncline.stores.redis.document import embedded_json, members
from syncline.stores.redis.layout import DocumentWrite, HashWrite, Layout, MembersWrite, Write
from syncline.stores.redis.packing import entry_tail, head_of, pack
from syncline.stores.redis.text import Bools, from_text, none_of

__all__ = ["Keyspace", "Stored", "as_rows", "key_texts", "read"]


class _Runs(Protocol):
    def run(self, script: str, *arguments: bytes) -> Any: ...


@dataclass(frozen=True, slots=True)
class Keyspace:
    """Syncline's own keys, which all begin with the target's prefix. ``both_ways``: others edit the rows too."""

    prefix: str
    both_ways: bool = False

    @property
    def store(self) -> str:
        """A hash: format and id of this data."""
        return f"{self.prefix}:store"

    @property
    def cursors(self) -> str:
        """A hash: source -> cursor."""
        return f"{self.prefix}:cursors"

    @property
    def tables(self) -> str:
        """A set of the tables' names."""
        return f"{self.prefix}:tables"

    def table(self, name: str) -> str:
        """A hash: what a table is, and what the guard needs to know of it."""
        return f"{self.prefix}:table:{name}"

    def rows(self, name: str) -> str:
        """The companion hash: id -> entry."""
        return f"{self.prefix}:rows:{name}"

    def base(self, name: str) -> str:
        """What was last written of each row, a hash: id -> JSON object. Only where rows are edited on both sides."""
        return f"{self.prefix}:base:{name}"

    def dead(self, name: str) -> str:
        """Tombstones, a hash: id -> version."""
        return f"{self.prefix}:tombstones:{name}"

    def moved(self, name: str) -> str:
        """Moves that were made, a hash: both ids and the version -> version."""
        return f"{self.prefix}:moved:{name}"


@dataclass(frozen=True, slots=True)
class Stored:
    """Rows in the order in which they were asked for.

    ``there``: the companion knows the row; ``whole``: everything that the row writes is there too and agrees;
    ``expired``: a hash or document of it is not.
    ``texts`` are its columns. ``works`` counts the works that the table has seen. ``odd``: a hash or document of it has
    a time to live that it should not have, or has none.
    """

    ids: pa.Array
    there: Bools
    whole: Bools
    expired: Bools
    versions: np.ndarray[Any, np.dtype[np.int64]]
    texts: list[pa.Array]
    works: int
    odd: Bools


def key_texts(layout: Layout, ids: pa.Array) -> dict[int, pa.Array]:
    """The texts of the key columns in these ids."""
    positions = layout.schema.key_positions
    if len(positions) == 1:
        return {positions[0]: ids}
    return {p: pa.array(t, pa.binary()) for p, t in layout.id.read(ids.to_pylist()).items()}


def read(connection: _Runs, keys: Keyspace, layout: Layout, ids: pa.Array, mode: Mode | None = None) -> Stored:
    """The rows of these ids (binary), all in one moment; with the ``mode`` of their target it is looked at how long
    they live, else none is odd. Raises as ``Connection.run``."""
    name, rows = layout.schema.qualified, len(ids)
    texts = key_texts(layout, ids)
    columns = [pack(ids)]
    for write in layout.writes:
        fixed = not (isinstance(write, MembersWrite) and write.wanders)
        columns.append(pack(write.key.render(texts, rows) if fixed else pa.nulls(rows, pa.binary())))
        if isinstance(write, MembersWrite):
            columns.append(pack(write.member.render(texts, rows)))
    head = {
        "table": keys.table(name),
        "rows": keys.rows(name),
        "writes": [_asked(layout, w) for w in layout.writes],
        "lives": mode is not None,
        "stays": mode == "store",
    }
    data = head_of(len(columns)) + b"".join(c.cut(0, rows) for c in columns)
    works, entries, *found, numbers = connection.run("read", msgspec.msgpack.encode(head), data)
    odd = none_of(rows)
    odd[np.array(numbers, np.int64) - 1] = True
    return replace(_put_together(layout, ids, texts, int(works or 0), _padded(entries, rows), found), odd=odd)


def _asked(layout: Layout, write: Write) -> dict[str, Any]:
    match write:
        case HashWrite():
            names = [layout.schema.columns[f].name for f in write.fields]
            return {"kind": "hash", "fields": names, "ttl": write.ttl_s}
        case DocumentWrite():
            return {"kind": "document", "ttl": write.ttl_s}
        case MembersWrite():
            return {"kind": "members", "wanders": write.wanders}


def _padded(values: Sequence[Any], rows: int) -> list[Any]:
    return [*values, *[None] * (rows - len(values))]


def _put_together(
    layout: Layout, ids: pa.Array, keys: dict[int, pa.Array], works: int, entries: list[bytes | None], found: list[Any]
) -> Stored:
    rows = len(ids)
    there = np.fromiter((e is not None for e in entries), bool, rows)
    versions = np.fromiter((int(e.partition(b" ")[0]) if e else 0 for e in entries), np.int64, rows)
    tails = [entry_tail(e) if e else {} for e in entries] if layout.tailed else []
    whole, expired = there.copy(), none_of(rows)
    texts: dict[int, pa.Array] = dict(keys)
    for index, (write, answer) in enumerate(zip(layout.writes, found, strict=True), 1):
        answer = _padded(answer, rows)
        if isinstance(write, HashWrite):
            blank = np.fromiter((a is None or not any(v is not None for v in a) for a in answer), bool, rows)
            empty = np.fromiter((index in t for t in tails), bool, rows) if write.bare else none_of(rows)
            _take(texts, write.fields, _hash_columns(write, answer), whole)
            whole &= blank == empty
            expired |= there & blank & ~empty
        elif isinstance(write, DocumentWrite):
            held, readable = members([layout.schema.columns[f] for f in write.fields], answer)
            whole &= readable
            expired |= there & np.fromiter((a is None for a in answer), bool, rows)
            _take(texts, write.fields, held, whole, embedded=layout.schema)
    for position in layout.kept:
        named = layout.schema.columns[position].name
        texts[position] = pa.array([t.get(named) for t in tails], pa.binary())
    for position in layout.loose_json:
        _restore(texts, position, [t.get(layout.schema.columns[position].name) for t in tails], whole)
    for write, answer in zip(layout.writes, found, strict=True):
        if isinstance(write, MembersWrite):
            whole &= _is_member(write, texts, _padded(answer, rows))
    columns = [texts[i] for i in range(len(layout.schema.columns))]
    return Stored(ids, there, whole, expired, versions, columns, works, none_of(rows))


def _hash_columns(write: HashWrite, answer: list[list[bytes | None] | None]) -> list[pa.Array]:
    nothing: list[bytes | None] = [None] * len(write.fields)
    columns = zip(*(nothing if a is None else a for a in answer), strict=True)
    return [pa.array(list(c), pa.binary()) for c in columns] or [pa.array([], pa.binary()) for _ in write.fields]


def _take(
    texts: dict[int, pa.Array],
    fields: Sequence[int],
    found: Sequence[pa.Array],
    whole: Bools,
    embedded: Any = None,
) -> None:
    """Add columns that are new; those that are known from another key (or the id) must say the same."""
    for field, array in zip(fields, found, strict=True):
        known = texts.setdefault(field, array)
        if known is not array:
            if embedded is not None and embedded.columns[field].type == "json":
                known = embedded_json(known)
            whole &= _same(known, array)


def _same(one: pa.Array, other: pa.Array) -> Bools:
    equal = pc.fill_null(pc.equal(one, other), False).to_numpy(zero_copy_only=False)
    neither = pc.and_(one.is_null(), other.is_null()).to_numpy(zero_copy_only=False)
    return equal | neither


def _restore(texts: dict[int, pa.Array], position: int, loose: list[bytes | None], whole: Bools) -> None:
    """Put back the blanks around JSON values that a document could not keep."""
    kept, held = pa.array(loose, pa.binary()), texts[position]
    if kept.null_count < len(kept):
        apart = ~_same(embedded_json(kept), held) & kept.is_valid().to_numpy(zero_copy_only=False)
        whole &= ~apart
        texts[position] = pc.coalesce(kept, held)


def _is_member(write: MembersWrite, texts: dict[int, pa.Array], answer: list[Any]) -> Bools:
    """Whether each row is a member of the set that its columns name, with the score that they say, and of none
    where they say so."""
    scores = texts[write.score].to_pylist()
    places = write.key.render(texts, len(answer)).to_pylist()
    said = np.zeros(len(answer), np.bool_)
    for i, (score, place, found) in enumerate(zip(scores, places, answer, strict=True)):
        there, rank = (found or [None, None])[:2] if found else (None, None)
        if score is None or place is None:
            said[i] = rank is None
        else:
            said[i] = there == place and rank is not None and float(rank) == _number(score)
    return said


def _number(text: bytes) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def as_rows(layout: Layout, stored: Stored) -> pa.RecordBatch:
    """The rows that are whole, as the contract wants them. An odd one has a version that no change ever had, which
    no copy of its source's row can have."""
    chosen = stored.whole.copy()
    arrays = []
    for column, texts in zip(layout.schema.columns, stored.texts, strict=True):
        values, bad = from_text(texts, column.type)
        chosen &= ~bad
        arrays.append(values)
    arrays.append(pa.array(np.where(stored.odd, MAX_VERSION, stored.versions)))
    types = [*(arrow_type(c.type) for c in layout.schema.columns), pa.int64()]
    schema = pa.schema(list(zip(stored_columns(layout.schema), types, strict=True)))
    return pa.RecordBatch.from_arrays(arrays, schema=schema).filter(pa.array(chosen))
