"""Loads: which versions their rows carry, and what they refuse to believe."""

from __future__ import annotations

import threading
from contextlib import closing
from typing import Any

import pyarrow as pa
import pytest
from pydantic import SecretStr

from servers import Database
from syncline.capture import snapshot
from syncline.capture.heal import read_rows
from syncline.capture.postgres import WalSource
from syncline.capture.schema import table_schema
from syncline.capture.snapshot import Load, Rewritten, consistent_point, load, read_table
from syncline.capture.source import SourceConfig
from syncline.capture.tables import TableInfo, matching_tables
from syncline.change import Batch, Truncate
from syncline.errors import SCHEMA_DRIFT, Gap, Unavailable

BASE = 1_000_000


@pytest.fixture
def source(database: Database) -> SourceConfig:
    database.execute("create table item (id int primary key, name text)")
    database.execute("insert into item select g, 'n' || g from generate_series(1, 10) g")
    return SourceConfig(dsn=SecretStr(database.dsn), slot=f"slot_{database.name}", publication="item_only")


def items(database: Database) -> list[TableInfo]:
    with database.connect() as connection:
        return matching_tables(connection, ("public.item",), (), ())


def test_rows_are_older_than_what_commits_at_their_point_and_the_sweep_is_older_still(
    database: Database, source: SourceConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Correctness rule 3: a streamed commit may begin exactly at the point, and has to win."""
    points = []
    original = snapshot.snapshot_point

    def noted(*arguments: Any) -> tuple[int, str, Any]:
        found = original(*arguments)
        points.append(found[0])
        return found

    monkeypatch.setattr(snapshot, "snapshot_point", noted)
    what = Load(items(database), BASE, 1)
    found = [
        i for e in load(WalSource(source, "syncline"), what, threading.Event(), print, lambda _: None) for i in e.items
    ]
    (point,) = points
    versions = {int(v) for i in found if isinstance(i, Batch) for v in i.ints("version")}
    assert versions == {BASE + point - 1}
    assert [i.version for i in found if isinstance(i, Truncate)] == [BASE + point - 2]


@pytest.mark.parametrize("change", ["truncate item", "alter table item alter name type varchar(40) using upper(name)"])
def test_a_table_rewritten_behind_the_snapshot_is_not_taken_for_empty(
    database: Database, source: SourceConfig, change: str
) -> None:
    """Correctness rule 18: neither is safe under a snapshot, which then shows no rows at all."""
    (item,) = items(database)
    with consistent_point(source, "test", print) as (_, name):
        database.execute(change)
        with pytest.raises(Rewritten):
            list(read_table(source, item, name, 1, threading.Event(), lambda _: None))


def test_a_statement_that_reads_a_table_may_take_so_long_whatever_the_limit_of_the_role(
    database: Database, source: SourceConfig
) -> None:
    (item,) = items(database)
    database.execute("insert into item select g, repeat('x', 100) from generate_series(11, 200000) g")
    database.execute(f"alter database {database.name} set statement_timeout = '5s'")
    limits = {}
    with consistent_point(source, "test", print) as (_, name):
        for most_s in (0.0, 0.2):
            limited = source.model_copy(update={"read_timeout_s": most_s})
            with closing(snapshot.TableReader(limited, item, name)) as reader, reader._cursor() as cursor:
                cursor.execute("show statement_timeout")
                limits[most_s] = cursor.fetchone()[0]
        limited = source.model_copy(update={"read_timeout_s": 0.001})
        with pytest.raises(Unavailable, match="a statement that took too long"):
            list(read_table(limited, item, name, 1, threading.Event(), lambda _: None))
    assert limits == {0.0: "0", 0.2: "200ms"}


def test_entries_are_even_in_rows_whatever_the_chunks_of_the_table_hold(
    database: Database, source: SourceConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A store that writes columns takes rows best in pieces of its own size."""
    monkeypatch.setattr(snapshot, "_ENTRY_ROWS", 300)
    database.execute("insert into item select g, repeat('x', g % 50) from generate_series(11, 2000) g")
    (item,) = items(database)
    small = source.model_copy(update={"load_chunk_bytes": 16384})
    with consistent_point(small, "test", print) as (point, name):
        found = list(read_table(small, item, name, BASE + point, threading.Event(), lambda _: None))
    assert [len(batch) for batch in found] == [300] * 6 + [200]
    assert sorted(k for batch in found for k in batch.data().column("id").to_pylist()) == list(range(1, 2001))
    assert [int(o) for batch in found for o in batch.ints("ordinal")] == list(range(2000))


def test_entries_of_wide_rows_are_cut_by_their_bytes(
    database: Database, source: SourceConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(snapshot, "_ENTRY_BYTES", 50_000)
    database.execute("update item set name = repeat(md5(random()::text), 600)")
    (item,) = items(database)
    with consistent_point(source, "test", print) as (point, name):
        found = list(read_table(source, item, name, BASE + point, threading.Event(), lambda _: None))
    assert sum(len(batch) for batch in found) == 10
    assert max(len(batch) for batch in found) <= 3


def test_healing_rows_of_a_table_that_has_another_shape_by_now_has_it_read_again(
    database: Database, source: SourceConfig
) -> None:
    (item,) = items(database)
    schema = table_schema(item)
    database.execute("alter table item drop column name")
    keys = pa.RecordBatch.from_pydict({"id": pa.array([1], pa.int32())})
    with pytest.raises(Gap) as drifted:
        read_rows(source, schema, keys, [], threading.Event())
    assert drifted.value.code == SCHEMA_DRIFT
