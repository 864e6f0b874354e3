"""Rules of the configuration: assertions in the language of the source, or of a target."""

from __future__ import annotations

from collections.abc import Iterator

from syncline.stores import Asking
from syncline.verify.checks.asking import Rows, answered
from syncline.verify.checks.at import At, not_checked
from syncline.verify.report import Check

__all__ = ["look"]

KIND = "business_rules"


def look(at: At) -> Iterator[Check]:
    """A check for each rule of this place that is about the tables that are asked for."""
    config = at.wanted.config
    here = {at.target} if at.target else {f"source.{at.source}", *(["source"] if len(config.sources) == 1 else [])}
    if at.target and at.source != config.followed_by(at.target)[0]:
        return  # a target that follows several sources is asked once
    for name, rule in config.verify.rules.items():
        if rule.on not in here or not _asked_for(at, rule.table):
            continue
        begun = at.begun(KIND, rule.table or "", name)
        if begun is not None:
            yield _answered(at, begun, rule.query)


def _asked_for(at: At, table: str | None) -> bool:
    """Whether a rule about this table is to be looked at: one that names none, only with all tables."""
    return not at.wanted.tables or table in at.wanted.tables


def _answered(at: At, begun: Check, query: str) -> Check:
    apart = at.apart(begun.table)
    if apart:
        return not_checked(begun, f"Its target can't be asked: {apart}.")
    asked = getattr(at.looked, "ask", None) if at.copy is None else None
    if at.copy is not None and isinstance(at.copy.reader, Asking):
        asked = at.copy.reader.ask
    if asked is None:
        return not_checked(begun, f"{_kind(at)} can't be asked by queries.")

    def ask() -> Rows:
        rows: Rows = asked(query, at.timeout_s)
        return rows

    return answered(begun, ask, boolean=True)


def _kind(at: At) -> str:
    if not at.target:
        return f"A source of type {at.looked.settings.type}"
    return f"A target of type {at.wanted.config.targets[at.target].type}"
