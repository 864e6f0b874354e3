"""How far events are, noted in bulk: no event is ever updated (correctness rule 30).

A *checkpoint* is a pair of a transaction horizon and a place: every transaction below the horizon was over when the WAL
was at the place, so whoever has passed the place has the events of all of them. A few checkpoints a second tell the
status of any number of events; an event's is that of the first checkpoint beyond its transaction.

Where the outbox is polled, a place is a transaction id. One that has not begun yet when the horizon is taken: what lies
before the horizon may be held back behind another event of its entity (:mod:`~syncline.capture.outbox.polled.stream`),
and that one's transaction has begun.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg import sql

from syncline.capture.wal import emit_progress

__all__ = ["Failure", "begin_anew", "events_since", "note_failures", "note_progress", "waits_for"]

# The snapshot is taken when the statement begins, and the place read after that: the other way round, a transaction
# might commit behind the place and be below the horizon.
_CHECKPOINT = """
insert into {schema}.sync_event_progress (horizon, place)
select horizon, (pg_current_wal_insert_lsn() - '0/0'::pg_lsn)::bigint
from (select pg_snapshot_xmin(pg_current_snapshot()) as horizon) as now
where exists (select from {schema}.sync_event_log where txid < horizon
              and txid >= coalesce((select max(horizon) from {schema}.sync_event_progress), '0'))
on conflict do nothing
"""
_POLLED_CHECKPOINT = """
insert into {schema}.sync_event_progress (horizon, place)
select pg_snapshot_xmin(now), pg_snapshot_xmax(now)::text::bigint from (select pg_current_snapshot() as now) as looked
where exists (select from {schema}.sync_event_log where txid < pg_snapshot_xmin(now)
              and txid >= coalesce((select max(horizon) from {schema}.sync_event_progress), '0'))
on conflict do nothing
"""
_REACHED = """
update {schema}.sync_event_progress set
  published_at = coalesce(published_at, clock_timestamp()),
  completed_at = case when place <= %(applied)s then clock_timestamp() end
where completed_at is null and place <= %(captured)s and (published_at is null or place <= %(applied)s)
"""
_SINCE = """
select event_id, entity_type, entity_id from {schema}.sync_event_log
where entity_type = any(%s) and txid >= coalesce(
  (select max(horizon) from {schema}.sync_event_progress where place < %s), '0')
order by id
"""
_POLLED_SINCE = """
select event_id, entity_type, entity_id from {schema}.sync_event_log
where entity_type = any(%s) and txid >= coalesce(
  (select max(horizon) from {schema}.sync_event_progress
   where horizon <= (select min(txid) from {schema}.sync_event_log where id >= %s)), '0')
order by id
"""
_WAITS = "select from {schema}.sync_event_progress where published_at is null and place > %s and place <= %s limit 1"
_FORGET = """
delete from {schema}.sync_event_failures
where (event_id, target) not in (select * from unnest(%s::text[], %s::text[]))
"""
_FAIL = """
insert into {schema}.sync_event_failures (event_id, target, error, failed_at)
select * from unnest(%s::text[], %s::text[], %s::text[], %s::timestamptz[]) on conflict do nothing
"""


@dataclass(frozen=True, slots=True)
class Failure:
    """An event that did not arrive at a target, and why."""

    event_id: str
    target: str
    error: str
    failed_at: Any


def _execute(connection: psycopg.Connection[Any], text: str, schema: str, params: Any = None) -> psycopg.Cursor[Any]:
    return connection.execute(sql.SQL(text).format(schema=sql.Identifier(schema)), params)


def note_progress(
    connection: psycopg.Connection[Any], schema: str, captured: int, applied: int, *, polled: bool = False
) -> None:
    """Note what lies up to the place ``captured`` as published, what every target has, up to ``applied``, as completed.
    New events get a checkpoint. Behind it the WAL is moved on, so that it is passed soon in an idle source, too; who
    polls looks for it (:func:`waits_for`)."""
    made = _execute(connection, _POLLED_CHECKPOINT if polled else _CHECKPOINT, schema).rowcount
    if made and not polled:
        emit_progress(connection)
    _execute(connection, _REACHED, schema, {"captured": captured, "applied": min(captured, applied)})


def waits_for(connection: psycopg.Connection[Any], schema: str, place: int, below: int) -> bool:
    """Whether there is a checkpoint behind ``place`` that is passed at ``below``."""
    return _execute(connection, _WAITS, schema, [place, below]).fetchone() is not None


def begin_anew(connection: psycopg.Connection[Any], schema: str) -> None:
    """Forget the checkpoints that were not passed: their places may be those of another way of capturing."""
    _execute(connection, "delete from {schema}.sync_event_progress where completed_at is null", schema)


def events_since(
    connection: psycopg.Connection[Any], schema: str, entity_types: Sequence[str], number: int, *, polled: bool = False
) -> list[tuple[str, str, str]]:
    """Id, entity type and entity id of the events that may have a version of ``number`` (less the base) or more, in
    their order."""
    return _execute(connection, _POLLED_SINCE if polled else _SINCE, schema, [list(entity_types), number]).fetchall()


def note_failures(connection: psycopg.Connection[Any], schema: str, failures: Sequence[Failure]) -> None:
    """Have these be the events that failed, and no others."""
    lists = [[getattr(f, name) for f in failures] for name in ("event_id", "target", "error", "failed_at")]
    with connection.transaction():
        _execute(connection, _FORGET, schema, lists[:2])
        _execute(connection, _FAIL, schema, lists)
