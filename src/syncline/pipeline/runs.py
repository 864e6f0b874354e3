"""What a source whose stream is made of runs needs beside it: the run lock, the records, and their alerts."""

from __future__ import annotations

import socket
import time
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyarrow import ipc

from syncline.apply.keys import key_hashes
from syncline.capture import IN_USE
from syncline.capture.runs import DELETES, RunRow, SetAside, Wish
from syncline.catalog.periodic import PeriodicRecords
from syncline.catalog.repository import ControlSchema, DeadLetter, set_aside_as
from syncline.change import MAX_VERSION
from syncline.config import Config
from syncline.errors import SynclineError, Unavailable
from syncline.logs import logger
from syncline.pipeline.reports import Reports

__all__ = ["RecordedRuns"]

_log = logger()
FAILED, ASIDE = "SL-PERIODIC-FAILED", "SL-PERIODIC-ASIDE"
_LETTERS = 5000  # parked at once


class RecordedRuns:
    """A :class:`~syncline.capture.runs.RunRecords` in the control schema. The holder of the lock is the folder of the
    log, which one process at a time has open: who was killed and starts again need not wait for the lease to end."""

    def __init__(self, config: Config, source: str, control: ControlSchema, reports: Reports) -> None:
        settings: Any = config.sources[source]
        self._name = source
        self._lease_s: float = settings.lease_s
        self._keep: int = settings.keep_runs
        self._holder = f"{socket.gethostname()}:{Path(config.log.folder(source)).absolute()}"
        self._records = PeriodicRecords(config.control_dsn, config.control.schema_name, source)
        self._control = control
        self._reports = reports
        self._epoch = 0
        self._held = 0.0

    def close(self) -> None:
        """Give the connections back."""
        self._records.close()

    # ------------------------------------------------------------------------------------------------------ the lock

    def take(self) -> None:
        epoch = self._records.take(self._holder, self._lease_s)
        if epoch is None:
            raise self._in_use()
        self._epoch, self._held = epoch, time.monotonic()
        self._records.abandon(epoch)

    def hold(self, *, surely: bool = False) -> None:
        since = time.monotonic() - self._held
        if not surely and since < self._lease_s / 4:
            return
        try:
            ours = self._records.renew(self._epoch, self._lease_s)
        except Unavailable:
            if surely or since > self._lease_s / 2:
                raise
            return  # nobody else can have it before its end
        if not ours:
            raise self._in_use()
        self._held = time.monotonic()

    def release(self) -> None:
        self._records.release(self._epoch)

    def _in_use(self) -> Unavailable:
        state = self._records.state() or {}
        return Unavailable(
            f"Another engine does the runs of source {self._name}: {state.get('holder') or 'gone just now'}.",
            remedy="Stop it; one that was killed elsewhere gives way after lease_s.",
            code=IN_USE,
        )

    # ------------------------------------------------------------------------------------------------------ the runs

    def asked(self) -> tuple[int, Wish] | None:
        return self._records.take_asked(self._epoch)

    def begin(self, kind: str) -> int:
        _log.info("periodic sync started", source=self._name, kind=kind)
        return self._records.begin(self._epoch, kind, dry_run=False)

    def end(self, run: int, row: RunRow) -> None:
        self._tell(row)
        self._records.end(run, row)
        self._records.prune(self._keep)
        _log.info("periodic sync completed", source=self._name, state=row.state, **row.figures)

    def park(self, run: int, aside: SetAside) -> None:
        """See :class:`~syncline.capture.runs.RunRecords` (Guarantee 7). What is parked already stays as it is,
        until its reason is another one."""
        letters = self._control.letters_of(self._name, [aside.table], "")
        parked = {bytes(r["key_hash"]): r["reason"] for r in letters if r["target"] == set_aside_as(self._name)}
        reasons = dict(zip(_hashes(aside.members), aside.reasons, strict=True))
        looked_at = parked if aside.looked_at is None else _hashes(aside.looked_at) if parked else ()
        over = [known for known in {*looked_at, *reasons} & parked.keys() if reasons.get(known) != parked[known]]
        # First: by key and version, it would close what is parked anew.
        self._control.supersede(set_aside_as(self._name), aside.table, over, MAX_VERSION)
        new = [n for n, (key, why) in enumerate(reasons.items()) if parked.get(key) != why]
        members, keys = list(aside.members), list(reasons)
        for first in range(0, len(new), _LETTERS):
            some = new[first : first + _LETTERS]
            self._control.park([self._letter(run, aside.table, members[n], keys[n], reasons[keys[n]]) for n in some])
        if new or over:
            _log.warning("members parked", source=self._name, parked=len(new), settled=len(over))

    def _letter(self, run: int, table: str, member: bytes, key: bytes, reason: str) -> DeadLetter:
        return DeadLetter(
            source=self._name,
            target=set_aside_as(self._name),
            table_name=table,
            key_hash=key,
            incarnation=1,
            version=run,
            ordinal=0,
            operation="UPDATE",
            code=ASIDE,
            reason=reason,
            payload=_payload(member),
            partial=False,
        )

    def _tell(self, row: RunRow) -> None:
        """Alerts, before somebody who waits for the run hears that it is over."""
        if row.state == "failed":
            error = SynclineError(row.message, remedy="It is tried again at its next time.", code=row.code)
            self._reports.alert(FAILED, "error", self._name, error)
        elif row.state == "asking":
            remedy = f"If that is right: syncline periodic sync --name {self._name} --allow-deletes"
            self._reports.alert(DELETES, "error", self._name, SynclineError(row.message, remedy=remedy, code=DELETES))
        elif row.state == "done":
            self._reports.resolve(FAILED, self._name)
            if row.kind != "members":
                self._reports.resolve(DELETES, self._name)
            if row.kind == "full":
                self._tell_aside(row)
        self._reports.flush()

    def _tell_aside(self, row: RunRow) -> None:
        if not row.figures.get("set_aside"):
            self._reports.resolve(ASIDE, self._name)
            return
        why = "; ".join(f"{count:,}: {reason}" for reason, count in sorted((row.reasons or {}).items()))
        error = SynclineError(
            f"{row.figures['set_aside']:,} members of source {self._name} are set aside, and their rows stay as they "
            f"were. {why}.",
            remedy=f"Correct them in Redis; `syncline periodic sync --name {self._name} --dry-run` names some.",
            code=ASIDE,
        )
        self._reports.alert(ASIDE, "warning", self._name, error)

    def runs(self, many: int) -> list[dict[str, Any]]:
        return self._records.runs(many)

    def next_at(self, when: datetime | None) -> None:
        self._records.next_at(self._epoch, when)


def _hashes(members: Sequence[bytes]) -> list[bytes]:
    return key_hashes([pa.array(members, pa.binary())]) if members else []


def _payload(member: bytes) -> bytes:
    """Its name: what is wrong with its values is in the reason, and the next run reads them again."""
    sink = pa.BufferOutputStream()
    row = pa.record_batch([pa.array([member], pa.binary())], names=["member"])
    with ipc.new_stream(sink, row.schema) as writer:
        writer.write_batch(row)
    return bytes(sink.getvalue())
