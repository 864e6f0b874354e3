"""Pairing against a row-by-row reference, for any rows, bounds and buckets."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from syncline.verify.pairing import VERSION, Bounds, Side, pair, same

POINT, GREATEST = 100, 200
KEYS = st.integers(0, 12)
VALUES = st.one_of(st.none(), st.sampled_from([0.0, -0.0, 1.5, math.nan, math.inf]))
LEFT = st.dictionaries(KEYS, VALUES, max_size=12)
RIGHT = st.lists(st.tuples(KEYS, VALUES, st.sampled_from([1, 50, 99, 100, 150, 200, 201])), max_size=16)
BURIED = st.sets(KEYS, max_size=3)


def key(value: int) -> bytes:
    text = str(value)
    return f"{len(text)}:{text}".encode()


def image(value: float | None) -> Any:
    if value is None:
        return None
    return "nan" if math.isnan(value) else (value, math.copysign(1, value))


def reference(
    left: dict[int, float | None], right: list[tuple[int, float | None, int]], buried: set[int], emptied: bool
) -> tuple[int, dict[str, list[int]]]:
    flying, found = set(), {"missing": [], "different": [], "extra": []}  # type: ignore[var-annotated]
    for k in {*left, *(r[0] for r in right)}:
        rows = [r for r in right if r[0] == k]
        newest = max((r[2] for r in rows), default=-1)
        if POINT <= newest <= GREATEST:
            flying.add(k)
            continue
        missing = k in left and not rows
        differs = k in left and rows and (newest > GREATEST or image(left[k]) not in [image(r[1]) for r in rows])
        surplus = len(rows) - (k in left)
        if (k in buried and (missing or differs or surplus > 0)) or (missing and emptied):
            flying.add(k)
            continue
        found["missing"] += [k] * missing
        found["different"] += [k] * bool(differs)
        found["extra"] += [k] * max(0, surplus)
    return len(flying), {kind: sorted(keys) for kind, keys in found.items()}


@settings(max_examples=300, deadline=None)
@given(LEFT, RIGHT, BURIED, st.booleans())
def test_pairs_are_what_a_row_by_row_comparison_finds(
    left: dict[int, float | None], right: list[tuple[int, float | None, int]], buried: set[int], emptied: bool
) -> None:
    mine = pa.table({"id": pa.array(left.keys(), pa.int64()), "x": pa.array(left.values(), pa.float64())})
    theirs = pa.table(
        {
            "id": pa.array([r[0] for r in right], pa.int64()),
            "x": pa.array([r[1] for r in right], pa.float64()),
            VERSION: pa.array([r[2] for r in right], pa.int64()),
        }
    )
    bounds = Bounds(POINT, GREATEST, pa.array([key(k) for k in buried], pa.binary()), emptied)
    flying, rows = pair(mine, theirs, ["id"], ["id", "x"], bounds)
    expected = reference(left, right, buried, emptied)
    assert (flying, {kind: sorted(keys["id"].to_pylist()) for kind, keys in rows.items()}) == expected


@given(st.lists(st.tuples(st.text(max_size=6), st.integers(-5, 5)), unique=True, max_size=60), st.integers(2, 9))
@settings(max_examples=50, deadline=None)
def test_buckets_lose_no_row_and_keep_equal_keys_together(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, int]], buckets: int
) -> None:
    folder = tmp_path_factory.mktemp("sides")
    schema = pa.schema([("a", pa.string()), ("b", pa.int32())])
    sides = []
    for name, order in (("one", rows), ("two", rows[::-1])):
        (folder / name).mkdir()
        side = Side(folder / name, schema, [0, 1], buckets)
        for i in range(0, len(order), 7):
            piece = order[i : i + 7]
            side.add(pa.RecordBatch.from_pydict({"a": [r[0] for r in piece], "b": [r[1] for r in piece]}, schema))
        sides.append([sorted(zip(*t.to_pydict().values(), strict=True)) for t in side.tables()])
        side.close()
    assert sides[0] == sides[1]
    assert sorted(r for bucket in sides[0] for r in bucket) == sorted(rows)


def test_buckets_of_one_side_are_of_similar_size(tmp_path: Path) -> None:
    side = Side(tmp_path, pa.schema([("id", pa.int64())]), [0], 16)
    side.add(pa.RecordBatch.from_pydict({"id": np.arange(16_000)}, pa.schema([("id", pa.int64())])))
    sizes = [t.num_rows for t in side.tables()]
    assert sum(sizes) == 16_000
    assert max(sizes) < 2_000


def test_floats_are_the_same_by_their_bits_and_every_nan_is_one() -> None:
    left = pa.array([0.0, math.nan, None, 1.0, None], pa.float64())
    right = pa.array([-0.0, -math.nan, None, 1.0, 2.0], pa.float64())
    assert same(left, right).tolist() == [False, True, True, True, False]
