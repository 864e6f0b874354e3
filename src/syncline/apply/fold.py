"""Folding: of several changes of one key only the last state is left. Pure, and columnar on the main path.

Changes are ordered by version, ties by their place in the log (parts and statements of one transaction). What is left
of a key is a whole row, a delete, or a partial row over what the store held before (Guarantee 6). A partial row
completes itself from earlier changes in the same fold where they carry the missing columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from syncline.change import Batch, Op, TableSchema, Truncate
from syncline.masks import Bools, packed_masks, unpacked_masks
from syncline.stores import Folded, TableWork

__all__ = ["fold"]

Ints = np.ndarray[Any, np.dtype[np.int64]]


def fold(items: Sequence[Batch | Truncate]) -> list[TableWork]:
    """Fold the changes of *one table in one schema version*, in log order.

    Normally one :class:`~syncline.stores.TableWork`; several, to be applied in order, where batches hold a column in
    different Arrow types (see :class:`~syncline.change.Batch`). Rows at or below the version of a truncation behind
    them are dropped: the truncation removes them.
    """
    works: list[TableWork] = []
    pending: list[Batch] = []
    truncated: int | None = None
    for item in items:
        if isinstance(item, Truncate):
            truncated = item.version if truncated is None else max(truncated, item.version)
            pending = [b for b in (_newer(p, item.version) for p in pending) if len(b)]
            works = [w for w in works if w.truncated is not None or len(w.rows)]
            continue
        if pending and not _alike(pending[0], item):
            works.append(_work(pending, truncated))
            pending, truncated = [], None
        pending.append(item)
    if pending or truncated is not None:
        works.append(_work(pending, truncated, items[0].schema))
    return works


def _alike(one: Batch, other: Batch) -> bool:
    return bool(one.data().schema.equals(other.data().schema))


def _newer(batch: Batch, version: int) -> Batch:
    keep = batch.ints("version") > version
    return batch if keep.all() else Batch(batch.schema, batch.rows.filter(pa.array(keep)))


def _work(batches: list[Batch], truncated: int | None, schema: TableSchema | None = None) -> TableWork:
    if not batches:
        assert schema is not None
        return TableWork(schema, Folded(), truncated)
    return TableWork(batches[0].schema, _folded(_Changes.of(batches)), truncated)


@dataclass(slots=True)
class _Changes:
    """All changes of one fold as columns, ordered by version (stable)."""

    schema: TableSchema
    data: pa.RecordBatch
    op: np.ndarray[Any, Any]
    version: Ints
    mask: Bools | None  # [rows, columns], True = unchanged
    old_key: pa.StructArray | None

    @classmethod
    def of(cls, batches: list[Batch]) -> _Changes:
        schema = batches[0].schema
        data = batches[0].data() if len(batches) == 1 else _concat([b.data() for b in batches])
        op = np.concatenate([b.ints("op") for b in batches])
        version = np.concatenate([b.ints("version") for b in batches])
        mask = (
            np.concatenate([unpacked_masks(b.system("unchanged"), b.schema) for b in batches])
            if any(b.partial for b in batches)
            else None
        )
        old_key = _concat_old_keys(batches) if any(b.rekeys for b in batches) else None
        changes = cls(schema, data, op, version, mask, old_key)
        if len(version) > 1 and (version[1:] < version[:-1]).any():
            changes._sort()
        return changes

    def _sort(self) -> None:
        order = np.argsort(self.version, kind="stable")
        index = pa.array(order)
        self.data, self.op, self.version = self.data.take(index), self.op[order], self.version[order]
        self.mask = None if self.mask is None else self.mask[order]
        self.old_key = None if self.old_key is None else self.old_key.take(index)

    def keys(self) -> list[pa.Array]:
        return [self.data.column(i) for i in self.schema.key_positions]


def _concat(batches: list[pa.RecordBatch]) -> pa.RecordBatch:
    return pa.Table.from_batches(batches).combine_chunks().to_batches()[0]


def _concat_old_keys(batches: list[Batch]) -> pa.StructArray:
    kind = next(b.system("old_key").type for b in batches if b.rekeys)
    return pa.concat_arrays([b.system("old_key") if b.rekeys else pa.nulls(len(b), kind) for b in batches])


# ------------------------------------------------------------------------------------------------------------ folding


def _folded(changes: _Changes) -> Folded:
    if changes.old_key is None and changes.mask is None:
        return _fold_plain(changes)
    return _fold_events(changes)


def _fold_plain(changes: _Changes) -> Folded:
    """Whole rows and deletes only: the last change of each key is its state."""
    codes = _codes(changes.keys())
    deletes = changes.op == Op.DELETE
    if codes is None:
        last = np.arange(len(changes.op))
        if not deletes.any():
            return Folded(upserts=_rows(changes.data, changes.version))
    else:
        last = _last(codes)
    gone = deletes[last]
    return Folded(
        upserts=_pick(changes, last[~gone]),
        deletes=_pick_keys(changes.schema, changes.keys(), changes.version, last[gone]),
    )


def _last(codes: Ints) -> Ints:
    """Positions of the last occurrence of each code, in order of position."""
    last = np.full(int(codes.max()) + 1, -1, np.int64)
    last[codes] = np.arange(len(codes))  # numpy keeps the last of repeated indices
    return np.sort(last[last >= 0])


def _codes(keys: list[pa.Array]) -> Ints | None:
    """A number for each distinct key, equal keys alike; None when the keys are seen to be all different."""
    combined: Ints | None = None
    for key in keys:
        if len(keys) == 1 and pa.types.is_integer(key.type):
            values = key.to_numpy()
            if len(values) < 2 or (values[1:] > values[:-1]).all():
                return None
            return np.unique(values, return_inverse=True)[1].astype(np.int64)
        encoded = key.dictionary_encode()
        codes = encoded.indices.to_numpy().astype(np.int64)
        if combined is None:
            combined = codes
        else:
            # Renumber after each column, so that the product stays small.
            combined = np.unique(combined * len(encoded.dictionary) + codes, return_inverse=True)[1].astype(np.int64)
    return combined


def _rows(data: pa.RecordBatch, version: Ints) -> pa.RecordBatch:
    return pa.RecordBatch.from_arrays([*data.columns, pa.array(version)], names=[*data.schema.names, "version"])


def _pick(changes: _Changes, index: Ints) -> pa.RecordBatch | None:
    if not len(index):
        return None
    data = changes.data if len(index) == len(changes.op) else changes.data.take(pa.array(index))
    return _rows(data, changes.version[index])


def _pick_keys(schema: TableSchema, keys: list[pa.Array], version: Ints, index: Ints) -> pa.RecordBatch | None:
    if not len(index):
        return None
    taken = [k.take(pa.array(index)) for k in keys]
    return pa.RecordBatch.from_arrays(
        [*taken, pa.array(version[index])], names=[*(c.name for c in schema.key), "version"]
    )


# ------------------------------------------------------------------------------------- partial rows and moved keys


@dataclass(slots=True)
class _Events:
    """Rows as events on keys. A rekey is two: the old key goes, then the new one is written.

    ``row`` is the change it came from, ``source`` the code of the key whose former state a partial row completes (its
    own, or the old one of a rekey), ``gone`` marks deletes and moved-away keys.
    """

    keys: list[pa.Array]
    code: Ints
    row: Ints
    gone: Bools
    source: Ints


def _events(changes: _Changes) -> _Events:
    n = len(changes.op)
    keys = changes.keys()
    if changes.old_key is None:
        code = _codes(keys)
        code = np.arange(n) if code is None else code
        return _Events(keys, code, np.arange(n), changes.op == Op.DELETE, code)
    moved = np.flatnonzero(changes.op == Op.REKEY)
    old = changes.old_key.take(pa.array(moved))
    both = [pa.concat_arrays([new, old.field(i).cast(new.type)]) for i, new in enumerate(keys)]
    code = _codes(both)
    code = np.arange(n + len(moved)) if code is None else code
    source = code.copy()
    source[moved] = code[n:]
    row = np.concatenate([np.arange(n), moved])
    gone = np.concatenate([changes.op == Op.DELETE, np.ones(len(moved), bool)])
    # The old key goes before the new one is written: event order 2 * row for the one, 2 * row + 1 for the other.
    order = np.argsort(np.concatenate([2 * np.arange(n) + 1, 2 * moved]), kind="stable")
    index = pa.array(order)
    return _Events([k.take(index) for k in both], code[order], row[order], gone[order], source[order])


def _fold_events(changes: _Changes) -> Folded:
    events = _events(changes)
    last = _last(events.code)
    gone = events.gone[last]
    width = len(changes.schema.columns)
    if changes.mask is None:
        live = last[~gone]
        return Folded(
            upserts=_pick(changes, events.row[live]),
            deletes=_pick_keys(changes.schema, events.keys, changes.version[events.row], last[gone]),
        )
    live = last[~gone]
    contributor, origin = _contributors(changes, events, live)
    whole: Bools = np.all(contributor >= 0, axis=1)
    version = changes.version[events.row]
    return Folded(
        upserts=_merged(changes, contributor[whole], version[live[whole]]),
        partials=_partials(changes, events, contributor[~whole], origin[~whole], live[~whole], width),
        deletes=_pick_keys(changes.schema, events.keys, version, last[gone]),
    )


def _contributors(changes: _Changes, events: _Events, live: Ints) -> tuple[Ints, Ints]:
    """For each live key and column the change that its value comes from, -1 where the store's former row has it; and
    the code of the key under which that row stood."""
    assert changes.mask is not None
    width = len(changes.schema.columns)
    carried = ~changes.mask[events.row] & ~events.gone[:, None]
    contributor = np.full((len(live), width), -1, np.int64)
    count = int(events.code.max()) + 1
    for column in range(width):
        newest = np.full(count, -1, np.int64)
        at = np.flatnonzero(carried[:, column])
        newest[events.code[at]] = events.row[at]
        contributor[:, column] = newest[events.code[live]]
    origin = events.code[live].copy()
    if changes.old_key is not None:
        _follow_moves(changes, events, live, contributor, origin)
    return contributor, origin


def _follow_moves(changes: _Changes, events: _Events, live: Ints, contributor: Ints, origin: Ints) -> None:
    """Replay, one by one, the events of keys connected by rekeys of partial rows. Rare; all else is columnar."""
    assert changes.mask is not None
    partial: Bools = np.any(changes.mask, axis=1)
    moves = (events.source != events.code) & ~events.gone
    touched = _connected(events, moves & partial[events.row], moves)
    if not touched:
        return
    width = contributor.shape[1]
    state: dict[int, tuple[int, Ints]] = {}
    before: dict[int, tuple[int, Ints]] = {}
    for event in np.flatnonzero(np.isin(events.code, list(touched))):
        code, row = int(events.code[event]), int(events.row[event])
        if events.gone[event]:
            # Remember what a rekey that follows in the same change will take along.
            before[code] = state.pop(code, (code, np.full(width, -1, np.int64)))
            continue
        source = int(events.source[event])
        base, columns = (before if source != code else state).get(source, (source, np.full(width, -1, np.int64)))
        state[code] = (base, np.where(changes.mask[row], columns, row))
    for position, code in enumerate(events.code[live]):
        if int(code) in state:
            origin[position], contributor[position] = state[int(code)]


def _connected(events: _Events, starts: Bools, moves: Bools) -> set[int]:
    """Codes linked to a start by any chain of moves."""
    links = list(zip(events.code[moves].tolist(), events.source[moves].tolist(), strict=True))
    touched = set(events.code[starts].tolist()) | set(events.source[starts].tolist())
    grown = True
    while grown and touched:
        grown = False
        for one, other in links:
            if (one in touched) != (other in touched):
                touched |= {one, other}
                grown = True
    return touched


def _merged(changes: _Changes, contributor: Ints, version: Ints) -> pa.RecordBatch | None:
    if not len(contributor):
        return None
    columns = [changes.data.column(i).take(pa.array(contributor[:, i])) for i in range(contributor.shape[1])]
    return pa.RecordBatch.from_arrays([*columns, pa.array(version)], names=[*changes.data.schema.names, "version"])


def _partials(
    changes: _Changes, events: _Events, contributor: Ints, origin: Ints, live: Ints, width: int
) -> pa.RecordBatch | None:
    if not len(contributor):
        return None
    schema = changes.schema
    unchanged: Bools = np.empty(contributor.shape, bool)
    np.less(contributor, 0, out=unchanged)
    columns = [changes.data.column(i).take(pa.array(contributor[:, i], mask=unchanged[:, i])) for i in range(width)]
    for position, i in enumerate(schema.key_positions):
        columns[i] = events.keys[position].take(pa.array(live))
    unchanged[:, list(schema.key_positions)] = False
    where = np.zeros(int(events.code.max()) + 1, np.int64)
    where[events.code] = np.arange(len(events.code))
    of_origin = pa.array(where[origin])
    from_key = pa.StructArray.from_arrays(
        [k.take(of_origin) for k in events.keys],
        fields=[pa.field(c.name, k.type) for c, k in zip(schema.key, events.keys, strict=True)],
    )
    version = pa.array(changes.version[events.row[live]])
    return pa.RecordBatch.from_arrays(
        [*columns, version, packed_masks(unchanged, schema), from_key],
        names=[*changes.data.schema.names, "version", "unchanged", "from_key"],
    )
