"""A PostgreSQL source: its settings, its connections, and the translation of its errors."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import psycopg
import psycopg2
import psycopg2.extras
from psycopg import conninfo, sql
from pydantic import Field

from syncline.capture.outbox.settings import OutboxConfig
from syncline.capture.settings import Dsn, PostgresSettings
from syncline.dsn import SecretDsn, describe, flaw
from syncline.errors import Misconfigured, SynclineError, Unavailable

__all__ = [
    "Dsn",
    "SourceConfig",
    "connect",
    "connect_plain",
    "connect_replication",
    "describe",
    "printed",
    "translate",
    "translated",
]

# Both connections must print every value the same way (hard-cases: Values).
_SESSION = {
    "timezone": "UTC",
    "datestyle": "ISO",
    "intervalstyle": "postgres",
    "extra_float_digits": "3",
    "bytea_output": "hex",
}

# What a failed login says where the driver gives no SQLSTATE.
_REFUSALS = re.compile(
    r"password authentication failed|permission denied for database|no password supplied"
    r'|role ".*" (does not exist|is not permitted to log in)'
)
# A client that pg_hba.conf does not let in; a role that may not replicate (as PostgreSQL 16 says it, and older ones).
_NOT_LET_IN = re.compile(r"no pg_hba\.conf entry|pg_hba\.conf rejects")
_NO_REPLICATION = re.compile(
    r"permission denied to (start WAL sender|use replication slots)|must be superuser or replication role to"
)

# What psycopg2 says of a server that hung up without a word.
_WORDLESS = "error with status PGRES_COPY_BOTH"
# Classes of SQLSTATE whose messages quote values: data exceptions, constraints, check options, RAISE in PL/pgSQL.
_QUOTING = ("22", "23", "44", "P0")
# Limits of the server that were met, which a restart with higher ones, or somebody who leaves, lifts.
_FULL = {
    "53300": "Close connections, or raise max_connections (max_wal_senders for replication) and restart the server.",
    "53400": "Drop slots that nobody uses (pg_replication_slots), or raise max_replication_slots and restart it.",
}
# Connection strings that libpq can read and not use.
_UNUSABLE = re.compile(r"invalid (port number|integer value|\w+ value)")


class SourceConfig(PostgresSettings):
    """One PostgreSQL database whose changes are captured from its WAL."""

    type: Literal["postgres"] = Field("postgres", description="How changes are captured: postgres, from the WAL.")
    replication_dsn: SecretDsn | None = Field(
        None, description="Connection for replication and snapshots, where it differs (a pooler can't replicate)."
    )
    slot: str = Field("syncline", pattern=r"^[a-z0-9_]{1,63}$", description="Replication slot, created if missing.")
    publication: str = Field("syncline", min_length=1, max_length=63, description="Publication, created if missing.")
    binary: bool | None = Field(
        None, description="Binary pgoutput: null picks it when every column's type is decoded exactly from it."
    )
    batch_bytes: int = Field(8 * 1024 * 1024, ge=4096, description="Bytes after which captured changes are handed on.")
    linger_s: float = Field(0.1, ge=0, le=10, description="Longest wait for a fuller batch during a flood.")
    slot_budget_bytes: int = Field(
        10 * 1024**3,
        ge=1024**2,
        description="WAL that the slot may make the source keep before an alert, where the server sets no limit.",
    )
    outbox: OutboxConfig | None = Field(
        None, description="Tables whose changes are told by events that applications publish; null is none."
    )

    @property
    def replication(self) -> Dsn:
        if self.replication_dsn is None:
            return self.plain
        return Dsn(self.replication_dsn.get_secret_value(), f"{self._section}.replication_dsn")

    @property
    def published_by(self) -> str:
        return self.publication

    @property
    def tells_origins(self) -> bool:
        return True

    @property
    def summary(self) -> str:
        return f"{super().summary}, slot {self.slot}"

    @property
    def claim(self) -> tuple[str, ...]:
        return (self.replication, f"slot {self.slot}")

    @property
    def events_from(self) -> OutboxConfig | None:
        return self.outbox

    def never(self, control_schema: str) -> tuple[str, ...]:
        """The schemas that are not captured whatever the patterns say, for they are Syncline's own."""
        return (control_schema,) if self.outbox is None else (control_schema, self.outbox.schema_name)

    def told(self, table: str) -> bool:
        """Whether events tell of the changes of a table (``namespace.name``), which is then not published."""
        return self.outbox is not None and table in self.outbox.tables


def translate(error: BaseException, dsn: Dsn) -> SynclineError:
    """A driver's error as one of ours (Guarantee 11). Driver messages of failed queries may hold row values: only the
    first line of connection errors and the server's primary message are used, and none that quotes values."""
    where, setting = describe(dsn), dsn.setting
    wrong = flaw(dsn)
    if wrong is not None:  # libpq repeats the part that it can't read, which may be the password
        return Misconfigured(f"The connection string of {setting} {wrong}.", remedy=f"Correct {setting}.")
    sqlstate = getattr(error, "sqlstate", None) or getattr(error, "pgcode", None) or ""
    diag = getattr(error, "diag", None)
    primary = (getattr(diag, "message_primary", None) or str(error)).strip().splitlines()
    primary = ["the connection was lost"] if primary and primary[0].startswith(_WORDLESS) else primary
    text = primary[0].rstrip(".") if primary and sqlstate[:2] not in _QUOTING else type(error).__name__
    programming = isinstance(error, (psycopg.errors.ProgrammingError, psycopg2.ProgrammingError))
    unusable = _UNUSABLE.search(text)
    if not sqlstate and (programming or unusable):
        told = f"{unusable[0]} in its connection string" if unusable else type(error).__name__
        return Misconfigured(f"PostgreSQL at {where}: {told}.", remedy=f"Correct {setting}.")
    if _NO_REPLICATION.search(text):
        return Misconfigured(f"PostgreSQL at {where}: {text}.", remedy=_replicate(dsn))
    if _NOT_LET_IN.search(text):
        return Misconfigured(f"PostgreSQL at {where} refused the login: {text}.", remedy=_LET_IN)
    if sqlstate in {"28P01", "28000"} or _REFUSALS.search(text):
        return Misconfigured(
            f"PostgreSQL at {where} refused the login: {text}.", remedy=f"Correct user and password in {setting}."
        )
    if sqlstate == "3D000" or ('database "' in text and "does not exist" in text):
        return Misconfigured(f"PostgreSQL at {where}: {text}.", remedy=f"Correct the database in {setting}.")
    if sqlstate == "42501":
        return Misconfigured(f"PostgreSQL at {where}: {text}.", remedy="`syncline doctor` names the missing grant.")
    if sqlstate in _FULL:
        return Unavailable(f"PostgreSQL at {where} has no room: {text}.", remedy=_FULL[sqlstate])
    if sqlstate == "57014" and "timeout" in text:
        return Unavailable(
            f"PostgreSQL at {where} ended a statement that took too long: {text}.",
            remedy="A limit of the role or the server (`show statement_timeout`), or of who asked, was reached.",
        )
    transient = ("08", "57", "53", "40", "55")
    connection = isinstance(error, (psycopg.OperationalError, psycopg2.OperationalError, psycopg2.InterfaceError))
    # A server that died leaves psycopg2 with the bare class: libpq had nothing to say.
    connection = connection or type(error) is psycopg2.DatabaseError
    if sqlstate[:2] in transient or (connection and not sqlstate):
        return Unavailable(
            f"PostgreSQL at {where} cannot be reached: {text}.",
            remedy=f"Check that it runs and that {setting} is right.",
        )
    return Misconfigured(
        f"PostgreSQL at {where}: {text} ({sqlstate or type(error).__name__}).",
        remedy="`syncline doctor` looks at what may be in the way.",
    )


_LET_IN = (
    "Add a line for them to its pg_hba.conf: host <database> <role> <this client>/32 scram-sha-256 (the database's name"
    " is right for logical replication, too); then SELECT pg_reload_conf();"
)


def _replicate(dsn: Dsn) -> str:
    user = conninfo.conninfo_to_dict(dsn).get("user")
    role = sql.Identifier(str(user)).as_string() if user else "<role>"
    return (
        f"As a superuser: ALTER ROLE {role} REPLICATION; (on Amazon RDS: GRANT rds_replication TO {role};), or name a"
        f" role that may replicate in {dsn.setting}."
    )


@contextmanager
def translated(dsn: Dsn) -> Iterator[None]:
    """Raise driver errors of the block as ours."""
    try:
        yield
    except (psycopg.Error, psycopg2.Error) as error:
        raise translate(error, dsn) from error


def connect(dsn: Dsn, *, timeout_s: int = 10, application: str = "syncline", **kwargs: Any) -> psycopg.Connection[Any]:
    """An autocommit psycopg connection with the session settings that make values exact.

    Raises:
        Unavailable, Misconfigured: as :func:`translate` decides.
    """
    with translated(dsn):
        return psycopg.connect(dsn, autocommit=True, **_session(dsn, timeout_s, application), **kwargs)


def connect_replication(dsn: Dsn, *, timeout_s: int = 10) -> Any:
    """A psycopg2 logical replication connection with the same session settings (the walsender prints the values)."""
    with translated(dsn):
        factory = psycopg2.extras.LogicalReplicationConnection
        return psycopg2.connect(dsn, connection_factory=factory, **_session(dsn, timeout_s, "syncline-capture"))


def connect_plain(dsn: Dsn, *, timeout_s: int = 10) -> Any:
    """A psycopg2 connection in autocommit with the same session settings: its COPY hands on a row in one C call."""
    with translated(dsn):
        connection = psycopg2.connect(dsn, **_session(dsn, timeout_s, "syncline-load"))
        connection.autocommit = True
        return connection


def _session(dsn: Dsn, timeout_s: int, application: str) -> dict[str, Any]:
    """The arguments that all connections share; options that the connection string gives stay."""
    given = conninfo.conninfo_to_dict(dsn).get("options", "")
    options = " ".join(f"-c {name}={value}" for name, value in _SESSION.items())
    return {
        "connect_timeout": timeout_s,
        "application_name": application,
        "options": f"{given} {options}".strip(),
        "client_encoding": "UTF8",
    }


def printed(column: sql.Composable) -> sql.Composed:
    """SQL for a value as its type's output function prints it, the same text that pgoutput sends; NULL stays NULL.

    Not ``::text``, which prints a boolean as ``true``, adds a mask to an inet and trims a char(n). Not ``is not null``,
    which is false for a composite value that holds a NULL.
    """
    return sql.SQL("case when {0} is distinct from null then concat({0}) end").format(column)
