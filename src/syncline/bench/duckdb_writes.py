"""How should changes be written into DuckDB? Strategies, table sizes, key orders and batch sizes, measured.

    python -m syncline.bench.duckdb_writes --rows 1000000 --json

Each strategy gets a table of its own with ``rows`` rows of about 400 bytes, loaded in key order or shuffled, and
transactions of random existing keys; printed are wall milliseconds (median, 95th percentile) and CPU milliseconds of
the process for one transaction. ``store`` is Syncline's own store, bookkeeping and all. The figures behind decision
record 0003.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa

from syncline.change import Column, Cursor, Position, TableSchema
from syncline.stores import Folded, TableWork, Work
from syncline.stores.duckdb import DuckDBConfig, DuckDBStore

__all__ = ["Measured", "main", "measure"]

SCHEMA = TableSchema(
    "public",
    "t",
    (
        Column("id", "int8", "bigint", key=True),
        Column("customer", "int8", "bigint"),
        Column("status", "text", "text"),
        Column("amount", "numeric(12,2)", "numeric(12,2)"),
        Column("created_at", "timestamptz", "timestamp with time zone"),
        Column("active", "bool", "boolean"),
        Column("note", "text", "text"),
    ),
)
BATCHES = (1, 20, 200, 2_000, 20_000)
_SETTINGS: dict[str, str | bool | int | float | list[str]] = {
    "threads": 2,
    "wal_autocheckpoint": "1GB",
    "memory_limit": "4GB",
}
_VERSION = "_syncline_version"
_NAMES = [*(c.name for c in SCHEMA.columns), _VERSION]

Write = Callable[[pa.RecordBatch], None]


@dataclass(frozen=True)
class Measured:
    """One cell of the table: transactions of ``batch`` random keys."""

    strategy: str
    rows: int
    order: str
    batch: int
    p50_ms: float
    p95_ms: float
    cpu_ms: float


def rows_at(ids: np.ndarray[Any, Any], version: int) -> pa.RecordBatch:
    """Rows of about 400 bytes at these keys."""
    n = len(ids)
    keys = pa.array(ids, pa.int64())
    pad = np.char.add(np.char.mod("%019d", ids * 2_654_435_761 % 10**18), "x" * 290)
    return pa.RecordBatch.from_arrays(
        [
            keys,
            pa.array(ids % 9_973, pa.int64()),
            pa.array(["open", "paid", "sent"]).take(pa.array(ids % 3)),
            pa.array(ids % 10**9, pa.int64())
            .cast(pa.decimal128(19, 0))
            .cast(pa.decimal128(38, 2))
            .cast(pa.decimal128(12, 2)),
            pa.array(1_767_225_600_000_000 + ids * 1_000, pa.int64()).cast(pa.timestamp("us", "UTC")),
            pa.array(ids % 2 == 0),
            pa.array(pad.tolist(), pa.string()),
            pa.array(np.full(n, version)),
        ],
        names=_NAMES,
    )


def _load(cursor: duckdb.DuckDBPyConnection, target: str, rows: int, order: str) -> None:
    """Fill the table in DuckDB itself, in key order or shuffled."""
    shuffled = " order by hash(id)" if order == "random" else ""
    cursor.execute(
        f"insert into {target} select * from (select i as id, i % 9973 as customer,"
        f" ['open', 'paid', 'sent'][i % 3 + 1], (i % 1000000000)::decimal(12,2),"
        f" make_timestamptz(1767225600000000 + i * 1000), i % 2 = 0,"
        f" lpad((i * 2654435761 % 1000000000000000000)::varchar, 19, '0') || repeat('x', 290), 1"
        f" from range({rows}) as g(i)){shuffled}"
    )
    cursor.execute("checkpoint")


@contextmanager
def _plain(folder: Path, rows: int, order: str, *, primary_key: bool) -> Iterator[duckdb.DuckDBPyConnection]:
    """A table without Syncline."""
    connection = duckdb.connect(str(folder / "plain.duckdb"), config=_SETTINGS)
    try:
        key = " primary key" if primary_key else ""
        connection.execute(
            f"create table t (id bigint{key}, customer bigint, status varchar, amount decimal(12,2),"
            f" created_at timestamptz, active boolean, note varchar, {_VERSION} bigint)"
        )
        _load(connection, "t", rows, order)
        yield connection
    finally:
        connection.close()


def _transaction(connection: duckdb.DuckDBPyConnection, *statements: str) -> Write:
    def write(batch: pa.RecordBatch) -> None:
        connection.register("b", pa.Table.from_batches([batch]))
        connection.execute("begin")
        for statement in statements:
            connection.execute(statement).fetchall()
        connection.execute("commit")

    return write


@contextmanager
def delete_insert(folder: Path, rows: int, order: str) -> Iterator[Write]:
    """Delete by a join on the key, then insert; no index."""
    with _plain(folder, rows, order, primary_key=False) as connection:
        yield _transaction(connection, "delete from t using b where t.id = b.id", "insert into t select * from b")


@contextmanager
def literals_insert(folder: Path, rows: int, order: str) -> Iterator[Write]:
    """Delete by a list of literals, then insert; no index."""
    with _plain(folder, rows, order, primary_key=False) as connection:

        def write(batch: pa.RecordBatch) -> None:
            keys = ",".join(map(str, batch.column(0).to_pylist()))
            _transaction(connection, f"delete from t where id in ({keys})", "insert into t select * from b")(batch)

        yield write


@contextmanager
def merge(folder: Path, rows: int, order: str) -> Iterator[Write]:
    """MERGE with the version guard; no index."""
    sets = ", ".join(f"{n} = b.{n}" for n in _NAMES)
    values = ", ".join(f"b.{n}" for n in _NAMES)
    with _plain(folder, rows, order, primary_key=False) as connection:
        yield _transaction(
            connection,
            f"merge into t using b on t.id = b.id when matched and b.{_VERSION} >= t.{_VERSION} then update set {sets}"
            f" when not matched then insert values ({values})",
        )


@contextmanager
def key_upsert(folder: Path, rows: int, order: str) -> Iterator[Write]:
    """INSERT ... ON CONFLICT on a primary key (an ART index)."""
    sets = ", ".join(f"{n} = excluded.{n}" for n in _NAMES[1:])
    with _plain(folder, rows, order, primary_key=True) as connection:
        yield _transaction(
            connection,
            f"insert into t select * from b on conflict (id) do update set {sets}"
            f" where excluded.{_VERSION} >= t.{_VERSION}",
        )


@contextmanager
def store(folder: Path, rows: int, order: str) -> Iterator[Write]:
    """Syncline's store: guard, tombstones, cursor."""
    path = folder / "store.duckdb"
    settings = DuckDBConfig(path=path, threads=2, wal_autocheckpoint="1GB", memory_limit="4GB", checkpoint_idle_s=0)
    opened = DuckDBStore(settings, "bench")
    opened.open("bench")
    opened.migrate(SCHEMA)
    opened.close()
    with duckdb.connect(str(path)) as connection:
        _load(connection, "t", rows, order)
    opened.open("bench")
    opened.migrate(SCHEMA)
    number = 0

    def write(batch: pa.RecordBatch) -> None:
        nonlocal number
        number += 1
        opened.apply(Work((TableWork(SCHEMA, Folded(batch)),), Cursor("bench", Position("log", number))))

    try:
        yield write
    finally:
        opened.close()


STRATEGIES = {
    "delete+insert": delete_insert,
    "literals+insert": literals_insert,
    "merge": merge,
    "primary key": key_upsert,
    "store": store,
}


def measure(strategy: str, rows: int, order: str, batches: Sequence[int], repeat: int) -> Iterator[Measured]:
    """The cells of one strategy, one table size and one order, in a folder that is removed behind them."""
    folder = Path(tempfile.mkdtemp(prefix="syncline-bench-"))
    try:
        with STRATEGIES[strategy](folder, rows, order) as write:
            random, version = np.random.default_rng(7), 1
            for batch in batches:
                walls, cpu = [], 0.0
                times = max(5, repeat // 4) if batch >= 20_000 else repeat
                for _ in range(times):
                    version += 1
                    ids = np.unique(random.integers(0, rows, batch))
                    changes = rows_at(random.permutation(ids), version)
                    started, before = time.perf_counter(), time.process_time()
                    write(changes)
                    walls.append((time.perf_counter() - started) * 1e3)
                    cpu += (time.process_time() - before) * 1e3
                walls.sort()
                p50, p95 = walls[times // 2], walls[int(times * 0.95)]
                yield Measured(strategy, rows, order, batch, round(p50, 1), round(p95, 1), round(cpu / times, 1))
    finally:
        shutil.rmtree(folder)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run it and print a table, or JSON lines."""
    parser = argparse.ArgumentParser(prog="python -m syncline.bench.duckdb_writes", description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, nargs="+", default=[1_000_000])
    parser.add_argument("--order", choices=("sorted", "random"), nargs="+", default=["sorted", "random"])
    parser.add_argument("--batch", type=int, nargs="+", default=list(BATCHES))
    parser.add_argument("--strategy", choices=list(STRATEGIES), nargs="+", default=list(STRATEGIES))
    parser.add_argument("--repeat", type=int, default=30, help="transactions a cell")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args(arguments)
    print(f"duckdb {duckdb.__version__}, pyarrow {pa.__version__}", file=sys.stderr)
    for rows in given.rows:
        for order in given.order:
            for strategy in given.strategy:
                for cell in measure(strategy, rows, order, given.batch, given.repeat):
                    print(json.dumps(asdict(cell)) if given.json else _line(cell), flush=True)
    return 0


def _line(cell: Measured) -> str:
    return (
        f"{cell.strategy:16} {cell.rows:>10,} {cell.order:7} {cell.batch:>6}"
        f"  p50 {cell.p50_ms:8.1f} ms  p95 {cell.p95_ms:8.1f} ms  cpu {cell.cpu_ms:8.1f} ms"
    )


if __name__ == "__main__":
    sys.exit(main())
