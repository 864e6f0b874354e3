"""The DuckDB file: damaged, locked, shared, full; and its checkpoints."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import duckdb
import msgspec
import pytest

from servers import eventually
from syncline.errors import Gap, Misconfigured, Unavailable
from syncline.stores.duckdb import DuckDBConfig, DuckDBStore
from syncline.stores.duckdb.database import Database, translate
from syncline.testing.store_suite import ITEM, Rows, contents, work


def _open(path: Path, **settings: object) -> DuckDBStore:
    store = DuckDBStore(DuckDBConfig.model_validate({"path": path, **settings}), "file")
    store.open("orders")
    store.migrate(ITEM)
    return store


def _filled(path: Path) -> None:
    store = _open(path)
    rows = Rows()
    for i in range(5_000):
        rows.upsert(5, i, f"row {i}", None)
    store.apply(work(rows))
    store.close()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "file.duckdb"


def test_a_damaged_file_is_moved_aside_and_the_next_open_starts_empty(path: Path) -> None:
    _filled(path)
    blocks = bytearray(path.read_bytes())
    for start in range(8_192, len(blocks), 512):
        blocks[start : start + 64] = b"\xff" * 64
    path.write_bytes(bytes(blocks))
    store = DuckDBStore(DuckDBConfig(path=path), "file")
    with pytest.raises(Gap, match="was moved to") as raised:
        store.open("orders")
    assert raised.value.code == "SL-DUCKDB-DAMAGED"
    aside = Path(re.findall(r"moved to (\S+)\.", raised.value.message)[0])
    assert aside.read_bytes() == bytes(blocks)
    assert store.open("orders") is None
    store.close()


@pytest.mark.parametrize("name", ["syncline.duckdb", "Syncline.v2.duckdb", "syncline"])
def test_a_file_with_the_name_of_our_own_schema_is_refused_and_not_made(tmp_path: Path, name: str) -> None:
    with pytest.raises(Misconfigured, match="another name"):
        DuckDBStore(DuckDBConfig(path=tmp_path / name), "file").open("orders")
    assert list(tmp_path.iterdir()) == []


def test_a_table_whose_schema_has_the_name_of_the_file_is_refused_and_others_are_taken(tmp_path: Path) -> None:
    store = DuckDBStore(DuckDBConfig(path=tmp_path / "Shop.duckdb"), "file")
    store.open("orders")
    with pytest.raises(Misconfigured, match="another name"):
        store.migrate(msgspec.structs.replace(ITEM, namespace="shop"))
    store.migrate(msgspec.structs.replace(ITEM, namespace="shops"))
    store.close()


def test_a_damaged_write_ahead_log_is_moved_aside_with_its_file(path: Path) -> None:
    script = (
        "import os, sys; from pathlib import Path; sys.path[:0] = ['src', 'tests']\n"
        "from tests.stores.test_duckdb_file import _open, Rows, work\n"
        "store = _open(Path(sys.argv[1]), door=False, checkpoint_idle_s=0)\n"
        "[store.apply(work(Rows().upsert(n, n, 'x' * 500, None))) for n in range(1, 100)]\n"
        "os._exit(0)\n"
    )
    subprocess.run([sys.executable, "-c", script, str(path)], check=True, cwd=Path(__file__).parents[2])
    log = path.with_name(path.name + ".wal")
    damaged = bytearray(log.read_bytes())
    damaged[len(damaged) // 2 : len(damaged) // 2 + 200] = b"\x00" * 200
    log.write_bytes(bytes(damaged))
    store = DuckDBStore(DuckDBConfig(path=path), "file")
    with pytest.raises(Gap, match="was moved to"):
        store.open("orders")
    assert sorted(p.name.split("Z")[-1] for p in path.parent.glob("*.damaged-*")) == ["", ".wal"]
    assert store.open("orders") is None
    store.close()


def test_damage_that_is_found_while_the_file_is_open_has_it_moved_aside_when_it_is_closed(path: Path) -> None:
    _filled(path)
    with duckdb.connect(str(path)) as connection:
        ((block,),) = connection.execute(
            "select max(block_id) from pragma_storage_info('item') where column_name = 'name'"
        ).fetchall()
    blocks = bytearray(path.read_bytes())
    start = 3 * 4096 + block * 262_144
    blocks[start + 100 : start + 200] = b"\xff" * 100
    path.write_bytes(bytes(blocks))
    store = _open(path)
    with pytest.raises(Gap, match="damaged") as raised:
        contents(store)
    assert raised.value.code == "SL-DUCKDB-DAMAGED"
    store.close()
    assert [p.read_bytes() for p in path.parent.glob("*.damaged-*") if p.suffix != ".wal"] == [bytes(blocks)]
    assert store.open("orders") is None
    store.close()


def test_a_file_that_is_not_a_database_is_left_alone(path: Path) -> None:
    path.write_bytes(b"SQLite format 3\0" + b"\0" * 20_000)
    with pytest.raises(Misconfigured, match="not a database"):
        DuckDBStore(DuckDBConfig(path=path), "file").open("orders")
    assert path.exists()


def test_a_reader_that_is_gone_in_a_moment_is_waited_for(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _open(path).close()
    connect, refusals = duckdb.connect, 0
    script = (
        "import duckdb, sys; c = duckdb.connect(sys.argv[1], read_only=True); print('open', flush=True);"
        " sys.stdin.readline(); c.close()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as reader:
        assert reader.stdout is not None
        assert reader.stdin is not None
        reader.stdout.readline()
        leave = reader.stdin

        def refused_first(*args: Any, **settings: Any) -> duckdb.DuckDBPyConnection:
            nonlocal refusals
            try:
                return connect(*args, **settings)
            except duckdb.IOException:
                refusals += 1
                if refusals == 1:
                    leave.write(b"\n")
                    leave.flush()
                raise

        monkeypatch.setattr(duckdb, "connect", refused_first)
        monkeypatch.setattr("syncline.stores.duckdb.database._READERS_S", 60)
        _open(path).close()
    assert refusals > 0


def test_a_file_that_another_process_has_is_named_with_its_process(path: Path) -> None:
    script = "import duckdb, sys; c = duckdb.connect(sys.argv[1]); print('open', flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", script, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout is not None
        other.stdout.readline()
        with pytest.raises(Misconfigured, match=str(other.pid)) as raised:
            DuckDBStore(DuckDBConfig(path=path), "file").open("orders")
        other.kill()
    assert raised.value.code == "SL-DUCKDB-LOCKED"
    _open(path).close()


def test_a_path_that_cannot_be_created_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(Misconfigured, match=r"can't be used: .*file is a file, not a folder"):
        DuckDBStore(DuckDBConfig(path=tmp_path / "file" / "x.duckdb"), "file").open("orders")


def test_two_targets_with_other_settings_for_one_file_are_refused(path: Path) -> None:
    store = _open(path)
    with pytest.raises(Misconfigured, match="different settings"):
        _open(path, memory_limit="1GB")
    store.close()


def test_a_wrong_size_is_refused_by_the_configuration(path: Path) -> None:
    with pytest.raises(ValueError, match="memory_limit"):
        DuckDBConfig(path=path, memory_limit="much")


def test_after_a_fatal_error_the_file_is_opened_again(path: Path) -> None:
    store = _open(path)
    store.apply(work(Rows().upsert(5, 1, "one", None)))
    assert isinstance(store._db.failed(duckdb.FatalException("database has been invalidated")), Unavailable)
    store.apply(work(Rows().upsert(6, 2, "two", None)))
    assert contents(store) == {1: ("one", None, 5), 2: ("two", None, 6)}
    store.close()


def test_a_full_disk_is_told_and_does_no_harm(path: Path) -> None:
    """Files of the child may grow to 3 MB; a write beyond fails as on a full disk."""
    script = (
        "import resource, sys; from pathlib import Path; sys.path[:0] = ['src', 'tests']\n"
        "from tests.stores.test_duckdb_file import _open, Rows, work, Unavailable, contents\n"
        "store = _open(Path(sys.argv[1]), door=False, checkpoint_idle_s=0, wal_autocheckpoint='100MB')\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (3 << 20, resource.RLIM_INFINITY))\n"
        "for n in range(1, 100):\n"
        "    try: store.apply(work(Rows().upsert(n, n, str(n) * 40_000, None)))\n"
        "    except Unavailable: break\n"
        "else: sys.exit('never full')\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))\n"
        "store.apply(work(Rows().upsert(n, n, 'after', None)))\n"
        "assert sorted(contents(store)) == list(range(1, n + 1)), sorted(contents(store))\n"
        "store.close()\n"
    )
    subprocess.run([sys.executable, "-c", script, str(path)], check=True, cwd=Path(__file__).parents[2])
    store = _open(path)
    rows = contents(store)
    assert len(rows) > 5
    assert rows[len(rows)][0] == "after"
    store.close()


def test_when_it_is_quiet_the_log_is_written_into_the_file(path: Path) -> None:
    store = _open(path, checkpoint_idle_s=0.1)
    store.apply(work(Rows().upsert(5, 1, "one", None)))
    eventually(lambda: _size(path.with_name(path.name + ".wal")) == 0)
    assert contents(store) == {1: ("one", None, 5)}
    store.close()


def _size(path: Path) -> int:
    """Nothing where it is gone, which may be at any moment."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def test_stores_of_several_sources_share_a_file_and_the_last_closes_it(path: Path) -> None:
    first, second = _open(path), DuckDBStore(DuckDBConfig(path=path), "second")
    second.open("people")
    first.close()
    assert path in Database._open
    second.apply(work(source="people", n=3))
    second.close()
    assert path not in Database._open
    with duckdb.connect(str(path), read_only=True) as connection:
        assert connection.execute("select count(*) from syncline.cursors").fetchall() == [(1,)]


def test_a_process_that_closes_nothing_leaves_a_clean_file_and_no_socket(path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; sys.path[:0] = ['src', 'tests']\n"
        "from tests.stores.test_duckdb_file import _open, Rows, work\n"
        "store = _open(Path(sys.argv[1]))\n"
        "store.apply(work(Rows().upsert(5, 1, 'one', None)))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(path)], check=True, cwd=Path(__file__).parents[2], capture_output=True
    )
    assert done.stderr == b""
    assert [p.name for p in path.parent.iterdir()] == [path.name]
    store = _open(path)
    assert contents(store) == {1: ("one", None, 5)}
    store.close()


def test_errors_never_tell_values(path: Path) -> None:
    secret = "hunter2"
    for kind in (duckdb.ConversionException, duckdb.IOException, duckdb.BinderException, duckdb.InternalException):
        assert secret not in str(translate(kind(f"Could not convert string '{secret}'"), path))


def test_a_file_of_the_first_format_keeps_its_tombstones(path: Path) -> None:
    """Correctness rule 15."""
    store = _open(path)
    store.apply(work(Rows().upsert(100, 1, "one", None).delete(200, 2)))
    store.close()
    with duckdb.connect(str(path)) as connection:
        connection.execute('alter table syncline."deleted public.item" rename column _syncline_version to version')
        connection.execute("update syncline.format set version = 1")
    again = _open(path)
    again.apply(work(Rows().upsert(150, 2, "dead", None)))
    assert contents(again) == {1: ("one", None, 100)}
    again.close()


@pytest.mark.parametrize("size", [5_000, 20_000, 500_000])
def test_a_file_that_was_cut_short_is_moved_aside(path: Path, size: int) -> None:
    store = _open(path)
    rows = Rows()
    for key in range(30_000):
        rows.upsert(5, key, f"{key * 7919}" * 8, None)
    store.apply(work(rows))
    store.close()
    assert path.stat().st_size > 600_000
    with path.open("r+b") as file:
        file.truncate(size)
    store = DuckDBStore(DuckDBConfig(path=path), "main")

    def read() -> None:
        store.open("orders")
        contents(store)

    with pytest.raises(Gap) as caught:
        read()
    store.close()
    assert caught.value.code == "SL-DUCKDB-DAMAGED"
    assert list(path.parent.glob("*.damaged-*"))
    assert contents(_open(path)) == {}
