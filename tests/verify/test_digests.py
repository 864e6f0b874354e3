"""Digests: PostgreSQL and we give a row the same facts, and every kind of damage changes the digest of its bucket."""

from __future__ import annotations

import threading
import uuid
from typing import Any

import numpy as np
import psycopg
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from piped import Pipeline

from servers import Database
from syncline.capture import Digesting
from syncline.capture.postgres import PostgresTables
from syncline.digests import Buckets, Chosen, summed
from syncline.pgvalues.digests import digest_of, numbers_of
from syncline.pgvalues.hashes import hash_bytes, hash_double, hash_int4, hash_int8_folded, hash_words
from syncline.pipeline import SyncService
from syncline.verify import digest as verify_digest
from syncline.verify import table, verify
from syncline.verify.repair import repair
from syncline.verify.report import TableReport

_SEEDS = st.integers(-(2**63), 2**63 - 1)
_ROWS = 12_000  # enough for digests to be worth it

_VALUES = {
    "bool": ["true", "false"],
    "int2": ["-1", "32767", "0"],
    "int4": ["-2147483648", "2147483647", "0"],
    "int8": ["-9223372036854775808", "9223372036854775807", "4294967296", "0", "-1"],
    "float4": ["0", "-0", "NaN", "Infinity", "1e20", "0.1"],
    "float8": ["0", "-0", "NaN", "-Infinity", "1e-7", "1e300", "0.1"],
    "numeric(12,3)": ["-0.5", "999999999.999", "0", "0.001", "7"],
    "numeric(20,10)": ["0", "0.0000000001", "-0.00000012", "1234567890.1234567891"],
    "numeric(38,38)": ["0", "-0.00000000000000000000000000000000000001", "0.1"],
    "numeric": ["1e30", "0.10", "NaN"],
    "uuid": ["00000000-0000-0000-0000-0000000000ff", "ffffffff-ffff-ffff-ffff-ffffffffffff"],
    "date": ["1999-12-31", "0044-03-15 BC", "9999-12-31", "infinity", "-infinity"],
    "time": ["23:59:59.999999", "00:00", "12:00:01.5"],
    "timestamp": ["1970-01-01", "infinity", "-infinity", "2000-01-01", "1969-12-31 23:59:59.999999"],
    "timestamptz": ["1970-01-01", "-infinity", "0044-03-15 BC", "2026-11-27 03:04:05.678901+02", "9999-12-31"],
    "bytea": ["\\x00ff", "", "\\xdeadbeef"],
    "jsonb": ['{"a": [1, null]}', "null", '"x|y"'],
    "json": ['{"a" : 1}', "[]"],
    "text": ["", "äöü😀", "12 bytes in.", "lang " * 1000],
    "varchar(40)": ["ab", ""],
    "char(5)": ["ab", ""],
    "int[]": ["{1,2}", "{}"],
    "interval": ["1 day", "1 mon"],
}
# We give these another hash than PostgreSQL, so their buckets are read.
_OTHERWISE = {
    ("date", "0044-03-15 BC"),
}


def test_both_give_values_of_every_type_the_same_digest(pipeline: Pipeline, database: Database) -> None:
    for n, (kind, values) in enumerate(_VALUES.items()):
        database.execute(f"create table t{n} (id int primary key, v {kind})")
        for i, value in enumerate([*values, None]):
            database.execute(f"insert into t{n} values (%s, %s)", i, value)

    otherwise = set()
    for n, (kind, values) in enumerate(_VALUES.items()):
        theirs, ours = _digests(pipeline, f"public.t{n}", Buckets(0, 0))
        assert theirs.column("bucket").to_pylist() == list(range(len(values) + 1)), kind
        equal = np.equal(theirs.column("facts").to_numpy(), ours.column("facts").to_numpy())
        otherwise |= {(kind, [*values, "NULL"][i]) for i in np.flatnonzero(~equal)}

    assert otherwise <= _OTHERWISE


@pytest.mark.parametrize("kind", ["int4", "text", "uuid", "timestamptz", "numeric(12,3)", "float8"])
def test_keys_of_every_type_are_spread_alike(pipeline: Pipeline, database: Database, kind: str) -> None:
    database.execute(f"create table t (id {kind} primary key, v text)")
    for value in _VALUES[kind]:
        if value != "-0" and (kind, value) not in _OTHERWISE:
            database.execute("insert into t values (%s, 'x')", value)

    theirs, ours = _digests(pipeline, "public.t", Buckets(3))

    assert theirs.equals(ours)


def test_a_partitioned_table_with_a_composite_key_is_summed_up_over_its_partitions(
    pipeline: Pipeline, database: Database
) -> None:
    database.execute(
        "create table parted (a text, b int, x text, primary key (a, b)) partition by hash (a);"
        "create table p0 partition of parted for values with (modulus 2, remainder 0);"
        "create table p1 partition of parted for values with (modulus 2, remainder 1);"
        "insert into parted select 'k' || g % 17, g, 'x' || g from generate_series(1, 500) g"
    )

    theirs, ours = _digests(pipeline, "public.parted", Buckets(3))

    assert theirs.equals(ours)
    assert sum(theirs.column("rows").to_pylist()) == 500


@pytest.mark.parametrize("buckets", [Buckets(5, 5), Buckets(5)])
def test_the_rows_of_chosen_buckets_are_those_whose_number_is_chosen(
    pipeline: Pipeline, database: Database, buckets: Buckets
) -> None:
    database.execute("create table t (id int primary key, number text)")
    database.execute("insert into t select g - 500, 'x' from generate_series(1, 1000) g")
    source = pipeline.config.source("main")
    (info,) = source.described(source.tables())
    assert isinstance(source, Digesting)
    stop = threading.Event()
    with source.point("test", lambda text: None) as at:
        (whole,) = source.rows(info, at, 0, stop, lambda told: None)
        numbers = numbers_of(whole.data(), whole.schema, buckets)
        wanted = np.unique(numbers)[::3]
        chosen = Chosen(buckets, pa.array(wanted, pa.int64()))
        found = [b.data() for b in source.chosen(info, at, chosen, stop, lambda told: None)]

    ids = pa.Table.from_batches(found).column(0).to_pylist()
    expected = whole.data().column(0).filter(pa.array(np.isin(numbers, wanted))).to_pylist()
    assert sorted(ids) == sorted(expected)
    assert ids


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(_SEEDS, st.text(max_size=40), st.integers(-(2**63), 2**63 - 1), st.floats()), min_size=1))
def test_the_hashes_are_those_of_postgres(database: Database, given: list[tuple[int, str, int, float]]) -> None:
    rows = [(seed, text.replace("\0", ""), number, double) for seed, text, number, double in given]
    seeds = np.array([r[0] for r in rows], np.int64)
    texts, numbers, doubles = (list(c) for c in list(zip(*rows, strict=True))[1:])
    uuids = [uuid.UUID(int=n % 2**64 << 60) for n in numbers]
    with psycopg.connect(database.dsn) as connection:
        expected = connection.execute(
            "select hashtextextended(t, s), hashint8extended(n, s), hashint4extended((n >> 33)::int4, s),"
            " hashfloat8extended(d, s), uuid_hash_extended(u, s) from"
            " unnest(%s::int8[], %s::text[], %s::int8[], %s::float8[], %s::uuid[]) with ordinality"
            " as x(s, t, n, d, u, o) order by o",
            [seeds.tolist(), texts, numbers, doubles, uuids],
        ).fetchall()

    whole = np.array(numbers, np.int64)
    words = np.frombuffer(b"".join(u.bytes for u in uuids), "<u4").reshape(-1, 4)
    ours = (
        hash_bytes(pa.array(texts, pa.string()), seeds),
        hash_int8_folded(whole, seeds),
        hash_int4(whole >> np.int64(33), seeds),
        hash_double(np.array(doubles), seeds),
        hash_words(words, seeds),
    )
    assert list(zip(*(o.tolist() for o in ours), strict=True)) == expected


_DAMAGE = {
    "a value changed": ("update t set x = 'other' where id = 7000", "different", 1),
    "a value became NULL": ("update t set y = null where id = 7000", "different", 1),
    "values swapped between two rows of a bucket": (
        "update t set x = case id when 7000 then 'x7001' else 'x7000' end where id in (7000, 7001)",
        "different",
        2,
    ),
    "values swapped between two columns": ("update t set x = y, y = x where id = 7000", "different", 1),
    "a row missing": ("delete from t where id = 7000", "missing", 1),
    "an extra row": ("insert into t select 900001, x, y, _syncline_version from t where id = 1", "extra", 1),
    "a row twice": ("insert into t select * from t where id = 7000", "extra", 1),
    "two rows twice": ("insert into t select * from t where id in (7000, 7001)", "extra", 2),
    "a version from the future": ("update t set _syncline_version = 9e18::bigint where id = 7000", "different", 1),
}


@pytest.mark.parametrize("key", ["bigint", "text"])
def test_every_kind_of_damage_is_found_among_rows_that_are_equal(
    pipeline: Pipeline, database: Database, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    database.execute(f"create table t (id {key} primary key, x text, y text)")
    database.execute(f"insert into t select g, 'x' || g, 'y' || g from generate_series(1, {_ROWS}) g")
    asked = _watched(monkeypatch)
    assert pipeline.verify().differences == 0
    assert asked == [0]  # by digests alone

    for what, (statement, kind, count) in _DAMAGE.items():
        pipeline.damage("create or replace table kept as select * from t", statement)
        (report,) = pipeline.verify().tables
        assert (what, getattr(report, kind), report.differences, report.rows) == (what, count, count, _ROWS)
        pipeline.damage("delete from t", "insert into t select * from kept")


@pytest.mark.parametrize("most", [40_000, 10])
def test_differences_in_every_bucket_are_all_found(
    pipeline: Pipeline, database: Database, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(table, "_MOST_CHOSEN", most)
    chosen, read = PostgresTables.chosen, []

    def choosing(*arguments: Any) -> Any:
        read.append(arguments)
        return chosen(*arguments)

    monkeypatch.setattr(PostgresTables, "chosen", choosing)
    database.execute("create table t (id bigint primary key, x text)")
    database.execute(f"insert into t select g, 'x' || g from generate_series(1, {_ROWS}) g")
    assert pipeline.verify().differences == 0
    pipeline.damage("update t set x = 'other' where id % 10 = 0", "delete from t where id % 10 = 1")

    (report,) = pipeline.verify().tables

    assert (report.different, report.missing, report.extra) == (_ROWS // 10, _ROWS // 10, 0)
    assert len(read) == (2 if most > 10 else 0)  # each look, or a table that is read whole


def test_rows_in_flight_do_not_become_differences(pipeline: Pipeline, database: Database) -> None:
    database.execute("create table t (id bigint primary key, x int not null)")
    database.execute(f"insert into t select g, 0 from generate_series(1, {_ROWS}) g")
    assert pipeline.verify().differences == 0
    stop = threading.Event()
    some = f"select 1 + (random() * {_ROWS - 2})::int from generate_series(1, 50)"
    statement = f"update t set x = x + 1 where id in ({some})"

    def write() -> None:
        with psycopg.connect(database.dsn, autocommit=True) as connection:
            while not stop.is_set():
                connection.execute(statement)

    with pipeline.running():
        writer = threading.Thread(target=write)
        writer.start()
        try:
            reports: list[TableReport] = [pipeline.verify().tables[0] for _ in range(5)]
        finally:
            stop.set()
            writer.join()

    assert [(r.state, r.rows, r.differences) for r in reports] == [("compared", _ROWS, 0)] * 5


def _watched(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many buckets each comparison of digests leaves to be read."""
    found: list[int] = []
    before = verify_digest._unequal

    def unequal(mine: pa.Table, theirs: pa.Table) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
        numbers = before(mine, theirs)
        found.append(len(numbers))
        return numbers

    monkeypatch.setattr(verify_digest, "_unequal", unequal)
    return found


def _digests(pipeline: Pipeline, table: str, buckets: Buckets) -> tuple[pa.Table, pa.Table]:
    """By PostgreSQL, and of the rows as they are read."""
    source = pipeline.config.source("main")
    assert isinstance(source, Digesting)
    info = next(i for i in source.described(source.tables()) if i.qualified == table)
    with source.point("test", lambda text: None) as at:
        found = source.digested(info, at, buckets)
        batches = [(b.data(), b.schema) for b in source.rows(info, at, 0, threading.Event(), lambda told: None)]
    assert found is not None
    return found[1], summed([digest_of(data, schema, buckets) for data, schema in batches])


def test_a_full_verification_reads_every_row(
    pipeline: Pipeline, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    database.execute("create table t (id bigint primary key, x text)")
    database.execute(f"insert into t select g, 'x' || g from generate_series(1, {_ROWS}) g")
    pipeline.verify()
    pipeline.damage("update t set x = 'other' where id = 7000")
    monkeypatch.setattr(verify_digest, "_unequal", lambda mine, theirs: np.empty(0, np.int64))  # hashes that collide

    assert pipeline.verify().differences == 0
    assert verify(pipeline.config, full=True, engine=SyncService).differences == 1


@pytest.mark.parametrize("key", ["bigint", "text"])
def test_a_row_without_a_key_is_found_and_named_as_beyond_repair(
    pipeline: Pipeline, database: Database, key: str
) -> None:
    database.execute(f"create table t (id {key} primary key, x text)")
    database.execute(f"insert into t select g, 'x' || g from generate_series(1, {_ROWS}) g")
    assert pipeline.verify().differences == 0
    pipeline.damage("insert into t values (null, 'x', 5)", "update t set x = 'other' where id = 7")

    (report,) = pipeline.verify().tables
    assert (report.extra, report.different, report.missing) == (1, 1, 0)
    found = repair(pipeline.config, engine=SyncService)
    assert (found.clean, found.passes, found.written, found.removed) == (False, 2, 1, 0)
    assert "no key" in found.tables[0].reason
