"""Where checks look: a source by itself, or one of its copies at a point that the copy has passed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field, replace

from syncline.capture import Point, Source
from syncline.capture.captured import Captured, captured
from syncline.capture.schema import table_schema
from syncline.capture.tables import TableInfo
from syncline.catalog.repository import ControlSchema
from syncline.config import Config
from syncline.errors import Unavailable
from syncline.mapping import MappedTable, TargetMapping
from syncline.stores import CopyReader
from syncline.verify.point import reach
from syncline.verify.report import NOT_CHECKED, Check

__all__ = ["At", "Copy", "Wanted", "not_checked", "places"]


@dataclass(frozen=True, slots=True)
class Wanted:
    """What somebody asked for: tables by name (none: all), targets, and whether the sources themselves. ``away`` are
    targets of these that are known to be away."""

    config: Config
    tables: tuple[str, ...]
    targets: tuple[str, ...]
    sources: bool
    talk: Callable[[str], None]
    away: Mapping[str, Unavailable] = field(default_factory=dict)

    def takes(self, table: str) -> bool:
        """Whether the table is asked for."""
        return not self.tables or table in self.tables


@dataclass(frozen=True, slots=True)
class Copy:
    """A target behind the point: its reader, its mapping, the point with the version from which on changes are behind
    it, how many keys of each table are parked, and why tables can't be checked now."""

    reader: CopyReader
    mapping: TargetMapping
    point: Point
    version: int
    parked: dict[str, int]
    apart: dict[str, str]

    def mapped(self, info: TableInfo) -> MappedTable:
        """What the target makes of the table as the catalogue has it now. Raises as the mapping does."""
        return self.mapping.table(table_schema(info))


@dataclass(frozen=True, slots=True)
class At:
    """One place. ``target`` is empty and ``copy`` None for the source itself; a target that can't be looked at has no
    ``copy`` either, for the reason ``held``. ``tables`` are those to be looked at, ``known`` all that are captured.
    ``left_out`` are tables that can't be captured, and why. ``only``: on a second look, the identities of the checks
    that count."""

    wanted: Wanted
    source: str
    target: str
    looked: Source
    known: tuple[TableInfo, ...]
    tables: tuple[TableInfo, ...]
    copy: Copy | None
    only: frozenset[tuple[str, ...]] | None
    left_out: Mapping[str, str] = field(default_factory=dict)
    held: str = ""

    @property
    def timeout_s(self) -> float:
        """How long one question may keep a database busy."""
        return self.wanted.config.verify.check_timeout_s

    def begun(self, kind: str, table: str, name: str) -> Check | None:
        """A check of this place, as one that holds; None where it is not asked for."""
        made = Check(kind, self.source, self.target, table, name)
        return made if self.only is None or made.identity in self.only else None

    def left_out_now(self, table: str) -> str:
        """Why the table can't be captured any more, '' if it can: it may have been put under row security just now."""
        finding = captured(self.looked).left_out.get(table)
        return finding.message if finding is not None else ""

    def apart(self, table: str) -> str:
        """Why a table can't be checked now, '' if it can."""
        return self.held or (self.copy.apart.get(table, "") if self.copy is not None else "")


def places(
    wanted: Wanted,
    source: str,
    now: Captured,
    check: Callable[[], None],
    only: frozenset[tuple[str, ...]] | None,
) -> Iterator[At]:
    """The source, then each target that follows it and is asked for, held at a point while it is looked at."""
    looked = wanted.config.source(source)
    tables = tuple(i for i in now.tables if wanted.takes(i.qualified))
    itself = At(wanted, source, "", looked, now.tables, tables, None, only)
    if only is None and wanted.sources:
        yield itself
    for target in wanted.targets:
        if source in wanted.config.followed_by(target) and (
            only is None or any(key[1:3] == (source, target) for key in only)
        ):
            yield from _at(replace(itself, target=target), now, check)


def _at(place: At, now: Captured, check: Callable[[], None]) -> Iterator[At]:
    """The target at a point, unless it is held back as a whole, or away while there are others."""
    config = place.wanted.config
    mapping = config.targets[place.target].mapping(now.facts)
    taken = tuple(i for i in place.tables if mapping.takes(i.qualified))
    out = {t: f.message for t, f in now.left_out.items() if mapping.takes(t) and place.wanted.takes(t)}
    place = replace(place, tables=taken, left_out=out)
    if place.target in place.wanted.away:
        yield _held(place, place.wanted.away[place.target])
        return
    with place.looked.point("verify", place.wanted.talk) as point:
        parked, paused = _set_aside(config, place)
        if "" in paused:
            yield replace(place, held=paused[""])
            return
        aim = (place.target, config.targets[place.target])
        try:
            cursor, reader = reach(place.looked, place.source, aim, point.reached, check)
        except Unavailable as error:
            if len(place.wanted.targets) == 1:
                raise
            yield _held(place, error)
            return
        with closing(reader):
            loading = {i.qualified: "its rows are being read" for i in taken if i.qualified not in cursor.loaded}
            copy = Copy(reader, mapping, point, cursor.base + point.number, parked, loading | paused)
            yield replace(place, copy=copy)


def _held(place: At, error: Unavailable) -> At:
    return replace(place, held=f"it is away ({error.message.rstrip('.')})")


def _set_aside(config: Config, place: At) -> tuple[dict[str, int], dict[str, str]]:
    """How many keys are parked, by table; why tables are held back."""
    with ControlSchema(config.control_dsn, config.control.schema_name) as control:
        letters = control.open_dead_letters(place.target)
        pauses = [p for p in control.pauses() if p.source in ("", place.source) and p.target in ("", place.target)]
    parked = {table: len(keys) for table, keys in letters.items()}
    return parked, {p.table_name: "it is paused" for p in pauses}


def not_checked(begun: Check, reason: str) -> Check:
    """The check, which could not be made."""
    return replace(begun, state=NOT_CHECKED, reason=reason)
