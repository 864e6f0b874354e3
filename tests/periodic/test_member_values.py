from __future__ import annotations

from datetime import date
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pytest

from syncline.capture.redis.settings import MembersConfig
from syncline.capture.redis.values import parsed

READ = [
    ("int4", b"5", 5),
    ("int8", b"1e+17", 10**17),
    ("int4", b"1e+17", None),
    ("int4", b"1.5", None),
    ("int4", b"nan", None),
    ("float8", b"1.5", 1.5),
    ("numeric(12,2)", b"10.25", Decimal("10.25")),
    ("numeric(12,2)", b"10.255", None),
    ("bool", b"true", True),
    ("date", b"2024-02-29", date(2024, 2, 29)),
    ("date", b"2023-02-29", None),
    ("text", b"\xc3\xa4", "\u00e4"),
    ("text", b"\xff", None),
    ("text", b"a\0b", None),
    ("timestamptz", b"yesterday", None),
]


@pytest.mark.parametrize(("kind", "raw", "value"), READ)
def test_a_value_is_read_as_its_type_or_set_aside(kind: str, raw: bytes, value: Any) -> None:
    values, bad = parsed(pa.array([raw], pa.binary()), kind, "UTC")
    assert values.to_pylist() == [value]
    assert bad.tolist() == [value is None]


def test_bad_values_among_many_are_found_each_and_null_is_not_bad() -> None:
    raw: list[bytes | None] = [str(n).encode() for n in range(1000)]
    raw[3], raw[500], raw[999] = b"x", None, b"y"
    values, bad = parsed(pa.array(raw, pa.binary()), "int8", "UTC")
    assert [n for n, wrong in enumerate(bad) if wrong] == [3, 999]
    assert [n for n, value in enumerate(values.to_pylist()) if value is None] == [3, 500, 999]


@pytest.mark.parametrize("raw", [b"2024-07-01T14:00:00", b"2024-07-01 12:00:00Z", b"2024-07-01T05:00:00-0700"])
def test_times_in_any_zone_are_one_moment(raw: bytes) -> None:
    values, _ = parsed(pa.array([raw], pa.binary()), "timestamptz", "Europe/Berlin")
    assert values.cast(pa.int64()).to_pylist() == [1719835200000000]
    plain, _ = parsed(pa.array([raw], pa.binary()), "timestamp", "Europe/Berlin")
    assert plain.cast(pa.int64()).to_pylist() == [1719835200000000]


@pytest.mark.parametrize(
    ("column", "said"),
    [
        ({}, "either sorted_set or hash"),
        ({"sorted_set": "a", "hash": "b"}, "either sorted_set or hash"),
        ({"sorted_set": "a:{member}"}, "can't hold {member}"),
        ({"hash": "a", "field": "b"}, "needs a hash for each member"),
        ({"hash": "a", "type": "int4", "default": "x"}, "default is no int4"),
    ],
)
def test_a_column_that_is_nowhere_or_in_two_places_is_refused(column: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        MembersConfig.model_validate({"url": "redis://h", "table": "t", "columns": {"c": column}})
