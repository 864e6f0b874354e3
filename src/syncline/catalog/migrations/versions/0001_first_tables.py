"""status, alerts, dead letters, pauses, gaps and requests

Revision ID: 0001
Revises:
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

_TABLES = ("sync_status", "sync_alerts", "sync_dead_letters", "sync_pauses", "sync_gaps", "sync_requests")


def _schema() -> str | None:
    return op.get_context().version_table_schema


def _name(column: str, **kwargs: Any) -> sa.Column[str]:
    return sa.Column(column, sa.Text(), nullable=False, **kwargs)


def _text(column: str) -> sa.Column[str]:
    return _name(column, server_default="")


def _int(column: str, **kwargs: Any) -> sa.Column[int]:
    return sa.Column(column, sa.BigInteger(), nullable=False, **kwargs)


def _optional_int(column: str) -> sa.Column[int]:
    return sa.Column(column, sa.BigInteger())


def _id() -> sa.Column[int]:
    return sa.Column("id", sa.BigInteger(), sa.Identity(), nullable=False)


def _now(column: str) -> sa.Column[Any]:
    return sa.Column(column, sa.DateTime(timezone=True), nullable=False, server_default=sa.func.now())


def _time(column: str) -> sa.Column[Any]:
    return sa.Column(column, sa.DateTime(timezone=True))


def upgrade() -> None:
    _create_status()
    _create_alerts()
    _create_dead_letters()
    _create_pauses()
    _create_gaps()
    _create_requests()


def downgrade() -> None:
    for table in reversed(_TABLES):
        op.drop_table(table, schema=_schema())


def _create_status() -> None:
    op.create_table(
        "sync_status",
        _name("source"),
        _text("target"),
        _text("table_name"),
        _name("state"),
        _text("log"),
        _int("n", server_default=sa.text("0")),
        _int("place", server_default=sa.text("0")),
        _int("through", server_default=sa.text("0")),
        _int("rows_applied", server_default=sa.text("0")),
        sa.Column("rows_per_s", sa.Double()),
        _optional_int("lag_bytes"),
        sa.Column("lag_s", sa.Double()),
        _text("message"),
        _now("updated_at"),
        sa.PrimaryKeyConstraint("source", "target", "table_name", name="sync_status_pkey"),
        schema=_schema(),
    )


def _create_alerts() -> None:
    op.create_table(
        "sync_alerts",
        _id(),
        _name("code"),
        _name("severity"),
        _name("subject"),
        _name("message"),
        _text("remedy"),
        _now("opened_at"),
        _now("last_seen_at"),
        _time("resolved_at"),
        _time("expires_at"),
        _int("occurrences", server_default=sa.text("1")),
        sa.PrimaryKeyConstraint("id", name="sync_alerts_pkey"),
        sa.CheckConstraint(
            "severity in ('info', 'warning', 'error', 'critical')", name=op.f("sync_alerts_severity_check")
        ),
        schema=_schema(),
    )
    op.create_index(
        "sync_alerts_open_key",
        "sync_alerts",
        ["code", "subject"],
        unique=True,
        schema=_schema(),
        postgresql_where=sa.text("resolved_at is null"),
    )
    op.create_index("sync_alerts_opened_at_idx", "sync_alerts", ["opened_at"], schema=_schema())


def _create_dead_letters() -> None:
    op.create_table(
        "sync_dead_letters",
        _id(),
        _name("source"),
        _name("target"),
        _name("table_name"),
        sa.Column("key_hash", sa.LargeBinary(), nullable=False),
        sa.Column("incarnation", sa.Integer(), nullable=False),
        _int("version"),
        _int("ordinal"),
        _name("operation"),
        _name("code"),
        _name("reason"),
        sa.Column("payload", sa.LargeBinary(), nullable=False),
        sa.Column("partial", sa.Boolean(), nullable=False),
        _name("state", server_default="parked"),
        _now("parked_at"),
        _time("resolved_at"),
        sa.PrimaryKeyConstraint("id", name="sync_dead_letters_pkey"),
        sa.CheckConstraint(
            "state in ('parked', 'superseded', 'redriven', 'discarded')", name=op.f("sync_dead_letters_state_check")
        ),
        schema=_schema(),
    )
    op.create_index(
        "sync_dead_letters_event_key",
        "sync_dead_letters",
        ["source", "target", "incarnation", "version", "ordinal", "key_hash"],
        unique=True,
        schema=_schema(),
    )
    op.create_index(
        "sync_dead_letters_open_idx",
        "sync_dead_letters",
        ["target", "table_name", "key_hash", "version"],
        schema=_schema(),
        postgresql_where=sa.text("state = 'parked'"),
    )
    op.create_index("sync_dead_letters_parked_at_idx", "sync_dead_letters", ["parked_at"], schema=_schema())


def _create_pauses() -> None:
    op.create_table(
        "sync_pauses",
        _text("source"),
        _text("target"),
        _text("table_name"),
        _text("log"),
        _optional_int("held_after"),
        _now("requested_at"),
        _text("requested_by"),
        _time("resumed_at"),
        sa.PrimaryKeyConstraint("source", "target", "table_name", name="sync_pauses_pkey"),
        schema=_schema(),
    )


def _create_gaps() -> None:
    op.create_table(
        "sync_gaps",
        _id(),
        _name("source"),
        _text("target"),
        _text("table_name"),
        _name("code"),
        _name("reason"),
        _optional_int("from_place"),
        _optional_int("to_place"),
        _now("opened_at"),
        _time("resolved_at"),
        sa.PrimaryKeyConstraint("id", name="sync_gaps_pkey"),
        schema=_schema(),
    )
    op.create_index(
        "sync_gaps_open_key",
        "sync_gaps",
        ["source", "target", "table_name", "code"],
        unique=True,
        schema=_schema(),
        postgresql_where=sa.text("resolved_at is null"),
    )


def _create_requests() -> None:
    op.create_table(
        "sync_requests",
        _id(),
        _name("kind"),
        _name("source"),
        sa.Column("tables", JSONB(none_as_null=True)),
        _now("requested_at"),
        _time("taken_at"),
        _time("done_at"),
        sa.Column("outcome", sa.Text()),
        sa.PrimaryKeyConstraint("id", name="sync_requests_pkey"),
        schema=_schema(),
    )
    op.create_index(
        "sync_requests_open_idx",
        "sync_requests",
        ["source", "id"],
        schema=_schema(),
        postgresql_where=sa.text("done_at is null"),
    )
