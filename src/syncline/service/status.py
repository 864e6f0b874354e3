"""`syncline status`: how far everything is, whether or not the engine runs.

It reads what the engine left in the control schema, the log's own files, and the source's stream: for the WAL, its
slot. What can't be read says so, and decides the exit code; the rest is shown all the same.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Annotated, Any

import typer
from rich.console import Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from syncline.capture import Source
from syncline.catalog.verified import VerifiedTables
from syncline.config import Config
from syncline.errors import Misconfigured, SynclineError
from syncline.log.embedded import EmbeddedLog
from syncline.log.folder import is_held
from syncline.service.figures import amount, size, source_line, span
from syncline.service.session import DIFFERENT, control_schema, exit_code, print_json, session_of, stdout, tell_error

__all__ = ["collect", "status"]

_FRESH_S = 10.0  # the engine writes its status every second


def status(
    context: typer.Context,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON on stdout.")] = False,
    watch: Annotated[bool, typer.Option("--watch", help="Keep looking until Ctrl-C.")] = False,
    every_s: Annotated[float, typer.Option("--every", min=0.2, metavar="SECONDS", help="How often to look.")] = 1.0,
) -> None:
    """Show sources, slots, logs and targets: how far they are, and what is wrong. Exit code 4: an open gap, a failed
    target or a critical alert."""
    config = session_of(context).config()
    if not watch:
        _show_once(config, as_json=as_json)
        return
    try:
        _keep_looking(config, every_s, as_json=as_json)
    except KeyboardInterrupt:
        raise typer.Exit(0) from None


def _show_once(config: Config, *, as_json: bool) -> None:
    """Show what is known, then end with the gravest of what is wrong, or kept the rest from being seen."""
    failures: list[SynclineError] = []
    found = collect(config, failures)
    if as_json:
        print_json(found)
    else:
        stdout.print(_view(found, errors=False))
    for failure in {failure.message: failure for failure in reversed(failures)}.values():
        tell_error(failure)  # one server that is away keeps several things from being seen
    codes = [exit_code(failure) for failure in failures] + ([DIFFERENT] if _wrong(found) else [])
    raise typer.Exit(min(codes, default=0))


def _wrong(found: dict[str, Any]) -> bool:
    """Whether changes are known to be missing, or something waits for a person."""
    control, sources = found["control"], found["sources"].values()
    states = {s["state"] for s in sources} | {t["state"] for s in sources for t in s["targets"].values()}
    critical = any(alert["severity"] == "critical" for alert in control.get("alerts", ()))
    return critical or bool(control.get("gaps")) or not states.isdisjoint({"gap", "failed"})


def _keep_looking(config: Config, every_s: float, *, as_json: bool) -> None:
    if as_json:
        while True:
            print_json(collect(config))
            time.sleep(every_s)
    if not stdout.is_terminal:
        _keep_telling(config, every_s)
    with Live(_view(collect(config)), console=stdout, auto_refresh=False, vertical_overflow="visible") as live:
        while True:
            time.sleep(every_s)
            live.update(_view(collect(config)), refresh=True)


def _keep_telling(config: Config, every_s: float) -> None:
    """For files and pipes: a line for each source, and what is wrong when that changes."""
    told: list[str] = []
    while True:
        found = collect(config)
        notes = _all_notes(found)
        lines = [source_line(name, source) for name, source in found["sources"].items()]
        for line in [*lines, *(note for note in notes if note not in told)]:
            stdout.print(line)
        sys.stdout.flush()
        told = notes
        time.sleep(every_s)


def collect(config: Config, failures: list[SynclineError] | None = None) -> dict[str, Any]:
    """Everything known about the sources and targets of a configuration, as JSON-able values. Raises nothing.

    What can't be read has its error in its place; ``failures`` gets them all.
    """
    failures = [] if failures is None else failures
    control = _control(config, failures)
    rows = control.pop("statuses", [])
    sources = {}
    for name in config.sources:
        silent = _state_without_words(config, name, known="error" not in control)
        sources[name] = _source(config, name, [r for r in rows if r["source"] == name], silent, failures)
        for target, of in sources[name]["targets"].items():
            of["verified"] = _verified(control.get("verified", []), name, target)
    return {"sources": sources, "control": control}


def _state_without_words(config: Config, name: str, *, known: bool) -> str:
    """What the log's lock tells of an engine that says nothing; where neither it nor the control schema does, nobody
    knows."""
    folder = config.log.folder(name)
    held = is_held(folder)
    if held:
        return "running"
    return "not running" if held is False and (known or folder.exists()) else "unknown"


def _failed(error: SynclineError, failures: list[SynclineError]) -> dict[str, Any]:
    failures.append(error)
    return {"error": str(error)}


def _control(config: Config, failures: list[SynclineError]) -> dict[str, Any]:
    try:
        with control_schema(config) as control:
            if control.version() is None:  # no engine ran yet, which is no error
                return {"exists": False, "alerts": [], "gaps": [], "pauses": [], "parked": {}, "parked_tables": []}
            return {
                "exists": True,
                "statuses": control.statuses(),
                "alerts": control.alerts(),
                "gaps": control.gaps(),
                "verified": _verified_tables(config),
                "pauses": [
                    {"source": p.source, "target": p.target, "table": p.table_name, "resumed": p.resumed_at is not None}
                    for p in control.pauses()
                ],
                "parked": {f"{s}/{t}": n for (s, t), n in control.dead_letter_counts().items()},
                "parked_tables": [
                    {
                        "source": p.source,
                        "target": p.target,
                        "table": p.table_name,
                        "changes": p.changes,
                        "reason": p.reason,
                        "message": p.message,
                    }
                    for p in control.parked()
                ],
            }
    except SynclineError as error:
        return _failed(error, failures)


def _verified_tables(config: Config) -> list[dict[str, Any]]:
    """The latest comparison of each table at each target; none in a control schema that is older than they are."""
    try:
        with VerifiedTables(config.control_dsn, config.control.schema_name) as verified:
            found = verified.all()
    except Misconfigured:
        return []
    return [{**row, **{n: _moment(row[n]) for n in ("verified_at", "compared_at")}} for row in found]


def _moment(at: datetime | None) -> str | None:
    return None if at is None else at.isoformat()


def _verified(rows: list[dict[str, Any]], source: str, target: str) -> dict[str, Any]:
    """How many of the target's tables were ever compared, how many of them were equal the last time, and how long ago
    the one was compared that was so first."""
    mine = [row for row in rows if (row["source"], row["target"]) == (source, target)]
    ages = [(datetime.now(UTC) - datetime.fromisoformat(row["compared_at"])).total_seconds() for row in mine]
    equal = sum(not row["differences"] for row in mine)
    return {"tables": len(mine), "equal": equal, "oldest_s": round(max(ages), 1) if ages else None}


_FOREIGN = "an engine with another log folder reports to this control schema, as this source"


def _source(
    config: Config, name: str, rows: list[dict[str, Any]], silent: str, failures: list[SynclineError]
) -> dict[str, Any]:
    """One source: the engine's own words while they are fresh, its log's and stream's in any case. ``silent``: its
    state where it says nothing."""
    capture = next((r for r in rows if not r["target"]), {})
    running = bool(rows) and capture.get("age_s", _FRESH_S) < _FRESH_S
    log = _log(config, name, failures)
    if rows and log.get("log") not in (None, capture.get("log")):
        # The folder's own log says more of this engine than the words of one that has another.
        rows, capture, running = [], {"message": _FOREIGN}, False
    source = config.source(name)
    targets: dict[str, Any] = {t: {"state": "unknown"} for t in config.targets if name in config.followed_by(t)}
    silent_target = "unknown" if silent == "running" else silent
    for target, cursor in log.get("cursors", {}).items():
        if target in targets:
            targets[target] = {"state": silent_target, "cursor": cursor}
    for row in rows:
        if row["target"] in targets and not row["table_name"]:
            targets[row["target"]] = _target(row, running, silent_target)
    place = log.get("place") or capture.get("place")
    stream, behind = _stream(source, place, failures)
    return {
        "state": capture.get("state", "unknown") if running else silent,
        "message": capture.get("message", ""),
        "place": place,
        "lag_bytes": behind if behind is not None else capture.get("lag_bytes"),
        "seen_as": source.seen_as,
        source.seen_as: stream,
        "log": log,
        "targets": targets,
    }


def _target(row: dict[str, Any], running: bool, silent: str) -> dict[str, Any]:
    return {
        "state": row["state"] if running else silent,
        "message": row["message"],
        "cursor": row["n"],
        "place": row["place"],
        "rows_applied": row["rows_applied"],
        "rows_per_s": row["rows_per_s"] if running else None,
        "lag_s": row["lag_s"] if running else None,
        "age_s": row["age_s"],
    }


def _log(config: Config, name: str, failures: list[SynclineError]) -> dict[str, Any]:
    try:
        found = EmbeddedLog.peek(config.log, name)
    except SynclineError as error:
        return _failed(error, failures)
    if found is None:
        return {}
    return {
        "log": found.log,
        "head": found.head,
        "end": found.end,
        "place": found.place,
        "size_bytes": found.size_bytes,
        "entries": found.entries,
        "cursors": found.cursors,
    }


def _stream(source: Source, place: int | None, failures: list[SynclineError]) -> tuple[dict[str, Any], int | None]:
    """The stream as its server shows it, or why it can't be asked; how many bytes the log is behind it."""
    try:
        seen = source.look(place)
    except SynclineError as error:
        return {**source.unseen(), **_failed(error, failures)}, None
    return {**seen.facts, "words": seen.words, "retained_bytes": seen.retained}, seen.behind


def _view(found: dict[str, Any], *, errors: bool = True) -> RenderableType:
    sources = Table(
        "source", "state", "behind", "stream", "retained", "log", box=None, header_style="bold", pad_edge=False
    )
    titles = ("target", "source", "state", "cursor", "rows", "rows/s", "lag", "verified")
    targets = Table(*titles, box=None, header_style="bold")
    targets.pad_edge = False
    for name, source in found["sources"].items():
        stream, log = source[source["seen_as"]], source["log"]
        sources.add_row(
            name,
            source["state"],
            size(source["lag_bytes"]),
            "not reachable" if "error" in stream else stream["words"],
            size(stream.get("retained_bytes")),
            f"{size(log.get('size_bytes'))}, {amount(log.get('entries'))} entries"
            if log.get("entries") is not None
            else "-",
        )
        for target, t in source["targets"].items():
            figures = (amount(t.get("cursor")), amount(t.get("rows_applied")), amount(t.get("rows_per_s")))
            targets.add_row(target, name, t["state"], *figures, span(t.get("lag_s")), _equal(t["verified"]))
    notes = _all_notes(found, errors=errors)
    # On a terminal what to do about it is wrapped; a pipe gets whole lines.
    wrapped: dict[str, Any] = {"overflow": "fold", "no_wrap": False} if stdout.is_terminal else {}
    lines = (Text(note, **wrapped) for note in notes)
    return Group(sources, Text(), targets, *([Text()] if notes else []), *lines)


def _equal(verified: dict[str, Any]) -> str:
    if not verified["tables"]:
        return "-"
    return f"{verified['equal']} of {verified['tables']} equal, {span(verified['oldest_s'])} ago"


def _all_notes(found: dict[str, Any], *, errors: bool = True) -> list[str]:
    """What is wrong, a line each, and once: what an alert says, with what to do, needs no other line."""
    notes: list[str] = []
    said = [alert["message"] for alert in found["control"].get("alerts", ())]
    for name, source in found["sources"].items():
        notes += [
            f"{target}: {t['message']}" for target, t in source["targets"].items() if _is_news(t.get("message"), said)
        ]
        notes += [f"{name}: {source['message']}"] if _is_news(source["message"], said) else []
        notes += [
            f"{name}: {one['error']}" for one in (source[source["seen_as"]], source["log"]) if errors and "error" in one
        ]
    if errors or "error" not in found["control"]:
        notes += _notes(found["control"])
    return notes


def _is_news(message: str | None, said: Sequence[str]) -> bool:
    return bool(message) and not any(known in str(message) for known in said)


def _notes(control: dict[str, Any]) -> list[str]:
    if "error" in control:
        return [f"control schema: {control['error']}"]
    if not control["exists"]:
        return ["control schema: not there yet; `syncline run` creates it"]
    notes = [f"gap: {g['source']} {g['target']} {g['table_name']}: {g['reason']}" for g in control["gaps"]]
    # Of parked changes the lines below know the number of this moment.
    parked = ("SL-PARKED", "SL-PERIODIC-ASIDE")
    notes += [f"{a['severity']}: {a['message']} {a['remedy']}" for a in control["alerts"] if a["code"] not in parked]
    notes += [
        f"paused: {' '.join(p[k] for k in ('source', 'target', 'table') if p[k]) or 'everything'}"
        + (" (resumed, catching up)" if p["resumed"] else "")
        for p in control["pauses"]
    ]
    return notes + [f"parked: {p['message']}" for p in control["parked_tables"]]
