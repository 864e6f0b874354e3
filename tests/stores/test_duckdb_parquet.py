"""Parquet files of a DuckDB copy: whole, of one moment, and written again only where something changed."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from pathlib import Path

import duckdb
import msgspec
import pyarrow.parquet as pq
import pytest

from servers import eventually
from syncline.change import Column, Loaded, TableSchema
from syncline.errors import Misconfigured, Unavailable
from syncline.stores import Exporting, Work
from syncline.stores.duckdb import DuckDBConfig, DuckDBStore, parquet
from syncline.stores.duckdb.database import Database
from syncline.stores.duckdb.parquet import ParquetConfig
from syncline.stores.duckdb.parquet_parts import Part, Table, plan_parts
from syncline.stores.duckdb.parquet_versions import Manifest, current, folder_name
from syncline.stores.memory import MemoryConfig, MemoryStore
from syncline.testing.store_suite import ITEM, PAIR, Rows, work


@pytest.fixture
def store(tmp_path: Path) -> Iterator[DuckDBStore]:
    yield from opened(tmp_path, ParquetConfig(folder=tmp_path / "exports", part_rows=10, row_group_size=8))


def opened(folder: Path, parquet: ParquetConfig) -> Iterator[DuckDBStore]:
    store = DuckDBStore(DuckDBConfig(path=folder / "copy.duckdb", parquet=parquet), "main")
    store.open("orders")
    store.migrate(ITEM)
    store.migrate(PAIR)
    apply(store)
    yield store
    store.close()


LOADED = {table.qualified: Loaded("shape") for table in (ITEM, PAIR)}


def apply(store: DuckDBStore, rows: Rows | None = None, **options: int) -> None:
    """Write rows, with a cursor that says that both tables were read."""
    made = work(*([rows] if rows else []), **options)  # type: ignore[arg-type]
    store.apply(Work(made.tables, msgspec.structs.replace(made.cursor, loaded=LOADED)))


def fill(store: DuckDBStore, version: int, keys: range) -> None:
    rows = Rows()
    for key in keys:
        rows = rows.upsert(version, key, f"name {key}", None)
    apply(store, rows)


def exported(store: DuckDBStore, table: str = "public.item") -> list[tuple[object, ...]]:
    """The rows that a reader without Syncline finds."""
    assert store.config.parquet is not None
    files = store.config.parquet.folder / "current" / table / "*.parquet"
    return duckdb.connect().execute(f"select * from read_parquet('{files}') order by all").fetchall()


def copied(store: DuckDBStore) -> list[tuple[object, ...]]:
    with store._db.session() as connection:
        return connection.execute("select * exclude _syncline_version from item order by all").fetchall()


def files(store: DuckDBStore) -> dict[str, int]:
    """The files of items in the current export, with what tells one from a rewritten one."""
    assert store.config.parquet is not None
    current = store.config.parquet.folder / "current"
    return {str(p.relative_to(current)): p.stat().st_ino for p in current.glob("public.item/*.parquet")}


def test_what_is_exported_is_what_the_copy_holds(store: DuckDBStore) -> None:
    fill(store, 100, range(1, 96))
    assert store.export()
    assert exported(store) == copied(store)
    assert len(exported(store)) == 95
    assert len(files(store)) > 4
    (first, *_) = sorted(files(store))
    told = pq.ParquetFile(store.config.parquet.folder / "current" / first).metadata  # type: ignore[union-attr]
    assert told.row_group(0).num_rows == 8
    assert told.row_group(0).column(0).compression == "ZSTD"


def test_only_parts_with_a_change_are_written_again(store: DuckDBStore) -> None:
    fill(store, 100, range(1, 96))
    store.export()
    before = files(store)
    assert not store.export()
    assert files(store) == before
    apply(store, Rows().upsert(110, 3, "new", None).delete(110, 93))
    assert store.export()
    assert exported(store) == copied(store)
    after = files(store)
    assert len(set(before.items()) & set(after.items())) == len(before) - 2


def test_a_table_that_grows_and_shrinks_is_cut_and_joined(store: DuckDBStore) -> None:
    fill(store, 100, range(1, 6))
    store.export()
    assert len(files(store)) == 1
    fill(store, 110, range(6, 200))
    store.export()
    assert exported(store) == copied(store)
    assert len(files(store)) > 8
    apply(store, Rows().upsert(130, 7, "alone", None), truncated=120)
    store.export()
    assert exported(store) == copied(store) == [(7, "alone", None)]
    assert len(files(store)) == 1
    apply(store, Rows(), truncated=140)
    store.export()
    assert exported(store) == []


def test_every_table_is_of_the_same_moment_and_comes_and_goes_with_the_copy(store: DuckDBStore) -> None:
    fill(store, 100, range(1, 6))
    store.export()
    assert exported(store, PAIR.qualified) == []
    with store._db.session() as connection:
        connection.execute("drop table shop.pair")
    store.export()
    assert store.config.parquet is not None
    folders = [path.name for path in (store.config.parquet.folder / "current").iterdir() if path.is_dir()]
    assert folders == ["public.item"]


def test_a_table_that_is_being_read_again_stays_as_it_was_exported(store: DuckDBStore) -> None:
    fill(store, 100, range(1, 6))
    store.export()
    before = exported(store)
    store.apply(work(Rows().upsert(110, 9, "half", None)))
    store.export()
    assert exported(store) == before
    apply(store)
    store.export()
    assert exported(store) == copied(store) != before


def test_a_column_that_came_is_in_all_files(store: DuckDBStore) -> None:
    fill(store, 100, range(1, 96))
    store.export()
    before = files(store)
    with store._db.session() as connection:
        connection.execute("alter table item add column extra integer default 7")
    store.export()
    assert exported(store) == copied(store)
    assert not set(before) & set(files(store))


def test_a_reader_of_an_older_export_is_not_disturbed_until_its_time_is_over(store: DuckDBStore) -> None:
    fill(store, 100, range(1, 96))
    store.export()
    assert store.config.parquet is not None
    folder = store.config.parquet.folder
    first = (folder / "current").resolve()
    fill(store, 110, range(1, 96))
    store.export()
    assert len(list(first.glob("*/*.parquet"))) > 4
    os.utime(folder / "current" / "manifest.json", (0, 0))
    fill(store, 120, range(1, 96))
    store.export()
    assert not first.exists()


def test_an_export_that_was_cut_off_or_damaged_is_made_anew(store: DuckDBStore) -> None:
    fill(store, 100, range(1, 96))
    store.export()
    assert store.config.parquet is not None
    folder = store.config.parquet.folder
    (folder / "versions" / "2.part" / "public.item").mkdir(parents=True)
    (folder / "current" / min(files(store))).unlink()
    assert store.export()
    assert exported(store) == copied(store)
    (folder / "current" / "manifest.json").write_text("{")
    assert store.export()
    assert exported(store) == copied(store)


def test_a_folder_that_can_not_be_written_to_is_said_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for store in opened(tmp_path, ParquetConfig(folder=tmp_path / "file" / "exports")):
        with pytest.raises(Misconfigured, match="Not a directory") as told:
            store.export()
        assert "parquet.folder" in told.value.remedy


# ------------------------------------------------------------------------------------------- boundaries and stale rows


def amid(store: DuckDBStore, rows: Rows, kind: str) -> None:
    """Write rows with a cursor that stands inside a transaction or a step."""
    made = work(rows)
    store.apply(Work(made.tables, msgspec.structs.replace(made.cursor, loaded=LOADED, amid=kind)))


@pytest.mark.parametrize("kind", ["transaction", "step"])
def test_half_a_transaction_is_never_exported(store: DuckDBStore, kind: str) -> None:
    fill(store, 100, range(1, 6))
    store.export()
    before = exported(store)
    amid(store, Rows().upsert(110, 3, "first half", None), kind)
    assert store.export() is None
    assert exported(store) == before
    apply(store, Rows().upsert(110, 4, "second half", None))
    assert store.export()
    assert exported(store) == copied(store) != before


def test_a_row_that_changes_twice_at_one_version_is_exported_as_it_is_last(store: DuckDBStore) -> None:
    apply(store, Rows().upsert(110, 3, "first", None))
    store.export()
    apply(store, Rows().upsert(110, 3, "second", None))
    assert store.export()
    assert exported(store) == [(3, "second", None)]


def test_columns_of_ones_own_are_exported_as_they_are(store: DuckDBStore, tmp_path: Path) -> None:
    fill(store, 100, range(1, 6))
    with store._db.session() as connection:
        connection.execute("alter table item add column mine integer default 1")
    store.export()
    store.close()
    with duckdb.connect(str(tmp_path / "copy.duckdb")) as theirs:
        theirs.execute("update item set mine = 2 where id = 3")
    store.open("orders")
    assert store.export()
    assert exported(store) == copied(store)
    assert (3, "name 3", None, 2) in exported(store)


def test_tables_that_were_not_written_to_are_not_looked_at(store: DuckDBStore, monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[str] = []
    plan = parquet.plan_parts

    def noted(table: Table, known: Sequence[Part], part_rows: int) -> list[Part]:
        looked.append(table.schema.qualified)
        return plan(table, known, part_rows)

    monkeypatch.setattr(parquet, "plan_parts", noted)
    store.export()
    assert sorted(looked) == ["public.item", "shop.pair"]
    looked.clear()
    apply(store)
    assert store.export() is False
    assert looked == []
    apply(store, Rows().upsert(110, 1, "one", None))
    assert store.export()
    assert looked == ["public.item"]


def test_the_manifest_tells_which_tables_are_older(store: DuckDBStore) -> None:
    fill(store, 100, range(1, 6))
    store.export()
    assert manifest(store).older == {}
    first = manifest(store).made
    made = work(Rows().upsert(110, 9, "half", None))
    store.apply(Work(made.tables, msgspec.structs.replace(made.cursor, loaded={PAIR.qualified: Loaded("shape")})))
    assert store.export()
    assert manifest(store).older == {"public.item": first}
    apply(store)
    assert store.export()
    assert manifest(store).older == {}


def manifest(store: DuckDBStore) -> Manifest:
    assert store.config.parquet is not None
    found = current(store.config.parquet.folder)
    assert found is not None
    return found


def test_a_copy_that_is_just_being_made_has_nothing_to_export(tmp_path: Path) -> None:
    """No error, and no answer that would make anybody wait for the next time."""
    config = DuckDBConfig(path=tmp_path / "copy.duckdb", parquet=ParquetConfig(folder=tmp_path / "exports"))
    store = DuckDBStore(config, "main")
    assert store.export() is None
    database = Database.acquire(config)
    assert database.exporter is not None
    assert database.exporter.export() is None
    database.release()
    store.open("orders")
    assert store.export() is None
    assert not (tmp_path / "exports").exists()
    store.close()


# ------------------------------------------------------------------------------------------------ keys of every type

INSTANT = 1_700_000_000_000_000
KEYS = {
    "text": lambda i: "" if not i else f"k'{i:03}é",
    "uuid": lambda i: (i * 2**120 + i).to_bytes(16, "big"),
    "timestamptz": lambda i: INSTANT + i * 1_234_567,
    "numeric(20,3)": lambda i: Decimal(i) / 8,
    "bytes": lambda i: bytes([0, i, 255, 39]),
}


@pytest.mark.parametrize("kind", KEYS)
def test_tables_are_cut_at_keys_of_any_type(store: DuckDBStore, kind: str) -> None:
    schema = TableSchema("public", "keyed", (Column("k", kind, kind, key=True), Column("n", "int4", "integer")))
    store.migrate(schema)
    loaded = {"public.keyed": Loaded("shape")}

    def write(version: int, keys: range, n: int) -> None:
        rows = Rows(schema)
        for i in keys:
            rows.upsert(version, KEYS[kind](i), n + i)
        made = work(rows)
        store.apply(Work(made.tables, msgspec.structs.replace(made.cursor, loaded=loaded)))

    def numbers() -> list[int]:
        return sorted(row[1] for row in exported(store, "public.keyed"))  # type: ignore[misc]

    write(100, range(95), 0)
    store.export()
    assert numbers() == list(range(95))
    before = manifest(store).tables["public.keyed"]
    assert len(before) > 4
    write(110, range(50, 51), 1000)
    store.export()
    assert numbers() == [*range(50), *range(51, 95), 1050]
    assert len(set(before) & set(manifest(store).tables["public.keyed"])) == len(before) - 1


def test_a_table_with_a_key_of_several_columns_is_cut_where_the_first_changes(store: DuckDBStore) -> None:
    rows = Rows(PAIR)
    for i in range(90):
        rows.upsert(100, f"region {i % 6}", i, i.to_bytes(16, "big"), "x")
    apply(store, rows)
    store.export()
    found = exported(store, "shop.pair")
    assert sorted(row[1] for row in found) == list(range(90))  # type: ignore[type-var]
    assert len(manifest(store).tables["shop.pair"]) == 6


def test_a_start_that_is_the_empty_text_is_a_start(tmp_path: Path) -> None:
    with duckdb.connect() as connection:
        connection.execute("create table keyed (k varchar, _syncline_version bigint)")
        connection.execute("insert into keyed values (chr(1), 1), ('', 1), ('a', 1), ('b', 1)")
        schema = TableSchema("public", "keyed", (Column("k", "text", "text", key=True),))
        table = Table.seen(connection, schema, "")
        known = [Part(None, 0, "x", "1"), Part("", 2, "y", "2"), Part("b", 1, "z", "3")]
        assert [part.rows for part in plan_parts(table, known, 2)] == [0, 3, 1]


def test_small_neighbours_become_one_file(store: DuckDBStore) -> None:
    fill(store, 100, range(1, 96))
    store.export()
    rows = Rows()
    for key in range(1, 96):
        if key % 10:
            rows.delete(110, key)
    apply(store, rows)
    store.export()
    assert exported(store) == copied(store)
    assert len(files(store)) <= 3


def test_wide_rows_come_in_smaller_row_groups(store: DuckDBStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet, "_GROUP_BYTES", 100)
    monkeypatch.setattr(parquet, "_BATCH_ROWS", 2)
    fill(store, 100, range(1, 16))
    store.export()
    (file,) = files(store)
    told = pq.ParquetFile(store.config.parquet.folder / "current" / file).metadata  # type: ignore[union-attr]
    assert exported(store) == copied(store)
    assert {told.row_group(i).num_rows for i in range(told.num_row_groups)} <= {1, 2, 3, 4}


def test_other_settings_make_other_files(store: DuckDBStore, tmp_path: Path) -> None:
    fill(store, 100, range(1, 6))
    store.export()
    before = files(store)
    store.close()
    other = ParquetConfig(folder=tmp_path / "exports", part_rows=10, row_group_size=8, compression="gzip")
    for again in opened(tmp_path, other):
        assert again.export()
        assert not set(before) & set(files(again))


# ---------------------------------------------------------------------------------------- names, links, disks, stopping


@pytest.mark.parametrize("name", ["a/b", "../up", "per%cent", "new\nline", "star*[x]", "ü" * 63, "%" * 63])
def test_tables_of_any_name_have_a_folder_of_their_own(store: DuckDBStore, name: str) -> None:
    schema = TableSchema(".hidden", name, ITEM.columns)
    store.migrate(schema)
    made = work(Rows(schema).upsert(100, 1, "odd", None), Rows().upsert(100, 2, "plain", None))
    loaded = {schema.qualified: Loaded("shape"), **LOADED}
    store.apply(Work(made.tables, msgspec.structs.replace(made.cursor, loaded=loaded)))
    assert store.export()
    assert exported(store) == [(2, "plain", None)]
    assert exported(store, folder_name(schema.qualified)) == [(1, "odd", None)]
    assert store.export() is False


def test_no_folder_is_called_like_the_manifest() -> None:
    assert folder_name("public.orders") == "public.orders"
    assert folder_name("manifest.json") == "manifest%2Ejson"
    assert folder_name("a/b.c") == "a%2Fb.c"
    assert len({folder_name(name) for name in ("a/b.c", "a%2Fb.c", "a.b/c")}) == 3


def test_a_table_that_can_not_be_exported_does_not_end_the_export_of_the_others(store: DuckDBStore) -> None:
    fill(store, 100, range(1, 6))
    store.export()
    with store._db.session() as connection:
        connection.execute("alter table shop.pair add column mine interval")
    apply(store, Rows().upsert(110, 1, "new", None), n=10_000)
    with pytest.raises(Misconfigured, match=r"shop\.pair") as told:
        store.export()
    assert told.value.code == "SL-PARQUET"
    assert exported(store) == copied(store)
    assert exported(store, "shop.pair") == []
    assert list(manifest(store).older) == ["shop.pair"]
    made = manifest(store).made
    with pytest.raises(Misconfigured):
        store.export()
    assert manifest(store).made == made
    assert nothing_unfinished(store)


def nothing_unfinished(store: DuckDBStore) -> bool:
    assert store.config.parquet is not None
    folder = store.config.parquet.folder
    newest = (folder / "current").resolve().name if (folder / "current").is_symlink() else ""
    numbers = [int(p.name) for p in (folder / "versions").iterdir() if p.name.isdigit()]
    parts = list((folder / "versions").glob("*.part"))
    return not parts and not (folder / "current.new").is_symlink() and max(numbers, default=0) == int(newest or 0)


def test_a_folder_in_the_place_of_the_link_is_said_and_leaves_nothing_behind(store: DuckDBStore) -> None:
    fill(store, 100, range(1, 6))
    assert store.config.parquet is not None
    blocking = store.config.parquet.folder / "current" / "mine"
    blocking.mkdir(parents=True)
    for _ in range(3):
        with pytest.raises(Misconfigured, match="no link of Syncline's"):
            store.export()
    assert nothing_unfinished(store)
    blocking.rmdir()
    blocking.parent.rmdir()
    assert store.export()


def test_a_switch_that_fails_leaves_no_version_behind(store: DuckDBStore, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(store, 100, range(1, 6))
    store.export()
    before = exported(store)
    fill(store, 110, range(1, 9))

    def fails(*_: object, **__: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as broken:
        broken.setattr(Path, "replace", fails)
        with pytest.raises(Misconfigured, match="Input/output error"):
            store.export()
    assert exported(store) == before
    assert nothing_unfinished(store)
    with monkeypatch.context() as broken:
        broken.setattr(Path, "symlink_to", lambda *_, **__: no_link())
        with pytest.raises(Misconfigured, match="no symbolic links"):
            store.export()
    assert nothing_unfinished(store)
    assert store.export()


def no_link(*_: object) -> None:
    raise OSError(errno.EPERM, "Operation not permitted")


def test_files_are_copied_where_there_are_no_hard_links(store: DuckDBStore, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(store, 100, range(1, 96))
    store.export()
    monkeypatch.setattr(os, "link", no_link)
    apply(store, Rows().upsert(110, 3, "new", None))
    assert store.export()
    assert exported(store) == copied(store)


def test_a_full_disk_keeps_nothing_of_the_export_that_filled_it(tmp_path: Path) -> None:
    if os.geteuid() != 0 and "CI" not in os.environ:
        pytest.skip("only root can mount a small disk to fill up; it runs where CI is set")
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(disk)], check=True)
    try:
        for store in opened(tmp_path, ParquetConfig(folder=disk, compression="none", row_group_size=1000)):
            assert store.export()
            many(store, 200_000)
            with pytest.raises(Unavailable, match="full") as told:
                store.export()
            assert told.value.code == "SL-DISK-FULL"
            assert nothing_unfinished(store)
            free = os.statvfs(disk)
            assert free.f_bavail * free.f_frsize > 1 << 20
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=True)


def many(store: DuckDBStore, count: int) -> None:
    """Rows that would take long to be handed in one by one."""
    with store._db.session() as connection:
        connection.execute(f"insert into item select i, md5(i::varchar), 1, 100 from range({count}) t(i)")
    apply(store, Rows().upsert(110, -1, "new", None), n=20_000)


def test_an_export_under_way_is_cut_off_when_it_is_asked_to_stop(store: DuckDBStore, tmp_path: Path) -> None:
    for wide in opened(tmp_path / "wide", ParquetConfig(folder=tmp_path / "wide" / "exports", row_group_size=100_000)):
        many(wide, 2_000_000)
        with ThreadPoolExecutor(1) as pool:
            running = pool.submit(wide.export)
            eventually(lambda: any((tmp_path / "wide" / "exports").glob("versions/*.part/public.item/*")))
            wide.stop_export()
            assert not wide._db.exporter._exporting.locked()  # type: ignore[union-attr]
            assert running.result() is None
        assert nothing_unfinished(wide)
        assert wide.export() is None
        wide.close()
        wide.open("orders")
        assert wide.export()


def test_a_query_of_an_export_is_interrupted_and_that_is_no_error(store: DuckDBStore) -> None:
    many(store, 3_000_000)
    exporter = store._db.exporter
    assert exporter is not None
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(store.export)
        eventually(lambda: exporter._connection is not None)
        store.stop_export()
        assert running.result() is None
    assert not exporter._folder.exists()


def test_a_store_that_exports_says_so(store: DuckDBStore) -> None:
    assert isinstance(store, Exporting)
    assert not isinstance(MemoryStore(MemoryConfig(), "main"), Exporting)


def test_folders_are_looked_at_offline(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    config = DuckDBConfig(
        path=tmp_path / "copy.duckdb",
        temp_directory=tmp_path / "file" / "spill",
        parquet=ParquetConfig(folder=tmp_path / "file" / "exports"),
    )
    found = list(DuckDBStore.check_offline(config, ["public"]))
    assert [(one.code, one.severity) for one in found] == [("SL-DUCKDB-WRITE", "error")] * 2
    assert ["temp_directory" in found[0].remedy, "parquet.folder" in found[1].remedy] == [True, True]


def test_reading_the_configuration_does_not_load_the_writer_of_parquet_files() -> None:
    program = "import sys, syncline.stores.duckdb.store; sys.exit('pyarrow.parquet' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_the_page_explains_every_setting() -> None:
    page = (Path(__file__).parents[2] / "docs" / "duckdb.md").read_text()
    assert [name for name in ParquetConfig.model_fields if f"| `{name}` |" not in page] == []
