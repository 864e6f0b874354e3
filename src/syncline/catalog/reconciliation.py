"""The runs of reconciliations in the control schema, one at a time.

The lock is an advisory one of a session: it ends with whoever has it, however that ends, and whoever takes it next
marks what was left open.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime
from typing import Any

from sqlalchemy import BigInteger, Executable, bindparam, delete, exc, func, insert, select, update

from syncline.catalog.connection import make_engine, translated
from syncline.catalog.models import ReconciliationRun
from syncline.errors import Unavailable

__all__ = ["RECONCILING", "ReconciliationRuns"]

RECONCILING = "SL-RECONCILE-LOCKED"

Row = dict[str, Any]
_NOW = func.clock_timestamp()
_LOCK = select(func.pg_try_advisory_lock(func.hashtextextended(bindparam("name"), 0)))
_UNLOCK = select(func.pg_advisory_unlock(func.hashtextextended(bindparam("name"), 0)))
_DIED = (
    update(ReconciliationRun)
    .where(ReconciliationRun.state == "running")
    .values(state="died", finished_at=_NOW, message="Its process ended before it did.")
)
_BEGIN = (
    insert(ReconciliationRun)
    .values({n: bindparam(n) for n in ("state", "started_by", "target", "entity_types", "dry_run", "batch_size")})
    .returning(ReconciliationRun.id)
)
_KEPT = select(ReconciliationRun.id).order_by(ReconciliationRun.id.desc()).limit(bindparam("many", type_=BigInteger()))
_PRUNE = delete(ReconciliationRun).where(ReconciliationRun.id.not_in(_KEPT))
_LATEST_OF = select(func.max(ReconciliationRun.started_at).label("began")).where(
    ReconciliationRun.started_by == bindparam("who")
)
_RUNS = select(ReconciliationRun).order_by(ReconciliationRun.id.desc()).limit(bindparam("many", type_=BigInteger()))


class ReconciliationRuns:
    """The runs of one control schema. Raises ``Unavailable`` and ``Misconfigured``."""

    def __init__(self, dsn: str, schema_name: str, *, connect_timeout_s: int = 10) -> None:
        self._dsn, self._schema = dsn, schema_name
        self._engine = make_engine(dsn, schema_name, connect_timeout_s)

    def close(self) -> None:
        """Give the connections back."""
        self._engine.dispose()

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Be the only one that reconciles for the block.

        Raises:
            Unavailable: somebody else does (:data:`RECONCILING`).
        """
        lock = {"name": f"syncline.reconcile:{self._schema}"}
        with translated(self._dsn, self._schema), self._engine.connect() as connection:
            if not connection.execute(_LOCK, lock).scalar():
                raise Unavailable(
                    "Another reconciliation is under way.",
                    remedy="Wait for its end: reconciliation_runs in the control schema shows it.",
                    code=RECONCILING,
                )
            try:
                self._change(_DIED)
                yield
            finally:
                # The end of the session frees it, too, but only when the server sees that.
                with suppress(exc.DBAPIError):
                    connection.execute(_UNLOCK, lock)
                connection.invalidate()  # the lock must not go back to the pool with its session

    def begin(
        self, started_by: str, target: str, entity_types: Sequence[str] | None, batch_size: int, *, dry_run: bool
    ) -> int:
        """Record that a run begins; its id."""
        given: Row = {"state": "running", "started_by": started_by, "target": target, "batch_size": batch_size}
        given |= {"entity_types": None if entity_types is None else list(entity_types), "dry_run": dry_run}
        return int(self._rows(_BEGIN, **given)[0]["id"])

    def end(self, run: int, state: str, figures: Mapping[str, int], *, code: str = "", message: str = "") -> None:
        """Record how it ended: clean, differences, refused or failed."""
        ended = update(ReconciliationRun).where(ReconciliationRun.id == run)
        self._change(ended.values(state=state, finished_at=_NOW, code=code, message=message, **figures))

    def prune(self, keep: int) -> None:
        """Forget all but the latest runs."""
        self._change(_PRUNE, many=keep)

    def runs(self, many: int = 20) -> list[Row]:
        """The latest runs, the newest first, as dicts of the columns."""
        return self._rows(_RUNS, many=many)

    def latest(self, started_by: str) -> datetime | None:
        """When the latest run began that was asked for by this, None if there is none."""
        return self._rows(_LATEST_OF, who=started_by)[0]["began"]

    def _rows(self, statement: Executable, **values: Any) -> list[Row]:
        with translated(self._dsn, self._schema), self._engine.connect() as connection:
            return [dict(row) for row in connection.execute(statement, values).mappings()]

    def _change(self, statement: Executable, **values: Any) -> int:
        with translated(self._dsn, self._schema), self._engine.connect() as connection:
            return connection.execute(statement, values).rowcount
