from __future__ import annotations

import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import pytest
from boards import Board, board_of

from servers import Database
from syncline.capture.redis.difference import Difference
from syncline.capture.redis.reading import KeyReader, Stopped
from syncline.capture.redis.settings import Group
from syncline.embedded import EmbeddedValkey
from syncline.errors import Misconfigured, SynclineError, Unavailable
from syncline.periodic import writing
from syncline.periodic.run import Result, Wish, perform


def figures(result: Result) -> tuple[int, int, int, int]:
    return result.created, result.updated, result.deleted, result.set_aside


def test_members_are_created_updated_and_deleted_as_they_are_in_redis(board: Board) -> None:
    for n in range(1, 5):
        board.put(f"u{n}", n, name=f"user {n}")
    assert figures(board.run()) == (4, 0, 0, 0)
    assert board.rows() == [(f"u{n}", n, n, f"user {n}") for n in range(1, 5)]
    board.client.zadd("leaderboard:daily", {"u1": 10})
    board.remove("u4")
    assert figures(board.run()) == (0, 1, 1, 0)
    assert board.rows() == [("u1", 10, 1, "user 1"), ("u2", 2, 2, "user 2"), ("u3", 3, 3, "user 3")]
    assert figures(board.run()) == (0, 0, 0, 0)


def test_a_table_that_was_there_is_taken_over_with_what_is_not_ours(board: Board) -> None:
    board.database.execute(
        "create table pomo_leaderboard (id serial, user_id text primary key, daily_pomo int, weekly_pomo int,"
        " monthly_pomo int, yearly_pomo int, name text, updated_at timestamptz, badge text)"
    )
    board.database.execute(
        "insert into pomo_leaderboard (user_id, daily_pomo, weekly_pomo, monthly_pomo, yearly_pomo, badge)"
        " values ('u1', 7, 7, 7, 7, 'gold'), ('u2', 1, 1, 1, 1, 'tin')"
    )
    board.put("u1", 7)
    board.put("u2", 2)
    assert figures(board.run()) == (0, 1, 0, 0)
    assert board.rows("user_id, daily_pomo, badge") == [("u1", 7, "gold"), ("u2", 2, "tin")]


def test_an_expired_daily_set_deletes_nobody_and_leaves_its_column_as_it_was(board: Board) -> None:
    for n in range(1, 4):
        board.put(f"u{n}", n)
    board.run()
    board.client.delete("leaderboard:daily")
    board.client.zadd("leaderboard:weekly", {"u2": 20})
    result = board.run()
    assert figures(result) == (0, 1, 0, 0)
    assert result.missing_keys == ("leaderboard:daily",)
    assert [row[:3] for row in board.rows()] == [("u1", 1, 1), ("u2", 2, 20), ("u3", 3, 3)]


def test_an_expired_set_that_should_clear_its_column_does(board: Board) -> None:
    board.put("u1", 5)
    board.run()
    board.client.delete("leaderboard:daily")
    assert figures(board.run(expired="clear")) == (0, 1, 0, 0)
    assert [row[:3] for row in board.rows()] == [("u1", 0, 5)]


def test_a_member_that_is_in_one_set_only_is_there(board: Board) -> None:
    board.put("u1", 5)
    board.client.zadd("leaderboard:yearly", {"old": 9})
    board.run()
    assert board.rows("user_id, daily_pomo, yearly_pomo") == [("old", 0, 9), ("u1", 5, 5)]


def test_keys_that_are_gone_delete_rows_only_where_the_mapping_says_so(board: Board) -> None:
    board.put("u1", 5)
    board.put("u2", 5)
    board.run()
    board.client.flushdb()
    kept = board.run()
    assert (kept.deleted, kept.kept, kept.state) == (0, 2, "done")
    assert len(board.rows()) == 2
    asked = board.run(deletes="gone")
    assert (asked.state, asked.code) == ("asking", "SL-PERIODIC-DELETES")
    assert len(board.rows()) == 2
    assert board.run(Wish(allow_deletes=True), deletes="gone").deleted == 2
    assert board.rows() == []


def test_more_deletions_than_may_be_stop_the_run_before_it_writes_anything(board: Board) -> None:
    for n in range(1, 5):
        board.put(f"u{n}", n)
    board.run()
    for n in range(1, 4):
        board.remove(f"u{n}")
    board.put("new", 1)
    result = board.run()
    assert result.state == "asking"
    assert "3 of 4 rows" in result.message
    assert [row[0] for row in board.rows()] == ["u1", "u2", "u3", "u4"]
    assert board.records.runs(1)[0]["state"] == "asking"
    assert figures(board.run(Wish(allow_deletes=True))) == (1, 0, 3, 0)


def test_a_bad_member_is_set_aside_with_its_reason_and_the_rest_arrives(board: Board) -> None:
    board.put("u1", 1)
    board.put("u2", 2)
    board.run()
    board.client.zadd("leaderboard:daily", {"u1": 1.5, "u2": 3})
    board.client.hset("user:u3", mapping={"name": b"\xff\xfe"})
    board.client.zadd("leaderboard:daily", {b"\xff": 1})
    result = board.run()
    assert figures(result) == (0, 1, 0, 3)
    assert result.reasons == {
        "column daily_pomo holds no int4": 1,
        "column name holds no text": 1,
        "the member's name is no value of the key column": 1,
    }
    assert [row[:2] for row in board.rows()] == [("u1", 1), ("u2", 3)]
    assert board.records.runs(1)[0]["reasons"] == result.reasons


def test_a_member_that_postgresql_refuses_is_set_aside_too(board: Board) -> None:
    board.run()
    board.database.execute("alter table pomo_leaderboard add constraint low check (daily_pomo < 100)")
    for n, score in enumerate((1, 100, 2)):
        board.put(f"u{n}", score)
    result = board.run()
    assert (result.created, result.set_aside) == (2, 1)
    assert [who for who, _ in result.members_aside] == ["u1"]
    assert [row[:2] for row in board.rows()] == [("u0", 1), ("u2", 2)]


def test_times_are_the_same_moment_however_they_are_written(board: Board) -> None:
    board.put("u1", 1, updated_at="2024-01-15T12:30:00+02:00")
    board.put("u2", 1, updated_at="2024-01-15T10:30:00Z")
    board.put("u3", 1, updated_at="2024-01-15 11:30:00.000")
    board.put("u4", 1, updated_at="1705314600")
    board.run(timezone="Europe/Berlin")
    moment = datetime(2024, 1, 15, 10, 30, tzinfo=UTC)
    assert board.rows("user_id, updated_at") == [(f"u{n}", moment) for n in range(1, 5)]
    board.client.hset("user:u1", "updated_at", "2024-01-15T10:30:00+00:00")
    assert figures(board.run(timezone="Europe/Berlin")) == (0, 0, 0, 0)


def test_a_member_that_moves_during_the_scan_is_looked_at_again_and_not_deleted(
    board: Board, monkeypatch: pytest.MonkeyPatch
) -> None:
    for n in range(1, 4):
        board.client.zadd("leaderboard:daily", {f"u{n}": n})
    for period in ("weekly", "monthly", "yearly"):
        board.client.zadd(f"leaderboard:{period}", {"other": 1})
    board.run()
    scan = KeyReader.scan

    def moving(reader: KeyReader, group: Group) -> Iterator[pa.RecordBatch]:
        """u3 is in the weekly set while the daily one is read, and the other way round."""
        if group.key == "leaderboard:daily":
            board.client.zrem("leaderboard:daily", "u3")
            board.client.zadd("leaderboard:weekly", {"u3": 30})
        if group.key == "leaderboard:weekly":
            board.client.zrem("leaderboard:weekly", "u3")
            board.client.zadd("leaderboard:daily", {"u3": 31})
        yield from scan(reader, group)

    monkeypatch.setattr(KeyReader, "scan", moving)
    assert figures(board.run()) == (0, 1, 0, 0)
    assert ("u3", 31, 0) in [row[:3] for row in board.rows()]


def test_a_dry_run_tells_and_changes_nothing(board: Board) -> None:
    board.put("u1", 1)
    first = board.run(Wish(dry_run=True))
    assert (first.created, "not followed yet" in first.message) == (1, True)
    assert board.database.value("select to_regclass('pomo_leaderboard')") is None
    board.run()
    board.put("u1", 2)
    board.put("u2", 2)
    assert figures(board.run(Wish(dry_run=True))) == (1, 1, 0, 0)
    assert board.rows() == [("u1", 1, 1, None)]
    assert figures(board.run()) == (1, 1, 0, 0)


def test_a_run_of_some_periods_leaves_the_others_and_deletes_nobody(board: Board) -> None:
    for n in range(1, 4):
        board.put(f"u{n}", n, name="x")
    board.run()
    board.remove("u3")
    board.put("u1", 10)
    board.put("new", 7, name="y")
    result = board.run(Wish(columns=("daily_pomo",)))
    assert figures(result) == (1, 1, 0, 0)
    assert board.rows() == [("new", 7, 7, "y"), ("u1", 10, 1, "x"), ("u2", 2, 2, "x"), ("u3", 3, 3, "x")]


def test_a_period_that_nobody_has_is_refused(board: Board) -> None:
    with pytest.raises(Misconfigured, match="daily_pomo"):
        board.run(Wish(columns=("daily_promo",)))


def test_a_run_above_the_share_sets_a_copy_of_the_table_aside_first(board: Board) -> None:
    for n in range(4):
        board.put(f"u{n}", n)
    assert board.run().backup == ""
    names = []
    for score in range(10, 15):
        board.put("u0", score)
        board.put("u1", score)
        names.append(board.run().backup)
    kept = [
        name for (name,) in board.database.execute("select tablename from pg_tables where tablename like 'backup_%%'")
    ]
    assert sorted(f"syncline_target.{name}" for name in kept) == sorted(names[-3:])
    held = board.database.execute(f"select daily_pomo from {names[-1]} where user_id = 'u0'")
    assert held == [(13,)]
    board.put("u0", 99)
    assert board.run(backup_share=0.5).backup == ""


def test_of_two_runs_at_once_the_second_is_told_to_wait(board: Board, monkeypatch: pytest.MonkeyPatch) -> None:
    board.put("u1", 1)
    scan, met = KeyReader.scan, list[str]()

    def second(reader: KeyReader, group: Group) -> Iterator[pa.RecordBatch]:
        if not met:
            with pytest.raises(Unavailable, match="under way") as refused:
                board.run()
            met.append(refused.value.code)
        yield from scan(reader, group)

    monkeypatch.setattr(KeyReader, "scan", second)
    assert board.run().created == 1
    assert met == ["SL-PERIODIC-RUNNING"]


def test_a_run_that_slept_through_its_lease_writes_nothing(board: Board, monkeypatch: pytest.MonkeyPatch) -> None:
    board.put("u1", 1)
    board.run()
    board.put("u1", 2)
    scan, slept = KeyReader.scan, threading.Event()

    def asleep(reader: KeyReader, group: Group) -> Iterator[pa.RecordBatch]:
        yield from scan(reader, group)
        if not slept.is_set():
            slept.set()
            board.database.execute("update syncline.sync_periodic set expires_at = now() - interval '1 second'")
            board.put("u1", 3)
            assert board.run().updated == 1

    monkeypatch.setattr(KeyReader, "scan", asleep)
    with pytest.raises(Misconfigured) as fenced:
        board.run()
    assert fenced.value.code == "SL-PERIODIC-FENCED"
    assert board.rows("user_id, daily_pomo") == [("u1", 3)]


def test_a_run_whose_target_another_one_opened_is_shut_out_there(board: Board, monkeypatch: pytest.MonkeyPatch) -> None:
    """Should it believe in its lease, the target still does not."""
    board.put("u1", 1)
    board.run()
    board.put("u1", 2)
    write, met = writing.write, list[bool]()

    def late(*given: Any) -> Any:
        if not met:
            met.append(True)
            board.database.execute("update syncline.sync_periodic set expires_at = now() - interval '1 second'")
            board.put("u1", 3)
            assert board.run().updated == 1
        return write(*given)

    monkeypatch.setattr("syncline.periodic.run.write", late)
    with pytest.raises(SynclineError):
        board.run()
    assert board.rows("user_id, daily_pomo") == [("u1", 3)]


def test_versions_rise_even_when_the_records_are_older_than_the_target(board: Board) -> None:
    board.put("u1", 1)
    for _ in range(3):
        board.run()
    board.database.execute("update syncline.sync_periodic set epoch = 0")
    board.put("u1", 2)
    assert board.run().updated == 1
    assert board.rows("user_id, daily_pomo, _syncline_version") == [("u1", 2, 2)]


def test_between_full_diffs_only_noted_members_are_looked_at(valkey: EmbeddedValkey, database: Database) -> None:
    with board_of(
        valkey, database, changed="leaderboard:changed", full_every=3, delete_share=1.0, changed_overlap_s=0
    ) as board:
        for n in range(1, 4):
            board.put(f"u{n}", n)
            board.client.zadd("leaderboard:changed", {f"u{n}": 1000 + n})
        assert board.run().kind == "full"
        board.put("u1", 10)
        board.client.zadd("leaderboard:changed", {"u1": 2000})
        board.remove("u3")
        board.client.zadd("leaderboard:changed", {"u3": 2001})
        board.put("u2", 20)  # nobody notes it
        result = board.run()
        assert (result.kind, result.members, figures(result)) == ("changed", 1, (0, 1, 1, 0))
        assert [row[:2] for row in board.rows()] == [("u1", 10), ("u2", 2)]
        assert (board.run().kind, board.run().kind) == ("changed", "full")
        assert [row[:2] for row in board.rows()] == [("u1", 10), ("u2", 20)]


def test_a_key_of_another_kind_is_told_and_recorded(board: Board) -> None:
    board.client.set("leaderboard:weekly", "x")
    with pytest.raises(Misconfigured) as told:
        board.run()
    assert told.value.code == "SL-REDIS-KIND"
    assert board.records.runs(1)[0]["code"] == "SL-REDIS-KIND"
    assert board.records.runs(1)[0]["state"] == "failed"


def test_a_run_that_is_asked_to_stop_ends_and_lets_go_of_the_lock(board: Board) -> None:
    board.put("u1", 1)
    place = board.place()
    place.stop.set()
    with pytest.raises(Stopped):
        perform(place, Wish())
    assert board.run().created == 1


def test_a_defect_ends_a_run_as_failed_and_names_no_value(board: Board, monkeypatch: pytest.MonkeyPatch) -> None:
    board.put("u1", 1)

    def broken(*_: object) -> None:
        raise ValueError("hush-hush")

    monkeypatch.setattr(Difference, "compare", broken)
    with pytest.raises(SynclineError) as told:
        board.run()
    assert told.value.code == "SL-INTERNAL"
    (run,) = board.records.runs()
    assert (run["state"], run["code"]) == ("failed", "SL-INTERNAL")
    assert "hush-hush" not in run["message"] + told.value.message
    monkeypatch.undo()
    assert figures(board.run()) == (1, 0, 0, 0)
