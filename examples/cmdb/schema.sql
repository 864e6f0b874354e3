-- A configuration management database: what there is, what depends on what, and who may do what.
create table users (
  user_id bigint generated always as identity primary key,
  username text not null unique,
  email text not null,
  active boolean not null default true
);

create table roles (
  role_id bigint generated always as identity primary key,
  name text not null unique,
  permissions text[] not null
);

create table user_roles (
  user_id bigint not null references users (user_id) on delete cascade,
  role_id bigint not null references roles (role_id) on delete cascade,
  granted_at timestamptz not null default now(),
  primary key (user_id, role_id)
);
create index on user_roles (role_id);

create table configuration_items (
  ci_id bigint generated always as identity primary key,
  name text not null,
  ci_type text not null check (ci_type in ('Service', 'Application', 'Database', 'Server', 'NetworkDevice')),
  status text not null,
  location text not null,
  owner_id bigint references users (user_id) on delete set null,
  attributes jsonb not null default '{}',
  updated_at timestamptz not null default now()
);
create index on configuration_items (owner_id);
create index on configuration_items (location);

create table relationships (
  relationship_id bigint generated always as identity primary key,
  source_ci_id bigint not null references configuration_items (ci_id) on delete cascade,
  target_ci_id bigint not null references configuration_items (ci_id) on delete cascade,
  relationship_type text not null check (relationship_type in ('DEPENDS_ON', 'RUNS_ON', 'CONNECTS_TO', 'STORES_IN')),
  criticality smallint not null default 1
);
create index on relationships (source_ci_id);
create index on relationships (target_ci_id);
