"""A table is read again while it changes: what an update did not carry must not come from before the reading."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest

import syncline.pipeline.loads as loads
from reliability.harness import Nursery, Rig
from servers import eventually
from syncline.change import Entry, Marker

START = """
create table t (id int primary key, n int, doc text);
alter table t alter doc set storage external;
insert into t select g, 0, repeat(g::text, 3000) from generate_series(1, 50) g;
"""


def test_an_untouched_value_that_was_wrong_is_mended_though_its_row_changes_amid_the_reload(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, go = threading.Event(), threading.Event()
    original = loads.load

    def slow(*args: Any, **kwargs: Any) -> Iterator[Entry]:
        for entry in original(*args, **kwargs):
            yield entry
            if any(isinstance(item, Marker) and item.kind == "load_started" for item in entry.items):
                begun.set()
                assert go.wait(20)

    rig.database.execute(START)
    with rig.running() as engine:
        with engine.source.targets["main"].store._transaction() as target:
            target.execute("update t set doc = 'damaged'")
        monkeypatch.setattr(loads, "load", slow)
        engine.source.resync(["public.t"])
        assert begun.wait(20)
        rig.database.execute("update t set n = n + 1 where id <= 10")
        rig.database.execute("update t set id = id + 1000 where id between 11 and 15")
        place = rig.now()
        eventually(lambda: engine.targets()["main"]["place"] >= place)
        go.set()
        engine.equal()


def test_a_reload_cut_off_before_its_target_came_to_it_is_done_by_the_next_engine(
    rig: Rig, nursery: Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig.database.execute(START)
    nursery.finish(rig)
    with rig.open() as target:
        target.execute("update t set doc = 'damaged'")
    original, cut = loads.load, threading.Event()

    def cut_off(*args: Any, **kwargs: Any) -> Iterator[Entry]:
        for entry in original(*args, **kwargs):
            yield entry
            if any(isinstance(item, Marker) and item.kind == "load_started" for item in entry.items):
                cut.set()
                return

    monkeypatch.setattr(loads, "load", cut_off)
    with rig.running() as engine:
        engine.source.targets["main"].board.pause_target(True)
        engine.source.resync(["public.t"])
        assert cut.wait(20)
    monkeypatch.setattr(loads, "load", original)
    with rig.running(until_loaded=False) as engine:
        eventually(lambda: engine.source.targets["main"].worker is not None)
        eventually(lambda: rig.difference(engine) == "", 30)
