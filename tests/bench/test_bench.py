"""The benchmarks run with a few rows: what they print has its keys, what they count is right. Nothing is timed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any
from uuid import uuid4

import duckdb
import psycopg
import pytest
from redis import Redis

from servers import Database as PgDatabase
from stores.graphs import GraphDatabase, graph
from syncline.bench.accounting import cpu_seconds, peak_rss_bytes, thread_cpu
from syncline.bench.bulk import Delta
from syncline.bench.engine import Engine, engine_config
from syncline.bench.peers import Peers
from syncline.bench.places import Address, place_of
from syncline.bench.planting import plant
from syncline.bench.report import Talk, median, per_row, shown_command
from syncline.bench.stores import Bench
from syncline.bench.workload import SLOT, Source, digest_of_copy
from syncline.embedded import EmbeddedValkey
from syncline.errors import Misconfigured, SynclineError, Unavailable
from syncline.stores.neo4j.database import Constraint, Database
from syncline.stores.postgres import PostgresConfig, PostgresStore

__all__ = ["graph"]

ENVIRONMENT = {"benchmark", "command", "cores", "load_average", "versions"}


def run(folder: Path, *arguments: str) -> dict[str, Any]:
    """One benchmark as a person starts it; it must leave nothing behind."""
    command = [sys.executable, "-m", "syncline.bench.cli", *arguments, "--json", "--dir", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    assert list(folder.iterdir()) == []
    found: dict[str, Any] = json.loads(done.stdout)
    assert found.keys() >= ENVIRONMENT
    assert found["versions"].keys() >= {"syncline", "postgres", "duckdb", "pyarrow", "python"}
    assert str(folder) not in json.dumps({**found, "command": ""})
    return found


@pytest.mark.slow
def test_wal_duckdb_reports_both_ratios_of_runs_over_the_same_rows(tmp_path: Path) -> None:
    found = run(tmp_path, "wal-duckdb", "--rows", "2500", "--repeat", "1", "--no-peer")
    assert found["changes"] == 2500
    assert found["copies_equal"] is True
    assert found["ratio"] == found["ratio_text"] > 0
    assert found["ratio_binary"] > 0
    for key in ("rows_per_s", "cpu_us_per_row", "peak_rss_mb"):
        assert found[key].keys() == {"pg_recvlogical", "text", "binary"}
    assert found["cpu_us_per_row"]["text"].keys() >= {"receive", "decode and log", "apply", "syncline"}
    rates = found["rows_per_s"]
    assert found["ratio_text"] == pytest.approx(rates["text"] / rates["pg_recvlogical"], rel=0.01, abs=0.001)


@pytest.mark.slow
def test_the_mix_starts_every_run_from_the_same_loaded_copy_and_ends_equal(tmp_path: Path) -> None:
    found = run(tmp_path, "wal-duckdb", "--rows", "2000", "--mix", "--table-rows", "3000", "--repeat", "2", "--no-peer")
    assert found["table_rows"] == 3000
    assert 1500 < found["changes"] <= 2000  # a key may be drawn twice, or be deleted already
    assert found["repeat"] == 2
    assert found["copies_equal"] is True


@pytest.mark.slow
def test_latency_reports_percentiles_of_a_copy_that_is_equal(tmp_path: Path) -> None:
    found = run(tmp_path, "latency", "--rate", "100", "--seconds", "2", "--table-rows", "2000")
    assert 0 < found["p50_ms"] <= found["p95_ms"] <= found["p99_ms"]
    assert found["copy_equal"] is True
    assert found["rows_in_copy"] > 2000
    assert found["rows_applied"] > 0
    assert found["achieved_per_s"] > 0
    assert found["cpu_cores"].keys() >= {"syncline", "walsender"}


@pytest.mark.slow
def test_latency_into_another_store_ends_with_a_copy_that_is_equal(tmp_path: Path) -> None:
    found = run(tmp_path, "latency", "--target", "redis", "--rate", "50", "--seconds", "1", "--table-rows", "500")
    assert found["target"] == "redis"
    assert found["server"].startswith("valkey")
    assert 0 < found["p50_ms"] <= found["p95_ms"] <= found["p99_ms"]
    assert found["rows_in_copy"] > 500
    assert found["copy_equal"] is True


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind",
    [*(pytest.param(kind, marks=pytest.mark.soak) for kind in ("neo4j", "qdrant")), "redis", "postgres"],
)
def test_a_store_is_measured_against_the_same_rows_written_by_hand(kind: str, tmp_path: Path) -> None:
    found = run(tmp_path, "store", kind, "--rows", "600", "--repeat", "2", "--dimensions", "8")
    assert found["benchmark"] == f"store {kind}"
    assert found["changes"] == 600
    assert found["rows_in_copy"] == 1200
    assert found["copies_equal"] is True
    assert found["server"]
    assert found["dimensions"] == (8 if kind == "qdrant" else 0)
    for key in ("rows_per_s", "rows_per_s_spread", "cpu_us_per_row"):
        assert found[key].keys() == {"by_hand", "syncline"}
    assert found["cpu_us_per_row"]["syncline"].keys() >= {"engine", "apply-main", "capture-main"}
    low, high = found["ratio_spread"]
    assert 0 < low <= found["ratio"] <= high


@pytest.mark.slow
@pytest.mark.parametrize("kind", [pytest.param("qdrant", marks=pytest.mark.soak), "postgres"])
def test_a_mix_of_changes_leaves_both_sides_with_the_rows_of_the_source(kind: str, tmp_path: Path) -> None:
    found = run(tmp_path, "store", kind, "--mix", "--rows", "400", "--table-rows", "1500", "--repeat", "2")
    assert found["table_rows"] == 1500
    assert 300 < found["changes"] <= 400
    assert found["rows_in_copy"] != 1500
    assert found["copies_equal"] is True


def test_a_copy_by_hand_that_is_not_equal_is_told_and_nothing_is_reported(tmp_path: Path) -> None:
    with Source.started(tmp_path) as source, place_of("redis", source.folder) as place, place.by_hand() as bulk:
        bench = Bench(source, place, bulk, Talk())
        bench.begin(20)
        bulk.prepare(source, Delta("false", gone=[7]))
        bulk.write()
        with pytest.raises(SynclineError, match="by hand has 19 rows, the source 20"):
            bench.compare()


def test_a_place_of_a_user_that_holds_something_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    with EmbeddedValkey.start(tmp_path / "valkey") as server, Redis.from_url(server.url()) as client:
        client.set("mine", "1")
        with (
            pytest.raises(Misconfigured, match="holds 1 keys"),
            place_of("redis", tmp_path, Address(server.url())),
        ):
            raise AssertionError
        assert client.get("mine") == b"1"
        client.delete("mine")
        with place_of("redis", tmp_path, Address(server.url())):
            client.set("a", "1")
        assert client.dbsize() == 0


@pytest.mark.parametrize(
    ("kind", "uri"),
    [
        ("neo4j", "bolt://127.0.0.1:1"),
        ("redis", "redis://:secret@127.0.0.1:1"),
        ("postgres", "postgresql://me:secret@127.0.0.1:1/copy"),
    ],
)
def test_a_place_that_nobody_answers_at_is_told_with_what_to_do_and_without_its_secrets(
    kind: str, uri: str, tmp_path: Path
) -> None:
    with pytest.raises(Unavailable, match=r"127\.0\.0\.1:1.*--uri") as told, place_of(kind, tmp_path, Address(uri)):
        raise AssertionError
    assert "secret" not in str(told.value)


@pytest.mark.parametrize("kind", ["neo4j", "redis"])
def test_an_address_of_another_kind_is_refused(kind: str, tmp_path: Path) -> None:
    with pytest.raises(Misconfigured, match="--uri"), place_of(kind, tmp_path, Address("http://127.0.0.1:1")):
        raise AssertionError


@pytest.mark.slow
def test_a_benchmark_of_a_server_that_is_away_ends_with_the_exit_code_for_it(tmp_path: Path) -> None:
    for command in (["store", "neo4j"], ["latency", "--target", "neo4j"]):
        given = ["bench", *command, "--uri", "bolt://127.0.0.1:1", "--dir", str(tmp_path)]
        done = subprocess.run(
            [sys.executable, "-m", "syncline", *given], capture_output=True, text=True, check=False, timeout=120
        )
        assert done.returncode == 3, done.stderr
        assert "127.0.0.1:1" in done.stderr
        assert "Traceback" not in done.stderr
        assert done.stdout == ""


@pytest.mark.parametrize("graph", ["neo4j-2026"], indirect=True)
def test_a_graph_of_a_user_is_left_without_constraints_and_indexes_of_the_benchmark(
    graph: GraphDatabase, tmp_path: Path
) -> None:
    with closing(Database(graph.config)) as database:
        mine = Constraint(f"Mine{uuid4().hex}", ("x",), unique=False)
        database.constrain(mine)
        before = shown(database)
        with place_of("neo4j", tmp_path, Address(graph.at.uri)) as place, place.by_hand() as bulk:
            assert place.server.startswith("Neo4j/")
            store = graph.store()
            store.open("main")
            store.close()
            database.constrain(Constraint(f"Theirs{uuid4().hex}", ("x",), unique=False))
            assert bulk.count() == 0
            assert shown(database) > before
        assert shown(database) == before
        assert database.run("MATCH (n) RETURN count(n)") == [[0]]
        database.run(f"DROP INDEX {database.run(_NAME, kind=mine.kind)[0][0]}")


_NAME = "SHOW INDEXES YIELD name, labelsOrTypes WHERE labelsOrTypes = [$kind] RETURN name"


def shown(database: Database) -> set[str]:
    return {
        f"{what} {name}"
        for what in ("CONSTRAINTS", "INDEXES")
        for (name,) in database.run(f"SHOW {what} YIELD name RETURN name")
    }


def test_a_database_of_a_user_is_left_without_the_origin_that_marked_what_was_written(
    database: PgDatabase, tmp_path: Path
) -> None:
    ours = f"syncline:{database.name}:syncline_target:main"
    theirs = f"syncline:{database.name}:syncline_target:theirs"
    found = "select roname from pg_replication_origin where roname like %s order by roname"
    with psycopg.connect(database.dsn, autocommit=True) as connection:

        def origins() -> list[str]:
            return [name for (name,) in connection.execute(found, [f"syncline:{database.name}:%"])]

        connection.execute("select pg_replication_origin_create(%s)", [theirs])
        with place_of("postgres", tmp_path, Address(database.dsn)):
            store = PostgresStore(PostgresConfig(dsn=database.dsn), "main")
            store.open("main")
            store.purge("main", 0)  # it is taken with the first transaction
            assert origins() == [ours, theirs]
            store.close()
        assert origins() == [theirs]
        assert connection.execute("select to_regnamespace('syncline_target')").fetchone() == (None,)
        connection.execute("select pg_replication_origin_drop(%s)", [theirs])


@pytest.mark.soak
@pytest.mark.parametrize("graph", ["neo4j-2026"], indirect=True)
def test_latency_into_a_graph_of_a_user_accounts_for_its_process(graph: GraphDatabase, tmp_path: Path) -> None:
    found = run(
        *(tmp_path, "latency", "--target", "neo4j", "--uri", graph.at.uri, "--pid", str(graph.at.server)),
        *("--rate", "50", "--seconds", "1", "--table-rows", "500"),
    )
    assert graph.query("MATCH (n) RETURN count(n)") == [[0]]
    assert found["server"].startswith("Neo4j/")
    assert found["copy_equal"] is True
    assert found["cpu_cores"]["server"] > 0


def test_an_address_is_not_part_of_what_is_printed() -> None:
    given = ["bench", "store", "redis", "--uri", "redis://:secret@host", "--uri=redis://:secret@host"]
    assert shown_command(given) == "syncline bench store redis --uri ... --uri=..."


@pytest.mark.soak
def test_fanout_reports_each_target_and_what_a_standing_graph_costs_the_others(tmp_path: Path) -> None:
    found = run(
        *(tmp_path, "fanout", "--rows", "500", "--repeat", "1", "--rate", "20", "--per-transaction", "5"),
        *("--seconds", "1"),
    )
    assert found["rows_per_s"].keys() == {"until_the_last", "duckdb", "graph", "vectors"}
    assert found["rows_per_s"]["until_the_last"] <= min(found["rows_per_s"][n] for n in ("duckdb", "graph", "vectors"))
    for name in ("duckdb", "graph", "vectors"):
        assert 0 < found["stream"][name]["p50_ms"] <= found["stream"][name]["p95_ms"]
    for kind in ("slow_graph", "stopped_graph"):
        assert found[kind]["cost_to_others"].keys() == {"duckdb", "vectors"}
        assert found[kind]["source_confirmed_after_s"] >= 0
    assert found["rows_in_copies"] > 1500
    assert found["copies_equal"] is True


@pytest.mark.slow
def test_load_reports_its_ratio_to_a_plain_copy(tmp_path: Path) -> None:
    found = run(tmp_path, "load", "--rows", "3000", "--repeat", "1")
    assert found["rows"] == 3000
    assert found["copies_equal"] is True
    assert found["rows_per_s"].keys() >= {"copy", "syncline"}
    assert found["ratio"] == pytest.approx(found["rows_per_s"]["syncline"] / found["rows_per_s"]["copy"], abs=0.002)
    assert ("ratio_to_extension" in found) != ("peer_error" in found)


@pytest.mark.slow
def test_a_large_transaction_reports_memory_and_whether_the_copy_is_equal(tmp_path: Path) -> None:
    found = run(tmp_path, "big-transaction", "--rows", "5000")
    assert found["rows"] == found["rows_in_copy"] == 5000
    assert found["copy_equal"] is True
    assert found["peak_rss_mb"] > 50


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Source]:
    with Source.started(tmp_path_factory.mktemp("bench")) as started:
        started.prepare_slot()
        yield started


def test_a_copy_is_equal_only_with_every_value_of_every_column(source: Source, tmp_path: Path) -> None:
    source.fill(50)
    path = tmp_path / "copy.duckdb"
    rows = source.execute("select id, doc::text, content, tags, meta::text, score, updated_at from chunks").fetchall()
    with duckdb.connect(str(path)) as connection:
        connection.execute("set timezone = 'UTC'")
        connection.execute(
            "create table chunks (id bigint, doc uuid, content varchar, tags varchar, meta varchar, score double,"
            " updated_at timestamptz)"
        )
        connection.executemany("insert into chunks values (?, ?, ?, ?, ?, ?, ?)", [list(row) for row in rows])
    expected = source.digest()
    assert expected.rows == 50
    assert digest_of_copy(path) == expected
    for change in (
        "content = content || 'x'",
        "score = score + 1",
        "doc = gen_random_uuid()",
        "meta = '{}'",
        "tags = 'b'",
        "updated_at = updated_at + interval 1 microsecond",
    ):
        other = tmp_path / "other.duckdb"
        other.write_bytes(path.read_bytes())
        with duckdb.connect(str(other)) as connection:
            connection.execute(f"update chunks set {change} where id = 7")
        assert digest_of_copy(other) != expected, change


def test_copied_slots_read_the_same_changes_again_and_are_dropped(source: Source) -> None:
    before = source.value("select confirmed_flush_lsn::text from pg_replication_slots where slot_name = %s", SLOT)
    with source.copied_slot("again") as name:
        assert name == "again"
        assert (
            source.value("select confirmed_flush_lsn::text from pg_replication_slots where slot_name = 'again'")
            == before
        )
    assert source.value("select count(*) from pg_replication_slots where slot_name = 'again'") == 0


def test_an_engine_that_fails_is_told_with_its_reason(source: Source, tmp_path: Path) -> None:
    config = engine_config(source.dsn, tmp_path, "none", binary=None, initial_load=False)
    config["sources"]["main"]["monitored_tables"] = ["public.missing"]
    with Engine(config, "streaming") as engine, pytest.raises(Unavailable, match=r"Nearest: public\.chunks"):
        engine.wait(place=1, timeout_s=30)


def test_processor_time_is_told_by_the_threads_names() -> None:
    def work() -> None:
        end = time.thread_time() + 0.05
        while time.thread_time() < end:
            pass
        done.set()
        leave.wait()

    done, leave = threading.Event(), threading.Event()
    thread = threading.Thread(target=work, name="a busy one")
    thread.start()
    assert done.wait(20)
    spent = thread_cpu()
    leave.set()
    thread.join()
    assert spent["a busy one"] >= 0.04
    assert cpu_seconds(os.getpid()) > 0
    assert peak_rss_bytes() > 1 << 20


def test_processes_that_are_gone_cost_nothing() -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    assert cpu_seconds(gone.pid) == 0
    assert peak_rss_bytes(gone.pid) == 0


def test_figures_are_medians_and_microseconds_a_row() -> None:
    assert median([3.0, 1.0, 2.0]) == 2.0
    assert median([]) == 0.0
    assert per_row({"small": 1e-9, "b": 0.5, "a": 1.0}, 1_000_000) == {"a": 1.0, "b": 0.5}


def test_peers_that_are_not_installed_are_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert Peers(tmp_path).extension() is None
    assert Peers(tmp_path).ingestr() is None
    assert Peers(tmp_path).reladiff() is None


@pytest.mark.slow
def test_an_outbox_is_measured_through_the_slot_and_by_polling_over_the_same_events(tmp_path: Path) -> None:
    size = ("--events", "300", "--rate", "50", "--per-transaction", "5", "--seconds", "1", "--repeat", "1")
    found = run(tmp_path, "outbox", *size)
    assert found["events"] == 300
    assert found["copies_equal"] is True
    for way in ("slot", "polling"):
        assert found[way]["events_per_s"] > 0
        assert found[way]["achieved_per_s"] > 0
        assert 0 < found[way]["p50_ms"] <= found[way]["p95_ms"]


def test_members_of_redis_keys_are_compared_with_what_was_told(tmp_path: Path) -> None:
    found = run(tmp_path, "redis-diff", "--members", "2000", "--repeat", "2")
    assert found["members"] == 2000
    assert found["changes"] == {"insert": 2, "update": 20, "delete": 2}
    assert found["copy_equal"] is True
    assert found["members_per_s"] == pytest.approx(2000 / found["seconds"], rel=0.01)
    assert found["peak_rss_mb"] > 50
    assert found["cpu_s"].keys() == {"syncline", "server"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "planted"),
    [
        ("duckdb", {"changed": 100}),
        ("postgres", {"changed": 100}),
        ("redis", {"changed": 100}),
        ("neo4j", {"changed": 50, "edges_dropped": 50}),
        ("qdrant", {"changed": 50, "vectors_turned": 50}),
    ],
)
def test_verification_finds_just_what_was_planted(kind: str, planted: dict[str, int], tmp_path: Path) -> None:
    size = ("--rows", "12000", "--differences", "100", "--repeat", "1", "--dimensions", "8")
    found = run(tmp_path, "verify", "--target", kind, *size)
    assert found["target"] == kind
    assert found["server"]
    assert found["edges"] == (11_999 if kind == "neo4j" else 0)
    assert found["100_differences"]["planted"] == planted
    for look in ("equal", "100_differences"):  # another number of differences than was planted would be an error
        seconds = found[look]["seconds"]["syncline"]
        assert found[look]["rows_per_s"]["syncline"] == pytest.approx(12_000 / seconds, rel=0.01)
        assert found[look]["peak_rss_mb"]["syncline"] > 50
        assert found[look]["cpu_s"]["command"] > 0


@pytest.mark.parametrize("kind", ["duckdb", "redis"])
def test_differences_that_can_not_be_planted_are_told(kind: str, tmp_path: Path) -> None:
    with Source.started(tmp_path) as source, place_of(kind, source.folder) as place:
        source.fill(20)
        source.prepare_slot()
        with Engine(engine_config(source.dsn, source.folder, SLOT, targets={"main": place.target}), "start") as engine:
            engine.wait(loaded=True)
        assert plant(place, [0, 7]) == {"changed": 2}
        with pytest.raises(SynclineError, match="3 differences"):
            plant(place, [0, 7, 20])


@pytest.mark.slow
def test_what_verification_costs_a_pipeline_is_told_of_both_ways_to_verify(tmp_path: Path) -> None:
    found = run(
        *(tmp_path, "verify-lag", "--target", "postgres", "--rate", "50", "--seconds", "4"),
        *("--table-rows", "2000", "--repeat", "1"),
    )
    assert found["target"] == "postgres"
    assert found["ratio"].keys() == {"one_after_the_other", "rolling"}
    for way, ratio in found["ratio"].items():
        assert ratio == pytest.approx(found[way]["p95_ms"] / found["without"]["p95_ms"], abs=0.002)
    for way in ("without", "one_after_the_other", "rolling"):
        assert 0 < found[way]["p50_ms"] <= found[way]["p95_ms"] <= found[way]["p99_ms"]
        assert found[way]["achieved_per_s"] > 0
    assert found["without"]["verifications"] == 0
    assert found["one_after_the_other"]["verifications"] > 0
    assert found["rows_in_copy"] > 2000
    assert found["copy_equal"] is True


@pytest.mark.slow
def test_triggers_are_measured_beside_the_same_writes_without_them(tmp_path: Path) -> None:
    found = run(tmp_path, "triggers", "--seconds", "1", "--repeat", "1", "--clients", "2")
    for work in ("update_one", "insert_one", "update_1000", "insert_1000", "tpcb_like"):
        assert found[work]["tps"].keys() == {"without", "with", "with_notify"}
        assert min(found[work]["tps"].values()) > 0
        assert found[work]["ratio"].keys() == {"with", "with_notify"}
