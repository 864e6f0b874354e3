"""What the reliability tests share: engines in this process or in ones that may be killed, and the comparison.

The comparison asks both databases with queries of its own, PostgreSQL for the text of each value and DuckDB for its
column cast to the same text, so that no code of Syncline's stands between the two.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import duckdb
import psycopg
import yaml

from reliability.engine import reached
from servers import Database, eventually
from syncline.config import load_config
from syncline.errors import SynclineError
from syncline.pipeline import SyncService, housekeeping

# What is done now and then is done more often here.
housekeeping._EVERY_S = housekeeping._REFRESH_S = housekeeping._WATCH_S = 0.2

PROGRAM = Path(__file__).with_name("engine.py")
TABLES = (
    "select n.nspname, c.relname from pg_class c join pg_namespace n on n.oid = c.relnamespace"
    " where c.relkind in ('r', 'p') and c.relpersistence = 'p' and not c.relispartition"
    " and n.nspname not in ('syncline', 'syncline_outbox', 'syncline_triggers')"
    " and n.nspname not in ('pg_catalog', 'information_schema', 'pg_toast') order by 1, 2"
)
_NUMBERS = {
    "triggers": "syncline_triggers.sync_events_number_seq",
    "outbox": "syncline_outbox.sync_event_log_id_seq",
}


class Rig:
    """One source database, its configuration file, and the DuckDB files of its targets."""

    def __init__(self, database: Database, folder: Path, *, targets: tuple[str, ...] = ("main",), **settings: Any):
        folder.mkdir(exist_ok=True)
        self._source = settings.get("source", {})
        self.database = database
        self.folder = folder
        self.paths = {name: folder / f"{name}.duckdb" for name in targets}
        self.log = folder / "log"
        self.config = folder / "syncline.yaml"
        self.settings: dict[str, dict[str, Any]] = {
            "source": {
                "dsn": database.dsn,
                **({} if self.numbers else {"slot": f"slot_{database.name}"}),
                "heartbeat_s": 0.3,
                **self._source,
            },
            "log": {"path": str(self.log), "disk_reserve_bytes": 0, **settings.get("log", {})},
            "apply": {"retry_base_s": 0.02, "retry_max_s": 0.2, **settings.get("apply", {})},
            "targets": {
                name: {
                    "type": "duckdb",
                    "path": str(path),
                    "threads": 1,
                    "checkpoint_idle_s": 0,
                    "door": False,
                    **settings.get("target", {}),
                }
                for name, path in self.paths.items()
            },
            "logging": {"level": "error"},
        }
        self.write()

    def set(self, section: str, **values: Any) -> None:
        """Change settings for the next engine."""
        self.settings[section].update(values)
        self.write()

    def write(self) -> None:
        self.config.write_text(yaml.safe_dump(self.settings))

    @property
    def slot(self) -> str:
        return str(self.settings["source"]["slot"])

    @property
    def target(self) -> Path:
        return next(iter(self.paths.values()))

    @property
    def numbers(self) -> str:
        """The sequence that numbers events where they are polled, '' with a slot."""
        return _NUMBERS.get(self._source.get("type", ""), "")

    def now(self) -> int:
        """An LSN behind everything committed so far; what comes to it has seen all of it. (Polled, a number.)"""
        if self.numbers:
            if not self.database.value("select to_regclass(%s) is not null", self.numbers):
                return 1
            drawn = f"select 1 + case when is_called then last_value else 0 end from {self.numbers}"
            return int(self.database.value(drawn))
        return int(self.database.value("select (pg_current_wal_insert_lsn() - '0/0'::pg_lsn)::int8"))

    # ------------------------------------------------------------------------------------------ engines in this process

    @contextmanager
    def running(self, *, until_loaded: bool = True) -> Iterator[Engine]:
        """An engine in this process, stopped afterwards."""
        engine = Engine(self)
        engine.service.start()
        try:
            if until_loaded:
                engine.settle()
            yield engine
        finally:
            engine.service.stop()

    def sync(self) -> None:
        """Run an engine until its targets have everything."""
        with self.running():
            pass

    # ------------------------------------------------------------------------------------------------------ comparison

    def open(self, target: str | None = None) -> duckdb.DuckDBPyConnection:
        """The target's file, opened by itself."""
        return duckdb.connect(str(self.paths[target] if target else self.target))

    def difference(self, engine: Engine | None = None) -> str:
        """What differs between the source and any of the targets, empty if nothing does."""
        for name in self.paths:
            if engine is not None:
                with engine.session(name) as target:
                    found = difference(self.database, target)
            else:
                with self.open(name) as target:
                    found = difference(self.database, target)
            if found:
                return f"target {name}: {found}"
        return ""

    def rows(self, query: str, target: str | None = None) -> list[tuple[Any, ...]]:
        """Rows of a query at a target whose engine does not run."""
        with self.open(target) as connection:
            return connection.execute(query).fetchall()

    # ---------------------------------------------------------------------------------------------- the control schema

    def gaps(self, *, ever: bool = False) -> list[str]:
        """Codes of the gaps that are open, or that there ever were."""
        if not self.database.value("select to_regclass('syncline.sync_gaps') is not null"):
            return []
        where = "" if ever else " where resolved_at is null"
        return [str(r[0]) for r in self.database.execute(f"select code from syncline.sync_gaps{where} order by id")]

    def alerts(self, *, ever: bool = False) -> list[str]:
        """Codes of the alerts that are open, or that there ever were."""
        query = f"select code from syncline.sync_alerts{'' if ever else ' where resolved_at is null'} order by code"
        return [str(r[0]) for r in self.database.execute(query)]

    def letters(self) -> list[tuple[Any, ...]]:
        """The open dead letters: table and reason."""
        return self.database.execute(
            "select table_name, reason from syncline.sync_dead_letters where state = 'parked' order by id"
        )


class Engine:
    """A :class:`SyncService` in this process."""

    def __init__(self, rig: Rig) -> None:
        self.rig = rig
        self.talk: list[str] = []
        self.service = SyncService(load_config(rig.config), talk=self.talk.append)

    @property
    def source(self) -> Any:
        return self.service.sources["main"]

    def state(self) -> str:
        return str(self.service.status()["sources"]["main"]["state"])

    def targets(self) -> dict[str, dict[str, Any]]:
        found: dict[str, dict[str, Any]] = self.service.status()["sources"]["main"]["targets"]
        return found

    def settle(self, until: int | None = None, timeout_s: float = 30) -> None:
        """Wait until every target has what is committed by now, and nothing is being read again."""
        goal = self.rig.now() if until is None else until
        end: int | None = None  # of the log, when nothing was being read any more: what was read is applied behind that

        def settled() -> bool:
            nonlocal end
            status = self.service.status()["sources"]["main"]
            errors = [str(e) for e in self.service.errors()]
            if errors:
                raise RuntimeError(f"the engine ended: {errors}")
            assert status["state"] == "streaming", status
            if self.source.busy:
                end = None
                raise AssertionError("tables are being read")
            end = self.source.log.status().end if end is None else end
            for name, target in status["targets"].items():
                assert reached(self.source, target) >= goal, (goal, status)
                worker = self.source.targets[name].worker
                assert worker is not None, status
                assert worker.cursor.position.n >= end, (end, status)
                assert set(target["loaded"]) >= set(status["tables"]), status
            return True

        eventually(settled, timeout_s)

    def equal(self, timeout_s: float = 30) -> None:
        """Wait until everything is there, and compare."""
        self.settle(timeout_s=timeout_s)
        found = self.rig.difference(self)
        assert found == "", found

    @contextmanager
    def session(self, target: str = "main") -> Iterator[Any]:
        """A connection to the target's file, which only this process may open now."""
        with self.source.targets[target].store._db.session() as connection:
            yield connection

    def query(self, statement: str, target: str = "main") -> list[tuple[Any, ...]]:
        with self.session(target) as connection:
            rows: list[tuple[Any, ...]] = connection.execute(statement).fetchall()
            return rows


class Nursery:
    """Runs engines in processes of their own (see ``engine.py``), one at a time."""

    def __init__(self) -> None:
        folder = str(PROGRAM.parent.parent)
        environment = {**os.environ, "PYTHONPATH": folder, "PYTHONWARNINGS": "ignore"}
        self._process = subprocess.Popen(
            [sys.executable, str(PROGRAM)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, text=True
        )
        self._running: Child | None = None

    def close(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(30)
        self._process.stdout.close()

    def start(self, rig: Rig, *, point: str = "", nth: int = 1, until: int = 0) -> Child:
        """Begin a run: it ends at the n-th pass of ``point``, when it has ``until``, or when it is told to."""
        job = {"config": str(rig.config), "log": str(rig.folder / "engine.log"), "point": point, "nth": nth}
        assert self._running is None, "an engine runs"
        self._write({**job, "until": until})
        self._running = Child(self, int(self._read()["pid"]), rig)
        return self._running

    def ended(self) -> int:
        """Wait for the engine that runs; how it ended."""
        status = int(self._read()["status"])
        self._running = None
        return status

    def clear(self) -> None:
        """Kill the engine that still runs, if one does, and show what it said."""
        if self._running is not None:
            child, log = self._running, self._running.rig.folder / "engine.log"
            print(f"an engine was left that ended with {child.kill()}:\n{log.read_text()[-4000:]}")

    def run(self, rig: Rig, *, point: str = "", nth: int = 1) -> int:
        """A run to its end, by the point or with everything that is committed now at the targets; its exit code."""
        return self.start(rig, point=point, nth=nth, until=rig.now()).wait()

    def finish(self, rig: Rig) -> None:
        """A run that must bring everything to the targets."""
        code = self.run(rig)
        assert code == 0, f"the engine ended with {code}:\n{(rig.folder / 'engine.log').read_text()[-4000:]}"

    def _write(self, job: dict[str, Any]) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(job) + "\n")
        self._process.stdin.flush()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        answer: dict[str, Any] = json.loads(self._process.stdout.readline())
        return answer


class Child:
    """A running engine."""

    def __init__(self, nursery: Nursery, pid: int, rig: Rig) -> None:
        self.pid = pid
        self.rig = rig
        self._nursery = nursery

    def kill(self) -> int:
        """SIGKILL it, if it still lives; how it ended."""
        os.kill(self.pid, signal.SIGKILL)  # the nursery keeps the process id taken until the next run
        return self.wait()

    def terminate(self) -> int:
        os.kill(self.pid, signal.SIGTERM)
        return self.wait()

    def wait(self) -> int:
        return self._nursery.ended()


# ---------------------------------------------------------------------------------------------------------- comparison


def difference(database: Database, target: Any) -> str:
    """What differs in content between a source and a DuckDB connection: the first table that does, in words."""
    target.execute("set timezone = 'UTC'")
    with database.connect() as source:
        source.execute("set timezone = 'UTC'; set datestyle = 'ISO'; set extra_float_digits = 3")
        tables = source.execute(TABLES).fetchall()
        for namespace, table in tables:
            found = table_difference(source, target, namespace, table)
            if found:
                return f"table {namespace}.{table}: {found}"
    return ""


def table_difference(source: psycopg.Connection[Any], target: Any, namespace: str, table: str) -> str:
    """What differs in one table, empty if nothing does."""
    columns = source.execute(
        "select a.attname, t.typname from pg_attribute a join pg_type t on t.oid = a.atttypid"
        " where attrelid = %s::regclass and attnum > 0 and not attisdropped and attgenerated = '' order by attnum",
        [f"{_quote(namespace)}.{_quote(table)}"],
    ).fetchall()
    names = [_quote(name) for name, _ in columns]
    theirs = ", ".join(_source_text(n, kind) for n, (_, kind) in zip(names, columns, strict=True))
    ours = ", ".join(_target_text(n, kind) for n, (_, kind) in zip(names, columns, strict=True))
    wanted = source.execute(f"select {theirs} from {_quote(namespace)}.{_quote(table)}").fetchall()  # type: ignore[arg-type]
    where = "main" if namespace == "public" else namespace
    try:
        found = target.execute(f"select {ours} from {_quote(where)}.{_quote(table)}").fetchall()
    except (duckdb.CatalogException, duckdb.BinderException) as error:
        return f"not as at the source: {str(error).splitlines()[0]}"
    if sorted(map(repr, wanted)) == sorted(map(repr, found)):
        return ""
    lost, extra = set(map(repr, wanted)) - set(map(repr, found)), set(map(repr, found)) - set(map(repr, wanted))
    return (
        f"{len(wanted)} rows at the source, {len(found)} at the target; "
        f"{len(lost)} only at the source, such as {sorted(lost)[:2]}; "
        f"{len(extra)} only at the target, such as {sorted(extra)[:2]}"
    )


_FLOATS = ("float4", "float8")


def _source_text(name: str, kind: str) -> str:
    if kind in _FLOATS:
        return f"{name}::float8"
    if kind == "bytea":
        return f"encode({name}, 'hex')"
    if kind in ("bpchar", "inet"):
        return f"concat({name}) || case when {name} is null then null else '' end"
    return f"{name}::text"


def _target_text(name: str, kind: str) -> str:
    if kind in _FLOATS:
        return f"{name}::double"
    if kind == "bytea":
        return f"lower(hex({name}))"
    if kind in ("date", "timestamp", "timestamptz"):
        # PostgreSQL writes the era at the end, DuckDB behind the date and in parentheses.
        return f"regexp_replace({name}::varchar, '^(\\S+) \\(BC\\)(.*)$', '\\1\\2 BC')"
    return f"{name}::varchar"


def _quote(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def ended_with(error: type[SynclineError], engine: Engine) -> SynclineError:
    """Wait until the engine or a target ended with such an error; the error."""

    def found() -> SynclineError | None:
        return next((e for e in engine.service.errors() if isinstance(e, error)), None)

    ended = eventually(found)
    assert ended is not None
    return ended


def drop_slot(rig: Rig) -> None:
    """Drop the slot of an engine that has ended: its walsender may not have let go of it yet."""
    free = "select active_pid is null from pg_replication_slots where slot_name = %s"
    eventually(lambda: rig.database.value(free, rig.slot))
    rig.database.execute("select pg_drop_replication_slot(%s)", rig.slot)
