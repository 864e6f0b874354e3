"""Grouping raw pgoutput messages into chunks: by table within whole transactions. Pure: no connection, no clock."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from syncline.capture.messages import (
    Begin,
    Relation,
    Run,
    parse_begin,
    parse_commit,
    parse_message,
    parse_origin,
    parse_relation,
    parse_truncate,
    parse_type,
)
from syncline.errors import Damaged

__all__ = ["ROW_KINDS", "Assembler", "Chunk", "Group", "Truncation"]

ROW_KINDS = b"IUD"
_BEGIN, _COMMIT, _RELATION, _TRUNCATE, _MESSAGE, _ORIGIN, _TYPE = b"BCRTMOY"


@dataclass(slots=True)
class Group:
    """Consecutive row messages of one relation in one shape."""

    relation: Relation
    payloads: list[bytes] = field(default_factory=list)
    runs: list[Run] = field(default_factory=list)

    def split(self, lsn: int) -> Group:
        """Take away what the transaction that commits at ``lsn`` has at the end of this group."""
        tail = Group(self.relation)
        while self.runs and self.runs[-1].version == lsn:
            tail.runs.insert(0, self.runs.pop())
        kept = sum(r.count for r in self.runs)
        tail.payloads = self.payloads[kept:]
        del self.payloads[kept:]
        return tail


@dataclass(frozen=True, slots=True)
class Truncation:
    """A TRUNCATE of some relations, by the transaction that commits at ``lsn``."""

    relations: tuple[Relation, ...]
    lsn: int


@dataclass(slots=True)
class Chunk:
    """Whole transactions as grouped raw messages, or one part of a large transaction.

    ``place`` is the end of the last commit in it, 0 for a part that is not the last. ``part`` is None for whole
    transactions. ``origin`` is the name of the replication origin of all of them, '' without one.
    """

    items: list[Group | Truncation] = field(default_factory=list)
    place: int = 0
    commit_time: int = 0
    nbytes: int = 0
    part: int | None = None
    last: bool = True
    origin: str = ""

    @property
    def rows(self) -> int:
        return sum(len(i.payloads) for i in self.items if isinstance(i, Group))


class Assembler:
    """Collects messages into :attr:`chunk`, cutting a transaction that outgrows ``limit_bytes`` into parts.

    Row messages go through :meth:`switch` (whose result appends them, so that a reader's loop has one call a row) and
    everything else through :meth:`control`. ``room`` is what is left of the limit; the reader counts it down and calls
    :meth:`cut` when it is used up inside a transaction.
    """

    def __init__(self, limit_bytes: int) -> None:
        self._limit = limit_bytes
        self._relations: dict[bytes, Relation] = {}
        self._groups: dict[bytes, Group] = {}
        self._active: Group | None = None
        self._active_start = 0
        self._ordinal = 0
        self._begin = Begin(0, 0, 0)
        self._part = 0
        self.chunk = Chunk()
        self.room = limit_bytes
        self.in_transaction = False

    @property
    def complete(self) -> bool:
        """Whether the chunk holds whole transactions only, at least one (or a finished last part)."""
        return self.chunk.place != 0 and not self.in_transaction

    def switch(self, head: bytes) -> Callable[[bytes], None]:
        """Make the relation (4 bytes of its oid) the active one; returns what appends its row messages."""
        self._close_run()
        group = self._groups.get(head)
        if group is None:
            relation = self._relations.get(head)
            if relation is None or not self.in_transaction:
                raise Damaged(
                    f"A row message for relation {int.from_bytes(head, 'big')} came "
                    f"{'before its relation message' if self.in_transaction else 'outside a transaction'}."
                )
            group = self._groups[head] = Group(relation)
            self.chunk.items.append(group)
        self._active, self._active_start = group, len(group.payloads)
        return group.payloads.append

    def control(self, payload: bytes) -> Chunk | None:
        """Take a message that is not a row. Returns the whole transactions before the one that has just begun, where
        they are of another origin: an entry has one.

        Raises:
            Damaged: it is malformed, unknown, or out of order.
        """
        self._close_run()
        kind, before = payload[0], None
        if kind == _BEGIN:
            before = self.take() if self.chunk.origin else None
            self._begin, self._ordinal, self._part, self.in_transaction = parse_begin(payload), 0, 0, True
        elif kind == _COMMIT:
            self._commit(payload)
        elif kind == _RELATION:
            self._relation(parse_relation(payload))
        elif kind == _TRUNCATE:
            self._truncate(payload)
        elif kind == _MESSAGE:
            parse_message(payload)  # ours only move the place, at their commit
        elif kind == _ORIGIN:
            before = self.take() if self.chunk.place else None  # it stands right behind BEGIN
            self.chunk.origin = parse_origin(payload).name
        elif kind == _TYPE:
            parse_type(payload)
        else:
            raise Damaged(f"Message kind {chr(kind)!r} is not part of the protocol that was asked for.")
        return before

    def cut(self) -> list[Chunk]:
        """The chunk is full inside a transaction: whole transactions before it (if any), then a part of it."""
        self._close_run()
        lsn = self._begin.final_lsn
        part = Chunk(part=self._part, last=False)
        done = []
        if self.chunk.place:
            part.items = self._split(lsn)
            done.append(self.chunk)
        else:
            part.items = self.chunk.items
        part.nbytes, part.origin = self._limit - self.room, self.chunk.origin
        self._part += 1
        self._fresh()
        self.chunk.origin = part.origin
        return [*done, part]

    def take(self) -> Chunk:
        """The complete chunk; the next one starts empty."""
        chunk = self.chunk
        chunk.nbytes = self._limit - self.room
        self._fresh()
        return chunk

    def pause(self) -> None:
        """The reader stops for a while: close the open run, so that the chunk is consistent."""
        self._close_run()

    def _fresh(self) -> None:
        self.chunk, self.room, self._groups, self._active = Chunk(), self._limit, {}, None
        if self.in_transaction and self._part:
            self.chunk.part = self._part

    def _split(self, lsn: int) -> list[Group | Truncation]:
        tail: list[Group | Truncation] = []
        kept: list[Group | Truncation] = []
        for item in self.chunk.items:
            if isinstance(item, Truncation):
                (tail if item.lsn == lsn else kept).append(item)
                continue
            cut = item.split(lsn)
            if item.payloads:
                kept.append(item)
            if cut.payloads:
                tail.append(cut)
        self.chunk.items = kept
        return tail

    def _close_run(self) -> None:
        group = self._active
        if group is None:
            return
        count = len(group.payloads) - self._active_start
        if count:
            begin = self._begin
            group.runs.append(Run(begin.final_lsn, begin.commit_time, begin.xid, self._ordinal, count))
            self._ordinal += count
        self._active = None

    def _commit(self, payload: bytes) -> None:
        commit = parse_commit(payload)
        if not self.in_transaction or commit.lsn != self._begin.final_lsn:
            raise Damaged(f"A commit of {commit.lsn:X} came where {self._begin.final_lsn:X} was open.")
        self.in_transaction = False
        self.chunk.place, self.chunk.commit_time = commit.end_lsn, commit.commit_time
        self._part = 0

    def _relation(self, relation: Relation) -> None:
        head = relation.oid.to_bytes(4, "big")
        if self._relations.get(head) != relation:
            self._relations[head] = relation
            self._groups.pop(head, None)

    def _truncate(self, payload: bytes) -> None:
        heads = [oid.to_bytes(4, "big") for oid in parse_truncate(payload).relation_oids]
        missing = [h for h in heads if h not in self._relations]
        if missing or not self.in_transaction:
            raise Damaged("A TRUNCATE came before the relation messages of its tables.")
        for head in heads:
            self._groups.pop(head, None)
        self.chunk.items.append(Truncation(tuple(self._relations[h] for h in heads), self._begin.final_lsn))
        self._ordinal += 1
