"""Reports of verifications in the control schema: kept, listed, read, and the oldest forgotten."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Any

from sqlalchemy import Executable, bindparam, delete, insert, select

from syncline.catalog.connection import make_engine, translated
from syncline.catalog.models import SyncReport

__all__ = ["ReportRecords"]

Row = dict[str, Any]

_FIELDS = ("checks", "score", "differences", "broken", "unknown", "seconds", "report")
_KEEP = insert(SyncReport).values({name: bindparam(name) for name in _FIELDS}).returning(SyncReport.id)
_LATEST = select(SyncReport.id).order_by(SyncReport.id.desc()).limit(bindparam("many"))
_FORGET = delete(SyncReport).where(SyncReport.id.not_in(_LATEST))
_SHORT = [getattr(SyncReport, name) for name in ("id", "finished_at", *_FIELDS) if name != "report"]
_LIST = select(*_SHORT).order_by(SyncReport.id.desc()).limit(bindparam("many"))
_ONE = select(SyncReport).where(SyncReport.id == bindparam("number"))


class ReportRecords:
    """The reports of one control schema, as a context manager. Raises ``Unavailable`` and ``Misconfigured``."""

    def __init__(self, dsn: str, schema_name: str, *, connect_timeout_s: int = 10) -> None:
        self._dsn, self._schema = dsn, schema_name
        self._engine = make_engine(dsn, schema_name, connect_timeout_s)

    def __enter__(self) -> ReportRecords:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._engine.dispose()

    def keep(self, report: Row, checks: Sequence[str], many: int) -> int:
        """Keep a report (without keys), and the latest ``many`` of all; its number."""
        values = {name: report[name] for name in ("score", "differences", "broken", "seconds")}
        values |= {"checks": list(checks), "unknown": report["not_compared"] + report["not_checked"], "report": report}
        number = int(self._rows(_KEEP, values)[0]["id"])
        with translated(self._dsn, self._schema), self._engine.connect() as connection:
            connection.execute(_FORGET, {"many": many})
        return number

    def latest(self, many: int) -> list[Row]:
        """The latest reports, the newest first, in short."""
        return self._rows(_LIST, {"many": many})

    def read(self, number: int) -> Row | None:
        """One report whole, None if it is not kept (any more)."""
        return next(iter(self._rows(_ONE, {"number": number})), None)

    def _rows(self, statement: Executable, values: Row) -> list[Row]:
        with translated(self._dsn, self._schema), self._engine.connect() as connection:
            return [dict(row) for row in connection.execute(statement, values).mappings()]
