"""`syncline bench`: the benchmarks as commands. Each prints a table, or one JSON object with ``--json``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from syncline.bench.report import Talk, show

__all__ = ["app"]

app = typer.Typer(
    name="bench",
    help="Measure Syncline against other programs on the same rows, in one run, on servers of its own.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
Folder = Annotated[
    Path | None,
    typer.Option(
        "--dir",
        metavar="FOLDER",
        exists=True,
        file_okay=False,
        writable=True,
        help="Where the servers and files go for the time of the run.",
    ),
]
Uri = Annotated[
    str | None,
    typer.Option(metavar="URI", help="An empty place on a server of yours instead, as the target's setting takes it."),
]
User = Annotated[str, typer.Option(help="Neo4j: the user there; the password is in NEO4J_PASSWORD.")]
Password = Annotated[str | None, typer.Option(envvar="NEO4J_PASSWORD", hidden=True)]
Pid = Annotated[
    int | None, typer.Option(help="The process of that server, if it runs here: its time is accounted for.")
]


@app.callback()
def together() -> None:
    """Keep the benchmarks commands of their own, however many there are."""


@app.command("wal-duckdb")
def wal(
    rows: Annotated[int, typer.Option(min=1, help="Rows (or changes) that wait in the slot.")] = 500_000,
    repeat: Annotated[int, typer.Option(min=1, help="Turns; medians are reported.")] = 3,
    mix: Annotated[
        bool, typer.Option("--mix", help="Half updates, a tenth deletes, at random keys of a loaded table.")
    ] = False,
    table_rows: Annotated[int, typer.Option(min=1, help="Rows of the loaded table of --mix.")] = 5_000_000,
    peer: Annotated[bool, typer.Option(help="Run ingestr on the same rows, if `make peers` installed it.")] = True,
    as_json: Json = False,
    folder: Folder = None,
) -> None:
    """A filled slot through the durable log to committed DuckDB rows, as a ratio to pg_recvlogical into nothing."""
    from syncline.bench.peers import Peers
    from syncline.bench.wal import Changes, wal_duckdb

    changes = Changes(rows, table_rows if mix else 0)
    show(wal_duckdb(changes, repeat, Peers() if peer else None, Talk(), folder), as_json=as_json)


@app.command("store")
def store(
    kind: Annotated[str, typer.Argument(metavar="TYPE", help="neo4j, qdrant, redis or postgres.")],
    rows: Annotated[int, typer.Option(min=1, help="Rows (or changes) that wait in the slot, in each turn.")] = 100_000,
    repeat: Annotated[int, typer.Option(min=1, help="Turns; medians are reported.")] = 3,
    mix: Annotated[
        bool, typer.Option("--mix", help="Half updates, a tenth deletes, at random keys of a loaded table.")
    ] = False,
    table_rows: Annotated[int, typer.Option(min=1, help="Rows of the loaded table of --mix.")] = 300_000,
    dimensions: Annotated[int, typer.Option(min=1, help="Qdrant: dimensions of the vector of each row.")] = 128,
    durable: Annotated[
        bool, typer.Option("--durable/--memory", help="Redis: with an append-only file, always synced, or with none.")
    ] = True,
    uri: Uri = None,
    user: User = "neo4j",
    password: Password = None,
    pid: Pid = None,
    as_json: Json = False,
    folder: Folder = None,
) -> None:
    """A filled slot to durable rows in a store, as a ratio to the best load of the same rows written by hand."""
    from syncline.bench.places import Address
    from syncline.bench.stores import Load
    from syncline.bench.stores import store as measure

    load = Load(rows, table_rows if mix else 0, dimensions, durable)
    address = Address(uri, user, password, pid) if uri else None
    show(measure(kind, load, repeat, address, Talk(), folder), as_json=as_json)


@app.command("latency")
def latency(
    target: Annotated[str, typer.Option(metavar="TYPE", help="Kind of store.")] = "duckdb",
    rate: Annotated[int, typer.Option(min=1, help="Single-row transactions a second.")] = 1_000,
    seconds: Annotated[int, typer.Option(min=1, help="How long, after a warm-up.")] = 30,
    table_rows: Annotated[int, typer.Option(min=1, help="Rows that the table has before.")] = 1_000_000,
    uri: Uri = None,
    user: User = "neo4j",
    password: Password = None,
    pid: Pid = None,
    as_json: Json = False,
    folder: Folder = None,
) -> None:
    """Commit-to-visible latency (p50, p95, p99) at a steady rate of single-row transactions."""
    from syncline.bench.latency import Steady
    from syncline.bench.latency import latency as measure
    from syncline.bench.places import Address

    address = Address(uri, user, password, pid) if uri else None
    show(measure(target, Steady(rate, seconds, table_rows), address, Talk(), folder), as_json=as_json)


@app.command("fanout")
def fanout(
    rows: Annotated[int, typer.Option(min=1, help="Rows that wait in the slot, in each turn.")] = 100_000,
    repeat: Annotated[int, typer.Option(min=1, help="Turns; medians are reported.")] = 3,
    rate: Annotated[int, typer.Option(min=1, help="Transactions a second of the steady stream.")] = 500,
    per_transaction: Annotated[int, typer.Option(min=1, help="Rows in each of them.")] = 20,
    seconds: Annotated[int, typer.Option(min=1, help="How long the stream lasts, after a warm-up.")] = 20,
    uri: Uri = None,
    user: User = "neo4j",
    password: Password = None,
    pid: Pid = None,
    as_json: Json = False,
    folder: Folder = None,
) -> None:
    """One source into a graph, vectors and DuckDB at once; and what a slow or a stopped graph costs the others."""
    from syncline.bench.fanout import Stream
    from syncline.bench.fanout import fanout as measure
    from syncline.bench.places import Address

    address = Address(uri, user, password, pid) if uri else None
    stream = Stream(rate, per_transaction, seconds)
    show(measure(rows, repeat, stream, address, Talk(), folder), as_json=as_json)


@app.command("load")
def load(
    rows: Annotated[int, typer.Option(min=1, help="Rows of the table.")] = 5_000_000,
    repeat: Annotated[int, typer.Option(min=1, help="Turns; medians are reported.")] = 3,
    as_json: Json = False,
    folder: Folder = None,
) -> None:
    """The initial load to committed rows, as a ratio to psql's copy to stdout; and DuckDB's own extension."""
    from syncline.bench.load import load as measure
    from syncline.bench.peers import Peers

    show(measure(rows, repeat, Peers(), Talk(), folder), as_json=as_json)


@app.command("big-transaction")
def transaction(
    rows: Annotated[int, typer.Option(min=1, help="Rows that the transaction inserts.")] = 5_000_000,
    memory_limit: Annotated[str, typer.Option(help="DuckDB's share of the memory: the target's setting.")] = "160MB",
    as_json: Json = False,
    folder: Folder = None,
) -> None:
    """One transaction of many rows: peak memory, time, and whether the copy is equal."""
    from syncline.bench.transaction import big_transaction

    show(big_transaction(rows, memory_limit, Talk(), folder), as_json=as_json)


@app.command("triggers")
def triggers(
    seconds: Annotated[int, typer.Option(min=1, help="How long each run takes.")] = 20,
    clients: Annotated[int, typer.Option(min=1, help="Connections that write at once.")] = 4,
    repeat: Annotated[int, typer.Option(min=1, help="Turns; medians are reported.")] = 3,
    as_json: Json = False,
    folder: Folder = None,
) -> None:
    """What capture by triggers costs the writer: pgbench with and without, and with NOTIFY."""
    from syncline.bench.triggers import triggers as measure

    show(measure(seconds, clients, repeat, Talk(), folder), as_json=as_json)


@app.command("outbox")
def outbox(
    events: Annotated[int, typer.Option(min=1, help="Events that wait, in each turn.")] = 50_000,
    rate: Annotated[int, typer.Option(min=1, help="Events a second that are published afterwards.")] = 2_000,
    per_transaction: Annotated[int, typer.Option(min=1, help="Events in each of their transactions.")] = 10,
    seconds: Annotated[int, typer.Option(min=1, help="How long they are, after a warm-up.")] = 10,
    repeat: Annotated[int, typer.Option(min=1, help="Turns; medians are reported.")] = 3,
    as_json: Json = False,
    folder: Folder = None,
) -> None:
    """Events of an outbox to committed DuckDB rows, through the slot and by polling: events a second, and latencies."""
    from syncline.bench.outbox import Events
    from syncline.bench.outbox import outbox as measure

    show(measure(Events(events, rate, per_transaction, seconds), repeat, Talk(), folder), as_json=as_json)


@app.command("verify")
def verify(
    target: Annotated[str, typer.Option(metavar="TYPE", help="Kind of store.")] = "duckdb",
    rows: Annotated[int, typer.Option(min=1, help="Rows of the table.")] = 1_000_000,
    differences: Annotated[int, typer.Option(min=1, help="Rows that are changed in the copy, evenly spread.")] = 1_000,
    repeat: Annotated[int, typer.Option(min=1, help="Turns; medians are reported.")] = 3,
    dimensions: Annotated[int, typer.Option(min=1, help="Qdrant: dimensions of the vector of each row.")] = 128,
    uri: Uri = None,
    user: User = "neo4j",
    password: Password = None,
    pid: Pid = None,
    as_json: Json = False,
    folder: Folder = None,
) -> None:
    """Verification of a copy, equal and with differences; of a DuckDB copy beside reladiff on the same tables."""
    from syncline.bench.peers import Peers
    from syncline.bench.places import Address
    from syncline.bench.verification import Copied, verification

    if differences > rows:
        raise typer.BadParameter("There are not so many rows.", param_hint="--differences")
    copied = Copied(target, rows, differences, dimensions)
    address = Address(uri, user, password, pid) if uri else None
    show(verification(copied, repeat, address, Peers(), Talk(), folder), as_json=as_json)


@app.command("verify-lag")
def verify_lag(
    target: Annotated[str, typer.Option(metavar="TYPE", help="Kind of store.")] = "duckdb",
    rate: Annotated[int, typer.Option(min=1, help="Single-row transactions a second.")] = 200,
    seconds: Annotated[int, typer.Option(min=1, help="How long each run takes, after a warm-up.")] = 30,
    table_rows: Annotated[int, typer.Option(min=1, help="Rows that the table has before.")] = 100_000,
    repeat: Annotated[int, typer.Option(min=1, help="Turns; medians are reported.")] = 3,
    uri: Uri = None,
    user: User = "neo4j",
    password: Password = None,
    pid: Pid = None,
    as_json: Json = False,
    folder: Folder = None,
) -> None:
    """What verification costs a pipeline: latencies without it, with one after the other, and with the rolling one."""
    from syncline.bench.latency import Steady
    from syncline.bench.places import Address
    from syncline.bench.verify_lag import verify_lag as measure

    address = Address(uri, user, password, pid) if uri else None
    show(measure(target, Steady(rate, seconds, table_rows), repeat, address, Talk(), folder), as_json=as_json)


@app.command("redis-diff")
def redis_members(
    members: Annotated[int, typer.Option(min=100, help="Members of the keys.")] = 1_000_000,
    repeat: Annotated[int, typer.Option(min=1, help="Turns; medians are reported.")] = 3,
    as_json: Json = False,
    folder: Folder = None,
) -> None:
    """Members of Redis keys compared with what was told before, a hundredth of them changed: time and peak memory."""
    from syncline.bench.redis_diff import redis_diff

    show(redis_diff(members, repeat, Talk(), folder), as_json=as_json)


@app.command("duckdb-writes", context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def writes(context: typer.Context) -> None:
    """Ways of writing into DuckDB, by table and batch size; options as `python -m syncline.bench.duckdb_writes`."""
    from syncline.bench.duckdb_writes import main

    raise typer.Exit(main(context.args))


if __name__ == "__main__":
    app()
