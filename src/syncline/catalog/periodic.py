"""The run lock, the service and the runs of sources whose stream is made of runs, in the control schema.

The lock is a lease: whoever holds it renews it, and who dies or hangs loses it. Its epoch rises each time it is taken,
so that a former holder can't renew it.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Executable, Interval, and_, bindparam, delete, func, insert, or_, select, update
from sqlalchemy.dialects import postgresql

from syncline.capture.runs import RunRow, Wish
from syncline.catalog.connection import make_engine, translated
from syncline.catalog.models import SyncPeriodic, SyncPeriodicRun

__all__ = ["PeriodicRecords"]

Row = dict[str, Any]
_NOW = func.clock_timestamp()
_LEASE = _NOW + bindparam("lease", type_=Interval())
_NAMED = SyncPeriodic.name == bindparam("name_")
_SEEN = timedelta(seconds=30)
_PATIENCE = timedelta(minutes=10)  # who waits for a run has gone by then, without a word


def _take() -> Any:
    new = postgresql.insert(SyncPeriodic).values(
        name=bindparam("name_"), epoch=1, holder=bindparam("holder_"), expires_at=_LEASE
    )
    ours = SyncPeriodic.holder == new.excluded.holder  # who was killed and begins anew
    free = or_(SyncPeriodic.expires_at.is_(None), SyncPeriodic.expires_at < _NOW, ours)
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
        set_={"service": new.excluded.service, "seen_at": _NOW, "stop_at": None},
        where=quiet,
    )
    return started.returning(SyncPeriodic.name)


_MINE = and_(_NAMED, SyncPeriodic.epoch == bindparam("epoch_"))
_SERVED = and_(_NAMED, SyncPeriodic.service == bindparam("service_"))
_TAKE, _SERVE = _take(), _serve()
_RENEW = update(SyncPeriodic).where(_MINE).values(expires_at=_LEASE)
_RELEASE = update(SyncPeriodic).where(_MINE).values(expires_at=None, holder="", next_at=None)
_NEXT = update(SyncPeriodic).where(_MINE).values(next_at=bindparam("next_"))
_BEAT = update(SyncPeriodic).where(_SERVED).values(seen_at=_NOW)
_LEAVE = update(SyncPeriodic).where(_SERVED).values(service="", stop_at=None)
_STOP = update(SyncPeriodic).where(_NAMED, SyncPeriodic.service != "").values(stop_at=_NOW)
_STATE = select(
    SyncPeriodic,
    (SyncPeriodic.expires_at >= _NOW).label("running"),
    and_(SyncPeriodic.service != "", SyncPeriodic.seen_at >= _NOW - _SEEN).label("serving"),
).where(_NAMED)
_BEGIN = (
    insert(SyncPeriodicRun)
    .values({n: bindparam(n) for n in ("name", "epoch", "kind", "dry_run", "state", "wish")})
    .returning(SyncPeriodicRun.id)
)
_RUN = SyncPeriodicRun.name == bindparam("name_")
_ASKED = and_(_RUN, SyncPeriodicRun.state == "asked")
_OLDEST = select(func.min(SyncPeriodicRun.id)).where(_ASKED, SyncPeriodicRun.started_at > _NOW - _PATIENCE)
_TAKE_ASKED = (
    update(SyncPeriodicRun)
    .where(_ASKED, SyncPeriodicRun.id == _OLDEST.scalar_subquery())
    .values(state="running", epoch=bindparam("epoch_"), started_at=_NOW)
    .returning(SyncPeriodicRun.id, SyncPeriodicRun.wish)
)
_ABANDON = (
    update(SyncPeriodicRun)
    .where(_RUN, SyncPeriodicRun.state == "running", SyncPeriodicRun.epoch < bindparam("epoch_"))
    .where(~SyncPeriodicRun.dry_run)
    .values(state="stopped", finished_at=_NOW)
)
_WITHDRAW = update(SyncPeriodicRun).where(_ASKED, SyncPeriodicRun.id == bindparam("id_")).values(state="stopped")
_KEPT = select(SyncPeriodicRun.id).where(_RUN).order_by(SyncPeriodicRun.id.desc()).limit(bindparam("many"))
_PRUNE = delete(SyncPeriodicRun).where(_RUN, SyncPeriodicRun.id.not_in(_KEPT))
_RUNS = (
    select(SyncPeriodicRun)
    .where(_RUN, SyncPeriodicRun.state != "asked")
    .order_by(SyncPeriodicRun.id.desc())
    .limit(bindparam("many"))
)


class PeriodicRecords:
    """The records of one source. Raises ``Unavailable`` and ``Misconfigured``."""

    def __init__(self, dsn: str, schema_name: str, name: str, *, connect_timeout_s: int = 10) -> None:
        self.name = name
        self._dsn, self._schema = dsn, schema_name
        self._engine = make_engine(dsn, schema_name, connect_timeout_s)

    def close(self) -> None:
        """Give the connections back."""
        self._engine.dispose()

    # ------------------------------------------------------------------------------------------------------ the lock

    def take(self, holder: str, lease_s: float) -> int | None:
        """Take the lock for so many seconds; its new epoch, or None while another ``holder`` has it."""
        rows = self._rows(_TAKE, name_=self.name, holder_=holder, lease=timedelta(seconds=lease_s))
        return int(rows[0]["epoch"]) if rows else None

    def renew(self, epoch: int, lease_s: float) -> bool:
        """Hold it on; False if somebody else has taken it since."""
        return self._change(_RENEW, name_=self.name, epoch_=epoch, lease=timedelta(seconds=lease_s)) == 1

    def release(self, epoch: int) -> None:
        """Let go of it, if it is still ours."""
        self._change(_RELEASE, name_=self.name, epoch_=epoch)

    def next_at(self, epoch: int, when: datetime | None) -> None:
        """Say when the next run is due, if the lock is still ours."""
        self._change(_NEXT, name_=self.name, epoch_=epoch, next_=when)

    # --------------------------------------------------------------------------------------------------- the service

    def serve(self, service: str) -> bool:
        """Become the service that starts the runs; False while another one is seen."""
        return bool(self._rows(_SERVE, name_=self.name, service_=service))

    def beat(self, service: str) -> bool:
        """Be seen; False once it should end (or another took over)."""
        if self._change(_BEAT, name_=self.name, service_=service) != 1:
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

    def ask(self, wish: Wish) -> int:
        """Have a run done by whoever does them; its id."""
        return self._begin(0, wish.kind, "asked", wish.to_dict(), dry_run=False)

    def withdraw(self, run: int) -> None:
        """Nobody waits any more for a run that has not begun."""
        self._change(_WITHDRAW, name_=self.name, id_=run)

    def take_asked(self, epoch: int) -> tuple[int, Wish] | None:
        """Begin the oldest run that was asked for: its id and what is wished."""
        rows = self._rows(_TAKE_ASKED, name_=self.name, epoch_=epoch)
        return (int(rows[0]["id"]), Wish.from_dict(rows[0]["wish"])) if rows else None

    def abandon(self, epoch: int) -> None:
        """Runs of former epochs that have no end were cut off."""
        self._change(_ABANDON, name_=self.name, epoch_=epoch)

    def begin(self, epoch: int, kind: str, *, dry_run: bool) -> int:
        """Record that a run begins; its id."""
        return self._begin(epoch, kind, "running", None, dry_run=dry_run)

    def _begin(self, epoch: int, kind: str, state: str, wish: Row | None, *, dry_run: bool) -> int:
        given = {"name": self.name, "epoch": epoch, "kind": kind, "dry_run": dry_run, "state": state, "wish": wish}
        return int(self._rows(_BEGIN, **given)[0]["id"])

    def end(self, run: int, row: RunRow) -> None:
        """Record how it ended."""
        values = {n: getattr(row, n) for n in ("state", "kind", "number", "changed_up_to", "code", "message")}
        lists = {"reasons": dict(row.reasons) if row.reasons else None, "missing": list(row.missing) or None}
        ended = update(SyncPeriodicRun).where(SyncPeriodicRun.id == run)
        self._change(ended.values(**values, **lists, **row.figures, finished_at=_NOW))

    def prune(self, keep: int) -> None:
        """Forget all but so many runs."""
        self._change(_PRUNE, name_=self.name, many=keep)

    def one(self, run: int) -> Row | None:
        """One run as a dict of its columns, None if it was forgotten."""
        rows = self._rows(select(SyncPeriodicRun).where(SyncPeriodicRun.id == bindparam("id_")), id_=run)
        return rows[0] if rows else None

    def runs(self, many: int = 10) -> list[Row]:
        """The latest runs, the newest first, as dicts of the columns."""
        return self._rows(_RUNS, name_=self.name, many=many)

    def _rows(self, statement: Executable, **values: Any) -> list[Row]:
        with translated(self._dsn, self._schema), self._engine.connect() as connection:
            return [dict(row) for row in connection.execute(statement, values).mappings()]

    def _change(self, statement: Executable, **values: Any) -> int:
        with translated(self._dsn, self._schema), self._engine.connect() as connection:
            return connection.execute(statement, values).rowcount
