"""pgoutput's messages about transactions and relations, one at a time: bytes in, frozen values out. Pure.

Formats as in PostgreSQL's manual, "Logical Replication Message Formats", protocol versions 1 to 4 without streaming.
Every function raises :class:`~syncline.errors.Damaged` with the kind of the message and the byte offset when the bytes
don't follow the format, and never returns a half-read value.
"""

from __future__ import annotations

from dataclasses import dataclass

from syncline.errors import Damaged

__all__ = [
    "Begin",
    "Commit",
    "LogicalMessage",
    "Origin",
    "Relation",
    "RelationColumn",
    "Run",
    "Truncated",
    "TypeName",
    "damaged",
    "parse_begin",
    "parse_commit",
    "parse_message",
    "parse_origin",
    "parse_relation",
    "parse_truncate",
    "parse_type",
]

# PostgreSQL counts microseconds from 2000-01-01.
_EPOCH_US = 946_684_800_000_000


@dataclass(frozen=True, slots=True)
class Begin:
    """BEGIN: the LSN of the commit record, the commit time (microseconds since 1970, UTC) and the 32-bit xid."""

    final_lsn: int
    commit_time: int
    xid: int


@dataclass(frozen=True, slots=True)
class Commit:
    """COMMIT: the LSN of the commit record, the LSN behind it, and the commit time (microseconds since 1970, UTC)."""

    lsn: int
    end_lsn: int
    commit_time: int


@dataclass(frozen=True)
class RelationColumn:
    """A published column. ``key`` is the message's own flag: part of the replica identity."""

    name: str
    type_oid: int
    typmod: int
    key: bool


@dataclass(frozen=True)
class Relation:
    """RELATION: a published table. ``replica_identity`` is ``d``, ``n``, ``f`` or ``i``."""

    oid: int
    namespace: str
    name: str
    replica_identity: str
    columns: tuple[RelationColumn, ...]

    @property
    def qualified(self) -> str:
        """``namespace.name``."""
        return f"{self.namespace}.{self.name}"


@dataclass(frozen=True, slots=True)
class Run:
    """Consecutive row messages of one relation in one transaction."""

    version: int
    commit_time: int
    xid: int
    first_ordinal: int
    count: int


@dataclass(frozen=True, slots=True)
class Truncated:
    """TRUNCATE of one or more relations."""

    relation_oids: tuple[int, ...]
    cascade: bool
    restart: bool


@dataclass(frozen=True, slots=True)
class LogicalMessage:
    """A message written with ``pg_logical_emit_message``."""

    transactional: bool
    lsn: int
    prefix: str
    content: bytes


@dataclass(frozen=True, slots=True)
class Origin:
    """The replication origin of the transaction: the commit LSN on the origin server, and the origin's name."""

    lsn: int
    name: str


@dataclass(frozen=True, slots=True)
class TypeName:
    """TYPE: the name of a type that isn't built in."""

    oid: int
    namespace: str
    name: str


def damaged(what: str) -> Damaged:
    """The error for bytes that don't follow the protocol. ``what`` ends without a full stop and holds no values."""
    return Damaged(
        f"{what}.",
        remedy="Nothing of it was applied. Restart to read it again from the source; if it comes back, look for what "
        "changes bytes on the connection, and report it with the server's version.",
    )


class _Reader:
    """A cursor over one message that refuses to read beyond its end."""

    __slots__ = ("kind", "payload", "place")

    def __init__(self, payload: bytes, tag: bytes, kind: str) -> None:
        self.payload, self.kind, self.place = bytes(payload), kind, 0
        if self.take(1, "the tag") != tag:
            raise self.error("has another tag", 0)

    def error(self, what: str, at: int | None = None) -> Damaged:
        return damaged(f"A {self.kind} message {what} at byte {self.place if at is None else at}")

    def take(self, size: int, what: str) -> bytes:
        end = self.place + size
        if end > len(self.payload):
            raise self.error(f"ends inside {what}")
        value = self.payload[self.place : end]
        self.place = end
        return value

    def unsigned(self, size: int, what: str) -> int:
        return int.from_bytes(self.take(size, what), "big")

    def signed(self, size: int, what: str) -> int:
        return int.from_bytes(self.take(size, what), "big", signed=True)

    def time(self, what: str) -> int:
        return self.signed(8, what) + _EPOCH_US

    def flags(self, known: int, what: str) -> int:
        value = self.unsigned(1, what)
        if value & ~known:
            raise self.error(f"has unknown {what}", self.place - 1)
        return value

    def text(self, what: str) -> str:
        end = self.payload.find(b"\0", self.place)
        if end < 0:
            raise self.error(f"ends inside {what}")
        try:
            value = self.payload[self.place : end].decode()
        except UnicodeDecodeError as error:
            raise self.error(f"has {what} that is not UTF-8", self.place + error.start) from None
        self.place = end + 1
        return value

    def finish(self) -> None:
        if self.place != len(self.payload):
            raise self.error(f"has {len(self.payload) - self.place} bytes too many")


def parse_begin(payload: bytes) -> Begin:
    """Read a BEGIN message.

    Raises:
        Damaged: the bytes don't follow the format.
    """
    r = _Reader(payload, b"B", "Begin")
    value = Begin(r.unsigned(8, "the final LSN"), r.time("the commit time"), r.unsigned(4, "the xid"))
    r.finish()
    return value


def parse_commit(payload: bytes) -> Commit:
    """Read a COMMIT message.

    Raises:
        Damaged: the bytes don't follow the format.
    """
    r = _Reader(payload, b"C", "Commit")
    r.flags(0, "flags")
    value = Commit(r.unsigned(8, "the LSN"), r.unsigned(8, "the end LSN"), r.time("the commit time"))
    r.finish()
    return value


def parse_relation(payload: bytes) -> Relation:
    """Read a RELATION message. The empty namespace of the wire is ``pg_catalog``.

    Raises:
        Damaged: the bytes don't follow the format.
    """
    r = _Reader(payload, b"R", "Relation")
    oid = r.unsigned(4, "the oid")
    namespace, name = r.text("the namespace") or "pg_catalog", r.text("the name")
    identity = r.take(1, "the replica identity").decode("latin-1")
    if identity not in "dnfi":
        raise r.error("has an unknown replica identity", r.place - 1)
    columns = []
    for _ in range(r.unsigned(2, "the number of columns")):
        key = r.flags(1, "column flags") == 1
        column = r.text("a column name")
        columns.append(RelationColumn(column, r.unsigned(4, "a type oid"), r.signed(4, "a type modifier"), key))
    r.finish()
    return Relation(oid, namespace, name, identity, tuple(columns))


def parse_truncate(payload: bytes) -> Truncated:
    """Read a TRUNCATE message.

    Raises:
        Damaged: the bytes don't follow the format.
    """
    r = _Reader(payload, b"T", "Truncate")
    count = r.unsigned(4, "the number of relations")
    options = r.flags(3, "options")
    if len(payload) != 6 + 4 * count:
        raise r.error(f"does not hold the {count} relation oids it announces", 1)
    oids = tuple(r.unsigned(4, "a relation oid") for _ in range(count))
    r.finish()
    return Truncated(oids, bool(options & 1), bool(options & 2))


def parse_message(payload: bytes) -> LogicalMessage:
    """Read a logical decoding message.

    Raises:
        Damaged: the bytes don't follow the format.
    """
    r = _Reader(payload, b"M", "Message")
    transactional = r.flags(1, "flags") == 1
    lsn, prefix = r.unsigned(8, "the LSN"), r.text("the prefix")
    content = r.take(r.unsigned(4, "the length"), "the content")
    r.finish()
    return LogicalMessage(transactional, lsn, prefix, content)


def parse_origin(payload: bytes) -> Origin:
    """Read an ORIGIN message.

    Raises:
        Damaged: the bytes don't follow the format.
    """
    r = _Reader(payload, b"O", "Origin")
    value = Origin(r.unsigned(8, "the LSN"), r.text("the name"))
    r.finish()
    return value


def parse_type(payload: bytes) -> TypeName:
    """Read a TYPE message. The empty namespace of the wire is ``pg_catalog``.

    Raises:
        Damaged: the bytes don't follow the format.
    """
    r = _Reader(payload, b"Y", "Type")
    value = TypeName(r.unsigned(4, "the oid"), r.text("the namespace") or "pg_catalog", r.text("the name"))
    r.finish()
    return value
