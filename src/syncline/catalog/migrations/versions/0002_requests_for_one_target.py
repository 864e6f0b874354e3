"""requests for one target

Revision ID: 0002
Revises: 0001
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column(
        "sync_requests",
        sa.Column("target", sa.Text(), nullable=False, server_default=""),
        schema=op.get_context().version_table_schema,
    )


def downgrade() -> None:
    op.drop_column("sync_requests", "target", schema=op.get_context().version_table_schema)
