"""repairs that are asked for, and runs of the reconciliation

Revision ID: 0006
Revises: 0005
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

_TIME = sa.DateTime(timezone=True)
_FIGURES = ("batch_size", "passes", "row_count", "missing", "different", "extra", "written", "removed", "left_over")


def upgrade() -> None:
    schema = op.get_context().version_table_schema
    op.add_column("sync_requests", sa.Column("keys", sa.LargeBinary(), nullable=True), schema=schema)
    op.create_table(
        "reconciliation_runs",
        sa.Column("id", sa.BigInteger(), sa.Identity(), nullable=False),
        _column("state"),
        _column("started_by", server_default=""),
        _column("target", server_default=""),
        _column("entity_types", JSONB(), nullable=True),
        _column("dry_run", sa.Boolean()),
        _column("started_at", _TIME, server_default=sa.func.now()),
        _column("finished_at", _TIME, nullable=True),
        *(_column(name, sa.BigInteger(), server_default=sa.text("0")) for name in _FIGURES),
        _column("code", server_default=""),
        _column("message", server_default=""),
        sa.PrimaryKeyConstraint("id", name="reconciliation_runs_pkey"),
        sa.CheckConstraint(
            "state in ('running', 'clean', 'differences', 'refused', 'failed', 'died')",
            name="reconciliation_runs_state_check",
        ),
        schema=schema,
    )


def downgrade() -> None:
    schema = op.get_context().version_table_schema
    op.drop_table("reconciliation_runs", schema=schema)
    op.drop_column("sync_requests", "keys", schema=schema)


def _column(name: str, kind: Any = None, **options: Any) -> sa.Column[Any]:
    return sa.Column(name, kind or sa.Text(), **{"nullable": False, **options})
