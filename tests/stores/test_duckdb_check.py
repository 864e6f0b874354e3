"""What `doctor` hears of a DuckDB file before an engine opens it; the file is left as it is."""

from __future__ import annotations

import shutil
import subprocess
import sys
from ast import literal_eval
from pathlib import Path

import duckdb
import msgspec
import pytest

from syncline.errors import Misconfigured
from syncline.finding import Finding
from syncline.stores.duckdb import DuckDBConfig, DuckDBStore
from syncline.testing.store_suite import ITEM

# DuckDB's checksum of a block of 4096 bytes is the XOR of its words times this, and 5381.
_FACTOR, _WORD = 0xBF58476D1CE4E5B9, 1 << 64


def check(path: Path, **settings: object) -> list[Finding]:
    return list(DuckDBStore.check(DuckDBConfig.model_validate({"path": path, **settings})))


def seen(path: Path, **settings: object) -> list[tuple[str, str]]:
    return [(f.code, f.severity) for f in check(path, **settings)]


def filled(path: Path) -> None:
    with duckdb.connect(str(path)) as connection:
        connection.execute("create table t as select 1 as a")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "file.duckdb"


def test_a_file_that_is_not_there_yet_is_fine_and_not_created(path: Path) -> None:
    assert seen(path) == [("SL-DUCKDB", "ok")]
    (found,) = check(path.parent / "sub" / "deep" / "file.duckdb")
    assert f"with its folder {path.parent}/sub/deep" in found.message
    assert list(path.parent.iterdir()) == []


def test_a_file_of_ours_with_a_write_ahead_log_is_fine_and_left_as_it_is(path: Path) -> None:
    script = (
        "import os, sys; from pathlib import Path; from syncline.stores.duckdb import DuckDBConfig, DuckDBStore\n"
        "store = DuckDBStore(DuckDBConfig(path=Path(sys.argv[1]), door=False), 'main'); store.open('orders')\n"
        "os._exit(0)\n"
    )
    subprocess.run([sys.executable, "-c", script, str(path)], check=True)
    before = {p.name: p.read_bytes() for p in path.parent.iterdir()}
    assert sorted(before) == ["file.duckdb", "file.duckdb.wal"]
    assert seen(path) == [("SL-DUCKDB", "ok")]
    assert {p.name: p.read_bytes() for p in path.parent.iterdir()} == before


def test_what_is_no_database_is_named(path: Path) -> None:
    path.write_text("id,name\n1,one\n" * 1000)
    (found,) = check(path)
    assert (found.code, found.severity) == ("SL-DUCKDB-FILE", "error")
    assert f"{path} is not a database that DuckDB" in found.message
    assert "Correct the target's path" in found.remedy
    (folder,) = check(path.parent)
    assert (folder.code, folder.severity) == ("SL-DUCKDB-FILE", "error")
    assert "is a folder" in folder.message


def test_a_file_of_a_newer_duckdb_is_named(path: Path) -> None:
    filled(path)
    block = bytearray(path.read_bytes())
    newer = bytearray(block)
    newer[12:20] = (2000).to_bytes(8, "little")
    digest = _word(block, 0)
    for place in (8, 16):
        digest ^= _word(block, place) * _FACTOR % _WORD ^ _word(newer, place) * _FACTOR % _WORD
    newer[:8] = digest.to_bytes(8, "little")
    path.write_bytes(newer)
    (found,) = check(path)
    assert (found.code, found.severity) == ("SL-DUCKDB-FILE", "error")
    assert "written by a newer DuckDB" in found.message
    assert "Upgrade" in found.remedy
    assert path.read_bytes() == newer


def _word(block: bytearray, place: int) -> int:
    return int.from_bytes(block[place : place + 8], "little")


def test_a_file_of_a_newer_syncline_is_named(path: Path) -> None:
    store = DuckDBStore(DuckDBConfig(path=path, door=False), "main")
    store.open("orders")
    store.close()
    with duckdb.connect(str(path)) as connection:
        connection.execute("update syncline.format set version = version + 1")
    (found,) = check(path)
    assert (found.code, found.message) == ("SL-DUCKDB-FILE", f"{path} was written by a newer Syncline.")


def test_a_damaged_file_is_named_and_left_where_it_is(path: Path) -> None:
    filled(path)
    damaged = path.read_bytes()[:4096] + b"\xff" * 20_000
    path.write_bytes(damaged)
    assert seen(path) == [("SL-DUCKDB-DAMAGED", "error")]
    assert path.read_bytes() == damaged
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_a_running_engine_is_a_note_and_any_other_process_an_error(path: Path) -> None:
    for options, expected in (
        ("", [("SL-DUCKDB-OPEN", "info")]),
        ("door=False", [("SL-DUCKDB-LOCKED", "error")]),
    ):
        script = (
            "import sys; from pathlib import Path; from syncline.stores.duckdb import DuckDBConfig, DuckDBStore\n"
            f"store = DuckDBStore(DuckDBConfig(path=Path(sys.argv[1]), {options}), 'main'); store.open('orders')\n"
            "print('open', flush=True); sys.stdin.read()\n"
        )
        with subprocess.Popen(
            [sys.executable, "-c", script, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as process:
            assert process.stdout
            assert process.stdout.readline() == "open\n"
            assert seen(path) == expected
            if not expected[0][0].endswith("OPEN"):
                (found,) = check(path)
                assert f"process {process.pid}" in found.message
                assert seen(path, door=False) == [("SL-DUCKDB-LOCKED", "warning")]
            process.communicate("")


def test_a_folder_that_is_a_file_is_named(path: Path) -> None:
    path.write_text("")
    (found,) = check(path / "copy.duckdb")
    assert (found.code, found.severity) == ("SL-DUCKDB-WRITE", "error")
    assert found.message == f"{path} is a file, not a folder."


def test_a_folder_and_a_file_that_can_t_be_written_are_named(path: Path) -> None:
    filled(path)
    path.chmod(0o400)
    path.parent.chmod(0o500)
    try:
        script = (
            "import os, sys; from pathlib import Path; from syncline.stores.duckdb import DuckDBConfig, DuckDBStore\n"
            "from syncline.stores.duckdb import check\n"
            "config = DuckDBConfig(path=Path(sys.argv[1]))\n"
            "if os.geteuid() == 0: os.seteuid(65534)\n"  # root may write everywhere
            "print([(f.code, f.severity) for f in DuckDBStore.check(config)])\n"
        )
        told = subprocess.run([sys.executable, "-c", script, str(path)], check=True, capture_output=True, text=True)
    finally:
        path.parent.chmod(0o700)
    assert set(literal_eval(told.stdout)) == {("SL-DUCKDB-WRITE", "error")}


def test_too_little_memory_for_a_checkpoint_is_a_warning(path: Path) -> None:
    found = check(path, memory_limit="1GiB", wal_autocheckpoint="600 MB")
    assert [(f.code, f.severity) for f in found] == [("SL-DUCKDB-MEMORY", "warning"), ("SL-DUCKDB", "ok")]
    assert "wal_autocheckpoint (600 MB) is more than half of memory_limit (1GiB)" in found[0].message
    assert seen(path, memory_limit="1.2GB", wal_autocheckpoint="600MB") == [("SL-DUCKDB", "ok")]


def test_a_disk_that_is_nearly_full_is_named(path: Path) -> None:
    free = shutil.disk_usage(path.parent).free
    nearly = check(path, memory_limit="900TB", wal_autocheckpoint=f"{free // 2 // 1000}KB")
    assert [(f.code, f.severity) for f in nearly] == [("SL-DUCKDB-DISK", "warning"), ("SL-DUCKDB", "ok")]
    full = check(path, memory_limit="900TB", wal_autocheckpoint=f"{free * 3 // 1000}KB")
    assert [(f.code, f.severity) for f in full] == [("SL-DUCKDB-DISK", "error"), ("SL-DUCKDB", "ok")]
    assert "Free some space" in full[0].remedy


def test_a_folder_for_spilling_that_can_t_be_made_is_named(path: Path, tmp_path: Path) -> None:
    occupied = tmp_path / "occupied"
    occupied.write_text("")
    (found, _) = check(path, temp_directory=occupied)
    assert (found.code, found.remedy) == ("SL-DUCKDB-WRITE", "Correct the target's temp_directory.")
    (found, _) = check(path, parquet={"folder": occupied})
    assert (found.code, found.remedy) == ("SL-DUCKDB-WRITE", "Correct the target's parquet.folder.")


def test_a_file_called_like_our_schema_is_named_as_opening_it_does(path: Path) -> None:
    clashing = path.with_name("SYNCLINE.db.duckdb")
    (found,) = check(clashing)
    assert (found.code, found.severity) == ("SL-DUCKDB-FILE", "error")
    with pytest.raises(Misconfigured) as raised:
        DuckDBStore(DuckDBConfig(path=clashing), "file").open("orders")
    assert (found.message, found.remedy) == (raised.value.message, raised.value.remedy)


def test_a_file_called_like_a_schema_of_the_source_is_refused_offline_and_when_its_table_comes(path: Path) -> None:
    clashing = path.with_name("crm.duckdb")
    (found,) = DuckDBStore.check_offline(DuckDBConfig(path=clashing), ["public", "crm"])
    assert found.severity == "error"
    store = DuckDBStore(DuckDBConfig(path=clashing), "file")
    store.open("orders")
    try:
        with pytest.raises(Misconfigured) as raised:
            store.migrate(msgspec.structs.replace(ITEM, namespace="crm"))
    finally:
        store.close()
    assert (found.message, found.remedy) == (raised.value.message, raised.value.remedy)
    assert not list(DuckDBStore.check_offline(DuckDBConfig(path=path.with_name("public.duckdb")), ["public"]))


def test_opening_says_what_is_in_the_way(path: Path) -> None:
    with pytest.raises(Misconfigured, match=f"can't be used: {path.parent} is a folder, not a database file"):
        DuckDBStore(DuckDBConfig(path=path.parent), "file").open("orders")
