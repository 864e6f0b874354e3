"""Hostile names and values: every key belongs to one row, and text forms come back as what they were."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st

from stores.redis_server import Server
from syncline.change import Column, TableSchema, arrow_type
from syncline.errors import Misconfigured
from syncline.shape import Document, Hash, Keys, Members
from syncline.stores.redis import calendar
from syncline.stores.redis.packing import element, entry_tail, packed_map
from syncline.stores.redis.template import Template, overlap
from syncline.stores.redis.text import from_text, to_text
from syncline.testing.store_suite import Rows, contents, work

_databases = itertools.count(1)
_hostile = st.text(st.sampled_from("a%:{}*?[]\\^-/ \n\x01'\"`éΩ\u2028😀"), max_size=8) | st.sampled_from(
    ["syncline:store", "%3A", "%25", "FLUSHALL", "", ":", "::"]
)
_bytes = st.binary(max_size=8) | st.sampled_from([b"\0", b"\xff", b"%", b":", b"a:b"])
_COLUMNS = (Column("a", "bytes", "bytea", key=True), Column("b", "text", "text", key=True), Column("n", "int4", "int4"))
_TABLE = TableSchema("public", "t", _COLUMNS)
_TEMPLATES = ["{a}:{b}", "k{b}:{a}", "x%{a}/%3A{b}%", "{a}::{b}:", "p{a}*?[{b}]", "é{a}é{b}", "{{{a}}}|{b}"]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("valkey"))
    yield server
    server.stop()


def rendered(template: Template, rows: list[tuple[bytes, str]]) -> list[bytes]:
    texts = {0: pa.array([a for a, _ in rows], pa.binary()), 1: pa.array([b.encode() for _, b in rows], pa.binary())}
    return list(template.render(texts, len(rows)).to_pylist())


@settings(max_examples=1_000)
@given(st.sampled_from(_TEMPLATES), st.lists(st.tuples(_bytes, _hostile), min_size=2, max_size=6, unique=True))
def test_different_rows_have_different_keys_and_keys_tell_their_rows(text: str, rows: list[tuple[bytes, str]]) -> None:
    template = Template.parse(text, _TABLE, "a hash")
    keys = rendered(template, rows)
    assert len(set(keys)) == len(rows)
    told = template.read(keys)
    assert list(zip(told[0], told[1], strict=True)) == [(a, b.encode()) for a, b in rows]


@settings(max_examples=1_000)
@given(
    st.sampled_from(_TEMPLATES), st.sampled_from(_TEMPLATES), st.tuples(_bytes, _hostile), st.tuples(_bytes, _hostile)
)
def test_templates_that_make_one_key_are_known_to_overlap(
    one: str, other: str, row: tuple[bytes, str], second: tuple[bytes, str]
) -> None:
    left, right = (Template.parse(t, _TABLE, "a hash") for t in (one, other))
    if rendered(left, [row]) == rendered(right, [second]):
        assert overlap(left, _COLUMNS, right, _COLUMNS)


def test_templates_that_can_never_meet_do_not_overlap() -> None:
    numbers = (Column("i", "int8", "int8", key=True), Column("u", "uuid", "uuid"), Column("t", "text", "text"))
    table = TableSchema("public", "n", numbers)

    def meet(one: str, other: str) -> bool:
        return overlap(Template.parse(one, table, ""), numbers, Template.parse(other, table, ""), numbers)

    assert not meet("user:{i}", "user:{i}:cart")
    assert not meet("user:{i}", "users:{i}")
    assert not meet("user:{u}", "user:{u}x")
    assert meet("user:{i}", "user:{u}")
    assert meet("user:{t}", "user:{i}:cart")
    assert meet("user", "use{t}")
    assert not meet("user", "user:")


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(name=_hostile, column=_hostile, key=_hostile, value=_hostile, blob=_bytes, form=st.sampled_from("dhjm"))
@example(name="", column="\n", key="", value="v", blob=b"", form="m")
def test_hostile_names_and_values_change_nothing_but_their_own_keys(
    server: Server, name: str, column: str, key: str, value: str, blob: bytes, form: str
) -> None:
    assume(column not in ("key", "blob", "n"))
    columns = (
        Column("key", "text", "text", key=True),
        Column("blob", "bytes", "bytea", key=True),
        Column(column, "text", "text"),
        Column("n", "int4", "int4"),
    )
    head = "h:" + name.replace("{", "{{").replace("}", "}}")
    template = head + ":{key}:{blob}"
    shapes = {
        "d": None,
        "h": Keys((Hash(template),)),
        "j": Keys((Document(template),)),
        "m": Keys((Members(head, "{key}:{blob}", "n"),)),
    }
    schema = TableSchema("na:me", name, columns, shapes[form])
    store = server.store(next(_databases) % 4_000, prefix="own")
    with server.client(store.config.url.get_secret_value().rpartition("/")[2]) as client:  # type: ignore[arg-type]
        client.set("bystander", "1")
        store.open("orders")
        try:
            store.migrate(schema)
            store.apply(work(Rows(schema).upsert(5, key, blob, value, 1).upsert(5, "other", b"", value, 2)))
            assert contents(store, schema) == {(key, blob): (value, 1, 5), ("other", b""): (value, 2, 5)} or (
                key,
                blob,
            ) == ("other", b"")
            store.apply(work(Rows(schema).delete(6, key, blob).delete(6, "other", b"")))
            assert contents(store, schema) == {}
            assert [k for k in client.keys("*") if not k.startswith(b"own:")] == [b"bystander"]
        finally:
            store.close()
            client.flushdb()


@given(st.lists(st.tuples(st.integers(1, 30) | st.text(max_size=5), st.none() | st.binary(max_size=40)), max_size=4))
def test_entries_give_back_what_they_were_made_of(values: list[tuple[int | str, bytes | None]]) -> None:
    import pyarrow.compute as pc

    parts = packed_map([(name, pa.array([value], pa.binary())) for name, value in values])
    entry = pc.binary_join_element_wise(pa.array([b"123"]), *parts, pa.scalar(b""))[0].as_py()
    told = {name: value for name, value in dict(values).items() if value is not None}
    found = entry_tail(entry)
    assert {n: v for n, v in found.items() if n in told and told[n] == v} == told


def test_a_value_is_packed_as_the_scripts_read_it() -> None:
    found = element(pa.array([b"ab", None, b""], pa.binary())).to_pylist()
    assert found == [b"\xdb\0\0\0\x02ab", b"\xc0", b"\xdb\0\0\0\0"]


# ------------------------------------------------------------------------------------------------------- text forms

_VALUES: dict[str, st.SearchStrategy[Any]] = {
    "bool": st.booleans(),
    "int2": st.integers(-(2**15), 2**15 - 1),
    "int8": st.integers(-(2**63), 2**63 - 1),
    "float4": st.floats(width=32, allow_nan=False),
    "float8": st.floats(allow_nan=False),
    "numeric(38,10)": st.decimals(-(10**27), 10**27, places=10, allow_nan=False),
    "numeric(5,0)": st.integers(-99_999, 99_999).map(Decimal),
    "bytes": st.binary(max_size=20),
    "uuid": st.binary(min_size=16, max_size=16),
    "date": st.integers(-(2**31) + 1, 2**31 - 1),
    "time": st.integers(0, 86_400_000_000),
    "timestamp": st.integers(-(2**63) + 1, 2**63 - 1),
    "timestamptz": st.integers(-(2**63) + 1, 2**63 - 1),
    "text": st.text(),
    "texts": st.lists(st.none() | st.text()),
    "vector": st.lists(st.floats(width=32, allow_nan=False)),
}


@pytest.mark.parametrize("logical", sorted(_VALUES))
@given(data=st.data())
def test_every_value_comes_back_from_its_text(logical: str, data: st.DataObject) -> None:
    values = data.draw(st.lists(st.none() | _VALUES[logical], max_size=5))
    kind = arrow_type(logical)
    storage = pa.int32() if logical == "date" else pa.int64()
    temporal = pa.types.is_temporal(kind)
    array = pa.array(values, storage).view(kind) if temporal else pa.array(values, kind)
    texts, unfit = to_text(array, logical)
    back, bad = from_text(texts, logical)
    assert not unfit.any()
    assert not bad.any()
    assert back.type == kind
    shown = back.view(storage).to_pylist() if temporal else back.to_pylist()
    assert repr(shown) == repr((array.view(storage) if temporal else array).to_pylist())
    assert to_text(back, logical)[0].equals(texts)


@pytest.mark.parametrize(
    ("logical", "text"),
    [
        ("date", "2023-02-29"),
        ("date", "2023-13-01"),
        ("time", "24:00:01"),
        ("time", "10:60:00"),
        ("timestamp", "2023-01-01 24:00:00"),
        ("timestamp", "294276-12-31 00:00:00"),
        ("timestamptz", "2023-01-01 00:00:00+01"),
        ("date", "yesterday"),
        ("time", "infinity"),
    ],
)
def test_text_that_is_no_moment_is_none(logical: str, text: str) -> None:
    assert calendar.parse(text, logical) is None
    assert from_text(pa.array([text.encode()]), logical)[1].tolist() == [True]


def test_moments_are_written_as_postgresql_writes_them() -> None:
    shown = {
        ("date", 0): "1970-01-01",
        ("date", -719_163): "0001-12-31 BC",
        ("date", 2_932_897): "10000-01-01",
        ("timestamptz", 1_120_000): "1970-01-01 00:00:01.12+00",
        ("timestamp", -62_198_755_200_000_000): "0002-01-01 00:00:00 BC",
        ("time", 86_400_000_000): "24:00:00",
    }
    for (logical, value), text in shown.items():
        assert calendar.text_of(value, logical) == text
        assert calendar.parse(text, logical) == value


def test_templates_say_what_is_wrong_with_them() -> None:
    for text, says in (("a}b", "brace"), ("{a}{b}", "nothing between"), ("{c}", "'c'"), ("{a}%{b}", "has a %")):
        with pytest.raises(Misconfigured, match=says):
            Template.parse(text, _TABLE, "a hash")
