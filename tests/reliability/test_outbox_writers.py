"""Sixteen writers that commit whenever they please: the outbox loses nothing and keeps each entity's order.

Beside it runs what many do instead: a poller that asks for ids above the last one it saw. A number is drawn before its
transaction commits, so greater ones become visible first, and what commits late is never asked for again.
"""

from __future__ import annotations

import json
import random
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from reliability.harness import Engine, Rig
from servers import Database, eventually
from syncline.capture.outbox.install import install
from syncline.capture.outbox.settings import OutboxConfig
from syncline.change import Batch, Position
from syncline.publisher import SyncPublisher

WRITERS, ENTITIES = 16, 40
OUTBOX: dict[str, Any] = {"entities": {"item": {"table": "public.item"}}}
LEAST = 45  # events of a writer, of which a tenth is rolled back
EVENTS = "select id, entity_id, (payload ->> 'n')::int from syncline_outbox.sync_event_log"


def writers_table(database: Database) -> dict[str, Any]:
    """Make the table that is written to; the settings of its outbox."""
    database.execute("create table item (id int primary key, n int not null)")
    return OUTBOX


@pytest.fixture
def rig(database: Database, tmp_path: Path) -> Rig:
    writers_table(database)
    with database.connect() as connection:
        install(connection, OutboxConfig(**OUTBOX))
    return Rig(database, tmp_path, source={"outbox": OUTBOX})


def write(database: Database, publisher: SyncPublisher, number: int, until: float) -> None:
    """Transactions of one to four events with their rows, some rolled back, each held open for a while; on a slow
    machine for longer than asked, until there are enough."""
    chance, n = random.Random(number), number * 1_000_000
    enough = n + LEAST
    with database.connect(autocommit=False) as connection:
        while time.monotonic() < until or n < enough:
            # In the order of the entities, as a careful application locks them: so no two writers end in a deadlock.
            for entity in sorted(chance.sample(range(ENTITIES), chance.randint(1, 4))):
                n += 1
                publisher.publish_content_updated(entity, "item", {"n": n}, session=connection)
                connection.execute(
                    "insert into item values (%s, %s) on conflict (id) do update set n = excluded.n", [entity, n]
                )
            time.sleep(chance.random() * 0.03)
            connection.rollback() if chance.random() < 0.1 else connection.commit()


def poll_by_id(database: Database, seen: list[int], stop: Callable[[], bool]) -> None:
    """The naive poller."""
    with database.connect() as connection:
        while not stop():
            last = seen[-1] if seen else 0
            new = "select id from syncline_outbox.sync_event_log where id > %s order by id limit 1000"
            seen += [row[0] for row in connection.execute(new, [last])]
            time.sleep(0.002)


def logged(engine: Engine, at: Position) -> list[tuple[str, int]]:
    """The entity and the number of each change behind a position of the log, in its order."""
    found: list[tuple[str, int]] = []
    end = engine.source.log.status().end
    while at.n < end:
        for position, entry in engine.source.log.read(at, 1 << 20):
            at = position
            for item in entry.items:
                if isinstance(item, Batch) and item.schema.name == "item":
                    columns = (item.rows.column(name).to_pylist() for name in ("id", "n"))
                    found += [(str(entity), n) for entity, n in zip(*columns, strict=True)]
    return found


def run(rig: Rig, monkeypatch: pytest.MonkeyPatch, seconds: float) -> dict[str, int]:
    publisher, over = SyncPublisher(), threading.Event()
    seen: list[int] = []
    with rig.running() as engine, ThreadPoolExecutor(WRITERS + 1) as pool:
        monkeypatch.setattr(engine.source.log, "trim", lambda: 0)  # so that the whole of it can be looked at
        begin = Position(engine.source.log.uuid, engine.source.log.status().end)
        naive = pool.submit(poll_by_id, rig.database, seen, over.is_set)
        until = time.monotonic() + seconds
        for writer in [pool.submit(write, rig.database, publisher, n, until) for n in range(1, WRITERS + 1)]:
            writer.result()
        last = rig.database.value("select max(id) from syncline_outbox.sync_event_log")
        eventually(lambda: seen and seen[-1] == last)
        over.set()
        naive.result()
        engine.equal(timeout_s=60)
        arrived = logged(engine, begin)
    events = rig.database.execute(f"{EVENTS} order by id")
    assert sorted(n for _, n in arrived) == sorted(n for *_, n in events), "lost, or there twice"
    assert by_entity(arrived) == by_entity((entity, n) for _, entity, n in events), "not in the order of the numbers"
    return {"events": len(events), "naive_lost": len({row[0] for row in events} - set(seen))}


def by_entity(events: Any) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for entity, n in events:
        found.setdefault(entity, []).append(n)
    return found


def test_sixteen_writers_lose_nothing_through_the_slot_and_much_to_a_poller_by_id(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = run(rig, monkeypatch, 3)
    assert found["events"] > 500
    assert found["naive_lost"] > 0


@pytest.mark.soak
def test_sixteen_writers_lose_nothing_in_twenty_seconds(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    found = run(rig, monkeypatch, 20)
    print(json.dumps(found))
    assert found["naive_lost"] > 0
