"""What happens in the demo's source: a small shop with existing rows, and a workload that keeps changing them.

Rows are made by PostgreSQL itself, a statement for many, so that the workload takes little of this process's time.
"""

from __future__ import annotations

import random
import threading
from dataclasses import dataclass, field
from typing import Any, LiteralString

import psycopg

__all__ = ["TABLES", "Workload", "create_shop"]

TABLES = ("customers", "orders", "order_items", "events")

_SCHEMA: LiteralString = """
create type order_status as enum ('new', 'paid', 'shipped', 'returned');
create table customers (
  id bigint primary key, name text not null, email text, credit numeric(12,2), profile jsonb, tags text[],
  born date, created_at timestamptz not null default now());
create table orders (
  id bigint primary key, customer_id bigint not null, status order_status not null default 'new',
  total numeric(12,2), notes text, placed_at timestamptz not null default now());
create table order_items (
  order_id bigint, line int, sku text not null, quantity int not null, price numeric(10,2), discount real,
  primary key (order_id, line));
create table events (
  id bigint primary key, trace uuid not null default gen_random_uuid(), kind text, payload jsonb, took interval,
  client inet, score double precision, at timestamptz not null default clock_timestamp());
"""

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
# Rows of one transaction: mostly a few, now and then thousands.
_SIZES = (1, 1, 1, 1, 2, 5, 10, 50, 200, 1000, 4000)


def create_shop(connection: psycopg.Connection[Any], rows: int) -> Workload:
    """The tables, filled with about ``rows`` rows; and a workload that goes on from there."""
    unit = max(1, rows // 20)
    customers, orders, events = 4 * unit, 3 * unit, 4 * unit
    connection.execute(_SCHEMA)
    with connection.transaction():
        connection.execute(_CUSTOMERS, {"first": 1, "last": customers})
        connection.execute(_ORDERS, {"first": 1, "last": orders, "customers": customers})
        connection.execute(_ITEMS, {"first": 1, "last": orders})
        connection.execute(_EVENTS, {"first": 1, "last": events})
    return Workload(customers, orders, events)


@dataclass
class Workload:
    """Changes rows in transactions of mixed sizes. ``rows`` and ``transactions`` count what it committed."""

    customers: int
    orders: int
    events: int
    forgotten: int = 0
    rows: int = 0
    transactions: int = 0
    _random: random.Random = field(default_factory=lambda: random.Random(20))

    def run(self, dsn: str, rows: int, stop: threading.Event) -> None:
        """Change ``rows`` rows, as fast as the server takes them, or until stopped."""
        with psycopg.connect(dsn, autocommit=True, application_name="syncline-demo") as connection:
            while self.rows < rows and not stop.is_set():
                wanted = min(self._random.choice(_SIZES), rows - self.rows)
                with connection.transaction():
                    done = self._change(connection.cursor(), wanted)
                self.rows += done
                self.transactions += 1

    def _change(self, cursor: psycopg.Cursor[Any], rows: int) -> int:
        """At most this many rows, of one or two tables; how many."""
        choice = self._random.random()
        if choice < 0.30:
            return self._add_events(cursor, rows)
        if choice < 0.50 and rows >= _ROWS_PER_ORDER:
            return self._add_orders(cursor, rows // _ROWS_PER_ORDER)
        if choice < 0.65:
            first = self.forgotten + 1
            self.forgotten = min(self.forgotten + rows, self.events)
            return _done(cursor, _FORGET, first=first, last=self.forgotten)
        if choice < 0.68:
            first = self.events - min(rows, 50) + 1
            return _done(cursor, _RENUMBER, first=max(first, self.forgotten + 1), last=self.events)
        statement, top = self._random.choice(
            ((_STATUS, self.orders), (_QUANTITY, self.orders), (_PROFILE, self.customers), (_RETURN, self.orders))
        )
        return _done(cursor, statement, top=top, count=rows)

    def _add_events(self, cursor: psycopg.Cursor[Any], rows: int) -> int:
        first, self.events = self.events + 1, self.events + rows
        return _done(cursor, _EVENTS, first=first, last=self.events)

    def _add_orders(self, cursor: psycopg.Cursor[Any], orders: int) -> int:
        first, self.orders = self.orders + 1, self.orders + orders
        done = _done(cursor, _ORDERS, first=first, last=self.orders, customers=self.customers)
        return done + _done(cursor, _ITEMS, first=first, last=self.orders)


def _done(cursor: psycopg.Cursor[Any], statement: LiteralString, **values: int) -> int:
    return cursor.execute(statement, values).rowcount
