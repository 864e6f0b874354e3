"""`syncline periodic test`: three marked members through the user's own servers, and every trace removed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

from syncline.capture.redis.connection import Connection
from syncline.capture.redis.settings import Group, MemberColumn, groups_of
from syncline.errors import Misconfigured
from syncline.periodic.run import Result, Wish
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
    """Write three members to the keys, look for them in the table, change one, remove one, and remove the rest.

    Only these members are read, written and deleted; a companion set of changes is left alone.

    Raises:
        Misconfigured: the key column takes no names.
        Unavailable: a server is away. What was written is removed as far as can be.
    """
    config = sync.config
    if config.member_type != "text":
        raise Misconfigured(
            f"The key column {config.member} takes numbers, of which none can be marked as a test's.",
            remedy="Try it on a table of your own whose key column is text.",
        )
    names = [f"syncline_test_{uuid4().hex[:8]}_{n}" for n in (1, 2, 3)]
    with Connection(config) as connection:
        keys = _Keys(connection, groups_of(config), config.columns)
        try:
            return _steps(sync, keys, names, talk)
        finally:
            keys.remove(names)
            _run(sync, names)


def _steps(sync: PeriodicSync, keys: _Keys, names: Sequence[str], talk: Callable[[str], None]) -> list[Step]:
    steps: list[Step] = []

    def note(what: str, good: bool, result: Result) -> None:
        figures = f"created {result.created}, updated {result.updated}, deleted {result.deleted}"
        steps.append(Step(what, good, f"{figures}, set aside {result.set_aside}"))
        talk(f"{'ok' if good else 'FAILED'}: {what} ({steps[-1].told})")

    for name in names:
        keys.put(name, 0)
    made = _run(sync, names)
    note("three members of Redis are created in the table", made.created == 3, made)
    keys.put(names[0], 1)
    changed = _run(sync, names)
    note("a change of one of them arrives", changed.updated == 1, changed)
    keys.remove(names[2:])
    gone = _run(sync, names)
    note("one that was removed is deleted", gone.deleted == 1, gone)
    keys.remove(names)
    rest = _run(sync, names)
    note("the other two are removed again", rest.deleted == 2, rest)
    return steps


def _run(sync: PeriodicSync, names: Sequence[str]) -> Result:
    """These members only, and whatever the configuration says of gone keys: they are ours."""
    return sync.run(Wish(members=tuple(names), allow_deletes=True))


class _Keys:
    """Writes marked members to the keys of a configuration."""

    def __init__(self, connection: Connection, groups: Sequence[Group], columns: dict[str, MemberColumn]) -> None:
        self._connection, self._groups, self._columns = connection, groups, columns

    def put(self, member: str, choice: int) -> None:
        self._connection.calls([self._put(group, member, choice) for group in self._groups])

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
