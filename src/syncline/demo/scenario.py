"""What a demo consists of: servers, existing rows, a workload that changes them, and what to ask the copies."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, LiteralString

import psycopg

from syncline.demo.copies import Copies
from syncline.demo.damage import Damage

__all__ = [
    "Answer",
    "Doing",
    "Filled",
    "Scenario",
    "Server",
    "Step",
    "Workload",
    "client_of",
    "done",
    "members",
    "transactions",
]

Step = Callable[[Any, int], int]
"""Changes about so many rows in the transaction of the cursor, or members by the client, that is given; says how many
it did change."""

Doing = Callable[[Step, int], int]
"""Does a step."""

Server = Literal["graph", "keys"]
"""A graph that speaks Bolt; a server that speaks the protocol of Redis."""

Answer = tuple[str, str]
"""A question to a copy, as its users would ask it, and what it said."""

# Rows of one transaction: mostly a few, now and then thousands.
_SIZES = (1, 1, 1, 1, 2, 5, 10, 50, 200, 1000, 4000)
_FRUITLESS = 1000


@dataclass(frozen=True)
class Scenario:
    """One demo. ``files`` is the folder of its configuration and tables.

    ``rows`` are changed unless the user says another number, and half as many are there before, ``existing`` at most.
    ``servers`` are those it needs beside PostgreSQL. ``fill`` writes about so many and says what happens to them.
    ``ask`` asks the copies what their users would. ``damage`` is done to them at the end, found, and mended.
    ``of_members``: what changes are members of the keys of a Valkey
    server, by a client of it, and not rows of PostgreSQL. ``config`` and ``schema`` are its files ('' for tables that
    Syncline makes), ``words`` what is changed, and in what.
    """

    name: str
    summary: str
    rows: int
    existing: int
    largest: int
    servers: frozenset[Server]
    fill: Callable[[Any, int], Filled]
    look: Callable[[Copies], dict[str, int]]
    ask: Callable[[Copies], Iterator[Answer]]
    of_members: bool = False
    config: str = "syncline.yaml"
    schema: str = "schema.sql"
    words: tuple[str, str] = ("rows", "transactions")
    damage: tuple[Damage, ...] = ()

    @property
    def files(self) -> Path:
        return Path(__file__).with_name("files") / self.name


Filled = Sequence[tuple[float, Step]]
"""What may happen to the rows that are there, with the weight of each."""


@dataclass
class Workload:
    """Changes rows in transactions of mixed sizes, ``largest`` rows at most. ``rows`` and ``transactions`` count what
    it committed."""

    steps: Filled
    largest: int
    rows: int = 0
    transactions: int = 0
    _random: random.Random = field(default_factory=lambda: random.Random(20))

    def run(self, begin: Callable[[], AbstractContextManager[Doing]], rows: int, stop: threading.Event) -> None:
        """Change about ``rows`` rows, as fast as the server takes them, or until stopped."""
        weights, steps = zip(*self.steps, strict=True)
        sizes = [size for size in _SIZES if size <= self.largest]
        fruitless = 0
        with begin() as do:
            while self.rows < rows and not stop.is_set() and fruitless < _FRUITLESS:
                (step,) = self._random.choices(steps, weights)
                changed = do(step, min(self._random.choice(sizes), rows - self.rows))
                self.rows += changed
                self.transactions += changed > 0
                fruitless = 0 if changed else fruitless + 1


@contextmanager
def transactions(dsn: str) -> Iterator[Doing]:
    """Steps as transactions of PostgreSQL."""
    with psycopg.connect(dsn, autocommit=True, application_name="syncline-demo") as connection:

        def do(step: Step, wanted: int) -> int:
            with connection.transaction():
                return step(connection.cursor(), wanted)

        yield do


@contextmanager
def client_of(url: str) -> Iterator[Any]:
    """A client of Valkey."""
    import redis

    with redis.Redis.from_url(url, decode_responses=True) as client:
        yield client


@contextmanager
def members(url: str) -> Iterator[Doing]:
    """Steps by a client of Valkey."""
    with client_of(url) as client:
        yield lambda step, wanted: step(client, wanted)


def done(cursor: psycopg.Cursor[Any], statement: LiteralString, **values: Any) -> int:
    """Execute a statement; how many rows it changed."""
    return cursor.execute(statement, values).rowcount
