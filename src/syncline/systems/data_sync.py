"""PostgreSQL followed into DuckDB: the service that captures changes and applies them, and what it is told.

``from syncline.systems.data_sync import CDCConfiguration, CDCService, DataSyncService``. Both services are one here:
applications write to PostgreSQL, and what they wrote is captured.
"""

from __future__ import annotations

from syncline.capture.source import SourceConfig as CDCConfiguration
from syncline.pipeline import SyncService as CDCService
from syncline.pipeline import SyncService as DataSyncService

__all__ = ["CDCConfiguration", "CDCService", "DataSyncService"]
