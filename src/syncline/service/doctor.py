"""`syncline doctor`: are the servers, the disk and the privileges as Syncline needs them, and if not, what mends it?"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from syncline.capture.preflight import preflight
from syncline.config import Config, TargetConfig, store_class
from syncline.errors import SynclineError, Unavailable
from syncline.finding import Finding, Severity
from syncline.service.figures import size
from syncline.service.session import control_schema, print_json, session_of, stdout, talk

__all__ = ["doctor", "findings"]

_MARK: dict[Severity, str] = {"ok": "ok      ", "info": "note    ", "warning": "warning ", "error": "ERROR   "}


def doctor(
    context: typer.Context, as_json: Annotated[bool, typer.Option("--json", help="As JSON on stdout.")] = False
) -> None:
    """Look at every server and folder that the configuration names, changing nothing, and say what to mend."""
    found = list(findings(session_of(context).config()))
    if as_json:
        names = ("code", "severity", "subject", "message", "remedy")
        print_json({"findings": [{name: getattr(f, name) for name in names} for f in found]})
    else:
        for finding in found:
            stdout.print(f"{_MARK[finding.severity]}{finding.subject}: {finding.message}")
            if finding.remedy:
                stdout.print(f"        {finding.remedy}")
    errors = [f for f in found if f.severity == "error"]
    warnings = sum(f.severity == "warning" for f in found)
    talk.print(f"{len(errors)} error(s), {warnings} warning(s).")
    raise typer.Exit(_code(errors))


def _code(errors: list[Finding]) -> int:
    """3 if all that is wrong is that a server is away, 2 if there is something to mend."""
    if not errors:
        return 0
    return 3 if all(f.code == Unavailable.code for f in errors) else 2


def findings(config: Config) -> Iterator[Finding]:
    """What is found, source by source and target by target, then the control schema and the log. Raises nothing."""
    for name, source in config.sources.items():
        try:
            yield from preflight(source, config.control.schema_name)
        except SynclineError as error:
            yield _failed(f"source {name}", error)
    for name, target in config.targets.items():
        yield from _target(f"target {name}", target)
    yield _control(config)
    yield from _log(config)


def _failed(subject: str, error: SynclineError) -> Finding:
    return Finding(error.code, "error", subject, error.message, error.remedy)


def _target(subject: str, target: TargetConfig) -> Iterator[Finding]:
    """What the store says of itself, if it is of a kind that can."""
    try:
        look = getattr(store_class(target.type), "check", None)
        if look is None:
            message = f"There is nothing to look at before a target of type {target.type} is opened."
            yield Finding("SL-TARGET", "info", subject, message)
            return
        yield from (replace(finding, subject=subject) for finding in look(target.store))
    except SynclineError as error:
        yield _failed(subject, error)


def _control(config: Config) -> Finding:
    subject = f"control schema {config.control.schema_name}"
    try:
        with control_schema(config) as control:
            if control.is_current():
                control.check()
                return Finding("SL-CONTROL", "ok", subject, "there and up to date.")
            there = control.version() is not None
            control.check_rights()
    except SynclineError as error:
        return _failed(subject, error)
    state, does = ("outdated", "updates") if there else ("not there yet", "creates")
    message = f"{state}; `syncline run` {does} it, or `syncline migrate` does now."
    return Finding("SL-CONTROL-NEW", "ok", subject, message)


def _log(config: Config) -> Iterator[Finding]:
    """The log's folder, or the nearest one above it that exists: writable, and with room for the budget?"""
    folder = Path(config.log.path).absolute()
    present = next(p for p in (folder, *folder.parents) if os.path.exists(p))  # Path.exists raises below a locked one
    subject = f"log {config.log.path}"
    if not present.is_dir() or not os.access(present, os.W_OK | os.X_OK):
        remedy = "Give the user that runs Syncline the right to write there, or set log.path."
        yield Finding("SL-LOG-WRITE", "error", subject, f"{present} can't be written.", remedy)
        return
    free = shutil.disk_usage(present).free
    wanted = config.log.max_bytes * len(config.sources) + config.log.disk_reserve_bytes
    if free < config.log.disk_reserve_bytes:
        message = f"only {size(free)} are free, less than the reserve of {size(config.log.disk_reserve_bytes)}."
        yield Finding("SL-LOG-DISK", "error", subject, message, "Free some space, or set log.path to another disk.")
    elif free < wanted:
        message = f"{size(free)} are free, but budget and reserve add up to {size(wanted)}."
        remedy = (
            "A target that is away for long would hold the source back early: free some space, or lower log.max_bytes."
        )
        yield Finding("SL-LOG-BUDGET", "warning", subject, message, remedy)
    else:
        yield Finding("SL-LOG", "ok", subject, f"writable, {size(free)} free.", "")
