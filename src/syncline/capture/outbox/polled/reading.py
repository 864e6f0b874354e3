"""The queries of a poller: pages of events, and which of them have to wait for another. Functions over one connection.

An event *waits* for another of its entity with a lower number and a later transaction id. The publisher's lock lets no
two transactions draw numbers of one entity at once, so what an event waits for was committed before it was published,
and whoever sees the one sees the other.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import psycopg
import pyarrow as pa
from psycopg import sql

from syncline.capture.horizon.pages import Page
from syncline.change import Batch, Column, Op, TableSchema, make_batch

__all__ = ["first_beyond", "following", "lowest", "read_events", "read_page", "unfinished", "waits"]

Connection = psycopg.Connection[Any]

# Sizes as they are stored: of compressed payloads, the compressed ones.
_PAGE = """
select txid::text::int8, id from (
  select txid, id, sum(pg_column_size(payload) + 256)
    over (order by txid, id rows between unbounded preceding and 1 preceding) as before
  from (
    select txid, id, payload from {events} where (txid, id) > (%s::text::xid8, %s) and txid < %s::text::xid8
    order by txid, id limit %s) page
) sized
where coalesce(before, 0) < %s
order by txid, id
"""
_FOLLOWING = """
select txid::text::int8 from {events} where (txid, id) > (%s::text::xid8, %s) and txid < %s::text::xid8
order by txid, id limit 1
"""
# By number, where the first one is soon found; "offset 0" keeps the other from going through all old events for it.
_BEYOND = "select id from {events} where id > %s and txid >= %s::text::xid8 order by id limit 1"
_LOWEST = "select min(id) from (select id from {events} where txid >= %s::text::xid8 offset 0) beyond"
_WAITS = """
select e.id, (
  select max(f.txid)::text::int8 from {events} f
  where f.entity_type = e.entity_type and f.entity_id = e.entity_id and f.id < e.id and f.id > %s and f.txid > e.txid)
from {events} e where e.id = any(%s)
"""
_UNFINISHED = """
select e.id, (
  select max(f.txid)::text::int8 from {events} f
  where f.entity_type = e.entity_type and f.entity_id = e.entity_id and f.id < e.id and f.id >= %(low)s
    and f.txid >= %(place)s::text::xid8)
from {events} e where e.id > %(low)s and e.txid < %(place)s::text::xid8
"""

_COLUMNS = (
    Column("id", "int8", "bigint", key=True),
    *(Column(name, "text", "text") for name in ("event_id", "event_type", "entity_type", "entity_id")),
    Column("payload", "json", "jsonb"),
    Column("source_version", "int8", "bigint"),
    *(Column(name, "text", "text") for name in ("correlation_id", "source")),
)
_SELECT = (
    "select id, event_id, event_type, entity_type, entity_id, payload::text, source_version, correlation_id, source,"
    " txid::text::int8, (extract(epoch from created_at) * 1000000)::int8 from {events} where "
)
_EVENTS = (
    _SELECT
    + "(txid, id) >= (%(first_txid)s::text::xid8, %(first)s) and (txid, id) <= (%(last_txid)s::text::xid8, %(last)s)"
    + " and id <> all(%(without)s) union all "
    + _SELECT
    + "id = any(%(also)s) order by 1"
)


def _ask(connection: Connection, text: str, schema: str, params: Any) -> list[tuple[Any, ...]]:
    events = sql.Identifier(schema, "sync_event_log")
    return connection.execute(sql.SQL(text).format(events=events), params).fetchall()


def read_page(connection: Connection, schema: str, after: tuple[int, int], below: int, rows: int, nbytes: int) -> Page:
    """The events behind ``after`` of transactions before ``below``, as many as both bounds allow, at least one."""
    found = _ask(connection, _PAGE, schema, [*after, below, rows, nbytes])
    return Page([txid for txid, _ in found], [number for _, number in found])


def following(connection: Connection, schema: str, after: tuple[int, int], below: int) -> int | None:
    """The transaction id of the event that follows ``after``, None if none does below ``below``."""
    found = _ask(connection, _FOLLOWING, schema, [*after, below])
    return int(found[0][0]) if found else None


def first_beyond(connection: Connection, schema: str, number: int, cut: int) -> int | None:
    """The lowest number above ``number`` of transactions from ``cut`` on that can be seen; None without one."""
    found = _ask(connection, _BEYOND, schema, [number, cut])
    return int(found[0][0]) if found else None


def lowest(connection: Connection, schema: str, place: int) -> int | None:
    """The lowest number of transactions from ``place`` on that can be seen; reads all of these. None without one."""
    ((number,),) = _ask(connection, _LOWEST, schema, [place])
    return None if number is None else int(number)


def waits(connection: Connection, schema: str, numbers: Sequence[int], above: int) -> dict[int, int]:
    """Of the events with these numbers, those that wait for another one with a number ``above`` this: for which
    transaction, the last of them."""
    found = _ask(connection, _WAITS, schema, [above, list(numbers)])
    return {int(number): int(txid) for number, txid in found if txid is not None}


def unfinished(connection: Connection, schema: str, place: int) -> dict[int, int]:
    """As :func:`waits`: the events before ``place`` that wait for one of transactions from there on."""
    low = lowest(connection, schema, place)
    if low is None:
        return {}
    found = _ask(connection, _UNFINISHED, schema, {"low": low, "place": place})
    return {int(number): int(txid) for number, txid in found if txid is not None}


def read_events(
    connection: Connection, schema: str, page: Page, *, without: Iterable[int], also: Iterable[int], base: int
) -> Batch:
    """The events of a page ``without`` some and with others, by number; versions are ``base`` + number."""
    span = page.span
    params = {
        "first_txid": span.first[0],
        "first": span.first[1],
        "last_txid": span.last[0],
        "last": span.last[1],
        "without": list(without),
        "also": list(also),
    }
    found = _ask(connection, _EVENTS, schema, params)
    columns = [list(column) for column in zip(*found, strict=True)] or [[] for _ in range(len(_COLUMNS) + 2)]
    *values, txid, created = columns
    number = pa.array(values[0], pa.int64())
    types = {"int8": pa.int64()}
    return make_batch(
        TableSchema(schema, "sync_event_log", _COLUMNS),
        [pa.array(v, types.get(c.type, pa.string())) for v, c in zip(values, _COLUMNS, strict=True)],
        op=pa.array([int(Op.INSERT)] * len(found), pa.int8()),
        version=pa.array([base + n for n in values[0]], pa.int64()),
        ordinal=number,
        commit_time=pa.array(created, pa.int64()).view(pa.timestamp("us", "UTC")),
        xid=pa.array(txid, pa.int64()),
    )
