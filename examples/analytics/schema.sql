-- Users and their projects; websites that are read again and again; pages with their text.
create table users (
  id bigint primary key,
  name text not null,
  email text,
  plan text not null default 'free',
  created_at timestamptz not null default now()
);

create table projects (
  id bigint primary key,
  user_id bigint not null references users (id),
  name text not null,
  status text not null default 'active',
  settings jsonb not null default '{}',
  updated_at timestamptz not null default now()
);

create table domains (
  id bigint primary key,
  host text not null unique,
  last_scraped timestamptz,
  robots text
);

create table pages_v2 (
  id uuid primary key,
  domain_id bigint not null references domains (id),
  url text not null,
  status_code smallint not null,
  title text,
  content text,                          -- large: PostgreSQL stores it out of line
  word_count int not null,
  quality numeric(5,4),
  scraped_at timestamptz not null default now()
);

create table project_pages (
  project_id bigint not null references projects (id),
  page_id uuid not null references pages_v2 (id),
  starred boolean not null default false,
  note text,
  primary key (project_id, page_id)
);
create index on project_pages (page_id);
