"""Events as applications write them, in both shapes; and that naming them costs an application nothing."""

from __future__ import annotations

import json
import subprocess
import sys
from datetime import UTC, datetime
from typing import Any

import pytest

from syncline.publisher import EventType, SyncEvent

ENTITY = {
    "event_id": "evt-789",
    "correlation_id": "corr-123",
    "event_type": EventType.CONTENT_CREATED,
    "entity_id": "concept-123",
    "entity_type": "concept",
    "payload": {"title": "New Concept"},
    "source_version": 1,
}
CHUNK = {
    "event_id": "e-1",
    "type": "update",
    "source": "claude",
    "targets": '["qdrant", "neo4j"]',
    "chunk": '{"id": "chunk-7", "content": "text"}',
    "timestamp": "2025-01-02T03:04:05.678Z",
}


def test_an_event_of_an_entity_comes_back_from_its_dict_through_json() -> None:
    event = SyncEvent(**ENTITY)
    told = json.loads(json.dumps(event.to_dict()))
    assert told["event_type"] == "CONTENT_CREATED"
    assert SyncEvent.from_dict(told) == event


def test_an_event_of_a_chunk_is_the_same_class_with_its_writer_and_its_targets() -> None:
    event = SyncEvent.from_dict(CHUNK)
    assert (event.event_type, event.entity_type, event.entity_id) == (EventType.CONTENT_UPDATED, "chunk", "chunk-7")
    assert (event.source, event.targets, event.payload) == ("claude", ("qdrant", "neo4j"), {"content": "text"})
    assert event.timestamp == datetime(2025, 1, 2, 3, 4, 5, 678000, UTC)
    assert SyncEvent.from_dict(event.to_chunk_dict()) == event
    assert SyncEvent.from_dict(event.to_dict()) == event
    as_an_interface = {"id": "e-1", "target": ["qdrant", "neo4j"], "retry_count": 2}
    plain = SyncEvent.from_dict({**CHUNK, "event_id": None, **as_an_interface} | {"chunk": {"id": "chunk-7"}})
    assert (plain.retry_count, plain.entity_id) == (2, "chunk-7")


def test_an_event_is_about_its_own_entity_whatever_its_payload_calls_an_id() -> None:
    event = SyncEvent(EventType.CONTENT_UPDATED, "A", "chunk", {"id": "B", "content": "text"})
    assert json.loads(event.to_chunk_dict()["chunk"]) == {"id": "A", "content": "text"}


def test_a_time_without_a_zone_is_utc_from_the_beginning() -> None:
    event = SyncEvent(EventType.CONTENT_UPDATED, "A", "chunk", timestamp=datetime(2026, 1, 2, 3, 4, 5))  # noqa: DTZ001
    assert event.timestamp == datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    assert SyncEvent.from_dict(event.to_dict()) == event


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"event_type": "CONTENT_EATEN"}, "event_type"),
        ({"entity_id": ""}, "entity_id"),
        ({"entity_type": None}, "entity_type"),
        ({"payload": "[1]"}, "payload"),
        ({"source_version": "two"}, "source_version"),
        ({"timestamp": "yesterday"}, "timestamp"),
        ({"targets": "qdrant"}, "targets"),
    ],
)
def test_what_is_no_event_is_refused_with_the_name_of_the_field_and_without_its_value(
    change: dict[str, Any], named: str
) -> None:
    with pytest.raises(ValueError, match=named) as refused:
        SyncEvent.from_dict(SyncEvent(**ENTITY).to_dict() | change)
    assert not any(str(value) in str(refused.value) for value in change.values() if value)


def test_ids_of_several_columns_are_a_list_and_others_are_texts() -> None:
    assert SyncEvent(EventType.RELATIONSHIP_CREATED, ("a", 2), "r").entity_id == '["a","2"]'  # type: ignore[arg-type]
    assert SyncEvent(EventType.CONTENT_CREATED, 7, "c").entity_id == "7"  # type: ignore[arg-type]


def test_an_application_that_imports_the_publisher_imports_nothing_of_the_engine() -> None:
    heavy = ["pyarrow", "duckdb", "numpy", "pydantic", "sqlalchemy", "psycopg", "psycopg2", "msgspec"]
    code = f"import sys, syncline.publisher; print([m for m in {heavy} if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
