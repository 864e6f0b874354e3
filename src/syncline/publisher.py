"""The outbox as applications see it: publish what happened in the transaction in which it happened.

    publisher = get_sync_publisher()
    publisher.publish_content_updated("concept-123", "concept", {"title": "New"}, session=session)

``session`` is the caller's SQLAlchemy session or connection (sync or async), a psycopg connection or cursor, or any
connection of the DB-API, such as Django's: event and data then commit or roll back together. What an async session is
given to returns a coroutine, to be awaited. Without a session the event is committed by itself, in a transaction of its
own: a crash between the two leaves an event without its change, or a change without its event
(docs/captures/outbox.md).

Every call executes one short statement. The function that it calls, which ``syncline outbox install`` makes, locks the
entities until the transaction ends, before it draws the events' numbers: so events of an entity are numbered in the
order of their commits (correctness rule 30).
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Mapping, Sequence
from datetime import date, datetime, time
from decimal import Decimal
from functools import cache
from typing import TYPE_CHECKING, Any
from uuid import UUID

from syncline.events import EventType, SyncEvent

if TYPE_CHECKING:
    import psycopg

__all__ = ["EventType", "SyncEvent", "SyncPublisher", "get_sync_publisher"]

DEFAULT_SCHEMA = "syncline_outbox"


def get_sync_publisher(dsn: str | None = None, *, schema: str = DEFAULT_SCHEMA) -> SyncPublisher:
    """The publisher of this process for an outbox; the same one at every call with the same arguments.

    ``dsn`` serves calls without a session only; where it is not given, the first such call reads syncline.yaml.
    """
    return _publisher(dsn, schema)


@cache
def _publisher(dsn: str | None, schema: str) -> SyncPublisher:
    return SyncPublisher(dsn, schema=schema)


class SyncPublisher:
    """Writes events to the outbox in ``schema``. Any thread may use it; it keeps at most one connection of its own.

    Each method returns the :class:`SyncEvent` that was written, or, for an async session, a coroutine that gives it.
    They raise ``ValueError`` for what can't be an event, ``TypeError`` for a payload that JSON can't carry or a session
    of an unknown kind, and otherwise what the session's driver raises.
    """

    def __init__(self, dsn: str | None = None, *, schema: str = DEFAULT_SCHEMA) -> None:
        self._dsn = dsn
        self._function = ".".join('"' + part.replace('"', '""') + '"' for part in (schema, "publish_events"))
        self._own: _OwnConnection | None = None
        self._lock = threading.Lock()

    def publish_content_created(
        self,
        entity_id: object,
        entity_type: str,
        payload: Mapping[str, Any],
        correlation_id: str | None = None,
        source_version: int | None = None,
        *,
        session: Any = None,
    ) -> Any:
        """An entity came, such as a concept. Fields that the payload lacks are read from its row at the source."""
        kind = EventType.CONTENT_CREATED
        return self._one(kind, entity_id, entity_type, payload, correlation_id, source_version, session)

    def publish_content_updated(
        self,
        entity_id: object,
        entity_type: str,
        payload: Mapping[str, Any],
        correlation_id: str | None = None,
        source_version: int | None = None,
        *,
        session: Any = None,
    ) -> Any:
        """An entity changed; the payload needs to hold the changed fields only."""
        kind = EventType.CONTENT_UPDATED
        return self._one(kind, entity_id, entity_type, payload, correlation_id, source_version, session)

    def publish_content_deleted(
        self,
        entity_id: object,
        entity_type: str,
        correlation_id: str | None = None,
        source_version: int | None = None,
        *,
        session: Any = None,
    ) -> Any:
        """An entity is gone."""
        kind = EventType.CONTENT_DELETED
        return self._one(kind, entity_id, entity_type, {}, correlation_id, source_version, session)

    def publish_relationship_created(
        self,
        from_id: object,
        to_id: object,
        relationship_type: str,
        payload: Mapping[str, Any] | None = None,
        correlation_id: str | None = None,
        source_version: int | None = None,
        *,
        session: Any = None,
    ) -> Any:
        """Two entities are related, or are so in another way than before. ``relationship_type`` is the entity type
        whose table has the two ids as its key, in this order."""
        kind, key = EventType.RELATIONSHIP_CREATED, (from_id, to_id)
        return self._one(kind, key, relationship_type, payload or {}, correlation_id, source_version, session)

    def publish_relationship_deleted(
        self,
        from_id: object,
        to_id: object,
        relationship_type: str,
        correlation_id: str | None = None,
        source_version: int | None = None,
        *,
        session: Any = None,
    ) -> Any:
        """Two entities are related no more."""
        kind, key = EventType.RELATIONSHIP_DELETED, (from_id, to_id)
        return self._one(kind, key, relationship_type, {}, correlation_id, source_version, session)

    def publish_user_created(
        self,
        user_id: object,
        payload: Mapping[str, Any],
        correlation_id: str | None = None,
        source_version: int | None = None,
        *,
        session: Any = None,
    ) -> Any:
        """A user came: an entity of type ``user``."""
        return self._one(EventType.USER_CREATED, user_id, "user", payload, correlation_id, source_version, session)

    def publish_user_updated(
        self,
        user_id: object,
        payload: Mapping[str, Any],
        correlation_id: str | None = None,
        source_version: int | None = None,
        *,
        session: Any = None,
    ) -> Any:
        """A user changed; the payload needs to hold the changed fields only."""
        return self._one(EventType.USER_UPDATED, user_id, "user", payload, correlation_id, source_version, session)

    def publish_user_deleted(
        self,
        user_id: object,
        correlation_id: str | None = None,
        source_version: int | None = None,
        *,
        session: Any = None,
    ) -> Any:
        """A user is gone."""
        return self._one(EventType.USER_DELETED, user_id, "user", {}, correlation_id, source_version, session)

    def _one(
        self,
        kind: EventType,
        entity_id: object,
        entity_type: str,
        payload: Mapping[str, Any],
        correlation_id: str | None,
        source_version: int | None,
        session: Any,
    ) -> Any:
        event = SyncEvent(
            kind,
            entity_id,  # type: ignore[arg-type] # any form of it; the event holds its text
            entity_type,
            payload,
            source_version=source_version,
            correlation_id=correlation_id,
        )
        return self.publish(event, session=session)

    def publish(self, event: SyncEvent, *, session: Any = None) -> Any:
        """Write one event that is there already."""
        return self._write([event], session, event)

    def publish_many(self, events: Sequence[SyncEvent], *, session: Any = None) -> Any:
        """Write events in one statement, numbered in this order; returns them.

        Each entity costs the server a lock until the transaction ends, of which it has some thousands
        (``max_locks_per_transaction`` times ``max_connections``).
        """
        return self._write(events, session, list(events))

    def close(self) -> None:
        """Give up the connection of its own, if there is one; the next event without a session opens another."""
        with self._lock:
            own, self._own = self._own, None
        if own is not None:
            own.close()

    def _write(self, events: Sequence[SyncEvent], session: Any, result: Any) -> Any:
        if any(event.targets for event in events):
            raise ValueError("events of an outbox are for every target: leave targets out")
        text = _encode(events)
        if session is None:
            self._connection().write(self._function, text)
            return result
        kind = _kind(session)
        if kind == "sqlalchemy":
            session.execute(*_sqlalchemy(self._function, text))
        elif kind == "sqlalchemy async":
            return _awaited(session.execute(*_sqlalchemy(self._function, text)), result)
        elif kind == "psycopg async":
            return _awaited(session.execute(_statement(self._function), [text]), result)
        elif kind == "cursor":
            session.execute(_statement(self._function), [text])
        else:
            with session.cursor() as cursor:
                cursor.execute(_statement(self._function), [text])
        return result

    def _connection(self) -> _OwnConnection:
        with self._lock:
            if self._own is None or self._own.pid != os.getpid():  # a fork must not share its parent's socket
                self._own = _OwnConnection(self._dsn or _configured_dsn())
            return self._own


class _OwnConnection:
    """A connection in autocommit: every event is a transaction."""

    def __init__(self, dsn: str) -> None:
        self._dsn = dsn
        self._connection: psycopg.Connection[Any] | None = None
        self._lock = threading.Lock()
        self.pid = os.getpid()

    def write(self, function: str, text: str) -> None:
        import psycopg

        with self._lock:
            if self._connection is None or self._connection.closed:
                self._connection = psycopg.connect(self._dsn, autocommit=True, application_name="syncline-publisher")
            # Not prepared: a pooler may give each statement another connection.
            self._connection.execute(_statement(function).encode(), [text], prepare=False)

    def close(self) -> None:
        with self._lock:
            if self._connection is not None:
                self._connection.close()


def _configured_dsn() -> str:
    """That of the first source in syncline.yaml which has an outbox."""
    from syncline.config import load_config
    from syncline.errors import Misconfigured

    for source in load_config().sources.values():
        if source.events_from is not None and source.database is not None:
            return source.database.get_secret_value()
    raise Misconfigured(
        "No source in the configuration has an outbox, so an event without a session has nowhere to go.",
        remedy="Set source.outbox.entities, or give get_sync_publisher() a connection string.",
    )


# ---------------------------------------------------------------------------------------------------------- the drivers


def _statement(function: str) -> str:
    return f"select {function}(%s::jsonb)"


def _sqlalchemy(function: str, text: str) -> tuple[Any, dict[str, str]]:
    import sqlalchemy

    name = function.replace(":", "\\:")
    return sqlalchemy.text(f"select {name}(cast(:events as jsonb))"), {"events": text}


def _kind(session: Any) -> str:
    """How to execute with it. By names, so that no driver is imported which the application does not use."""
    homes = {f"{cls.__module__}.{cls.__qualname__}" for cls in type(session).__mro__}
    if any(home.startswith("sqlalchemy.ext.asyncio.") for home in homes):
        return "sqlalchemy async"
    if any(home.startswith("sqlalchemy.") for home in homes):
        return "sqlalchemy"
    if any(home.startswith("psycopg.") for home in homes):
        names = {home.rpartition(".")[2] for home in homes}
        if names & {"AsyncConnection", "AsyncCursor", "BaseAsyncCursor"}:
            return "psycopg async"
        return "cursor"  # connections of psycopg 3 execute as cursors do
    if hasattr(session, "cursor"):
        return "cursor" if hasattr(session, "fetchall") else "connection"
    if hasattr(session, "execute"):
        return "cursor"
    raise TypeError(
        "session must be a SQLAlchemy session or connection, a psycopg connection or cursor, or a connection with "
        "cursor(), such as Django's"
    )


async def _awaited(execution: Any, result: Any) -> Any:
    await execution
    return result


# -------------------------------------------------------------------------------------------------------------- payload


def _encode(events: Sequence[SyncEvent]) -> str:
    return json.dumps([_record(event) for event in events], ensure_ascii=False, allow_nan=False, default=_plain)


def _record(event: SyncEvent) -> dict[str, Any]:
    return {
        "event_id": event.event_id,
        "event_type": event.event_type.value,
        "entity_type": event.entity_type,
        "entity_id": event.entity_id,
        "payload": dict(event.payload),
        "source_version": event.source_version,
        "correlation_id": event.correlation_id,
        "source": event.source,
    }


def _plain(value: Any) -> Any:
    """Values that applications have and JSON has not, as the text that PostgreSQL reads them from."""
    if isinstance(value, (datetime, date, time)):
        return value.isoformat()
    if isinstance(value, (Decimal, UUID)):
        return str(value)
    if isinstance(value, (bytes, bytearray, memoryview)):
        return "\\x" + bytes(value).hex()
    if isinstance(value, (set, frozenset, tuple)):
        return list(value)
    raise TypeError(f"a payload can't hold a value of type {type(value).__name__}")
