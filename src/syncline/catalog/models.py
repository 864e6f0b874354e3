"""The tables of the control schema.

They are declared without a schema: its name is a setting, put in by ``schema_translate_map`` when a statement runs and
by ``version_table_schema`` when a migration does. The migrations are what makes the tables; a test holds both equal.

Names of sources, targets and tables are texts from the configuration, and ``''`` stands for all of them. Places,
versions and positions are the int64 of :mod:`syncline.change`. No table holds a row value but
``sync_dead_letters.payload`` and, until a repair is done, ``sync_requests.keys`` (Guarantee 11).
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    DateTime,
    Double,
    Identity,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Text,
    func,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

__all__ = [
    "Base",
    "ReconciliationRun",
    "SyncAlert",
    "SyncDeadLetter",
    "SyncGap",
    "SyncPause",
    "SyncPeriodic",
    "SyncPeriodicRun",
    "SyncReport",
    "SyncRequest",
    "SyncStatus",
    "SyncVerified",
]


class Base(DeclarativeBase):
    """Every table of the control schema."""

    metadata = MetaData(
        naming_convention={
            "pk": "%(table_name)s_pkey",
            "ix": "%(table_name)s_%(column_0_N_name)s_idx",
            "ck": "%(table_name)s_%(constraint_name)s_check",
        }
    )
    type_annotation_map = {  # noqa: RUF012 - SQLAlchemy reads it as it stands
        str: Text(),
        int: BigInteger(),
        float: Double(),
        bytes: LargeBinary(),
        datetime: DateTime(timezone=True),
    }


_NOW = func.now()


class SyncStatus(Base):
    """How far a source, one of its targets (``''``: the capture itself) or one of their tables is."""

    __tablename__ = "sync_status"

    source: Mapped[str] = mapped_column(primary_key=True)
    target: Mapped[str] = mapped_column(primary_key=True, server_default="")
    table_name: Mapped[str] = mapped_column(primary_key=True, server_default="")
    state: Mapped[str]
    log: Mapped[str] = mapped_column(server_default="")
    n: Mapped[int] = mapped_column(server_default=text("0"))
    place: Mapped[int] = mapped_column(server_default=text("0"))
    through: Mapped[int] = mapped_column(server_default=text("0"))
    rows_applied: Mapped[int] = mapped_column(server_default=text("0"))
    rows_per_s: Mapped[float | None]
    lag_bytes: Mapped[int | None]
    lag_s: Mapped[float | None]
    message: Mapped[str] = mapped_column(server_default="")
    updated_at: Mapped[datetime] = mapped_column(server_default=_NOW)


class SyncAlert(Base):
    """Something an operator should know. One open alert per code and subject; seen again, it counts up."""

    __tablename__ = "sync_alerts"
    __table_args__ = (
        CheckConstraint("severity in ('info', 'warning', 'error', 'critical')", name="severity"),
        Index("sync_alerts_open_key", "code", "subject", unique=True, postgresql_where=text("resolved_at is null")),
        Index(None, "opened_at"),
    )

    id: Mapped[int] = mapped_column(Identity(), primary_key=True)
    code: Mapped[str]
    severity: Mapped[str]
    subject: Mapped[str]
    message: Mapped[str]
    remedy: Mapped[str] = mapped_column(server_default="")
    opened_at: Mapped[datetime] = mapped_column(server_default=_NOW)
    last_seen_at: Mapped[datetime] = mapped_column(server_default=_NOW)
    resolved_at: Mapped[datetime | None]
    expires_at: Mapped[datetime | None]
    occurrences: Mapped[int] = mapped_column(server_default=text("1"))


class SyncDeadLetter(Base):
    """A change that a target refused, parked with its reason (Guarantee 7). ``payload`` is an Arrow IPC stream."""

    __tablename__ = "sync_dead_letters"
    __table_args__ = (
        CheckConstraint("state in ('parked', 'superseded', 'redriven', 'discarded')", name="state"),
        Index(
            "sync_dead_letters_event_key",
            "source",
            "target",
            "table_name",
            "incarnation",
            "version",
            "ordinal",
            "key_hash",
            unique=True,
        ),
        Index(
            "sync_dead_letters_open_idx",
            "target",
            "table_name",
            "key_hash",
            "version",
            postgresql_where=text("state = 'parked'"),
        ),
        Index(None, "parked_at"),
    )

    id: Mapped[int] = mapped_column(Identity(), primary_key=True)
    source: Mapped[str]
    target: Mapped[str]
    table_name: Mapped[str]
    key_hash: Mapped[bytes]
    incarnation: Mapped[int] = mapped_column(Integer())
    version: Mapped[int]
    ordinal: Mapped[int]
    operation: Mapped[str]
    code: Mapped[str]
    reason: Mapped[str]
    payload: Mapped[bytes]
    partial: Mapped[bool]
    state: Mapped[str] = mapped_column(server_default="parked")
    parked_at: Mapped[datetime] = mapped_column(server_default=_NOW)
    resolved_at: Mapped[datetime | None]


class SyncPause(Base):
    """What an operator holds back.

    ``held_after`` is the position in ``log`` behind which nothing of it was applied. A pause that was resumed but holds
    such a position stays, with ``resumed_at``, until the target has caught up: a crash in between loses nothing.
    """

    __tablename__ = "sync_pauses"

    source: Mapped[str] = mapped_column(primary_key=True, server_default="")
    target: Mapped[str] = mapped_column(primary_key=True, server_default="")
    table_name: Mapped[str] = mapped_column(primary_key=True, server_default="")
    log: Mapped[str] = mapped_column(server_default="")
    held_after: Mapped[int | None]
    requested_at: Mapped[datetime] = mapped_column(server_default=_NOW)
    requested_by: Mapped[str] = mapped_column(server_default="")
    resumed_at: Mapped[datetime | None]


class SyncGap(Base):
    """Changes known to be missing. One open gap per source, target, table and code."""

    __tablename__ = "sync_gaps"
    __table_args__ = (
        Index(
            "sync_gaps_open_key",
            "source",
            "target",
            "table_name",
            "code",
            unique=True,
            postgresql_where=text("resolved_at is null"),
        ),
    )

    id: Mapped[int] = mapped_column(Identity(), primary_key=True)
    source: Mapped[str]
    target: Mapped[str] = mapped_column(server_default="")
    table_name: Mapped[str] = mapped_column(server_default="")
    code: Mapped[str]
    reason: Mapped[str]
    from_place: Mapped[int | None]
    to_place: Mapped[int | None]
    opened_at: Mapped[datetime] = mapped_column(server_default=_NOW)
    resolved_at: Mapped[datetime | None]


class SyncRequest(Base):
    """What an operator asks of a running engine. ``tables`` is a list of qualified names, NULL for all; so is ``''`` as
    the target. ``keys`` (an Arrow IPC stream) are those to repair; they are forgotten once that is done."""

    __tablename__ = "sync_requests"
    __table_args__ = (Index("sync_requests_open_idx", "source", "id", postgresql_where=text("done_at is null")),)

    id: Mapped[int] = mapped_column(Identity(), primary_key=True)
    kind: Mapped[str]
    source: Mapped[str]
    tables: Mapped[list[str] | None] = mapped_column(JSONB(none_as_null=True))
    requested_at: Mapped[datetime] = mapped_column(server_default=_NOW)
    taken_at: Mapped[datetime | None]
    done_at: Mapped[datetime | None]
    outcome: Mapped[str | None]
    target: Mapped[str] = mapped_column(server_default="")
    keys: Mapped[bytes | None]


class SyncPeriodic(Base):
    """Who does the runs of a source. ``epoch`` rises each time the lock is taken, and fences off who had it before.

    ``holder`` has the run lock until ``expires_at`` and does the next run at ``next_at``; ``service`` is a process that
    does nothing else, was seen at ``seen_at``, and ends once ``stop_at`` is set.
    """

    __tablename__ = "sync_periodic"

    name: Mapped[str] = mapped_column(primary_key=True)
    epoch: Mapped[int] = mapped_column(server_default=text("0"))
    holder: Mapped[str] = mapped_column(server_default="")
    expires_at: Mapped[datetime | None]
    service: Mapped[str] = mapped_column(server_default="")
    seen_at: Mapped[datetime | None]
    next_at: Mapped[datetime | None]
    stop_at: Mapped[datetime | None]


class SyncPeriodicRun(Base):
    """One run of a source: what it found. ``reasons`` counts why members were set aside, ``missing`` are keys that were
    not there, ``number`` is that of the state behind it, and ``wish`` what somebody who waits for it asked."""

    __tablename__ = "sync_periodic_runs"
    __table_args__ = (Index(None, "name", "id"),)

    id: Mapped[int] = mapped_column(Identity(), primary_key=True)
    name: Mapped[str]
    epoch: Mapped[int]
    kind: Mapped[str]
    dry_run: Mapped[bool]
    state: Mapped[str]
    started_at: Mapped[datetime] = mapped_column(server_default=_NOW)
    finished_at: Mapped[datetime | None]
    members: Mapped[int] = mapped_column(server_default=text("0"))
    created: Mapped[int] = mapped_column(server_default=text("0"))
    updated: Mapped[int] = mapped_column(server_default=text("0"))
    deleted: Mapped[int] = mapped_column(server_default=text("0"))
    kept: Mapped[int] = mapped_column(server_default=text("0"))
    set_aside: Mapped[int] = mapped_column(server_default=text("0"))
    changed_up_to: Mapped[float | None]
    reasons: Mapped[dict[str, int] | None] = mapped_column(JSONB(none_as_null=True))
    missing: Mapped[list[str] | None] = mapped_column(JSONB(none_as_null=True))
    number: Mapped[int] = mapped_column(server_default=text("0"))
    wish: Mapped[dict[str, Any] | None] = mapped_column(JSONB(none_as_null=True))
    code: Mapped[str] = mapped_column(server_default="")
    message: Mapped[str] = mapped_column(server_default="")


class ReconciliationRun(Base):
    """One comparison of tables with their copies, and the repair of what differed.

    ``missing``, ``different`` and ``extra`` were found by the first pass; ``written`` and ``removed`` are the keys that
    repairs wrote and deleted in all passes, ``left_over`` what differed behind the last one.
    """

    __tablename__ = "reconciliation_runs"
    __table_args__ = (
        CheckConstraint(
            "state in ('running', 'clean', 'differences', 'refused', 'failed', 'died')",
            name="state",
        ),
    )

    id: Mapped[int] = mapped_column(Identity(), primary_key=True)
    state: Mapped[str]
    started_by: Mapped[str] = mapped_column(server_default="")
    target: Mapped[str] = mapped_column(server_default="")
    entity_types: Mapped[list[str] | None] = mapped_column(JSONB(none_as_null=True))
    dry_run: Mapped[bool]
    started_at: Mapped[datetime] = mapped_column(server_default=_NOW)
    finished_at: Mapped[datetime | None]
    batch_size: Mapped[int] = mapped_column(server_default=text("0"))
    passes: Mapped[int] = mapped_column(server_default=text("0"))
    row_count: Mapped[int] = mapped_column(server_default=text("0"))
    missing: Mapped[int] = mapped_column(server_default=text("0"))
    different: Mapped[int] = mapped_column(server_default=text("0"))
    extra: Mapped[int] = mapped_column(server_default=text("0"))
    written: Mapped[int] = mapped_column(server_default=text("0"))
    removed: Mapped[int] = mapped_column(server_default=text("0"))
    left_over: Mapped[int] = mapped_column(server_default=text("0"))
    code: Mapped[str] = mapped_column(server_default="")
    message: Mapped[str] = mapped_column(server_default="")


class SyncReport(Base):
    """What a verification found, as JSON without keys. ``unknown`` counts what could not be compared or checked."""

    __tablename__ = "sync_reports"

    id: Mapped[int] = mapped_column(Identity(), primary_key=True)
    finished_at: Mapped[datetime] = mapped_column(server_default=_NOW)
    checks: Mapped[list[str]] = mapped_column(JSONB(none_as_null=True))
    score: Mapped[float]
    differences: Mapped[int]
    broken: Mapped[int]
    unknown: Mapped[int]
    seconds: Mapped[float]
    report: Mapped[dict[str, Any]] = mapped_column(JSONB(none_as_null=True))


class SyncVerified(Base):
    """What the latest comparison of one table at one target found. ``verified_through``: the copy was equal when it had
    every change with a native number below this, at ``verified_at``; both are of the latest clean comparison, NULL
    before the first. The rest is of the latest comparison at all."""

    __tablename__ = "sync_verified"

    source: Mapped[str] = mapped_column(primary_key=True)
    target: Mapped[str] = mapped_column(primary_key=True)
    table_name: Mapped[str] = mapped_column(primary_key=True)
    verified_through: Mapped[int | None]
    verified_at: Mapped[datetime | None]
    compared_at: Mapped[datetime] = mapped_column(server_default=_NOW)
    rows: Mapped[int]
    differences: Mapped[int]
    parked: Mapped[int]
    score: Mapped[float]
