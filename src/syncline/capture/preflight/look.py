"""What the checks of a preflight share: what they look at, read once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg import sql

from syncline.capture.patterns import Matching, candidates, matching
from syncline.capture.source import SourceConfig, describe
from syncline.capture.tables import TableInfo, tables_info

__all__ = ["Look", "Server", "SlotState", "look_at", "name"]


@dataclass(frozen=True, slots=True)
class Server:
    """Settings and rights, read in one query."""

    version_num: int
    version: str
    wal_level: str
    recovering: bool
    max_slots: int
    used_slots: int
    max_senders: int
    used_senders: int
    keep_mb: int
    idle_s: int
    role: str
    database: str
    database_id: str
    may_create: bool
    system_identifier: str
    encoding: str


_SERVER = """
select current_setting('server_version_num')::int, current_setting('server_version'), current_setting('wal_level'),
  pg_is_in_recovery(), current_setting('max_replication_slots')::int, (select count(*) from pg_replication_slots),
  current_setting('max_wal_senders')::int, (select count(*) from pg_stat_replication),
  (select setting::int from pg_settings where name = 'max_slot_wal_keep_size'),
  coalesce((select setting::int * case unit when 'min' then 60 else 1 end from pg_settings
            where name = 'idle_replication_slot_timeout'), 0),
  current_user::text, current_database()::text,
  current_database() || ':' || (select oid from pg_database where datname = current_database()),
  has_database_privilege(current_database(), 'create'),
  (select system_identifier::text from pg_control_system()), current_setting('server_encoding')
"""


@dataclass(frozen=True, slots=True)
class SlotState:
    """Our slot, with what only some versions show (``invalidation`` since 17)."""

    plugin: str
    kind: str
    database: str
    two_phase: bool
    active_pid: int | None
    held_by: str
    wal_status: str
    invalidation: str
    safe_wal_size: int | None
    retained: int
    before_publication: bool


_SLOT = """
select coalesce(s.plugin, ''), s.slot_type, coalesce(s.database, ''), s.two_phase, s.active_pid,
  coalesce((select application_name from pg_stat_activity a where a.pid = s.active_pid), ''),
  coalesce(s.wal_status, ''), coalesce(to_jsonb(s) ->> 'invalidation_reason', ''), s.safe_wal_size,
  coalesce(pg_wal_lsn_diff(case when pg_is_in_recovery() then pg_last_wal_receive_lsn() else pg_current_wal_lsn() end,
                           s.restart_lsn), 0)::int8,
  coalesce((select age(p.xmin) <= age(s.catalog_xmin) from pg_publication p where p.pubname = %s), false)
from pg_replication_slots s where s.slot_name = %s
"""


@dataclass(frozen=True, slots=True)
class Look:
    """Everything the checks of one source share: what was asked for, and what the server says about itself."""

    config: SourceConfig
    connection: psycopg.Connection[Any]
    where: str
    server: Server
    slot: SlotState | None
    matched: Matching
    tables: tuple[TableInfo, ...]
    known: tuple[str, ...]

    def rows(self, query: str, *params: Any) -> list[dict[str, Any]]:
        """The rows of a query as dicts."""
        cursor = self.connection.cursor(row_factory=psycopg.rows.dict_row)
        return cursor.execute(query.encode(), params or None).fetchall()


def look_at(config: SourceConfig, connection: psycopg.Connection[Any], *never: str) -> Look:
    """Read everything that the checks share; ``never`` are schemas that are left out."""
    server = Server(*connection.execute(_SERVER).fetchone())  # type: ignore[misc]
    slot = connection.execute(_SLOT, [config.publication, config.slot]).fetchone()
    found = candidates(connection, never)
    matched = matching(found, config.monitored_tables, config.excluded_tables)
    return Look(
        config,
        connection,
        describe(config.plain),
        server,
        SlotState(*slot) if slot else None,
        matched,
        tuple(tables_info(connection, [relation.oid for relation in matched.chosen])),
        tuple(relation.qualified for relation in found),
    )


def name(*parts: str) -> str:
    """A (qualified) name, quoted for SQL."""
    return sql.Identifier(*parts).as_string()
