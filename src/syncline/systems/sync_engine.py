"""An outbox that feeds a graph: publisher, events and the consumer that runs them.

``from syncline.systems.sync_engine import get_sync_publisher, SyncEvent, EventType, run_consumer``
"""

from __future__ import annotations

from pathlib import Path

from syncline.config import load_config
from syncline.events import EventType, SyncEvent
from syncline.pipeline import SyncService
from syncline.publisher import SyncPublisher, get_sync_publisher

__all__ = ["EventType", "SyncEvent", "SyncPublisher", "get_sync_publisher", "run_consumer"]


def run_consumer(
    batch_size: int | None = None, poll_interval: float | None = None, *, config: Path | str | None = None
) -> int:
    """Run the engine of syncline.yaml (or of the file ``config``) in this thread, until it is interrupted or has
    nothing left to run; the exit code, as of ``syncline run``.

    ``batch_size`` is ``apply.max_rows``. ``poll_interval`` is taken and changes nothing: events come as they commit, or
    every ``source.poll_s`` where the outbox is polled.

    Raises:
        Misconfigured, Unavailable: as :meth:`~syncline.pipeline.SyncService.start` does.
    """
    overrides = {} if batch_size is None else {"apply.max_rows": str(batch_size)}
    service = SyncService(load_config(None if config is None else Path(config), overrides=overrides))
    try:
        service.start()
        code = service.wait()
    except KeyboardInterrupt:
        code = 0
    finally:
        service.stop()
    return 0 if code is None else code
