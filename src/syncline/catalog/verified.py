"""How far each table was verified at each target, in the control schema."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Any

from sqlalchemy import bindparam, func, select
from sqlalchemy.dialects.postgresql import insert

from syncline.catalog.connection import make_engine, translated
from syncline.catalog.models import SyncVerified

__all__ = ["VerifiedTables"]

Row = dict[str, Any]

_KEY = ("source", "target", "table_name")
_FIELDS = (*_KEY, "verified_through", "verified_at", "rows", "differences", "parked", "score")
_NOW = func.clock_timestamp()
_NOTE = insert(SyncVerified).values({name: bindparam(name) for name in _FIELDS if name != "verified_at"})
_NEW = _NOTE.excluded
# What was verified stays so when a later comparison finds a difference: it says since when that can be.
_NOTE_EQUAL = _NOTE.values(verified_at=_NOW, compared_at=_NOW).on_conflict_do_update(
    index_elements=_KEY,
    set_={name: getattr(_NEW, name) for name in _FIELDS if name not in _KEY} | {"compared_at": _NOW},
)
_NOTE_DIFFERENT = _NOTE.values(compared_at=_NOW).on_conflict_do_update(
    index_elements=_KEY,
    set_={name: getattr(_NEW, name) for name in ("rows", "differences", "parked", "score")} | {"compared_at": _NOW},
)
_ALL = select(SyncVerified).order_by(SyncVerified.source, SyncVerified.target, SyncVerified.table_name)


class VerifiedTables:
    """The notes of one control schema, as a context manager. Raises ``Unavailable`` and ``Misconfigured``."""

    def __init__(self, dsn: str, schema_name: str, *, connect_timeout_s: int = 10) -> None:
        self._dsn, self._schema = dsn, schema_name
        self._engine = make_engine(dsn, schema_name, connect_timeout_s)

    def __enter__(self) -> VerifiedTables:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Give the connections back."""
        self._engine.dispose()

    def note(self, tables: Sequence[Row]) -> None:
        """Note comparisons: dicts of the columns but the times. ``verified_through`` is None where something differs,
        and then the latest clean comparison stays."""
        with translated(self._dsn, self._schema), self._engine.connect() as connection:
            for row in tables:
                connection.execute(_NOTE_DIFFERENT if row["verified_through"] is None else _NOTE_EQUAL, row)

    def all(self) -> list[Row]:
        """Every note, as dicts of the columns."""
        with translated(self._dsn, self._schema), self._engine.connect() as connection:
            return [dict(row) for row in connection.execute(_ALL).mappings()]
