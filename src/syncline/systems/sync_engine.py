"""An outbox that feeds a graph: publisher, events and the consumer that runs them.

``from syncline.systems.sync_engine import get_sync_publisher, SyncEvent, EventType, run_consumer``
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

from syncline.config import load_config
from syncline.events import EventType, SyncEvent
from syncline.interrupts import interrupted_by_signals
from syncline.pipeline import SyncService
from syncline.publisher import SyncPublisher, get_sync_publisher
from syncline.verify.reconcile import Wanted, reconcile
from syncline.verify.repair import Repaired, limits_of

__all__ = ["EventType", "ReconciliationJob", "SyncEvent", "SyncPublisher", "get_sync_publisher", "run_consumer"]


def run_consumer(
    batch_size: int | None = None, poll_interval: float | None = None, *, config: Path | str | None = None
) -> int:
    """Run the engine of syncline.yaml (or of the file ``config``) in this thread, until it is interrupted (SIGINT, also
    where that was ignored when the process began, or SIGTERM) or has nothing left to run; the exit code, as of
    ``syncline run``.

    ``batch_size`` is ``apply.max_rows``. ``poll_interval`` is taken and changes nothing: events come as they commit, or
    every ``source.poll_s`` where the outbox is polled.

    Raises:
        Misconfigured, Unavailable: as :meth:`~syncline.pipeline.SyncService.start` does.
    """
    overrides = {} if batch_size is None else {"apply.max_rows": str(batch_size)}
    service = SyncService(load_config(None if config is None else Path(config), overrides=overrides))
    try:
        with interrupted_by_signals():
            service.start()
            code = service.wait()
    except KeyboardInterrupt:
        code = 0
    finally:
        service.stop()
    return 0 if code is None else code


class ReconciliationJob:
    """Compares the copies of syncline.yaml (or of the file ``config``) with their sources, and repairs what differs."""

    def __init__(self, config: Path | str | None = None, *, talk: Callable[[str], None] | None = None) -> None:
        self._config = load_config(None if config is None else Path(config))
        self._talk = talk

    def run_full_reconciliation(
        self,
        entity_types: Iterable[str] | None = None,
        entity_ids: Iterable[object] | None = None,
        batch_size: int | None = None,
    ) -> Repaired:
        """Do it now, with the engine that runs, or one of its own; recorded in ``reconciliation_runs``.

        ``entity_types`` are those of an outbox, or tables; ``entity_ids`` keys among them. ``batch_size`` keys are
        repaired at a time (``repair.batch_size``).

        Raises:
            Unavailable: another reconciliation is under way, or a server is away.
            Misconfigured, Gap: as :func:`syncline.verify.verify`.
        """
        limits = limits_of(self._config)
        if batch_size is not None:
            limits = replace(limits, batch_size=batch_size)
        wanted = Wanted(
            None if entity_types is None else list(entity_types),
            None if entity_ids is None else frozenset(map(str, entity_ids)),
        )
        return reconcile(self._config, wanted, limits, engine=SyncService, talk=self._talk)
