"""What an outbox needs beside the stream: its parked events among the dead letters, and the status of events."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import psycopg
import pyarrow as pa
from pyarrow import ipc

from syncline.apply.keys import key_hashes
from syncline.capture.outbox.expand import Entity, ParkedEvent, entity_keys
from syncline.capture.outbox.install import maintain
from syncline.capture.outbox.progress import Failure, events_since, note_failures, note_progress
from syncline.capture.outbox.settings import OutboxConfig
from syncline.capture.outbox.tables import entities_of
from syncline.capture.settings import PostgresSettings
from syncline.capture.source import connect, translated
from syncline.capture.tables import TableInfo
from syncline.catalog.repository import ControlSchema, DeadLetter, parked_as
from syncline.logs import logger

__all__ = ["EventStatus", "ParkedEvents", "Reached"]

_log = logger()
_MAINTAIN_S = 600.0
_LOOK_AGAIN_S = 1.0


class ParkedEvents:
    """The events of one source that are no changes, as dead letters of the outbox (or stream) ``table``; see
    :class:`~syncline.capture.outbox.expand.EventParking`. ``kinds`` are the tables of entities. Any thread."""

    def __init__(self, control: ControlSchema, source: str, table: str, kinds: Mapping[str, str]) -> None:
        self.lock = threading.RLock()
        self._control = control
        self._source = source
        self._kinds = kinds
        self._target = parked_as(source)
        self._table = table
        self._blocked: set[bytes] = set()
        self._look_at = 0.0

    def blocked(self) -> frozenset[bytes]:
        """The entities of which something is parked. While there are some they are asked for now and then, for people
        settle them, too."""
        return frozenset(self._known())

    def settle(self, parked: Sequence[ParkedEvent], superseded: dict[bytes, int], incarnation: int) -> None:
        """Park, then close what later events made of no account; durable on return."""
        self._control.park([self._letter(event, incarnation) for event in parked])
        for event in parked:
            _log.warning(
                "event parked", source=self._source, event_id=event.event_id, code=event.code, reason=event.reason
            )
        for entity, version in superseded.items():
            self._control.supersede(self._target, self._table, [entity], version)
        known = self._known()
        known.difference_update(superseded)
        known.update({event.entity for event in parked} - superseded.keys())

    def settle_table(self, table: str) -> None:
        """A table will be read again, for every target: what is parked of it is of no account, since whatever comes
        behind this rests on the rows that are read."""
        kinds = {name for name, entity_table in self._kinds.items() if entity_table == table}
        with self.lock:
            for letter in self._control.letters_of(self._source, [self._table], self._table) if kinds else ():
                if _event(letter)[1] in kinds:
                    key = bytes(letter["key_hash"])
                    self._control.supersede(self._target, self._table, [key], letter["version"])
                    self._blocked.discard(key)

    def _known(self) -> set[bytes]:
        if not self._look_at or (self._blocked and time.monotonic() > self._look_at):
            self._blocked = set(self._control.open_dead_letters(self._target).get(self._table, ()))
            self._look_at = time.monotonic() + _LOOK_AGAIN_S
        return self._blocked

    def _letter(self, event: ParkedEvent, incarnation: int) -> DeadLetter:
        return DeadLetter(
            source=self._source,
            target=self._target,
            table_name=self._table,
            key_hash=event.entity,
            incarnation=incarnation,
            version=event.version,
            ordinal=event.ordinal,
            operation=event.operation,
            code=event.code,
            reason=event.reason,
            payload=_payload(event.row),
            partial=event.partial,
        )


def _payload(row: pa.RecordBatch) -> bytes:
    sink = pa.BufferOutputStream()
    with ipc.new_stream(sink, row.schema) as writer:
        writer.write_batch(row)
    return bytes(sink.getvalue())


@dataclass(frozen=True, slots=True)
class Reached:
    """How far a source is: ``captured`` is the place up to which the log has everything, ``applied`` that up to which
    each target has. ``base`` turns a version into a place; ``tables`` are those that are captured."""

    captured: int
    applied: int
    base: int
    tables: Sequence[TableInfo]


class EventStatus:
    """Keeps what the status of one source's events is told by: checkpoints that cursors pass, and events that failed.

    All of it is written in bulk, now and then, so the status lags by a round of the housekeeping.
    """

    def __init__(self, control: ControlSchema, source: str, database: PostgresSettings, settings: OutboxConfig) -> None:
        self._control = control
        self._source = source
        self._database = database
        self._settings = settings
        self._connection: psycopg.Connection[Any] | None = None
        self._failures: list[Failure] | None = None
        self._look_at = 0.0
        self._maintained = 0.0

    def close(self) -> None:
        """Give the connection back."""
        if self._connection is not None:
            self._connection.close()

    def note(self, reached: Reached) -> None:
        """Note what is reached by now.

        Raises:
            Unavailable, Misconfigured: the source is away, or its role may not.
        """
        if self._connection is None or self._connection.closed:
            timeout_s = self._database.connect_timeout_s
            self._connection = connect(self._database.plain, timeout_s=timeout_s, application="syncline-events")
        with translated(self._database.plain):
            self._note(self._connection, reached)

    def _note(self, connection: psycopg.Connection[Any], reached: Reached) -> None:
        began = time.monotonic()
        if began >= self._look_at:  # many letters take a while: not more than a twentieth of the time
            failures = self._failed(connection, reached)
            if failures != self._failures:  # before events count as completed
                note_failures(connection, self._settings.schema_name, failures)
                self._failures = failures
            self._look_at = time.monotonic() + 20 * (time.monotonic() - began)
        note_progress(
            connection,
            self._settings.schema_name,
            reached.captured,
            reached.applied,
            polled=self._database.polls_events,
        )
        if time.monotonic() - self._maintained > _MAINTAIN_S:
            self._maintained = time.monotonic()  # first: where somebody holds the table, others come first as well
            maintain(connection, self._settings)

    def _failed(self, connection: psycopg.Connection[Any], reached: Reached) -> list[Failure]:
        events = self._settings.table
        letters = self._control.letters_of(self._source, [events, *self._settings.tables], events)
        of_events = [_event_failure(letter) for letter in letters if letter["table_name"] == events]
        of_rows = [letter for letter in letters if letter["table_name"] != events]
        entities = entities_of(self._settings, reached.tables)
        return [*of_events, *self._of_rows(connection, reached.base, of_rows, entities)]

    def _of_rows(
        self,
        connection: psycopg.Connection[Any],
        base: int,
        letters: list[dict[str, Any]],
        entities: dict[str, Entity | None],
    ) -> list[Failure]:
        """The events whose rows a target refused: those of the row's key since the oldest letter of it, to a
        checkpoint. A letter knows the version and not the event, for folding leaves one change of several."""
        found: list[Failure] = []
        for table in sorted({letter["table_name"] for letter in letters}):
            mine = [letter for letter in letters if letter["table_name"] == table]
            kinds = {name: e for name, e in entities.items() if e is not None and e.schema.qualified == table}
            if not kinds:
                continue
            since = min(letter["version"] for letter in mine) - base
            polled = self._database.polls_events
            events = events_since(connection, self._settings.schema_name, list(kinds), since, polled=polled)
            found += _row_failures(mine, events, next(iter(kinds.values())))
        return found


def _event_failure(letter: dict[str, Any]) -> Failure:
    return Failure(_event(letter)[0], letter["target"], letter["reason"], letter["parked_at"])


def _event(letter: dict[str, Any]) -> tuple[str, str]:
    """Id and entity type of a parked event."""
    with ipc.open_stream(letter["payload"]) as reader:
        row = reader.read_all()
    return row.column("event_id")[0].as_py(), row.column("entity_type")[0].as_py()


def _row_failures(letters: list[dict[str, Any]], events: list[tuple[str, str, str]], entity: Entity) -> list[Failure]:
    """One for each event and target: the oldest letter's."""
    rows, keys = entity_keys([entity_id for _, _, entity_id in events], entity.schema)
    by_key: dict[bytes, list[str]] = {}
    for row, key in zip(rows, key_hashes(keys) if rows else (), strict=True):
        by_key.setdefault(key, []).append(events[row][0])
    found: dict[tuple[str, str], Failure] = {}
    for letter in letters:
        for event_id in by_key.get(bytes(letter["key_hash"]), ()):
            failure = Failure(event_id, letter["target"], letter["reason"], letter["parked_at"])
            found.setdefault((event_id, letter["target"]), failure)
    return list(found.values())
