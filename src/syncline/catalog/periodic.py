"""The run lock, the service and the runs of periodic synchronisations, in the control schema.

The lock is a lease: whoever holds it renews it, and who dies or hangs loses it. Its epoch rises each time it is taken,
so that what a former holder still writes is told apart (correctness rule 1: versions are made of it).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Executable, Interval, and_, bindparam, func, insert, or_, select, update
from sqlalchemy.dialects import postgresql

from syncline.catalog.connection import make_engine, translated
from syncline.catalog.models import SyncPeriodic, SyncPeriodicRun

__all__ = ["PeriodicRecords", "RunRow"]

Row = dict[str, Any]
_NOW = func.clock_timestamp()
_LEASE = _NOW + bindparam("lease", type_=Interval())
_NAMED = SyncPeriodic.name == bindparam("name_")
_SEEN = timedelta(seconds=30)


@dataclass(frozen=True, slots=True)
class RunRow:
    """How a run ended: ``done``, ``asking`` (a person has to allow it), ``failed`` or ``stopped``."""

    state: str
    figures: Mapping[str, int]
    changed_up_to: float | None = None
    reasons: Mapping[str, int] | None = None
    backup: str = ""
    code: str = ""
    message: str = ""


def _take() -> Any:
    new = postgresql.insert(SyncPeriodic).values(
        name=bindparam("name_"), epoch=1, holder=bindparam("holder_"), expires_at=_LEASE
    )
    free = or_(SyncPeriodic.expires_at.is_(None), SyncPeriodic.expires_at < _NOW)
    taken = new.on_conflict_do_update(
        index_elements=["name"],
        set_={"epoch": SyncPeriodic.epoch + 1, "holder": new.excluded.holder, "expires_at": _LEASE},
        where=free,
    )
    return taken.returning(SyncPeriodic.epoch)


def _serve() -> Any:
    new = postgresql.insert(SyncPeriodic).values(name=bindparam("name_"), service=bindparam("service_"), seen_at=_NOW)
    quiet = or_(SyncPeriodic.service == "", SyncPeriodic.seen_at < _NOW - _SEEN)
    started = new.on_conflict_do_update(
        index_elements=["name"],
        set_={"service": new.excluded.service, "seen_at": _NOW, "stop_at": None, "next_at": None},
        where=quiet,
    )
    return started.returning(SyncPeriodic.name)


_MINE = and_(_NAMED, SyncPeriodic.epoch == bindparam("epoch_"))
_SERVED = and_(_NAMED, SyncPeriodic.service == bindparam("service_"))
_TAKE, _SERVE = _take(), _serve()
_RENEW = update(SyncPeriodic).where(_MINE).values(expires_at=_LEASE)
_LIFT = update(SyncPeriodic).where(_MINE).values(epoch=bindparam("higher"))
_RELEASE = update(SyncPeriodic).where(_MINE).values(expires_at=None, holder="")
_BEAT = update(SyncPeriodic).where(_SERVED).values(seen_at=_NOW, next_at=bindparam("next_"))
_LEAVE = update(SyncPeriodic).where(_SERVED).values(service="", next_at=None, stop_at=None)
_STOP = update(SyncPeriodic).where(_NAMED, SyncPeriodic.service != "").values(stop_at=_NOW)
_STATE = select(
    SyncPeriodic,
    (SyncPeriodic.expires_at >= _NOW).label("running"),
    and_(SyncPeriodic.service != "", SyncPeriodic.seen_at >= _NOW - _SEEN).label("serving"),
).where(_NAMED)
_BEGIN = (
    insert(SyncPeriodicRun)
    .values({n: bindparam(n) for n in ("name", "epoch", "kind", "dry_run")} | {"state": "running"})
    .returning(SyncPeriodicRun.id)
)
_RUNS = (
    select(SyncPeriodicRun)
    .where(SyncPeriodicRun.name == bindparam("name_"))
    .order_by(SyncPeriodicRun.id.desc())
    .limit(bindparam("many"))
)


class PeriodicRecords:
    """The records of one periodic synchronisation. Raises ``Unavailable`` and ``Misconfigured``."""

    def __init__(self, dsn: str, schema_name: str, name: str, *, connect_timeout_s: int = 10) -> None:
        self.name = name
        self._dsn, self._schema = dsn, schema_name
        self._engine = make_engine(dsn, schema_name, connect_timeout_s)

    def close(self) -> None:
        """Give the connections back."""
        self._engine.dispose()

    # ------------------------------------------------------------------------------------------------------ the lock

    def take(self, holder: str, lease_s: float) -> int | None:
        """Take the lock for so many seconds; its new epoch, or None while somebody holds it."""
        rows = self._rows(_TAKE, name_=self.name, holder_=holder, lease=timedelta(seconds=lease_s))
        return int(rows[0]["epoch"]) if rows else None

    def renew(self, epoch: int, lease_s: float) -> bool:
        """Hold it on; False if somebody else has taken it since."""
        return self._change(_RENEW, name_=self.name, epoch_=epoch, lease=timedelta(seconds=lease_s)) == 1

    def lift(self, epoch: int, higher: int) -> bool:
        """Go on as a higher epoch: the records are older than what was written with them (a restore)."""
        return self._change(_LIFT, name_=self.name, epoch_=epoch, higher=higher) == 1

    def release(self, epoch: int) -> None:
        """Let go of it, if it is still ours."""
        self._change(_RELEASE, name_=self.name, epoch_=epoch)

    # --------------------------------------------------------------------------------------------------- the service

    def serve(self, service: str) -> bool:
        """Become the service that starts the runs; False while another one is seen."""
        return bool(self._rows(_SERVE, name_=self.name, service_=service))

    def beat(self, service: str, next_at: datetime | None) -> bool:
        """Be seen, and say when the next run is due; False once it should end (or another took over)."""
        if self._change(_BEAT, name_=self.name, service_=service, next_=next_at) != 1:
            return False
        state = self.state()
        return state is None or state["stop_at"] is None

    def leave(self, service: str) -> None:
        """No longer be the service."""
        self._change(_LEAVE, name_=self.name, service_=service)

    def ask_to_stop(self) -> bool:
        """Ask the service to end; whether there was one."""
        return self._change(_STOP, name_=self.name) == 1

    def state(self) -> Row | None:
        """The row of the lock and the service, with ``running`` and ``serving``; None before the first run."""
        rows = self._rows(_STATE, name_=self.name)
        return rows[0] if rows else None

    # ------------------------------------------------------------------------------------------------------ the runs

    def begin(self, epoch: int, kind: str, *, dry_run: bool) -> int:
        """Record that a run begins; its id."""
        return int(self._rows(_BEGIN, name=self.name, epoch=epoch, kind=kind, dry_run=dry_run)[0]["id"])

    def end(self, run: int, row: RunRow) -> None:
        """Record how it ended."""
        values = {name: getattr(row, name) for name in ("state", "changed_up_to", "backup", "code", "message")}
        ended = update(SyncPeriodicRun).where(SyncPeriodicRun.id == run)
        reasons = dict(row.reasons) if row.reasons else None
        self._change(ended.values(**values, **row.figures, reasons=reasons, finished_at=_NOW))

    def runs(self, many: int = 10) -> list[Row]:
        """The latest runs, the newest first, as dicts of the columns."""
        return self._rows(_RUNS, name_=self.name, many=many)

    def _rows(self, statement: Executable, **values: Any) -> list[Row]:
        with translated(self._dsn, self._schema), self._engine.connect() as connection:
            return [dict(row) for row in connection.execute(statement, values).mappings()]

    def _change(self, statement: Executable, **values: Any) -> int:
        with translated(self._dsn, self._schema), self._engine.connect() as connection:
            return connection.execute(statement, values).rowcount
