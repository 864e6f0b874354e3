"""Values in a PostgreSQL target, looked at by a plain driver, and what never gets into an error."""

from __future__ import annotations

import math
import random
import traceback
from decimal import Decimal
from typing import Any

import msgspec
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pg_target import opened, table_of
from pydantic import ValidationError

from servers import Database
from syncline.change import Column, arrow_type
from syncline.errors import Rejected, SynclineError
from syncline.stores import Folded, TableWork
from syncline.stores.postgres import PostgresConfig, PostgresStore
from syncline.testing.store_suite import ITEM, VALUES, Rows, contents, work
from syncline.testing.store_works import texts

_I64 = 2**63 - 1


def test_values_read_as_postgresql_users_expect(database: Database) -> None:
    identity = bytes.fromhex("00112233445566778899aabbccddeeff")
    row = [1, True, 2, 3, 1.5, 2.5, Decimal("1.25"), b"\x01", identity, 20_000, 86_400_000_000, 0, _I64]
    with opened(database, VALUES) as store:
        store.apply(work(Rows(VALUES).upsert(7, *row, '{"a": [1, 12345678901234567890]}', "text")))
    found = database.execute(
        "select uuid::text, date::text, time::text, timestamp::text, timestamptz::text, json->'a'->>1, numeric::text,"
        ' bytes::text, float4::text, "select", _syncline_version from "values"'
    )
    assert found == [
        (
            *("00112233-4455-6677-8899-aabbccddeeff", "2024-10-04", "24:00:00", "1970-01-01 00:00:00", "infinity"),
            *("12345678901234567890", "1.2500000000", "\\x01", "1.5", "text", 7),
        )
    ]


def test_values_beyond_arrows_types_are_kept_as_postgresql_has_them(database: Database) -> None:
    text = ("numeric", "date", "timestamp", "timestamptz")
    rows = (
        Rows(VALUES, text=text)
        .upsert(5, *texts(1, "NaN", "4713-01-01 BC", None, "294276-12-31 23:59:59.999999", "0044-03-15 12:00:00+00 BC"))
        .upsert(5, *texts(2, "1.5", "5874897-12-31", None, "-infinity", "infinity"))
    )
    with opened(database, VALUES) as store:
        store.apply(work(rows))
        seen = 'select numeric::text, date::text, timestamp::text, timestamptz::text from "values"'
        assert database.execute(seen) == [
            ("NaN", "4713-01-01 BC", "294276-12-31 23:59:59.999999", "0044-03-15 12:00:00+00 BC"),
            ("1.5000000000", "5874897-12-31", "-infinity", "infinity"),
        ]
        # Read back, such a column is text as a whole, as in a batch from the source.
        (batch,) = store.scan(VALUES)
        assert batch.column("numeric").to_pylist() == ["NaN", "1.5000000000"]
        assert batch.column("timestamp").to_pylist() == ["294276-12-31 23:59:59.999999", "-infinity"]
        assert batch.column("date").type == pa.date32()
        assert [v.value for v in batch.column("date")] == [-2_440_550, 2_145_042_905]


def test_lists_and_vectors_of_mappings_become_arrays(database: Database) -> None:
    schema = table_of(
        "lists",
        Column("tags", "texts", "transform"),
        Column("dense", "vector", "real[]"),
        Column("few", "sparse", "transform"),
    )
    rows: list[tuple[Any, ...]] = [
        (['a "b" \\ {c}', "", None, "NULL", "ä,b"], [1.5, -0.0, 3e38], {"indices": [1, 9], "values": [0.5, 1e-45]}),
        ([], [], {"indices": [], "values": []}),
        (None, None, None),
        ([None], [math.inf, 0.1], None),
    ]
    with opened(database, schema) as store:
        batch = Rows(schema)
        for key, row in enumerate(rows):
            batch.upsert(5, key, *row)
        store.apply(work(batch))
        found = contents(store, schema)
        for key, (tags, dense, few) in enumerate(rows):
            assert found[key][0] == tags
            assert found[key][1] == pa.array([dense], pa.list_(pa.float32())).to_pylist()[0]
            assert found[key][2] == pa.array([few], arrow_type("sparse")).to_pylist()[0]
        assert database.execute("select tags, cardinality(dense) from lists order by id")[1:3] == [
            ([], 0),
            (None, None),
        ]


def test_a_large_value_passes(database: Database) -> None:
    large = "ä" * (25 * 1024 * 1024)
    with opened(database, ITEM) as store:
        store.apply(work(Rows().upsert(5, 1, large, None).upsert(5, 2, "small", None)))
        sizes = database.execute("select id, octet_length(name) from item order by id")
        assert sizes == [(1, 50 * 1024 * 1024), (2, 5)]
        assert contents(store)[1][0] == large


def test_a_value_that_is_too_long_for_an_index_is_parked(database: Database) -> None:
    schema = msgspec.structs.replace(ITEM, columns=(Column("id", "text", "text", key=True), *ITEM.columns[1:]))
    noise = random.Random(1).randbytes(20_000).hex()
    with opened(database, schema) as store:
        with pytest.raises(Rejected) as refused:
            store.apply(work(Rows(schema).upsert(5, "short", None, None).upsert(5, noise, None, None)))
        assert refused.value.rows == (1,)


@pytest.mark.parametrize("kind", ["numeric(12,2)", "integer[]", "character varying(3)", "jsonb"])
def test_errors_tell_no_values(database: Database, kind: str) -> None:
    secret = "secret-4711-value"
    logical = "json" if kind == "jsonb" else kind if kind.startswith("numeric") else "text"
    schema = table_of("secrets", Column("value", logical, kind))
    with opened(database, schema) as store, pytest.raises(SynclineError) as refused:
        store.apply(work(Rows(schema, text=("value",)).upsert(5, 1, secret)))
    assert secret not in str(refused.value)
    shown = traceback.format_exception_only(refused.value)
    assert secret not in "".join(shown)


def test_the_password_never_gets_into_an_error() -> None:
    store = PostgresStore(PostgresConfig.model_validate({"dsn": "postgresql://u:s3cret@127.0.0.1:1/db"}), "target")
    with pytest.raises(SynclineError) as away:
        store.open("orders")
    assert "s3cret" not in str(away.value)
    assert "s3cret" not in repr(store.config)
    for unreadable in ("postgresql://u:s3cret@[bad", "host=x password=s3cret nonsense"):
        with pytest.raises(ValidationError) as refused:
            PostgresConfig.model_validate({"dsn": unreadable})
        assert "can't be read" in str(refused.value)
        assert "s3cret" not in str(refused.value)


_SECONDS = 10**6
_VALUE: dict[str, st.SearchStrategy[Any]] = {
    "bool": st.booleans(),
    "int2": st.integers(-(2**15), 2**15 - 1),
    "int4": st.integers(-(2**31), 2**31 - 1),
    "int8": st.integers(-(2**63), 2**63 - 1),
    "float4": st.floats(width=32, allow_nan=False),
    "float8": st.floats(allow_nan=False),
    "numeric": st.decimals(-(10**27), 10**27, places=10),
    "bytes": st.binary(max_size=20),
    "uuid": st.binary(min_size=16, max_size=16),
    "date": st.integers(-2_440_588, 2_145_042_905) | st.sampled_from([2**31 - 1, -(2**31) + 1]),
    "time": st.integers(0, 86_400 * _SECONDS),
    "timestamp": st.integers(-210_866_803_200 * _SECONDS, _I64 - 1) | st.sampled_from([_I64, -_I64]),
    "timestamptz": st.integers(-210_866_803_200 * _SECONDS, _I64 - 1) | st.sampled_from([_I64, -_I64]),
    "json": st.sampled_from(["null", '{"a": 1.10}', "[]", "123456789012345678901234567890"]),
    "select": st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=20),
}


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(rows=st.lists(st.tuples(*(st.none() | _VALUE[c.name] for c in VALUES.columns[1:])), min_size=1, max_size=12))
def test_any_values_come_back_as_they_went_in_also_from_a_slice(
    database: Database, rows: list[tuple[Any, ...]]
) -> None:
    with opened(database, VALUES) as store:
        batch = Rows(VALUES)
        for key, row in enumerate(rows):
            batch.upsert(5, key, *row)
        whole = batch.table()
        assert whole.rows.upserts is not None
        store.apply(work(whole))
        expected = {key: (*row, 5) for key, row in enumerate(rows)}
        assert contents(store, VALUES) == expected
        store.apply(work(TableWork(VALUES, Folded(whole.rows.upserts.slice(len(rows) // 2)))))
        assert contents(store, VALUES) == expected
    database.execute('drop table "values"')
