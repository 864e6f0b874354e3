"""Raw messages grouped into chunks: whole transactions, or consecutive parts of one; any disorder is refused."""

from __future__ import annotations

import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from syncline.capture.assemble import ROW_KINDS, Assembler, Chunk, Group, Truncation
from syncline.errors import Damaged

TABLES = (16_400, 16_401, 16_402)


def begin(lsn: int, xid: int = 9) -> bytes:
    return b"B" + struct.pack(">QqI", lsn, 0, xid)


def commit(lsn: int) -> bytes:
    return b"C\0" + struct.pack(">QQq", lsn, lsn + 8, 0)


def relation(oid: int, column: str = "id") -> bytes:
    head = b"R" + struct.pack(">I", oid) + b"public\0t%d\0d" % oid
    return head + struct.pack(">H", 1) + b"\x01" + column.encode() + b"\0" + struct.pack(">Ii", 23, -1)


def insert(oid: int, value: int) -> bytes:
    return b"I" + struct.pack(">I", oid) + b"N" + struct.pack(">H", 1) + b"t" + struct.pack(">I", 8) + b"%08d" % value


def origin(name: str) -> bytes:
    return b"O" + struct.pack(">Q", 7) + name.encode() + b"\0"


def truncate(*oids: int) -> bytes:
    return b"T" + struct.pack(">IB", len(oids), 0) + b"".join(struct.pack(">I", oid) for oid in oids)


def fed(messages: list[bytes], limit: int = 1 << 20, *, take_every: int = 0) -> list[Chunk]:
    """What a receiver does: rows by way of ``switch``, the rest by ``control``, chunks where they are due."""
    assembler, chunks, head, append = Assembler(limit), [], b"", None
    commits = 0
    for message in messages:
        if message[0] in ROW_KINDS:
            if append is None or message[1:5] != head:
                head = message[1:5]
                append = assembler.switch(head)
            append(message)
            assembler.room -= len(message)
            if assembler.room <= 0:
                chunks += assembler.cut()
                append = None
            continue
        append = None
        if before := assembler.control(message):
            chunks.append(before)
        if message[:1] == b"C":
            commits += 1
            if assembler.chunk.part is not None or (take_every and commits % take_every == 0):
                chunks.append(assembler.take())
    if assembler.complete:
        chunks.append(assembler.take())
    return chunks


def rows(chunks: list[Chunk]) -> list[tuple[int, int, int]]:
    """(table, LSN of the transaction, value) of all rows, by table, in order."""
    found = []
    for chunk in chunks:
        for item in chunk.items:
            if isinstance(item, Group):
                versions = [run.version for run in item.runs for _ in range(run.count)]
                assert len(versions) == len(item.payloads)
                values = [int(p[-8:]) for p in item.payloads]
                found += [(item.relation.oid, v, n) for v, n in zip(versions, values, strict=True)]
    return sorted(found, key=lambda row: row[0])


@st.composite
def streams(draw: st.DrawFn) -> tuple[list[bytes], list[tuple[int, int, int]]]:
    """Transactions over some tables, and the rows that they hold, by table."""
    messages, wanted, value = [relation(oid) for oid in TABLES], [], 0
    first = [begin(1), *messages, commit(1)]
    messages = first
    for number in range(draw(st.integers(1, 6))):
        lsn = 100 * (number + 1)
        messages.append(begin(lsn))
        if name := draw(st.sampled_from(["", "one", "other"])):
            messages.append(origin(name))
        for oid in draw(st.lists(st.sampled_from(TABLES), max_size=12)):
            value += 1
            messages.append(insert(oid, value))
            wanted.append((oid, lsn, value))
        messages.append(commit(lsn))
    return messages, sorted(wanted, key=lambda row: row[0])


@given(streams(), st.sampled_from([40, 100, 300, 1 << 20]), st.integers(0, 3))
def test_every_row_comes_once_in_order_under_its_transaction_whatever_the_limits(
    stream: tuple[list[bytes], list[tuple[int, int, int]]], limit: int, take_every: int
) -> None:
    messages, wanted = stream
    assert rows(fed(messages, limit, take_every=take_every)) == wanted


@given(streams(), st.sampled_from([40, 100, 300]))
def test_parts_of_a_transaction_are_consecutive_and_only_the_last_moves_the_place(
    stream: tuple[list[bytes], list[tuple[int, int, int]]], limit: int
) -> None:
    due = 0
    for chunk in fed(stream[0], limit):
        if chunk.part is None:
            assert due == 0
            assert chunk.place
            continue
        assert chunk.part == due
        lsns = {run.version for item in chunk.items if isinstance(item, Group) for run in item.runs}
        assert len(lsns) <= 1, "a part holds one transaction only"
        assert bool(chunk.place) == chunk.last
        due = 0 if chunk.last else due + 1
    assert due == 0


@given(streams(), st.sampled_from([40, 100, 1 << 20]), st.integers(0, 3))
def test_what_one_chunk_holds_is_of_one_origin_and_says_which(
    stream: tuple[list[bytes], list[tuple[int, int, int]]], limit: int, take_every: int
) -> None:
    origins: dict[int, str] = {}
    for message in stream[0]:
        if message[:1] == b"B":
            (lsn,) = struct.unpack(">Q", message[1:9])
            origins[lsn] = ""
        elif message[:1] == b"O":
            origins[lsn] = message[9:-1].decode()
    for chunk in fed(stream[0], limit, take_every=take_every):
        lsns = {run.version for item in chunk.items if isinstance(item, Group) for run in item.runs}
        assert {origins[lsn] for lsn in lsns} <= {chunk.origin}


def test_ordinals_count_the_changes_of_a_transaction_over_tables_and_parts() -> None:
    messages = [begin(5), *(relation(oid) for oid in TABLES)]
    messages += [insert(TABLES[i % 3], i) for i in range(12)]
    ordinals: dict[int, Any] = {}
    for chunk in fed([*messages, commit(5)], 60):
        for item in chunk.items:
            assert isinstance(item, Group)
            first = 0
            for run in item.runs:
                for i in range(run.count):
                    ordinals[int(item.payloads[first + i][-8:])] = run.first_ordinal + i
                first += run.count
    assert ordinals == {i: i for i in range(12)}


def test_rows_behind_a_truncate_stay_behind_it() -> None:
    one, other = TABLES[:2]
    (chunk,) = fed([begin(5), relation(one), relation(other), insert(one, 1), insert(other, 2), truncate(one),
                    insert(one, 3), insert(other, 4), commit(5)])  # fmt: skip
    kinds = [(type(i), i.relation.oid if isinstance(i, Group) else [r.oid for r in i.relations]) for i in chunk.items]
    assert kinds == [(Group, one), (Group, other), (Truncation, [one]), (Group, one)]


def test_a_changed_relation_begins_a_group_of_its_own() -> None:
    oid = TABLES[0]
    (chunk,) = fed([begin(5), relation(oid), insert(oid, 1), relation(oid, "renamed"), insert(oid, 2), commit(5)])
    assert [i.relation.columns[0].name for i in chunk.items if isinstance(i, Group)] == ["id", "renamed"]


@pytest.mark.parametrize(
    "messages",
    [
        [begin(5), insert(TABLES[0], 1)],
        [begin(5), relation(TABLES[0]), commit(5), insert(TABLES[0], 1)],
        [commit(5)],
        [begin(5), commit(6)],
        [begin(5), truncate(TABLES[0])],
        [b"?unknown"],
        [begin(5)[:-1]],
    ],
    ids=["row before relation", "row outside", "commit alone", "other commit", "truncate of unknown", "unknown", "cut"],
)
def test_messages_out_of_order_are_damaged(messages: list[bytes]) -> None:
    with pytest.raises(Damaged):
        fed(messages)
