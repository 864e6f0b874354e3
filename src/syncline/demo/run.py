"""Running a demo: servers, existing rows, a workload, copies that follow it live, and a comparison by content."""

from __future__ import annotations

import json
import re
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
from rich.console import Console

from syncline.capture import Source
from syncline.capture.outbox.install import install
from syncline.config import Config, load_config
from syncline.demo.copies import Copies
from syncline.demo.damage import Hands, is_just
from syncline.demo.scenario import Doing, Scenario, Workload, client_of, members, transactions
from syncline.demo.view import View, view_for
from syncline.embedded import EmbeddedBolt, EmbeddedPostgres, EmbeddedValkey
from syncline.errors import SynclineError
from syncline.interrupts import interrupted_by_signals
from syncline.pipeline import SyncService
from syncline.service.figures import amount, span
from syncline.service.session import DIFFERENT, INTERRUPTED
from syncline.verify import Report, TableReport, verify
from syncline.verify.repair import repair
from syncline.verify.report import KINDS

__all__ = ["run_demo"]

_LOOK_EVERY_S = 0.25
_VARIABLE = re.compile(r"\$\{(\w+)(?::-([^}]*))?\}")


def run_demo(scenario: Scenario, rows: int | None, as_json: bool, keep: bool, console: Console) -> int:
    """Run the demo with a workload of ``rows`` row changes; the exit code: 0 equal, 4 not or not compared, 130 if it
    was interrupted. Talks on ``console``.

    ``as_json`` prints one object on stdout instead; ``keep`` leaves the databases' files and says where.

    Raises:
        SynclineError: a server did not start, or the engine failed.
    """
    folder = Path(tempfile.mkdtemp(prefix="syncline-demo-"))
    try:
        with interrupted_by_signals(), view_for(console, as_json=as_json) as view, ExitStack() as stack:
            found = _Demo(scenario, folder, rows or scenario.rows, view, stack).run()
        if as_json:
            sys.stdout.write(json.dumps(found, indent=2) + "\n")
        return DIFFERENT if found["differences"] or found["not_compared"] else 0
    except KeyboardInterrupt:
        console.print("Stopped.")
        return INTERRUPTED
    finally:
        if keep:
            console.print(f"Kept: {folder} (PostgreSQL's data in postgres/, the copies in data/).")
        else:
            shutil.rmtree(folder, ignore_errors=True)


@dataclass(frozen=True)
class _Demo:
    """``stack`` ends what the demo starts."""

    scenario: Scenario
    folder: Path
    rows: int
    view: View
    stack: ExitStack

    def run(self) -> dict[str, Any]:
        """All of it; the figures."""
        began = time.monotonic()
        given = self._servers()
        connection = self.stack.enter_context(psycopg.connect(given["DATABASE_URL"], autocommit=True))
        file = self._configure(given)
        config = load_config(file, variables_from={})
        workload = self._prepared(connection, config, given)
        service = SyncService(config, talk=lambda line: self.view.say(f"  {line}"))
        self.stack.callback(service.stop)
        source = config.source("main")
        self.stack.callback(source.close)
        loaded = self._load(service, source)
        for name, target in config.targets.items():
            if target.type == "duckdb":
                which = f" --target {name}" if len(config.targets) > 1 else ""
                self.view.say(f'Ask the copy while it runs: syncline query -c {file}{which} "show tables"')
        with Copies(config) as copies:
            applied = self._follow(service, workload, self._changing(given), copies, source)
            report = self._compare(config)
            for question, answer in self.scenario.ask(copies):
                self.view.say(f"{question}\n  {answer}")
            _arrive(service, source)
            self._show(service, copies, workload, source)
        figures = _figures(connection, workload, loaded, applied, report)
        self.view.say(_summary(figures))
        if self.scenario.damage and not figures["differences"] + figures["not_compared"]:
            service.stop()
            figures |= self._damaged(config)
        return figures | {"seconds": round(time.monotonic() - began, 2)}

    def _servers(self) -> dict[str, str]:
        """Start the servers of the demo; where they are, as the variables of its configuration."""
        self.view.say("Starting PostgreSQL ...")
        postgres = self.stack.enter_context(EmbeddedPostgres.start(self.folder / "postgres"))
        values = {"DATABASE_URL": postgres.dsn()}
        if "graph" in self.scenario.servers:
            self.view.say("Starting a graph database that speaks Bolt ...")
            graph = self.stack.enter_context(EmbeddedBolt.start(self.folder / "graph"))
            values |= {"NEO4J_URI": graph.uri, "NEO4J_DATABASE": graph.database}
            values["NEO4J_USER"], values["NEO4J_PASSWORD"] = graph.auth
        if "keys" in self.scenario.servers:
            self.view.say("Starting Valkey, which speaks the protocol of Redis ...")
            keys = self.stack.enter_context(EmbeddedValkey.start(self.folder / "keys", settings={"appendonly": "yes"}))
            values |= {"REDIS_URL": keys.url(), "EVERY_S": "1"}
        return values

    def _changing(self, given: Mapping[str, str]) -> Callable[[], AbstractContextManager[Doing]]:
        """How the workload changes something."""
        if self.scenario.of_members:
            return lambda: members(given["REDIS_URL"])
        return lambda: transactions(given["DATABASE_URL"])

    def _prepared(self, connection: psycopg.Connection[Any], config: Config, given: Mapping[str, str]) -> Workload:
        """The tables, filled, with the outbox of an application that has one, and what will happen to them."""
        self.view.say("Making tables and their first rows ...")
        if self.scenario.schema:
            connection.execute((self.scenario.files / self.scenario.schema).read_text())
        for source in config.sources.values():
            if source.events_from is not None:
                install(connection, source.events_from)
        existing = min(self.rows // 2, self.scenario.existing)
        if self.scenario.of_members:
            with client_of(given["REDIS_URL"]) as client:
                steps = self.scenario.fill(client, existing)
        else:
            with connection.transaction():
                steps = self.scenario.fill(connection, existing)
        return Workload(steps, self.scenario.largest)

    def _configure(self, servers: Mapping[str, str]) -> Path:
        """Write the example's configuration with its variables filled in; where."""
        values = {**servers, "DATA": str(self.folder / "data")}
        text = (self.scenario.files / self.scenario.config).read_text()
        (self.folder / "data").mkdir()
        file = self.folder / "syncline.yaml"
        file.touch(mode=0o600)  # it holds the graph's password
        file.write_text(_VARIABLE.sub(lambda found: values.get(found[1], found[2] or ""), text))
        return file

    def _load(self, service: SyncService, source: Source) -> dict[str, Any]:
        """Start, and wait until the existing rows are in the copies."""
        self.view.say("Loading the existing rows ...")
        began = time.monotonic()
        service.start()

        def look() -> None:
            self.view.load(service.status())

        _until(service, lambda s: s["state"] == "streaming", look)
        _arrive(service, source, look)
        look()
        rows = max(target["rows_applied"] for target in _targets(service).values())
        seconds = time.monotonic() - began
        self.view.say(f"  {amount(rows)} rows in {span(seconds)}")
        return {"initial_rows": rows, "initial_load_s": round(seconds, 2)}

    def _follow(
        self,
        service: SyncService,
        workload: Workload,
        changing: Callable[[], AbstractContextManager[Doing]],
        copies: Copies,
        source: Source,
    ) -> dict[str, Any]:
        """Run the workload to its end, looking at engine and copies meanwhile, and wait until all of it is applied."""
        what, how = self.scenario.words
        self.view.say(
            f"Changing {amount(self.rows)} {what}: inserts, updates, deletes, in {how} of 1 to "
            f"{amount(self.scenario.largest)} ..."
        )
        before = _targets(service)
        stop = threading.Event()
        failures: list[BaseException] = []
        thread = threading.Thread(
            target=_kept(workload.run, failures), args=(changing, self.rows, stop), name="workload"
        )
        began = time.monotonic()
        thread.start()
        try:
            while thread.is_alive():
                self._show(service, copies, workload)
                thread.join(_LOOK_EVERY_S)
            for failure in failures:
                raise failure
            written = time.monotonic() - began
            _arrive(service, source, lambda: self._show(service, copies, workload))
            seconds = time.monotonic() - began
            self._show(service, copies, workload, source)
        finally:
            stop.set()
            thread.join()
        return {
            "written_s": round(written, 2),
            "applied_s": round(seconds, 2),
            "targets": {name: _applied(target, before[name], seconds) for name, target in _targets(service).items()},
        }

    def _show(self, service: SyncService, copies: Copies, workload: Workload, source: Source | None = None) -> None:
        """With its ``source`` it is measured now how far the log is behind: the engine's own figure is of up to a
        second ago, when more was under way."""
        _raise_errors(service)
        status = service.status()["sources"]["main"]
        if source is not None:
            status["lag_bytes"] = source.lag(status["place"])
        self.view.show(status, self.scenario.look(copies), min(workload.rows, self.rows), self.rows)

    def _compare(self, config: Config, *, engine: type[SyncService] | None = None) -> Report:
        self.view.say("Comparing source and copies by content ...")
        report = verify(config, engine=engine)
        for table in report.tables:
            name = table.table if len(config.targets) == 1 else f"{table.target}: {table.table}"
            self.view.say(f"  {name:<36} {amount(table.rows):>12} rows  {_verdict(table)}")
        return report

    def _damaged(self, config: Config) -> dict[str, Any]:
        """Damage the copies by hand, find just that, and repair just that; the figures."""
        damage, hands = self.scenario.damage, Hands(config)
        self.view.say("Damaging the copies by hand, behind the engine's back:")
        for one in damage:
            one.do(hands)
            self.view.say(f"  {one.target}: {one.words}")
        found = self._compare(config, engine=SyncService)
        just = is_just(found, damage)
        self.view.say(f"  {_score(found)}; {'just what was done' if just else 'NOT WHAT WAS DONE'}.")
        self.view.say("Repairing what differs, each row as a change through the log ...")
        done = repair(config, engine=SyncService)
        for table in done.tables:
            counts = {"missing": table.missing, "different": table.different, "extra": table.extra}
            said = ", ".join(f"{amount(count)} {kind}" for kind, count in counts.items() if count)
            self.view.say(f"  {f'{table.target}: {table.table}':<36} {said or 'nothing'} repaired")
        self.view.say(f"  {_score(done.last)}.")
        written = done.written + done.removed
        return {
            "differences": done.last.differences + (not just) + (written != len(damage)),
            "not_compared": done.last.not_compared,
            "damage": {
                "done": len(damage),
                "found": found.differences,
                "just_that": just,
                "repaired": written,
                "score_before": found.consistency_score,
                "score_after": done.last.consistency_score,
            },
        }


def _figures(
    connection: psycopg.Connection[Any],
    workload: Workload,
    loaded: Mapping[str, Any],
    applied: Mapping[str, Any],
    report: Report,
) -> dict[str, Any]:
    version = connection.info.server_version
    for name, target in applied["targets"].items():
        compared = [table for table in report.tables if table.target == name]
        target["differences"] = sum(table.differences for table in compared)
        target["tables"] = {t.table: {"rows": t.rows, "differences": t.differences} for t in compared}
    return {
        "postgres": f"{version // 10000}.{version % 10000}",
        **loaded,
        "rows_written": workload.rows,
        "transactions": workload.transactions,
        "rows_per_s": round(workload.rows / applied["applied_s"], 1),
        **applied,
        "rows_compared": sum(t.rows for t in report.tables),
        "differences": report.differences,
        "not_compared": report.not_compared,
    }


def _score(report: Report) -> str:
    return f"score {report.consistency_score:.2f} %, {amount(report.differences)} differences"


def _unknown(tables: int) -> str:
    return f", and {amount(tables)} tables that were not compared" if tables else ""


def _verdict(table: TableReport) -> str:
    """Of a table that was not compared nothing is known, which must not read like equality."""
    if not table.compared:
        return f"NOT COMPARED: {table.state}"
    found = [f"{amount(count)} {kind.upper()}" for kind in KINDS if (count := getattr(table, kind))]
    found += [f"{len(table.columns)} COLUMNS DIFFER"] if table.columns else []
    return ", ".join(found) or "equal"


def _applied(target: Mapping[str, Any], before: Mapping[str, Any], seconds: float) -> dict[str, Any]:
    """What a target did in the time of the workload."""
    rows = target["rows_applied"] - before["rows_applied"]
    latencies = {name: target[name] for name in ("p50_ms", "p95_ms", "p99_ms")}
    return {"rows_applied": rows, "rows_per_s": round(rows / seconds, 1), **latencies}


def _summary(figures: Mapping[str, Any]) -> str:
    changes = f"{amount(figures['rows_written'])} row changes in {amount(figures['transactions'])} transactions"
    targets = figures["targets"].items()
    lines = [
        f"commit to visible{f' in {name}' if len(targets) > 1 else ''} p50 {span(of['p50_ms'] / 1000)}, "
        f"p95 {span(of['p95_ms'] / 1000)}, p99 {span(of['p99_ms'] / 1000)}"
        for name, of in targets
    ]
    where = "" if len(targets) == 1 else " into each of the copies"
    return (
        f"{changes}: {amount(figures['rows_per_s'])} rows/s{where}; {'; '.join(lines)}. "
        f"{amount(figures['differences'])} differences{_unknown(figures['not_compared'])}."
    )


def _kept(run: Callable[..., None], failures: list[BaseException]) -> Callable[..., None]:
    """A thread's body whose failure is raised by whoever waits for it."""

    def body(*arguments: Any) -> None:
        try:
            run(*arguments)
        except Exception as error:  # noqa: BLE001 - handed to the main thread, which raises it
            failures.append(error)

    return body


def _targets(service: SyncService) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = service.status()["sources"]["main"]["targets"]
    return found


def _until(
    service: SyncService, fact: Callable[[dict[str, Any]], bool], look: Callable[[], None] | None = None
) -> None:
    while not fact(service.status()["sources"]["main"]):
        _raise_errors(service)
        if look:
            look()
        time.sleep(0.02)


def _arrive(service: SyncService, source: Source, look: Callable[[], None] | None = None) -> None:
    """Wait until everything that was changed by now is in the copies."""
    number = source.number()
    if source.settings.database is None:
        with source.point("verify", lambda _: None) as point:  # behind a run, or all that is in the stream now
            number = point.number - 1
    source.advance()

    def passed(target: Mapping[str, Any]) -> bool:
        return target.get("through", 0) > target.get("base", 0) + number

    _until(service, lambda s: all(passed(target) for target in s["targets"].values()), look)


def _raise_errors(service: SyncService) -> None:
    errors: list[SynclineError] = service.errors()
    if errors:
        raise errors[0]
