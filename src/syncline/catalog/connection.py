"""Connections to the control schema's database, and its errors as ours."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
from psycopg import conninfo, sql
from sqlalchemy import Engine, create_engine, exc

from syncline.capture.source import Dsn, describe, translate
from syncline.errors import Misconfigured, SynclineError, Unavailable

__all__ = ["grant_create", "grants", "make_engine", "quoted", "read_only", "translated"]

SETTING = "control.dsn (by default source.dsn)"

# A control database that hangs must not hang an applier: these bound every wait of a statement.
_SESSION = "-c timezone=UTC -c statement_timeout=30s -c lock_timeout=10s -c idle_in_transaction_session_timeout=60s"
_MIGRATION = "-c timezone=UTC -c statement_timeout=0 -c lock_timeout=0"
_NETWORK = {"keepalives_idle": 10, "keepalives_interval": 5, "keepalives_count": 3, "tcp_user_timeout": 15_000}


def quoted(name: str) -> str:
    """An identifier, ready for SQL."""
    return sql.Identifier(name).as_string()


def make_engine(dsn: str, schema_name: str, timeout_s: int, *, migration: bool = False) -> Engine:
    """An engine whose tables without a schema are those of ``schema_name``. It connects when it is first used.

    Each statement commits by itself, except for a migration, which is one transaction without time limits.
    """

    def connect() -> psycopg.Connection[Any]:
        given = conninfo.conninfo_to_dict(dsn)
        network = {k: v for k, v in _NETWORK.items() if k not in given}
        options = f"{given.get('options') or ''} {_MIGRATION if migration else _SESSION}".strip()
        return psycopg.connect(
            dsn,
            connect_timeout=timeout_s,
            application_name="syncline-control",
            options=options,
            client_encoding="UTF8",
            **network,  # type: ignore[arg-type]
        )

    return create_engine(
        "postgresql+psycopg://",
        creator=connect,
        pool_size=4,
        max_overflow=4,
        pool_timeout=30,
        pool_pre_ping=True,
        isolation_level="READ COMMITTED" if migration else "AUTOCOMMIT",
        hide_parameters=True,
        execution_options={"schema_translate_map": {None: schema_name}},
    )


@contextmanager
def translated(dsn: str, schema_name: str) -> Iterator[None]:
    """Raise errors of the driver and of its pool as ours, without parameters (Guarantee 11)."""
    try:
        yield
    except exc.TimeoutError as error:
        raise Unavailable(f"All connections to the control schema at {describe(dsn)} are busy.") from error
    except (exc.DBAPIError, psycopg.Error) as error:
        raise _translate(error, dsn, schema_name) from error


def _translate(error: exc.DBAPIError | psycopg.Error, dsn: str, schema_name: str) -> SynclineError:
    original: Any = error.orig if isinstance(error, exc.DBAPIError) else error
    sqlstate = getattr(original, "sqlstate", None)
    where = f"control schema {schema_name} at {describe(dsn)}"
    if sqlstate in {"42P01", "42703", "3F000"}:
        return Misconfigured(f"The {where} is missing or outdated.", remedy="Run `syncline migrate`.")
    if sqlstate == "42501":
        message = str(original.diag.message_primary)
        return Misconfigured(f"The {where} can't be used: {message}.", remedy=_missing_right(message, dsn, schema_name))
    if sqlstate == "25006":
        return read_only(where)
    return translate(original, Dsn(dsn, SETTING))


def read_only(where: str) -> Misconfigured:
    """The error of a control schema that can't be written for what its server is."""
    return Misconfigured(
        f"The {where} is on a server that only reads (a standby?).", remedy=f"Point {SETTING} at the primary."
    )


def _missing_right(message: str, dsn: str, schema_name: str) -> str:
    return grant_create(dsn) if "for database" in message else grants(dsn, schema_name)


def grant_create(dsn: str) -> str:
    """The statement that lets the role of the connection string create schemas."""
    given = conninfo.conninfo_to_dict(dsn)
    database = quoted(str(given.get("dbname") or given.get("user") or "the_database"))
    return f"As its owner: GRANT CREATE ON DATABASE {database} TO {_role(dsn)}; then start again."


def grants(dsn: str, schema_name: str) -> str:
    """The statements that give the role of the connection string the use of the schema."""
    role, schema = _role(dsn), quoted(schema_name)
    return (
        f"As its owner: GRANT USAGE, CREATE ON SCHEMA {schema} TO {role}; "
        f"GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA {schema} TO {role};"
    )


def _role(dsn: str) -> str:
    return quoted(str(conninfo.conninfo_to_dict(dsn).get("user") or "the_role"))
