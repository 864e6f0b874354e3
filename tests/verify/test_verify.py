"""Verification against real servers: what is planted is found, exactly, and nothing else is."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import duckdb
import psycopg
import pyarrow as pa
import pytest
from piped import Pipeline

from servers import eventually
from syncline.apply.keys import key_hashes
from syncline.capture.source import Dsn, connect_replication
from syncline.catalog.repository import ControlSchema, DeadLetter
from syncline.change import TableSchema
from syncline.config import Config
from syncline.errors import Misconfigured, Unavailable
from syncline.pipeline import SyncService, housekeeping
from syncline.verify import TableReport, compare, point, verify
from syncline.verify.point import open_copy

ITEMS = (
    "create table items"
    " (id bigint primary key, name text, price numeric(10,2), ratio float8, made timestamptz, tags text[])"
)
FILL = (
    "insert into items select g, 'item ' || g, g * 0.25, g / 3.0, '2026-01-01'::timestamptz + g * interval '1 minute',"
    " array['a', g::text] from generate_series(1, 1000) g"
)


@pytest.fixture
def filled(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> Pipeline:
    """A copy that is equal. Only tests that alter tables have to wait for the engine to notice."""
    monkeypatch.setattr(compare, "_AGAIN_S", 0.0)
    pipeline.database.execute(ITEMS)
    pipeline.database.execute(FILL)
    assert pipeline.verify().differences == 0
    return pipeline


def counts(table: TableReport) -> dict[str, Any]:
    found = {name: getattr(table, name) for name in ("missing", "extra", "different", "in_flight", "parked")}
    return {name: count for name, count in found.items() if count}


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (["delete from items where id = 7"], {"missing": 1}),
        (["insert into items select 5000, name, price, ratio, made, tags, _syncline_version from items where id = 7"],
         {"extra": 1}),
        (["update items set name = 'other' where id = 7"], {"different": 1}),
        (["update items set name = null where id = 7"], {"different": 1}),
        (["update items set ratio = nextafter(ratio, 1e9) where id = 7"], {"different": 1}),
        (["update items set price = price + 0.01 where id = 7"], {"different": 1}),
        (["update items set made = made + interval 1 microsecond where id = 7"], {"different": 1}),
        (["update items set id = case id when 7 then 8 else 7 end where id in (7, 8)"], {"different": 2}),
        (["insert into items select * from items where id = 7"], {"extra": 1}),
        (["insert into items select * from items where id = 7",
          "update items set name = 'other' where rowid = (select max(rowid) from items)"], {"extra": 1}),
        (["update items set _syncline_version = 9007199254740000 where id = 7"], {"different": 1}),
    ],
    ids=["missing", "extra", "changed", "nulled", "last bit", "cents", "microsecond", "swapped", "duplicated",
         "duplicated and changed", "from the future"],
)  # fmt: skip
def test_a_planted_difference_is_found_and_nothing_else(
    filled: Pipeline, damage: list[str], expected: dict[str, int]
) -> None:
    filled.damage(*damage)
    report = filled.verify()
    assert counts(report.tables[0]) == expected
    assert report.differences == sum(expected.values())


def test_a_stale_row_with_its_stale_version_is_found(filled: Pipeline) -> None:
    with filled.running():
        filled.database.execute("update items set name = 'newer' where id = 7")
        assert verify(filled.config).differences == 0
    filled.damage("update items set name = 'item 7', _syncline_version = 1 where id = 7")
    assert counts(filled.verify().tables[0]) == {"different": 1}


def test_keys_are_shown_only_when_asked_for(filled: Pipeline) -> None:
    filled.damage("delete from items where id = 777")
    report = filled.verify()
    told = report.to_dict()
    del told["seconds"], told["tables"][0]["through"]  # which may hold any digits
    assert "777" not in str(told)
    assert report.to_dict(show_keys=True)["tables"][0]["keys"] == {"missing": ["777"]}


def test_a_hundred_planted_differences_of_a_large_table_are_found(pipeline: Pipeline) -> None:
    pipeline.database.execute(
        "create table wide (a uuid default gen_random_uuid(), b int, body text, primary key (a, b))"
    )
    pipeline.database.execute(
        "insert into wide (b, body) select g, repeat(md5(g::text), 30) from generate_series(1, 80000) g"
    )
    assert pipeline.verify().differences == 0
    pipeline.damage(
        "delete from wide where b <= 40",
        "update wide set body = body || '.' where b between 1001 and 1030",
        "insert into wide select uuid(), b, body, _syncline_version from wide where b between 2001 and 2030",
    )
    report = pipeline.verify()
    assert counts(report.tables[0]) == {"missing": 40, "different": 30, "extra": 30}
    assert report.tables[0].rows == 80_000


def test_values_without_an_exact_form_elsewhere_in_a_column_are_no_differences(pipeline: Pipeline) -> None:
    pipeline.database.execute("create table odd (id int primary key, n numeric(10,2), d date, t timestamp, f float8)")
    pipeline.database.execute(
        "insert into odd values (1, 1.25, '0044-03-15 BC', 'infinity', 'NaN'), (2, 'NaN', '2026-01-01', null, '-0'),"
        " (3, -3, '-infinity', '0001-01-01 BC', '-Infinity'), (4, null, null, '10000-01-01', 5e-324)"
    )
    report = pipeline.verify()
    assert counts(report.tables[0]) == {"parked": 1}  # numeric NaN has no decimal
    assert report.differences == 0


def test_rows_under_a_parked_key_are_parked_not_different(filled: Pipeline) -> None:
    filled.damage("update items set name = 'before the parked change' where id = 7")
    (key_hash,) = key_hashes([pa.array([7], pa.int64())])
    letter = DeadLetter(
        "main", "main", "public.items", key_hash, 1, 1, 0, "upsert", "SL-REJECTED", "a test", b"", partial=False
    )
    with ControlSchema(filled.config.control_dsn) as control:
        control.park([letter])
    report = filled.verify()
    assert (counts(report.tables[0]), report.differences) == ({"parked": 1}, 0)


def test_a_paused_table_is_not_compared(filled: Pipeline) -> None:
    filled.damage("delete from items where id = 7")
    with ControlSchema(filled.config.control_dsn) as control:
        control.pause("main", "main", "public.items")
        report = filled.verify()
        assert (report.tables[0].state, report.differences) == ("paused", 0)
        control.resume("main", "main", "public.items")
    with filled.running():
        eventually(lambda: verify(filled.config).tables[0].state == "compared")
        assert verify(filled.config).differences == 1


def test_a_column_that_was_added_meanwhile_is_waited_for(filled: Pipeline) -> None:
    filled.database.execute("alter table items add column extra int")
    report = filled.verify()
    assert (report.tables[0].columns, report.differences) == ((), 0)


def test_rows_that_an_alter_changed_without_an_event_are_no_differences(
    filled: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compare, "_AGAIN_S", 0.0)
    monkeypatch.setattr(housekeeping, "_REFRESH_S", 6.0)  # both looks come before the engine's
    with filled.running():
        filled.database.execute("alter table items alter column price type numeric(10,2) using price + 1")
        report = verify(filled.config)
        assert (report.differences, report.tables[0].state) == (0, "compared")
        filled.database.execute("alter table items add column origin text default 'shop'")
        assert verify(filled.config).differences == 0
        (last,) = verify(filled.config).tables
    # In flight they may have been before, if the engine read them again behind the point.
    assert (counts(last), last.state, last.rows) == ({}, "compared", 1000)


def test_a_column_that_only_one_side_has_is_a_difference(filled: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compare, "_SETTLE_S", 0.0)
    recorded = "select body from syncline.tables where name = 'public.items'"
    with duckdb.connect(str(filled.path)) as copy:
        ((body,),) = copy.execute(recorded).fetchall()
    filled.damage(
        "alter table items rename price to cost",
        f"update syncline.tables set body = '{body.replace('price', 'cost')}' where name = 'public.items'",
    )
    report = filled.verify()
    assert (report.tables[0].columns, report.differences) == (("cost", "price"), 2)


def test_only_the_named_tables_are_compared_and_unknown_names_are_refused(filled: Pipeline) -> None:
    filled.database.execute("create table other (id int primary key)")
    assert [t.table for t in filled.verify("public.items").tables] == ["public.items"]
    with pytest.raises(Misconfigured, match=r"public\.nothing"):
        filled.verify("public.nothing")


def test_without_an_engine_it_says_that_none_runs(filled: Pipeline) -> None:
    with pytest.raises(Unavailable, match="No engine runs"):
        verify(filled.config)


class Flickering:
    """A reader that misses a row on its first ``times`` looks, as a row in the middle of being healed may be wrong."""

    left = 0

    def __init__(self, reader: Any) -> None:
        self._reader = reader

    def __getattr__(self, name: str) -> Any:
        return getattr(self._reader, name)

    def scan(self, schema: TableSchema) -> Iterator[pa.RecordBatch]:
        Flickering.left -= 1
        for batch in self._reader.scan(schema):
            yield batch.slice(1) if Flickering.left >= 0 else batch


@pytest.mark.parametrize(("times", "differences"), [(1, 0), (2, 1)])
def test_only_what_differs_on_a_second_look_is_reported(
    filled: Pipeline, monkeypatch: pytest.MonkeyPatch, times: int, differences: int
) -> None:
    monkeypatch.setattr(point, "open_copy", lambda target: Flickering(open_copy(target)))
    monkeypatch.setattr(Flickering, "left", times)
    filled.database.execute("delete from items where id > 100")
    assert filled.verify().differences == differences


def churn(pipeline: Pipeline, stop: threading.Event, seed: int) -> None:
    """Inserts, updates, deletes and key changes in transactions of some statements, without pause."""
    rng = random.Random(seed)
    with pipeline.database.connect(autocommit=False) as connection:
        while not stop.is_set():
            try:
                for _ in range(rng.randrange(1, 30)):
                    change(connection, rng.randrange(1, 1500), rng.random())
                connection.commit()
            except (psycopg.errors.DeadlockDetected, psycopg.errors.UniqueViolation):
                connection.rollback()  # two of these threads met


def change(connection: psycopg.Connection[Any], key: int, choice: float) -> None:
    if choice < 0.45:
        connection.execute("update items set name = name || '.', price = price + 1 where id = %s", [key])
    elif choice < 0.65:
        connection.execute("delete from items where id = %s", [key])
    elif choice < 0.75:
        free = "not exists (select from items where id = %s)"
        connection.execute(f"update items set id = id + 10000 where id = %s and {free}", [key, key + 10000])
    else:
        connection.execute("insert into items values (%s, 'again', 1, 1, now()) on conflict do nothing", [key])


def test_a_running_workload_gives_no_false_positive(filled: Pipeline) -> None:
    stop = threading.Event()
    with filled.running():
        threads = [threading.Thread(target=churn, args=(filled, stop, seed)) for seed in (1, 2)]
        for thread in threads:
            thread.start()
        try:
            reports = [verify(filled.config) for _ in range(15)]
        finally:
            stop.set()
            for thread in threads:
                thread.join()
        assert [counts(r.tables[0]) for r in reports if r.differences] == []
        assert any(r.tables[0].in_flight for r in reports), "nothing was written while they were compared"
        last = verify(filled.config)
        assert (last.differences, last.tables[0].in_flight) == (0, 0)


def test_a_truncated_and_refilled_table_gives_no_false_positive(filled: Pipeline) -> None:
    stop = threading.Event()

    def truncate() -> None:
        with filled.database.connect(autocommit=False) as connection:
            while not stop.wait(0.05):
                connection.execute("truncate items")
                connection.execute(FILL)
                connection.commit()

    with filled.running():
        thread = threading.Thread(target=truncate)
        thread.start()
        try:
            reports = [verify_through_rewriting(filled) for _ in range(4)]
        finally:
            stop.set()
            thread.join()
        assert [counts(r.tables[0]) for r in reports if r is not None and r.differences] == []
        assert verify(filled.config).differences == 0


def verify_through_rewriting(pipeline: Pipeline) -> Any:
    """None where the table was rewritten under every attempt, which is an answer too."""
    from syncline.errors import Gap

    try:
        return verify(pipeline.config)
    except Gap:
        return None


def test_verification_changes_nothing_and_leaves_no_slot_behind(filled: Pipeline) -> None:
    slots = "select slot_name from pg_replication_slots where database = current_database()"
    eventually(lambda: filled.database.execute(slots) == [("syncline",)])
    filled.verify()
    eventually(lambda: filled.database.execute(slots) == [("syncline",)])


@pytest.mark.parametrize("noted", ["truncated", "horizon"])
def test_a_truncation_or_a_horizon_from_the_future_hides_nothing(filled: Pipeline, noted: str) -> None:
    filled.damage(f"update syncline.tables set {noted} = 9007199254740000", "delete from items where id = 7")
    assert counts(filled.verify().tables[0]) == {"missing": 1}


def test_an_engine_that_has_ended_and_whose_slot_is_not_free_yet_is_not_waited_for(
    filled: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled.database.execute("insert into items (id, name) values (5000, 'not at the copy yet')")
    stream = connect_replication(Dsn(filled.database.dsn, "source.dsn"))
    with stream.cursor() as cursor:
        options = {"proto_version": "1", "publication_names": "syncline"}
        cursor.start_replication(slot_name="syncline", decode=False, options=options)
    asked, looks = point._all_stream, []

    def until_it_is_gone(config: Config) -> bool:
        looks.append(asked(config))
        stream.close()
        return looks[-1]

    monkeypatch.setattr(point, "_all_stream", until_it_is_gone)
    report = filled.verify()
    assert looks[0] is True
    assert (report.differences, report.tables[0].rows) == (0, 1001)


def test_an_engine_elsewhere_is_believed_in_at_once(
    filled: Pipeline, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Its log was never on this machine, so that nothing here tells that it ended."""
    asked, looks = point._all_stream, []
    monkeypatch.setattr(point, "_all_stream", lambda config: looks.append(1) or asked(config))
    log = filled.config.log.model_copy(update={"path": tmp_path / "no log was ever here"})
    with filled.running(), point.engine_running(filled.config.model_copy(update={"log": log}), SyncService, print):
        assert looks == [1]
