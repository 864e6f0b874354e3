"""`syncline demo` and `bench`: their bodies are loaded when they are called, with all that they need."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from syncline.config import LoggingConfig
from syncline.service.logging import configure_logging
from syncline.service.session import session_of, talk

__all__ = ["PASS_ON", "bench", "demo"]

PASS_ON: dict[str, Any] = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}


def demo(
    context: typer.Context,
    name: Annotated[
        str, typer.Argument(help="Which one: shop, chunks, academy, analytics, cmdb or leaderboard.")
    ] = "shop",
    rows: Annotated[
        int | None, typer.Option(min=1, help="Row changes that the workload makes. [default: by the demo]")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="No live view; one JSON object at the end.")] = False,
    source: Annotated[
        str | None, typer.Option(help="stream: the chunks of chunks, as events that applications publish into Redis.")
    ] = None,
    keep: Annotated[bool, typer.Option("--keep", help="Keep the databases afterwards, and say where.")] = False,
) -> None:
    """Sync a real server live into its copies, from nothing, and compare them at the end.

    shop: into DuckDB. chunks: documents with embeddings into a graph, vectors and DuckDB at once. academy: concepts,
    learning paths, users and progress into a graph. analytics: pages of websites into DuckDB and Parquet files. cmdb:
    configuration items by triggers into a graph and a cache. leaderboard: members of Redis keys into PostgreSQL.
    """
    from syncline.demo import scenario
    from syncline.demo.run import run_demo

    debug = session_of(context).debug
    configure_logging(LoggingConfig(level="warning"), debug=debug)
    raise typer.Exit(run_demo(scenario(name, source), rows, as_json, keep, talk))


def bench(context: typer.Context) -> None:
    """Measure Syncline against other programs on the same rows; `syncline bench --help` lists the benchmarks."""
    from syncline.bench.cli import app

    configure_logging(LoggingConfig(level="warning"), debug=session_of(context).debug)
    app(args=context.args, prog_name="syncline bench")
