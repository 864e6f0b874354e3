"""Verification that never ends: table after table, within a share of the time; and reconciliations when they are due.

One thread beside the engine. The table at the target that was compared the longest time ago is next. Behind each
comparison there is rest, so that comparing takes the share of the time that the configuration allows; nothing is
compared while its target is behind, and none holds its snapshot of the source for longer than it may. What differs
raises an alert, which the next clean comparison resolves, and is repaired where the configuration says so.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

from syncline.capture.captured import captured
from syncline.capture.settings import PostgresSettings
from syncline.catalog.reconciliation import RECONCILING, ReconciliationRuns
from syncline.catalog.repository import ControlSchema
from syncline.catalog.verified import VerifiedTables
from syncline.config import Config
from syncline.config.verification import RollingConfig
from syncline.errors import SynclineError, Unavailable, defect
from syncline.logs import logger
from syncline.verify.compare import comparing
from syncline.verify.kept import DIFFERENT, note, subject_of
from syncline.verify.reconcile import Wanted, reconcile
from syncline.verify.repair import LIMIT, limits_of, repair
from syncline.verify.report import TableReport

__all__ = ["DIFFERENT", "FAILED", "RollingVerification"]

FAILED = "SL-VERIFY-FAILED"
"""A table could not be compared, or a reconciliation not made."""

_log = logger()
_LOOK_S = 5.0  # how long nothing is looked for where nothing is due, or a target is behind
_SCHEDULED = "schedule"


class _Part(NamedTuple):
    """What is compared at a time: one table at one target."""

    source: str
    target: str
    table: str

    def __str__(self) -> str:
        return "/".join(self)


class _Given(Unavailable):
    """A comparison was given up: the engine stops, or it took too long."""


@dataclass(frozen=True, slots=True)
class _Watch:
    """Ends a comparison from within, at its next report of progress."""

    until: float
    stop: threading.Event
    most_s: float

    def __call__(self, table: str, rows: int, of: int | None) -> None:
        if self.stop.is_set():
            raise _Given("The engine stops.")
        if time.monotonic() > self.until:
            raise _Given(
                f"Table {table} was not compared within {self.most_s:g} s, as long as a snapshot may be held.",
                remedy="Allow more by verify.rolling.max_snapshot_s, or run `syncline verify` at a quiet time.",
            )


class RollingVerification:
    """What a configuration says of ``verify.rolling`` and of scheduled reconciliations, done from :meth:`start` to
    :meth:`stop`. ``status`` is that of the engine beside it (:meth:`syncline.SyncService.status`)."""

    def __init__(self, config: Config, status: Callable[[], Mapping[str, Any]]) -> None:
        self._config = config
        self._status = status
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="rolling-verification", daemon=True)
        self._begun = datetime.now(UTC)
        self._compared: dict[_Part, datetime] | None = None  # as noted, and by us since
        self._control = ControlSchema(config.control_dsn, config.control.schema_name)

    @property
    def is_wanted(self) -> bool:
        """Whether the configuration has anything for it to do."""
        return self._config.verify.rolling is not None or self._config.reconcile.is_scheduled

    def start(self) -> None:
        """Begin, if the configuration says so. The engine has to stream before anything is compared."""
        if self.is_wanted:
            self._thread.start()

    def stop(self, timeout_s: float = 10.0) -> None:
        """End soon; what is being compared is given up. Idempotent."""
        self._stop.set()
        if self._thread.ident is not None:
            self._thread.join(timeout_s)
        self._control.close()

    def _run(self) -> None:
        rest = 0.0
        while not self._stop.wait(rest):
            try:
                rest = self.step()
            except SynclineError as error:  # the control schema or a source is away, which the engine's alerts say
                _log.debug("rolling verification waits", error=str(error))
                rest = _LOOK_S
            except Exception as error:  # noqa: BLE001 - a defect here must neither end the engine nor go unheard
                _log.error("rolling verification failed", error=str(defect("Rolling verification", error)))
                rest = _LOOK_S

    # ------------------------------------------------------------------------------------------------------- one step

    def step(self) -> float:
        """Do what is due, at most one thing; how many seconds of rest follow.

        Raises:
            SynclineError: the control schema or a source can't be asked now.
        """
        began = time.monotonic()
        if self._is_reconciliation_due():
            self._reconcile()
        rolling = self._config.verify.rolling
        if rolling is None:
            return _LOOK_S
        part = self._next(rolling)
        if part is None:
            return _LOOK_S
        self._compare(part, rolling)
        return (time.monotonic() - began) * (1 / rolling.share - 1)

    def _next(self, rolling: RollingConfig) -> _Part | None:
        """What was compared the longest time ago, of what is due and not behind."""
        if self._compared is None:
            with VerifiedTables(self._config.control_dsn, self._config.control.schema_name) as verified:
                self._compared = {
                    _Part(row["source"], row["target"], row["table_name"]): row["compared_at"] for row in verified.all()
                }
        never, now = datetime.min.replace(tzinfo=UTC), datetime.now(UTC)
        due = [
            (at, part)
            for part in self._parts(rolling)
            if (at := self._compared.get(part, never)) == never or at + timedelta(seconds=rolling.every_s) <= now
        ]
        return min(due)[1] if due else None

    def _parts(self, rolling: RollingConfig) -> Iterator[_Part]:
        """All tables at targets that stream and are not behind."""
        for source, status in self._status()["sources"].items():
            if status["state"] != "streaming":
                continue
            now = captured(self._config.source(source))
            for target, of in status["targets"].items():
                if of["state"] != "streaming" or (of.get("lag_s") or 0.0) > rolling.max_lag_s:
                    continue
                mapping = self._config.targets[target].mapping(now.facts)
                yield from (_Part(source, target, i.qualified) for i in now.tables if mapping.takes(i.qualified))

    def _compare(self, part: _Part, rolling: RollingConfig) -> None:
        watch = _Watch(time.monotonic() + rolling.max_snapshot_s, self._stop, rolling.max_snapshot_s)
        assert self._compared is not None
        self._compared[part] = datetime.now(UTC)  # whatever comes of it: others are next
        try:
            with comparing(self._within(rolling), [part.table], part.target, watch, talk=_log.debug) as comparison:
                tables = [t for t in comparison.compare().tables if t.source == part.source]
            note(self._config, tables)
            self._control.resolve_alert(FAILED, str(part))
            for table in tables:
                self._mend_or_tell(part, table, repairs=rolling.repair)
        except SynclineError as error:
            if not self._stop.is_set():
                self._failed(str(part), error)

    def _within(self, rolling: RollingConfig) -> Config:
        """The configuration with the bound on statements of this verification."""
        limit = {"read_timeout_s": rolling.statement_timeout_s}
        sources = {
            name: settings.model_copy(update=limit) if isinstance(settings, PostgresSettings) else settings
            for name, settings in self._config.sources.items()
        }
        return self._config.model_copy(update={"sources": sources})

    def _mend_or_tell(self, part: _Part, table: TableReport, *, repairs: bool) -> None:
        """Repair what differs where that is wanted, and alert of it if some is left."""
        if table.differences and repairs:
            done = repair(self._config, [part.table], part.target, limits=limits_of(self._config), talk=_log.info)
            _log.warning("differences repaired", part=str(part), written=done.written, removed=done.removed)
            if done.clean:
                return
        self._tell(table)

    def _tell(self, table: TableReport) -> None:
        """Alert of what differs. The next comparison that is clean, whoever makes it, resolves it."""
        if table.differences:
            counts = f"{table.missing:,} missing, {table.extra:,} extra, {table.different:,} different"
            message = f"Table {table.table} at target {table.target} differs from its source: {counts}."
            remedy = f"`syncline verify {table.table} --target {table.target} --repair` mends it."
            self._control.raise_alert(DIFFERENT, "error", subject_of(table), message, remedy)

    def _failed(self, subject: str, error: SynclineError) -> None:
        _log.warning("not verified", part=subject, error=str(error))
        self._control.raise_alert(FAILED, "warning", subject, error.message, error.remedy)

    # ------------------------------------------------------------------------------------------------- reconciliations

    def _is_reconciliation_due(self) -> bool:
        settings = self._config.reconcile
        if not settings.is_scheduled or any(s["state"] != "streaming" for s in self._status()["sources"].values()):
            return False
        with closing(ReconciliationRuns(self._config.control_dsn, self._config.control.schema_name)) as runs:
            latest = runs.latest(_SCHEDULED)
        return settings.due_after(latest or self._begun) <= datetime.now(UTC)

    def _reconcile(self) -> None:
        try:
            done = reconcile(self._config, Wanted(started_by=_SCHEDULED), talk=_log.info)
        except SynclineError as error:
            if error.code != RECONCILING:
                self._failed("reconciliation", error)
            return
        if done.last.away:
            self._failed("reconciliation", Unavailable(f"Away, and so not compared: {', '.join(done.last.away)}."))
        else:
            self._control.resolve_alert(FAILED, "reconciliation")
        refusal = done.refusal
        if refusal is not None:
            self._control.raise_alert(LIMIT, "error", "reconciliation", refusal.message, refusal.remedy)
        else:
            self._control.resolve_alert(LIMIT, "reconciliation")
        for table in done.last.tables:
            self._tell(table)
