"""A CMDB whose tables tell of their changes by triggers: the service that brings them into graph and cache.

``from syncline.systems.cmdb import SyncService``. ``syncline triggers install`` installs the triggers, or the
service itself where it may.
"""

from __future__ import annotations

from syncline.pipeline import SyncService

__all__ = ["SyncService"]
