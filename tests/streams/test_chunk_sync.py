"""The face of the stream for applications."""

from __future__ import annotations

import asyncio

import pytest
from chunk_events import STREAM, Chunks

from syncline.errors import Misconfigured
from syncline.events import EventType
from syncline.systems.chunk_sync import ChunkSyncService, SyncEvent


def test_what_is_published_by_the_service_is_consumed_by_it(chunks: Chunks) -> None:
    service = ChunkSyncService(chunks.configure())
    assert (service.stream_key, service.consumer_group) == (STREAM, "sync-workers")
    event = SyncEvent(
        EventType.CONTENT_CREATED, "a", "chunk", {"content": "x", "position": 1}, source="hybrid", targets=("copy",)
    )

    async def run() -> None:
        consuming = asyncio.create_task(service.consume_sync_events())
        try:
            for _ in range(2):  # a publisher that is not sure of the first time
                await service.publish_sync_event(event)
            await service.publish_sync_event(
                {"id": "2", "type": "update", "target": ["postgres"], "chunk": {"id": "a", "position": 2}}
            )
            while not chunks.database.value("select to_regclass('chunks')") or chunks.rows("copy") != [("a", "x", 2)]:
                assert not consuming.done(), await consuming
                await asyncio.sleep(0.05)
        finally:
            service.stop()
            await asyncio.wait_for(consuming, 60)

    asyncio.run(asyncio.wait_for(run(), 120))
    service.close()
    assert chunks.parked() == []


def test_a_configuration_without_such_a_source_is_refused(chunks: Chunks) -> None:
    with pytest.raises(Misconfigured, match="0 sources of type stream called other"):
        ChunkSyncService(chunks.configure(), "other")


def test_what_is_no_event_is_refused_before_it_is_published(chunks: Chunks) -> None:
    service = ChunkSyncService(chunks.configure())
    with pytest.raises(ValueError, match="chunk must be an object with an id"):
        asyncio.run(service.publish_sync_event({"type": "create", "chunk": {}}))
    with pytest.raises(ValueError, match="takes events about entities of type chunk"):
        asyncio.run(service.publish_sync_event(SyncEvent(EventType.USER_DELETED, "7", "user")))
    assert chunks.client.xlen(STREAM) == 0
