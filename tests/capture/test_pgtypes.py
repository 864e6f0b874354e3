"""Types: which becomes which, and that text and binary of the real server become the same exact Arrow values."""

from __future__ import annotations

import datetime
import io
import struct
import uuid
from decimal import Decimal
from typing import Any

import psycopg
import pyarrow as pa
import pytest
from wire import plain

from servers import Database
from syncline.capture.pgoutput import decode_copy
from syncline.capture.source import Dsn, connect
from syncline.change import Column, TableSchema, arrow_type
from syncline.pgvalues.pgtypes import BINARY_EXACT, binary_exact, cast_binary, cast_text, logical_type

INFINITE_DAY, INFINITE_TIME = 2**31 - 1, 2**63 - 1
DAY = 86_400_000_000


def epoch(year: int, month: int = 1, day: int = 1, hour: int = 0, minute: int = 0, second: int = 0, us: int = 0) -> int:
    moment = datetime.datetime(year, month, day, hour, minute, second, us, datetime.UTC)
    return (moment - datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)) // datetime.timedelta(microseconds=1)


# (type in SQL, logical type, [(SQL literal, storage value)]): every value is exact.
EXACT: list[tuple[str, str, list[tuple[str, Any]]]] = [
    ("boolean", "bool", [("t", True), ("f", False)]),
    ("smallint", "int2", [("-32768", -32768), ("32767", 32767), ("0", 0)]),
    ("integer", "int4", [("-2147483648", -(2**31)), ("2147483647", 2**31 - 1)]),
    ("bigint", "int8", [("-9223372036854775808", -(2**63)), ("9223372036854775807", 2**63 - 1), ("7", 7)]),
    ("oid", "int8", [("4294967295", 2**32 - 1), ("0", 0)]),
    ("xid", "int8", [("4294967295", 2**32 - 1)]),
    ("cid", "int8", [("4294967295", 2**32 - 1)]),
    ("real", "float4", [("1.1", 1.100000023841858), ("-0", -0.0), ("3.4028235e38", 3.4028234663852886e38)]),
    (
        "double precision",
        "float8",
        [
            ("0.1", 0.1),
            ("-0", -0.0),
            ("Infinity", float("inf")),
            ("-Infinity", float("-inf")),
            ("NaN", float("nan")),
            ("5e-324", 5e-324),
            ("1.7976931348623157e308", 1.7976931348623157e308),
            ("123456789.12345679", 123456789.12345679),
        ],
    ),
    (
        "numeric(12,2)",
        "numeric(12,2)",
        [
            (v, Decimal(v))
            for v in ("0.00", "-0.01", "9999999999.99", "-9999999999.99", "10000.00", "0.10", "100000000.00")
        ],
    ),
    ("numeric(38,0)", "numeric(38,0)", [("9" * 38, Decimal("9" * 38)), ("-" + "9" * 38, Decimal("-" + "9" * 38))]),
    ("numeric(38,38)", "numeric(38,38)", [("0." + "9" * 38, Decimal("0." + "9" * 38)), ("-1e-38", Decimal("-1e-38"))]),
    ("numeric(19,9)", "numeric(19,9)", [(v, Decimal(v)) for v in ("9999999999.999999999", "-1.000000001", "0E-9")]),
    (
        "numeric(20,0)",
        "numeric(20,0)",
        [("10000000000000000000", Decimal(10**19)), ("9999999999999999999", Decimal(10**19 - 1))],
    ),
    ("bytea", "bytes", [("\\x", b""), ("\\x00ff5c", b"\x00\xff\\"), ("\\x" + "ab" * 300, b"\xab" * 300)]),
    ("uuid", "uuid", [(v, uuid.UUID(v).bytes) for v in ("0" * 32, "f" * 32, "123e4567e89b12d3a456426614174000")]),
    (
        "date",
        "date",
        [
            ("1970-01-01", 0),
            ("2024-02-29", 19782),
            ("0001-01-01", -719162),
            ("0001-12-31 BC", -719163),
            ("4714-11-24 BC", -2440588),
            ("10000-01-01", 2932897),
            ("5874897-12-31", 2145042905),
            ("infinity", INFINITE_DAY),
            ("-infinity", -INFINITE_DAY),
        ],
    ),
    ("time", "time", [("00:00:00", 0), ("24:00:00", DAY), ("23:59:59.999999", DAY - 1), ("01:02:03.5", 3_723_500_000)]),
    (
        "timestamp",
        "timestamp",
        [
            ("1970-01-01 00:00:00", 0),
            ("2024-02-29 12:34:56.789", epoch(2024, 2, 29, 12, 34, 56, 789000)),
            ("1969-12-31 23:59:59.999999", -1),
            ("0044-03-15 00:00:00 BC", -63_517_824_000_000_000),
            ("infinity", INFINITE_TIME),
            ("-infinity", -INFINITE_TIME),
        ],
    ),
    (
        "timestamptz",
        "timestamptz",
        [
            ("2024-02-29 12:34:56.789+02", epoch(2024, 2, 29, 10, 34, 56, 789000)),
            ("2024-01-01 00:00:00+00", epoch(2024)),
            ("9999-12-31 23:59:59.999999+00", epoch(9999, 12, 31, 23, 59, 59, 999999)),
            ("10000-01-01 00:00:00+00", epoch(9999, 12, 31) + DAY),
            ("0001-01-01 00:00:00+00", epoch(1)),
            ("0001-12-31 23:59:59+00 BC", epoch(1) - 1_000_000),
            ("infinity", INFINITE_TIME),
            ("-infinity", -INFINITE_TIME),
        ],
    ),
    ("json", "json", [('{"a": 9007199254740993, "b":  1}', '{"a": 9007199254740993, "b":  1}')]),
    ("jsonb", "json", [('{"b": 1.10, "a": 9007199254740993}', '{"a": 9007199254740993, "b": 1.10}')]),
    (
        "text",
        "text",
        [("", ""), ("grüß \u00e9 \U0001f600", "grüß \u00e9 \U0001f600"), ("NULL", "NULL"), ("\\x41", "\\x41")],
    ),
    ("varchar(7)", "text", [("seven  ", "seven  ")]),
    ("char(5)", "text", [("ab", "ab   ")]),
    ("name", "text", [("pg_class", "pg_class")]),
]

# (type in SQL, values): one of them has no exact form, so the column is PostgreSQL's text.
INEXACT = [
    ("numeric(12,2)", ["1.50", "NaN", "-0.05", "10000.00"]),
    ("numeric(38,10)", ["123456789012345678.0000000001", "NaN", "0.0000000000"]),
    (
        "timestamp",
        ["294276-12-31 23:59:59.999999", "2024-01-01 00:00:00.5", "infinity", "-infinity", "0044-03-15 01:02:03 BC"],
    ),
    ("timestamptz", ["294276-12-31 23:59:59.999999+00", "2024-01-01 00:00:00+00", "0044-03-15 00:00:00.000001+00 BC"]),
]


def copied(database: Database, sql_type: str, values: list[str | None], *, binary: bool) -> tuple[pa.Array, int, int]:
    """A column as the initial load reads it, through COPY, in its type's own binary form or as text."""
    with connect(Dsn(database.dsn, "source.dsn")) as connection:
        connection.execute(f"create temp table t (i serial, v {sql_type})")
        with connection.cursor() as cursor:
            cursor.executemany(f"insert into t (v) values (%s::text::{sql_type})", [(v,) for v in values])
            cursor.execute(
                "select atttypid::int, atttypmod from pg_attribute where attrelid = 't'::regclass and attname = 'v'"
            )
            oid, typmod = cursor.fetchone() or (0, 0)
            # format prints what the type's output function does; a cast to text may differ (booleans, char).
            column = "v" if binary else "case when v is not null then format('%s', v) end"
            stream = io.BytesIO()
            with cursor.copy(f"copy (select {column} from t order by i) to stdout (format binary)") as copy:
                for block in copy:
                    stream.write(block)
    logical = logical_type(oid, typmod)
    schema = TableSchema("public", "t", (Column("v", logical, sql_type),))
    payloads = copy_rows(stream.getvalue())
    assert len(payloads) == len(values)
    batch = decode_copy(schema, [(oid, typmod)], payloads, [binary], version=1, commit_time=0, first_ordinal=0)
    return batch.rows.column(0), oid, typmod


def copy_rows(stream: bytes) -> list[bytes]:
    """Rows of one column of a binary COPY."""
    place, rows = 19, []
    while (count := struct.unpack_from(">h", stream, place)[0]) != -1:
        assert count == 1
        width = max(struct.unpack_from(">i", stream, place + 2)[0], 0)
        rows.append(stream[place : place + 6 + width])
        place += 6 + width
    return rows


@pytest.mark.parametrize(("sql_type", "logical", "pairs"), EXACT, ids=[e[0] for e in EXACT])
def test_text_and_binary_of_the_server_give_the_same_exact_values(
    database: Database, sql_type: str, logical: str, pairs: list[tuple[str, Any]]
) -> None:
    given: list[str | None] = [None, *(literal for literal, _ in pairs), None, pairs[0][0]]
    expected = [None, *(value for _, value in pairs), None, pairs[0][1]]
    for binary in (False, True):
        array, oid, typmod = copied(database, sql_type, given, binary=binary)
        assert logical_type(oid, typmod) == logical
        assert binary_exact(oid, typmod)
        assert array.type == arrow_type(logical)
        array.validate(full=logical != "time")  # Arrow's times end before 24:00:00
        assert repr(plain(array)) == repr(expected), "binary" if binary else "text"
        whole, _, _ = copied(database, sql_type, [literal for literal, _ in pairs], binary=binary)
        assert repr(plain(whole)) == repr([value for _, value in pairs])


@pytest.mark.parametrize(("sql_type", "values"), INEXACT, ids=[e[0] for e in INEXACT])
def test_a_value_without_exact_form_makes_the_column_postgres_own_text(
    database: Database, sql_type: str, values: list[str]
) -> None:
    for binary in (False, True):
        array, _, _ = copied(database, sql_type, [*values, None], binary=binary)
        assert array.type == pa.string()
        assert array.to_pylist() == [*values, None]


def test_times_of_all_centuries_are_the_same_in_text_and_in_binary(database: Database) -> None:
    with connect(Dsn(database.dsn, "source.dsn")) as connection:
        rows = connection.execute(
            "select v::text from"
            " generate_series(timestamp '4713-01-03 05:06:07.08 BC', '9999-12-31', '11 years 3 days 7 hours') v"
        ).fetchall()
    values = [r[0] for r in rows]
    assert len(values) > 1000
    for sql_type in ("timestamp", "timestamptz", "date"):
        array, _, _ = copied(database, sql_type, values, binary=False)
        same, _, _ = copied(database, sql_type, values, binary=True)
        assert plain(array) == plain(same)
        assert array.type == same.type != pa.string()


def test_every_binary_exact_type_is_tried_against_the_server() -> None:
    names = {s.partition("(")[0] for s, _, _ in EXACT}
    by_name = {"double precision": "float8", "boolean": "bool", "char": "bpchar", "real": "float4"}
    tried = {psycopg.adapters.types[by_name.get(name, name)].oid for name in names}
    assert tried == BINARY_EXACT


@pytest.mark.parametrize(
    ("oid", "typmod", "logical"),
    [
        (1700, -1, "text"),
        (1700, (10 << 16 | 2) + 4, "numeric(10,2)"),
        (1700, (38 << 16 | 0) + 4, "numeric(38,0)"),
        (1700, (39 << 16 | 0) + 4, "text"),
        (1700, (3 << 16 | 5) + 4, "text"),  # more digits behind the point than digits
        (1700, (5 << 16 | 0x7FE) + 4, "text"),  # a negative scale
        (1007, -1, "text"),  # integer[]
        (1186, -1, "text"),  # interval
        (1266, -1, "text"),  # timetz
        (790, -1, "text"),  # money
        (869, -1, "text"),  # inet
        (5069, -1, "text"),  # xid8 doesn't fit an int8
        (18, 5, "text"),  # "char"
        (99_999, -1, "text"),
    ],
)
def test_types_without_an_exact_form_are_text(oid: int, typmod: int, logical: str) -> None:
    assert logical_type(oid, typmod) == logical
    assert binary_exact(oid, typmod) == (logical != "text")


@pytest.mark.parametrize(
    ("logical", "wrong"),
    [
        ("int8", "0x1F"),
        ("int8", "9223372036854775808"),
        ("int2", "32768"),
        ("int4", ""),
        ("float8", "one"),
        ("bool", "true"),
        ("uuid", "123e4567-e89b-12d3-a456-42661417400g"),
        ("uuid", "123e4567e89b12d3a456426614174000----"),
        ("bytes", "\\x0"),
        ("bytes", "0x00"),
        ("bytes", "\\x0g"),
        ("date", "2024-02-30"),
        ("date", "2024-01-01 AC"),
        ("time", "24:00:01"),
        ("time", "12:34"),
        ("timestamp", "2024-01-01"),
        ("timestamp", "2024-01-01 00:00:00+00"),
        ("timestamptz", "2024-01-01 00:00:00"),
        ("timestamptz", "2024-01-01 00:00:00+02"),
        ("numeric(5,2)", "1.234"),
        ("numeric(5,2)", "1234.00"),
        ("numeric(5,2)", "1e2"),
        ("numeric(5,2)", "nan"),
    ],
)
def test_text_that_postgres_does_not_print_is_refused(logical: str, wrong: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 (Arrow's own error is one)
        cast_text(pa.array([wrong]), logical)


@pytest.mark.parametrize(
    ("oid", "logical", "wrong"),
    [
        (20, "int8", b"\0\0\0\1"),
        (16, "bool", b"\2"),
        (2950, "uuid", b"\0" * 15),
        (3802, "json", b"\2{}"),
        (3802, "json", b""),
        (25, "text", b"\xff"),
        (1083, "time", struct.pack(">q", -1)),
        (1083, "time", struct.pack(">q", DAY + 1)),
        (1082, "date", struct.pack(">i", 2**31 - 2)),
        (1700, "numeric(4,2)", b"\0\1"),
        (1700, "numeric(4,2)", struct.pack(">HhHHH", 1, 0, 0, 2, 10_000)),
        (1700, "numeric(4,2)", struct.pack(">HhHHH", 1, 0, 0, 2, 100)),
        (1700, "numeric(4,2)", struct.pack(">HhHHH", 1, 0, 0x1234, 2, 1)),
        (1700, "numeric(4,2)", struct.pack(">HhHHH", 1, 9000, 0, 2, 1)),
        (1700, "numeric(38,2)", struct.pack(">HhHHH", 1, 9, 0, 2, 1)),
    ],
)
def test_binary_that_is_not_the_layout_of_its_type_is_refused(oid: int, logical: str, wrong: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 (Arrow's own error is one)
        cast_binary(pa.array([wrong], pa.binary()), oid, logical)


def test_columns_without_rows_or_without_values_have_their_type() -> None:
    for _, logical, _ in EXACT:
        assert cast_text(pa.array([], pa.string()), logical).type == arrow_type(logical)
        nothing = cast_text(pa.array([None, None], pa.string()), logical)
        assert nothing.type == arrow_type(logical)
        assert nothing.to_pylist() == [None, None]


def test_a_slice_of_a_column_casts_like_the_whole() -> None:
    whole = pa.array(["1", "22", None, "333", "4"])
    assert cast_text(whole.slice(1, 3), "int8").to_pylist() == [22, None, 333]
    assert cast_text(whole.slice(3, 1), "text").to_pylist() == ["333"]
