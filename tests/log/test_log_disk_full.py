"""The log on a disk that fills up: it takes nothing, keeps what it has, and goes on by itself."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from log.embedded_place import EmbeddedPlace
from syncline.change import Entry, Part, Position
from syncline.errors import Gap, Unavailable
from syncline.log.embedded import EmbeddedLog
from syncline.testing import example_batch, example_entry
from syncline.testing.log_suite import fill, read_all

MB = 1024 * 1024
DISK = 24 * MB


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A small disk of its own."""
    if os.geteuid() != 0 and "CI" not in os.environ:
        pytest.skip("only root can mount a small disk to fill up; it runs where CI is set")
    path = tmp_path / "disk"
    path.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK}", "tmpfs", str(path)], check=True)
    yield path
    subprocess.run(["umount", "--lazy", str(path)], check=True)


def large(version: int, part: Part | None = None) -> Entry:
    """About 1 MB when stored."""
    keys = [(i * 2_654_435_761 + version * 97) % 1_000_003 for i in range(40_000)]
    return example_entry(example_batch(keys=keys, version=version, width=40), version=version, part=part)


def small(version: int) -> Entry:
    return example_entry(rows=100, version=version)


def occupy(disk: Path, leave: int) -> Path:
    """Somebody else's file, that leaves this much free."""
    free = os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize
    other = disk / "somebody-elses"
    with other.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, free - leave)
    return other


def full(error: Unavailable | None) -> bool:
    return error is not None and error.code == "SL-DISK-FULL"


def test_a_log_that_fills_its_disk_goes_on_when_targets_catch_up(disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("syncline.log.bodies._FILE_BYTES", 4 * MB)
    log = EmbeddedPlace(disk, disk_reserve_bytes=4 * MB).open()
    log.advance("duck", Position(log.uuid, 0))
    count, error = fill(log, [large(v) for v in range(100, 140)])
    assert full(error)
    assert 3 < count < 40
    assert os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize >= 3 * MB
    assert [e.max_version for e in read_all(log)] == list(range(100, 100 + count))
    log.advance("duck", Position(log.uuid, count // 2))
    assert log.append([large(100 + count)]) == Position(log.uuid, count + 1)
    assert [e.max_version for e in read_all(log, after=count // 2)] == list(range(100 + count // 2, 101 + count))
    log.close()


def test_a_disk_filled_by_others_stops_the_log_only_while_it_is_full(disk: Path) -> None:
    place = EmbeddedPlace(disk, tail_bytes=0, disk_reserve_bytes=4 * MB)
    log = place.open()
    log.append([large(100), small(101)])
    other = occupy(disk, leave=3 * MB)
    for entry in (large(102), small(102)):
        appended, error = fill(log, [entry])
        assert full(error)
        assert appended == 0
    assert [e.max_version for e in read_all(log)] == [100, 101]
    other.unlink()
    log.append([large(102)])
    log.append([small(103)])
    log.close()
    log = place.open()
    assert read_all(log) == [large(100), small(101), large(102), small(103)]
    log.close()


@pytest.mark.parametrize("entry", [large, small])
def test_a_write_that_hits_the_very_end_of_the_disk_leaves_nothing(disk: Path, entry: object) -> None:
    assert callable(entry)
    place = EmbeddedPlace(disk, tail_bytes=0, disk_reserve_bytes=0)
    log = place.open()
    log.append([entry(100)])
    other = occupy(disk, leave=100 * 1024)
    count, error = fill(log, [entry(101 + i) for i in range(20)])
    assert full(error)
    assert count < 20
    assert [e.max_version for e in read_all(log)] == list(range(100, 101 + count))
    # The cursor of a target goes on although it cannot be written.
    log.advance("duck", Position(log.uuid, 1))
    other.unlink()
    log.append([entry(101 + count)])
    log.close()
    log = place.open()
    assert [e.max_version for e in read_all(log)] == list(range(100, 102 + count))
    log.close()


def test_a_transaction_larger_than_the_disk_is_a_gap_and_the_log_lives_on(disk: Path) -> None:
    log = EmbeddedPlace(disk, disk_reserve_bytes=4 * MB).open()
    log.append([small(100)])
    log.advance("duck", Position(log.uuid, 1))
    with pytest.raises(Gap, match="larger than the disk") as caught:
        append_parts(log, 60)
    assert caught.value.code == "SL-LOG-TRANSACTION"
    assert "free bytes" in caught.value.remedy
    assert log.status().place == 101
    log.append([large(300)])
    assert [e.max_version for e in read_all(log, after=1) if e.rows] == [300]
    log.close()


def test_a_transaction_on_a_disk_that_stays_full_waits_and_then_is_a_gap(
    disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = EmbeddedPlace(disk, disk_reserve_bytes=16 * MB).open()
    parts = [large(200, Part(i, last=False)) for i in range(20)]
    taken, error = fill(log, parts)
    assert full(error)
    assert taken > 0
    assert fill(log, parts[taken:])[0] == 0
    monkeypatch.setattr("syncline.log.embedded._PATIENCE_S", 0.0)
    with pytest.raises(Gap, match="larger than the disk"):
        log.append(parts[taken : taken + 1])
    assert [e.rows for e in read_all(log)] == [0] * taken
    log.close()


def test_a_large_transaction_waits_for_a_slow_target_and_then_passes(disk: Path) -> None:
    log = EmbeddedPlace(disk, disk_reserve_bytes=4 * MB).open()
    count, error = fill(log, [large(v) for v in range(100, 140)])
    assert full(error)
    log.advance("duck", Position(log.uuid, 0))
    appended, error = fill(log, [large(200, Part(0, False))])
    assert full(error)
    assert appended == 0
    log.advance("duck", Position(log.uuid, count))
    append_parts(log, 6)
    assert [e.part for e in read_all(log, after=count) if e.rows] == [Part(i, i == 5) for i in range(6)]
    log.close()


def append_parts(log: EmbeddedLog, count: int) -> None:
    for i in range(count):
        log.append([large(200, Part(i, last=i == count - 1))])
