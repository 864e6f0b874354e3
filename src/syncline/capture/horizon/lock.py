"""The advisory lock of whoever reads a table of events: held by its session, so a killed reader's ends by itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import psycopg

from syncline.capture import IN_USE
from syncline.errors import Unavailable

__all__ = ["ReaderLock"]

Connection = psycopg.Connection[Any]

_HOLDER = """
select l.pid, coalesce(nullif(a.application_name, ''), 'a program without a name')
from pg_locks l left join pg_stat_activity a on a.pid = l.pid
where l.locktype = 'advisory' and l.granted
  and l.database = (select oid from pg_database where datname = current_database())
  and (l.classid::int8 << 32 | l.objid::int8) = hashtextextended(%s, 0) and l.objsubid = 1
"""


@dataclass(frozen=True, slots=True)
class ReaderLock:
    """The lock called ``name``. ``reading`` says of what it keeps others, such as "Events are read as x", ``where`` the
    server, and ``remedy`` what is to be done about two readers."""

    name: str
    reading: str
    where: str
    remedy: str

    def take(self, connection: Connection) -> None:
        """Be the only reader for as long as the connection lasts.

        Raises:
            Unavailable: somebody else is (:data:`~syncline.capture.IN_USE`).
        """
        row = connection.execute("select pg_try_advisory_lock(hashtextextended(%s, 0))", [self.name]).fetchone()
        if row is None or not row[0]:
            self.refuse_held(connection)
            raise Unavailable(f"{self.reading} by somebody who was gone at once.", code=IN_USE)

    def refuse_held(self, connection: Connection) -> None:
        """Raise ``Unavailable`` while somebody reads."""
        row = connection.execute(_HOLDER, [self.name]).fetchone()
        if row is not None:
            raise Unavailable(
                f"{self.reading} already: {row[1]} at {self.where} (server process {row[0]}).",
                remedy=self.remedy,
                code=IN_USE,
            )

    def is_held(self, connection: Connection) -> bool:
        """Whether somebody reads now."""
        return connection.execute(_HOLDER, [self.name]).fetchone() is not None
