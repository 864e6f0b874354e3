"""What goes on at the source that will hurt before long: WAL that the slot makes it keep, transactions that stay open.

PostgreSQL manual, ch. "Replication Slots" and "The Statistics Collector": a slot keeps WAL from the beginning of the
oldest transaction that is still open, and what that transaction wrote arrives only behind its commit.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import psycopg

from syncline.capture.slot import read_slot
from syncline.capture.source import SourceConfig, translated

__all__ = ["LONG_TRANSACTION", "SLOT_BUDGET", "Pressure", "pressures"]

SLOT_BUDGET, LONG_TRANSACTION = "SL-SLOT-BUDGET", "SL-LONG-TRANSACTION"

# Of a session of another role only its number is seen without pg_read_all_stats. Prepared transactions have no session.
_OPEN = """
select pid::text, coalesce(usename, '?'), coalesce(nullif(application_name, ''), '?'),
  extract(epoch from now() - coalesce(xact_start, backend_start))::float8 as age
from pg_stat_activity
where backend_xid is not null and datname = current_database() and pid <> pg_backend_pid()
  and now() - xact_start > make_interval(secs => %(longest_s)s)
union all
select 'prepared ' || gid, owner, '?', extract(epoch from now() - prepared)::float8
from pg_prepared_xacts
where database = current_database() and now() - prepared > make_interval(secs => %(longest_s)s)
order by age desc limit 5
"""
_LIMIT = "select setting::int8 * 1024 * 1024 from pg_settings where name = 'max_slot_wal_keep_size'"
_SPARE = 5  # what is left of the limit is little when it is a fifth


@dataclass(frozen=True, slots=True)
class Pressure:
    """One thing that is not wrong yet: its alert's code and severity, the subject below the source, and the words."""

    code: str
    severity: Literal["warning", "critical"]
    subject: str
    message: str
    remedy: str


def pressures(connection: psycopg.Connection[Any], config: SourceConfig) -> Iterator[Pressure]:
    """Look at the source's slot and transactions.

    Raises:
        Unavailable, Misconfigured: the source can't be asked.
    """
    with translated(config.plain):
        open_too_long = connection.execute(_OPEN, {"longest_s": config.long_transaction_s}).fetchall()
        yield from _of_slot(connection, config)
    for who, user, application, age in open_too_long:
        prepared = who.removeprefix("prepared ")
        named = f"Prepared transaction {prepared}" if prepared != who else f"The transaction of process {who}"
        end = f"ROLLBACK PREPARED '{prepared}'" if prepared != who else f"select pg_terminate_backend({who})"
        yield Pressure(
            LONG_TRANSACTION,
            "warning",
            who if prepared != who else f"pid {who}",
            f"{named} ({user}, {application}) is open for {age:,.0f} s: what it wrote arrives only behind its commit,"
            " and the slot keeps all WAL since it began.",
            f"End it if it was forgotten: {end}; or raise source.long_transaction_s.",
        )


def _of_slot(connection: psycopg.Connection[Any], config: SourceConfig) -> Iterator[Pressure]:
    slot = read_slot(connection, config.slot)
    limit = connection.execute(_LIMIT).fetchone()
    now = connection.execute("select (pg_current_wal_lsn() - '0/0'::pg_lsn)::int8").fetchone()
    if slot is None or limit is None or now is None:
        return
    if slot.safe_wal_size is not None and slot.safe_wal_size < int(limit[0]) // _SPARE:
        yield Pressure(
            SLOT_BUDGET,
            "critical",
            "slot",
            f"Slot {config.slot} is lost after {_mega(slot.safe_wal_size)} more of WAL (max_slot_wal_keep_size is"
            f" {_mega(int(limit[0]))}).",
            "See what holds it up (`syncline status`: a full log, a long transaction), or raise that limit.",
        )
    elif slot.safe_wal_size is None and int(now[0]) - slot.restart > config.slot_budget_bytes:
        yield Pressure(
            SLOT_BUDGET,
            "warning",
            "slot",
            f"Slot {config.slot} makes the source keep {_mega(int(now[0]) - slot.restart)} of WAL, more than"
            f" source.slot_budget_bytes ({_mega(config.slot_budget_bytes)}), and nothing limits it.",
            "See what holds it up (`syncline status`: a full log, a long transaction), and set the server's"
            " max_slot_wal_keep_size to what its disk can spare.",
        )


def _mega(count: int) -> str:
    return f"{max(0, count) / 2**20:,.0f} MiB"
