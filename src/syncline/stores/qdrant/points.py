"""What the store asks of whatever keeps its points: a Qdrant server, shards of Qdrant Edge, or the engine's door."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from syncline.errors import Misconfigured

__all__ = [
    "Batch",
    "Dense",
    "Hit",
    "PointId",
    "Points",
    "Readable",
    "Refused",
    "Sparse",
    "Spec",
    "Stored",
    "Which",
    "looking",
    "one_by_one",
    "scroll",
]

PointId = int | str
"""An unsigned 64-bit integer, or a UUID as text in lower case with hyphens."""

PAGE = 1_000


class Sparse(NamedTuple):
    """A sparse vector; its indices rise."""

    indices: list[int]
    values: list[float]


class Stored(NamedTuple):
    """A point: what is written, and what is read. ``vectors`` is empty where they were not asked for."""

    id: PointId
    payload: dict[str, Any]
    vectors: Mapping[str, list[float] | Sparse] = {}


Batch = tuple[Sequence[Stored], Sequence[int]]
"""Points, and their versions."""


@dataclass(frozen=True, slots=True)
class Dense:
    """A named dense vector: dimensions, distance (cosine, dot, euclid, manhattan), and whether float32s are kept."""

    size: int
    distance: str
    whole: bool = True


@dataclass(frozen=True, slots=True)
class Spec:
    """What a collection is made of. ``indexes``: payload path -> kind, as in :class:`syncline.shape.PayloadIndex`."""

    dense: Mapping[str, Dense] = field(default_factory=dict)
    sparse: frozenset[str] = frozenset()
    indexes: Mapping[str, str] = field(default_factory=dict)


class Which(NamedTuple):
    """Which points a page shows. ``buried``: tombstones alone, or none of them; None: all.

    ``since`` is the least version (points without one are left out), ``through`` the greatest (they are not).
    """

    buried: bool | None = None
    since: int | None = None
    through: int | None = None


class Hit(NamedTuple):
    """A point that a search found, and how near it is."""

    id: PointId
    score: float
    payload: dict[str, Any]


class Refused(Exception):
    """A write was refused for what it holds. Its parts may be taken, so the caller tries by halves."""


@contextmanager
def looking(place: str, collection: str) -> Iterator[None]:
    """Around a read. Where that is refused no row is to blame that could be parked, so a person has to look.

    Raises:
        Misconfigured: in place of :class:`Refused`.
    """
    try:
        yield
    except Refused as error:
        raise Misconfigured(
            f"{place} refuses to show points of collection {collection}: {error}.",
            remedy="See the server's log, and the collection's strict mode and payload indexes (docs/stores/qdrant.md);"
            " `syncline resync` writes a collection that was removed anew.",
            code="SL-QDRANT-READ",
        ) from error


class Readable(Protocol):
    """Looking at points. Raises ``Unavailable`` and ``Misconfigured``; a search :class:`Refused` for what it names."""

    def spec(self, collection: str) -> Spec | None:
        """What the collection is made of, None if there is none."""

    def retrieve(
        self, collection: str, ids: Sequence[PointId], *, vectors: bool, only: Sequence[str] | None = None
    ) -> list[Stored]:
        """The points of these ids that exist, in any order; of their payload everything, or the fields in ``only``."""

    def page(
        self, collection: str, which: Which, after: PointId | None, *, vectors: bool, payload: bool = True
    ) -> tuple[list[Stored], PointId | None]:
        """Up to 1,000 points in the order of their ids, from ``after`` on, and where the next page begins."""

    def search(
        self, collection: str, using: str, vector: list[float] | Sparse, limit: int, where: Mapping[str, Any]
    ) -> list[Hit]:
        """The nearest points that are no tombstones and whose payload equals ``where``."""

    def close(self) -> None:
        """Release everything. Idempotent."""


class Points(Readable, Protocol):
    """Writing points as well. What was written can be read at once; it is durable once :meth:`sync` returns.

    Raises ``Unavailable`` (nothing is known), ``Misconfigured``, and :class:`Refused` where a value is to blame.
    """

    def create(self, collection: str, spec: Spec) -> None:
        """Make a collection that does not exist."""

    def drop(self, collection: str) -> None:
        """Remove a collection with all its points, if it exists."""

    def change(self, collection: str, add: Spec, remove: Sequence[str]) -> None:
        """Remove named vectors, with their values, then add vectors and payload indexes."""

    def unindex(self, collection: str, fields: Sequence[str]) -> None:
        """Remove payload indexes."""

    def upsert(self, collection: str, points: Sequence[Stored], versions: Sequence[int]) -> None:
        """Replace points whole, or insert them; one that is stored with a newer version stays as it is (Guarantee 5).

        ``versions`` rise. How exact the guard is where a call holds several of them is said by each implementation.
        """

    def upserts(self, collection: str, batches: Iterable[Batch]) -> list[int]:
        """:meth:`upsert` each batch, in order, and say which (0 is the first) were refused; parts of those may be
        written. The next one may be packed while one is written."""

    def overwrite(self, collection: str, points: Sequence[Stored], versions: Sequence[int]) -> None:
        """Replace the payload alone, under the same guard; what does not exist is not inserted."""

    def put(self, collection: str, points: Sequence[Stored]) -> None:
        """Replace or insert points without a guard."""

    def delete(self, collection: str, ids: Sequence[PointId]) -> None:
        """Remove points."""

    def newest(self, collection: str) -> int:
        """The greatest version of any point, 0 without one."""

    def sync(self, collections: Sequence[str]) -> None:
        """Make durable what was written to them."""


def one_by_one(points: Points, collection: str, batches: Iterable[Batch]) -> list[int]:
    """:meth:`Points.upserts` where nothing is gained by doing several things at once."""
    refused = []
    for number, (found, versions) in enumerate(batches):
        try:
            points.upsert(collection, found, versions)
        except Refused:
            refused.append(number)
    return refused


def scroll(
    points: Readable, collection: str, which: Which, *, vectors: bool = False, payload: bool = True
) -> Iterator[list[Stored]]:
    """All pages. A point that is there throughout comes exactly once, as it is when its page is read."""
    after: PointId | None = None
    while True:
        page, after = points.page(collection, which, after, vectors=vectors, payload=payload)
        if page:
            yield page
        if after is None:
            return
