"""Attaching to a source: which tables, which incarnation, which log."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path

from syncline.capture import Identity, Source
from syncline.capture.preflight import refuse
from syncline.capture.tables import TableInfo
from syncline.change import Cursor
from syncline.errors import Damaged, Gap, Misconfigured
from syncline.finding import Finding
from syncline.log import Incarnation, Log
from syncline.log.damaged import DamagedLog
from syncline.log.embedded import EmbeddedLog, EmbeddedLogConfig
from syncline.pipeline.reports import Reports

__all__ = [
    "choose_incarnation",
    "open_log",
    "retire_log",
    "usable_tables",
]

# Findings about the whole source that nothing can be captured under. The others are about single tables, or may pass.
_DECISIVE = frozenset({"SL-SERVER-VERSION", "SL-STANDBY", "SL-WAL-LEVEL", "SL-PUBLICATION", "SL-TRIGGERS"})
# Names and patterns that meet no table: a slip of the pen when a source begins, a table that was dropped later.
_NO_TABLE = "SL-NO-TABLE"
_LEFT_OUT = "SL-TABLE-LEFT-OUT"


def usable_tables(source: Source, name: str, reports: Reports, *, begins: bool) -> list[TableInfo]:
    """The monitored tables that can be captured; the others get an alert and stop nobody (Guarantee 8).

    ``begins``: nothing was ever captured of this source, so a name that meets no table is refused, not alerted of.

    Raises:
        Misconfigured: the server or the publication can't serve, or there is no table.
    """
    findings = [f for f in source.preflight() if f.severity == "error"]
    refuse([f for f in findings if f.code in _DECISIVE or (begins and f.code == _NO_TABLE)])
    _tell_missing(name, {f.subject: f for f in findings if f.code == _NO_TABLE}, reports)
    reasons = {f.subject: f for f in findings}
    usable: list[TableInfo] = []
    left_out: dict[str, Misconfigured] = {}
    for info in source.tables():
        subject, finding = f"{name}/{info.qualified}", reasons.get(info.qualified)
        if any(other.qualified == info.qualified for other in usable):
            clash = Misconfigured(
                f"Two tables are called {info.qualified} here, for dots in names are not told apart; "
                f"{info.sql_name} is left out.",
                remedy="Rename one of them, or exclude it.",
            )
            left_out[f"{subject} (2)"] = clash
        elif finding is None:
            usable.append(info)
        else:
            text = f"Table {info.qualified} is left out. {finding.message}"
            left_out[subject] = Misconfigured(text, remedy=finding.remedy)
    if not usable:
        refuse(findings)  # which says what the alerts would
        raise Misconfigured(
            f"Source {name} has no table to capture.", remedy="Correct monitored_tables; `syncline doctor` shows more."
        )
    for subject, error in left_out.items():
        reports.alert(_LEFT_OUT, "error", subject, error)
    reports.still(_LEFT_OUT, f"{name}/", left_out)
    return usable


def _tell_missing(name: str, missing: dict[str, Finding], reports: Reports) -> None:
    for text, finding in missing.items():
        error = Misconfigured(f"{text}: {finding.message}", remedy=finding.remedy)
        reports.alert(_NO_TABLE, "warning", f"{name}/{text}", error)
    reports.still(_NO_TABLE, f"{name}/", {f"{name}/{text}" for text in missing})


def choose_incarnation(
    source: Source,
    name: str,
    identity: Identity,
    current: Incarnation | None,
    cursors: Iterable[Cursor | None],
) -> Incarnation:
    """The log's incarnation if this is still the same source; for a new log one whose versions are above every version
    that a target ever had (correctness rule 1).

    Raises:
        Gap: the source is another server than the log's, or a promoted one.
    """
    if current is not None:
        was = (current.system_identifier, current.timeline, current.database)
        if was == (identity.system_identifier, identity.timeline, identity.stream):
            return current
        raise Gap(
            f"Source {name} is not the server that the log was captured from: it is system "
            f"{_named(identity.system_identifier, identity.timeline, identity.stream)}, the log has {_named(*was)}.",
            remedy="If that is meant to be, run `syncline resync`; else correct source.dsn.",
            code="SL-SOURCE-CHANGED",
        )
    known = [c for c in cursors if c is not None]
    number, base = 1, 0
    if known:
        newest = max(c.version for c in known)
        number, base = max((c.incarnation, c.base) for c in known)
        same = all(c.system_identifier == identity.system_identifier for c in known)
        if not same or base + source.number() <= newest:
            number, base = number + 1, newest + 1
    return Incarnation(number, identity.system_identifier, identity.timeline, identity.stream, base)


def _named(system_identifier: str, timeline: int, stream: str) -> str:
    return f"{system_identifier} timeline {timeline} database {stream}"


def open_log(config: EmbeddedLogConfig, name: str) -> Log:
    """The log of a source; for one that can't be opened for its damage, a log that says so to whoever uses it.

    Raises:
        Misconfigured, Unavailable: as :class:`~syncline.log.embedded.EmbeddedLog` says.
    """
    try:
        return EmbeddedLog(config, name)
    except Damaged as error:
        return DamagedLog(error)


def retire_log(folder: Path) -> None:
    """Put a log aside: its damage may want to be looked at. The one put aside before is let go."""
    aside = folder.with_name(folder.name + ".retired")
    shutil.rmtree(aside, ignore_errors=True)
    if folder.exists():
        folder.rename(aside)
