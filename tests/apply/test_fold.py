"""Folding any history of some keys leaves what replaying it row by row leaves."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from syncline.apply.fold import fold
from syncline.change import Batch, Op, Truncate
from syncline.stores import TableWork
from syncline.testing.examples import example_batch, example_schema

NAMES = [c.name for c in example_schema().columns]
UNTOUCHED = ("email", "note")
Row = dict[str, Any]
State = dict[int, Row]


def former(keys: set[int]) -> State:
    """What a target holds before the work."""
    return {k: row for k in keys for row in example_batch(keys=[k], version=1).data().to_pylist()}


@st.composite
def histories(draw: st.DrawFn) -> tuple[set[int], list[Batch | Truncate]]:
    """Keys that are there, and what then happens to them: never an update of a key that is not there."""
    before = draw(st.sets(st.integers(1, 5)))
    alive, items = set(before), []
    for version in range(100, 100 + draw(st.integers(1, 12))):
        free = sorted(set(range(1, 7)) - alive)
        choices = [Op.INSERT] * bool(free) + [Op.UPDATE, Op.DELETE, None] * bool(alive)
        op = draw(st.sampled_from(choices + [Op.REKEY] * bool(free and alive)))
        unchanged = draw(st.sampled_from([(), UNTOUCHED])) if op in (Op.UPDATE, Op.REKEY) else ()
        key = draw(st.sampled_from(free if op in (Op.INSERT, Op.REKEY) else sorted(alive)))
        old = draw(st.sampled_from(sorted(alive))) if op is Op.REKEY else None
        if op is None:
            items.append(Truncate(example_schema(), version))
            alive = set()
            continue
        old_keys = None if old is None else [old]
        items.append(example_batch(keys=[key], op=op, version=version, unchanged=unchanged, old_keys=old_keys))
        alive = (alive - {old, key}) | ({key} if op is not Op.DELETE else set())
    return before, items


def replayed(state: State, items: list[Batch | Truncate]) -> State:
    """The reference: one change after the other."""
    for item in items:
        if isinstance(item, Truncate):
            state = {}
            continue
        (row,) = item.rows.to_pylist()
        base = state.pop(row["old_key"]["id"] if row["op"] == Op.REKEY else row["id"], {})
        if row["op"] != Op.DELETE:
            kept = UNTOUCHED if row["unchanged"] is not None else ()
            state[row["id"]] = {name: base[name] if name in kept else row[name] for name in NAMES}
    return state


def applied(state: State, works: list[TableWork]) -> State:
    """What a store does with folded works, in order."""
    for work in works:
        before = dict(state)
        state = {} if work.truncated is not None else dict(state)
        for row in _rows(work.rows.deletes):
            state.pop(row["id"], None)
        for row in _rows(work.rows.upserts):
            state[row["id"]] = {name: row[name] for name in NAMES}
        for row in _rows(work.rows.partials):
            mask, base = row["unchanged"], before[row["from_key"]["id"]]
            bits = {name: mask[i // 8] >> (i % 8) & 1 for i, name in enumerate(NAMES)}
            state[row["id"]] = {name: base[name] if bits[name] else row[name] for name in NAMES}
    return state


def _rows(batch: pa.RecordBatch | None) -> list[Row]:
    return [] if batch is None else batch.to_pylist()


@given(histories())
def test_a_folded_history_leaves_what_its_replay_leaves(history: tuple[set[int], list[Batch | Truncate]]) -> None:
    before, items = history
    assert applied(former(before), fold(items)) == replayed(former(before), items)


@given(histories(), st.randoms(use_true_random=False))
def test_whole_rows_fold_to_the_same_in_any_order_of_arrival(
    history: tuple[set[int], list[Batch | Truncate]], chance: Any
) -> None:
    before, items = history
    plain = [i for i in items if isinstance(i, Batch) and not i.partial and not i.rekeys]
    shuffled = chance.sample(plain, len(plain))
    assert applied(former(before), fold(shuffled)) == applied(former(before), fold(plain))
