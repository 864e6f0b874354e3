"""Comparing every copy with its source by content, at an exact point in time.

Method: a place S and a snapshot that belong together are taken at the source (for the WAL a temporary slot gives both),
the target's cursor is waited for until it has passed S, and both are read. Every change before S is then at the target,
so a row whose stored version is below S has to equal what the snapshot shows; one at or above it is in flight
(correctness rules 4, 17 and 23). What differs is looked at a second time, at a later point: only what differs again is
reported (Guarantee 9), so that a row healed with a newer state than its version says, or a table altered meanwhile, is
not.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import partial

import pyarrow as pa

from syncline.capture import Source
from syncline.capture.captured import Captured, captured
from syncline.capture.snapshot import Reshaped, Rewritten
from syncline.capture.tables import TableInfo, reshaped
from syncline.catalog.repository import ControlSchema
from syncline.config import Config, hint
from syncline.errors import Gap, Misconfigured, Unavailable
from syncline.finding import Finding
from syncline.logs import logger
from syncline.mapping import TargetMapping
from syncline.verify.checks import chosen_checks, run_checks
from syncline.verify.checks.at import Wanted
from syncline.verify.kept import keep
from syncline.verify.part import OfKeys
from syncline.verify.point import Engine, engine_running, reach
from syncline.verify.report import AWAY, KINDS, Report, TableReport
from syncline.verify.scope import Scope
from syncline.verify.table import Copy, Outcome, Point, Progress, compare_table

__all__ = ["Collector", "Comparison", "comparing", "verify"]

_log = logger()
_ATTEMPTS = 5
# Before the second look. What makes it sure is its later point; the rest is for stores that answer from a replica.
_AGAIN_S = 0.5
_SETTLE_S = 30.0
_LEFT_OUT = "left out"


def verify(
    config: Config,
    tables: Sequence[str] = (),
    target: str | None = None,
    progress: Progress | None = None,
    *,
    engine: type[Engine] | None = None,
    talk: Callable[[str], None] | None = None,
    full: bool = False,
    checks: Sequence[str] | None = None,
    since: datetime | None = None,
) -> Report:
    """Compare the monitored tables (or those named, ``namespace.table``) with their copies (or the one named), or make
    these ``checks`` of them (:data:`~syncline.verify.report.CHECKS`; None: the comparison, and the rules of the
    configuration). The report is kept in the control schema.

    ``progress`` hears a table, the rows read of it, and about how many there are. ``engine`` is run until the targets
    are up to date when no engine runs; None then raises. ``full`` reads every row, whatever digests say. Tables that
    can't be captured are in the report as left out, those at a target that is away as ``away``, each with the reason.

    Raises:
        Misconfigured: a name or a check is unknown, or a target can't be read from here.
        Unavailable: a source is away, or each target that could be compared is, or does not reach the point.
        Gap: a table is rewritten again and again while it is read, or our own engine met a gap.
    """
    kinds = chosen_checks(checks, config) if since is None else ["data_hash"]
    with comparing(
        config, tables, target, progress, engine=engine, talk=talk, full=full, scope=Scope(since)
    ) as comparison:
        report = comparison.compare(kinds, digests="data_hash" in (checks or ()))
    return keep(config, report, kinds, talk or _log.info)


@contextmanager
def comparing(
    config: Config,
    tables: Sequence[str] = (),
    target: str | None = None,
    progress: Progress | None = None,
    *,
    engine: type[Engine] | None = None,
    talk: Callable[[str], None] | None = None,
    collect: Collector | None = None,
    full: bool = False,
    scope: Scope | None = None,
) -> Iterator[Comparison]:
    """The same as often as wanted, of the rows in ``scope``: an engine runs for the block. ``collect`` hears the keys
    of what differs.

    Raises:
        Misconfigured, Unavailable: as :func:`verify`.
    """
    run = _Run(
        config,
        tuple(tables),
        target,
        progress or _silent,
        talk or _log.info,
        full,
        collect or Collector(),
        scope or Scope(),
    )
    run.refuse_unknown()
    with engine_running(config, engine, run.talk, target) as check:
        yield Comparison(run, check)


class Collector:
    """Hears the keys of all rows that differ; this one forgets them. A table that is looked at again begins anew."""

    def begin(self, source: str, target: str, table: str) -> None:
        """What was heard of this table at this target holds no more."""

    def found(self, source: str, target: str, table: str, kind: str, keys: pa.Table) -> None:
        """Key columns, as they are at the target, of rows that are missing, different or extra."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """Sources and targets with an engine between them. ``check`` raises what ended the engine, if it is our own."""

    _run: _Run
    check: Callable[[], None]

    def compare(self, kinds: Sequence[str] = ("data_hash",), *, digests: bool = False) -> Report:
        """Look once, and again at what differs; and do the other checks of these kinds. ``digests``: with a digest of
        each side."""
        began, run, check = time.monotonic(), self._run, self.check
        found = run.look(check, None) if "data_hash" in kinds else {}
        deadline = time.monotonic() + _SETTLE_S
        run.settle(check, found, {}, deadline)
        suspects = {key: one for key, one in found.items() if one.report.differences}
        while suspects:
            time.sleep(_AGAIN_S)
            run.look_again(check, found, suspects)
            suspects = {key: one for key, one in suspects.items() if key in found}
            # What was altered since begins anew, with rows that were none of its rows before: all count, if twice.
            sure = {key: one for key, one in suspects.items() if not _unsettled(found[key])}
            anew = run.settle(check, found, sure, deadline) - set(sure)
            suspects = {key: found[key] for key in anew if found[key].report.differences}
        run.refuse_if_all_are_away(found)
        targets = tuple(name for name in run.config.targets if run.target in (None, name))
        wanted = Wanted(run.config, run.wanted, targets, run.target is None, run.talk, run.away)
        others, both = run_checks(wanted, kinds, digests=digests, check=check)
        for key, sides in both.items():
            if key in found and found[key].report.compared:
                found[key].report.digests = sides
        return Report([one.report for one in found.values()], time.monotonic() - began, others, scope=run.scope)


def _silent(table: str, rows: int, of: int | None) -> None:
    """Progress that nobody asked for."""


_Key = tuple[str, str, str]  # source, target, table


def _not_compared(key: _Key, state: str) -> tuple[_Key, Outcome]:
    return key, Outcome(TableReport(*key, state=state), {})


def _left_out(key: _Key, finding: Finding) -> Outcome:
    return Outcome(TableReport(*key, state=_LEFT_OUT, reason=finding.message), {})


def _away(key: _Key, error: Unavailable) -> Outcome:
    return Outcome(TableReport(*key, state=AWAY, reason=error.message), {})


def _unsettled(outcome: Outcome) -> bool:
    """Whether the table is being loaded, or its columns differ: both pass when an ALTER was made."""
    return outcome.report.state == "loading" or bool(outcome.report.columns)


def _outcome(info: TableInfo, point: Point, copy: Copy, before: Outcome | None, keys: OfKeys | None) -> Outcome | None:
    """What a comparison finds; None if the table was rewritten while it was read."""
    key = (copy.source, copy.target, info.qualified)
    loading = _not_compared(key, "loading")[1]
    if _loading(copy, info.qualified):
        return loading
    try:
        outcome = compare_table(info, point, copy, before, keys)
    except Rewritten:
        return None
    except Reshaped:
        return loading
    except Misconfigured:
        # Since it was listed it was put under row security, or a right to it was taken away: it is left out by now.
        finding = captured(point.source).left_out.get(info.qualified)
        if finding is None:
            raise
        return _left_out(key, finding)
    if not outcome.report.differences:
        return outcome
    return loading if _loading(copy, info.qualified) or _altered(copy, info, point.source) else outcome


def _through(number: int, before: Outcome | None) -> int:
    """What the target had when all of the table was looked at: a second look passes over what was equal before."""
    return min(number, before.report.through) if before is not None and before.report.through else number


def _loading(copy: Copy, table: str) -> bool:
    """Whether the table's rows are being read again just now, and not because changes are known to be missing."""
    cursor = copy.reader.cursor(copy.source)
    return cursor is not None and table not in cursor.loaded and not copy.gaps & {"", table}


def _altered(copy: Copy, info: TableInfo, source: Source) -> bool:
    """Whether an ALTER, of the table or of the publication, may have changed rows without an event, and the engine,
    which looks now and then, has yet to read them again (correctness rule 20); or whether that was after the table was
    listed, so that not all was read by one rule."""
    cursor = copy.reader.cursor(copy.source)
    known = cursor.loaded.get(info.qualified) if cursor is not None else None
    if known is not None and reshaped(known.shape, info.shape):
        return True
    now = next((one for one in source.tables() if one.qualified == info.qualified), None)
    return now is not None and any(reshaped(info.shape, one.shape) for one in source.described([now]))


def _everything(outcome: Outcome) -> Outcome:
    """For a look at which every row counts."""
    return Outcome(outcome.report, dict.fromkeys(KINDS))


@dataclass(frozen=True, slots=True)
class _Pair:
    """A source, a target that follows it, and what that makes of its tables."""

    source: str
    target: str
    mapping: TargetMapping


@dataclass(frozen=True, slots=True)
class _Run:
    """One call of :func:`verify`."""

    config: Config
    wanted: tuple[str, ...]
    target: str | None
    progress: Progress
    talk: Callable[[str], None]
    full: bool
    collect: Collector
    scope: Scope
    keys: dict[str, Mapping[str, OfKeys | None]] = field(default_factory=dict)
    away: dict[str, Unavailable] = field(default_factory=dict)  # targets, and why

    def refuse_unknown(self) -> None:
        """Raise ``Misconfigured`` if there is no target, or if one or a table is named that there is not."""
        if not self.config.targets:
            raise Misconfigured("There is no target to compare with.", remedy="Configure `target:`.")
        if self.target is not None and self.target not in self.config.targets:
            raise Misconfigured(f"There is no target {self.target}.", remedy=hint(self.target, self.config.targets))
        if not self.wanted:
            return
        found = [self._captured(source) for source in self.config.sources]
        known = {name for one in found for name in (*(info.qualified for info in one.tables), *one.left_out)}
        unknown = sorted(set(self.wanted) - known)
        if unknown:
            raise Misconfigured(
                f"No table that is captured is called {', '.join(unknown)}.", remedy=hint(unknown[0], sorted(known))
            )

    def look(self, check: Callable[[], None], suspects: dict[_Key, Outcome] | None) -> dict[_Key, Outcome]:
        """Compare everything; on a second look only the tables with suspects."""
        found: dict[_Key, Outcome] = {}
        for source in self.config.sources:
            now = self._captured(source)
            for target in self._targets(source):
                mapping = self.config.targets[target].mapping(now.facts)
                taken = [i for i in now.tables if mapping.takes(i.qualified)]
                chosen = [i for i in taken if self._chosen((source, target, i.qualified), suspects)]
                found.update(self._reached(_Pair(source, target, mapping), chosen, check, suspects or {}))
                for table, finding in now.left_out.items():
                    if mapping.takes(table) and self._chosen((source, target, table), suspects):
                        found[source, target, table] = _left_out((source, target, table), finding)
        return found

    def look_again(self, check: Callable[[], None], found: dict[_Key, Outcome], suspects: dict[_Key, Outcome]) -> None:
        """Look at the tables with suspects once more; one that was dropped meanwhile is ``found`` no more."""
        again = self.look(check, suspects)
        for key in suspects.keys() - again.keys():
            del found[key]
        found |= again

    def settle(
        self,
        check: Callable[[], None],
        found: dict[_Key, Outcome],
        suspects: dict[_Key, Outcome],
        deadline: float,
    ) -> set[_Key]:
        """Look again at tables that are being loaded, or whose columns differ, in ``found``; those that were looked
        at."""
        looked: set[_Key] = set()
        while time.monotonic() < deadline:
            unsettled = [key for key, one in found.items() if _unsettled(one)]
            if not unsettled:
                break
            time.sleep(1.0)
            self.look_again(check, found, {key: suspects.get(key, _everything(found[key])) for key in unsettled})
            looked.update(key for key in unsettled if key in found)
        return looked

    def _targets(self, source: str) -> list[str]:
        followers = [t for t in self.config.targets if source in self.config.followed_by(t)]
        return [t for t in followers if self.target in (None, t)]

    def _chosen(self, key: _Key, suspects: dict[_Key, Outcome] | None) -> bool:
        return key in suspects if suspects is not None else not self.wanted or key[2] in self.wanted

    def _captured(self, source: str) -> Captured:
        return captured(self.config.source(source))

    def refuse_if_all_are_away(self, found: Mapping[_Key, Outcome]) -> None:
        """Raise the first target's ``Unavailable`` if no target could be compared because it is away."""
        if self.away and all(one.report.state in (AWAY, _LEFT_OUT) for one in found.values()):
            raise next(iter(self.away.values()))

    def _reached(
        self,
        pair: _Pair,
        infos: Sequence[TableInfo],
        check: Callable[[], None],
        suspects: dict[_Key, Outcome],
    ) -> Iterator[tuple[_Key, Outcome]]:
        """Tables of one source at one target; if it is away, or goes away meanwhile, those that are left are. It is not
        waited for twice."""
        left = {(pair.source, pair.target, i.qualified): i for i in infos}
        if pair.target not in self.away:
            try:
                for key, outcome in self._compare(pair, infos, check, suspects):
                    del left[key]
                    yield key, outcome
            except Unavailable as error:
                if self.target is not None:
                    raise
                self._captured(pair.source)  # raises if it is the source that is away
                self.talk(f"target {pair.target} can't be compared: {error.message}")
                self.away[pair.target] = error
        for key in left:
            yield key, _away(key, self.away[pair.target])

    def _compare(
        self,
        pair: _Pair,
        infos: Sequence[TableInfo],
        check: Callable[[], None],
        suspects: dict[_Key, Outcome],
    ) -> Iterator[tuple[_Key, Outcome]]:
        """Tables of one source at one target, all at one point; those rewritten meanwhile once more, at another."""
        source, target = pair.source, pair.target
        left = list(infos)
        for _ in range(_ATTEMPTS):
            if not left:
                return
            if "" in self._paused(source, target):
                yield from (_not_compared((source, target, i.qualified), "paused") for i in left)
                return
            rewritten = []
            for info, outcome in self._at_one_point(pair, left, check, suspects):
                if outcome is None:
                    self.talk(f"table {info.qualified} was truncated or rewritten while it was read; once more")
                    rewritten.append(info)
                else:
                    yield (source, target, info.qualified), outcome
            left = rewritten
        raise Gap(
            f"Table {left[0].qualified} was rewritten during each of {_ATTEMPTS} attempts to read it.",
            remedy="Verify it when the rewriting is over.",
        )

    def _at_one_point(
        self,
        pair: _Pair,
        infos: Sequence[TableInfo],
        check: Callable[[], None],
        suspects: dict[_Key, Outcome],
    ) -> Iterator[tuple[TableInfo, Outcome | None]]:
        source, target = pair.source, pair.target
        looked = self.config.source(source)
        with looked.point("verify", self.talk) as at:
            cursor, reader = reach(looked, source, (target, self.config.targets[target]), at.reached, check)
            with closing(reader):
                parked, gaps = self._set_aside(source, target)
                point = Point(looked, replace(at, target=target), cursor.base + at.number, self.progress)
                paused = self._paused(source, target)
                for info in infos:
                    key = (source, target, info.qualified)
                    self.collect.begin(*key)
                    collect = partial(self.collect.found, *key)
                    copy = Copy(source, target, reader, pair.mapping, self.config.log, parked, gaps, self.full, collect)
                    if info.qualified in paused:
                        yield info, _not_compared(key, "paused")[1]
                    else:
                        outcome = _outcome(info, point, copy, suspects.get(key), self._keys(source, info))
                        if outcome is not None:
                            outcome.report.through = _through(at.number, suspects.get(key))
                        yield info, outcome

    def _keys(self, source: str, info: TableInfo) -> OfKeys | None:
        """The keys of a table that are in scope, None for all of it. Looked up once, behind the first point."""
        if self.scope.everything:
            return None
        if source not in self.keys:
            self.keys[source] = self.scope.keys(self.config.log, source, self._in_scope(source))
        return self.keys[source].get(info.qualified)

    def _in_scope(self, source: str) -> list[TableInfo]:
        return [i for i in self._captured(source).tables if not self.wanted or i.qualified in self.wanted]

    def _paused(self, source: str, target: str) -> frozenset[str]:
        """Tables that are held back or still catching up; '' for the whole target."""
        with self._control() as control:
            mine = [p for p in control.pauses() if p.source in ("", source) and p.target in ("", target)]
        return frozenset(p.table_name for p in mine)

    def _set_aside(self, source: str, target: str) -> tuple[dict[str, frozenset[bytes]], frozenset[str]]:
        """Hashes of parked keys by table; tables in a gap ('' for all)."""
        with self._control() as control:
            parked = control.open_dead_letters(target)
            gaps = [g for g in control.gaps() if g["source"] == source and g["target"] in ("", target)]
        return parked, frozenset(g["table_name"] for g in gaps)

    def _control(self) -> ControlSchema:
        return ControlSchema(self.config.control_dsn, self.config.control.schema_name)
