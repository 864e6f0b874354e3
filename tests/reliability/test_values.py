"""Every value, by the load, the stream in text and the stream in binary: the same at the target, and the source's own.

What a store can't hold is parked with its reason, never bent.
"""

from __future__ import annotations

import pytest

from reliability.harness import Rig, table_difference
from servers import eventually

# type -> values, as SQL; those of one table are inserted together.
VALUES: dict[str, list[str]] = {
    "bool": ["true", "false"],
    "int2": ["-32768", "32767", "0"],
    "int4": ["-2147483648", "2147483647"],
    "int8": ["-9223372036854775808", "9223372036854775807"],
    "float4": ["'NaN'", "'Infinity'", "'-Infinity'", "0.1", "1e38", "1e-45", "'-0'"],
    "float8": ["'NaN'", "'Infinity'", "'-Infinity'", "0.1", "1.7976931348623157e308", "5e-324", "3.141592653589793"],
    "numeric(12,2)": ["0", "-9999999999.99", "1234567890.12", "0.01"],
    "numeric(38,10)": ["-1234567890123456789012345678.0123456789", "0.0000000001"],
    "numeric(5,-2)": ["1234500", "-100"],
    "numeric(3,5)": ["0.00123", "-0.00001"],
    "numeric": ["12345678901234567890123456789012345678901234567890.5", "'NaN'", "'Infinity'", "1e-30", "100", "1.50"],
    "text": ["''", "'ünï ☃ 😀'", "E'line\\nbreak\\ttab'", "'NULL'", "'\\N'", "repeat('x', 20000)"],
    "varchar(5)": ["'abc'", "''"],
    "char(5)": ["'ab'"],
    "name": ["'name'"],
    "bytea": ["''", "'\\x00'", "'\\xdeadbeef00ff'"],
    "uuid": ["'00000000-0000-0000-0000-000000000000'", "'ffffffff-ffff-ffff-ffff-ffffffffffff'"],
    "date": ["'2026-02-28'", "'infinity'", "'-infinity'", "'0044-03-15 BC'", "'10000-01-01'", "'0001-01-01'"],
    "time": ["'00:00'", "'24:00'", "'23:59:59.999999'"],
    "timetz": ["'12:00:00.5+02'", "'00:00-12:30'"],
    "timestamp": [
        "'2026-01-01 00:00:00.000001'",
        "'infinity'",
        "'-infinity'",
        "'0100-01-01 12:00 BC'",
        "'12000-01-01'",
    ],
    "timestamptz": [
        "'2026-01-01 00:00+05:30'",
        "'infinity'",
        "'-infinity'",
        "'0100-01-01 12:00+00 BC'",
        "'12000-01-01'",
    ],
    "interval": ["'1 year 2 mons -3 days 04:05:06.789'", "'-1 day'", "'0'"],
    "json": ['\'{"a":  1.10, "a": 2}\'', "'[]'"],
    "jsonb": ['\'{"n": 18446744073709551617, "d": 0.10}\'', "'null'", "'\"ü\"'"],
    "int4[]": ["'{1,NULL,3}'", "'{{1,2},{3,4}}'", "'[0:1]={5,6}'", "'{}'"],
    "text[]": ["array['a,b', 'c\"d', null, 'NULL', '']"],
    "numeric(8,2)[]": ["'{1.50,NaN}'"],
    "inet": ["'192.168.0.1/24'", "'::1'", "'10.0.0.1'"],
    "cidr": ["'10.0.0.0/8'"],
    "macaddr": ["'08:00:2b:01:02:03'"],
    "bit(5)": ["B'10101'"],
    "varbit": ["B''", "B'1'"],
    "money": ["'-1234.56'"],
    "tsvector": ["'a:1 b:2'"],
    "tsquery": ["'a & !b'"],
    "point": ["'(1.5,-2)'"],
    "polygon": ["'((0,0),(1,1),(1,0))'"],
    "int4range": ["'[1,5)'", "'empty'", "'(,)'"],
    "tstzmultirange": ["'{[2026-01-01,2026-02-01)}'"],
    "pg_lsn": ["'16/B374D848'"],
    "oid": ["4294967295"],
    "xid8": ["'18446744073709551615'"],
    "jsonpath": ["'$.a[*]'"],
    "mood": ["'sad'", "'very \"happy\"'"],
    "mood[]": ['\'{sad,"very \\"happy\\""}\''],
    "positive": ["5"],
    "short": ["'abc'"],
    "pair": ["(1, 'x, \"y\"')", "(null, null)"],
    "regclass": ["'pg_class'"],
}
TYPES = """
create type mood as enum ('sad', 'very "happy"');
create domain positive as int check (value > 0);
create domain short as varchar(4);
create type pair as (a int, b text);
"""


def table(number: int) -> str:
    return f"v{number}"


def made(rig: Rig) -> None:
    rig.database.execute(TYPES)
    for number, kind in enumerate(VALUES):
        rig.database.execute(f"create table {table(number)} (id int primary key, v {kind})")


def inserted(rig: Rig, first: int) -> None:
    for number, (kind, values) in enumerate(VALUES.items()):
        rows = ", ".join(f"({first + i}, ({value})::{kind})" for i, value in enumerate([*values, "null"]))
        rig.database.execute(f"insert into {table(number)} values {rows}")


def differing(rig: Rig) -> list[str]:
    """The types whose columns differ between the source and the closed target."""
    found = []
    with rig.open() as target, rig.database.connect() as source:
        target.execute("set timezone = 'UTC'")
        source.execute("set timezone = 'UTC'; set extra_float_digits = 3")
        for number, kind in enumerate(VALUES):
            difference = table_difference(source, target, "public", table(number))
            if difference:
                found.append(f"{kind}: {difference}")
    return found


def test_every_type_is_the_same_by_the_load_and_by_the_stream(rig: Rig) -> None:
    made(rig)
    inserted(rig, 100)
    with rig.running() as engine:
        inserted(rig, 200)
        engine.settle()
    assert differing(rig) == []
    for number, kind in enumerate(VALUES):
        loaded = rig.rows(f"select v::varchar from {table(number)} where id < 200 order by id")
        streamed = rig.rows(f"select v::varchar from {table(number)} where id >= 200 order by id")
        assert loaded == streamed, kind
    assert rig.letters() == []


@pytest.mark.parametrize("binary", [True, False], ids=["binary", "text"])
def test_exact_types_are_the_same_in_binary_and_in_text(rig: Rig, binary: bool) -> None:
    exact = ["bool", "int2", "int4", "int8", "float4", "float8", "uuid", "bytea", "text", "timestamptz", "timestamp",
             "date", "varchar(5)"]  # fmt: skip
    rig.set("source", binary=binary)
    made(rig)
    others = [table(i) for i, kind in enumerate(VALUES) if kind not in exact]
    rig.database.execute(f"drop table {', '.join(others)}")
    with rig.running() as engine:
        for first in (100, 200):
            for number, (kind, values) in enumerate(VALUES.items()):
                if kind in exact:
                    rows = ", ".join(f"({first + i}, ({v})::{kind})" for i, v in enumerate([*values, "null"]))
                    rig.database.execute(f"insert into {table(number)} values {rows}")
        engine.equal()


UNHOLDABLE = {
    "numeric(6,2)": "'NaN'",
    "timestamp": "'294276-12-31 23:59:59'",
}


@pytest.mark.parametrize("kind", UNHOLDABLE)
def test_a_value_that_the_target_cannot_hold_is_parked_while_its_neighbours_apply_and_a_good_one_supersedes_it(
    rig: Rig, kind: str
) -> None:
    good = {"numeric(6,2)": "1.5"}.get(kind, "'2026-01-01'")
    rig.database.execute(f"create table t (id int primary key, v {kind}, n int, doc text)")
    rig.database.execute("alter table t alter doc set storage external")
    rig.database.execute(f"insert into t values (1, {good}, 1, repeat('x', 5000)), (2, {UNHOLDABLE[kind]}, 1, null)")
    with rig.running() as engine:
        rig.database.execute(
            f"insert into t values (3, {UNHOLDABLE[kind]}, 1, repeat('y', 5000)), (4, {good}, 1, null)"
        )
        rig.database.execute(f"update t set v = {UNHOLDABLE[kind]} where id = 1")
        rig.database.execute("update t set n = 2")
        engine.settle()
        held = engine.query("select id from t order by id")
        assert held == [(1,), (4,)]  # 1 as it was before
        letters = rig.letters()
        assert {name for name, _ in letters} == {"public.t"}
        assert all(reason for _, reason in letters)
        rig.database.execute(f"update t set v = {good}, doc = 'whole again'")
        engine.equal()
        eventually(lambda: not rig.letters())


def test_a_parked_row_stays_parked_over_a_restart_and_its_followers_wait_behind_it(rig: Rig) -> None:
    rig.database.execute("create table t (id int primary key, v numeric(6,2), n int, doc text)")
    rig.database.execute("alter table t alter doc set storage external")
    rig.sync()
    rig.database.execute("insert into t select g, 'NaN', 1, repeat('x', 5000) from generate_series(1, 3) g")
    rig.sync()
    assert len(rig.letters()) == 3
    rig.database.execute(
        "update t set n = 2 where id = 1; delete from t where id = 2; insert into t values (9, 1, 1, 'x')"
    )
    rig.sync()
    assert rig.rows("select id from t") == [(9,)]
    rig.database.execute("update t set v = 1, doc = 'y' where id = 1; update t set v = 2, doc = 'z' where id = 3")
    rig.sync()
    assert rig.difference() == ""
    assert rig.letters() == []


def test_a_repaired_value_whose_toasted_neighbour_was_not_touched_is_not_left_behind(rig: Rig) -> None:
    rig.database.execute("create table t (id int primary key, v numeric(6,2), doc text)")
    rig.database.execute("alter table t alter doc set storage external")
    with rig.running() as engine:
        rig.database.execute("insert into t values (1, 'NaN', repeat('x', 5000))")
        engine.settle()
        assert len(rig.letters()) == 1
        rig.database.execute("update t set v = 1 where id = 1")
        engine.settle()
        # A partial behind a parked row parks as well; nothing invents a row.
        assert engine.query("select * from t") == []
        rig.database.execute("update t set doc = 'new', v = 2 where id = 1")
        engine.equal()
        assert rig.letters() == []
