"""Reports that are kept in the control schema, to be read later: counts and names, never keys or other values."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from syncline.catalog.reports import ReportRecords
from syncline.config import Config
from syncline.errors import SynclineError
from syncline.verify.report import Report

__all__ = ["keep"]


def keep(config: Config, report: Report, kinds: Sequence[str], talk: Callable[[str], None]) -> Report:
    """The report with its number, kept; as it is where nothing is to be kept, or where it can't be, which is said: what
    was found out is worth more than the record of it."""
    if not config.verify.keep:
        return report
    try:
        with ReportRecords(config.control_dsn, config.control.schema_name) as records:
            return replace(report, number=records.keep(report.to_dict(), list(kinds), config.verify.keep))
    except SynclineError as error:
        talk(f"the report can't be kept: {error.message}")
        return report
