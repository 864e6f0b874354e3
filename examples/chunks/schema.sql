-- Documents in chunks, as a retrieval system keeps them: text, dense and sparse embeddings, and what is mentioned where.
create schema unified;

create table unified.documents (
  id bigint primary key,
  title text not null,
  lang text not null,
  metadata jsonb not null default '{}',
  updated_at timestamptz not null default now()
);

create table unified.chunks (
  id uuid primary key,
  document_id bigint not null references unified.documents (id),
  previous_id uuid references unified.chunks (id),
  content text not null,
  dense real[] not null,                -- 64 dimensions, length 1
  sparse jsonb not null,                -- {"indices": [...], "values": [...]}
  metadata jsonb not null default '{}',
  system_origin text not null check (system_origin in ('claude', 'cognee', 'hybrid')),
  updated_at timestamptz not null default now()
);
create index on unified.chunks (document_id);
create index on unified.chunks (previous_id);

create table unified.entities (
  id bigint primary key,
  name text not null,
  kind text not null check (kind in ('Person', 'Place', 'Work', 'Idea'))
);

create table unified.mentions (
  chunk_id uuid not null references unified.chunks (id),
  entity_id bigint not null references unified.entities (id),
  weight real not null,
  primary key (chunk_id, entity_id)
);
create index on unified.mentions (entity_id);
