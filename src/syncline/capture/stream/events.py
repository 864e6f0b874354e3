"""From entries of a stream to changes: read, sorted by whom they are for, completed from what was told before.

A change always carries its whole row. An update of some fields takes the others from the row that its audience has; and
as targets may have been told different things before, one event may be several rows (:class:`Change`). What can't be a
change is parked with its reason and stops no other entity; a later update of some fields parks behind it (correctness
rule 26), and a whole row or a deletion supersedes it.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
import pyarrow as pa

from syncline.capture.outbox.expand import BAD_EVENT, PARKED_KEY, ParkedEvent, entity_hash
from syncline.capture.outbox.fields import Unfit
from syncline.capture.schema import table_schema
from syncline.capture.stream.settings import ENTITY, StreamSettings
from syncline.capture.stream.texts import printed
from syncline.capture.stream.told import ALL, Row, block, blocked_for, is_new, latest, put, reaches
from syncline.change import Column, Op
from syncline.events import SyncEvent
from syncline.pgvalues.pgtypes import cast_text

__all__ = ["Change", "Changes", "Events"]

_FOLLOWS = "an earlier event of its chunk is parked"
_FIELDS = ("event_id", "id", "type", "source", "targets", "target", "chunk", "timestamp", "retry_count")
_SURE = ("text", "json")  # whatever their text is, the column holds it
_OPS = {"create": Op.INSERT, "update": Op.UPDATE, "delete": Op.DELETE}
# An audience as it is noted, and as the log has it ('' for nobody yet), and the row that it has.
_Part = tuple[str, str, Row | None]
_chunks = msgspec.json.Decoder(dict[str, msgspec.Raw])
_raw = msgspec.json.Encoder()


@dataclass(frozen=True, slots=True)
class Change:
    """One row as an audience has it behind the entry of this number; of a delete, its key alone."""

    number: int
    moment: int
    op: Op
    row: Row


@dataclass(slots=True)
class Changes:
    """What entries said: the changes, by audience and writer, in order; what is parked; and of keys of which something
    was parked, and that have a whole row or a deletion now, the number of that."""

    by_group: dict[tuple[str, str], list[Change]] = field(default_factory=dict)
    parked: list[ParkedEvent] = field(default_factory=list)
    superseded: dict[bytes, int] = field(default_factory=dict)
    repeated: int = 0
    unknown: set[str] = field(default_factory=set)


class Events:
    """Makes changes of entries, and keeps what they said in the transaction that is given."""

    def __init__(self, settings: StreamSettings, base: int) -> None:
        self._schema = table_schema(settings.info)
        self._columns = {column.name: column for column in self._schema.columns}
        self._key = self._columns[settings.key]
        self._fields = settings.fields
        self._ignore = frozenset(settings.ignore)
        self._followers = settings.followers
        self._base = base

    def take(self, connection: sqlite3.Connection, number: int, fields: Mapping[bytes, bytes], into: Changes) -> None:
        """One entry, under its number."""
        key: str | None = None
        event_id, kind, audience = "", "", ALL
        try:
            texts = {name.decode(): value.decode() for name, value in fields.items()}
            event_id, kind = texts.get("event_id") or texts.get("id") or "", texts.get("type", "")
            if not event_id:
                raise Unfit("it has no event_id, by which a repetition would be known")
            if not is_new(connection, event_id, number):
                into.repeated += 1
                return
            key = self._key_of(texts)
            event = SyncEvent.from_dict({name: texts[name] for name in _FIELDS if name in texts})
            audience = self._audience(event.targets, into)
            row = self._row(texts["chunk"], key)
            self._settle(connection, (number, event, audience), key, row, into)
        except (Unfit, ValueError, RecursionError) as error:
            self._park(connection, (number, event_id, kind), (key, audience), (BAD_EVENT, _reason(error)), fields, into)
        except _Behind as behind:
            why = behind.code, str(behind)
            self._park(connection, (number, event_id, kind), (key, audience), why, fields, into)

    # --------------------------------------------------------------------------------------------------------- reading

    def _key_of(self, texts: Mapping[str, str]) -> str | None:
        """The chunk's id as its column prints it, None where the event has none."""
        try:
            ident = _chunks.decode(texts["chunk"]).get("id")
        except KeyError as error:
            raise Unfit("an event needs a chunk") from error
        except msgspec.DecodeError as error:
            raise Unfit("chunk must be an object with an id") from error
        return None if ident is None else _text(bytes(ident), self._key)

    def _audience(self, named: Sequence[str] | None, into: Changes) -> str:
        """Names are those of targets, and of types of targets; what is neither reaches nobody."""
        if named is None:
            return ALL
        followers = self._followers
        found = {target for target, kind in followers.items() if target in named or kind in named}
        into.unknown |= set(named) - set(followers) - set(followers.values())
        if not found:
            raise Unfit("its targets name none that follows the stream, neither by name nor by type")
        return ",".join(sorted(found))

    def _row(self, chunk: str, key: str | None) -> Row:
        """The columns that the chunk has."""
        if key is None:
            raise Unfit("chunk must be an object with an id")
        row: Row = {self._key.name: key}
        for path, raw in _leaves(_chunks.decode(chunk), (), self._fields):
            name = self._fields.get(path)
            if name is not None:
                row[name] = _text(raw, self._columns[name])
            elif path not in (("id",), (self._key.name,)) and path[0] not in self._ignore:
                raise Unfit(f"no column is for field {'.'.join(path)[:63]}; name it in ignore if so be it")
        return row

    # -------------------------------------------------------------------------------------------------------- settling

    def _settle(
        self,
        connection: sqlite3.Connection,
        about: tuple[int, SyncEvent, str],
        key: str | None,
        row: Row,
        into: Changes,
    ) -> None:
        number, event, audience = about
        assert key is not None
        op = _OPS[event.event_type.verb]
        whole = op is not Op.UPDATE or len(row) == len(self._columns)
        blocked = blocked_for(connection, key)
        if blocked and not whole:
            raise _Behind(PARKED_KEY, _FOLLOWS)
        made: list[_Part] = [(audience, audience, None)]
        if op is Op.UPDATE and not whole:
            made = self._completed(connection, key, audience, row)
        elif op is not Op.DELETE:
            made = [(audience, audience, dict.fromkeys(self._columns) | row)]
        moment = int(event.timestamp.timestamp() * 1_000_000)
        for noted, some, complete in made:
            put(connection, key, noted, number, complete)
            if not some:
                continue
            change = Change(number, moment, op, {self._key.name: key} if complete is None else complete)
            into.by_group.setdefault((some, event.source or ""), []).append(change)
        if blocked:
            left = self._members(blocked) - self._members(audience)
            block(connection, key, number, ",".join(sorted(left)))
            if not left:  # nobody is without what was parked any more
                into.superseded[entity_hash(ENTITY, key)] = number

    def _members(self, audience: str) -> set[str]:
        return {name for name in self._followers if reaches(audience, name)}

    def _completed(self, connection: sqlite3.Connection, key: str, audience: str, patch: Row) -> list[_Part]:
        """The row behind an update of some fields, for each part of its audience that had the same before."""
        states = latest(connection, key)
        members = sorted(self._followers) if audience == ALL else audience.split(",")
        bases = {member: _state_of(states, member) for member in members}
        default = next((n for n, (some, _, _) in enumerate(states) if some == ALL), None) if audience == ALL else None
        parts: dict[int | None, list[str]] = {}
        for member, base in bases.items():
            parts.setdefault(base, []).append(member)
        if default is not None and states[default][2] is not None:  # what a target that comes later is told
            parts.setdefault(default, [])
        if not parts or any(base is None or states[base][2] is None for base in parts):
            raise _Behind(BAD_EVENT, "it updates some fields of a chunk that nobody told of, or that was deleted")
        made: list[_Part] = []
        for base, some in parts.items():
            assert base is not None
            former = states[base][2]
            assert former is not None
            known = {name: former.get(name) for name in self._columns}
            named = ALL if some == members and audience == ALL else ",".join(some)
            made.append((ALL if base == default else named, named, known | patch))
        return made

    # --------------------------------------------------------------------------------------------------------- parking

    def _park(
        self,
        connection: sqlite3.Connection,
        about: tuple[int, str, str],
        whose: tuple[str | None, str],
        why: tuple[str, str],
        fields: Mapping[bytes, bytes],
        into: Changes,
    ) -> None:
        (number, event_id, kind), (key, audience) = about, whose
        connection.execute("delete from seen where event_id = ?", (event_id,))  # it may come once more, mended
        entity = entity_hash(ENTITY, key if key is not None else f"\x1f{number}")
        if key is not None:
            names = {*blocked_for(connection, key).split(","), *audience.split(",")} - {""}
            block(connection, key, number, ALL if ALL in names else ",".join(sorted(names)))
        into.superseded.pop(entity, None)
        shown = {name.decode(errors="replace"): value.decode(errors="replace") for name, value in fields.items()}
        row = {"event_id": [event_id], "entity_type": [ENTITY], "fields": [_raw.encode(shown).decode()]}
        into.parked.append(
            ParkedEvent(
                entity=entity,
                version=self._base + number,
                ordinal=0,
                event_id=_kept(event_id),
                operation=_kept(kind[:40]),
                code=why[0],
                reason=why[1],
                partial=kind == "update",
                row=pa.RecordBatch.from_pydict(row),
            )
        )


class _Behind(Exception):
    """The event is sound, and can't be told."""

    def __init__(self, code: str, reason: str) -> None:
        super().__init__(reason)
        self.code = code


def _kept(text: str) -> str:
    """A text as the control schema can hold it: PostgreSQL takes no NUL, and would refuse the whole batch."""
    return text.replace("\0", "\ufffd")


def _reason(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    return "it is not UTF-8" if isinstance(error, UnicodeDecodeError) else str(error)


def _state_of(states: Sequence[tuple[str, int, Row | None]], target: str) -> int | None:
    """Which of a key's states, the newest first, is a target's."""
    return next((n for n, (audience, _, _) in enumerate(states) if reaches(audience, target)), None)


def _leaves(found: Mapping[str, Any], above: tuple[str, ...], fields: Mapping[tuple[str, ...], str]) -> Any:
    """The fields of a chunk by their paths; an object is gone into where a column is for something in it."""
    for name, raw in found.items():
        path = (*above, name)
        if path not in fields and any(known[: len(path)] == path for known in fields) and bytes(raw)[:1] == b"{":
            yield from _leaves(_chunks.decode(bytes(raw)), path, fields)
        else:
            yield path, bytes(raw)


def _text(raw: bytes, column: Column) -> str | None:
    """The value's text, if the column can hold it."""
    try:
        text = printed(raw, column)
        if text is not None and column.type not in _SURE:
            cast_text(pa.array([text], pa.string()), column.type)
        if text is not None and "\0" in text:
            raise ValueError
    except Unfit as error:
        raise Unfit(f"column {column.name} {error}") from error
    except (ValueError, pa.ArrowInvalid) as error:
        raise Unfit(f"column {column.name} takes {column.source_type}, and the chunk has none") from error
    return text
