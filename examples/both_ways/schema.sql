CREATE TABLE player (
    id text PRIMARY KEY,
    name text,
    score bigint
);
