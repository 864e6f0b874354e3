"""What stands in the way at a PostgreSQL target, found without changing anything: the contract's optional ``check``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import psycopg

from syncline.change import TableSchema
from syncline.errors import Misconfigured
from syncline.finding import Finding, Severity
from syncline.stores.postgres.server import IDENTITY, Connection, PostgresConfig, connect_reader, describe, failed
from syncline.stores.postgres.sql import FORMAT, quote
from syncline.stores.postgres.tables import refuse_itself

__all__ = ["check", "check_source"]

_OLDEST = 150000
_LOSSY = ("fsync", "full_page_writes")

_SERVER = """
select current_setting('server_version_num')::int, current_setting('server_version'), pg_is_in_recovery(),
  current_setting('server_encoding'), current_user::text, current_database()::text,
  has_database_privilege(current_database(), 'create'), has_database_privilege(current_database(), 'temp'),
  has_parameter_privilege('session_replication_role', 'set'),
  (select bool_and(has_function_privilege(oid, 'execute')) from pg_proc
   where pronamespace = 'pg_catalog'::regnamespace and proname in
     ('pg_replication_origin_oid', 'pg_replication_origin_create', 'pg_replication_origin_session_setup')),
  coalesce((select setting::int from pg_settings where name = 'max_active_replication_origins'),
           current_setting('max_replication_slots')::int),
  array(select name from pg_settings where name = any($1) and setting = 'off' order by name)
"""
_OWN = """
select n.oid is not null,
  coalesce(has_schema_privilege(n.oid, 'usage') and has_schema_privilege(n.oid, 'create'), false),
  coalesce((select bool_and(has_table_privilege(c.oid, 'select, insert, update, delete')) from pg_class c
            where c.relnamespace = n.oid and c.relkind = 'r'), true)
from (select 1) as one left join pg_namespace n on n.nspname = $1
"""


@dataclass(frozen=True, slots=True)
class _Server:
    """Settings and rights, read in one query. ``origins``: how many replication origins can be in use."""

    version_num: int
    version: str
    recovering: bool
    encoding: str
    role: str
    database: str
    may_create: bool
    may_temp: bool
    may_silence: bool
    may_mark: bool
    origins: int
    lossy: list[str]


def check(config: PostgresConfig) -> Iterator[Finding]:
    """Server, rights and settings of one PostgreSQL target; findings without a subject."""
    try:
        with connect_reader(config) as connection:
            row = connection.execute(_SERVER, [list(_LOSSY)]).fetchone()
            assert row is not None
            server = _Server(*row)
            blocked = list(_blocked(config, server))
            yield from blocked
            if not blocked:
                yield from _rights(config, connection, server)
                yield from _settings(config, server)
    except psycopg.Error as error:
        ours = failed(error, config)
        yield Finding(ours.code, "error", "", ours.message, ours.remedy)


def check_source(
    config: PostgresConfig, source: tuple[str, int, str], schemas: Sequence[TableSchema]
) -> Iterator[Finding]:
    """Tables that would be copied onto themselves. Of a server that can't be asked, or is a standby, :func:`check`
    tells; findings without a subject."""
    try:
        with connect_reader(config) as connection:
            row = connection.execute(IDENTITY).fetchone()
    except psycopg.Error:
        return
    for schema in schemas if row is not None and tuple(row) == source else ():
        try:
            refuse_itself(schema)
        except Misconfigured as error:
            yield _found(error.code, "error", error.message, error.remedy)


def _found(code: str, severity: Severity, message: str, remedy: str = "") -> Finding:
    return Finding(code, severity, "", message, remedy)


def _blocked(config: PostgresConfig, server: _Server) -> Iterator[Finding]:
    """Why the server can't be written at all."""
    where = f"PostgreSQL {server.version} at {describe(config)}"
    if server.version_num < _OLDEST:
        yield _found("SL-POSTGRES-VERSION", "error", f"{where} is too old.", "Use PostgreSQL 15 or newer as a target.")
    elif server.recovering:
        remedy = "Point the target's dsn at the primary."
        yield _found("SL-POSTGRES-STANDBY", "error", f"{where} only reads: it is a standby.", remedy)


def _rights(config: PostgresConfig, connection: Connection, server: _Server) -> Iterator[Finding]:
    role, own = _quoted(server.role), quote(config.schema_name)
    row = connection.execute(_OWN, [config.schema_name]).fetchone()
    there, may_use, may_write = row if row is not None else (False, False, False)
    if not there and not server.may_create:
        message = f"Role {server.role} may not create the schema {config.schema_name}."
        remedy = f"As the database's owner: CREATE SCHEMA {own} AUTHORIZATION {role};"
        yield _found("SL-POSTGRES-RIGHTS", "error", message, remedy)
    elif there and not (may_use and may_write):
        message = f"Role {server.role} may not use the schema {config.schema_name} of Syncline's own."
        remedy = (
            f"As its owner: GRANT USAGE, CREATE ON SCHEMA {own} TO {role};"
            f" GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA {own} TO {role};"
        )
        yield _found("SL-POSTGRES-RIGHTS", "error", message, remedy)
    elif there and _newer(connection, own):
        message = f"Schema {config.schema_name} was written by a newer Syncline."
        yield _found("SL-POSTGRES-FORMAT", "error", message, "Upgrade Syncline.")
    else:
        state = "can be written" if there else f"is ready; `syncline run` creates the schema {config.schema_name}"
        yield _found("SL-POSTGRES", "ok", f"PostgreSQL {server.version} at {describe(config)} {state}.")
    if not server.may_temp:
        message = f"Role {server.role} may make no temporary tables, which moved keys and truncations need."
        remedy = f"As the database's owner: GRANT TEMPORARY ON DATABASE {_quoted(server.database)} TO {role};"
        yield _found("SL-POSTGRES-RIGHTS", "error", message, remedy)


def _newer(connection: Connection, own: str) -> bool:
    known = connection.execute("select to_regclass($1)", [f"{own}.format"]).fetchone()
    if known is None or known[0] is None:
        return False
    row = connection.execute(f"select max(version) from {own}.format").fetchone()
    return row is not None and (row[0] or 0) > FORMAT


def _settings(config: PostgresConfig, server: _Server) -> Iterator[Finding]:
    role = _quoted(server.role)
    if config.session_replication_role == "replica" and not server.may_silence:
        yield _found(
            "SL-POSTGRES-TRIGGERS",
            "warning",
            f"Role {server.role} may not silence triggers and foreign keys, so a table that has some is refused.",
            f"As a superuser: GRANT SET ON PARAMETER session_replication_role TO {role}; or set the target's"
            " session_replication_role to origin, which lets them act on what is copied.",
        )
    yield from _origin(config, server, role)
    if server.lossy:
        yield _found(
            "SL-POSTGRES-DURABLE",
            "warning",
            f"{' and '.join(server.lossy)} off: a crash of the server's machine can lose or damage what was applied.",
            "Set it to on, unless the copy may be made anew at any time.",
        )
    if server.encoding != "UTF8":
        message = f"The database is encoded in {server.encoding}: rows with other characters will be parked."
        yield _found("SL-POSTGRES-ENCODING", "warning", message, "Use a database with encoding UTF8.")


def _origin(config: PostgresConfig, server: _Server, role: str) -> Iterator[Finding]:
    """Without an origin, what is written can't be told from what others write: a two-way setup would echo it."""
    if config.origin is False or (server.may_mark and server.origins):
        return
    severity: Severity = "error" if config.origin else "info"
    if not server.origins:
        message, remedy = "The server has no room for replication origins", "Raise max_active_replication_origins"
        remedy += " (before PostgreSQL 18: max_replication_slots) above 0 and restart it."
    else:
        message = f"Role {server.role} may not use replication origins"
        remedy = "As a superuser: " + " ".join(
            f"GRANT EXECUTE ON FUNCTION pg_replication_origin_{name}(text) TO {role};"
            for name in ("oid", "create", "session_setup")
        )
    yield _found(
        "SL-POSTGRES-ORIGIN", severity, f"{message}: a two-way setup would take what is copied for new changes.", remedy
    )


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
