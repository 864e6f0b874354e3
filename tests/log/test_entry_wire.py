"""An entry's bytes: what goes in comes out, and damaged bytes are never taken for an entry."""

from __future__ import annotations

import contextlib
import datetime as dt
from decimal import Decimal
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from syncline.change import (
    MAX_VERSION,
    Batch,
    Column,
    Entry,
    Loaded,
    Marker,
    Op,
    Part,
    TableSchema,
    Truncate,
    arrow_type,
    make_batch,
)
from syncline.errors import Damaged
from syncline.log.rows import Row
from syncline.testing import example_batch, example_entry
from syncline.wire import decode_entry, encode_entry

TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=40)
MOMENT = st.datetimes()
VALUES: dict[str, st.SearchStrategy[Any]] = {
    "bool": st.booleans(),
    "int2": st.integers(-(2**15), 2**15 - 1),
    "int4": st.integers(-(2**31), 2**31 - 1),
    "int8": st.integers(-(2**63), 2**63 - 1),
    "float4": st.floats(width=32, allow_nan=False),
    "float8": st.floats(allow_nan=False),
    "numeric(12,2)": st.decimals(Decimal("-9999999999.99"), Decimal("9999999999.99"), places=2),
    "bytes": st.binary(max_size=40),
    "uuid": st.binary(min_size=16, max_size=16),
    "date": st.dates(),
    "time": st.times(),
    "timestamp": MOMENT,
    "timestamptz": MOMENT.map(lambda moment: moment.replace(tzinfo=dt.UTC)),
    "json": TEXT,
    "text": TEXT,
}


@st.composite
def schemas(draw: st.DrawFn) -> TableSchema:
    types = draw(st.lists(st.sampled_from(sorted(VALUES)), min_size=1, max_size=12))
    names = draw(st.lists(TEXT.filter(bool), min_size=len(types), max_size=len(types), unique=True))
    keys = draw(st.integers(1, len(types)))
    columns = tuple(Column(n, t, t, key=i < keys) for i, (n, t) in enumerate(zip(names, types, strict=True)))
    return TableSchema(draw(TEXT.filter(bool)), draw(TEXT.filter(bool)), columns)


@st.composite
def batches(draw: st.DrawFn) -> Batch:
    schema = draw(schemas())
    rows = draw(st.integers(0, 8))
    inexact = draw(st.sets(st.sampled_from([c.name for c in schema.columns]), max_size=1))
    columns = []
    for column in schema.columns:
        as_text = column.name in inexact
        values = TEXT if as_text else VALUES[column.type]
        drawn = draw(st.lists(st.none() | values, min_size=rows, max_size=rows))
        columns.append(pa.array(drawn, pa.string() if as_text else arrow_type(column.type)))
    numbers = draw(st.lists(st.integers(0, 2**53), min_size=rows, max_size=rows))
    masks = draw(st.none() | st.lists(st.none() | st.binary(max_size=4), min_size=rows, max_size=rows))
    repeat = draw(st.integers(1, 30))  # some batches are large enough to be compressed
    batch = make_batch(
        schema,
        columns,
        op=pa.array([Op.UPDATE] * rows, pa.int8()),
        version=pa.array(numbers, pa.int64()),
        ordinal=pa.array(range(rows), pa.int64()),
        commit_time=pa.array(numbers, pa.int64()).cast(pa.timestamp("us", "UTC")),
        xid=pa.array(numbers, pa.int64()),
        unchanged=None if masks is None else pa.array(masks, pa.binary()),
        old_key=_old_key(schema, columns) if draw(st.booleans()) and not inexact else None,
    )
    return Batch(schema, batch.rows.take(pa.array(np.tile(np.arange(rows), repeat))))


def _old_key(schema: TableSchema, columns: list[pa.Array]) -> pa.Array:
    fields = [pa.field(c.name, arrow_type(c.type)) for c in schema.key]
    return pa.StructArray.from_arrays([columns[i] for i in schema.key_positions], fields=fields)


ITEMS = st.one_of(
    batches(),
    st.builds(Truncate, schemas(), st.integers(0, 2**53)),
    st.builds(
        Marker,
        st.sampled_from(["progress", "reading", "load_started", "loaded", "reshaped", "gap"]),
        TEXT,
        st.none() | st.builds(Loaded, TEXT, st.integers(0, MAX_VERSION), TEXT),
    ),
)
PLACES = st.integers(0, 2**63 - 1)
ENTRIES = st.builds(
    Entry,
    st.lists(ITEMS, max_size=4).map(tuple),
    PLACES,
    PLACES,
    st.integers(1, 1000),
    PLACES,
    st.none() | st.lists(TEXT, max_size=3).map(tuple),
    st.none() | st.builds(Part, st.integers(0, 10**6), st.booleans()),
)


@settings(max_examples=100, deadline=None)
@given(ENTRIES)
@example(example_entry(rows=0))
@example(example_entry(rows=64))
@example(example_entry(rows=65))
@example(example_entry(example_batch(40, note="x" * 5000)))
def test_an_entry_comes_back_as_it_was(entry: Entry) -> None:
    decoded = decode_entry(*encode_entry(entry))
    assert decoded == entry
    for item, back in zip(entry.items, decoded.items, strict=True):
        if isinstance(item, Batch) and isinstance(back, Batch):
            back.rows.validate(full=True)
            assert back.rows.schema == item.rows.schema
            assert (back.partial, back.rekeys) == (item.partial, item.rekeys)


def test_a_slice_is_stored_without_the_rows_around_it() -> None:
    whole = example_batch(10_000, width=300)
    part = Batch(whole.schema, whole.rows.slice(5000, 3))
    head, body = encode_entry(Entry((part,)))
    assert decode_entry(head, body).items == (part,)
    assert len(body) < 5000


def test_entries_of_one_table_share_its_schema_object() -> None:
    first, second = (decode_entry(*encode_entry(example_entry(version=v))).items[0] for v in (1, 2))
    assert isinstance(first, Batch)
    assert isinstance(second, Batch)
    assert first.schema is second.schema


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_any_changed_bit_changes_the_checksum(data: st.DataObject) -> None:
    head, body = encode_entry(example_entry(rows=data.draw(st.sampled_from([1, 200]))))
    row = Row(5, 1, 101, 1, 100, 4000, None, False, len(head) + len(body), head, body)
    stored = bytearray(head + body)
    bit = data.draw(st.integers(0, len(stored) * 8 - 1))
    stored[bit // 8] ^= 1 << bit % 8
    harmed = msgspec.structs.replace(row, head=bytes(stored[: len(head)]))
    assert harmed.digest(bytes(stored[len(head) :])) != row.digest(body)


@pytest.mark.parametrize("field", ["n", "created", "place", "incarnation", "max_version", "total", "series"])
def test_the_numbers_of_a_row_are_part_of_its_checksum(field: str) -> None:
    row = Row(5, 1, 101, 1, 100, 4000, 3, False, 6, b"head", b"body")
    assert msgspec.structs.replace(row, **{field: getattr(row, field) + 1}).digest(b"body") != row.digest(b"body")
    assert msgspec.structs.replace(row, unfinished=True).digest(b"body") != row.digest(b"body")


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_a_harmed_head_or_a_cut_body_is_damage_or_an_entry_but_no_other_error(data: st.DataObject) -> None:
    """The checksum comes first; this is for a checksum that was right when it should not have been."""
    head, body = encode_entry(
        example_entry(example_batch(2), Truncate(example_batch(1).schema, 5), Marker("progress"), targets=("a",))
    )
    harmed = bytearray(head)
    harmed[data.draw(st.integers(0, len(harmed) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(body) - 1))
    with pytest.raises(Damaged):
        decode_entry(head, body[:cut])
    with contextlib.suppress(Damaged):
        decode_entry(bytes(harmed), body)


def test_an_entry_that_says_a_batch_has_no_bytes_is_damage() -> None:
    head, body = encode_entry(example_entry(example_batch(2)))
    parsed = msgspec.msgpack.decode(head)
    for item in parsed["items"]:
        item["size"] = 0
    with pytest.raises(Damaged):
        decode_entry(msgspec.msgpack.encode(parsed), body)


def test_an_entry_of_a_newer_format_says_which_version_to_run() -> None:
    head = msgspec.msgpack.encode({"format": 99, "items": []})
    with pytest.raises(Damaged, match="format 99") as caught:
        decode_entry(head, b"")
    assert "upgrade" in caught.value.remedy
