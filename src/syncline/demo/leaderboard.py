"""Leaderboards of the day, the week, the month and the year in Valkey, and one table of all of them in PostgreSQL.

Under way the set of the day expires, which deletes nobody, and fills again.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from syncline.demo.copies import Copies
from syncline.demo.damage import Damage, Hands
from syncline.demo.scenario import Answer, Filled, Scenario

__all__ = ["SCENARIO"]

_PERIODS = ("daily", "weekly", "monthly", "yearly")
_MIDNIGHT = 3  # times that somebody was done with something before


@dataclass
class _Boards:
    """Users come with rising numbers and leave with the lowest; those up to ``left`` are gone."""

    users: int = 0
    left: int = 0
    scored: int = 0
    _random: random.Random = field(default_factory=lambda: random.Random(20))

    def join(self, client: Any, count: int) -> int:
        """New users, each with a first score in all periods."""
        first, self.users = self.users + 1, self.users + count
        names = [f"user-{n}" for n in range(first, self.users + 1)]
        with client.pipeline(transaction=False) as batch:
            for period in _PERIODS:
                batch.zadd(f"leaderboard:{period}", {name: self._random.randint(1, 5) for name in names})
            for name in names:
                batch.hset(f"user:{name}", mapping={"username": name.capitalize(), "updated_at": _now()})
            batch.execute()
        return count

    def score(self, client: Any, count: int) -> int:
        """Some are done with something, which counts everywhere; once it has become midnight."""
        self.scored += 1
        if self.scored == _MIDNIGHT:
            client.pexpire("leaderboard:daily", 0)
        names = sorted({f"user-{self._random.randint(self.left + 1, self.users)}" for _ in range(count)})
        with client.pipeline(transaction=False) as batch:
            for name in names:
                for period in _PERIODS:
                    batch.zincrby(f"leaderboard:{period}", 1, name)
                batch.hset(f"user:{name}", "updated_at", _now())
            batch.execute()
        return len(names)

    def rename(self, client: Any, count: int) -> int:
        name = f"user-{self._random.randint(self.left + 1, self.users)}"
        client.hset(f"user:{name}", mapping={"username": f"{name.capitalize()} II", "updated_at": _now()})
        return min(count, 1)

    def leave(self, client: Any, count: int) -> int:
        """The oldest leave: out of every set, and their hashes go."""
        count = min(count, (self.users - self.left) // 10)
        names = [f"user-{n}" for n in range(self.left + 1, self.left + count + 1)]
        self.left += count
        if names:
            with client.pipeline(transaction=False) as batch:
                for period in _PERIODS:
                    batch.zrem(f"leaderboard:{period}", *names)
                batch.delete(*(f"user:{name}" for name in names))
                batch.execute()
        return count


def _now() -> str:
    return datetime.now(UTC).isoformat()


def _fill(client: Any, rows: int) -> Filled:
    boards = _Boards()
    boards.join(client, max(20, rows))
    return (
        (15, boards.join),
        (70, boards.score),
        (5, boards.rename),
        (10, boards.leave),
    )


def _look(copies: Copies) -> dict[str, int]:
    (found,) = copies.table(
        "select count(*) as users, coalesce(sum(weekly_pomo), 0) as done from public.pomo_leaderboard"
    )
    return {"users": found["users"], "done this week": int(found["done"])}


def _ask(copies: Copies) -> Iterator[Answer]:
    found = copies.table(
        "select username, weekly_pomo from public.pomo_leaderboard order by weekly_pomo desc, user_id limit 3"
    )
    yield "Who leads the week? (PostgreSQL)", "; ".join(f"{f['username']}: {f['weekly_pomo']}" for f in found)
    (kept,) = copies.table("select count(*) as users from public.pomo_leaderboard where daily_pomo = 0")
    yield "Who has done nothing since midnight, when the set of the day expired?", f"{kept['users']:,} users, who stay"


def _change_score(hands: Hands) -> None:
    hands.table(
        "update public.pomo_leaderboard set yearly_pomo = yearly_pomo + 1000"
        " where user_id = (select min(user_id) from public.pomo_leaderboard)"
    )


def _delete_user(hands: Hands) -> None:
    hands.table(
        "delete from public.pomo_leaderboard where user_id = (select max(user_id) from public.pomo_leaderboard)"
    )


def _add_user(hands: Hands) -> None:
    hands.table("insert into public.pomo_leaderboard (user_id, username) values ('nobody', 'Nobody')")


_TABLE = "public.pomo_leaderboard"
_DAMAGE = (
    Damage("somebody gave a user 1,000 points", "main", _TABLE, "different", _change_score),
    Damage("a user is gone", "main", _TABLE, "missing", _delete_user),
    Damage("a user is there whom no board has", "main", _TABLE, "extra", _add_user),
)

SCENARIO = Scenario(
    name="leaderboard",
    summary="members of Redis keys into a table of PostgreSQL",
    rows=20_000,
    existing=10_000,
    largest=1000,
    servers=frozenset({"keys"}),
    fill=_fill,
    look=_look,
    ask=_ask,
    damage=_DAMAGE,
    of_members=True,
    words=("members", "steps"),
)
