"""Runs the migrations of the control schema from wherever the package is installed; no alembic.ini anywhere.

Alembic is imported when something is migrated: whoever only uses the schema doesn't wait for it.
"""

from __future__ import annotations

import io
import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection, column, func, select, table
from sqlalchemy.schema import CreateSchema

if TYPE_CHECKING:
    from alembic.config import Config

__all__ = ["known", "latest", "offline_sql", "present", "upgrade"]

Talk = Callable[[str], None]

# Alembic's ``context`` and ``op`` are proxies of the whole process.
_one_at_a_time = threading.Lock()


def _config(schema_name: str, output: io.StringIO, **attributes: Any) -> Config:
    from alembic.config import Config

    config = Config(stdout=output, output_buffer=output)
    config.set_main_option("script_location", "syncline.catalog:migrations")
    config.set_main_option("path_separator", "newline")
    config.attributes.update(attributes, schema=schema_name)
    return config


@contextmanager
def _quiet() -> Iterator[None]:
    """One migration at a time in this process, without Alembic's talk (what the user should hear is ours)."""
    logger = logging.getLogger("alembic")
    with _one_at_a_time:
        level = logger.level
        logger.setLevel(logging.WARNING)
        try:
            yield
        finally:
            logger.setLevel(level)


@cache
def known() -> frozenset[str]:
    """Every revision this version of Syncline has heard of; they are numbered, and so are their files."""
    names = (entry.name for entry in files("syncline.catalog.migrations.versions").iterdir())
    return frozenset(name[:4] for name in names if name[:4].isdigit() and name.endswith(".py"))


def latest() -> str:
    """The revision that this version of Syncline works with."""
    return max(known())


def _has_schema(connection: Connection, schema_name: str) -> bool:
    """Whether the schema exists, with or without tables."""
    namespace = table("pg_namespace", column("nspname"), schema="pg_catalog")
    return connection.execute(select(namespace.c.nspname).where(namespace.c.nspname == schema_name)).first() is not None


def present(connection: Connection, schema_name: str) -> str | None:
    """The revision of the schema in the database, None when it was never migrated."""
    tables = table("pg_tables", column("schemaname"), column("tablename"), schema="pg_catalog")
    there = select(tables.c.tablename).where(
        tables.c.schemaname == schema_name, tables.c.tablename == "alembic_version"
    )
    if connection.execute(there).first() is None:
        return None
    versions = table("alembic_version", column("version_num"), schema=schema_name)
    return connection.execute(select(versions.c.version_num)).scalar()


def upgrade(connection: Connection, schema_name: str, progress: Talk) -> None:
    """Bring the schema to :func:`latest` in the connection's transaction, which the caller commits.

    Several at once, of any process, wait for one another on an advisory lock of the transaction.
    """
    from alembic import command

    lock = func.hashtextextended(f"syncline.migrate:{schema_name}", 0)
    if not connection.execute(select(func.pg_try_advisory_xact_lock(lock))).scalar():
        progress(f"another migration of schema {schema_name} is running: waiting for it")
        connection.execute(select(func.pg_advisory_xact_lock(lock)))
    # IF NOT EXISTS asks for the right to create even where nothing is to be created.
    if not _has_schema(connection, schema_name):
        progress(f"creating schema {schema_name}")
        connection.execute(CreateSchema(schema_name))

    def tell(*, step: Any, **_: Any) -> None:
        progress(f"schema {schema_name} is at {step.up_revision_id}: {step.up_revision.doc}")

    with _quiet():
        config = _config(schema_name, io.StringIO(), connection=connection, on_version_apply=tell)
        command.upgrade(config, "head")


def offline_sql(schema_name: str) -> str:
    """The script that makes the schema from nothing, in one transaction."""
    from alembic import command

    output = io.StringIO()
    with _quiet():
        command.upgrade(_config(schema_name, output), "head", sql=True)
    return output.getvalue()
