"""Messages: control messages byte by byte, row messages of every shape, by hand and from the real server."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from typing import Any

import pyarrow as pa
import pytest
from wire import NULL, OID, UNCHANGED, Table, binary, copy_row, delete, insert, one_run, text, update, values

from servers import Database
from syncline.capture import pgoutput
from syncline.capture.messages import (
    Begin,
    Commit,
    LogicalMessage,
    Origin,
    Relation,
    RelationColumn,
    Run,
    Truncated,
    TypeName,
    parse_begin,
    parse_commit,
    parse_message,
    parse_origin,
    parse_relation,
    parse_truncate,
    parse_type,
)
from syncline.capture.pgoutput import decode, decode_copy
from syncline.change import Batch, Column, Op, TableSchema
from syncline.errors import Damaged
from syncline.pgvalues.pgtypes import logical_type

# ------------------------------------------------------------------------------------------------ control messages

RELATION = (
    b"R" + struct.pack(">I", OID) + b"public\0t\0d" + struct.pack(">H", 2)
    + b"\1id\0" + struct.pack(">Ii", 20, -1) + b"\0price\0" + struct.pack(">Ii", 1700, 786_438)
)  # fmt: skip

CONTROL: list[tuple[Callable[[bytes], object], bytes, object]] = [
    (
        parse_begin,
        b"B" + struct.pack(">QqI", 0x16B3748, 0, 731),
        Begin(final_lsn=0x16B3748, commit_time=946_684_800_000_000, xid=731),
    ),
    (
        parse_commit,
        b"C\0" + struct.pack(">QQq", 0x16B3748, 0x16B3778, 1_000_000),
        Commit(lsn=0x16B3748, end_lsn=0x16B3778, commit_time=946_684_801_000_000),
    ),
    (
        parse_relation,
        RELATION,
        Relation(
            OID, "public", "t", "d",
            (RelationColumn("id", 20, -1, key=True), RelationColumn("price", 1700, 786_438, key=False)),
        ),
    ),
    (parse_truncate, b"T" + struct.pack(">IBII", 2, 3, 5, 6), Truncated((5, 6), cascade=True, restart=True)),
    (parse_truncate, b"T" + struct.pack(">IBI", 1, 0, 7), Truncated((7,), cascade=False, restart=False)),
    (
        parse_message,
        b"M\1" + struct.pack(">Q", 77) + b"syncline\0" + struct.pack(">I", 3) + b"a\0b",
        LogicalMessage(transactional=True, lsn=77, prefix="syncline", content=b"a\0b"),
    ),
    (parse_origin, b"O" + struct.pack(">Q", 99) + b"node_a\0", Origin(lsn=99, name="node_a")),
    (parse_type, b"Y" + struct.pack(">I", 16_500) + b"public\0mood\0", TypeName(16_500, "public", "mood")),
    (parse_type, b"Y" + struct.pack(">I", 16_500) + b"\0mood\0", TypeName(16_500, "pg_catalog", "mood")),
]  # fmt: skip


@pytest.mark.parametrize(("parse", "payload", "expected"), CONTROL)
def test_control_messages_are_read_field_by_field(
    parse: Callable[[bytes], object], payload: bytes, expected: object
) -> None:
    assert parse(payload) == expected


@pytest.mark.parametrize(("parse", "payload", "expected"), CONTROL)
def test_a_cut_or_lengthened_control_message_is_damaged(
    parse: Callable[[bytes], object], payload: bytes, expected: object
) -> None:
    for size in range(len(payload)):
        with pytest.raises(Damaged, match=r"message .* byte \d+"):
            parse(payload[:size])
    with pytest.raises(Damaged, match=r"byte"):
        parse(payload + b"\0")
    with pytest.raises(Damaged, match=r"another tag at byte 0"):
        parse(b"?" + payload[1:])


@pytest.mark.parametrize(
    ("parse", "payload", "message"),
    [
        (parse_relation, RELATION.replace(b"price", b"pr\xffce"), r"a column name that is not UTF-8 at byte 32"),
        (parse_relation, RELATION.replace(b"t\0d", b"t\0x"), r"an unknown replica identity at byte 14"),
        (parse_relation, RELATION.replace(b"\1id", b"\7id"), r"unknown column flags"),
        (parse_commit, b"C\1" + bytes(24), r"unknown flags at byte 1"),
        (parse_truncate, b"T" + struct.pack(">IB", 2**32 - 1, 0), r"4294967295 relation oids"),
        (parse_message, b"M\1" + bytes(8) + b"p\0" + struct.pack(">I", 2**32 - 1), r"ends inside the content"),
    ],
)
def test_damaged_control_messages_say_what_and_where(
    parse: Callable[[bytes], object], payload: bytes, message: str
) -> None:
    with pytest.raises(Damaged, match=message):
        parse(payload)


# -------------------------------------------------------------------------------------------- row messages by hand

INT8, TEXT, JSONB, FLOAT8 = 20, 25, 3802, 701
TABLE = Table((("id", INT8, -1, True), ("name", TEXT, -1, False), ("doc", JSONB, -1, False)))
FULL = Table(TABLE.columns, identity="f")
A, B, X = text("a"), text("b"), text("x" * 3000)
ONE, TWO, DOC = text("1"), text("2"), text("{}")


def columnar(table: Table, payloads: list[bytes], in_binary: bool = False) -> Batch:
    """Decode without the row-wise decoder's help."""
    return pgoutput._decode_columnar(table.schema, table.relation, payloads, one_run(len(payloads)), in_binary)


def test_every_shape_of_row_message_in_one_batch() -> None:
    batch = columnar(
        FULL,
        [
            insert([ONE, A, NULL]),
            update([ONE, B, DOC], old=[ONE, A, NULL]),
            update([TWO, B, UNCHANGED], old=[ONE, B, DOC]),
            update([TWO, UNCHANGED, DOC], key=[ONE, NULL, NULL]),
            delete(old=[TWO, UNCHANGED, DOC]),
            delete(key=[ONE, NULL, NULL]),
        ],
    )
    assert values(batch, "op") == [Op.INSERT, Op.UPDATE, Op.REKEY, Op.REKEY, Op.DELETE, Op.DELETE]
    assert values(batch, "id") == [1, 1, 2, 2, 2, 1]
    assert values(batch, "name") == ["a", "b", "b", None, None, None]
    assert values(batch, "doc") == [None, "{}", "{}", "{}", None, None]
    assert values(batch, "unchanged") == [None, None, None, b"\x02", None, None]
    assert values(batch, "old_key") == [None, None, (1,), (1,), None, None]


def test_inserts_alone_need_no_mask_and_no_old_key() -> None:
    batch = columnar(TABLE, [insert([ONE, A, DOC]), insert([TWO, NULL, NULL])])
    assert not batch.partial
    assert not batch.rekeys
    assert values(batch, "name") == ["a", None]
    assert values(batch, "op") == [Op.INSERT, Op.INSERT]


def test_an_unchanged_value_is_masked_and_not_null() -> None:
    batch = columnar(TABLE, [update([ONE, UNCHANGED, NULL]), update([ONE, A, UNCHANGED])])
    assert values(batch, "unchanged") == [b"\x02", b"\x04"]
    assert values(batch, "name") == [None, "a"]
    assert values(batch, "doc") == [None, None]


def test_masks_have_a_bit_for_every_column() -> None:
    table = Table(tuple((f"c{i}", TEXT, -1, i == 0) for i in range(18)))
    batch = columnar(table, [update([A, *[UNCHANGED if i in (1, 8, 17) else B for i in range(1, 18)]])])
    assert values(batch, "unchanged") == [bytes([0b10, 0b1, 0b10])]


def test_a_toasted_key_that_was_not_touched_is_filled_from_the_old_key() -> None:
    table = Table((("id", TEXT, -1, True), ("name", TEXT, -1, False)))
    batch = columnar(table, [update([UNCHANGED, A], key=[X, NULL]), update([B, A], key=[X, NULL])])
    assert values(batch, "id") == ["x" * 3000, "b"]
    assert values(batch, "op") == [Op.UPDATE, Op.REKEY]
    assert values(batch, "old_key") == [None, ("x" * 3000,)]
    assert not batch.partial


def test_an_old_key_of_the_same_value_is_no_rekey() -> None:
    table = Table((("id", FLOAT8, -1, True),), identity="f")
    batch = columnar(
        table,
        [
            update([text("NaN")], old=[text("NaN")]),
            update([text("0")], old=[text("-0")]),
            update([NULL], old=[NULL]),
            update([text("1")], old=[NULL]),
        ],
    )
    assert values(batch, "op") == [Op.UPDATE, Op.UPDATE, Op.UPDATE, Op.REKEY]
    assert values(batch, "old_key") == [None, None, None, (None,)]


def test_a_key_chosen_by_us_under_identity_full_decides_what_is_a_rekey() -> None:
    flagged = tuple(RelationColumn(c.name, c.type_oid, c.typmod, key=True) for c in FULL.relation.columns)
    relation = Relation(OID, "public", "t", "f", flagged)
    payloads = [update([ONE, B, UNCHANGED], old=[ONE, A, DOC]), delete(old=[ONE, B, DOC])]
    batch = decode(FULL.schema, relation, payloads, one_run(2))
    assert values(batch, "op") == [Op.UPDATE, Op.DELETE]
    assert values(batch, "doc") == ["{}", None]
    assert values(batch, "id") == [1, 1]


def test_keys_of_two_columns_move_together() -> None:
    table = Table((("a", INT8, -1, True), ("v", TEXT, -1, False), ("b", TEXT, -1, True)))
    batch = columnar(table, [update([ONE, A, B], key=[ONE, NULL, A]), insert([TWO, A, B])])
    assert values(batch, "old_key") == [(1, "a"), None]
    assert batch.system("old_key").type.field(1).name == "b"


def test_one_inexact_key_makes_new_and_old_keys_text_alike() -> None:
    table = Table((("id", 1700, (5 << 16 | 2) + 4, True),), identity="f")
    batch = columnar(table, [update([text("1.50")], old=[text("NaN")])])
    assert values(batch, "id") == ["1.50"]
    assert values(batch, "old_key") == [("NaN",)]


def test_transactions_reach_the_system_columns() -> None:
    runs = [
        Run(version=10, commit_time=1000, xid=7, first_ordinal=4, count=2),
        Run(version=30, commit_time=3000, xid=9, first_ordinal=0, count=1),
    ]
    batch = decode(TABLE.schema, TABLE.relation, [insert([ONE, A, DOC])] * 3, runs)
    assert values(batch, "version") == [10, 10, 30]
    assert values(batch, "ordinal") == [4, 5, 0]
    assert values(batch, "commit_time") == [1000, 1000, 3000]
    assert values(batch, "xid") == [7, 7, 9]
    assert batch.system("commit_time").type == pa.timestamp("us", "UTC")


def test_no_messages_are_an_empty_batch_of_the_right_types() -> None:
    batch = decode(TABLE.schema, TABLE.relation, [], [])
    assert len(batch) == 0
    assert [c.type for c in batch.data().columns] == [pa.int64(), pa.string(), pa.string()]
    copied = decode_copy(
        TABLE.schema, [(20, -1), (25, -1), (3802, -1)], [], [True] * 3, version=1, commit_time=0, first_ordinal=0
    )
    assert len(copied) == 0
    assert copied.rows.schema.types == batch.rows.schema.types


@pytest.mark.parametrize(
    ("payload", "message"),
    [
        (b"", r"ends inside the tag"),
        (b"X" + insert([ONE, A, DOC])[1:], r"unknown tag at byte 0"),
        (insert([ONE, A, DOC], oid=OID + 1), r"another relation at byte 1"),
        (insert([ONE, A]), r"has 2 columns at byte 6, the table has 3"),
        (insert([ONE, A, DOC]) + b"\0", r"1 bytes too many"),
        (insert([ONE, A, DOC])[:-1], r"ends inside a value"),
        (insert([ONE, A, DOC])[:9], r"ends inside a length"),
        (insert([ONE, (b"z", b""), DOC]), r"unknown kind of value at byte 14"),
        (insert([text("one"), A, DOC]), r"column id that is not a int8"),
        (insert([ONE, (b"t", b"\xff"), DOC]), r"column name that is not a text"),
        (insert([ONE, binary(b"a"), DOC]), r"format that was not asked for"),
        (insert([ONE, A, DOC]).replace(b"N", b"K"), r"unknown kind of tuple at byte 5"),
        (insert([NULL, A, DOC]), r"lacks key column id"),
        (insert([UNCHANGED, A, DOC]), r"lacks key column id"),
        (update([UNCHANGED, A, DOC]), r"lacks key column id"),
        (update([ONE, A, DOC], key=[NULL, NULL, NULL]), r"lacks key column id"),
        (update([ONE, A, DOC], key=[UNCHANGED, NULL, NULL]), r"lacks key column id"),
        (delete(key=[NULL, A, DOC]), r"lacks key column id"),
        (delete(key=[UNCHANGED, A, DOC]), r"lacks key column id"),
        (update([ONE, A, DOC], key=[ONE, NULL, NULL]).replace(b"N", b"O"), r"unknown kind of tuple"),
    ],
)
def test_a_malformed_message_is_named_among_good_ones(payload: bytes, message: str) -> None:
    good = insert([ONE, A, DOC])
    with pytest.raises(Damaged, match=rf"message 2 of the batch of table public\.t .*{message}"):
        decode(TABLE.schema, TABLE.relation, [good, good, payload, good], one_run(4))


def test_lengths_that_only_add_up_over_two_messages_are_damaged() -> None:
    """A length that leads into the next message, which is as much shorter."""
    first, second = insert([ONE, A, DOC]), insert([ONE, A, DOC])
    joined = bytearray(first + second)
    joined[len(first) - 3] = 40
    with pytest.raises(Damaged, match=r"message 0 .* ends inside a value"):
        decode(TABLE.schema, TABLE.relation, [bytes(joined[: len(first)]), second], one_run(2))


def test_a_huge_length_is_damaged_and_not_read() -> None:
    payload = insert([ONE, A, DOC]).replace(struct.pack(">I", 2) + b"{}", b"\xff\xff\xff\xff{}")
    with pytest.raises(Damaged, match=r"message 0 .* ends inside a value"):
        decode(TABLE.schema, TABLE.relation, [payload], one_run(1))


def test_errors_hold_no_values_of_the_row() -> None:
    with pytest.raises(Damaged) as caught:
        decode(TABLE.schema, TABLE.relation, [insert([text("4111-1111"), text("secret"), DOC])], one_run(1))
    assert "4111" not in str(caught.value)
    assert "secret" not in str(caught.value)


def test_binary_values_of_a_type_without_known_layout_are_refused() -> None:
    table = Table((("id", INT8, -1, True), ("tags", 1009, -1, False)))
    with pytest.raises(Damaged, match=r"column tags, whose type has no known layout"):
        decode(table.schema, table.relation, [insert([binary(b"\0" * 8), binary(b"ab")])], one_run(1), binary=True)


def test_arguments_that_do_not_match_are_refused() -> None:
    with pytest.raises(ValueError, match="don't match"):
        decode(TABLE.schema, TABLE.relation, [insert([ONE, A, DOC])], one_run(2))


def test_a_damaged_copy_row_is_named() -> None:
    good = copy_row([b"1", b"a", None])
    oids = [(20, -1), (25, -1), (3802, -1)]
    for bad, message in (
        (good[:-1], "ends inside a length"),
        (copy_row([b"1", b"a"]), "has 2 columns"),
        (copy_row([b"x", b"a", None]), "column id that is not a int8"),
        (good + b"\0", "1 bytes too many"),
        (copy_row([b"1", b"a", b"abcd"])[:-1], "ends inside a value"),
    ):
        with pytest.raises(Damaged, match=rf"message 1 .*{message}"):
            decode_copy(
                TABLE.schema, oids, [good, bad], [False] * 3, version=1, commit_time=0, first_ordinal=0
            )  # fmt: skip


# ----------------------------------------------------------------------------------------------- the real server


class Stream:
    """pgoutput's messages of a database, read through SQL, and the last relation seen of each oid."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.relations: dict[int, Relation] = {}

    def start(self) -> None:
        self.database.execute("create publication p for all tables with (publish_via_partition_root = false)")
        self.database.execute(f"select pg_create_logical_replication_slot('{self.database.name}', 'pgoutput')")

    def messages(self, *, binary: bool = False) -> list[bytes]:
        """All messages so far; they stay in the slot."""
        options = "'proto_version', '1', 'publication_names', 'p', 'messages', 'true', 'binary', %s"
        query = f"select data from pg_logical_slot_peek_binary_changes(%s, null, null, {options})"
        with self.database.connect(options="-c timezone=UTC -c datestyle=ISO -c extra_float_digits=3") as connection:
            rows = connection.execute(query, [self.database.name, str(binary).lower()]).fetchall()  # type: ignore[arg-type]
        return [bytes(r[0]) for r in rows]

    def batches(self, *, binary: bool = False, key: tuple[str, ...] = ()) -> Iterator[Batch]:
        """One batch for all row messages of each version of a relation; both decoders must agree."""
        waiting: list[bytes] = []
        relation: Relation | None = None
        for payload in [*self.messages(binary=binary), b"R"]:
            if payload[:1] in (b"I", b"U", b"D"):
                waiting.append(payload)
            elif payload[:1] == b"R":
                if relation is not None and waiting:
                    schema = schema_of(relation, key)
                    yield pgoutput._decode_columnar(schema, relation, waiting, one_run(len(waiting)), binary)
                    waiting = []
                relation = parse_relation(payload) if len(payload) > 1 else None


def schema_of(relation: Relation, key: tuple[str, ...]) -> TableSchema:
    columns = (
        Column(c.name, logical_type(c.type_oid, c.typmod), "x", c.name in key if key else c.key)
        for c in relation.columns
    )
    return TableSchema(relation.namespace, relation.name, tuple(columns))


@pytest.fixture
def stream(database: Database) -> Stream:
    return Stream(database)


def toasted(letter: str) -> str:
    """SQL of a text that is stored out of line."""
    return f"(select string_agg(md5('{letter}' || i), '') from generate_series(1, 300) i)"


ALL_TYPES = """
create table t (id int8 primary key, b bool, i2 int2, i4 int4, f4 float4, f8 float8, n numeric(12,2), d date,
                c time, ts timestamp, tz timestamptz, u uuid, j json, jb jsonb, x bytea, s text, v varchar(9),
                h char(3), o oid);
"""


@pytest.mark.parametrize("in_binary", [False, True])
def test_the_server_s_rows_arrive_exactly_in_both_formats(stream: Stream, in_binary: bool) -> None:
    stream.database.execute(ALL_TYPES)
    stream.start()
    stream.database.execute(
        """insert into t values (1, true, -2, 3, 1.5, 0.1, -12345.60, '0044-03-15 BC', '24:00',
             '2024-02-29 01:02:03.04', 'infinity', '123e4567-e89b-12d3-a456-426614174000', '{"a":  1}',
             '{"b": 9007199254740993}', '\\x00ff', 'grüß', 'ab ', 'c', 4294967295);
           insert into t (id) values (2);
           update t set s = 'x' where id = 1;
           delete from t where id = 2"""
    )
    (batch,) = stream.batches(binary=in_binary)
    assert values(batch, "op") == [Op.INSERT, Op.INSERT, Op.UPDATE, Op.DELETE]
    first = [values(batch, c.name)[0] for c in batch.schema.columns]
    assert [repr(v) for v in first[:6]] == ["1", "True", "-2", "3", "1.5", "0.1"]
    assert [str(first[6]), first[7], first[8]] == ["-12345.60", -735_160, 86_400_000_000]
    assert first[9:11] == [1_709_168_523_040_000, 2**63 - 1]
    assert first[11] == bytes.fromhex("123e4567e89b12d3a456426614174000")
    assert first[12:] == ['{"a":  1}', '{"b": 9007199254740993}', b"\x00\xff", "grüß", "ab ", "c  ", 2**32 - 1]
    assert [values(batch, c.name)[1] for c in batch.schema.columns] == [2, *[None] * 18]
    assert values(batch, "s") == ["grüß", None, "x", None]
    assert values(batch, "id") == [1, 2, 1, 2]


@pytest.mark.parametrize("in_binary", [False, True])
def test_unchanged_toast_rekey_and_delete_under_the_default_identity(stream: Stream, in_binary: bool) -> None:
    stream.database.execute("create table t (id int8 primary key, big text, small text)")
    stream.start()
    stream.database.execute(
        f"""insert into t values (1, {toasted("a")}, 'a'), (2, {toasted("b")}, 'b');
            update t set small = 'c' where id = 1;
            update t set id = 10 where id = 2;
            update t set id = id where id = 1;
            delete from t where id = 10"""
    )
    (batch,) = stream.batches(binary=in_binary)
    assert values(batch, "op") == [Op.INSERT, Op.INSERT, Op.UPDATE, Op.REKEY, Op.UPDATE, Op.DELETE]
    assert values(batch, "id") == [1, 2, 1, 10, 1, 10]
    assert values(batch, "old_key") == [None, None, None, (2,), None, None]
    assert values(batch, "unchanged") == [None, None, b"\2", b"\2", b"\2", None]
    assert values(batch, "small") == ["a", "b", "c", "b", "c", None]
    assert [v and len(v) for v in values(batch, "big")] == [9600, 9600, None, None, None, None]


@pytest.mark.parametrize("in_binary", [False, True])
def test_identity_full_fills_unchanged_toast_from_the_old_row(stream: Stream, in_binary: bool) -> None:
    stream.database.execute("create table t (id int8 primary key, big text, small text)")
    stream.database.execute("alter table t replica identity full")
    stream.start()
    stream.database.execute(
        f"""insert into t values (1, {toasted("a")}, 'a');
            update t set small = 'c'; update t set id = 2; delete from t"""
    )
    (batch,) = stream.batches(binary=in_binary, key=("id",))
    assert values(batch, "op") == [Op.INSERT, Op.UPDATE, Op.REKEY, Op.DELETE]
    assert values(batch, "old_key") == [None, None, (1,), None]
    assert [v and len(v) for v in values(batch, "big")] == [9600, 9600, 9600, None]
    assert values(batch, "small") == ["a", "c", "c", None]
    assert not batch.partial


def test_identity_full_without_a_key_takes_the_whole_row_for_one(stream: Stream) -> None:
    stream.database.execute("create table t (a int4, b text)")
    stream.database.execute("alter table t replica identity full")
    stream.start()
    stream.database.execute("insert into t values (1, null); update t set b = 'x'; delete from t")
    (batch,) = stream.batches()
    assert values(batch, "op") == [Op.INSERT, Op.REKEY, Op.DELETE]
    assert values(batch, "old_key") == [None, (1, None), None]
    assert values(batch, "b") == [None, "x", "x"]


def test_identity_by_index_names_another_key(stream: Stream) -> None:
    stream.database.execute("create table t (id int8 primary key, code text not null unique, v text)")
    stream.database.execute("alter table t replica identity using index t_code_key")
    stream.start()
    stream.database.execute(
        "insert into t values (1, 'a', 'v'); update t set code = 'b'; update t set id = 2; delete from t"
    )
    (batch,) = stream.batches()
    assert [c.name for c in batch.schema.key] == ["code"]
    assert values(batch, "op") == [Op.INSERT, Op.REKEY, Op.UPDATE, Op.DELETE]
    assert values(batch, "old_key") == [None, ("a",), None, None]
    assert values(batch, "id") == [1, 1, 2, None]


def test_identity_nothing_publishes_inserts(stream: Stream) -> None:
    stream.database.execute("create table t (id int8 primary key)")
    stream.database.execute("alter table t replica identity nothing")
    stream.start()
    stream.database.execute("insert into t values (1), (2)")
    (batch,) = stream.batches(key=("id",))
    assert values(batch, "id") == [1, 2]


@pytest.mark.parametrize("in_binary", [False, True])
def test_a_toasted_key_comes_with_every_update(stream: Stream, in_binary: bool) -> None:
    stream.database.execute("create table t (id text, v int4); alter table t alter id set storage external")
    stream.database.execute("alter table t add constraint k primary key (id)")
    stream.start()
    stream.database.execute("insert into t values (repeat('k', 2500), 1); update t set v = 2; delete from t")
    (batch,) = stream.batches(binary=in_binary)
    assert values(batch, "id") == ["k" * 2500] * 3
    assert values(batch, "op") == [Op.INSERT, Op.UPDATE, Op.DELETE]
    assert not batch.rekeys
    assert not batch.partial


def test_the_server_s_control_messages_are_read(stream: Stream) -> None:
    stream.database.execute("create type mood as enum ('sad', 'glad')")
    stream.database.execute("create table t (id int8 primary key, m mood); create table u (id int8 primary key)")
    stream.start()
    with stream.database.connect() as connection:
        connection.execute("select pg_logical_emit_message(false, 'syncline', '\\x00ff'::bytea)")
        connection.execute("select pg_replication_origin_create(current_database())")
        connection.execute("select pg_replication_origin_session_setup(current_database())")
        with connection.transaction():
            connection.execute("select pg_replication_origin_xact_setup('0/AB', '2024-01-01 00:00:00+00')")
            connection.execute("insert into t values (1, 'glad')")
            connection.execute("truncate t, u restart identity cascade")
            connection.execute("select pg_logical_emit_message(true, 'syncline', 'in')")
        connection.execute("select pg_replication_origin_session_reset()")
        connection.execute("select pg_replication_origin_drop(current_database())")
    found = stream.messages()
    by_tag: dict[bytes, list[Any]] = {}
    parsers: dict[bytes, Callable[[bytes], Any]] = {
        b"B": parse_begin, b"C": parse_commit, b"R": parse_relation, b"T": parse_truncate, b"M": parse_message,
        b"O": parse_origin, b"Y": parse_type,
    }  # fmt: skip
    for payload in found:
        if payload[:1] in parsers:
            by_tag.setdefault(payload[:1], []).append(parsers[payload[:1]](payload))
    begin, commit = by_tag[b"B"][0], by_tag[b"C"][0]
    assert begin.final_lsn == commit.lsn < commit.end_lsn
    assert begin.commit_time == commit.commit_time == 1_704_067_200_000_000
    assert begin.xid > 0
    (origin,) = by_tag[b"O"]
    assert (origin.lsn, origin.name) == (0xAB, stream.database.name)
    (mood,) = set(by_tag[b"Y"])
    assert (mood.namespace, mood.name) == ("public", "mood")
    t = next(r for r in by_tag[b"R"] if r.name == "t")
    assert [(c.name, c.key) for c in t.columns] == [("id", True), ("m", False)]
    assert (t.qualified, t.replica_identity, t.columns[1].type_oid) == ("public.t", "d", mood.oid)
    (truncated,) = by_tag[b"T"]
    assert len(truncated.relation_oids) == 2
    assert truncated.cascade
    assert truncated.restart
    assert [(m.transactional, m.prefix, m.content) for m in by_tag[b"M"]] == [
        (False, "syncline", b"\x00\xff"),
        (True, "syncline", b"in"),
    ]
    assert all(m.lsn > 0 for m in by_tag[b"M"])
