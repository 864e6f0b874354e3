"""`syncline demo`: a real PostgreSQL, filled, changed by a workload, synced live into DuckDB, and compared with it."""

from __future__ import annotations

import json
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import FrameType
from typing import Any

import psycopg
from rich.console import Console

from syncline.capture.wal import emit_progress
from syncline.config import Config, load_config
from syncline.embedded import EmbeddedPostgres
from syncline.errors import SynclineError
from syncline.pipeline import SyncService
from syncline.service.demo_view import View, view_for
from syncline.service.demo_workload import TABLES, Workload, create_shop
from syncline.service.figures import amount, span
from syncline.service.session import DIFFERENT, INTERRUPTED
from syncline.stores import STORES
from syncline.verify import Report, verify

__all__ = ["run_demo"]

_LOOK_EVERY_S = 0.125
_EXISTING = 250_000  # rows that are there before Syncline comes, at most
_CONFIGURATION = """\
source:
  dsn: {dsn}
target:
  type: duckdb
  path: {folder}/shop.duckdb
log:
  path: {folder}/log
"""


def run_demo(rows: int, as_json: bool, keep: bool, console: Console) -> int:
    """Run the demo with a workload of ``rows`` row changes; the exit code: 0 equal, 4 not, 130 if it
    was interrupted. Talks on ``console``.

    ``as_json`` prints one object on stdout instead; ``keep`` leaves the databases' files and says where.

    Raises:
        SynclineError: a server did not start, or the engine failed.
    """
    folder = Path(tempfile.mkdtemp(prefix="syncline-demo-"))
    try:
        with _ending_on_signals(), view_for(console, as_json=as_json) as view:
            found = _Demo(folder, rows, view).run()
        if as_json:
            sys.stdout.write(json.dumps(found, indent=2) + "\n")
        return DIFFERENT if found["differences"] else 0
    except KeyboardInterrupt:
        console.print("Stopped.")
        return INTERRUPTED
    finally:
        if keep:
            console.print(f"Kept: {folder} (PostgreSQL's data in postgres/, the copy in shop.duckdb).")
        else:
            shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _ending_on_signals() -> Iterator[None]:
    """SIGTERM cleans up as Ctrl-C does; and so does SIGINT where it was ignored when the process began."""

    def end(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, end) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@dataclass(frozen=True)
class _Demo:
    folder: Path
    rows: int
    view: View

    def run(self) -> dict[str, Any]:
        """All of it; the figures."""
        began = time.monotonic()
        with ExitStack() as stack:
            self.view.say("Starting PostgreSQL ...")
            server = stack.enter_context(EmbeddedPostgres.start(self.folder / "postgres"))
            connection = stack.enter_context(psycopg.connect(server.dsn(), autocommit=True))
            workload = create_shop(connection, min(self.rows // 2, _EXISTING))
            file = self.folder / "syncline.yaml"
            file.write_text(_CONFIGURATION.format(dsn=server.dsn(), folder=self.folder))
            config = load_config(file)
            service = SyncService(config, talk=lambda line: self.view.say(f"  {line}"))
            stack.callback(service.stop)
            loaded = self._load(service, connection)
            self.view.say(f'Ask the copy while it runs: syncline query -c {file} "from orders limit 5"')
            applied = self._follow(service, workload, config, connection)
            report = self._compare(config)
            _arrive(service, connection)
            with _reader(config) as reader:
                self._show(service, reader, workload, connection)
            return self._figures(connection, workload, loaded, applied, report) | {
                "seconds": round(time.monotonic() - began, 2)
            }

    def _load(self, service: SyncService, connection: psycopg.Connection[Any]) -> dict[str, Any]:
        """Start, and wait until the existing rows are in the copy."""
        self.view.say("Loading the existing rows ...")
        began = time.monotonic()
        service.start()

        def look() -> None:
            self.view.load(service.status())

        _until(service, lambda s: s["state"] == "streaming", look)
        _arrive(service, connection, look)
        look()
        target = _target(service)
        seconds = time.monotonic() - began
        self.view.say(f"  {amount(target['rows_applied'])} rows in {span(seconds)}")
        return {"initial_rows": target["rows_applied"], "initial_load_s": round(seconds, 2)}

    def _follow(
        self, service: SyncService, workload: Workload, config: Config, connection: psycopg.Connection[Any]
    ) -> dict[str, Any]:
        """Run the workload to its end, looking at engine and copy meanwhile, and wait until all of it is applied."""
        self.view.say(
            f"Changing {amount(self.rows)} rows: inserts, updates, deletes, in transactions of 1 to 4,000 ..."
        )
        before = _target(service)["rows_applied"]
        stop = threading.Event()
        dsn = config.sources["main"].dsn.get_secret_value()
        failures: list[BaseException] = []
        thread = threading.Thread(target=_kept(workload.run, failures), args=(dsn, self.rows, stop), name="workload")
        began = time.monotonic()
        thread.start()
        try:
            with _reader(config) as reader:
                while thread.is_alive():
                    self._show(service, reader, workload)
                    thread.join(_LOOK_EVERY_S)
                for failure in failures:
                    raise failure
                written = time.monotonic() - began
                _arrive(service, connection, lambda: self._show(service, reader, workload))
                seconds = time.monotonic() - began
                self._show(service, reader, workload, connection)
        finally:
            stop.set()
            thread.join()
        target = _target(service)
        applied = target["rows_applied"] - before
        return {
            "rows_applied": applied,
            "rows_per_s": round(applied / seconds, 1),
            **{name: target[name] for name in ("p50_ms", "p95_ms", "p99_ms")},
            "written_s": round(written, 2),
            "applied_s": round(seconds, 2),
        }

    def _show(
        self,
        service: SyncService,
        reader: Any,
        workload: Workload,
        connection: psycopg.Connection[Any] | None = None,
    ) -> None:
        """With a ``connection`` it is measured now how far the log is behind: the engine's own figure is of up to a
        second ago, when more was under way."""
        _raise_errors(service)
        status = service.status()["sources"]["main"]
        if connection is not None:
            row = connection.execute("select (pg_current_wal_lsn() - '0/0'::pg_lsn)::int8").fetchone()
            status["lag_bytes"] = max(0, row[0] - status["place"]) if row else status["lag_bytes"]
        counts = reader.query("select " + ", ".join(f"(select count(*) from {t}) as {t}" for t in TABLES))
        self.view.show(status, counts.to_pylist()[0], min(workload.rows, self.rows), self.rows)

    def _compare(self, config: Config) -> Report:
        self.view.say("Comparing both databases by content ...")
        report = verify(config)
        for table in report.tables:
            verdict = "equal" if not table.differences else f"{amount(table.differences)} DIFFERENCES"
            self.view.say(f"  {table.table:<20} {amount(table.rows):>12} rows  {verdict}")
        return report

    def _figures(
        self,
        connection: psycopg.Connection[Any],
        workload: Workload,
        loaded: dict[str, Any],
        applied: dict[str, Any],
        report: Report,
    ) -> dict[str, Any]:
        self.view.say(
            f"{amount(applied['rows_applied'])} row changes in {amount(workload.transactions)} transactions: "
            f"{amount(applied['rows_per_s'])} rows/s; commit to visible p50 {applied['p50_ms']} ms, "
            f"p95 {applied['p95_ms']} ms, p99 {applied['p99_ms']} ms. {amount(report.differences)} differences."
        )
        return {
            "postgres": str(connection.info.server_version // 10000) + f".{connection.info.server_version % 10000}",
            **loaded,
            "rows_written": workload.rows,
            "transactions": workload.transactions,
            **applied,
            "rows_compared": sum(t.rows for t in report.tables),
            "differences": report.differences,
            "tables": {t.table: {"rows": t.rows, "differences": t.differences} for t in report.tables},
        }


def _kept(run: Callable[..., None], failures: list[BaseException]) -> Callable[..., None]:
    """A thread's body whose failure is raised by whoever waits for it."""

    def body(*arguments: Any) -> None:
        try:
            run(*arguments)
        except Exception as error:  # noqa: BLE001 - handed to the main thread, which raises it
            failures.append(error)

    return body


def _reader(config: Config) -> Any:
    """What `syncline query` uses: the engine's query door."""
    target = config.targets["main"]
    module = import_module(STORES[target.type].partition(":")[0])
    return module.open_reader(getattr(target.store, "path"))  # noqa: B009 - a setting of the store's own class


def _target(service: SyncService) -> dict[str, Any]:
    found: dict[str, Any] = service.status()["sources"]["main"]["targets"]["main"]
    return found


def _until(
    service: SyncService, fact: Callable[[dict[str, Any]], bool], look: Callable[[], None] | None = None
) -> None:
    while not fact(service.status()["sources"]["main"]):
        _raise_errors(service)
        if look:
            look()
        time.sleep(0.02)


def _arrive(service: SyncService, connection: psycopg.Connection[Any], look: Callable[[], None] | None = None) -> None:
    """Wait until everything committed by now is in the copy."""
    lsn = emit_progress(connection)
    _until(service, lambda s: s["targets"]["main"].get("place", 0) >= lsn, look)


def _raise_errors(service: SyncService) -> None:
    errors: list[SynclineError] = service.errors()
    if errors:
        raise errors[0]
