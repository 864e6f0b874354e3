"""What a configuration asks of the targets beyond following the stream, and doing it: a mapping is compared with what
each target was filled by (correctness rule 21).

A plan is a value; making one changes nothing. :func:`carry_out` runs an engine until what has to be read is read, then
removes what targets hold of tables that they take no more.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import asdict, dataclass
from typing import Any, Literal

import msgspec

from syncline.capture.captured import captured
from syncline.capture.tables import TableInfo, reshaped
from syncline.catalog.repository import ControlSchema
from syncline.change import Cursor, TableSchema
from syncline.config import Config, store_class
from syncline.errors import Unavailable
from syncline.log.embedded import EmbeddedLog
from syncline.mapping import TargetMapping
from syncline.pipeline.service import SyncService
from syncline.stores import CopyReader, Folded, Store, TableWork, Work
from syncline.verify.point import open_copy

__all__ = ["Change", "Plan", "carry_out", "copy_reader", "make_plan"]

_POLL_S = 0.2
_PATIENCE_S = 60.0


@dataclass(frozen=True, slots=True)
class Change:
    """One table at one target: ``load`` it, ``reload`` it (its rows are replaced, and what the old mapping wrote is
    removed), or ``remove`` what is there of it. ``mapping`` is the digest of what the target makes of it then."""

    kind: Literal["load", "reload", "remove"]
    source: str
    target: str
    table: str
    reason: str
    mapping: str = ""


@dataclass(frozen=True, slots=True)
class Plan:
    """All changes, by source, target and table. ``former``: targets that an engine of this control schema filled, and
    that the configuration names no more. Nothing is done about them, for where they are is not known any more."""

    changes: tuple[Change, ...]
    former: tuple[str, ...] = ()

    @property
    def hash(self) -> str:
        """Twelve hexadecimal digits (of SHA-256) that are another one's for another plan."""
        found = [self.former, [asdict(change) for change in self.changes]]
        return hashlib.sha256(msgspec.json.encode(found)).hexdigest()[:12]


def make_plan(config: Config) -> Plan:
    """Hold the configuration against what the targets hold, whether or not an engine runs.

    Raises:
        Unavailable: a server is away.
        Misconfigured: a target can't be read from here, or a mapping does not fit.
    """
    changes = tuple(change for source in config.sources for change in _changes_of(config, source))
    return Plan(changes, tuple(sorted(_filled(config) - set(config.targets))))


def _filled(config: Config) -> set[str]:
    """Targets that have a status."""
    with ControlSchema(config.control_dsn, config.control.schema_name) as control:
        rows = control.statuses() if control.is_current() else []
    return {row["target"] for row in rows if row["target"] and row["source"] in config.sources}


def _changes_of(config: Config, source: str) -> Iterator[Change]:
    found = captured(config.source(source))
    for target, chosen in config.targets.items():
        if source in config.followed_by(target):
            mapping = chosen.mapping(found.facts)
            taken = {info.qualified: info for info in found.tables if mapping.takes(info.qualified)}
            for change in _changes_at(config, source, target, taken, mapping):
                if change.table not in found.left_out:  # its rows stay, for it may be taken in again
                    yield change


def _changes_at(
    config: Config, source: str, target: str, taken: Mapping[str, TableInfo], mapping: TargetMapping
) -> Iterator[Change]:
    reader = copy_reader(config, target)
    if reader is None:
        for table in sorted(taken):
            yield Change("load", source, target, table, "there is no copy yet", mapping.digest(table))
        return
    with closing(reader):
        cursor, held = reader.cursor(source), {schema.qualified: schema for schema in reader.held(source)}
        ours = _is_ours(config, source, cursor)
        for table in sorted({*taken, *held}):
            if table not in taken:
                if ours and _has_rows(reader, held[table]):
                    yield Change("remove", source, target, table, "it is not taken any more")
                continue
            kind, reason = _missing(cursor, taken[table], mapping)
            if kind is not None:
                yield Change(kind, source, target, table, reason, mapping.digest(table))


def _is_ours(config: Config, source: str, cursor: Cursor | None) -> bool:
    """Whether our log filled the target. One that another log filled may be another setup's, whose source has the same
    name: nothing is removed there."""
    log = EmbeddedLog.peek(config.log, source)
    return cursor is not None and log is not None and cursor.position.log == log.log


def _missing(
    cursor: Cursor | None, info: TableInfo, mapping: TargetMapping
) -> tuple[Literal["load", "reload"] | None, str]:
    known = cursor.loaded.get(info.qualified) if cursor is not None else None
    if known is None:
        return "load", "it was not read yet"
    if known.mapping != mapping.digest(info.qualified):
        return "reload", "its mapping is another one"
    if reshaped(known.shape, info.shape):
        return "reload", "it was altered at the source"
    return None, ""


def copy_reader(config: Config, target: str) -> CopyReader | None:
    """A reader of the target's copy; None where there is none yet.

    Raises:
        Misconfigured: this type of target can't be read from another process.
    """
    chosen = config.targets[target]
    path = getattr(chosen.store, "path", None)
    return None if path is not None and not path.expanduser().exists() else open_copy(chosen)


def _has_rows(reader: CopyReader, schema: TableSchema) -> bool:
    with closing(reader.scan(schema)) as batches:  # type: ignore[type-var]
        return any(batch.num_rows for batch in batches)


# ----------------------------------------------------------------------------------------------------------- doing it


def carry_out(
    config: Config,
    plan: Plan,
    look: Callable[[Mapping[str, Any]], None] | None = None,
    talk: Callable[[str], None] | None = None,
) -> None:
    """Do what the plan says, and bring the targets up to date meanwhile. ``look`` sees the engine's status.

    Killed in between, the next plan has what is left.

    Raises:
        Misconfigured: an engine runs, which has the configuration that it was started with (``SL-LOG-LOCKED``).
        SynclineError: whatever ends an engine.
    """
    if not plan.changes:
        return
    service = SyncService(config, talk=talk)
    service.start()
    try:
        _await(service, plan, look or (lambda status: None))
    finally:
        service.stop()
    for change in plan.changes:
        if change.kind == "remove":
            _remove(config, change)


def _await(service: SyncService, plan: Plan, look: Callable[[Mapping[str, Any]], None]) -> None:
    """Wait until everything that has to be read is at its target."""
    wanted = [c for c in plan.changes if c.kind != "remove"]
    ends: dict[str, int] = {}  # of the logs, when everything that has to be read was in them
    since = time.monotonic()
    while True:
        for error in service.errors():
            raise error
        status = service.status()
        look(status)
        sources = status["sources"]
        if any(one["state"] == "loading" or one["loading"] for one in sources.values()):
            since = time.monotonic()
        streaming = all(one["state"] == "streaming" for one in sources.values())
        if streaming and not ends:
            ends = {name: one["log"]["end"] for name, one in sources.items()}
        if streaming and all(_is_there(sources, change, ends[change.source]) for change in wanted):
            return
        if time.monotonic() - since > _PATIENCE_S:
            left = next((c for c in wanted if ends and not _is_there(sources, c, ends[c.source])), None)
            what = f"Table {left.table} does not come to target {left.target}" if left else "The engine does not stream"
            raise Unavailable(f"{what}.", remedy="`syncline status` and `syncline doctor` say why.")
        time.sleep(_POLL_S)


def _is_there(sources: Mapping[str, Any], change: Change, end: int) -> bool:
    target = sources[change.source]["targets"][change.target]
    return change.table in target.get("loaded", ()) and target.get("cursor", 0) >= end


def _remove(config: Config, change: Change) -> None:
    """Remove the rows of a table under the version guard, in one work that leaves the cursor where it is."""
    chosen = config.targets[change.target]
    reader = copy_reader(config, change.target)
    if reader is None:
        return
    with closing(reader):
        schema = next((s for s in reader.held(change.source) if s.qualified == change.table), None)
    if schema is None:
        return
    store: Store = store_class(chosen.type)(chosen.store, change.target)
    try:
        cursor = store.open(change.source)
        if cursor is None:
            return
        store.migrate(schema)
        loaded = {table: known for table, known in cursor.loaded.items() if table != change.table}
        cursor = msgspec.structs.replace(cursor, loaded=loaded)
        store.apply(Work((TableWork(schema, Folded(), truncated=cursor.version),), cursor))
    finally:
        store.close()
