"""Attaching to a source: which tables, which incarnation, which slot. Functions over one connection."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import psycopg

from syncline.capture.preflight import preflight, refuse
from syncline.capture.slot import Identity, check_slot, create_slot, drop_slot, format_lsn, read_slot, refuse_in_use
from syncline.capture.source import SourceConfig
from syncline.capture.tables import TableInfo, matching_tables
from syncline.change import Cursor
from syncline.errors import Damaged, Gap, Misconfigured
from syncline.finding import Finding
from syncline.log import Incarnation, Log
from syncline.log.damaged import DamagedLog
from syncline.log.embedded import EmbeddedLog, EmbeddedLogConfig
from syncline.pipeline.reports import Reports

__all__ = [
    "SOURCE_OLDER",
    "attach_slot",
    "choose_incarnation",
    "open_log",
    "retire_log",
    "retire_slot",
    "usable_tables",
]

SOURCE_OLDER = "SL-SOURCE-OLDER"

# Findings about the whole source that nothing can be captured under. The others are about single tables, or may pass.
_DECISIVE = frozenset({"SL-SERVER-VERSION", "SL-STANDBY", "SL-WAL-LEVEL", "SL-PUBLICATION"})
# Names and patterns that meet no table: a slip of the pen when a source begins, a table that was dropped later.
_NO_TABLE = "SL-NO-TABLE"
_LEFT_OUT = "SL-TABLE-LEFT-OUT"


def usable_tables(
    connection: psycopg.Connection[Any],
    name: str,
    settings: SourceConfig,
    control_schema: str,
    reports: Reports,
    *,
    begins: bool,
) -> list[TableInfo]:
    """The monitored tables that can be captured; the others get an alert and stop nobody (Guarantee 8).

    ``begins``: nothing was ever captured of this source, so a name that meets no table is refused, not alerted of.

    Raises:
        Misconfigured: the server or the publication can't serve, or there is no table.
    """
    findings = [f for f in preflight(settings, control_schema) if f.severity == "error"]
    refuse([f for f in findings if f.code in _DECISIVE or (begins and f.code == _NO_TABLE)])
    _tell_missing(name, {f.subject: f for f in findings if f.code == _NO_TABLE}, reports)
    reasons = {f.subject: f for f in findings}
    usable: list[TableInfo] = []
    left_out: dict[str, Misconfigured] = {}
    for info in matching_tables(connection, settings.monitored_tables, settings.excluded_tables, (control_schema,)):
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
    connection: psycopg.Connection[Any],
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
        was = Identity(current.system_identifier, current.timeline, current.database)
        if was == identity:
            return current
        raise Gap(
            f"Source {name} is not the server that the log was captured from: it is system "
            f"{_named(identity)}, the log has {_named(was)}.",
            remedy="If that is meant to be, run `syncline resync`; else correct source.dsn.",
            code="SL-SOURCE-CHANGED",
        )
    known = [c for c in cursors if c is not None]
    row = connection.execute("select (pg_current_wal_lsn() - '0/0'::pg_lsn)::int8").fetchone()
    number, base = 1, 0
    if known and row is not None:
        newest = max(c.version for c in known)
        number, base = max((c.incarnation, c.base) for c in known)
        same = all(c.system_identifier == identity.system_identifier for c in known)
        if not same or base + int(row[0]) <= newest:
            number, base = number + 1, newest + 1
    return Incarnation(number, identity.system_identifier, identity.timeline, identity.database, base)


def _named(identity: Identity) -> str:
    return f"{identity.system_identifier} timeline {identity.timeline} database {identity.database}"


def attach_slot(
    connection: psycopg.Connection[Any],
    settings: SourceConfig,
    identity: Identity,
    durable: int,
    talk: Callable[[str], None],
) -> int:
    """Make sure that the slot is there and continues behind ``durable``, the log's last place (0: none); returns the
    place from which it streams.

    Raises:
        Gap: see :func:`~syncline.capture.slot.check_slot`; or the source is older than the log.
        Unavailable: somebody else reads from the slot, so whatever it shows is not about this log.
    """
    slot = read_slot(connection, settings.slot)
    refuse_in_use(connection, slot)
    row = connection.execute("select (pg_current_wal_lsn() - '0/0'::pg_lsn)::int8").fetchone()
    if row is not None and row[0] < durable:
        # Streaming from a place that this WAL has yet to reach would skip whatever commits before it.
        raise Gap(
            f"The source stands at {format_lsn(row[0])}, but the log holds its changes up to {format_lsn(durable)}: it "
            "was restored from an older copy.",
            remedy="Run `syncline resync` to read the tables again, or set on_gap: resync.",
            code=SOURCE_OLDER,
        )
    if durable == 0 and slot is not None and slot.wal_status == "lost":
        drop_slot(connection, slot.name)
        slot = None
    if durable == 0 and slot is None:
        talk(f"creating replication slot {settings.slot}")
        return create_slot(settings, settings.slot, talk)
    check_slot(slot, settings.slot, identity.database.rpartition(":")[0], durable)
    assert slot is not None
    return durable or slot.confirmed


def retire_slot(connection: psycopg.Connection[Any], name: str, identity: Identity) -> None:
    """Drop our slot, if it is ours: nothing that it holds is needed, for every table is read again.

    Raises:
        Unavailable: somebody else reads from it.
    """
    slot = read_slot(connection, name)
    refuse_in_use(connection, slot)  # our own former session has hung up; whoever reads now is another engine
    if slot is not None and slot.plugin == "pgoutput" and slot.database == identity.database.rpartition(":")[0]:
        drop_slot(connection, name)


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
