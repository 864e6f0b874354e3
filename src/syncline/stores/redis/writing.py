"""From a table's part of a work to the chunks that the script ``apply`` takes: encode, complete, remove."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from syncline.change import MAX_VERSION, Column, TableSchema
from syncline.errors import Rejected, Unavailable
from syncline.masks import unpacked_masks
from syncline.stores import Folded, TableWork
from syncline.stores.redis.document import documents, embedded_json, unreadable
from syncline.stores.redis.layout import DocumentWrite, HashWrite, Layout, MembersWrite, Write
from syncline.stores.redis.packing import Packed, element, pack, packed_map, pieces
from syncline.stores.redis.reading import Keyspace, Stored
from syncline.stores.redis.text import Bools, none_of, to_text

__all__ = [
    "Chunk",
    "Rows",
    "TablePart",
    "add_patches",
    "add_rows",
    "completed",
    "ids_of",
    "moves_of",
    "part_of",
    "partial_origins",
    "refuse",
    "removals",
]

_Ints = np.ndarray[Any, np.dtype[np.int64]]

_INEXACT = "a value has no exact form in its column's type"
_NULL_KEY = "a column of its key is NULL"
_NO_JSON = "a value can't stand in a JSON document and be read back exactly"
_NO_SCORE = "a score is not a number"
_TOO_LARGE = "it is larger than Redis takes in one piece"
_MOST_BYTES = 256 * 1024 * 1024  # half of what a server's proto-max-bulk-len allows, for a row may be written twice


@dataclass(frozen=True, slots=True)
class Chunk:
    """Some rows of one table for the script. ``rows`` are their positions among the upserts, then the partials."""

    kind: str
    data: bytes
    rows: _Ints
    moves: bool = False


@dataclass(slots=True)
class TablePart:
    """One table's part of a call of the script."""

    layout: Layout
    chunks: list[Chunk] = field(default_factory=list)
    lowest: int = MAX_VERSION
    greatest: int = 0
    truncate: int = -1
    before: Layout | None = None  # what rows are rewritten from, when the table takes another form

    def head(self, keys: Keyspace) -> dict[str, Any]:
        """What the script is told of the table."""
        name = self.layout.schema.qualified
        return {
            "name": name,
            "table": keys.table(name),
            "rows": keys.rows(name),
            "dead": keys.dead(name),
            "moved": keys.moved(name),
            "base": keys.base(name) if keys.both_ways else "",
            "fingerprint": (self.before or self.layout).schema.fingerprint,
            "lowest": self.lowest,
            "greatest": self.greatest,
            "truncate": self.truncate,
            "wandering": any(isinstance(w, MembersWrite) and w.wanders for w in self.layout.writes),
            "writes": [self._write(i, w) for i, w in enumerate(self.layout.writes)],
        }

    def _write(self, index: int, write: Write) -> dict[str, Any]:
        former = self.before.writes[index] if self.before else None
        match write:
            case HashWrite():
                names = _names(self.layout, write)
                gone = [n for n in _names(self.before, former) if n not in names]
                told = {"kind": "hash", "fields": names, "gone": gone, "width": 1 + len(names)}
                return told | {"ttl": write.ttl_s, "anew": former is not None}
            case DocumentWrite():
                return {"kind": "document", "width": 2, "ttl": write.ttl_s, "anew": former is not None}
            case MembersWrite():
                return {"kind": "members", "wanders": write.wanders, "width": 3}

    def add(self, kind: str, columns: Sequence[Packed], versions: _Ints, rows: _Ints, *, moves: bool = False) -> None:
        """Add rows; the guard needs to know the least and the greatest of their versions."""
        if len(versions) and kind != "remove":
            self.lowest = min(self.lowest, int(versions.min()))
            self.greatest = max(self.greatest, int(versions.max()))
        for piece in pieces(columns, len(rows)):
            self.chunks.append(Chunk(kind, piece.data, rows[piece.begin : piece.end], moves))


def _names(layout: Layout | None, write: Write | None) -> list[str]:
    """The fields of a hash."""
    if layout is None or not isinstance(write, HashWrite):
        return []
    return [layout.schema.columns[f].name for f in write.fields]


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows as texts of their columns. ``unchanged`` (columns by rows) are not carried; None where all are.

    ``positions`` are theirs among the upserts, then the partials; ``origins`` the ids of the rows to take from.
    """

    texts: list[pa.Array]
    versions: pa.Array
    positions: _Ints
    unchanged: list[Bools] | None = None
    origins: pa.Array | None = None

    def __len__(self) -> int:
        return len(self.versions)

    def take(self, chosen: Bools) -> Rows:
        mask = pa.array(chosen)
        return Rows(
            [t.filter(mask) for t in self.texts],
            self.versions.filter(mask),
            self.positions[chosen],
            None if self.unchanged is None else [u[chosen] for u in self.unchanged],
            None if self.origins is None else self.origins.filter(mask),
        )


def part_of(layout: Layout, work: TableWork) -> tuple[TablePart, Rows | None, Rows | None]:
    """The part (with its deletes), the upserts and the partial rows.

    Raises:
        Rejected: a value can't be written. Positions count the upserts, then the partials.
    """
    bad: dict[str, list[int]] = {}
    upserts = _rows(layout, work.rows.upserts, 0, bad)
    partials = _rows(layout, work.rows.partials, len(upserts) if upserts else 0, bad)
    if bad:
        refuse(layout.schema, bad)
    part = TablePart(layout, truncate=-1 if work.truncated is None else work.truncated)
    _add_deletes(part, work.rows)
    return part, upserts, partials


def refuse(schema: TableSchema, bad: Mapping[str, Sequence[int]]) -> None:
    """Raise ``Rejected`` for these positions by reason."""
    rows = sorted({row for found in bad.values() for row in found})
    raise Rejected(schema.qualified, rows, "; ".join(bad))


def _texts(columns: Sequence[Column], arrays: Sequence[pa.Array]) -> tuple[list[pa.Array], Bools]:
    found = [to_text(a, c.type) for c, a in zip(columns, arrays, strict=True)]
    return [t for t, _ in found], np.logical_or.reduce([b for _, b in found])


def _rows(layout: Layout, batch: pa.RecordBatch | None, offset: int, bad: dict[str, list[int]]) -> Rows | None:
    if batch is None or not batch.num_rows:
        return None
    schema = layout.schema
    n = len(schema.columns)
    texts, inexact = _texts(schema.columns, batch.columns[:n])
    for reason, found in (_INEXACT, inexact), *_unfit(layout, texts, batch.num_rows):
        if found.any():
            bad.setdefault(reason, []).extend((np.flatnonzero(found) + offset).tolist())
    positions = np.arange(offset, offset + batch.num_rows)
    if batch.num_columns == n + 1:
        return Rows(texts, batch.column(n), positions)
    origins, _ = _texts(schema.key, batch.column(n + 2).flatten())
    at_key = dict(zip(schema.key_positions, origins, strict=True))
    unchanged = _unchanged(batch.column(n + 1), schema)
    return Rows(texts, batch.column(n), positions, unchanged, layout.id.render(at_key, batch.num_rows))


def _unfit(layout: Layout, texts: Sequence[pa.Array], rows: int) -> Iterator[tuple[str, Bools]]:
    """Rows that this layout can't write, by reason."""
    schema = layout.schema
    null = [texts[p].is_null().to_numpy(zero_copy_only=False) for p in schema.key_positions]
    yield _NULL_KEY, np.logical_or.reduce(null)
    if sum(t.nbytes for t in texts) > _MOST_BYTES:
        sizes = [pc.fill_null(pc.binary_length(t), 0).to_numpy(zero_copy_only=False).astype(np.int64) for t in texts]
        yield _TOO_LARGE, np.sum(sizes, axis=0) > _MOST_BYTES
    for write in layout.writes:
        if isinstance(write, MembersWrite):
            nan = pc.fill_null(pc.equal(texts[write.score], pa.scalar(b"NaN")), False)
            yield _NO_SCORE, nan.to_numpy(zero_copy_only=False)
        elif isinstance(write, DocumentWrite):
            fields = [schema.columns[f] for f in write.fields]
            yield _NO_JSON, unreadable(fields, [texts[f] for f in write.fields], rows)


def _unchanged(masks: pa.Array, schema: TableSchema) -> list[Bools]:
    """Which rows leave each column alone. A key is always carried."""
    bits = unpacked_masks(masks, schema)
    return [none_of(len(masks)) if c.key else bits[:, i] for i, c in enumerate(schema.columns)]


def ids_of(layout: Layout, keys: pa.RecordBatch) -> pa.Array:
    """The ids of a batch of key columns, without those that can't be any row's."""
    texts, bad = _texts(layout.schema.key, keys.columns[: len(layout.schema.key)])
    ids = layout.id.render(dict(zip(layout.schema.key_positions, texts, strict=True)), keys.num_rows)
    return ids.filter(pc.and_(ids.is_valid(), pa.array(~bad)))


def _add_deletes(part: TablePart, rows: Folded) -> None:
    """A key that has no exact form was never stored, so there is nothing to delete."""
    if rows.deletes is None or not rows.deletes.num_rows:
        return
    schema = part.layout.schema
    texts, bad = _texts(schema.key, rows.deletes.columns[: len(schema.key)])
    at_key = dict(zip(schema.key_positions, texts, strict=True))
    ids = part.layout.id.render(at_key, rows.deletes.num_rows)
    chosen = pc.and_(ids.is_valid(), pa.array(~bad))
    versions = rows.deletes.column(len(schema.key)).filter(chosen)
    at_key = {p: t.filter(chosen) for p, t in at_key.items()}
    _add_without_values(part, "delete", ids.filter(chosen), versions, at_key)


def removals(part: TablePart, ids: pa.Array, versions: pa.Array, at_key: Mapping[int, pa.Array]) -> None:
    """Rows that a truncation removes, if they still are what was read."""
    _add_without_values(part, "remove", ids, versions, at_key)


def _add_without_values(
    part: TablePart, kind: str, ids: pa.Array, versions: pa.Array, at_key: Mapping[int, pa.Array]
) -> None:
    columns = [pack(ids), pack(versions.cast(pa.string()).cast(pa.binary()))]
    for write in part.layout.writes:
        wanders = isinstance(write, MembersWrite) and write.wanders
        columns.append(pack(pa.nulls(len(ids), pa.binary()) if wanders else write.key.render(at_key, len(ids))))
        if isinstance(write, MembersWrite):
            columns.append(pack(write.member.render(at_key, len(ids))))
    part.add(kind, columns, versions.to_numpy(), np.arange(len(ids)))


# --------------------------------------------------------------------------------------------------- whole rows


def add_rows(part: TablePart, rows: Rows, moves: pa.Array | None = None) -> None:
    """Whole rows; ``moves`` are remembered with those that are written (null: not moved)."""
    columns = list(_columns(part.layout, rows))
    if moves is not None:
        columns.append(pack(moves))
    part.add("upsert", columns, rows.versions.to_numpy(), rows.positions, moves=moves is not None)


def add_patches(part: TablePart, rows: Rows) -> None:
    """Partial rows of a layout that is plain: fields that are not carried are left alone."""
    part.add("patch", list(_columns(part.layout, rows)), rows.versions.to_numpy(), rows.positions)


def _columns(layout: Layout, rows: Rows) -> Iterator[Packed]:
    texts, count = rows.texts, len(rows)
    yield pack(layout.id.render(texts, count))
    yield pack(_entries(layout, rows))
    for write in layout.writes:
        keys = write.key.render(texts, count)
        if isinstance(write, HashWrite):
            yield pack(keys)
            yield from (pack(texts[f], None if rows.unchanged is None else rows.unchanged[f]) for f in write.fields)
        elif isinstance(write, DocumentWrite):
            yield pack(keys)
            fields = [layout.schema.columns[f] for f in write.fields]
            yield pack(documents(fields, [texts[f] for f in write.fields], count))
        else:
            yield pack(_places(write, texts, count))
            yield from (pack(write.member.render(texts, count)), pack(texts[write.score]))


def _entries(layout: Layout, rows: Rows) -> pa.Array:
    versions = rows.versions.cast(pa.string()).cast(pa.binary())
    if not layout.tailed:
        return versions
    nothing = pa.scalar(None, pa.binary())
    values: list[tuple[int | str, pa.Array]] = []
    for index, write in enumerate(layout.writes, 1):
        if isinstance(write, MembersWrite) and write.wanders:
            values.append((index, _places(write, rows.texts, len(rows))))
        elif isinstance(write, HashWrite) and write.bare:
            filled = np.logical_or.reduce(
                [rows.texts[f].is_valid().to_numpy(zero_copy_only=False) for f in write.fields]
            )
            values.append((index, pc.if_else(pa.array(filled), nothing, pa.scalar(b"1"))))
    for position in layout.kept:
        values.append((layout.schema.columns[position].name, rows.texts[position]))
    for position in layout.loose_json:
        texts = rows.texts[position]
        apart = pc.fill_null(pc.not_equal(texts, embedded_json(texts)), False)
        values.append((layout.schema.columns[position].name, pc.if_else(apart, texts, nothing)))
    return pc.binary_join_element_wise(versions, *packed_map(values), pa.scalar(b""))


def _places(write: MembersWrite, texts: Sequence[pa.Array], count: int) -> pa.Array:
    """The sets that rows belong to; where which one it is can be asked of the row alone, null for a row of none."""
    places = write.key.render(texts, count)
    return pc.if_else(texts[write.score].is_valid(), places, pa.scalar(None, pa.binary())) if write.wanders else places


# --------------------------------------------------------------------------------------------------- partial rows


def partial_origins(layout: Layout, rows: Rows, *, truncated: bool) -> pa.Array | None:
    """The ids of the rows that partial rows have to be read from; None where they can be written as they are."""
    own = layout.id.render(rows.texts, len(rows))
    assert rows.origins is not None
    if layout.plain and not truncated and own.equals(rows.origins):
        return None
    return rows.origins


def completed(layout: Layout, rows: Rows, bases: Stored, made: Sequence[bool]) -> tuple[Rows, pa.Array | None]:
    """The rows whole, without those that have nothing to rest on; and the moves to remember, if there are any.

    ``bases`` are the rows at ``origins``, ``made`` says which moves were made before: a row that moves takes values
    once, and never from a newer row.

    Raises:
        Unavailable: a row that is known here has lost its keys since the engine looked.
    """
    assert rows.unchanged is not None
    own = layout.id.render(rows.texts, len(rows))
    versions = rows.versions.to_numpy()
    moving = pc.not_equal(own, rows.origins).to_numpy(zero_copy_only=False)
    chosen = bases.there & ~(moving & ((bases.versions > versions) | np.array(made, bool)))
    if (chosen & ~bases.whole).any():
        raise Unavailable(
            f"Rows of table {layout.schema.qualified} lost their keys in Redis while they were written.",
            remedy="They are read again at the source.",
        )
    texts = [
        pc.if_else(pa.array(mask), base, mine)
        for mask, base, mine in zip(rows.unchanged, bases.texts, rows.texts, strict=True)
    ]
    found = Rows(texts, rows.versions, rows.positions).take(chosen)
    if not (moving & chosen).any():
        return found, None
    moves = pc.if_else(pa.array(moving), moves_of(layout, rows), pa.scalar(None, pa.binary()))
    return found, moves.filter(pa.array(chosen))


def moves_of(layout: Layout, rows: Rows) -> pa.Array:
    """What tells one move from every other: both ids and the version."""
    own = layout.id.render(rows.texts, len(rows))
    version = rows.versions.cast(pa.string()).cast(pa.binary())
    return pc.binary_join_element_wise(element(own), element(rows.origins), version, pa.scalar(b""))
