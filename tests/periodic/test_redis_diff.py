"""Runs of a source of members, without an engine: what they tell, what they keep, and when they ask."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from boards import Board, board_of

from servers import Database
from syncline.capture import IN_USE
from syncline.capture.redis import difference, staged
from syncline.capture.redis.difference import Difference
from syncline.capture.redis.reading import KeyReader
from syncline.capture.redis.settings import Group, RedisSettings
from syncline.capture.redis.told import LOST
from syncline.capture.runs import Wish
from syncline.change import Batch, Marker
from syncline.embedded import EmbeddedValkey
from syncline.errors import Gap, Misconfigured, SynclineError, Unavailable
from syncline.periodic.result import Result


def figures(result: Result) -> tuple[int, int, int, int]:
    return result.created, result.updated, result.deleted, result.set_aside


def test_members_are_told_as_they_came_changed_and_went(board: Board) -> None:
    for n in range(1, 5):
        board.put(f"u{n}", n, name=f"user {n}")
    assert figures(board.run()) == (4, 0, 0, 0)
    assert board.rows() == [(f"u{n}", n, n, f"user {n}") for n in range(1, 5)]
    board.client.zadd("leaderboard:daily", {"u1": 10})
    board.put("u5", 5)
    board.remove("u4")
    result = board.run()
    assert (figures(result), result.number) == ((1, 1, 1, 0), 2)
    assert board.told() == [("DELETE", "u4", None), ("INSERT", "u5", 5), ("UPDATE", "u1", 10)]
    entry = board.entries[-1]
    assert (entry.place, entry.through, entry.max_version) == (2, 3, 2)
    assert [row[:3] for row in board.rows()] == [("u1", 10, 1), ("u2", 2, 2), ("u3", 3, 3), ("u5", 5, 5)]
    again = board.run()
    assert (figures(again), again.number) == ((0, 0, 0, 0), 2)
    assert board.told() == []
    assert (board.entries[-1].place, board.entries[-1].through) == (2, 3)


def test_a_large_run_is_one_transaction_in_parts_and_its_state_is_told_whole(board: Board) -> None:
    board.run()
    board.client.zadd("leaderboard:yearly", {f"u{n:04}": n for n in range(1000)})
    assert board.run(batch_rows=300).created == 1000
    parts = [entry.part for entry in board.entries if entry.part is not None]
    assert [(part.index, part.last) for part in parts] == [(0, False), (1, False), (2, False), (3, True)]
    assert [entry.place for entry in board.entries] == [1, 0, 0, 0, 2]
    assert len(board.rows()) == 1000


def test_an_expired_daily_set_deletes_nobody_and_its_column_is_told_as_it_was(board: Board) -> None:
    for n in range(1, 4):
        board.put(f"u{n}", n)
    board.run()
    board.client.delete("leaderboard:daily")
    board.client.zadd("leaderboard:weekly", {"u2": 20})
    result = board.run()
    assert figures(result) == (0, 1, 0, 0)
    assert result.missing_keys == ("leaderboard:daily",)
    assert board.told() == [("UPDATE", "u2", 2)]
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
    assert board.rows("user_id", "daily_pomo", "yearly_pomo") == [("old", 0, 9), ("u1", 5, 5)]


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


def test_more_deletions_than_may_be_are_not_told_before_a_person_allows_them(board: Board) -> None:
    for n in range(1, 5):
        board.put(f"u{n}", n)
    board.run()
    for n in range(1, 4):
        board.remove(f"u{n}")
    board.put("new", 1)
    result = board.run()
    assert result.state == "asking"
    assert "3 of 4 rows" in result.message
    assert board.told() == []
    assert [row[0] for row in board.rows()] == ["u1", "u2", "u3", "u4"]
    alerts = "select code, resolved_at is null from syncline.sync_alerts"
    assert board.database.execute(alerts) == [("SL-PERIODIC-DELETES", True)]
    assert figures(board.run(Wish(allow_deletes=True))) == (1, 0, 3, 0)
    assert board.database.execute(alerts) == [("SL-PERIODIC-DELETES", False)]


def test_a_bad_member_is_set_aside_with_its_reason_and_the_rest_is_told(board: Board) -> None:
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
    assert board.runs()[0]["reasons"] == result.reasons
    alerts = "select message from syncline.sync_alerts where code = 'SL-PERIODIC-ASIDE' and resolved_at is null"
    assert "1: column name holds no text" in board.database.value(alerts)
    for member in ("u1", "u3", b"\xff"):
        board.client.zrem("leaderboard:daily", member)
    board.client.delete("user:u3")
    assert figures(board.run()) == (0, 1, 0, 0)
    assert board.database.execute(alerts) == []


def test_a_key_of_another_kind_is_no_hash_and_stops_no_other_member(board: Board) -> None:
    board.put("u1", 1)
    board.put("u2", 2)
    board.run()
    board.client.delete("user:u2")
    board.client.set("user:u2", "x")
    board.client.zadd("leaderboard:daily", {"u1": 5})
    board.run(Wish(members=("u1", "u2")))
    assert [row[:2] for row in board.rows()] == [("u1", 5), ("u2", 2)]
    board.client.zadd("leaderboard:daily", {"u2": 6})
    board.run()
    assert [row[:2] for row in board.rows()] == [("u1", 5), ("u2", 6)]


PARKED = (
    "select reason, count(*) from syncline.sync_dead_letters where target = 'members of board' and state = 'parked'"
    " group by reason order by reason"
)


def test_a_member_that_can_not_be_read_is_parked_once_until_it_can_be_or_is_gone(board: Board) -> None:
    board.put("u1", 1)
    board.put("u2", 2)
    board.client.zadd("leaderboard:daily", {"u1": 1.5, "u2": 2.5, b"\xff": 1})
    board.client.zadd("leaderboard:weekly", {b"\xff": 1})
    assert board.run().set_aside == 3
    nameless = ("the member's name is no value of the key column", 1)
    assert board.database.execute(PARKED) == [("column daily_pomo holds no int4", 2), nameless]
    board.client.zadd("leaderboard:daily", {"u3": 3})
    board.run()
    board.run(Wish(columns=("weekly_pomo",)))  # which does not look at what is wrong
    assert board.database.value("select count(*) from syncline.sync_dead_letters") == 3
    board.client.zadd("leaderboard:daily", {"u1": 1})
    board.client.zrem("leaderboard:weekly", b"\xff")
    board.client.zrem("leaderboard:daily", b"\xff")
    board.run(Wish(members=("u1",)))
    assert board.database.execute(PARKED) == [("column daily_pomo holds no int4", 1), nameless]
    board.client.hset("user:u2", mapping={"name": b"\xff\xfe"})
    board.client.zadd("leaderboard:daily", {"u2": 2})
    board.run()
    assert board.database.execute(PARKED) == [("column name holds no text", 1)]
    board.remove("u2")
    board.run()
    assert board.database.execute(PARKED) == []
    states = "select state, count(*) from syncline.sync_dead_letters group by state"
    assert board.database.execute(states) == [("superseded", 4)]


def test_a_member_is_parked_before_the_rest_of_its_run_is_told(board: Board) -> None:
    board.put("u1", 1)
    board.run()
    board.put("u2", 2)
    board.client.zadd("leaderboard:daily", {"u1": 1.5})
    with board.source() as source:
        stream = source.capture(source.tables(), 0, 1, lambda *_: None)
        entries = stream.entries(1)
        assert [next(entries).place, next(entries).place] == [1, 2]
        assert board.database.execute(PARKED) == [("column daily_pomo holds no int4", 1)]
        entries.close()  # type: ignore[attr-defined]


def test_times_are_the_same_moment_however_they_are_written(board: Board) -> None:
    board.put("u1", 1, updated_at="2024-01-15T12:30:00+02:00")
    board.put("u2", 1, updated_at="2024-01-15T10:30:00Z")
    board.put("u3", 1, updated_at="2024-01-15 11:30:00.000")
    board.put("u4", 1, updated_at="1705314600")
    board.run(timezone="Europe/Berlin")
    moment = datetime(2024, 1, 15, 10, 30, tzinfo=UTC)
    assert board.rows("user_id", "updated_at") == [(f"u{n}", moment) for n in range(1, 5)]
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


def test_a_run_in_parts_through_files_finds_what_one_in_memory_does(
    board: Board, monkeypatch: pytest.MonkeyPatch
) -> None:
    def change() -> None:
        board.remove("u000")
        board.put("u001", 7)
        board.put("new", 8, name="n")
        board.client.zadd("leaderboard:daily", {"u002": 1.5})

    def found(result: Result) -> tuple[Any, ...]:
        return result.members, figures(result), result.reasons, board.told(), board.rows()

    for n in range(300):
        board.put(f"u{n:03}", n, name=f"user {n}")
    assert board.run().created == 300
    change()
    expected = found(board.run())
    board.client.zadd("leaderboard:daily", {"u002": 2})
    board.remove("new")
    board.put("u000", 0, name="user 0")
    board.put("u001", 1)
    board.run()
    files = set()
    write = staged._Pieces.write

    def noted(pieces: Any, rows: pa.Table) -> None:
        files.add(pieces._path.name)
        write(pieces, rows)

    monkeypatch.setattr(staged, "_HELD_BYTES", 1000)
    monkeypatch.setattr(staged._Pieces, "write", noted)
    monkeypatch.setattr(difference, "_ROWS", 50)
    monkeypatch.setattr(difference, "_MOST_ROWS", 70)
    change()
    assert found(board.run()) == expected
    assert files == {f"{table}-0.arrow" for table in ("g0", "g1", "g2", "g3", "g4", "held")}
    assert expected[1] == (1, 1, 1, 1)


@pytest.mark.parametrize("held_bytes", [1, 1 << 30])
def test_of_a_member_that_comes_twice_the_last_values_count(
    board: Board, monkeypatch: pytest.MonkeyPatch, held_bytes: int
) -> None:
    monkeypatch.setattr(staged, "_HELD_BYTES", held_bytes)
    board.put("u1", 1, name="one")
    board.put("u2", 2, name="two")
    scan = KeyReader.scan

    def twice(reader: KeyReader, group: Group) -> Iterator[pa.RecordBatch]:
        yield from scan(reader, group)
        board.put("u1", 5, name="five")
        yield from scan(reader, group)

    monkeypatch.setattr(KeyReader, "scan", twice)
    result = board.run()
    assert (result.members, result.created) == (2, 2)
    assert board.rows() == [("u1", 5, 5, "five"), ("u2", 2, 2, "two")]


def test_what_a_killed_run_put_aside_is_swept_and_what_a_living_one_does_is_not(board: Board) -> None:
    board.put("u1", 1)
    board.run()
    folder = board.folder / "board.log" / "told"
    left = folder / "run-killed"
    left.mkdir()
    (left / "g0-0.arrow").write_bytes(b"x")
    with board.source() as source, source.told.scratch() as ours:
        assert not left.exists()
        board.run()
        assert ours.exists()
    assert [path.name for path in folder.iterdir() if path.is_dir()] == []


def test_a_run_of_some_periods_leaves_the_others_and_deletes_nobody(board: Board) -> None:
    for n in range(1, 4):
        board.put(f"u{n}", n, name="x")
    board.run()
    board.remove("u3")
    board.put("u1", 10)
    board.put("new", 7, name="y")
    assert figures(board.run(Wish(columns=("daily_pomo",)))) == (1, 1, 0, 0)
    assert board.rows() == [("new", 7, 7, "y"), ("u1", 10, 1, "x"), ("u2", 2, 2, "x"), ("u3", 3, 3, "x")]


def test_a_wish_that_can_not_be_fulfilled_fails_alone(board: Board) -> None:
    board.run()
    records = board.records
    try:
        bad = records.ask(Wish(columns=("daily_promo",)))
        assert board.run().state == "done"
        row = records.one(bad)
    finally:
        records.close()
    assert row is not None
    assert (row["state"], "daily_promo" in row["message"]) == ("refused", True)


def test_a_run_above_the_share_has_targets_set_a_copy_aside_first(board: Board) -> None:
    for n in range(4):
        board.put(f"u{n}", n)
    board.run()
    board.put("u0", 10)
    board.run(backup_share=0.25)
    (batch,) = board.entries[-1].items
    assert isinstance(batch, Batch)  # one of four is not above 0.25
    board.put("u0", 11)
    board.put("u1", 11)
    board.run(backup_share=0.25, keep_backups=7)
    marker = board.entries[-1].items[0]
    assert isinstance(marker, Marker)
    assert marker.known is not None
    assert (marker.kind, marker.known.since, marker.known.shape) == ("backup", 3, "7")


def test_while_one_engine_does_the_runs_another_is_told_so(board: Board, tmp_path: Path) -> None:
    board.put("u1", 1)
    board.run()
    with board.source() as source:
        stream = source.capture(source.tables(), 0, 1, lambda *_: None)
        entries = stream.entries(1)
        next(entries)
        assert source.reader() == 1
        with pytest.raises(Unavailable) as here:
            board.run()
        assert here.value.code == IN_USE
        board.folder = tmp_path / "another machine"  # whose disk knows nothing of the lock, but the control schema does
        with pytest.raises(Unavailable) as there:
            board.run()
        assert there.value.code == IN_USE
        stream.close()
        assert not [entry for entry in entries if entry.rows]
        assert source.reader() is None


def test_who_waits_for_a_run_of_everything_does_not_hear_of_one_of_some(board: Board) -> None:
    board.put("u1", 1)
    board.run()
    waiting = board.folder / "board.log" / "told" / "ask-somebody"
    waiting.touch()
    records = board.records
    records.ask(Wish(members=("u1",)))
    with board.source() as source:
        stream = source.capture(source.tables(), 0, 1, lambda *_: None)
        entries = stream.entries(1)
        assert [next(entries).place for _ in range(3)] == [1, 1, 1]  # where it begins, behind some, behind all
        assert waiting.exists()
        stream.close()
        list(entries)
    records.close()
    assert not waiting.exists()
    assert [run["kind"] for run in board.runs()[:2]] == ["full", "members"]


def test_a_run_that_lost_its_lock_tells_nothing(board: Board, monkeypatch: pytest.MonkeyPatch) -> None:
    board.put("u1", 1)
    board.run()
    board.put("u1", 2)
    compare = Difference.compare

    def late(difference: Difference, *given: Any) -> Any:
        board.database.execute("update syncline.sync_periodic set epoch = epoch + 1, holder = 'somebody else'")
        return compare(difference, *given)

    monkeypatch.setattr(Difference, "compare", late)
    with pytest.raises(Unavailable) as fenced:
        board.run()
    assert fenced.value.code == IN_USE
    assert board.told() == []
    monkeypatch.undo()
    assert board.rows("user_id", "daily_pomo") == [("u1", 1)]


def test_between_full_diffs_only_noted_members_are_looked_at(
    valkey: EmbeddedValkey, database: Database, tmp_path: Path
) -> None:
    given = {"changed": "leaderboard:changed", "full_every": 3, "delete_share": 1.0, "changed_overlap_s": 0}
    with board_of(valkey, database, tmp_path, **given) as board:
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


def test_a_key_of_another_kind_fails_the_run_and_the_next_one_goes_on(board: Board) -> None:
    board.put("u1", 1)
    board.run()
    board.client.set("leaderboard:weekly", "x")
    with board.source() as source:
        stream = source.capture(source.tables(), 0, 1, lambda *_: None)
        entries = stream.entries(1)
        next(entries)
        scan = KeyReader.scan

        def mended(reader: KeyReader, group: Group) -> Iterator[pa.RecordBatch]:
            try:
                yield from scan(reader, group)
            except Misconfigured:
                board.client.delete("leaderboard:weekly")
                board.client.zadd("leaderboard:weekly", {"u1": 3})
                records.ask(Wish())
                raise

        records = board.records
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(KeyReader, "scan", mended)
            entry = next(entries)
        assert entry.rows == 1
        stream.confirm(entry.place)
        stream.close()
        list(entries)
        records.close()
    assert [(run["state"], run["code"]) for run in board.runs()[:2]] == [("done", ""), ("failed", "SL-REDIS-KIND")]


def test_what_was_told_but_never_logged_is_forgotten_and_what_was_logged_is_not(board: Board) -> None:
    """Killed between writing the state and appending the run; between appending it and settling the state."""
    board.put("u1", 1)
    board.run()
    board.put("u1", 2)
    with board.source() as source:
        for durable in (1, 2):
            stream = source.capture(source.tables(), 0, 1, lambda *_: None)
            entries = stream.entries(1)
            assert [next(entries).place, next(entries).place] == [1, 2]
            entries.close()  # type: ignore[attr-defined]
            assert source.attach(source.identify(), durable, print) == durable
            if durable == 1:
                continue
            again = source.capture(source.tables(), 0, 1, lambda *_: None)
            resumed = again.entries(2)
            assert next(resumed).place == 2
            again.close()
            assert not [entry for entry in resumed if entry.rows]
    assert board.rows("user_id", "daily_pomo") == [("u1", 2)]


def test_a_lost_state_is_a_gap_and_asks_where_keys_are_gone_too(board: Board) -> None:
    board.put("u1", 1)
    board.run()
    for path in (board.folder / "board.log" / "told").glob("*.parquet"):
        path.unlink()
    with board.source() as source:
        with pytest.raises(Gap) as lost:
            source.attach(source.identify(), 1, print)
        assert lost.value.code == LOST
        board.client.delete("leaderboard:daily")
        with pytest.raises(Misconfigured, match="leaderboard:daily"):
            source.attach(source.identify(), 1, print)


def test_a_column_that_came_is_read_and_one_that_went_is_told_no_more(board: Board) -> None:
    board.put("u1", 1, name="one", badge="gold")
    board.run()
    columns = {**board.settings["columns"], "badge": {"hash": "user:{member}"}}
    del columns["yearly_pomo"]
    board.settings["columns"] = columns
    assert board.rows("user_id", "name", "badge") == [("u1", "one", None)]
    assert figures(board.run()) == (0, 1, 0, 0)
    assert board.rows("user_id", "name", "badge") == [("u1", "one", "gold")]


def test_a_defect_ends_a_run_as_failed_and_names_no_value(board: Board, monkeypatch: pytest.MonkeyPatch) -> None:
    board.put("u1", 1)
    board.run()

    def broken(*_: object) -> None:
        raise ValueError("hush-hush")

    monkeypatch.setattr(Difference, "compare", broken)
    with pytest.raises(SynclineError) as told:
        board.run()
    assert told.value.code == "SL-INTERNAL"
    run = board.runs()[0]
    assert (run["state"], run["code"]) == ("failed", "SL-INTERNAL")
    assert "hush-hush" not in run["message"] + told.value.message


def test_old_runs_are_forgotten(board: Board) -> None:
    for _ in range(12):
        board.run(keep_runs=10)
    assert len(board.runs()) == 10


@pytest.mark.parametrize("cron", ["every hour", "61 * * * *", "0 0 31 2 *"])
def test_a_cron_expression_that_never_comes_is_refused(cron: str) -> None:
    with pytest.raises(ValueError, match="cron"):
        RedisSettings.model_validate(
            {"url": "redis://h", "table": "t", "columns": {"c": {"sorted_set": "s"}}, "cron": cron}
        )


def test_runs_are_due_by_the_clock_of_their_zone() -> None:
    settings = RedisSettings.model_validate(
        {
            "url": "redis://h",
            "table": "t",
            "columns": {"c": {"sorted_set": "s"}},
            "cron": "30 6 * * *",
            "timezone": "Europe/Berlin",
        }
    )
    began = datetime(2024, 7, 1, 4, 30, tzinfo=UTC)  # 6:30 in Berlin
    assert settings.due_after(began) == datetime(2024, 7, 2, 4, 30, tzinfo=UTC)
    assert settings.model_copy(update={"cron": None}).due_after(began) == datetime(2024, 7, 1, 5, 30, tzinfo=UTC)
