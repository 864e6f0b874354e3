"""what periodic runs hold, and what they did

Revision ID: 0004
Revises: 0003
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    schema = op.get_context().version_table_schema
    op.create_table(
        "sync_periodic",
        _column("name"),
        _column("epoch", sa.BigInteger(), server_default=sa.text("0")),
        _column("holder", server_default=""),
        _column("expires_at", _TIME, nullable=True),
        _column("service", server_default=""),
        _column("seen_at", _TIME, nullable=True),
        _column("next_at", _TIME, nullable=True),
        _column("stop_at", _TIME, nullable=True),
        sa.PrimaryKeyConstraint("name", name="sync_periodic_pkey"),
        schema=schema,
    )
    op.create_table(
        "sync_periodic_runs",
        sa.Column("id", sa.BigInteger(), sa.Identity(), nullable=False),
        _column("name"),
        _column("epoch", sa.BigInteger()),
        _column("kind"),
        _column("dry_run", sa.Boolean()),
        _column("state"),
        _column("started_at", _TIME, server_default=sa.func.now()),
        _column("finished_at", _TIME, nullable=True),
        *(_column(name, sa.BigInteger(), server_default=sa.text("0")) for name in _FIGURES),
        _column("changed_up_to", sa.Double(), nullable=True),
        _column("reasons", JSONB(), nullable=True),
        _column("backup", server_default=""),
        _column("code", server_default=""),
        _column("message", server_default=""),
        sa.PrimaryKeyConstraint("id", name="sync_periodic_runs_pkey"),
        schema=schema,
    )
    op.create_index("sync_periodic_runs_name_id_idx", "sync_periodic_runs", ["name", "id"], schema=schema)


def downgrade() -> None:
    schema = op.get_context().version_table_schema
    op.drop_table("sync_periodic_runs", schema=schema)
    op.drop_table("sync_periodic", schema=schema)


_TIME = sa.DateTime(timezone=True)
_FIGURES = ("members", "created", "updated", "deleted", "kept", "set_aside")


def _column(name: str, kind: Any = None, **options: Any) -> sa.Column[Any]:
    return sa.Column(name, kind or sa.Text(), **{"nullable": False, **options})
