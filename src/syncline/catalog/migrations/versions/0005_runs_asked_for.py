"""runs that somebody asks for, and the state behind each

Revision ID: 0005
Revises: 0004
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

_RUNS = "sync_periodic_runs"


def upgrade() -> None:
    schema = op.get_context().version_table_schema
    op.drop_column(_RUNS, "backup", schema=schema)
    op.add_column(_RUNS, sa.Column("missing", JSONB(), nullable=True), schema=schema)
    op.add_column(_RUNS, sa.Column("wish", JSONB(), nullable=True), schema=schema)
    number = sa.Column("number", sa.BigInteger(), server_default=sa.text("0"), nullable=False)
    op.add_column(_RUNS, number, schema=schema)


def downgrade() -> None:
    schema = op.get_context().version_table_schema
    for name in ("number", "wish", "missing"):
        op.drop_column(_RUNS, name, schema=schema)
    backup = sa.Column("backup", sa.Text(), server_default="", nullable=False)
    op.add_column(_RUNS, backup, schema=schema)
