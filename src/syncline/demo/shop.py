"""The demo that is run without a name: a small shop into DuckDB, as many rows as the machine takes.

Rows are made by PostgreSQL itself, a statement for many, so that the workload takes little of this process's time.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, LiteralString

import psycopg

from syncline.demo.copies import Copies
from syncline.demo.scenario import Answer, Filled, Scenario, done

__all__ = ["SCENARIO"]

_TABLES = ("customers", "orders", "order_items", "events")

_CUSTOMERS: LiteralString = """
insert into customers
select g, 'Customer ' || g, 'c' || g || '@example.org', (random() * 10000)::numeric(12,2),
  jsonb_build_object('visits', g %% 97, 'name', md5(g::text)), array['t' || g %% 7, 't' || g %% 11],
  date '1950-01-01' + (g %% 20000)::int, now() - g * interval '1 second'
from generate_series(%(first)s::bigint, %(last)s::bigint) g
"""
# One order in fifty has notes so long that PostgreSQL stores them out of line.
_ORDERS: LiteralString = """
insert into orders
select g, 1 + g %% %(customers)s, 'new', (random() * 500)::numeric(12,2),
  case when g %% 50 = 0 then (select string_agg(md5((g * n)::text), '') from generate_series(1, 150) n)
       else 'deliver to door ' || g %% 100 end,
  clock_timestamp()
from generate_series(%(first)s::bigint, %(last)s::bigint) g
"""
_ITEMS: LiteralString = """
insert into order_items
select g, line, 'SKU-' || (g * line) %% 5000, 1 + line, (random() * 90)::numeric(10,2), random()
from generate_series(%(first)s::bigint, %(last)s::bigint) g, generate_series(1, 3) line
"""
_EVENTS: LiteralString = """
insert into events (id, kind, payload, took, client, score)
select g, (array['view', 'cart', 'pay', 'search'])[1 + g %% 4], jsonb_build_object('n', g, 'path', '/p/' || g %% 1000),
  (g %% 5000) * interval '1 ms', '10.0.0.0'::inet + g %% 65536, random()
from generate_series(%(first)s::bigint, %(last)s::bigint) g
"""
_PICKED: LiteralString = "select 1 + (random() * %(top)s)::bigint from generate_series(1, %(count)s)"
_STATUS: LiteralString = (
    "update orders set status = (array['paid', 'shipped', 'returned'])[1 + (random() * 2)::int]::order_status"
    f" where id in ({_PICKED})"
)
_QUANTITY: LiteralString = f"update order_items set quantity = quantity + 1 where line = 1 and order_id in ({_PICKED})"
_PROFILE: LiteralString = (
    "update customers set credit = credit - 1, profile = jsonb_set(profile, '{visits}', to_jsonb((random() * 99)::int))"
    f" where id in ({_PICKED})"
)
_FORGET: LiteralString = "delete from events where id between %(first)s and %(last)s"
_RETURN: LiteralString = f"delete from order_items where line = 3 and order_id in ({_PICKED})"
_RENUMBER: LiteralString = "update events set id = -id where id between %(first)s and %(last)s"

_ROWS_PER_ORDER = 4  # with its items


@dataclass
class _Shop:
    """How many rows of each kind there are; ``forgotten``: up to which event they are deleted."""

    customers: int
    orders: int
    events: int
    forgotten: int = 0

    def add_events(self, cursor: psycopg.Cursor[Any], rows: int) -> int:
        first, self.events = self.events + 1, self.events + rows
        return done(cursor, _EVENTS, first=first, last=self.events)

    def add_orders(self, cursor: psycopg.Cursor[Any], rows: int) -> int:
        if rows < _ROWS_PER_ORDER:
            return self.change_status(cursor, rows)
        first, self.orders = self.orders + 1, self.orders + rows // _ROWS_PER_ORDER
        added = done(cursor, _ORDERS, first=first, last=self.orders, customers=self.customers)
        return added + done(cursor, _ITEMS, first=first, last=self.orders)

    def forget(self, cursor: psycopg.Cursor[Any], rows: int) -> int:
        first = self.forgotten + 1
        self.forgotten = min(self.forgotten + rows, self.events)
        return done(cursor, _FORGET, first=first, last=self.forgotten)

    def renumber(self, cursor: psycopg.Cursor[Any], rows: int) -> int:
        first = max(self.events - min(rows, 50) + 1, self.forgotten + 1)
        return done(cursor, _RENUMBER, first=first, last=self.events)

    def change_status(self, cursor: psycopg.Cursor[Any], rows: int) -> int:
        return done(cursor, _STATUS, top=self.orders, count=rows)

    def change_quantity(self, cursor: psycopg.Cursor[Any], rows: int) -> int:
        return done(cursor, _QUANTITY, top=self.orders, count=rows)

    def change_profile(self, cursor: psycopg.Cursor[Any], rows: int) -> int:
        return done(cursor, _PROFILE, top=self.customers, count=rows)

    def take_back(self, cursor: psycopg.Cursor[Any], rows: int) -> int:
        return done(cursor, _RETURN, top=self.orders, count=rows)


def _fill(connection: psycopg.Connection[Any], rows: int) -> Filled:
    unit = max(1, rows // 20)
    shop = _Shop(customers=4 * unit, orders=3 * unit, events=4 * unit)
    connection.execute(_CUSTOMERS, {"first": 1, "last": shop.customers})
    connection.execute(_ORDERS, {"first": 1, "last": shop.orders, "customers": shop.customers})
    connection.execute(_ITEMS, {"first": 1, "last": shop.orders})
    connection.execute(_EVENTS, {"first": 1, "last": shop.events})
    return (
        (30, shop.add_events),
        (20, shop.add_orders),
        (15, shop.forget),
        (3, shop.renumber),
        (8, shop.change_status),
        (8, shop.change_quantity),
        (8, shop.change_profile),
        (8, shop.take_back),
    )


def _look(copies: Copies) -> dict[str, int]:
    return copies.rows("select " + ", ".join(f"(select count(*) from {t}) as {t}" for t in _TABLES))[0]


def _ask(copies: Copies) -> Iterator[Answer]:
    (found,) = copies.rows("select count(*) as orders, sum(total) as total from orders where status = 'shipped'")
    yield "What is shipped? (DuckDB)", f"{found['orders']:,} orders for {found['total'] or 0:,.2f}"


SCENARIO = Scenario(
    name="shop",
    summary="a shop's tables into DuckDB, live",
    rows=1_000_000,
    existing=250_000,
    largest=4000,
    servers=frozenset(),
    fill=_fill,
    look=_look,
    ask=_ask,
)
