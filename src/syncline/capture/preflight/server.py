"""The server as a whole: version, settings, room, the replication connection, and transactions in the way."""

from __future__ import annotations

from collections.abc import Iterator

from psycopg import conninfo

from syncline.capture.preflight.look import Look, name
from syncline.capture.slot import identify
from syncline.capture.source import describe
from syncline.capture.transactions import open_transactions
from syncline.errors import SynclineError
from syncline.finding import Finding

__all__ = ["check_open_transactions", "check_replication", "check_room", "check_server"]

OLDEST, NEWEST = 15, 18
# Open transactions younger than this end by themselves before anyone could act on the message.
OPEN_S, LONG_S = 5, 900


def check_server(look: Look) -> Iterator[Finding]:
    """Version, role in a cluster, encoding, and wal_level."""
    server, where = look.server, look.where
    major = server.version_num // 10000
    if major < OLDEST:
        yield Finding(
            "SL-SERVER-VERSION",
            "error",
            where,
            f"PostgreSQL {server.version} is older than {OLDEST}, the oldest supported.",
            f"Upgrade the server to PostgreSQL {OLDEST} or newer.",
        )
    elif major > NEWEST:
        yield Finding(
            "SL-SERVER-VERSION",
            "warning",
            where,
            f"PostgreSQL {server.version} is newer than {NEWEST}, the newest that was tested.",
            "Look for a newer Syncline.",
        )
    else:
        yield Finding("SL-SERVER-VERSION", "ok", where, f"PostgreSQL {server.version} is supported.")
    if server.recovering:
        yield Finding(
            "SL-STANDBY",
            "error",
            where,
            "The server is a standby, where neither publication nor heartbeat can be written.",
            "Point source.dsn at the primary.",
        )
    if server.encoding == "SQL_ASCII":
        yield Finding(
            "SL-ENCODING",
            "warning",
            where,
            "The database's encoding is SQL_ASCII, which takes any bytes for text: at the first text that is not UTF-8"
            " the server sends nothing more, neither rows nor changes.",
            "Restore a dump of it into a database of encoding UTF8, with such texts mended.",
        )
    # PostgreSQL 19 raises its effective level by itself when the first logical slot is made.
    if server.wal_level == "logical" or (major >= 19 and server.wal_level == "replica"):
        yield Finding("SL-WAL-LEVEL", "ok", where, f"wal_level is {server.wal_level}.")
    else:
        yield Finding(
            "SL-WAL-LEVEL",
            "error",
            where,
            f"wal_level is {server.wal_level}, so the WAL lacks what logical decoding needs.",
            "ALTER SYSTEM SET wal_level = logical; then restart PostgreSQL. Where that is not allowed, set source.type"
            " to triggers, or to outbox if the application publishes events.",
        )


def check_room(look: Look) -> Iterator[Finding]:
    """Slots and senders: one of each to stream, one more while a load or a verification takes its snapshot."""
    server, slot = look.server, look.slot
    loading = 1 if look.config.initial_load and slot is None else 0
    streaming = slot is not None and slot.active_pid is not None
    for setting, most, used, needed in (
        ("max_replication_slots", server.max_slots, server.used_slots, 0 if slot else 1),
        ("max_wal_senders", server.max_senders, server.used_senders, 0 if streaming else 1),
    ):
        free = most - used
        remedy = f"ALTER SYSTEM SET {setting} = {most + 5}; then restart PostgreSQL."
        if setting == "max_replication_slots":
            remedy += " Or drop slots that nothing uses: SELECT slot_name FROM pg_replication_slots WHERE NOT active;"
        if free < needed + loading:
            yield Finding(
                "SL-ROOM",
                "error",
                setting,
                f"{used} of {most} are in use; {needed + loading} more are needed"
                + (" (one of them only while the initial load begins)." if loading else "."),
                remedy,
            )
        elif free <= needed:
            yield Finding(
                "SL-ROOM",
                "warning",
                setting,
                f"{free} of {most} are free: reading tables (again) and verification need one more for a moment.",
                remedy,
            )
        else:
            yield Finding("SL-ROOM", "ok", setting, f"{free} of {most} are free.")


def check_replication(look: Look) -> Iterator[Finding]:
    """Connect as capture will. A logical replication connection is matched by pg_hba.conf lines of its *database*."""
    dsn = look.config.replication
    where = describe(dsn)
    try:
        identity = identify(look.config)
    except SynclineError as error:
        role = conninfo.conninfo_to_dict(look.config.replication).get("user") or look.server.role
        yield Finding(
            "SL-REPLICATION",
            "error",
            where,
            error.message,
            _replication_remedy(error, str(role), look.config.replication.setting),
        )
        return
    if (identity.system_identifier, identity.database) != (look.server.system_identifier, look.server.database_id):
        yield Finding(
            "SL-REPLICATION",
            "error",
            where,
            f"{dsn.setting} leads to another server or database than {look.config.plain.setting} ({look.where}).",
            "Let both name the same database of the same server.",
        )
        return
    yield Finding("SL-REPLICATION", "ok", where, "A replication connection works.")


def _replication_remedy(error: SynclineError, role: str, setting: str) -> str:
    text = error.message
    if "pg_hba.conf" in text:
        return (
            "Add to pg_hba.conf: host <database> <role> <this client>/32 scram-sha-256; then SELECT pg_reload_conf();"
        )
    if "walsender" in text.lower() or "wal sender" in text.lower() or "replication" in text.lower():
        return f"ALTER ROLE {name(role)} REPLICATION;"
    return error.remedy or f"Correct {setting}."


def check_open_transactions(look: Look) -> Iterator[Finding]:
    """Transactions that hold up what capture does next."""
    for one in open_transactions(look.connection, OPEN_S if look.slot is None else LONG_S):
        held = "Creating the slot waits until it ends" if look.slot is None else "The WAL since it began is kept"
        yield Finding("SL-OPEN-TRANSACTION", "warning", one.subject, f"{one.words} {held}.", one.remedy)
