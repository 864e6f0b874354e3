"""What applications say happened: :class:`SyncEvent` and the eight kinds of it. Imports nothing that takes time.

Two kinds of systems write events. One names an entity (``event_type``, ``entity_type``, ``entity_id``, ``payload``),
the other a chunk (``type``, ``chunk``, ``targets``): both are this one class, and :meth:`SyncEvent.from_dict` takes
either.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any
from uuid import uuid4

__all__ = ["EventType", "SyncEvent", "encode_id"]

_CHUNK = "chunk"


class EventType(StrEnum):
    """What happened. Created and updated leave an entity behind, deleted takes it away."""

    CONTENT_CREATED = "CONTENT_CREATED"
    CONTENT_UPDATED = "CONTENT_UPDATED"
    CONTENT_DELETED = "CONTENT_DELETED"
    RELATIONSHIP_CREATED = "RELATIONSHIP_CREATED"
    RELATIONSHIP_DELETED = "RELATIONSHIP_DELETED"
    USER_CREATED = "USER_CREATED"
    USER_UPDATED = "USER_UPDATED"
    USER_DELETED = "USER_DELETED"

    @property
    def verb(self) -> str:
        """``create``, ``update`` or ``delete``."""
        return {"CREATED": "create", "UPDATED": "update", "DELETED": "delete"}[self.value.rpartition("_")[2]]


def encode_id(entity_id: object) -> str:
    """An entity's id as the outbox holds it: a text as it is, a number in digits, and the values of a key of several
    columns (a tuple or list, in the order of the table's key) as a JSON array.

    Raises:
        ValueError: it is empty, or nothing of these.
    """
    if isinstance(entity_id, (list, tuple)):
        if not entity_id or not all(isinstance(part, (str, int)) and not isinstance(part, bool) for part in entity_id):
            raise ValueError("entity_id must hold texts or integers, one for each key column")
        return json.dumps([str(part) for part in entity_id], ensure_ascii=False, separators=(",", ":"))
    if entity_id is None or isinstance(entity_id, bool) or not str(entity_id):
        raise ValueError("entity_id must name the entity: a text, an integer, a UUID, or a tuple of them")
    return str(entity_id)


@dataclass(frozen=True)
class SyncEvent:
    """One thing that happened to one entity.

    ``payload`` may be a patch: fields that it lacks keep their values. ``source_version`` is the application's own and
    stays data: what orders the events of an entity is the order in which they were published. ``source`` names who
    wrote it and ``targets`` who is to have it (None: everybody); ``retry_count`` is carried, not counted.

    Raises ``ValueError`` for what can't be an event: no entity, an unknown type, a payload that is no object.
    """

    event_type: EventType
    entity_id: str
    entity_type: str
    payload: Mapping[str, Any] = field(default_factory=dict)
    source_version: int | None = None
    correlation_id: str | None = None
    event_id: str = field(default_factory=lambda: str(uuid4()))
    timestamp: datetime = field(default_factory=lambda: datetime.now(UTC))
    source: str | None = None
    targets: tuple[str, ...] | None = None
    retry_count: int = 0

    def __post_init__(self) -> None:
        put = object.__setattr__  # the class is frozen for everybody else
        put(self, "event_type", _event_type(self.event_type))
        put(self, "entity_id", encode_id(self.entity_id))
        put(self, "timestamp", _moment(self.timestamp))
        if isinstance(self.targets, str):  # whose letters would be the names
            raise ValueError("targets must be a list of names")
        put(self, "targets", None if self.targets is None else tuple(self.targets))
        for name in ("entity_type", "event_id"):
            if not isinstance(getattr(self, name), str) or not getattr(self, name):
                raise ValueError(f"{name} must be a text that is not empty")
        if not isinstance(self.payload, Mapping):
            raise ValueError("payload must be an object: names of fields and their values")

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain values that JSON has, but for values of the payload, which stay what they are;
        :meth:`from_dict` makes an equal event of it."""
        return {
            "event_id": self.event_id,
            "correlation_id": self.correlation_id,
            "event_type": self.event_type.value,
            "entity_id": self.entity_id,
            "entity_type": self.entity_type,
            "payload": dict(self.payload),
            "source_version": self.source_version,
            "timestamp": self.timestamp.isoformat(),
            "source": self.source,
            "targets": None if self.targets is None else list(self.targets),
            "retry_count": self.retry_count,
        }

    def to_chunk_dict(self) -> dict[str, str]:
        """The fields of a stream's entry (``event_id, type, source, targets, chunk, timestamp``), all of them texts."""
        # The event says whom it is about, whatever its payload calls an id.
        chunk = {"id": self.entity_id, **{name: value for name, value in self.payload.items() if name != "id"}}
        return {
            "event_id": self.event_id,
            "type": self.event_type.verb,
            "source": self.source or "",
            "targets": json.dumps(list(self.targets or ())),
            "chunk": json.dumps(chunk, ensure_ascii=False, default=str),
            "timestamp": self.timestamp.isoformat(),
        }

    @classmethod
    def from_dict(cls, given: Mapping[str, Any]) -> SyncEvent:
        """The event that :meth:`to_dict`, or a system that writes chunks, made this of. Unknown names are passed over.

        Raises:
            ValueError: it is not an event; says which field is missing or wrong, never what it holds.
        """
        return _from_chunk(given) if "chunk" in given and "event_type" not in given else _from_entity(given)


def _from_entity(given: Mapping[str, Any]) -> SyncEvent:
    missing = [name for name in ("event_type", "entity_id", "entity_type") if given.get(name) is None]
    if missing:
        raise ValueError(f"an event needs {', '.join(missing)}")
    return SyncEvent(
        event_type=given["event_type"],
        entity_id=given["entity_id"],
        entity_type=given["entity_type"],
        payload={} if given.get("payload") is None else _read(given["payload"], "payload"),
        source_version=_integer(given.get("source_version"), "source_version"),
        correlation_id=given.get("correlation_id"),
        **_shared(given, "event_id"),
    )


def _from_chunk(given: Mapping[str, Any]) -> SyncEvent:
    chunk = _read(given["chunk"], "chunk")
    if not isinstance(chunk, Mapping) or chunk.get("id") is None:
        raise ValueError("chunk must be an object with an id")
    named = "targets" if "targets" in given else "target"
    targets = _read(given.get(named) or [], named)
    if isinstance(targets, str) or not isinstance(targets, Sequence) or not all(isinstance(t, str) for t in targets):
        raise ValueError(f"{named} must be a list of names")
    return SyncEvent(
        event_type=_event_type(given.get("type"), "type"),
        entity_id=chunk["id"],
        entity_type=_CHUNK,
        payload={name: value for name, value in chunk.items() if name != "id"},
        **{**_shared(given, "event_id" if "event_id" in given else "id"), "targets": tuple(targets) or None},
    )


def _shared(given: Mapping[str, Any], id_name: str) -> dict[str, Any]:
    found: dict[str, Any] = {
        "source": given.get("source") or None,
        "targets": given.get("targets"),
        "retry_count": _integer(given.get("retry_count"), "retry_count") or 0,
    }
    if given.get(id_name) is not None:
        found["event_id"] = str(given[id_name])
    if given.get("timestamp") is not None:
        found["timestamp"] = _moment(given["timestamp"])
    return found


def _event_type(value: object, name: str = "event_type") -> EventType:
    if isinstance(value, EventType):
        return value
    known = {kind.value: kind for kind in EventType}
    known |= {kind.verb: kind for kind in EventType if kind.value.startswith("CONTENT_")}
    if not isinstance(value, str) or value not in known:
        raise ValueError(f"{name} is none of {', '.join(kind.value for kind in EventType)}")
    return known[value]


def _read(value: Any, name: str) -> Any:
    """A value that a stream carries as JSON, or as it is."""
    if not isinstance(value, (str, bytes)):
        return value
    try:
        return json.loads(value)
    except RecursionError as error:
        raise ValueError(f"{name} is nested too deeply") from error
    except ValueError as error:
        raise ValueError(f"{name} is no JSON") from error


def _integer(value: Any, name: str) -> int | None:
    try:
        return None if value is None else int(value)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} must be an integer") from error


def _moment(value: Any) -> datetime:
    """Times without a zone are UTC."""
    try:
        moment = value if isinstance(value, datetime) else datetime.fromisoformat(str(value))
    except ValueError as error:
        raise ValueError("timestamp must be a time as ISO 8601 writes it") from error
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)
