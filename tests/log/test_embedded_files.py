"""What is particular to the embedded log: its files, who holds them, their damage, their format, and `peek`."""

from __future__ import annotations

import errno
import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from log.embedded_place import EmbeddedPlace, as_after_a_power_cut, flip
from syncline.change import Position
from syncline.errors import Damaged, Gap, Misconfigured, Unavailable
from syncline.log import Incarnation, rows
from syncline.log.embedded import EmbeddedLog
from syncline.testing import example_batch, example_entry
from syncline.testing.log_suite import parts_of, read_all

SMALL, LARGE = 3, 5000  # rows of an entry whose body is in the database, and in a file


@pytest.fixture
def place(tmp_path: Path) -> EmbeddedPlace:
    return EmbeddedPlace(tmp_path / "log")


def files(place: EmbeddedPlace) -> list[str]:
    return sorted(p.name for p in place.folder.iterdir())


def filled(place: EmbeddedPlace, *sizes: int) -> EmbeddedLog:
    log = place.open()
    for i, size in enumerate(sizes):
        log.append([example_entry(rows=size, version=100 + i)])
    return log


# ----------------------------------------------------------------------------------------------- who holds it


def test_a_second_process_is_refused_by_naming_the_first(place: EmbeddedPlace) -> None:
    log = place.open()
    script = (
        "import sys; from syncline.log.embedded import *; from syncline.errors import *; from pathlib import Path\n"
        "try: EmbeddedLog(EmbeddedLogConfig(path=Path(sys.argv[1])), 'main')\n"
        "except Misconfigured as error: print(error.code, error)"
    )
    command = [sys.executable, "-c", script, str(place.path)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    told = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=60).stdout
    assert told.startswith("SL-LOG-LOCKED")
    assert f"in use by process {os.getpid()}" in told
    log.append([example_entry()])
    log.close()


def test_a_log_open_in_this_process_is_not_opened_twice(place: EmbeddedPlace) -> None:
    log = place.open()
    with pytest.raises(Misconfigured, match="in use"):
        place.open()
    log.close()
    place.open().close()


def test_logs_of_two_sources_lie_side_by_side(place: EmbeddedPlace) -> None:
    one, other = place.open(), EmbeddedLog(place.config(), "other")
    one.append([example_entry()])
    assert one.uuid != other.uuid
    assert read_all(other) == []
    one.close()
    other.close()


def test_a_folder_that_cannot_be_made_is_a_setting_to_correct(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(Misconfigured, match=r"log\.path"):
        EmbeddedPlace(tmp_path / "file").open()


@pytest.mark.parametrize("name", ["", "../up", "a/b", ".hidden"])
def test_a_name_that_is_no_file_name_is_refused(place: EmbeddedPlace, name: str) -> None:
    with pytest.raises(Misconfigured, match="cannot be named"):
        EmbeddedLog(place.config(), name)


# ----------------------------------------------------------------------------------------------- damage


def test_a_damaged_last_entry_is_met_at_opening(place: EmbeddedPlace) -> None:
    filled(place, SMALL, LARGE).close()
    place.damage(2)
    with pytest.raises(Damaged, match="entry 2") as caught:
        place.open()
    assert "move the log's folder away" in caught.value.remedy


@pytest.mark.parametrize("column", ["head", "created", "place", "max_version", "total", "size", "offset"])
def test_a_changed_field_of_an_entry_is_damage(place: EmbeddedPlace, column: str) -> None:
    filled(place, LARGE, LARGE, SMALL).close()
    changed = "cast(replace(head, 'public', 'publik') as blob)" if column == "head" else f"{column} + 1"
    with sqlite3.connect(place.database) as connection:
        connection.execute(f"update entry set {column} = {changed} where n = 2")
    connection.close()
    log = place.open()
    with pytest.raises(Damaged, match="entry 2"):
        log.read(Position(log.uuid, 1), 1)
    log.close()


def test_a_body_in_the_place_of_another_is_damage(place: EmbeddedPlace) -> None:
    filled(place, SMALL, SMALL, SMALL).close()
    with sqlite3.connect(place.database) as connection:
        first = connection.execute("select head, body, checksum from entry where n = 1").fetchone()
        connection.execute("update entry set head = ?, body = ?, checksum = ? where n = 2", first)
    connection.close()
    log = place.open()
    with pytest.raises(Damaged, match="entry 2"):
        log.read(Position(log.uuid, 1), 1)
    log.close()


def test_a_row_that_vanished_is_damage(place: EmbeddedPlace) -> None:
    filled(place, SMALL, SMALL, SMALL).close()
    with sqlite3.connect(place.database) as connection:
        connection.execute("delete from entry where n = 2")
    connection.close()
    log = place.open()
    with pytest.raises(Damaged, match="entry 2 is missing"):
        log.read(Position(log.uuid, 1), 1)
    log.close()


@pytest.mark.parametrize(
    "harm",
    [
        pytest.param(lambda body: body.unlink(), id="removed"),
        pytest.param(lambda body: os.truncate(body, 5000), id="cut"),
    ],
)
def test_a_missing_or_cut_file_of_bodies_is_damage(place: EmbeddedPlace, harm: Callable[[Path], None]) -> None:
    filled(place, SMALL, LARGE, SMALL).close()
    (body,) = place.folder.glob("*.bodies")
    harm(body)
    log = place.open()
    assert len(log.read(Position(log.uuid, 0), 1)) == 1
    with pytest.raises(Damaged, match="body of entry 2 is missing"):
        log.read(Position(log.uuid, 1), 1)
    log.close()


def test_malformed_database_pages_are_damage_and_never_a_wrong_entry(place: EmbeddedPlace, tmp_path: Path) -> None:
    log = filled(place, *[20] * 30)
    uuid, entries = log.uuid, read_all(log)
    log.close()
    sound = place.database.read_bytes()
    outcomes = set()
    for page in range(len(sound) // 16384):
        harmed = bytearray(sound)
        harmed[page * 16384 : page * 16384 + 200] = bytes(range(200))
        place.database.write_bytes(harmed)
        outcomes.add(_open_and_read(place, uuid, entries))
    assert outcomes <= {"damaged", "whole"}
    assert "damaged" in outcomes


@pytest.mark.parametrize("size", [0, 100, 16384, 3 * 16384 + 5])
def test_a_truncated_database_is_damage_or_another_log(place: EmbeddedPlace, size: int) -> None:
    log = filled(place, *[20] * 30)
    uuid, entries = log.uuid, read_all(log)
    log.close()
    os.truncate(place.database, size)
    assert _open_and_read(place, uuid, entries) == ("another" if size == 0 else "damaged")


def _open_and_read(place: EmbeddedPlace, uuid: str, entries: list[object]) -> str:
    try:
        log = place.open()
    except Damaged:
        return "damaged"
    try:
        if log.uuid != uuid:
            return "another"
        assert read_all(log) == entries
        return "whole"
    except Damaged:
        return "damaged"
    finally:
        log.close()


def test_a_file_that_is_no_database_is_damage_told_in_words(place: EmbeddedPlace) -> None:
    place.folder.mkdir(parents=True)
    place.database.write_bytes(b"not a database, but long enough to be taken for one" * 100)
    with pytest.raises(Damaged, match="file is not a database"):
        place.open()
    with pytest.raises(Damaged, match="file is not a database"):
        EmbeddedLog.peek(place.config(), "main")


def test_a_damaged_record_of_the_log_is_not_believed(place: EmbeddedPlace) -> None:
    filled(place, SMALL).close()
    with sqlite3.connect(place.database) as connection:
        connection.execute("update log set place = place + 1")
    connection.close()
    with pytest.raises(Damaged, match="its own record"):
        place.open()


def test_a_damaged_incarnation_is_not_believed(place: EmbeddedPlace) -> None:
    log = place.open()
    log.start_incarnation(Incarnation(1, "7431", 1, "shop", 0))
    log.close()
    with sqlite3.connect(place.database) as connection:
        connection.execute("update incarnation set base = 5")
    connection.close()
    with pytest.raises(Damaged, match="incarnation 1"):
        place.open()


@pytest.mark.parametrize("harm", [Path.unlink, lambda database: shutil.rmtree(database.parent)])
def test_a_log_deleted_under_a_running_process_acknowledges_nothing_more(
    place: EmbeddedPlace, harm: Callable[[Path], None]
) -> None:
    log = filled(place, SMALL)
    uuid = log.uuid
    harm(place.database)
    with pytest.raises(Damaged, match="deleted or replaced while it was open"):
        log.append([example_entry(version=300)])
    assert log.status().end == 1
    log.close()
    place.folder.mkdir(exist_ok=True)
    again = place.open()
    assert again.uuid != uuid
    again.close()


# ----------------------------------------------------------------------------------------------- format


def test_a_log_of_a_newer_version_is_left_alone(place: EmbeddedPlace) -> None:
    filled(place, SMALL).close()
    with sqlite3.connect(place.database) as connection:
        connection.execute(f"pragma user_version = {rows.FORMAT + 1}")
    connection.close()
    with pytest.raises(Misconfigured, match=f"format {rows.FORMAT + 1}") as caught:
        place.open()
    assert caught.value.code == "SL-LOG-FORMAT"


def test_an_older_log_is_upgraded_once_when_it_is_opened(place: EmbeddedPlace, monkeypatch: pytest.MonkeyPatch) -> None:
    filled(place, SMALL).close()
    upgraded = []

    def upgrade(connection: sqlite3.Connection) -> None:
        connection.execute("create table added_later (x integer)")
        upgraded.append(rows.FORMAT)

    monkeypatch.setitem(rows._UPGRADES, rows.FORMAT, upgrade)
    monkeypatch.setattr(rows, "FORMAT", rows.FORMAT + 1)
    for _ in range(2):
        log = place.open()
        assert len(read_all(log)) == 1
        log.close()
    assert len(upgraded) == 1


# ----------------------------------------------------------------------------------------------- looking from outside


def test_peek_sees_what_is_durable_and_touches_nothing(place: EmbeddedPlace) -> None:
    assert EmbeddedLog.peek(place.config(), "main") is None
    assert not place.path.exists()
    log = filled(place, SMALL, LARGE)
    log.append(parts_of(200, 3)[:2])
    log.advance("duck", Position(log.uuid, 1))
    assert EmbeddedLog.peek(place.config(), "main") == log.status()
    assert log.status().end == 2
    log.append(parts_of(200, 3)[2:])
    log.start_incarnation(Incarnation(2, "7431", 1, "shop", 200))
    log.close()
    before = files(place)
    peeked = EmbeddedLog.peek(place.config(), "main")
    assert peeked is not None
    assert (peeked.end, peeked.place, peeked.max_version, peeked.cursors) == (5, 0, 200, {"duck": 1})
    assert files(place) == before


def test_peek_looks_into_a_log_whose_process_was_killed(place: EmbeddedPlace, tmp_path: Path) -> None:
    log = filled(place, SMALL, LARGE)
    killed = as_after_a_power_cut(place, tmp_path / "killed")
    peeked = EmbeddedLog.peek(killed.config(), "main")
    assert peeked is not None
    assert (peeked.log, peeked.end) == (log.uuid, 2)
    log.close()


# ----------------------------------------------------------------------------------------------- durability


def test_sqlite_syncs_every_commit(place: EmbeddedPlace) -> None:
    log = place.open()
    assert log._rows._writer.execute("pragma synchronous").fetchone() == (2,)
    assert log._rows._writer.execute("pragma journal_mode").fetchone() == ("wal",)
    log.close()


def test_a_body_that_cannot_be_synced_is_never_acknowledged(
    place: EmbeddedPlace, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = filled(place, LARGE)

    def fail(_: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patched:
        patched.setattr(os, "fdatasync", fail)
        log.append([example_entry(rows=SMALL, version=200)])  # SQLite's own, in its own way
        with pytest.raises(Unavailable, match="Input/output error"):
            log.append([example_entry(rows=LARGE, version=300)])
    assert log.status().end == 2
    log.append([example_entry(rows=LARGE, version=400)])
    log.close()
    log = place.open()
    assert [e.max_version for e in read_all(log)] == [100, 200, 400]
    log.close()


def test_a_disk_without_direct_writes_holds_bodies_too(place: EmbeddedPlace, monkeypatch: pytest.MonkeyPatch) -> None:
    open_file = os.open

    def refuse(path: Path, flags: int, mode: int = 0o777) -> int:
        if flags & os.O_DIRECT:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return open_file(path, flags, mode)

    monkeypatch.setattr(os, "open", refuse)
    filled(place, LARGE, SMALL, 4 * LARGE).close()
    log = place.open()
    assert read_all(log) == [
        example_entry(rows=r, version=v) for r, v in ((LARGE, 100), (SMALL, 101), (4 * LARGE, 102))
    ]
    log.close()


def test_a_body_of_many_pieces_comes_back(place: EmbeddedPlace) -> None:
    entry = example_entry(example_batch(keys=[i * 2_654_435_761 % 1_000_003 for i in range(300_000)]))
    log = place.open()
    log.append([entry])
    assert log.status().size_bytes > 8 * 1024 * 1024
    log.close()
    log = place.open()
    assert read_all(log) == [entry]
    log.close()


# ----------------------------------------------------------------------------------------------- cursors


def test_a_new_or_falling_cursor_is_durable_at_once(place: EmbeddedPlace, tmp_path: Path) -> None:
    log = filled(place, SMALL, SMALL, SMALL)
    log.advance("duck", Position(log.uuid, 3))
    log.advance("new", Position(log.uuid, 2))
    log.advance("duck", Position(log.uuid, 1))
    log.forget("new")
    crashed = as_after_a_power_cut(place, tmp_path / "crashed").open()
    assert crashed.status().cursors == {"duck": 1}
    assert crashed.trim() == 1
    crashed.close()
    log.close()


def test_a_rising_cursor_is_written_with_the_next_append(place: EmbeddedPlace, tmp_path: Path) -> None:
    log = filled(place, SMALL, SMALL)
    log.advance("duck", Position(log.uuid, 0))
    log.advance("duck", Position(log.uuid, 2))
    log.append([example_entry(version=300)])
    crashed = as_after_a_power_cut(place, tmp_path / "crashed").open()
    assert crashed.status().cursors == {"duck": 2}
    crashed.close()
    log.close()


# ----------------------------------------------------------------------------------------------- space


def test_trimming_gives_the_files_of_bodies_back(place: EmbeddedPlace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("syncline.log.bodies._FILE_BYTES", 100_000)
    log = filled(place, *[LARGE] * 6)
    assert len(list(place.folder.glob("*.bodies"))) > 2
    log.advance("duck", Position(log.uuid, 6))
    assert log.trim() == 6
    assert list(place.folder.glob("*.bodies")) == []
    log.append([example_entry(rows=LARGE, version=200)])
    log.close()
    log = place.open()
    assert read_all(log, after=6) == [example_entry(rows=LARGE, version=200)]
    log.close()


def test_trimming_gives_pages_of_the_database_back(place: EmbeddedPlace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("syncline.log.embedded._SHRINK_BYTES", 0)
    monkeypatch.setattr("syncline.log.embedded._SHRINK_PAGES", 10_000)
    log = filled(place, *[200] * 100)
    log.advance("duck", Position(log.uuid, 100))
    log.close()
    before = place.database.stat().st_size
    log = place.open()
    log.trim()
    log.close()
    assert place.database.stat().st_size < before / 4
    assert EmbeddedLog.peek(place.config(), "main") is not None


def test_bodies_that_no_entry_names_are_removed_at_opening(place: EmbeddedPlace) -> None:
    filled(place, LARGE).close()
    shutil.copy(place.folder / "00000001.bodies", place.folder / "00000009.bodies")
    log = place.open()
    assert [p.name for p in place.folder.glob("*.bodies")] == ["00000001.bodies"]
    log.append([example_entry(rows=LARGE, version=101)])
    assert read_all(log) == [example_entry(rows=LARGE, version=v) for v in (100, 101)]
    log.close()


def test_retention_yields_to_the_budget(tmp_path: Path) -> None:
    place = EmbeddedPlace(tmp_path, retention_s=3600.0)
    log = place.open(max_bytes=100_000)
    entry = example_entry(example_batch(keys=[i * 7919 % 10_007 for i in range(800)]))
    for _ in range(20):
        log.advance("duck", log.append([entry]))
        assert log.trim() == 0
    assert log.status().size_bytes <= 100_000
    assert log.status().head > 0
    log.close()


def test_a_lock_is_free_again_when_opening_fails(place: EmbeddedPlace) -> None:
    filled(place, SMALL).close()
    stored = place.database.read_bytes()
    flip(place.database, stored.index(b"written at 100") + 3)
    for _ in range(2):
        with pytest.raises(Damaged):
            place.open()


def test_a_gap_and_a_full_log_are_told_with_what_to_do(place: EmbeddedPlace) -> None:
    log = place.open(max_bytes=65_536)
    log.append([example_entry(example_batch(keys=[i * 7919 % 10_007 for i in range(5000)]))])
    with pytest.raises(Unavailable) as full:
        log.append([example_entry()])
    assert "log.max_bytes" in str(full.value)
    assert "syncline status" in full.value.remedy
    with pytest.raises(Gap) as gap:
        log.read(Position(log.uuid, 9), 1)
    assert "resync" in gap.value.remedy
    log.close()
