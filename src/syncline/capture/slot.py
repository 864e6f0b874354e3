"""Publications and replication slots: making them, and telling whether a slot still holds what we need.

PostgreSQL manual, ch. "Logical Decoding" and "Streaming Replication Protocol". The order matters: a slot older than its
publication can never be decoded (the catalogue is read as of each change), so the publication comes first.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import psycopg
from psycopg import sql

from syncline.capture import IN_USE, Identity
from syncline.capture.source import SourceConfig, connect, connect_replication, describe, translated
from syncline.capture.tables import TableInfo
from syncline.errors import Gap, Misconfigured, SynclineError, Unavailable

__all__ = [
    "Slot",
    "check_slot",
    "create_slot",
    "drop_slot",
    "ensure_publication",
    "format_lsn",
    "identify",
    "parse_lsn",
    "published_names",
    "read_slot",
    "refuse_in_use",
    "snapshot_point",
    "with_publication",
]

Talk = Callable[[str], None]


def parse_lsn(text: str) -> int:
    """``16/B374D848`` as an int64."""
    high, low = text.split("/")
    return int(high, 16) << 32 | int(low, 16)


def format_lsn(lsn: int) -> str:
    """An int64 as ``16/B374D848``."""
    return f"{lsn >> 32:X}/{lsn & 0xFFFFFFFF:X}"


def identify(config: SourceConfig) -> Identity:
    """System identifier, timeline and database (name and oid) of the source, over the replication protocol."""
    connection = connect_replication(config.replication, timeout_s=config.connect_timeout_s)
    try:
        with translated(config.replication), connection.cursor() as cursor:
            cursor.execute("IDENTIFY_SYSTEM")
            system, timeline, _, database = cursor.fetchone()
            cursor.execute("select oid from pg_database where datname = current_database()")
            return Identity(system, int(timeline), f"{database}:{cursor.fetchone()[0]}")
    finally:
        connection.close()


# ------------------------------------------------------------------------------------------------------ publication


def ensure_publication(connection: psycopg.Connection[Any], name: str, tables: Sequence[TableInfo]) -> list[str]:
    """Create the publication, or add missing tables to it; returns the names of those that were not published before.

    Their changes up to now are not in the stream, so they have to be read. (Dropping a table takes it out of its
    publications: a table that was dropped and made anew is among them.) Tables that the publication has beyond the
    wanted ones stay: it may be the user's own. The capture passes over them.
    """
    found = connection.execute("select puballtables from pg_publication where pubname = %s", [name]).fetchone()
    if found is None:
        if _create_publication(connection, name, sorted((t.namespace, t.name) for t in tables)):
            return [t.qualified for t in tables]
        return ensure_publication(connection, name, tables)  # somebody made it meanwhile, maybe of other tables
    if found[0]:
        return []
    published = {
        row[0]
        for row in connection.execute(
            "select r.prrelid::int8 from pg_publication_rel r join pg_publication p on p.oid = r.prpubid"
            " where p.pubname = %(name)s union all"
            " select c.oid::int8 from pg_publication_namespace s join pg_publication p on p.oid = s.pnpubid"
            " join pg_class c on c.relnamespace = s.pnnspid where p.pubname = %(name)s",
            {"name": name},
        )
    }
    added = [t for t in tables if t.oid not in published]
    if added:
        names = _table_list(sorted((t.namespace, t.name) for t in added))
        _run(connection, sql.SQL("alter publication {} add table {}").format(sql.Identifier(name), names), name)
    return [t.qualified for t in added]


_PUBLISHED = """
select c.oid::int8, concat_ws(' ', p.oid, p.xmin, r.oid, s.oid)
from pg_publication p join pg_class c on c.oid = any(%s::oid[])
  left join pg_publication_rel r on r.prpubid = p.oid and r.prrelid = c.oid
  left join pg_publication_namespace s on s.pnpubid = p.oid and s.pnnspid = c.relnamespace
where p.pubname = %s
"""


def with_publication(connection: psycopg.Connection[Any], name: str, tables: Sequence[TableInfo]) -> list[TableInfo]:
    """The tables with what makes them members of the publication. It changes when somebody takes a table out and puts
    it back, or changes what is published: whatever was written in between was never sent."""
    found = dict(connection.execute(_PUBLISHED, [[t.oid for t in tables], name]).fetchall())
    return [replace(t, published=found.get(t.oid, "")) for t in tables]


def published_names(connection: psycopg.Connection[Any], name: str) -> set[str]:
    """The tables (``namespace.name``) whose changes the publication sends, wanted or not."""
    query = "select schemaname || '.' || tablename from pg_publication_tables where pubname = %s"
    return {row[0] for row in connection.execute(query, [name])}


def _create_publication(connection: psycopg.Connection[Any], name: str, tables: list[tuple[str, str]]) -> bool:
    """Whether it was made; else it is there already."""
    statement = sql.SQL("create publication {} for table {} with (publish_via_partition_root = true)").format(
        sql.Identifier(name), _table_list(tables)
    )
    return _run(connection, statement, name)


def _table_list(names: Sequence[tuple[str, str]]) -> sql.Composed:
    """Names for a publication. ONLY: without it, inheritance children would be published too."""
    return sql.SQL(", ").join(sql.SQL("only {}").format(sql.Identifier(*n)) for n in names)


def _run(connection: psycopg.Connection[Any], statement: sql.Composed, publication: str) -> bool:
    """Whether it was done by this statement, and not by somebody else before it or at the same moment."""
    try:
        connection.execute(statement)
        return True
    except (psycopg.errors.DuplicateObject, psycopg.errors.UniqueViolation):
        return False
    except psycopg.errors.InsufficientPrivilege as error:
        raise Misconfigured(
            f"The role may not create or change publication {publication}: {error.diag.message_primary}.",
            remedy=f"As the owner of the tables run: {statement.as_string(connection)};",
        ) from error


# -------------------------------------------------------------------------------------------------------------- slot


@dataclass(frozen=True, slots=True)
class Slot:
    """A replication slot as pg_replication_slots shows it."""

    name: str
    plugin: str
    database: str
    confirmed: int
    restart: int
    active_pid: int | None
    wal_status: str
    safe_wal_size: int | None


def read_slot(connection: psycopg.Connection[Any], name: str) -> Slot | None:
    """The slot, None if there is none of that name."""
    row = connection.execute(
        "select slot_name, coalesce(plugin, ''), coalesce(database, ''), coalesce(confirmed_flush_lsn, '0/0')::text,"
        " coalesce(restart_lsn, '0/0')::text, active_pid, coalesce(wal_status, ''), safe_wal_size"
        " from pg_replication_slots where slot_name = %s",
        [name],
    ).fetchone()
    if row is None:
        return None
    return Slot(row[0], row[1], row[2], parse_lsn(row[3]), parse_lsn(row[4]), row[5], row[6], row[7])


def check_slot(slot: Slot | None, name: str, database: str, durable: int) -> None:
    """Hold the slot against what the log has durably (hard-cases: slot behind or ahead).

    ``durable`` is the log's last place, 0 for a log that has none. A lost slot still shows a position, and streaming
    from before the confirmed one skips silently, so all of this is compared before streaming starts.

    Raises:
        Gap: the slot is missing, lost, or was moved past what the log holds.
        Misconfigured: it belongs to another plugin or database.
    """
    remedy = "Run `syncline resync` to read the tables again, or set on_gap: resync."
    if slot is None:
        raise Gap(f"Replication slot {name} is gone; changes behind {format_lsn(durable)} are lost.", remedy=remedy)
    if slot.plugin != "pgoutput" or slot.database != database:
        raise Misconfigured(
            f"Replication slot {name} is of plugin {slot.plugin or '(physical)'}, database {slot.database or '-'}.",
            remedy="Choose another name with source.slot, or drop that slot if nothing uses it.",
        )
    if slot.wal_status == "lost":
        raise Gap(f"Replication slot {name} was invalidated: the server removed WAL it still needed.", remedy=remedy)
    if durable and slot.confirmed > durable:
        raise Gap(
            f"Replication slot {name} was moved to {format_lsn(slot.confirmed)}, but the log ends at "
            f"{format_lsn(durable)}: what lies between was never captured.",
            remedy=remedy,
        )


def refuse_in_use(connection: psycopg.Connection[Any], slot: Slot | None) -> None:
    """Raise ``Unavailable`` while somebody reads from the slot: an engine that was killed just now, whose connection
    the server has yet to miss, or another one, which must not share it."""
    if slot is None or slot.active_pid is None:
        return
    row = connection.execute(
        "select coalesce(nullif(application_name, ''), 'a program without a name')"
        " || coalesce(' at ' || host(client_addr), '') || ' reads from it'"
        " || coalesce(to_char(backend_start, ' \"since\" YYYY-MM-DD HH24:MI:SS'), '')"
        " from pg_stat_activity where pid = %s",
        [slot.active_pid],
    ).fetchone()
    who = row[0] if row and row[0] else "somebody reads from it"
    raise Unavailable(
        f"Replication slot {slot.name} is in use: {who} (server process {slot.active_pid}).",
        remedy="If that is another engine, stop it, or give this one a slot and a control schema of its own "
        "(source.slot, control.schema). If it was killed, wait until the server notices.",
        code=IN_USE,
    )


def create_slot(config: SourceConfig, name: str, talk: Talk) -> int:
    """Create the permanent slot; returns its consistent point. Waits for open transactions (and says for which)."""
    point, _, connection = _create(config, name, temporary=False, export=False, talk=talk)
    connection.close()
    return point


def drop_slot(connection: psycopg.Connection[Any], name: str) -> None:
    """Drop the slot if it exists; a walsender that still holds it is terminated first."""
    slot = read_slot(connection, name)
    if slot is None:
        return
    if slot.active_pid is not None:
        connection.execute("select pg_terminate_backend(%s, 10000)", [slot.active_pid])
    connection.execute("select pg_drop_replication_slot(%s)", [name])


def snapshot_point(config: SourceConfig, name: str, talk: Talk) -> tuple[int, str, Any]:
    """A temporary slot with its exported snapshot: ``(consistent point, snapshot name, connection that keeps both)``.

    The pair is exact: the snapshot sees precisely the transactions whose commit records begin before the point. (Two
    separate reads of LSN and snapshot would not be: visibility order is not WAL order.)
    """
    return _create(config, name, temporary=True, export=True, talk=talk)


def _create(config: SourceConfig, name: str, *, temporary: bool, export: bool, talk: Talk) -> tuple[int, str, Any]:
    connection = connect_replication(config.replication, timeout_s=config.connect_timeout_s)
    done = threading.Event()
    watcher = threading.Thread(target=_tell_who_blocks, args=(config, done, talk), name="slot-wait", daemon=True)
    watcher.start()
    try:
        with translated(config.replication), connection.cursor() as cursor:
            mode = "TEMPORARY " if temporary else ""
            snapshot = "export" if export else "nothing"
            cursor.execute(f"CREATE_REPLICATION_SLOT \"{name}\" {mode}LOGICAL pgoutput (SNAPSHOT '{snapshot}')")
            row = cursor.fetchone()
        return parse_lsn(row[1]), row[2] or "", connection
    except BaseException:
        connection.close()
        raise
    finally:
        done.set()


def _tell_who_blocks(config: SourceConfig, done: threading.Event, talk: Talk) -> None:
    """Slot creation waits for every running transaction; name the oldest ones instead of hanging silently."""
    dsn = config.plain
    while not done.wait(3.0):
        try:
            with translated(dsn), connect(dsn, timeout_s=config.connect_timeout_s) as connection:
                pids = connection.execute(
                    "select pid from pg_stat_activity where backend_xid is not null and pid <> pg_backend_pid()"
                    " order by xact_start limit 5"
                ).fetchall()
        except SynclineError:
            continue  # whoever creates the slot meets the same, and raises it
        if pids:
            names = ", ".join(str(p[0]) for p in pids)
            talk(f"{describe(config.replication)}: waiting for open transactions to end (pid {names})")
