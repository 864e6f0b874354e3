"""One record everywhere: `syncline verify TABLE --key K`."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pyarrow as pa
import pytest
from piped import Pipeline

from servers import eventually
from syncline.apply.keys import key_hashes
from syncline.catalog.repository import ControlSchema, DeadLetter
from syncline.errors import Misconfigured
from syncline.verify import record as looking
from syncline.verify import verify
from syncline.verify.record import Seen, record


@pytest.fixture
def filled(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> Pipeline:
    monkeypatch.setattr(looking, "_SETTLE_S", 0.0)
    pipeline.database.execute(
        "create table items (id bigint primary key, name text, price numeric(8,2), note text);"
        "create table pairs (a uuid, b date, v float8, primary key (a, b));"
        "insert into items values (7, 'seven', 1.5, null), (8, 'eight', 2, 'x');"
        "insert into pairs values ('00000000-0000-0000-0000-00000000000a', '2026-01-02', 0.5)"
    )
    assert pipeline.verify().differences == 0
    return pipeline


def command(pipeline: Pipeline, *words: str) -> subprocess.CompletedProcess[str]:
    file = pipeline.path.with_name("syncline.yaml")
    arguments = [sys.executable, "-m", "syncline", "-c", str(file), "verify", *words]
    return subprocess.run(arguments, capture_output=True, text=True, timeout=120, check=False)


def plain(seen: Seen) -> dict[str, Any]:
    return {name: value.as_py() for name, value in seen.fields.items()}


def test_a_record_that_is_equal_is_shown_at_both_places(filled: Pipeline) -> None:
    told = command(filled, "items", "--key", "7")
    lines = [line.split() for line in told.stdout.splitlines()]
    assert (told.returncode, lines[0], lines[1]) == (0, ["source", "main", "target", "main"], ["state"] + ["there"] * 2)
    assert lines[2][0] == "version"
    assert lines[3:] == [
        ["id", "7", "7"],
        ["name", "seven", "seven"],
        ["price", "1.50", "1.50"],
        ["note"] + ["NULL"] * 2,
    ]
    assert "seven" not in told.stderr


def test_fields_that_differ_are_marked(filled: Pipeline) -> None:
    filled.damage("update items set name = 'other', price = 1.51 where id = 7")
    source, target = record(filled.config, "public.items", ["id=7"])
    assert (source.equal, target.equal, target.differs) == (True, False, ("name", "price"))
    assert plain(target)["name"] == "other"
    told = command(filled, "items", "--key", "7", "--json")
    found = json.loads(told.stdout)
    assert (told.returncode, found[1]["differs"]) == (4, ["name", "price"])
    assert "other *" in command(filled, "items", "--key", "7").stdout


def test_what_is_missing_left_over_or_deleted_is_told_apart(filled: Pipeline) -> None:
    filled.damage(
        "delete from items where id = 7",
        "insert into items select 9, name, price, note, _syncline_version from items where id = 8",
    )
    found = {key: record(filled.config, "public.items", [key]) for key in ("7", "9", "10")}
    assert [(one.state, one.equal) for one in found["7"]] == [("there", True), ("absent", False)]
    assert [(one.state, one.equal) for one in found["9"]] == [("absent", True), ("there", False)]
    assert [(one.state, one.equal) for one in found["10"]] == [("absent", True), ("absent", True)]
    with filled.running():
        filled.database.execute("delete from items where id = 8")
        deleted = eventually(lambda: (x := record(filled.config, "public.items", ["8"])[1]).state == "deleted" and x)
    assert deleted.equal
    assert deleted.version > 0
    assert "/" in deleted.shown


def test_a_key_of_several_columns_is_given_in_order_or_by_name(filled: Pipeline) -> None:
    uuid, date = "00000000-0000-0000-0000-00000000000a", "2026-01-02"
    for key in ([uuid, date], [f"b={date}", f"a={uuid}"]):
        assert [one.state for one in record(filled.config, "public.pairs", key)] == ["there", "there"]
    told = command(filled, "pairs", "--key", uuid, "--key", date)
    assert told.returncode == 0
    assert uuid in told.stdout


def test_a_key_that_is_none_of_the_table_is_refused(filled: Pipeline) -> None:
    with pytest.raises(Misconfigured, match=r"key of table public\.pairs is a, b"):
        record(filled.config, "public.pairs", ["1"])
    with pytest.raises(Misconfigured, match="no bigint") as refused:
        record(filled.config, "public.items", ["secret"])
    assert "secret" not in str(refused.value)
    with pytest.raises(Misconfigured, match=r"public\.item"):
        record(filled.config, "public.item", ["1"])
    assert command(filled, "--key", "1").returncode == 2


def test_parked_letters_of_the_record_are_shown(filled: Pipeline) -> None:
    (key_hash,) = key_hashes([pa.array([7], pa.int64())])
    letter = DeadLetter(
        "main", "main", "public.items", key_hash, 1, 5, 0, "upsert", "SL-REJECTED", "a test", b"", partial=False
    )
    with ControlSchema(filled.config.control_dsn) as control:
        control.park([letter])
    found = record(filled.config, "public.items", ["7"])[1]
    assert [(x.version, x.reason) for x in found.letters] == [(5, "a test")]
    assert record(filled.config, "public.items", ["8"])[1].letters == ()


def test_a_change_on_its_way_is_waited_for(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(looking, "_SETTLE_S", 60.0)
    pipeline.database.execute("create table items (id int primary key, n int); insert into items values (1, 0)")
    with pipeline.running():
        assert verify(pipeline.config).differences == 0
        for n in range(1, 6):
            pipeline.database.execute("update items set n = %s", n)
            assert all(one.equal for one in record(pipeline.config, "public.items", ["1"]))


@pytest.mark.parametrize(
    ("kind", "value", "otherwise"),
    [
        ("uuid", "6f1c2f2a-0000-4000-8000-00000000000a", "6F1C2F2A000040008000 00000000000A".replace(" ", "")),
        ("boolean", "true", "True"),
        ("bytea", r"\x00ff", r"\x00FF"),
        ("timestamptz", "2026-01-02 03:04:05.600000+00:00", "2026-01-02T04:04:05.6+01:00"),
        ("timestamp", "2026-01-02 03:04:05", "2026-01-02 03:04:05"),
        ("date", "2026-01-02", "2026-01-02"),
        ("numeric(8,2)", "1.50", "1.5"),
        ("text", "with, comma", "with, comma"),
    ],
)
def test_a_key_that_is_shown_can_be_given_and_so_can_other_ways_to_write_it(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch, kind: str, value: str, otherwise: str
) -> None:
    monkeypatch.setattr(looking, "_SETTLE_S", 0.0)
    pipeline.database.execute(f"create table keyed (k {kind} primary key)")
    pipeline.database.execute("insert into keyed values (%s)", value)
    assert pipeline.verify().differences == 0
    pipeline.damage("delete from keyed")
    (table,) = pipeline.verify().to_dict(show_keys=True)["tables"]
    assert table["keys"] == {"missing": [value]}
    for key in (value, otherwise):
        assert [seen.state for seen in record(pipeline.config, "public.keyed", [key])] == ["there", "absent"]
