"""Checks beside the comparison of rows, a module for each type: counts, digests, rules, references.

Each has ``look(at)``, which yields what it finds at one :class:`~syncline.verify.checks.at.At`. What is broken at a
target is looked at a second time, at a later point, as rows that differ are (Guarantee 9): only what is broken again is
reported. What is broken in the source's own snapshot is a fact at once.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

from syncline.capture.captured import captured
from syncline.config import Config
from syncline.errors import Misconfigured
from syncline.nearest import hint
from syncline.verify.checks import business_rules, data_hash, referential_integrity, row_count
from syncline.verify.checks.at import At, Wanted, places
from syncline.verify.report import BROKEN, CHECKS, HOLDS, Check

__all__ = ["Digests", "chosen_checks", "run_checks"]

Digests = Mapping[tuple[str, str, str], dict[str, str]]
"""The digests of both sides, by source, target and table."""

_LOOKS: Mapping[str, Callable[[At], Iterator[Check]]] = {
    "row_count": row_count.look,
    "business_rules": business_rules.look,
    "referential_integrity": referential_integrity.look,
}
_AGAIN_S = 2.0  # before the second look: what was on its way has arrived by then


def chosen_checks(asked: Sequence[str] | None, config: Config) -> tuple[str, ...]:
    """The types of checks to make; of None: the comparison, and the rules if there are some.

    Raises:
        Misconfigured: there is no such type.
    """
    if asked is None:
        return ("data_hash", "business_rules") if config.verify.rules else ("data_hash",)
    if not all(asked) or not asked:
        raise Misconfigured("No check is named.", remedy=f"There are: {', '.join(CHECKS)}.")
    unknown = [kind for kind in asked if kind not in CHECKS]
    if unknown:
        raise Misconfigured(f"There is no check {unknown[0]}.", remedy=hint(unknown[0], CHECKS))
    return tuple(kind for kind in CHECKS if kind in asked)


def run_checks(
    wanted: Wanted, kinds: Sequence[str], *, digests: bool, check: Callable[[], None]
) -> tuple[list[Check], Digests]:
    """Make these checks; ``check`` raises what ended an engine of our own.

    Raises:
        Unavailable: a server is away, or a target does not reach the point.
        Misconfigured: a source or a target can't be read.
    """
    summed = _digests(wanted, check) if digests else {}
    if "row_count" not in kinds and "referential_integrity" not in kinds:
        wanted = _asked_of(wanted)
    first = {found.identity: found for found in _look(wanted, kinds, None, check)}
    broken = {key for key, found in first.items() if found.state == BROKEN and found.target}
    if broken:
        time.sleep(_AGAIN_S)
        again = {found.identity: found for found in _look(wanted, kinds, frozenset(broken), check)}
        first |= {key: _confirmed(first[key], again[key]) for key in broken if key in again}
    return list(first.values()), summed


def _asked_of(wanted: Wanted) -> Wanted:
    """The same with the targets only that some rule is about: no other is brought to a point for nothing."""
    ruled = {rule.on for rule in wanted.config.verify.rules.values()}
    return replace(wanted, targets=tuple(target for target in wanted.targets if target in ruled))


def _look(
    wanted: Wanted, kinds: Sequence[str], only: frozenset[tuple[str, ...]] | None, check: Callable[[], None]
) -> Iterator[Check]:
    looks = [_LOOKS[kind] for kind in kinds if kind in _LOOKS]
    for name in wanted.config.sources if looks else ():
        source = wanted.config.source(name)
        now = captured(source)
        for at in places(wanted, name, now, check, only):
            for look in looks:
                yield from look(at)


def _digests(wanted: Wanted, check: Callable[[], None]) -> Digests:
    found: dict[tuple[str, str, str], dict[str, str]] = {}
    for name in wanted.config.sources:
        now = captured(wanted.config.source(name))
        for at in places(wanted, name, now, check, None):
            found |= {(at.source, at.target, table): both for table, both in data_hash.digests(at)}
    return found


def _confirmed(before: Check, now: Check) -> Check:
    """What is broken on both looks. As far as the violating rows are known, only those of both count: of rows that come
    and go, others may be on their way each time."""
    if now.state != BROKEN or before.more or now.more or not (before.rows and now.rows):
        return now
    known = set(before.rows)
    rows = tuple(row for row in now.rows if row in known)
    return replace(now, state=BROKEN if rows else HOLDS, violations=len(rows), rows=rows)
