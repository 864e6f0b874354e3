"""Reconciliation: comparing and repairing as a job of its own, whose runs are recorded, one at a time."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from contextlib import closing
from dataclasses import dataclass

from syncline.capture.settings import PostgresSettings
from syncline.catalog.reconciliation import ReconciliationRuns
from syncline.catalog.repository import ControlSchema
from syncline.config import Config
from syncline.errors import SynclineError
from syncline.patterns import qualified
from syncline.verify.point import Engine
from syncline.verify.repair import LIMIT, Limits, Repaired, limits_of, repair
from syncline.verify.scope import Scope
from syncline.verify.table import Progress

__all__ = ["Wanted", "reconcile", "tables_of"]


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a run is about: entity types or tables (None: all), keys as people write them (None: all), one target or
    all; and who asked for it."""

    entity_types: Sequence[str] | None = None
    entity_ids: Collection[str] | None = None
    target: str | None = None
    started_by: str = "library"


def tables_of(config: Config, types: Sequence[str] | None) -> list[str]:
    """The tables of entity types, as an outbox of the configuration names them; other names are tables."""
    known: dict[str, str] = {}
    for settings in config.sources.values():
        if isinstance(settings, PostgresSettings) and settings.events_from is not None:
            entities = settings.events_from.entities
            known |= {name: entity.table for name, entity in entities.items() if entity is not None}
    return [known.get(name) or qualified(name) for name in types or ()]


def reconcile(
    config: Config,
    wanted: Wanted | None = None,
    limits: Limits | None = None,
    progress: Progress | None = None,
    *,
    engine: type[Engine] | None = None,
    talk: Callable[[str], None] | None = None,
) -> Repaired:
    """Compare and repair, recorded in ``reconciliation_runs``.

    Raises:
        Unavailable: another reconciliation is under way, or as :func:`syncline.verify.repair.repair`.
        Misconfigured, Gap: as ``repair``.
    """
    wanted, limits = wanted or Wanted(), limits or limits_of(config)
    scope = Scope(ids=None if wanted.entity_ids is None else frozenset(wanted.entity_ids))
    tables = tables_of(config, wanted.entity_types)
    with ControlSchema(config.control_dsn, config.control.schema_name) as control:
        control.migrate()
    with closing(ReconciliationRuns(config.control_dsn, config.control.schema_name)) as runs, runs.alone():
        run = runs.begin(
            wanted.started_by, wanted.target or "", wanted.entity_types, limits.batch_size, dry_run=limits.dry_run
        )
        try:
            done = repair(config, tables, wanted.target, progress, engine=engine, talk=talk, limits=limits, scope=scope)
        except SynclineError as error:
            runs.end(run, "failed", {}, code=error.code, message=error.message)
            raise
        except BaseException:
            runs.end(run, "failed", {}, message="It was interrupted.")
            raise
        message = "; ".join([*(done.refused or [t.reason for t in done.tables if t.reason]), *_unseen(done)])
        runs.end(run, _outcome(done), done.figures, code=LIMIT if done.refused else "", message=message)
        runs.prune(config.reconcile.keep_runs)
    return done


def _outcome(done: Repaired) -> str:
    """How the run is recorded. One that could compare nothing, or nothing at one of the targets, has failed: it must
    not read as if all were well."""
    if done.refused:
        return "refused"
    if not done.clean:
        return "differences"
    return "failed" if done.last.away or done.last.not_compared == len(done.last.tables) else "clean"


def _unseen(done: Repaired) -> list[str]:
    """What is said of tables of which the run knows nothing."""
    if not done.last.tables:
        return ["There is no table to compare."]
    if done.last.away:
        return [f"Away: {', '.join(done.last.away)}."]
    return [f"{done.last.not_compared} table(s) not compared."] if done.last.not_compared else []
