-- A learning academy: who learns what, in which order.
create schema jeseci_academy;

create table jeseci_academy.users (
  user_id text primary key,             -- user-456
  name text not null,
  email text not null,
  role text not null check (role in ('Learner', 'Author')),
  joined date not null
);

create table jeseci_academy.concepts (
  concept_id text primary key,          -- concept-123
  title text not null,
  content text not null,
  difficulty smallint not null,
  author_id text references jeseci_academy.users (user_id),
  part_of text references jeseci_academy.concepts (concept_id),
  updated_at timestamptz not null default now()
);
create index on jeseci_academy.concepts (part_of);

-- One concept needs another one first, or is like it.
create table jeseci_academy.concept_relations (
  concept_id text not null references jeseci_academy.concepts (concept_id),
  other_id text not null references jeseci_academy.concepts (concept_id),
  kind text not null check (kind in ('REQUIRES', 'RELATES_TO')),
  strength real not null,
  primary key (concept_id, other_id)
);
create index on jeseci_academy.concept_relations (other_id);

create table jeseci_academy.learning_paths (
  path_id text primary key,             -- path-7
  title text not null,
  target_hours numeric(6,1) not null
);

create table jeseci_academy.path_concepts (
  path_id text not null references jeseci_academy.learning_paths (path_id),
  concept_id text not null references jeseci_academy.concepts (concept_id),
  position int not null,
  primary key (path_id, concept_id)
);
create index on jeseci_academy.path_concepts (concept_id);

create table jeseci_academy.progress (
  user_id text not null references jeseci_academy.users (user_id),
  concept_id text not null references jeseci_academy.concepts (concept_id),
  mastery real not null,
  minutes int not null,
  last_seen timestamptz not null default now(),
  primary key (user_id, concept_id)
);
create index on jeseci_academy.progress (concept_id);
