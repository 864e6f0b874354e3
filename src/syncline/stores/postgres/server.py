"""The server of a PostgreSQL target: its settings, its sessions, and the translation of its errors."""

from __future__ import annotations

import os
import socket
from typing import Any, Literal

import psycopg
from psycopg import RawCursor, conninfo
from pydantic import BaseModel, ConfigDict, Field

from syncline import dsn as connection_string
from syncline.dsn import SecretDsn, flaw
from syncline.errors import Misconfigured, SynclineError, Unavailable
from syncline.stores.postgres.wire import Wire, WireDumper

__all__ = [
    "IDENTITY",
    "Connection",
    "PostgresConfig",
    "connect_reader",
    "connect_writer",
    "describe",
    "evict",
    "failed",
    "hang_up",
    "mark",
    "origin_name",
    "refuses_values",
]

Connection = psycopg.Connection[Any]

# Who a server is, as ``source_is`` hears it of the source.
IDENTITY = """
select (select system_identifier::text from pg_control_system()),
  ('x' || substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8))::bit(32)::int, datname || ':' || oid
from pg_database where datname = current_database()
"""

# Every value is printed and read the same way as at the source.
_SESSION = {
    "timezone": "UTC",
    "datestyle": "ISO",
    "intervalstyle": "postgres",
    "extra_float_digits": "3",
    "bytea_output": "hex",
    "row_security": "off",  # rather fail than pass over rows that a policy hides (correctness rule 22)
    "statement_timeout": "0",
    "idle_in_transaction_session_timeout": "60s",
    "jit": "off",
    # The server, too, notices soon when our side is gone, and lets go of locks and of the replication origin.
    "tcp_keepalives_idle": "10",
    "tcp_keepalives_interval": "5",
    "tcp_keepalives_count": "3",
    "tcp_user_timeout": "15s",
}
# Every statement finds its rows by a key, whatever the statistics of a table that was empty a moment ago say.
_BY_KEY = "set enable_seqscan = off; set enable_hashjoin = off; set enable_mergejoin = off"
_NETWORK = {"keepalives_idle": 10, "keepalives_interval": 5, "keepalives_count": 3, "tcp_user_timeout": 15_000}

# Worth another try: the connection or the server is away or starting, the disk or a table of slots is full, a lock or a
# serialization was lost, or another session still holds what we need.
_AWAY = frozenset({"57P01", "57P02", "57P03", "57P05", "57014", "40001", "40P01", "55P03", "55006", "53100", "53200"})
_AWAY |= {"53300", "25P03", "25P04"}  # a process that stood still for a while is told so when it goes on
# Values that the server refuses: data exceptions, constraints, check options, RAISE in triggers, limits of an index.
_REFUSED = ("22", "23", "44", "P0", "54")
# How long a session that is told to end may take for it.
_ENDED_MS = 5000
_NO_LOGIN = ("password authentication failed", "no pg_hba.conf entry", "no password supplied")


class PostgresConfig(BaseModel):
    """Tables in a PostgreSQL database."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", validate_by_name=True, validate_by_alias=True, hide_input_in_errors=True
    )

    dsn: SecretDsn = Field(
        description="Connection to the target: a URL or a libpq keyword string.",
        examples=["${COPY_URL}"],
    )
    schema_name: str = Field(
        "syncline_target",
        alias="schema",
        pattern=r"^[a-z_][a-z0-9_]{0,62}$",
        description="Schema of Syncline's own there: cursors, tombstones.",
    )
    session_replication_role: Literal["replica", "origin"] = Field(
        "replica",
        description="replica: foreign keys and ordinary triggers of the target don't act on what is copied; "
        "origin: they do.",
    )
    origin: bool | None = Field(
        None,
        description="Mark what is written with a replication origin, so that a two-way setup knows it again: null "
        "where the role may, true refuses to run without, false never.",
    )
    lock_timeout_s: float = Field(30.0, gt=0, le=3600, description="Longest wait for somebody else's lock on a table.")
    connect_timeout_s: int = Field(10, ge=1, description="How long one attempt to connect may take.")

    def copy_place(self) -> str:
        return f"{describe(self)}, schema {self.schema_name}"

    @property
    def marks_surely(self) -> bool:
        """Whether nothing is written here without an origin."""
        return self.origin is True

    def wrote(self, origin: str, source: str) -> bool:
        """Whether an origin is that of what is written here of a source: :func:`origin_name`, whatever the database."""
        return origin.startswith("syncline:") and origin.endswith(f":{self.schema_name}:{source}")


def describe(config: PostgresConfig) -> str:
    """``host:port/database``, never its secrets (Guarantee 11)."""
    return connection_string.describe(config.dsn.get_secret_value())


# ------------------------------------------------------------------------------------------------------- sessions


def _connect(config: PostgresConfig, application: str, **settings: str) -> Connection:
    dsn = config.dsn.get_secret_value()
    given = conninfo.conninfo_to_dict(dsn)
    network: dict[str, Any] = {k: v for k, v in _NETWORK.items() if k not in given}
    options = " ".join(f"-c {k}={v}" for k, v in {**_SESSION, **settings}.items())
    connection: Connection = psycopg.connect(
        dsn,
        autocommit=True,
        connect_timeout=config.connect_timeout_s,
        application_name=application,
        options=f"{given.get('options') or ''} {options}".strip(),
        client_encoding="UTF8",
        cursor_factory=RawCursor,
        **network,
    )
    connection.adapters.register_dumper(Wire, WireDumper)
    return connection


def connect_reader(config: PostgresConfig) -> Connection:
    """A session that only reads. Raises psycopg's errors, as everything here does."""
    return _connect(config, "syncline-read", default_transaction_read_only="on")


def connect_writer(config: PostgresConfig, source: str) -> tuple[Connection, bool]:
    """The session that writes, and whether ordinary triggers and foreign keys of the target act in it."""
    connection = _connect(config, f"syncline-apply {source}", lock_timeout=f"{int(config.lock_timeout_s * 1000)}ms")
    try:
        # The cursor must not come back without the rows that it stands behind, nor be lost once it was told.
        connection.execute(
            "select set_config('synchronous_commit', 'on', false) where current_setting('synchronous_commit') = 'off'"
        )
        acting = not (config.session_replication_role == "replica" and _is_replica(connection))
        if not acting:
            connection.execute(_BY_KEY)
    except BaseException:
        connection.close()
        raise
    return connection, acting


def _is_replica(connection: Connection) -> bool:
    try:
        connection.execute("set session_replication_role = replica")
    except psycopg.errors.InsufficientPrivilege:
        return False  # only matters for tables that have triggers or foreign keys: migrate looks
    return True


def origin_name(connection: Connection, config: PostgresConfig, source: str) -> str:
    """Origins belong to the whole server, so the name tells database and schema as well."""
    return f"syncline:{connection.info.dbname}:{config.schema_name}:{source}"


def mark(connection: Connection, config: PostgresConfig, source: str) -> None:
    """Let everything that this session writes carry our replication origin (correctness rule 28).

    Raises:
        Misconfigured: an origin is asked for, and the role may not use one.
        psycopg.errors.ObjectInUse: another session has it.
    """
    if config.origin is False:
        return
    name = origin_name(connection, config, source)
    try:
        known = connection.execute("select pg_replication_origin_oid($1)", [name]).fetchone()
        if known is None or known[0] is None:
            connection.execute("select pg_replication_origin_create($1)", [name])
        connection.execute("select pg_replication_origin_session_setup($1)", [name])
    except (
        psycopg.errors.InsufficientPrivilege,
        psycopg.errors.ObjectNotInPrerequisiteState,
        psycopg.errors.ConfigurationLimitExceeded,
    ) as error:
        if config.origin:
            raise Misconfigured(
                f"PostgreSQL at {describe(config)} gives no replication origin: {error.diag.message_primary}.",
                remedy="`syncline doctor` names the grant or setting; or set the target's origin to null.",
                code="SL-POSTGRES-ORIGIN",
            ) from error


def hang_up(connection: Connection | None) -> None:
    """Cut the line of a session that another thread waits on: it gets a lost connection, and goes on from there."""
    if connection is None or connection.closed:
        return
    try:
        with socket.socket(fileno=os.dup(connection.fileno())) as line:
            line.shutdown(socket.SHUT_RDWR)
    except (OSError, psycopg.Error):
        return  # it was gone already


def evict(connection: Connection) -> None:
    """End other sessions that write for the same source, and wait until they have ended, as long as that is soon: of an
    engine that is gone, or that hangs. One that was closed a moment ago keeps its replication origin till then."""
    connection.execute(
        f"select pg_terminate_backend(a.pid, {_ENDED_MS}) from pg_stat_activity a, pg_stat_activity me"
        " where me.pid = pg_backend_pid() and a.pid <> me.pid and a.datname = me.datname and a.usename = me.usename"
        " and a.application_name = me.application_name"
    )


# --------------------------------------------------------------------------------------------------------- errors


def refuses_values(error: BaseException | None) -> bool:
    """Whether the server refused what some rows hold, and not the statement or the session."""
    return isinstance(error, psycopg.Error) and (error.sqlstate or "")[:2] in _REFUSED


def failed(error: psycopg.Error, config: PostgresConfig) -> SynclineError:
    """The driver's error as one of ours. What the server says of values is never repeated (Guarantee 11)."""
    where, state = f"PostgreSQL at {describe(config)}", error.sqlstate or ""
    lines = (error.diag.message_primary or str(error)).strip().splitlines()
    text = type(error).__name__ if state[:2] in _REFUSED or not lines else lines[0].rstrip(".")
    wrong = flaw(config.dsn.get_secret_value())
    if wrong is not None:  # libpq quotes the part that it can't read
        return Misconfigured(f"The connection string of a PostgreSQL target {wrong}.", remedy="Correct its dsn.")
    if isinstance(error, psycopg.ProgrammingError) and not state:
        return Misconfigured(f"{where}: {type(error).__name__}.", remedy="Correct the target's dsn.")
    if state in ("28P01", "28000") or any(sign in text for sign in _NO_LOGIN) or _names_unknown(text, "role"):
        remedy = "Correct user and password in the target's dsn, or pg_hba.conf."
        return Misconfigured(f"{where} refused the login: {text}.", remedy=remedy)
    if state == "3D000" or _names_unknown(text, "database"):
        return Misconfigured(f"{where}: {text}.", remedy="Correct the database in the target's dsn, or create it.")
    if state == "42501":
        return Misconfigured(f"{where}: {text}.", remedy="`syncline doctor` names the missing right.")
    if state == "25006":
        remedy = "Point the target's dsn at the primary."
        return Misconfigured(f"{where} only reads (a standby?).", remedy=remedy)
    if state == "55P03":
        remedy = "It is tried again; end the session that holds a lock on the table."
        return Unavailable(f"{where}: {text}.", remedy=remedy)
    lost = isinstance(error, psycopg.OperationalError) and not state
    if lost or state[:2] == "08" or state in _AWAY:
        return Unavailable(f"{where} is away: {text}.", remedy="Check that it runs and that the target's dsn is right.")
    return Misconfigured(f"{where}: {text} ({state or type(error).__name__}).")


def _names_unknown(text: str, what: str) -> bool:
    """Whether a connection failed because there is no such role or database; libpq tells no SQLSTATE then."""
    return f'{what} "' in text and "does not exist" in text
