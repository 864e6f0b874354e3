"""Guarantee 7: a row that a store refuses is parked with its reason, its followers behind it, and the rest flows."""

from __future__ import annotations

import signal
from typing import Any

import pytest

from reliability.harness import Nursery, Rig
from servers import eventually
from syncline.config import load_config
from syncline.service.doctor import findings
from syncline.service.status import collect

BIG = "(select string_agg(md5((g * 1000 + h)::text), '') from generate_series(1, 200) h)"
ROWS = (
    f"insert into item select g, case g when 7 then 'bad' else 'good' end, 0, {BIG} from generate_series(1, 20) g;"
    "insert into other values (1)"
)


@pytest.fixture
def picky(rig: Rig) -> Rig:
    """A target whose own table does not take every name."""
    rig.database.execute(
        "create table item (id bigint primary key, name text, n int, doc text);"
        "alter table item alter doc set storage external; create table other (id int primary key)"
    )
    with rig.open() as copy:
        copy.execute("create table item (id bigint, name varchar check (name <> 'bad'), n int, doc varchar)")
    return rig


def test_a_refused_row_is_parked_with_what_follows_on_it_until_a_whole_row_comes(picky: Rig) -> None:
    with picky.running() as engine:
        picky.database.execute(ROWS)
        engine.settle()
        assert [table for table, _ in picky.letters()] == ["public.item"]
        assert engine.query("select count(*), count(*) filter (id = 7) from item") == [(19, 0)]
        assert engine.query("select id from other") == [(1,)]

        picky.database.execute("update item set n = 1 where id in (7, 8)")
        engine.settle()
        assert [reason for _, reason in picky.letters()][1:] == ["an earlier change of its key is parked"]
        assert engine.query("select id from item where n = 1") == [(8,)]

        picky.database.execute("update item set name = 'mended', doc = 'short' where id = 7")
        engine.equal()
        assert picky.letters() == []


def test_parked_changes_are_an_alert_with_the_commonest_reason_until_none_are_left(picky: Rig) -> None:
    message = "2 change(s) of table public.item are parked at target main: "
    with picky.running() as engine:
        picky.database.execute(ROWS)
        engine.settle()  # in one step with it the next change would be of the same letter
        picky.database.execute("update item set n = 1 where id = 7")
        engine.settle()
        eventually(
            lambda: [m for m, _ in opened(picky)] == [f"{message}DuckDB does not take a value (ConstraintException)."]
        )
        ((told, remedy),) = opened(picky)
        assert "syncline resync --table public.item --target main" in remedy
        config = load_config(picky.config)
        (shown,) = collect(config)["control"]["parked_tables"]
        assert (shown["table"], shown["changes"], shown["message"]) == ("public.item", 2, told)
        found = [f for f in findings(config) if f.code == "SL-PARKED"]
        assert [(f.severity, f.subject, f.message) for f in found] == [("warning", "target main", told)]
    with picky.running() as engine:  # the alert of an earlier run is this one's, too
        picky.database.execute("update item set name = 'mended', doc = 'short' where id = 7")
        engine.equal()
        eventually(lambda: opened(picky) == [])
        assert collect(load_config(picky.config))["control"]["parked_tables"] == []


def opened(rig: Rig) -> list[tuple[Any, ...]]:
    return rig.database.execute(
        "select message, remedy from syncline.sync_alerts where resolved_at is null and code = 'SL-PARKED'"
    )


def test_a_kill_behind_a_dead_letter_parks_the_row_once_and_loses_none(picky: Rig, nursery: Nursery) -> None:
    picky.sync()
    picky.database.execute(ROWS)
    assert nursery.run(picky, point="after parking") == -signal.SIGKILL
    assert picky.rows("select count(*) from item") == [(0,)]
    nursery.finish(picky)
    assert len(picky.letters()) == 1
    assert picky.rows("select count(*), count(*) filter (id = 7) from item") == [(19, 0)]
