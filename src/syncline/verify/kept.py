"""What is kept of verifications in the control schema: reports, how far each table was verified, and whether an alert
of a difference still holds; counts and names, never keys or other values."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from syncline.catalog.reports import ReportRecords
from syncline.catalog.repository import ControlSchema
from syncline.catalog.verified import VerifiedTables
from syncline.config import Config
from syncline.errors import SynclineError
from syncline.verify.report import Report, TableReport

__all__ = ["DIFFERENT", "keep", "note", "subject_of"]

DIFFERENT = "SL-DIFFERENT"
"""A copy is not what its source is."""


def subject_of(table: TableReport) -> str:
    """What an alert of the table at its target is about."""
    return f"{table.source}/{table.target}/{table.table}"


def keep(config: Config, report: Report, kinds: Sequence[str], talk: Callable[[str], None]) -> Report:
    """The report with its number, kept; as it is where nothing is to be kept, or where it can't be, which is said: what
    was found out is worth more than the record of it."""
    try:
        if report.scope.everything:  # a part of a table says nothing of the whole
            note(config, report.tables)
        if not config.verify.keep:
            return report
        with ReportRecords(config.control_dsn, config.control.schema_name) as records:
            return replace(report, number=records.keep(report.to_dict(), list(kinds), config.verify.keep))
    except SynclineError as error:
        talk(f"the report can't be kept: {error.message}")
        return report


def note(config: Config, tables: Sequence[TableReport]) -> None:
    """Note how far the tables that were compared are verified, and resolve the alerts of differences that are gone,
    whoever compared. Raises ``Unavailable`` and ``Misconfigured``."""
    rows = [
        {
            "source": table.source,
            "target": table.target,
            "table_name": table.table,
            "verified_through": None if table.differences or table.state != "compared" else table.through,
            "rows": table.rows,
            "differences": table.differences,
            "parked": table.parked,
            "score": table.score,
        }
        for table in tables
        if table.compared
    ]
    if rows:
        with VerifiedTables(config.control_dsn, config.control.schema_name) as verified:
            verified.note(rows)
    equal = {subject_of(table) for table in tables if table.compared and not table.differences}
    if equal:
        with ControlSchema(config.control_dsn, config.control.schema_name) as control:
            open_ones = {alert["subject"] for alert in control.alerts() if alert["code"] == DIFFERENT}
            for subject in sorted(equal & open_ones):
                control.resolve_alert(DIFFERENT, subject)
