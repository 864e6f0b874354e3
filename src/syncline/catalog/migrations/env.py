"""Alembic's entry point. :mod:`syncline.catalog.upgrade` hands in the connection, or none for ``--sql``."""

from __future__ import annotations

from alembic import context
from sqlalchemy.schema import CreateSchema

_attributes = context.config.attributes
_schema: str = _attributes["schema"]
_connection = _attributes.get("connection")

if _connection is None:
    context.configure(
        dialect_name="postgresql",
        dialect_opts={"paramstyle": "named"},
        literal_binds=True,
        version_table_schema=_schema,
    )
    with context.begin_transaction():
        context.execute(CreateSchema(_schema, if_not_exists=True))
        context.run_migrations()
else:
    # The caller's transaction: all revisions or none.
    context.configure(
        connection=_connection, version_table_schema=_schema, on_version_apply=_attributes["on_version_apply"]
    )
    context.run_migrations()
