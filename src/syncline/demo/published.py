"""The chunks of demo ``chunks``, published as events into a Redis stream, for stores that each names."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any
from uuid import UUID, uuid5

from syncline.demo.chunks import change_text, remove_point
from syncline.demo.copies import Copies
from syncline.demo.damage import Damage, Hands
from syncline.demo.scenario import Answer, Filled, Scenario

__all__ = ["SCENARIO"]

_STREAM = "chunk:sync:stream"
_NAMES = UUID("6f309800-6734-412c-8000-000000000004")
_SIZE = 64
_TOPICS = ("tides", "comets", "bridges", "clocks", "forests", "lighthouses", "volcanoes", "looms")
_WRITERS = ("claude", "cognee", "hybrid")
_ALL = ("postgres", "qdrant", "neo4j")


@dataclass
class _Writers:
    """How many chunks were published, which of them are gone, and who was told of each. Some events come twice, as from
    a publisher that is not sure of the first time."""

    chunks: int = 0
    gone: set[int] = field(default_factory=set)
    _random: random.Random = field(default_factory=lambda: random.Random(4))

    def create(self, client: Any, count: int) -> int:
        first, self.chunks = self.chunks, self.chunks + count
        return self._publish(client, "create", [(g, self._whole(g)) for g in range(first, self.chunks)])

    def rewrite(self, client: Any, count: int) -> int:
        """New text and new vectors; the other fields stay."""
        fields = ("content", "embeddings", "updated_at")
        return self._publish(client, "update", [(g, {n: self._whole(g)[n] for n in fields}) for g in self._some(count)])

    def annotate(self, client: Any, count: int) -> int:
        some = self._some(count)
        return self._publish(
            client, "update", [(g, {"metadata": {"seen": self._random.randrange(1000)}}) for g in some]
        )

    def forget(self, client: Any, count: int) -> int:
        some = self._some(count // 4 + 1)
        self.gone.update(some)
        return self._publish(client, "delete", [(g, {}) for g in some])

    def _some(self, count: int) -> list[int]:
        there = {self._random.randrange(self.chunks) for _ in range(count)}
        return sorted(there - self.gone)

    def _publish(self, client: Any, kind: str, chunks: Sequence[tuple[int, dict[str, Any]]]) -> int:
        with client.pipeline(transaction=False) as batch:
            for g, fields in chunks:
                event = {
                    "event_id": str(UUID(int=self._random.getrandbits(128), version=4)),
                    "type": kind,
                    "source": _WRITERS[g % 3],
                    # A chunk is for the same stores all its life: one in eight is for the vectors alone.
                    "targets": json.dumps(["qdrant"] if g % 8 == 7 else _ALL if g % 2 else []),
                    "chunk": json.dumps({"id": _ident(g), **fields}),
                    "timestamp": datetime.now(UTC).isoformat(),
                }
                for _ in range(1 + (self._random.random() < 0.05)):
                    batch.xadd(_STREAM, event)
            batch.execute()
        return len(chunks)

    def _whole(self, g: int) -> dict[str, Any]:
        words = " ".join(f"{self._random.getrandbits(64):016x}" for _ in range(12))
        return {
            "previous_id": _ident(g - 1) if g % 8 else None,
            "content": f"Part {g}, about {_TOPICS[g % 8]}. {words}",
            "embeddings": {
                "dense": self._vector(g),
                "sparse": {"indices": [g % 8, 8 + g % 1000], "values": [1, self._random.random()]},
            },
            "metadata": {"position": g % 8},
            "system_origin": _WRITERS[g % 3],
            "updated_at": datetime.now(UTC).isoformat(),
        }

    def _vector(self, g: int) -> list[float]:
        """One of length 1 near the direction of the chunk's topic."""
        raw = [(i % 8 == g % 8) + (self._random.random() - 0.5) * 0.6 for i in range(_SIZE)]
        norm = sum(x * x for x in raw) ** 0.5
        return [x / norm for x in raw]


def _ident(g: int) -> str:
    return str(uuid5(_NAMES, str(g)))


def _fill(client: Any, rows: int) -> Filled:
    writers = _Writers()
    writers.create(client, max(20, rows))
    return ((35, writers.create), (25, writers.rewrite), (30, writers.annotate), (10, writers.forget))


def _look(copies: Copies) -> dict[str, int]:
    (found,) = copies.graph("MATCH (n:Chunk) RETURN count(n) AS chunks")
    (rows,) = copies.table("select count(*) as n from unified.published")
    return {"chunks in the graph": found["chunks"], "chunks in PostgreSQL": rows["n"]}


def _ask(copies: Copies) -> Iterator[Answer]:
    topic = 5
    direction = [1.0 if i % len(_TOPICS) == topic else 0.0 for i in range(_SIZE)]
    nearest = copies.nearest("chunks", direction, using="dense", limit=3)
    yield (
        f"Which chunks are about {_TOPICS[topic]}? (Qdrant, by vector)",
        "; ".join(f"{' '.join(found['content'].split()[:4])} {found['score']:.2f}" for found in nearest),
    )
    origins = copies.table(
        "select system_origin, count(*) as n from unified.published group by system_origin order by system_origin"
    )
    yield "Who wrote how many? (PostgreSQL)", ", ".join(f"{o['system_origin']} {o['n']:,}" for o in origins)


def _delete_row(hands: Hands) -> None:
    hands.table("delete from unified.published where id = (select min(id::text)::uuid from unified.published)")


_DAMAGE = (
    Damage("the text of a chunk is another one", "neo4j", "unified.published", "different", change_text),
    Damage("a point is gone", "qdrant", "unified.published", "missing", remove_point),
    Damage("a row is gone", "postgres", "unified.published", "missing", _delete_row),
)

SCENARIO = Scenario(
    name="chunks",
    summary="chunks that applications publish as events, into PostgreSQL, a graph and vectors",
    rows=10_000,
    existing=5_000,
    largest=1000,
    servers=frozenset({"graph", "keys"}),
    fill=_fill,
    look=_look,
    ask=_ask,
    damage=_DAMAGE,
    of_members=True,
    config="stream.yaml",
    schema="",
    words=("chunks", "steps"),
)
