-- A small shop.
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
