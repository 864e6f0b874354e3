"""From log entries to steps: what one target writes in one transaction. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from syncline.change import Batch, Entry, Loaded, Marker, Position, TableSchema, Truncate

__all__ = ["Read", "Scope", "Size", "Step", "never", "steps", "whole"]

Read = tuple[Position, Entry]


class Size(NamedTuple):
    """Rows and bytes at which a step is large enough."""

    rows: int
    nbytes: int

    def reached(self, rows: int, nbytes: int) -> bool:
        return rows >= self.rows or nbytes >= self.nbytes


class Scope(Protocol):
    """Which tables' changes a target takes, at the place in the log that is being read."""

    def wanted(self, table: str) -> bool:
        """Whether the table's changes are applied: it is neither paused nor in a gap."""

    def since(self, table: str) -> int:
        """Changes of the table below this version are superseded by a load, whatever shape they have."""

    def passing(self, marker: Marker) -> bool:
        """The reader is at a marker: a gap begins, or a load that ends one. Whether the cursor shall record it."""


@dataclass(slots=True)
class Step:
    """Changes by table (in log order, one schema a table), and what the cursor becomes behind them.

    ``kept`` are tables that stay loaded in a new shape; ``of_load`` is a step of loads alone; ``inside``: it ends
    inside a transaction. ``echo``: its changes began at this target; ``based``: they say what they rest on.
    """

    position: Position
    through: int = 0
    place: int = 0
    version: int = 0
    incarnation: int = 1
    rows: int = 0
    nbytes: int = 0
    of_load: bool = True
    inside: bool = False
    echo: bool = False
    based: bool = False
    tables: dict[str, list[Batch | Truncate]] = field(default_factory=dict)
    schemas: dict[str, TableSchema] = field(default_factory=dict)
    markers: list[Marker] = field(default_factory=list)
    kept: dict[str, Loaded] = field(default_factory=dict)

    def takes(self, entry: Entry, *, echo: bool) -> bool:
        """Whether every table of the entry still has the schema it has in this step, and what comes back stays apart
        from what is new. Changes that say what they rest on are never folded with others of their key: each is judged
        by what the one before it left."""
        if self.tables and (self.echo != echo or self.based or _is_based(entry)):
            return False
        return all(
            self.schemas.get(item.schema.qualified, item.schema) == item.schema
            for item in entry.items
            if not isinstance(item, Marker)
        )

    def add(self, position: Position, entry: Entry, scope: Scope) -> None:
        """Take an entry in, without the tables that are not wanted."""
        self.position = position
        self.of_load &= entry.of_load
        self.through = max(self.through, entry.through)
        self.place = max(self.place, entry.place)
        self.incarnation = max(self.incarnation, entry.incarnation)
        self.nbytes += entry.nbytes
        self.based |= _is_based(entry)
        self.version = max(self.version, entry.max_version)
        for item in entry.items:
            if isinstance(item, Marker):
                if scope.passing(item):
                    self.markers.append(item)
            elif scope.wanted(item.schema.qualified) and _newest(item) >= scope.since(item.schema.qualified):
                name = item.schema.qualified
                self.schemas[name] = item.schema
                kept = item.from_version(scope.since(name)) if isinstance(item, Batch) else item
                self.tables.setdefault(name, []).append(kept)
                self.rows += len(item) if isinstance(item, Batch) else 0

    def drop(self, table: str) -> None:
        """Leave a table out after all."""
        del self.schemas[table]
        self.rows -= sum(len(i) for i in self.tables.pop(table) if isinstance(i, Batch))


def never(origin: str) -> bool:
    """Nothing begins at a target that is only a copy."""
    return False


def _is_based(entry: Entry) -> bool:
    return any(isinstance(item, Batch) and item.bases is not None for item in entry.items)


def _newest(item: Batch | Truncate) -> int:
    if isinstance(item, Truncate):
        return item.version
    return int(item.ints("version").max()) if len(item) else 0


def whole(found: Sequence[Read], *, inside: bool = False) -> list[Read]:
    """The leading entries that end on a commit boundary (Guarantee 2); empty when all are parts of one transaction.

    ``inside``: they begin inside a transaction. What a load appends between two parts is no boundary.
    """
    end = 0
    for count, (_, entry) in enumerate(found, 1):
        inside = _is_inside(entry, inside)
        if not inside:
            end = count
    return list(found[:end])


def _is_inside(entry: Entry, inside: bool) -> bool:
    """Whether a transaction goes on behind the entry; ``inside``: it did before it."""
    return not entry.boundary or (inside and entry.of_load)


def steps(
    found: Sequence[Read],
    target: str,
    scope: Scope,
    stream: Size,
    load: Size,
    *,
    inside: bool = False,
    began_here: Callable[[str], bool] = never,
) -> Iterator[Step]:
    """Group entries into steps that end once they reach ``stream`` (``load`` where they are of loads alone), cut at
    commit boundaries (Guarantee 4) and where a table's schema changes (the store migrates there; captures see to it
    that no entry holds two of one table).

    Entries for other targets only move the position. ``inside``: the first begins inside a transaction.
    ``began_here``: whether this target is where changes of an origin come from.
    """
    step: Step | None = None
    for position, entry in found:
        mine = entry.targets is None or target in entry.targets
        echo = bool(entry.origin) and began_here(entry.origin)
        if (step is not None and mine and not step.takes(entry, echo=echo)) or (
            step is not None and not inside and (load if step.of_load else stream).reached(step.rows, step.nbytes)
        ):
            yield step
            step = None
        if step is None:
            step = Step(position)
        if mine:
            step.echo = step.echo if step.tables else echo
            step.add(position, entry, scope)
        else:
            step.position = position
            step.through, step.place = max(step.through, entry.through), max(step.place, entry.place)
        step.inside = inside = _is_inside(entry, inside)
    if step is not None:
        yield step
