"""Parquet files of a DuckDB copy: whole, of one moment, and written again only where something changed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import duckdb
import msgspec
import pyarrow.parquet as pq
import pytest

from syncline.change import Loaded
from syncline.errors import Misconfigured
from syncline.stores import Work
from syncline.stores.duckdb import DuckDBConfig, DuckDBStore
from syncline.stores.duckdb.parquet import ParquetConfig
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


def test_the_page_explains_every_setting() -> None:
    page = (Path(__file__).parents[2] / "docs" / "duckdb.md").read_text()
    assert [name for name in ParquetConfig.model_fields if f"| `{name}` |" not in page] == []
