"""Verification beside a running engine, table after table: what it finds, says, repairs, notes, and leaves alone."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from piped import Pipeline

from servers import eventually
from syncline.catalog.reconciliation import ReconciliationRuns
from syncline.catalog.reports import ReportRecords
from syncline.catalog.verified import VerifiedTables
from syncline.config.repairing import ReconcileConfig
from syncline.config.verification import RollingConfig
from syncline.pipeline import SyncService
from syncline.verify import rolling
from syncline.verify.repair import Limits, repair
from syncline.verify.rolling import RollingVerification

TABLES = "create table a (id int primary key, n int); create table b (id int primary key); "
ROWS = "insert into a select g, g from generate_series(1, 100) g; insert into b select generate_series(1, 10)"


@pytest.fixture
def filled(pipeline: Pipeline) -> Pipeline:
    pipeline.database.execute(TABLES + ROWS)
    with pipeline.running():
        pipeline.verify()
    return pipeline


def told(pipeline: Pipeline, **settings: Any) -> Pipeline:
    """The pipeline with these settings of the rolling verification."""
    given = RollingConfig(**{"share": 1, "every_s": 3600, **settings})
    verify = pipeline.config.verify.model_copy(update={"rolling": given})
    return replace(pipeline, config=pipeline.config.model_copy(update={"verify": verify}))


@contextmanager
def rolled(pipeline: Pipeline) -> Iterator[tuple[SyncService, RollingVerification]]:
    """The engine, and a rolling verification that was not started: its steps are the test's."""
    with pipeline.running() as service:
        found = RollingVerification(pipeline.config, service.status)
        found._compared = {}
        eventually(lambda: list(found._parts(RollingConfig())))
        try:
            yield service, found
        finally:
            found.stop()


def notes(pipeline: Pipeline) -> dict[str, dict[str, Any]]:
    with VerifiedTables(pipeline.config.control_dsn, "syncline") as verified:
        return {row["table_name"]: row for row in verified.all()}


def alerts(pipeline: Pipeline) -> list[tuple[str, str]]:
    query = "select code, subject from syncline.sync_alerts where resolved_at is null order by 1, 2"
    return [(str(code), str(subject)) for code, subject in pipeline.database.execute(query)]


def test_every_table_is_compared_in_turn_and_how_far_it_is_equal_is_noted(filled: Pipeline) -> None:
    with rolled(told(filled)) as (_, found):
        before = notes(filled)
        filled.database.execute("insert into a values (101, 101)")
        found.step()
        found.step()
        after = notes(filled)
        assert sorted(after) == ["public.a", "public.b"]
        assert all(after[t]["verified_through"] > before[t]["verified_through"] for t in after)
        assert after["public.a"]["rows"] == 101
        assert found.step() == rolling._LOOK_S, "nothing is due for an hour"
        assert notes(filled) == after


def test_the_table_that_was_compared_the_longest_time_ago_is_next(filled: Pipeline) -> None:
    with rolled(told(filled, every_s=1)) as (_, found):
        found.step()
        found.step()
        first, second = sorted(notes(filled).values(), key=lambda n: n["compared_at"])
        time.sleep(1.1)
        found.step()
        assert notes(filled)[first["table_name"]]["compared_at"] > second["compared_at"]
        assert notes(filled)[second["table_name"]]["compared_at"] == second["compared_at"]


def test_a_difference_is_an_alert_until_a_comparison_is_clean_and_what_was_verified_stays_so(filled: Pipeline) -> None:
    before = notes(filled)["public.a"]
    filled.damage("update a set n = -1 where id = 5")
    pipeline = told(filled, every_s=1)
    with rolled(pipeline) as (_, found):
        found.step()
        found.step()
        assert alerts(pipeline) == [("SL-DIFFERENT", "main/main/public.a")]
        note = notes(pipeline)["public.a"]
        assert (note["differences"], note["verified_through"]) == (1, before["verified_through"])
        assert note["verified_at"] == before["verified_at"] < note["compared_at"]
        pipeline.database.execute("update a set n = 6 where id = 5")
        time.sleep(1.1)
        found.step()
        found.step()
        assert alerts(pipeline) == []
        assert notes(pipeline)["public.a"]["differences"] == 0


def test_where_it_is_told_to_it_repairs_what_differs(filled: Pipeline) -> None:
    filled.damage("update a set n = -1 where id = 5", "delete from b where id = 3")
    pipeline = told(filled, repair=True)
    with rolled(pipeline) as (_, found):
        found.step()
        found.step()
        assert alerts(pipeline) == []
        assert {t: n["differences"] for t, n in notes(pipeline).items()} == {"public.a": 0, "public.b": 0}
        assert pipeline.verify().differences == 0


def test_rest_follows_so_that_comparing_takes_its_share_of_the_time(
    filled: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(RollingVerification, "_compare", lambda *_: time.sleep(0.3))
    with rolled(told(filled, share=0.1)) as (_, found):
        began = time.monotonic()
        rest = found.step()
        assert 9 * 0.3 <= rest <= 9 * (time.monotonic() - began)


def test_a_target_that_is_behind_or_does_not_stream_is_left_alone(filled: Pipeline) -> None:
    pipeline = told(filled)
    with pipeline.running() as service:
        status = service.status()
        of = status["sources"]["main"]["targets"]["main"]
        found = RollingVerification(pipeline.config, lambda: status)
        found._compared = {}
        of.update({"state": "streaming", "lag_s": 0.0})
        for wrong in ({"lag_s": 11.0}, {"state": "paused"}):
            kept = dict(of)
            of.update(wrong)
            assert found.step() == rolling._LOOK_S
            assert found._compared == {}
            of.update(kept)
        found.step()
        assert len(found._compared) == 1
        found.stop()


def test_a_comparison_that_takes_too_long_is_given_up_and_said(
    filled: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline = told(filled, max_snapshot_s=1)
    before = notes(pipeline)
    watch = rolling._Watch
    monkeypatch.setattr(rolling, "_Watch", lambda until, stop, most_s: watch(until - 2, stop, most_s))
    with rolled(pipeline) as (_, found):
        found.step()
    assert [code for code, _ in alerts(pipeline)] == ["SL-VERIFY-FAILED"]
    assert notes(pipeline) == before


def test_beside_a_running_engine_it_goes_on_by_itself_and_ends_soon(filled: Pipeline) -> None:
    pipeline = told(filled, every_s=1, share=0.5)
    before = notes(pipeline)
    with pipeline.running() as service:
        found = RollingVerification(pipeline.config, service.status)
        assert found.is_wanted
        found.start()
        eventually(lambda: all(n["compared_at"] > before[t]["compared_at"] for t, n in notes(pipeline).items()), 60)
        found.stop()
        assert not found._thread.is_alive()


def test_a_reconciliation_is_made_when_it_is_due_and_the_next_one_is_due_later(filled: Pipeline) -> None:
    filled.damage("delete from b where id = 3")
    settings = ReconcileConfig(every_s=3600)
    pipeline = replace(filled, config=filled.config.model_copy(update={"reconcile": settings}))
    with rolled(pipeline) as (_, found):
        found.step()
        assert runs(pipeline) == []
        found._begun = datetime.now(UTC) - timedelta(hours=2)
        found.step()
        found.step()
    ((state, missing),) = runs(pipeline)
    assert (state, missing) == ("clean", 1)
    assert pipeline.verify().differences == 0


def test_a_scheduled_reconciliation_that_the_limit_refuses_is_an_alert_until_somebody_decides(filled: Pipeline) -> None:
    filled.database.execute("insert into a select g, g from generate_series(101, 200) g")
    assert filled.verify().differences == 0
    filled.damage("update a set n = -1 where id <= 100")
    pipeline = replace(filled, config=filled.config.model_copy(update={"reconcile": ReconcileConfig(every_s=3600)}))
    with rolled(pipeline) as (_, found):
        found._begun = datetime.now(UTC) - timedelta(hours=2)
        found.step()
        assert runs(pipeline) == [("refused", 0)]
        assert alerts(pipeline) == [("SL-DIFFERENT", "main/main/public.a"), ("SL-REPAIR-LIMIT", "reconciliation")]
        repair(pipeline.config, limits=Limits(max_share=1))
        assert alerts(pipeline) == [("SL-REPAIR-LIMIT", "reconciliation")]
        found._is_reconciliation_due = lambda: True  # type: ignore[method-assign]
        found.step()
        assert alerts(pipeline) == []


def test_the_alert_of_a_difference_is_over_when_somebody_else_has_mended_it(filled: Pipeline) -> None:
    filled.damage("update a set n = -1 where id = 5")
    pipeline = told(filled)
    with rolled(pipeline) as (_, found):
        found.step()
        found.step()
        assert alerts(pipeline) == [("SL-DIFFERENT", "main/main/public.a")]
        kept = len(reports(pipeline))
        assert repair(pipeline.config, ["public.a"]).clean
        assert alerts(pipeline) == []
        assert notes(pipeline)["public.a"]["differences"] == 0
        (latest, *_) = reports(pipeline)
        assert (len(reports(pipeline)), latest["differences"]) == (kept + 1, 0)


def reports(pipeline: Pipeline) -> list[dict[str, Any]]:
    with ReportRecords(pipeline.config.control_dsn, "syncline") as records:
        return records.latest(100)


def runs(pipeline: Pipeline) -> list[tuple[str, int]]:
    records = ReconciliationRuns(pipeline.config.control_dsn, "syncline")
    try:
        return [(run["state"], run["missing"]) for run in records.runs() if run["started_by"] == "schedule"]
    finally:
        records.close()


def test_without_settings_it_does_nothing(pipeline: Pipeline) -> None:
    found = RollingVerification(pipeline.config, dict)
    assert not found.is_wanted
    found.start()
    assert found._thread.ident is None
    found.stop()


def test_schedules_are_checked_where_they_are_set() -> None:
    at = datetime(2026, 11, 27, 10, 30, tzinfo=UTC)
    assert ReconcileConfig(cron="0 3 * * *").due_after(at) == datetime(2026, 11, 28, 3, tzinfo=UTC)
    assert ReconcileConfig(every_s=60).due_after(at) == at + timedelta(seconds=60)
    assert not ReconcileConfig().is_scheduled
    with pytest.raises(ValueError, match="cron expression"):
        ReconcileConfig(cron="every day")
    for kind in (ReconcileConfig, RollingConfig):
        with pytest.raises(ValueError, match="less than or equal"):
            kind(every_s=1e14)  # beyond what a time can be
