"""What goes on at a PostgreSQL source that will hurt before long: WAL that the slot makes it keep, and transactions
that stay open.

PostgreSQL manual, ch. "Replication Slots" and "The Cumulative Statistics System": a slot keeps WAL from the beginning
of the oldest transaction that is still open, and what that transaction wrote arrives only behind its commit.
"""

from __future__ import annotations

from typing import Any

import psycopg

from syncline.capture import LONG_TRANSACTION, SLOT_BUDGET, Pressure
from syncline.capture.slot import Slot
from syncline.capture.source import SourceConfig

__all__ = ["long_transactions", "slot_budget"]

# Of sessions of other roles the times are seen with pg_read_all_stats only. Prepared transactions have no session.
_OPEN = """
select pid::text, '', coalesce(usename, '?'), coalesce(nullif(application_name, ''), '?'),
  extract(epoch from now() - xact_start)::float8 as age
from pg_stat_activity
where backend_xid is not null and datname = current_database() and pid <> pg_backend_pid()
  and now() - xact_start > make_interval(secs => %(longest_s)s)
union all
select '', gid, owner, '?', extract(epoch from now() - prepared)::float8
from pg_prepared_xacts
where database = current_database() and now() - prepared > make_interval(secs => %(longest_s)s)
order by age desc limit 5
"""
_SPARE = 5  # what is left of the server's limit is little when it is a fifth


def long_transactions(connection: psycopg.Connection[Any], longest_s: float) -> list[Pressure]:
    """The oldest transactions that wrote something and are open for longer than ``longest_s``, five at most."""
    found = []
    for pid, prepared, user, application, age in connection.execute(_OPEN, {"longest_s": longest_s}):
        named = f"Prepared transaction {prepared}" if prepared else f"The transaction of process {pid}"
        end = f"ROLLBACK PREPARED '{prepared}'" if prepared else f"select pg_terminate_backend({pid})"
        message = (
            f"{named} ({user}, {application}) is open for {age:,.0f} s: what it wrote arrives only behind its commit,"
            " and what stands behind it may have to wait."
        )
        remedy = f"End it if it was forgotten: {end}; or raise source.long_transaction_s."
        subject = f"prepared {prepared}" if prepared else f"pid {pid}"
        found.append(Pressure(LONG_TRANSACTION, "warning", subject, message, remedy))
    return found


def slot_budget(slot: Slot | None, now: int, limit: int, config: SourceConfig) -> list[Pressure]:
    """Whether the slot is near the server's ``limit`` (bytes, negative: none), or, where there is none, keeps more WAL
    up to ``now`` than its budget."""
    if slot is None:
        return []
    if slot.safe_wal_size is not None and slot.safe_wal_size < limit // _SPARE:
        message = (
            f"Slot {slot.name} is lost after {_mega(slot.safe_wal_size)} more of WAL (max_slot_wal_keep_size is"
            f" {_mega(limit)})."
        )
        remedy = "See what holds it up (`syncline status`: a full log, a long transaction), or raise that limit."
        return [Pressure(SLOT_BUDGET, "critical", "slot", message, remedy)]
    if slot.safe_wal_size is None and now - slot.restart > config.slot_budget_bytes:
        message = (
            f"Slot {slot.name} makes the source keep {_mega(now - slot.restart)} of WAL, more than"
            f" source.slot_budget_bytes ({_mega(config.slot_budget_bytes)}), and nothing limits it."
        )
        remedy = (
            "See what holds it up (`syncline status`: a full log, a long transaction), and set the server's"
            " max_slot_wal_keep_size to what its disk can spare."
        )
        return [Pressure(SLOT_BUDGET, "warning", "slot", message, remedy)]
    return []


def _mega(count: int) -> str:
    return f"{max(0, count) / 2**20:,.0f} MiB"
