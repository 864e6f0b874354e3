"""dead letters are told apart by their table too: rows of two tables may have one key and one version

Revision ID: 0003
Revises: 0002
"""

from __future__ import annotations

from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

_NAME, _TABLE = "sync_dead_letters_event_key", "sync_dead_letters"


def upgrade() -> None:
    _replace("source", "target", "table_name", "incarnation", "version", "ordinal", "key_hash")


def downgrade() -> None:
    _replace("source", "target", "incarnation", "version", "ordinal", "key_hash")


def _replace(*columns: str) -> None:
    schema = op.get_context().version_table_schema
    op.drop_index(_NAME, _TABLE, schema=schema)
    op.create_index(_NAME, _TABLE, list(columns), unique=True, schema=schema)
