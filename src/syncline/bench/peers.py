"""Other programs that do the same: DuckDB's own postgres extension, ingestr and reladiff. Measured when installed.

``make peers`` installs them into ``.venv-peers``, where they have another DuckDB than ours, and reladiff,
which reads our files, into ``.venv-peers-diff``.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

from syncline.bench.accounting import Sampler
from syncline.bench.workload import COLUMNS, PUBLICATION, Source
from syncline.errors import Unavailable

__all__ = ["DuckDBExtension", "Ingestr", "Peers", "Reladiff"]

# Runs in the peers' environment, with its DuckDB; prints how long it took and the peak memory in kB.
_EXTENSION = """
import json, pathlib, resource, sys, time
import duckdb, duckdb_extension_postgres_scanner as package
dsn, path = sys.argv[1:]
found = sorted(pathlib.Path(package.__file__).parent.rglob("*.duckdb_extension"))
connection = duckdb.connect(path)
connection.execute(f"load '{found[-1]}'")
connection.execute("set enable_progress_bar = false")  # it would write to standard output
began = time.perf_counter()
connection.execute(f"attach '{dsn}' as source (type postgres, read_only)")
connection.execute("create table chunks as select * from source.public.chunks")
seconds = time.perf_counter() - began
rows = connection.execute("select count(*) from chunks").fetchone()[0]
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(json.dumps({"seconds": seconds, "rows": rows, "peak_rss_kb": peak, "version": duckdb.__version__}))
"""


class Peers:
    """The environment that ``make peers`` makes; ``folder`` may be missing."""

    def __init__(self, folder: Path = Path(".venv-peers")) -> None:
        self._folder = folder

    def extension(self) -> DuckDBExtension | None:
        """DuckDB with its extension, None if it is not installed."""
        python = self._folder / "bin" / "python"
        found = list(self._folder.glob("lib/python*/site-packages/duckdb_extension_postgres_scanner"))
        return DuckDBExtension(python) if python.exists() and found else None

    def ingestr(self) -> Ingestr | None:
        """The ingestr of the environment, else from the path, None if it is in neither."""
        own = self._folder / "bin" / "ingestr"
        found = str(own.resolve()) if own.exists() else shutil.which("ingestr")
        return Ingestr(found) if found else None

    def reladiff(self) -> Reladiff | None:
        """The reladiff of its environment, None if it is not installed."""
        program = self._folder.with_name(f"{self._folder.name}-diff") / "bin" / "reladiff"
        return Reladiff(program.absolute()) if program.exists() else None


class Reladiff:
    """``reladiff``: digests of segments of the key in both databases, halved down to where they differ."""

    def __init__(self, program: Path) -> None:
        self._program = program

    def version(self) -> str:
        """What it says of itself."""
        return subprocess.run(
            [str(self._program), "--version"], capture_output=True, text=True, check=False
        ).stdout.strip()

    def compare(self, source: Source) -> dict[str, Any]:
        """Seconds, rows that differ, and peak memory of comparing the table with the DuckDB copy.

        All columns but the floats: it rounds those to six digits, each database in its own way, and then reports rows
        that are equal.

        Raises:
            Unavailable: it failed.
        """
        columns = [part for name in COLUMNS[1:] if name != "score" for part in ("-c", name)]
        began = time.perf_counter()
        copy = f"duckdb://{source.folder / 'copy.duckdb'}"
        process = subprocess.Popen(
            [str(self._program), source.dsn, "chunks", copy, "chunks", "-k", "id", *columns, "--json"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, "COLUMNS": "1000000"},  # it breaks its lines
            text=True,
        )
        with Sampler(source.dsn, reladiff=process.pid) as sampler:
            out, err = process.communicate()
            seconds = time.perf_counter() - began
        if process.returncode:
            raise Unavailable(f"reladiff ended with code {process.returncode}: {_essence(err)}")
        keys = {json.loads(line)[1][0] for line in out.splitlines() if line.startswith("[")}
        return {"seconds": seconds, "differences": len(keys), "peak_rss": sampler.rss.get("reladiff", 0)}


class DuckDBExtension:
    """Full load by DuckDB itself."""

    def __init__(self, python: Path) -> None:
        self._python = python

    def load(self, source: Source) -> dict[str, Any]:
        """``create table as select`` of the whole table into a fresh file.

        Raises:
            Unavailable: it failed.
        """
        path = source.folder / "extension.duckdb"
        try:
            done = subprocess.run(
                [str(self._python), "-c", _EXTENSION, source.dsn, str(path)],
                capture_output=True,
                text=True,
                check=False,
            )
            if done.returncode:
                raise Unavailable(f"DuckDB's extension failed: {done.stderr.strip()[-500:]}")
            return dict(json.loads(done.stdout))
        finally:
            path.unlink(missing_ok=True)


class Ingestr:
    """``ingestr ingest --stream``: PostgreSQL's WAL to DuckDB. It fetches DuckDB's ADBC driver when it has none."""

    def __init__(self, program: str) -> None:
        self._program = program

    def version(self) -> str:
        """What it says of itself."""
        done = subprocess.run([self._program, "--version"], capture_output=True, text=True, check=False)
        return (done.stdout or done.stderr).strip()

    def stream(self, source: Source, rows: int, timeout_s: float = 900) -> dict[str, Any]:
        """Rows a second from the first write until it counts all of them as synced.

        ``source`` has an empty table. The place that ingestr confirms to the server moves ahead of what it has
        written, so its own counter is asked; and the rows are written while it streams, since it takes what is there
        before for a snapshot.

        Raises:
            Unavailable: it failed, or doesn't get there in time.
        """
        source.execute(f"create publication {PUBLICATION} for table public.chunks")
        port = _free_port()
        log = (source.folder / "ingestr.log").open("w+")
        process = subprocess.Popen(self._command(source, port), stdout=log, stderr=log)
        deadline = time.monotonic() + timeout_s

        def wait(fact: Callable[[dict[str, Any]], bool]) -> None:
            while not fact(_metrics(port)):
                if process.poll() is not None or time.monotonic() > deadline:
                    log.seek(0)
                    raise Unavailable(f"ingestr ended with code {process.poll()}: {_essence(log.read())}")
                time.sleep(0.05)

        try:
            with Sampler(source.dsn, ingestr=process.pid) as sampler:
                wait(lambda found: bool(found.get("ingestr_replication", {}).get("streaming")))
                began = time.perf_counter()
                source.fill(rows)
                wait(lambda found: int(found.get("ingestr_stream_rows_synced", 0)) >= rows)
                seconds = time.perf_counter() - began
        finally:
            process.kill()
            process.wait()
            log.close()
        return {
            "version": self.version(),
            "rows": rows,
            "seconds": round(seconds, 2),
            "rows_per_s": round(rows / seconds),
            "cpu_us_per_row": {name: round(used * 1e6 / rows, 2) for name, used in sampler.cpu.items()},
            "peak_rss_mb": round(sampler.rss.get("ingestr", 0) / 2**20),
        }

    def _command(self, source: Source, port: int) -> list[str]:
        uri = source.dsn.replace("postgresql://", "postgres+cdc://") + f"?publication={PUBLICATION}&sslmode=disable"
        return [
            *(self._program, "ingest", "--source-uri", uri, "--source-table", "public.chunks"),
            *("--dest-uri", f"duckdb:///{source.folder / 'ingestr.duckdb'}", "--dest-table", "main.chunks"),
            *("--yes", "--progress", "log", "--stream", "--metrics-addr", f"127.0.0.1:{port}"),
        ]


def _metrics(port: int) -> dict[str, Any]:
    """The process's counters; empty while it doesn't listen."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/debug/vars", timeout=5) as answer:
            return dict(json.load(answer))
    except OSError:
        return {}


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _essence(said: str) -> str:
    """The line that names the error, of a log that may end in a trace."""
    lines = [line for line in said.splitlines() if re.match(r"(Error|fatal error|SIG\w+|panic)", line)]
    return (lines[0] if lines else said.strip())[:300]
