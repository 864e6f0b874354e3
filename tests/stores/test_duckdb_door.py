"""Other processes query the DuckDB file while the store writes to it."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import duckdb
import pytest

from syncline.errors import Misconfigured, Unavailable
from syncline.stores.duckdb import DuckDBConfig, DuckDBStore
from syncline.stores.duckdb.door import _QUERY, Door, QueryError, _send, open_reader, socket_path
from syncline.testing.store_suite import ITEM, Rows, work

_READ_WHILE_WRITTEN = """
import sys
from pathlib import Path
from syncline.stores.duckdb.door import open_reader
seen = set()
with open_reader(sys.argv[1]) as reader:
    print("ready", flush=True)
    while True:
        rows = reader.query("select name, count(*) from item group by name").to_pydict()
        assert len(rows["name"]) == 1, f"half a work: {rows}"
        seen.add(rows["name"][0])
        if len(seen) > 3:
            Path(sys.argv[2]).touch()
        if rows["name"][0] == "last":
            break
print(len(seen))
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "door.duckdb"


@pytest.fixture
def store(path: Path) -> Iterator[DuckDBStore]:
    store = DuckDBStore(DuckDBConfig(path=path), "door")
    store.open("orders")
    store.migrate(ITEM)
    store.apply(work(Rows().upsert(1, 1, "first", None).upsert(1, 2, "first", None)))
    yield store
    store.close()


def test_another_process_sees_whole_works_only_while_they_are_applied(store: DuckDBStore, path: Path) -> None:
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2] / "src")}
    enough, deadline = path.with_suffix(".seen"), time.monotonic() + 60
    command = [sys.executable, "-c", _READ_WHILE_WRITTEN, str(path), str(enough)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment, text=True) as reader:
        assert reader.stdout is not None
        assert reader.stdout.readline() == "ready\n"
        version = 1
        while version < 79 or not (enough.exists() or reader.poll() is not None or time.monotonic() > deadline):
            version += 1
            store.apply(work(Rows().upsert(version, 1, str(version), None).upsert(version, 2, str(version), None)))
        store.apply(work(Rows().upsert(version + 1, 1, "last", None).upsert(version + 1, 2, "last", None)))
        seen = int(reader.stdout.read())
    assert reader.returncode == 0
    assert seen > 3


def test_results_come_as_arrow_and_the_connection_serves_many_queries(store: DuckDBStore, path: Path) -> None:
    with open_reader(path) as reader:
        table = reader.query("select id, name, 'a'::enum('a', 'b') as e from item order by id")
        assert table.to_pydict() == {"id": [1, 2], "name": ["first", "first"], "e": ["a", "a"]}
        assert reader.query("select count(*) as n from range(200000)").to_pydict() == {"n": [200_000]}
        assert reader.query("select i from range(123456) as g(i)").num_rows == 123_456
        assert reader.query("select 1 where false").num_rows == 0
        assert "item" in reader.query("show tables").to_pydict()["name"]


@pytest.mark.parametrize(
    "sql",
    [
        "delete from item",
        "create table mine (a int)",
        "select 1; select 2",
        "set memory_limit = '1MB'",
        "attach ':memory:' as x",
        "copy item to 'out.csv'",
        "select * from read_text('/etc/hostname')",
        "select * from glob('*')",
        "from force_checkpoint()",
        "explain analyze delete from item",
        "selec",
        "select nothing from item",
        "",
    ],
)
def test_whatever_is_not_a_plain_read_is_refused_and_the_next_query_works(
    store: DuckDBStore, path: Path, sql: str
) -> None:
    with open_reader(path) as reader:
        with pytest.raises(QueryError):
            reader.query(sql)
        assert reader.query("select count(*) as n from item").to_pydict() == {"n": [2]}


def test_an_error_that_a_query_makes_up_does_not_have_the_file_moved_aside(store: DuckDBStore, path: Path) -> None:
    with open_reader(path) as reader, pytest.raises(QueryError, match="Corrupt"):
        reader.query("select error('IO Error: Corrupt database file')")
    store.close()
    assert not list(path.parent.glob("*.damaged-*"))
    assert store.open("orders") is not None


def test_an_error_in_the_middle_of_a_result_is_told(store: DuckDBStore, path: Path) -> None:
    with open_reader(path) as reader:
        with pytest.raises(QueryError, match="boom"):
            reader.query("select case when i < 400000 then i else error('boom') end as i from range(500000) as g(i)")
        assert reader.query("select 1 as one").to_pydict() == {"one": [1]}


def test_a_query_whose_client_goes_away_is_interrupted(store: DuckDBStore, path: Path) -> None:
    reader = open_reader(path)
    asking = threading.Thread(target=_ask_for_ever, args=(reader,))
    asking.start()
    _wait(lambda: any(t.name == "duckdb-door-watch" for t in threading.enumerate()))
    reader._socket.shutdown(2)  # type: ignore[attr-defined]
    asking.join(20)
    assert not asking.is_alive()
    _wait(lambda: not any(t.name == "duckdb-door-watch" for t in threading.enumerate()))
    reader.close()


def _ask_for_ever(reader: object) -> None:
    with pytest.raises(Unavailable):
        reader.query("select count(*) from range(1000000) a, range(1000000) b where a.range + b.range = 7")  # type: ignore[attr-defined]


def _wait(fact: object) -> None:
    deadline = time.monotonic() + 20
    while not fact():  # type: ignore[operator]
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_query_that_takes_too_long_is_interrupted(tmp_path: Path) -> None:
    connection = duckdb.connect()
    door = Door(tmp_path / "slow", connection.cursor, timeout_s=0.3)
    with open_reader(tmp_path / "slow") as reader, pytest.raises(QueryError, match=r"(?i)interrupt"):
        reader.query("select count(*) from range(1000000) a, range(1000000) b where a.range + b.range = 7")
    door.close()
    connection.close()


def test_a_client_that_stops_reading_does_not_keep_its_transaction_open(tmp_path: Path) -> None:
    connection = duckdb.connect()
    begun, ended = threading.Event(), threading.Event()

    @contextmanager
    def session() -> Iterator[duckdb.DuckDBPyConnection]:
        begun.set()
        try:
            with connection.cursor() as cursor:
                yield cursor
        finally:
            ended.set()

    door = Door(tmp_path / "deaf", session, timeout_s=0.3)
    with open_reader(tmp_path / "deaf") as reader:
        asked = b"select i, repeat('x', 100) as text from range(1000000) as g(i)"
        _send(reader._socket, _QUERY, asked)  # type: ignore[attr-defined]
        assert begun.wait(20)
        assert ended.wait(20)
        with pytest.raises((Unavailable, QueryError)):  # what had been sent, and then no end
            reader.query("select 1")
    door.close()
    connection.close()


def test_the_socket_is_for_its_user_alone_and_leaves_with_the_store(store: DuckDBStore, path: Path) -> None:
    assert stat.S_IMODE(socket_path(path).stat().st_mode) == 0o600
    reader = open_reader(path)
    store.close()
    assert not socket_path(path).exists()
    with pytest.raises(Unavailable):
        reader.query("select 1")
    reader.close()


def test_without_an_engine_the_reader_opens_the_file(store: DuckDBStore, path: Path) -> None:
    store.close()
    socket_path(path).touch()  # as a killed engine leaves it behind
    with open_reader(path) as reader:
        assert reader.query("select count(*) as n from item").to_pydict() == {"n": [2]}
        with pytest.raises(QueryError):
            reader.query("delete from item")


def test_a_store_without_a_door_says_so(path: Path) -> None:
    store = DuckDBStore(DuckDBConfig(path=path, door=False), "closed")
    store.open("orders")
    with pytest.raises(Misconfigured, match="no query door"):
        open_reader(path)
    store.close()
    with pytest.raises(Misconfigured, match="no DuckDB file"):
        open_reader(path.with_name("missing.duckdb"))


def test_a_long_path_has_its_door_in_the_temporary_folder(tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 60) / ("e" * 60) / "deep.duckdb"
    assert len(str(socket_path(deep))) <= 100
    store = DuckDBStore(DuckDBConfig(path=deep), "deep")
    store.open("orders")
    with open_reader(deep) as reader:
        assert reader.query("select 1 as one").to_pydict() == {"one": [1]}
    store.close()


def test_times_are_in_utc_with_an_engine_and_without_one(store: DuckDBStore, path: Path) -> None:
    asked = "select '2026-01-01 00:30:00+00'::timestamptz::date::text as d, current_setting('TimeZone') as z"
    with open_reader(path) as reader:
        through_the_door = reader.query(asked).to_pylist()
    store.close()
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2] / "src"), "TZ": "America/New_York"}
    program = (
        "import sys; from syncline.stores.duckdb import open_reader\n"
        "with open_reader(sys.argv[1]) as reader: print(reader.query(sys.argv[2]).to_pylist())"
    )
    from_the_file = subprocess.check_output(
        [sys.executable, "-c", program, str(path), asked], env=environment, text=True
    )
    assert through_the_door == [{"d": "2026-01-01", "z": "UTC"}]
    assert from_the_file.strip() == str(through_the_door)
