-- What follows the leaderboards. Without it Syncline makes the table, without defaults and index.
create table pomo_leaderboard (
    user_id text primary key,
    daily_pomo integer default 0,
    weekly_pomo integer default 0,
    monthly_pomo integer default 0,
    yearly_pomo integer default 0,
    username text,
    updated_at timestamptz
);
create index on pomo_leaderboard (weekly_pomo desc);
