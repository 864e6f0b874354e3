"""Transactions that are open at a PostgreSQL source.

What they wrote arrives only behind their commits, a slot keeps the WAL since they began, and a horizon stands at the
oldest. Those of other databases of the server hold all of this up as well.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg import sql

__all__ = ["OpenTransaction", "open_transactions"]

# pg_locks shows the processes even to roles that may not see what others do. Prepared transactions have none.
_OPEN = """
with open as (
  select l.pid, null as gid, a.datname, a.application_name,
    extract(epoch from clock_timestamp() - a.xact_start)::float8 as age_s
  from (select distinct pid from pg_locks
        where locktype = 'transactionid' and mode = 'ExclusiveLock' and granted and pid <> pg_backend_pid()) l
    join pg_stat_activity a on a.pid = l.pid
  union all
  select null, gid, database, null, extract(epoch from clock_timestamp() - prepared)::float8 from pg_prepared_xacts
)
select pid, gid, datname, application_name, age_s from open
where age_s >= %s or (age_s is null and gid is null) order by age_s desc nulls last limit 10
"""


@dataclass(frozen=True, slots=True)
class OpenTransaction:
    """One that wrote something: its process, or the name under which it was prepared. ``age_s`` is None where our role
    may not see it."""

    pid: int | None
    gid: str | None
    database: str | None
    application: str | None
    age_s: float | None

    @property
    def subject(self) -> str:
        """What findings and alerts call it."""
        return "prepared transaction" if self.gid is not None else f"pid {self.pid}"

    @property
    def words(self) -> str:
        """How long it has been open, and whose it is."""
        age = f"for {self.age_s:,.0f} s" if self.age_s is not None else "since an unknown time"
        if self.gid is not None:
            return f"Transaction {self.gid!r} has been prepared {age}."
        return f"Its transaction has been open {age} (application {self.application or 'unnamed'!r})."

    @property
    def remedy(self) -> str:
        """How somebody ends it."""
        if self.gid is not None:
            return f"ROLLBACK PREPARED {sql.quote(self.gid)}; or COMMIT PREPARED, in database {self.database}."
        return f"End it, or: SELECT pg_terminate_backend({self.pid});"


def open_transactions(connection: psycopg.Connection[Any], least_s: float) -> list[OpenTransaction]:
    """The oldest ten that are open for as long, or for nobody knows how long."""
    return [OpenTransaction(*row) for row in connection.execute(_OPEN, [least_s])]
