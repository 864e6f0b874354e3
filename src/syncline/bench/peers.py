"""Other programs that do the same: DuckDB's own postgres extension, and ingestr. Measured when they are installed.

``make peers`` installs them into ``.venv-peers``: they need another DuckDB than ours.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

from syncline.bench.accounting import Sampler
from syncline.bench.workload import PUBLICATION, Source
from syncline.errors import Unavailable

__all__ = ["DuckDBExtension", "Ingestr", "Peers"]

# Runs in the peers' environment, with its DuckDB; prints how long it took and the peak memory in kB.
_EXTENSION = """
import json, pathlib, resource, sys, time
import duckdb, duckdb_extension_postgres_scanner as package
dsn, path = sys.argv[1:]
found = sorted(pathlib.Path(package.__file__).parent.rglob("*.duckdb_extension"))
connection = duckdb.connect(path)
connection.execute(f"load '{found[-1]}'")
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
    """``ingestr ingest --stream``: PostgreSQL's WAL to DuckDB."""

    def __init__(self, program: str) -> None:
        self._program = program

    def version(self) -> str:
        """What it says of itself."""
        done = subprocess.run([self._program, "--version"], capture_output=True, text=True, check=False)
        return (done.stdout or done.stderr).strip().splitlines()[-1] if done.stdout or done.stderr else ""

    def stream(self, source: Source, rows: int, timeout_s: float = 900) -> dict[str, Any]:
        """Rows a second from a slot that is filled beforehand until it confirms the last of them.

        ``source`` has an empty table; ingestr makes its slot in a first run, then the rows are written.

        Raises:
            Unavailable: it failed, or doesn't get there in time.
        """
        source.execute(f"create publication {PUBLICATION} for table public.chunks")
        path = source.folder / "ingestr.duckdb"
        uri = source.dsn.replace("postgresql://", "postgres+cdc://") + f"?publication={PUBLICATION}&sslmode=disable"
        command = [
            *(self._program, "ingest", "--source-uri", uri, "--source-table", "public.chunks"),
            *("--dest-uri", f"duckdb:///{path}", "--dest-table", "main.chunks", "--yes", "--progress", "log"),
        ]
        first = subprocess.run(command, capture_output=True, text=True, check=False, timeout=timeout_s)
        if first.returncode:
            raise Unavailable(f"ingestr failed: {_said(first)}")
        filled = source.fill(rows)
        source.settle()
        slot = source.value("select slot_name from pg_replication_slots where database = current_database()")
        began = time.perf_counter()
        log = (source.folder / "ingestr.log").open("w+")
        process = subprocess.Popen([*command, "--stream", "--flush-interval", "1s"], stdout=log, stderr=log)
        try:
            with Sampler(source.dsn, slot, ingestr=process.pid) as sampler:
                while not self._confirmed(source, slot, filled.place):
                    if process.poll() is not None or time.perf_counter() - began > timeout_s:
                        log.seek(0)
                        raise Unavailable(f"ingestr did not get there: {log.read()[-500:]}")
                    time.sleep(0.02)
                seconds = time.perf_counter() - began
        finally:
            process.terminate()
            process.wait(60)
            log.close()
        return {
            "version": self.version(),
            "rows": rows,
            "seconds": round(seconds, 2),
            "rows_per_s": round(rows / seconds),
            "cpu_us_per_row": {name: round(used * 1e6 / rows, 2) for name, used in sampler.cpu.items()},
            "peak_rss_mb": round(sampler.rss.get("ingestr", 0) / 2**20),
        }

    @staticmethod
    def _confirmed(source: Source, slot: str, place: int) -> bool:
        return bool(
            source.value(
                "select confirmed_flush_lsn - '0/0'::pg_lsn > %s from pg_replication_slots where slot_name = %s",
                place,
                slot,
            )
        )


def _said(done: subprocess.CompletedProcess[str]) -> str:
    return (done.stderr.strip() or done.stdout.strip())[-500:]
