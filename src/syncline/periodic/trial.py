"""`syncline periodic test`: three marked members through the user's own servers, and every trace removed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

from syncline.capture.redis.connection import Connection
from syncline.capture.redis.settings import Group, MemberColumn, groups_of
from syncline.capture.runs import Wish
from syncline.errors import Misconfigured
from syncline.periodic.service import PeriodicSync

__all__ = ["Step", "trial"]

_VALUES = {
    "bool": ("true", "false"),
    "text": ("test", "changed"),
    "date": ("2024-01-01", "2024-01-02"),
    "timestamp": ("2024-01-01T00:00:00", "2024-01-02T00:00:00"),
    "timestamptz": ("2024-01-01T00:00:00Z", "2024-01-02T00:00:00Z"),
}


@dataclass(frozen=True, slots=True)
class Step:
    """One thing that was tried: what, whether it went well, and what came of it."""

    what: str
    good: bool
    told: str


def trial(sync: PeriodicSync, talk: Callable[[str], None]) -> list[Step]:
    """Write three members to the keys, look for them at each target, change one, remove one, and remove the rest.

    Only these members are looked at; a companion set of changes is left alone.

    Raises:
        Misconfigured: the key column takes no names.
        Unavailable: a server is away. What was written is removed as far as can be.
    """
    settings = sync.settings
    if settings.member_type != "text":
        raise Misconfigured(
            f"The key column {settings.member} takes numbers, of which none can be marked as a test's.",
            remedy="Try it on a table of your own whose key column is text.",
        )
    names = [f"syncline_test_{uuid4().hex[:8]}_{n}" for n in (1, 2, 3)]
    with Connection(settings) as connection, sync.engine():
        keys = _Keys(connection, groups_of(settings), settings.columns)
        try:
            return _steps(sync, keys, names, talk)
        finally:
            keys.remove(names)
            _run(sync, names)


def _steps(sync: PeriodicSync, keys: _Keys, names: Sequence[str], talk: Callable[[str], None]) -> list[Step]:
    steps: list[Step] = []
    column = next(iter(sync.settings.columns))

    def look(what: str, good: Callable[[dict[str, Any]], bool]) -> None:
        """Have a run done, and see whether each target has what it should."""
        _run(sync, names)
        found = {target: _held(sync, target, names, column) for target in sync.targets}
        told = ", ".join(f"{target} has {len(rows)} of them" for target, rows in found.items())
        steps.append(Step(what, bool(found) and all(map(good, found.values())), told or "no target can be read"))
        talk(f"{'ok' if steps[-1].good else 'FAILED'}: {what} ({told})")

    keys.put(names, 0)
    look("three members of Redis are created in the table", lambda rows: set(rows) == set(names))
    before = {target: _held(sync, target, names, column) for target in sync.targets}
    keys.put(names[:1], 1)
    former = {rows[names[0]] for rows in before.values() if names[0] in rows}
    look("a change of one of them arrives", lambda rows: rows.get(names[0]) not in former)
    keys.remove(names[2:])
    look("one that was removed is deleted", lambda rows: set(rows) == set(names[:2]))
    keys.remove(names)
    look("the other two are removed again", lambda rows: not rows)
    return steps


def _run(sync: PeriodicSync, names: Sequence[str]) -> None:
    """These members only, and whatever the configuration says of gone keys: they are ours."""
    sync.run(Wish(members=tuple(names), allow_deletes=True))


def _held(sync: PeriodicSync, target: str, names: Sequence[str], column: str) -> dict[str, Any]:
    """Those of these members that the target has, with their value of a column."""
    key = sync.settings.member
    return {row[key]: row[column] for row in sync.held(target) if row[key] in names}


class _Keys:
    """Writes marked members to the keys of a configuration."""

    def __init__(self, connection: Connection, groups: Sequence[Group], columns: dict[str, MemberColumn]) -> None:
        self._connection, self._groups, self._columns = connection, groups, columns

    def put(self, members: Sequence[str], choice: int) -> None:
        self._connection.calls([self._put(group, member, choice) for group in self._groups for member in members])

    def _put(self, group: Group, member: str, choice: int) -> tuple[Any, ...]:
        values = [_VALUES.get(self._columns[name].type, ("3", "5"))[choice] for name in group.columns]
        if group.kind == "scores":
            return ("ZADD", group.key, values[0] if values[0].isdigit() else str(choice), member)
        if group.kind == "fields":
            return ("HSET", group.key, member, values[0])
        pairs = [part for pair in zip(group.fields, values, strict=True) for part in pair]
        return ("HSET", group.key_of(member.encode()), *pairs)

    def remove(self, members: Sequence[str]) -> None:
        self._connection.calls([self._removal(group, member) for group in self._groups for member in members])

    def _removal(self, group: Group, member: str) -> tuple[Any, ...]:
        if group.kind == "hashes":
            return ("DEL", group.key_of(member.encode()))
        return ("ZREM" if group.kind == "scores" else "HDEL", group.key, member)
