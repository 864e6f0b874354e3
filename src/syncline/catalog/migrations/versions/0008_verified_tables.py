"""how far each table was verified at each target

Revision ID: 0008
Revises: 0007
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "sync_verified",
        *(sa.Column(name, sa.Text(), nullable=False) for name in ("source", "target", "table_name")),
        sa.Column("verified_through", sa.BigInteger(), nullable=True),
        sa.Column("verified_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("compared_at", sa.DateTime(timezone=True), server_default=sa.func.now(), nullable=False),
        *(sa.Column(name, sa.BigInteger(), nullable=False) for name in ("rows", "differences", "parked")),
        sa.Column("score", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("source", "target", "table_name", name="sync_verified_pkey"),
        schema=op.get_context().version_table_schema,
    )


def downgrade() -> None:
    op.drop_table("sync_verified", schema=op.get_context().version_table_schema)
