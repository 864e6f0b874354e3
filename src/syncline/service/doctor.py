"""`syncline doctor`: are the servers, the disk and the privileges as Syncline needs them, and if not, what mends it?"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from syncline.capture import IN_USE
from syncline.config import Config, store_class
from syncline.errors import Gap, SynclineError, Unavailable
from syncline.finding import Finding, Severity
from syncline.log.embedded import EmbeddedLog
from syncline.log.folder import is_held
from syncline.pipeline.attach import choose_incarnation
from syncline.pipeline.plan import copy_reader
from syncline.service.figures import size
from syncline.service.mapped import mapping_findings
from syncline.service.session import control_schema, print_json, session_of, stdout, talk
from syncline.service.setup import schemas_of
from syncline.writable import nearest_present, obstacle

if TYPE_CHECKING:
    from syncline.catalog import ControlSchema

__all__ = ["doctor", "findings"]

T = TypeVar("T")
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


class _Missing(Finding):
    """Changes are known to be missing."""


def _code(errors: list[Finding]) -> int:
    """As `run` ends with the gravest of them: 2 if there is something to mend, 3 if a server is away, 4 for a gap."""
    codes = {4 if isinstance(f, _Missing) else 3 if f.code == Unavailable.code else 2 for f in errors}
    return min(codes, default=0)


def findings(config: Config) -> Iterator[Finding]:
    """What is found, source by source and target by target, then the control schema and the log. Raises nothing."""
    for one in config.overruled:
        yield Finding("SL-ENVIRONMENT", "warning", f"setting {one.setting}", one.message, one.remedy)
    away: set[str] = set()
    for name in config.sources:
        try:
            looked = config.source(name).preflight()
        except SynclineError as error:
            away.add(error.message)
            yield _failed(f"source {name}", error)
            continue
        missing = _gap(config, name, sound=not any(f.severity == "error" for f in looked))
        # A slot that is gone would be found fit to be created, one that another engine reads from to be ours.
        yield from (f for f in looked if not (missing and f.severity == "ok" and f.code == "SL-SLOT"))
        yield from missing
    for name in config.targets:
        yield from _target(config, name)
    yield from _parked(config)
    yield from mapping_findings(config)
    control = _control(config)
    if control.message not in away:  # by default it is the source's server, of which that is said
        yield control
    yield from _log(config)


def _gap(config: Config, name: str, *, sound: bool) -> list[Finding]:
    """The gaps of a source that are on record, and the one that the next run would find, with the error it ends in.

    Where the preflight of the source is not ``sound``, what keeps us from looking has been said.
    """
    gaps = _recorded(config, name)
    try:
        _refuse_gap(config, name)
    except Gap as error:
        gaps.setdefault((error.code, f"source {name}"), _finding(config, name, f"source {name}", error))
    except SynclineError as error:
        if error.code == IN_USE:
            gaps[error.code, ""] = Finding("SL-SLOT-BUSY", "error", f"source {name}", error.message, error.remedy)
        elif sound:
            gaps[error.code, ""] = _failed(f"source {name}", error)
    return list(gaps.values())


def _refuse_gap(config: Config, name: str) -> None:
    """Raise what the next run would find when it holds the log against the source, which is only looked at."""
    source, folder = config.source(name), config.log.folder(name)
    confirmed = source.reader()
    log = EmbeddedLog.peek(config.log, name)  # behind the stream, which never confirms what its own log lacks
    if confirmed is not None:
        if is_held(folder) and log is not None and 0 < confirmed <= log.place:
            return  # our engine, which has looked itself
        source.refuse_in_use()
    rows = _asked(config, lambda control: control.statuses())
    known = [row for row in rows if row["source"] == name and row["log"]]
    if log is None and known and any(_has_copy(config, name, target) for target in config.targets):
        raise Gap(
            f"The log of source {name} is gone: {folder}; {known[0]['log']} was its last.",
            remedy="Put it back, or run `syncline resync` to read the tables again.",
            code="SL-LOG-FOREIGN",
        )
    if log is not None and log.place:
        identity = source.identify()
        choose_incarnation(source, name, identity, EmbeddedLog.peek_incarnation(config.log, name), ())
        source.attach(identity, log.place, lambda _: None)  # only looks: the log has a place


def _has_copy(config: Config, source: str, target: str) -> bool:
    """Whether a target holds what a log brought it; also where that can't be seen."""
    if source not in config.followed_by(target):
        return False
    try:
        reader = copy_reader(config, target)
        if reader is None:
            return False
        with closing(reader):
            cursor = reader.cursor(source)
        return cursor is not None and bool(cursor.loaded)
    except SynclineError:
        return True


def _recorded(config: Config, name: str) -> dict[tuple[str, str], Finding]:
    """The gaps of the source that are open, by code and subject."""
    found: dict[tuple[str, str], Finding] = {}
    for gap in _asked(config, lambda control: control.gaps()):
        if gap["source"] == name:
            named = {"target": gap["target"], "table": gap["table_name"]}
            subject = ", ".join([f"source {name}", *(f"{kind} {which}" for kind, which in named.items() if which)])
            several = {"source": name} if len(config.sources) > 1 else {}
            scope = "".join(f" --{kind} {which}" for kind, which in (several | named).items() if which)
            error = Gap(
                gap["reason"], remedy=f"`syncline resync{scope}` reads again what is missing.", code=gap["code"]
            )
            found[gap["code"], subject] = _finding(config, name, subject, error)
    return found


def _asked(config: Config, what: Callable[[ControlSchema], list[T]]) -> list[T]:
    """What the control schema holds; nothing where it is away or not there, which is a finding of its own."""
    try:
        with control_schema(config) as control:
            return what(control) if control.version() is not None else []
    except SynclineError:
        return []


def _finding(config: Config, name: str, subject: str, error: Gap) -> Finding:
    heals = config.sources[name].on_gap == "resync"
    return _Missing(error.code, "warning" if heals else "error", subject, error.message, error.remedy)


def _failed(subject: str, error: SynclineError) -> Finding:
    return Finding(error.code, "error", subject, error.message, error.remedy)


def _target(config: Config, name: str) -> Iterator[Finding]:
    """What the store says of itself, if it is of a kind that can."""
    subject, target = f"target {name}", config.targets[name]
    try:
        store = store_class(target.type)
        look, offline = getattr(store, "check", None), getattr(store, "check_offline", None)
        if look is None:
            message = f"There is nothing to look at before a target of type {target.type} is opened."
            yield Finding("SL-TARGET", "info", subject, message)
            return
        looked = list(look(target.store))
        known = {finding.message for finding in looked}
        by_name = offline(target.store, schemas_of(config, name)) if offline is not None else ()
        looked += [finding for finding in by_name if finding.message not in known]
        yield from (replace(finding, subject=subject) for finding in looked)
    except SynclineError as error:
        yield _failed(subject, error)


def _parked(config: Config) -> Iterator[Finding]:
    """Tables with parked changes, and why most of them are."""
    for parked in _asked(config, lambda control: control.parked()):
        if parked.source in config.sources and (parked.of_source or parked.target in config.targets):
            subject = f"source {parked.source}" if parked.of_source else f"target {parked.target}"
            yield Finding("SL-PARKED", "warning", subject, parked.message, parked.remedy)


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
    folder = config.log.path.absolute()
    subject, reason = f"log {config.log.path}", obstacle(folder)
    if reason is not None:
        remedy = "Give the user that runs Syncline the right to write there, or set log.path."
        yield Finding("SL-LOG-WRITE", "error", subject, f"{reason}.", remedy)
        return
    free = shutil.disk_usage(nearest_present(folder)).free
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
