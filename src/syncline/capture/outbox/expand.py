"""From events to batches: what applications published becomes changes of the tables that the events are about. Pure.

An event becomes one change of one row: created and updated a row that carries the fields of the payload and leaves the
others ``unchanged``, deleted a delete. It has the version of its transaction, as every change has: the publisher's lock
orders the commits of an entity's events, and whoever reads the events in another way than from the WAL gives the batch
the numbers that it goes by. What can't be such a change is parked with its reason, and stops no other entity.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol

import msgspec
import numpy as np
import pyarrow as pa
import xxhash

from syncline.capture.outbox.fields import Unfit, field_text
from syncline.change import Batch, Column, Op, TableSchema, arrow_type, make_batch
from syncline.events import EventType
from syncline.masks import packed_masks, unpacked_masks
from syncline.pgvalues.pgtypes import cast_text

__all__ = ["Entity", "EventParking", "Expanded", "ParkedEvent", "complete", "entity_hash", "entity_keys", "expand"]

BAD_EVENT, PARKED_KEY = "SL-EVENT", "SL-PARKED-KEY"
_FOLLOWS = "an earlier event of its entity is parked"
_VERBS = {"create": Op.INSERT, "update": Op.UPDATE, "delete": Op.DELETE}
_OPS = {kind.value: _VERBS[kind.verb] for kind in EventType}
_SYSTEM = ("version", "ordinal", "commit_time", "xid")

_payloads = msgspec.json.Decoder(dict[str, msgspec.Raw])
_keys = msgspec.json.Decoder(list[str])


@dataclass(frozen=True)
class Entity:
    """What one entity type is: a table, and the fields of payloads that are none of its columns and need not be."""

    schema: TableSchema
    ignore: frozenset[str] = frozenset()

    @cached_property
    def positions(self) -> dict[str, int]:
        """The columns that fields of a payload may be, by name."""
        return {column.name: i for i, column in enumerate(self.schema.columns) if column.name not in self.ignore}


@dataclass(frozen=True, slots=True)
class ParkedEvent:
    """An event that is no change, with its reason. ``entity`` is :func:`entity_hash`; ``row`` the event as it came."""

    entity: bytes
    version: int
    ordinal: int
    event_id: str
    operation: str
    code: str
    reason: str
    partial: bool
    row: pa.RecordBatch


class EventParking(Protocol):
    """Where events go that are no changes. What it is told is durable when it returns."""

    @property
    def lock(self) -> AbstractContextManager[object]:
        """While it is held, nobody else parks or settles anything."""

    def blocked(self) -> frozenset[bytes]:
        """The entities of which something is parked."""

    def settle(self, parked: Sequence[ParkedEvent], superseded: dict[bytes, int], incarnation: int) -> None:
        """Park these, then close what is parked of the ``superseded`` entities up to these versions."""


@dataclass(frozen=True, slots=True)
class Expanded:
    """The changes, one batch a table; what is parked; and of entities that were parked before and have a whole row or a
    delete now the version of that, which supersedes what is parked."""

    batches: tuple[Batch, ...] = ()
    parked: tuple[ParkedEvent, ...] = ()
    superseded: Mapping[bytes, int] = field(default_factory=dict)


def entity_hash(entity_type: str, entity_id: str) -> bytes:
    """16 bytes by which an entity is known among what is parked."""
    return xxhash.xxh3_128_digest(f"{entity_type}\x1f{entity_id}".encode())


@dataclass(slots=True)
class _Change:
    """One event on its way: the row it is in the batch of events, its key, and its fields by position of the column."""

    row: int
    event_type: str
    entity_type: str
    entity_id: str
    op: Op = Op.UPDATE
    entity: Entity | None = None
    texts: dict[int, str | None] = field(default_factory=dict)
    wrong: str = ""

    @property
    def whole(self) -> bool:
        """Whether it needs nothing of what was there before: a created row is made whole before it is logged."""
        return self.op is not Op.UPDATE or (
            self.entity is not None and len(self.texts) == len(self.entity.schema.columns)
        )


def expand(events: Batch, entities: Mapping[str, Entity | None], blocked: frozenset[bytes] = frozenset()) -> Expanded:
    """The changes that a batch of events stands for.

    ``entities`` by entity type; None passes its events over. ``blocked`` are the entities of which something is parked:
    a change of some of their columns parks behind it (correctness rule 26). A created row that lacks columns comes as
    an insert with ``unchanged`` columns: :func:`complete` is to make it whole.
    """
    read = [_read(*given, entities) for given in _inserted(events)]
    changes = [change for change in read if change.entity is not None or change.wrong]
    for table in _by_table(changes).values():
        _find_misfits(table)
    kept, parked, superseded = _settled(events, changes, blocked)
    return Expanded(tuple(_batch(events, table) for table in _by_table(kept).values()), parked, superseded)


def _inserted(events: Batch) -> Iterator[tuple[int, str, str, str, str]]:
    """Events are only ever added: dropping old ones is nobody's change."""
    rows = np.flatnonzero(events.ints("op") == Op.INSERT)
    names = ("event_type", "entity_type", "entity_id", "payload")
    columns = [events.rows.column(name).take(pa.array(rows)).to_pylist() for name in names]
    yield from zip(rows.tolist(), *columns, strict=True)


def _read(
    row: int, event_type: str, entity_type: str, entity_id: str, payload: str, entities: Mapping[str, Entity | None]
) -> _Change:
    change = _Change(row, event_type or "", entity_type or "", entity_id or "")
    if entity_type not in entities:
        change.wrong = "outbox.entities names no table that is captured for its entity type"
        return change
    change.entity = entities[entity_type]
    if change.entity is None:
        return change
    try:
        if event_type not in _OPS:
            raise Unfit("its event type is unknown")
        change.op = _OPS[event_type]
        _fill(change, change.entity, payload)
    except Unfit as error:
        change.wrong = str(error)
    except RecursionError:
        change.wrong = "its payload or entity_id is nested too deeply"
    return change


def _fill(change: _Change, entity: Entity, payload: str) -> None:
    columns = entity.schema.columns
    for position, part in zip(entity.schema.key_positions, _key_texts(change.entity_id, entity.schema), strict=True):
        change.texts[position] = _of_column(msgspec.json.encode(part), columns[position])
    if change.op is Op.DELETE:
        return
    try:
        fields = _payloads.decode(payload or "{}")
    except msgspec.DecodeError as error:
        raise Unfit("its payload is no object") from error
    for name, raw in fields.items():
        at = entity.positions.get(name)
        if at is None:
            if name in entity.ignore:
                continue
            raise Unfit(f"{entity.schema.qualified} has no column for field {name[:63]}; name it in ignore if so be it")
        text = _of_column(bytes(raw), columns[at])
        if columns[at].key and text != change.texts[at]:
            raise Unfit(f"field {name} names another entity than entity_id")
        change.texts[at] = text


def _of_column(raw: bytes, column: Column) -> str | None:
    try:
        return field_text(raw, column)
    except Unfit as error:
        raise Unfit(f"column {column.name} {error}") from error


def _key_texts(entity_id: str, schema: TableSchema) -> list[str]:
    if len(schema.key) == 1:
        return [entity_id]
    wants = f"its entity_id must be a JSON list of {len(schema.key)} texts, the key of {schema.qualified}"
    try:
        found = _keys.decode(entity_id)
    except msgspec.DecodeError as error:
        raise Unfit(wants) from error
    if len(found) != len(schema.key):
        raise Unfit(wants)
    return found


def entity_keys(ids: Sequence[str], schema: TableSchema) -> tuple[list[int], list[pa.Array]]:
    """Ids of entities as columns of the table's key; and which of them they are of: what is no key is left out."""
    rows, texts = [], []
    for row, entity_id in enumerate(ids):
        try:
            parts = zip(_key_texts(entity_id, schema), schema.key, strict=True)
            key = [_of_column(msgspec.json.encode(text), column) for text, column in parts]
            for text, column in zip(key, schema.key, strict=True):
                cast_text(pa.array([text], pa.string()), column.type)
        except (Unfit, ValueError, RecursionError, pa.ArrowInvalid):
            continue
        rows.append(row)
        texts.append(key)
    columns = [pa.array([key[i] for key in texts], pa.string()) for i in range(len(schema.key))]
    return rows, [cast_text(c, k.type) if rows else c for c, k in zip(columns, schema.key, strict=True)]


def _by_table(changes: Sequence[_Change]) -> dict[str, list[_Change]]:
    tables: dict[str, list[_Change]] = {}
    for change in changes:
        if change.entity is not None and not change.wrong:
            tables.setdefault(change.entity.schema.qualified, []).append(change)
    return tables


# -------------------------------------------------------------------------------------------------------------- columns


def _column(changes: Sequence[_Change], position: int, column: Column) -> pa.Array:
    texts = pa.array([change.texts.get(position) for change in changes], pa.string())
    return (
        cast_text(texts, column.type)
        if texts.null_count < len(texts)
        else pa.nulls(len(texts), arrow_type(column.type))
    )


def _find_misfits(changes: list[_Change]) -> None:
    """Mark the events whose texts are no values of their columns: column by column, and one by one only where a column
    can't be read whole."""
    assert changes[0].entity is not None
    for position, column in enumerate(changes[0].entity.schema.columns):
        if _reads(changes, position, column):
            continue
        for change in changes:
            if not _reads([change], position, column):
                change.wrong = f"column {column.name} takes {column.source_type}, and the payload has none"


def _reads(changes: Sequence[_Change], position: int, column: Column) -> bool:
    try:
        _column(changes, position, column)
    except (ValueError, pa.ArrowInvalid):
        return False
    return True


def _batch(events: Batch, changes: list[_Change]) -> Batch:
    entity = changes[0].entity
    assert entity is not None
    schema, index = entity.schema, pa.array([change.row for change in changes])
    system = {name: events.system(name).take(index) for name in _SYSTEM}
    unchanged = np.array(
        [
            [change.op is not Op.DELETE and i not in change.texts for i in range(len(schema.columns))]
            for change in changes
        ]
    )
    return make_batch(
        schema,
        [_column(changes, position, column) for position, column in enumerate(schema.columns)],
        op=pa.array([change.op for change in changes], pa.int8()),
        unchanged=packed_masks(unchanged, schema) if unchanged.any() else None,
        **system,
    )


# -------------------------------------------------------------------------------------------------------------- parking


def _settled(
    events: Batch, changes: list[_Change], blocked: frozenset[bytes]
) -> tuple[list[_Change], tuple[ParkedEvent, ...], dict[bytes, int]]:
    """In order: what is wrong blocks its entity, what some columns are unchanged of parks behind it, what is whole
    supersedes it."""
    if not blocked and not any(change.wrong for change in changes):
        return changes, (), {}
    kept: list[_Change] = []
    parked: list[ParkedEvent] = []
    superseded: dict[bytes, int] = {}
    behind = set(blocked)
    for change in changes:
        entity = entity_hash(change.entity_type, change.entity_id)
        if change.wrong:
            parked.append(_parked(events, change, BAD_EVENT, change.wrong))
            behind.add(entity)
            superseded.pop(entity, None)
        elif entity in behind and not change.whole:
            parked.append(_parked(events, change, PARKED_KEY, _FOLLOWS))
        else:
            kept.append(change)
            if entity in behind:
                behind.discard(entity)
                superseded[entity] = int(events.ints("version")[change.row])
    return kept, tuple(parked), superseded


def _parked(events: Batch, change: _Change, code: str, reason: str) -> ParkedEvent:
    return ParkedEvent(
        entity=entity_hash(change.entity_type, change.entity_id),
        version=int(events.ints("version")[change.row]),
        ordinal=int(events.ints("ordinal")[change.row]),
        event_id=str(events.rows.column("event_id")[change.row].as_py()),
        operation=change.event_type[:40],
        code=code,
        reason=reason,
        partial=not change.whole,
        row=events.rows.slice(change.row, 1),
    )


# ----------------------------------------------------------------------------------------------------------- completing


def complete(batch: Batch, read: Callable[[TableSchema, pa.RecordBatch, Sequence[int]], pa.RecordBatch]) -> Batch:
    """The batch with created rows whole, of which payloads hold some columns only: ``read`` gives rows at the source by
    keys, seen after these transactions. A row that is gone again is left out: its delete is on the way.

    It happens here and not where the change is applied, because a row that was deleted and created again has nothing in
    common with the one before, which a target may still have.
    """
    lacking = (batch.ints("op") == Op.INSERT) & unpacked_masks(batch.system("unchanged"), batch.schema).any(axis=1)
    if not lacking.any():
        return batch
    rows = batch.rows.filter(pa.array(lacking))
    keys = rows.select(list(batch.schema.key_positions))
    found = read(batch.schema, keys, batch.ints("xid")[lacking].tolist())
    return _filled(batch, np.flatnonzero(lacking), keys, found)


def _filled(batch: Batch, lacking: Any, keys: pa.RecordBatch, found: pa.RecordBatch) -> Batch:
    """Each value of the rows ``lacking`` that is unchanged, from the rows found under the same keys."""
    schema = batch.schema
    at = {key: i for i, key in enumerate(_key_tuples(found.select(list(schema.key_positions))))}
    origin = np.full(len(batch), -1, np.int64)
    origin[lacking] = [at.get(key, -1) for key in _key_tuples(keys)]
    keep = np.ones(len(batch), bool)
    keep[lacking] = origin[lacking] >= 0
    masks = unpacked_masks(batch.system("unchanged"), schema)
    columns = []
    for position in range(len(schema.columns)):
        mine, theirs = batch.rows.column(position), found.column(position)
        if mine.type != theirs.type:  # a value that has no exact form: see Batch
            mine, theirs = (a if pa.types.is_string(a.type) else a.cast(pa.string()) for a in (mine, theirs))
        both = pa.concat_arrays([mine, theirs])
        taken = np.where(masks[:, position] & (origin >= 0), origin + len(batch), np.arange(len(batch)))
        columns.append(both.take(pa.array(taken)))
    masks[origin >= 0] = False
    system = {name: batch.system(name) for name in ("op", *_SYSTEM)}
    whole = make_batch(schema, columns, unchanged=packed_masks(masks, schema) if masks[keep].any() else None, **system)
    return whole if keep.all() else Batch(schema, whole.rows.filter(pa.array(keep)))


def _key_tuples(keys: pa.RecordBatch) -> list[tuple[Any, ...]]:
    return list(zip(*(column.to_pylist() for column in keys.columns), strict=True))
