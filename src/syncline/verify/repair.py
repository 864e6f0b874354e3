"""Repairing what a comparison found: passes of comparing, asking the engine for the keys that differ, and comparing.

The engine reads the rows at the source and writes them to its log for the one target (see
:mod:`syncline.pipeline.repairs`): a repair is a change like any other, so what changed meanwhile wins, and asking twice
does no harm. Only keys go through the control schema, a page at a time, until the engine is done with them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import pyarrow as pa
from pyarrow import ipc

from syncline.capture.captured import captured
from syncline.capture.schema import table_schema
from syncline.catalog.repository import ControlSchema
from syncline.change import TableSchema
from syncline.config import Config
from syncline.errors import Misconfigured, SynclineError, Unavailable
from syncline.verify.compare import Collector, Comparison, comparing
from syncline.verify.kept import keep
from syncline.verify.part import distinct
from syncline.verify.point import Engine
from syncline.verify.report import KINDS, Report, TableReport
from syncline.verify.scope import Scope
from syncline.verify.table import Progress

__all__ = ["LIMIT", "Limits", "Repaired", "TableRepair", "limits_of", "repair"]

LIMIT = "SL-REPAIR-LIMIT"

_DONE = "done"  # as the engine says it
_POLL_S = 0.2
_PATIENCE_S = 120.0
_ALWAYS = 50  # rows that a repair may write of any table, however small
_MOST = 1_000_000  # keys of a table that are kept in memory
_Key = tuple[str, str, str]  # source, target, table


@dataclass(frozen=True, slots=True)
class Limits:
    """How far a repair may go: the share of a table's rows that it writes without asking, how many keys one request
    holds, how often it compares. ``dry_run`` writes nothing."""

    max_share: float = 0.1
    batch_size: int = 5_000
    passes: int = 5
    dry_run: bool = False


def limits_of(config: Config) -> Limits:
    """Those that the configuration gives."""
    return Limits(config.repair.max_share, config.repair.batch_size, config.repair.passes)


@dataclass(slots=True)
class TableRepair:
    """What was written of one table at one target, by the kind of difference, and why something stays."""

    source: str
    target: str
    table: str
    missing: int = 0
    different: int = 0
    extra: int = 0
    reason: str = ""

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        names = ("source", "target", "table", "missing", "different", "extra")
        found: dict[str, Any] = {name: getattr(self, name) for name in names}
        return found | ({"reason": self.reason} if self.reason else {})


@dataclass(frozen=True, slots=True)
class Repaired:
    """The first comparison and the last one (the same in a dry run), how many passes there were, and what was written;
    in a dry run what would be. ``refused`` says which tables differ in more rows than may be written. ``before`` counts
    the differences of the first one by kind, ``parked`` the rows that the target refused of what was written."""

    first: Report
    last: Report
    passes: int
    tables: Sequence[TableRepair]
    refused: Sequence[str] = ()
    dry_run: bool = False
    before: Mapping[str, int] = field(default_factory=dict)
    parked: int = 0

    @property
    def written(self) -> int:
        """Rows that were missing or different."""
        return sum(t.missing + t.different for t in self.tables)

    @property
    def removed(self) -> int:
        """Rows that were extra."""
        return sum(t.extra for t in self.tables)

    @property
    def left(self) -> int:
        """Differences that stay, and rows that a repair left parked."""
        return self.last.differences + self.parked

    @property
    def clean(self) -> bool:
        """Whether the last pass found nothing that was to be repaired."""
        return not self.left

    @property
    def refusal(self) -> SynclineError | None:
        """What is to be said where tables differ in more rows than may be written, with code :data:`LIMIT`."""
        if not self.refused:
            return None
        return SynclineError(
            f"So much differs that nothing was repaired: {'; '.join(self.refused)}.",
            remedy="A mapping or a filter may be wrong. If all is right: --force or --max-share SHARE; a whole table is"
            " read again faster by `syncline resync --table`.",
            code=LIMIT,
        )

    @property
    def figures(self) -> dict[str, int]:
        """Counts, as a run of the reconciliation is recorded by them."""
        rows = sum(t.rows for t in self.last.tables)
        written = {} if self.dry_run else {"written": self.written, "removed": self.removed}
        return {**self.before, **written, "passes": self.passes, "row_count": rows, "left_over": self.left}

    def to_dict(self, *, show_keys: bool = False) -> dict[str, Any]:
        """JSON-able: the last report, and what led to it."""
        return self.last.to_dict(show_keys=show_keys) | {
            "repair": {
                "dry_run": self.dry_run,
                "passes": self.passes,
                "differences_before": self.first.differences,
                "written": self.written,
                "removed": self.removed,
                "refused": list(self.refused),
                "tables": [t.to_dict() for t in self.tables],
            }
        }


def repair(
    config: Config,
    tables: Sequence[str] = (),
    target: str | None = None,
    progress: Progress | None = None,
    *,
    engine: type[Engine] | None = None,
    talk: Callable[[str], None] | None = None,
    limits: Limits | None = None,
    scope: Scope | None = None,
) -> Repaired:
    """Compare the rows in ``scope`` as :func:`syncline.verify.verify` does, repair what differs, and compare again
    until nothing does. Rows that were named by their ids are not held against the limit. The report of the last
    comparison is kept.

    Raises:
        Misconfigured, Unavailable, Gap: as ``verify``.
        Unavailable: the engine does not take the repair, or does not get it to the target.
    """
    limits = limits or Limits()
    if scope is not None and scope.ids is not None:
        limits = replace(limits, max_share=float("inf"))
    keys = _Keys()
    with comparing(config, tables, target, progress, engine=engine, talk=talk, collect=keys, scope=scope) as comparison:
        done = _Repair(config, comparison, keys, limits, talk or _silent).run()
    return replace(done, last=keep(config, done.last, ("data_hash",), talk or _silent))


def _silent(_: str) -> None:
    """Talk that nobody asked for."""


class _Keys(Collector):
    """The keys that differ, by table and kind; of a table that is beyond :data:`_MOST`, no more than that. Of rows
    whose key is missing, or has no exact form at the target, only how many: they can't be looked for."""

    def __init__(self) -> None:
        self.by_table: dict[_Key, dict[str, list[pa.Table]]] = {}
        self.keyless: dict[_Key, int] = {}

    def begin(self, source: str, target: str, table: str) -> None:
        self.by_table.pop((source, target, table), None)
        self.keyless.pop((source, target, table), None)

    def found(self, source: str, target: str, table: str, kind: str, keys: pa.Table) -> None:
        kinds = self.by_table.setdefault((source, target, table), {})
        whole = keys.drop_null()
        if lacking := keys.num_rows - whole.num_rows:
            self.keyless[source, target, table] = self.keyless.get((source, target, table), 0) + lacking
            keys = whole
        if keys.num_rows and sum(t.num_rows for found in kinds.values() for t in found) < _MOST:
            kinds.setdefault(kind, []).append(keys)


@dataclass(slots=True)
class _Repair:
    """One call of :func:`repair`."""

    config: Config
    comparison: Comparison
    keys: _Keys
    limits: Limits
    talk: Callable[[str], None]
    written: dict[_Key, TableRepair] = field(default_factory=dict)

    def run(self) -> Repaired:
        first = last = self.comparison.compare()
        before, passes = {kind: sum(getattr(t, kind) for t in first.tables) for kind in KINDS}, 1
        while True:
            wanted = {_key_of(t): t for t in last.tables if self._can_be_repaired(t)}
            refused = [self._refusal(t) for t in wanted.values() if self._is_too_much(t)]
            if self.limits.dry_run or refused:
                for key in wanted if self.limits.dry_run else ():
                    self._note(key)
                break
            if not wanted or passes == self.limits.passes:
                break
            with self._control() as control:
                self._ask(control, list(wanted))
            last, passes = self.comparison.compare(), passes + 1
        self._explain(last)
        parked = self._parked(first, last)
        tables = [t for t in self.written.values() if t.missing or t.different or t.extra or t.reason]
        return Repaired(first, last, passes, tables, refused, self.limits.dry_run, before, parked)

    # ------------------------------------------------------------------------------------------------ what is repaired

    def _can_be_repaired(self, table: TableReport) -> bool:
        """Whether rows differ, and writing them is all that it takes. In a gap the target takes no change of it."""
        if self.config.repair.leaves(_named(table)):
            return False
        differs = any(t.num_rows for found in self.keys.by_table.get(_key_of(table), {}).values() for t in found)
        return table.state == "compared" and differs

    def _is_too_much(self, table: TableReport) -> bool:
        rows = table.missing + table.different + table.extra
        return rows > max(_ALWAYS, self.limits.max_share * table.rows) or rows > _MOST

    def _refusal(self, table: TableReport) -> str:
        rows = table.missing + table.different + table.extra
        return f"{rows:,} rows of table {table.table} differ at target {table.target}; the source has {table.rows:,}"

    def _explain(self, last: Report) -> None:
        """Why something stays, by table."""
        for table in last.tables:
            if not table.differences:
                if _key_of(table) in self.written:
                    self.written[_key_of(table)].reason = ""
                continue
            entry = self.written.setdefault(_key_of(table), TableRepair(*_key_of(table)))
            if self.config.repair.leaves(_named(table)):
                entry.reason = "left for review (repair.review)"
            elif table.state == "gap":
                entry.reason = f"changes are known to be missing: `syncline resync --table {table.table}`"
            elif keyless := self.keys.keyless.get(_key_of(table)):
                entry.reason = f"{keyless:,} row(s) have no key at the target, which no change reaches: remove them"
            elif table.columns and not (table.missing or table.different or table.extra):
                entry.reason = "the columns differ, which no row mends"
            elif not self.limits.dry_run and not entry.reason and entry.missing + entry.different + entry.extra:
                entry.reason = "rows differ again after they were written: something else writes to the target"

    def _parked(self, first: Report, last: Report) -> int:
        """How many rows more are parked in tables that were written: the target refused them, so they are as they were,
        though no comparison calls them different any more."""
        before, found = {_key_of(t): t.parked for t in first.tables}, 0
        for table in last.tables:
            more = table.parked - before.get(_key_of(table), 0)
            if more > 0 and _key_of(table) in self.written and not self.limits.dry_run:
                self.written[_key_of(table)].reason = f"the target refused {more:,} row(s): `syncline status` says why"
                found += more
        return found

    # ------------------------------------------------------------------------------------------------------ one pass

    def _ask(self, control: ControlSchema, tables: Sequence[_Key]) -> None:
        """Have the engine write the keys of these tables, and wait until the targets have them."""
        control.check()
        names = self._source_keys(tables)
        asked: dict[int, _Key] = {}
        with _withdrawn(control, asked):
            for key in tables:
                source, target, table = key
                self._note(key)
                self.talk(f"repairing table {table} at target {target}")
                for page in self._pages(key, names[key]):
                    asked[control.request_repair(source, table, target, page)] = key
            self._await(control, asked)

    def _pages(self, key: _Key, names: Sequence[str]) -> Iterator[bytes]:
        """The table's keys under the source's names, none of them twice, as Arrow IPC streams."""
        found = [t.rename_columns(list(names)) for kind in self.keys.by_table.get(key, {}).values() for t in kind]
        if not found:
            return
        (keys,) = pa.concat_tables(found).combine_chunks().to_batches()
        batch = distinct(keys)
        for start in range(0, batch.num_rows, self.limits.batch_size):
            yield _stream(batch.slice(start, self.limits.batch_size))

    def _note(self, key: _Key) -> None:
        entry = self.written.setdefault(key, TableRepair(*key))
        for kind, tables in self.keys.by_table.get(key, {}).items():
            setattr(entry, kind, getattr(entry, kind) + sum(t.num_rows for t in tables))

    def _await(self, control: ControlSchema, asked: dict[int, _Key]) -> None:
        """Wait for all of them, as long as some come to an end now and then."""
        since = time.monotonic()
        while asked:
            self.comparison.check()
            ended = control.outcomes(list(asked))
            for request, outcome in ended.items():
                key = asked.pop(request)
                since = time.monotonic()
                self.written[key].reason = "" if outcome == _DONE else outcome
            if asked and time.monotonic() - since > _PATIENCE_S:
                raise Unavailable(
                    f"The engine did not repair {len(asked)} batch(es) of rows in {_PATIENCE_S:.0f} s.",
                    remedy="`syncline status` says why: it may have stopped, or the target may be away.",
                )
            if asked:
                time.sleep(_POLL_S)

    def _source_keys(self, tables: Sequence[_Key]) -> Mapping[_Key, list[str]]:
        """What the key columns are called at the source."""
        found: dict[_Key, list[str]] = {}
        for source in {key[0] for key in tables}:
            infos = {info.qualified: info for info in captured(self.config.source(source)).tables}
            for key in tables:
                if key[0] == source and key[2] in infos:
                    found[key] = [c.name for c in table_schema(infos[key[2]]).key]
        gone = [key[2] for key in tables if key not in found]
        if gone:
            raise Misconfigured(f"Table {gone[0]} is not captured any more.", remedy="Verify again.")
        return found

    def _control(self) -> ControlSchema:
        return ControlSchema(self.config.control_dsn, self.config.control.schema_name)


@contextmanager
def _withdrawn(control: ControlSchema, asked: Mapping[int, _Key]) -> Iterator[None]:
    """Whoever goes away takes back what nobody has begun; killed, it is done all the same, which harms nothing."""
    try:
        yield
    except BaseException:
        if asked:
            control.withdraw(list(asked))
        raise


def _key_of(table: TableReport) -> _Key:
    return table.source, table.target, table.table


def _named(table: TableReport) -> TableSchema:
    namespace, _, name = table.table.partition(".")
    return TableSchema(namespace, name, ())


def _stream(keys: pa.RecordBatch) -> bytes:
    sink = pa.BufferOutputStream()
    with ipc.new_stream(sink, keys.schema) as writer:
        writer.write_batch(keys)
    return bytes(sink.getvalue())
