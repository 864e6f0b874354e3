"""What operators ask of the engine is done once, and also when things went wrong before or meanwhile."""

from __future__ import annotations

import shutil

import pytest

from reliability.harness import Engine, Nursery, Rig, ended_with
from reliability.workload import SCHEMA
from servers import eventually
from syncline.catalog import ControlSchema
from syncline.errors import Gap, Unavailable
from syncline.pipeline.source import SourcePipeline
from syncline.stores.duckdb.store import DuckDBStore


def filled(rig: Rig) -> None:
    rig.database.execute(SCHEMA)
    rig.database.execute("insert into item (id, name) select g, 'n' || g from generate_series(1, 50) g")


def ask(rig: Rig) -> None:
    """Request what `syncline resync` requests."""
    with ControlSchema(rig.database.dsn) as control:
        control.request_resync("main")


def starts_over(engine: Engine) -> int:
    return sum(line.startswith("starting over") for line in engine.talk)


def test_a_resync_that_is_asked_for_mends_a_log_deleted_under_a_running_engine(rig: Rig) -> None:
    filled(rig)
    with rig.running() as engine:
        shutil.rmtree(rig.log / "main.log")
        rig.database.execute("delete from item where id > 40; update item set name = 'after' where id < 5")
        ended_with(Gap, engine)
        ask(rig)
        eventually(lambda: starts_over(engine) == 1 and not engine.service.errors())
        engine.equal()
        eventually(lambda: rig.gaps() == [])


def test_a_resync_asked_for_while_the_engine_is_down_is_done_once(rig: Rig) -> None:
    filled(rig)
    rig.sync()
    ask(rig)
    with rig.running() as engine:
        open_requests = "select count(*) from syncline.sync_requests where done_at is null"
        eventually(lambda: rig.database.value(open_requests) == 0)
        rig.database.execute("insert into item (id, name) values (1000, 'after')")
        engine.equal()
        assert starts_over(engine) == 1


def test_a_source_that_is_asked_to_start_over_is_busy_all_the_time_until_it_reads(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Housekeeping takes a resync for done when the source is not busy, at whatever moment it looks."""
    filled(rig)
    seen: list[tuple[str, object, bool]] = []

    def noted(source: SourcePipeline, name: str, value: object) -> None:
        object.__setattr__(source, name, value)
        if name in ("_start_over", "_reset_due"):
            seen.append((name, value, source.busy))

    with rig.running() as engine:
        monkeypatch.setattr(SourcePipeline, "__setattr__", noted)
        ask(rig)
        eventually(lambda: starts_over(engine) == 1)
        engine.equal()
        assert len(seen) >= 4, seen
        assert all(busy for _, _, busy in seen), seen


@pytest.mark.parametrize("end", ["kill", "terminate"])
def test_a_resync_is_done_when_the_targets_have_it_and_not_before(rig: Rig, nursery: Nursery, end: str) -> None:
    filled(rig)
    nursery.finish(rig)
    with ControlSchema(rig.database.dsn) as control:
        control.pause("", "main", "", requested_by="test")
    child = nursery.start(rig)
    ask(rig)
    eventually(lambda: "starting over" in (rig.folder / "engine.log").read_text())
    eventually(lambda: rig.database.value("select state from syncline.sync_status where target = ''") == "streaming")
    assert rig.database.value("select count(*) from syncline.sync_requests where done_at is null") == 1
    child.kill() if end == "kill" else child.terminate()
    with ControlSchema(rig.database.dsn) as control:
        control.resume("", "main", "")
    rig.database.execute("delete from item where id > 40")
    nursery.finish(rig)
    assert rig.difference() == ""
    assert rig.gaps(ever=True) == []
    assert rig.database.value("select count(*) from syncline.sync_requests where done_at is null") == 0


def test_a_resync_that_meets_a_target_that_is_away_is_not_forgotten(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    filled(rig)
    with rig.running() as engine:
        original, away = DuckDBStore.open, iter([True, True])

        def opened(self: DuckDBStore, source: str) -> object:
            if next(away, False):
                raise Unavailable("The disk of the target is full.")
            return original(self, source)

        monkeypatch.setattr(DuckDBStore, "open", opened)
        engine.service.resync()
        eventually(lambda: starts_over(engine) == 1)
        engine.equal()
