"""What mapped rows become in Redis, seen with the plain driver, and what is never destroyed."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator
from decimal import Decimal
from typing import Any

import msgspec
import pyarrow as pa
import pytest
import redis

from stores.redis_server import Server
from syncline.change import MAX_VERSION, Column, TableSchema
from syncline.errors import Misconfigured, Rejected, Unavailable
from syncline.shape import Document, Hash, Keys, Members
from syncline.shape import Rows as RowsShape
from syncline.stores import Folded, TableWork
from syncline.stores.redis import RedisStore
from syncline.testing.store_suite import ITEM, VALUES, Rows, contents, work
from syncline.testing.store_works import key_batch, rows_of, truncated_only

PLAYER = TableSchema(
    "game",
    "player",
    (
        Column("id", "int8", "bigint", key=True),
        Column("name", "text", "text"),
        Column("region", "text", "text"),
        Column("points", "numeric(12,2)", "numeric(12,2)"),
        Column("profile", "json", "json"),
    ),
)
HASH = Hash("player:{id}", ("id", "name", "region"))
JSON = Document("player:{id}:json")
BOARD = Members("board:{region}", "{id}", "points")
TOTAL = Members("board", "{id}", "points")
ALL = Keys((HASH, JSON, BOARD, TOTAL))

_databases = itertools.count(1)


def shaped(*writes: Hash | Document | Members, table: TableSchema = PLAYER) -> TableSchema:
    return msgspec.structs.replace(table, shape=Keys(writes))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("valkey"))
    yield server
    server.stop()


@pytest.fixture
def database() -> int:
    return next(_databases)


@pytest.fixture
def client(server: Server, database: int) -> Iterator[redis.Redis]:
    with server.client(database) as client:
        yield client


@pytest.fixture
def store(server: Server, database: int) -> Iterator[RedisStore]:
    store = server.store(database)
    store.open("orders")
    yield store
    store.close()


def player(schema: TableSchema, version: int, key: int, *values: Any) -> Rows:
    return Rows(schema).upsert(version, key, *values)


def users_keys(client: redis.Redis) -> list[bytes]:
    return sorted(k for k in client.keys("*") if not k.startswith(b"syncline:"))


# ------------------------------------------------------------------------------------------------ what a row becomes


def test_a_row_is_a_hash_a_document_and_a_member_of_sets(store: RedisStore, client: redis.Redis) -> None:
    schema = shaped(*ALL.writes)
    store.migrate(schema)
    row = (7, "Ada", "north", Decimal("12.50"), '{"big": 12345678901234567890, "pi": 3.140}')
    store.apply(work(Rows(schema).upsert(100, *row)))
    assert client.hgetall("player:7") == {b"id": b"7", b"name": b"Ada", b"region": b"north"}
    assert client.get("player:7:json") == (
        b'{"id":"7","name":"Ada","region":"north","points":"12.50",'
        b'"profile":{"big": 12345678901234567890, "pi": 3.140}}'
    )
    assert client.zrange("board:north", 0, -1, withscores=True) == [(b"7", 12.5)]
    assert client.zrange("board", 0, -1, withscores=True) == [(b"7", 12.5)]
    assert contents(store, schema) == {7: (*row[1:], 100)}
    store.apply(work(Rows(schema).delete(110, 7)))
    assert users_keys(client) == []
    assert contents(store, schema) == {}


def test_without_a_shape_a_row_is_a_hash_under_the_tables_name(store: RedisStore, client: redis.Redis) -> None:
    store.migrate(ITEM)
    store.apply(work(Rows().upsert(100, 1, "one", None)))
    assert client.hgetall("public.item:1") == {b"id": b"1", b"name": b"one"}
    assert users_keys(client) == [b"public.item:1"]


def test_a_null_is_a_field_that_is_not_there(store: RedisStore, client: redis.Redis) -> None:
    schema = shaped(HASH, JSON, TOTAL)
    store.migrate(schema)
    store.apply(work(player(schema, 100, 1, "Ada", "north", Decimal(1), "null")))
    client.hset("player:1", "mine", "kept")
    store.apply(work(player(schema, 110, 1, None, "", None, None)))
    assert client.hgetall("player:1") == {b"id": b"1", b"region": b"", b"mine": b"kept"}
    assert json.loads(client.get("player:1:json")) == {"id": "1", "region": ""}
    assert client.zscore("board", "1") is None
    assert contents(store, schema) == {1: (None, "", None, None, 110)}


def test_a_row_whose_set_changes_leaves_the_one_it_was_in(store: RedisStore, client: redis.Redis) -> None:
    schema = shaped(BOARD)
    store.migrate(schema)
    store.apply(work(player(schema, 100, 1, "Ada", "north", Decimal(5), None)))
    store.apply(work(player(schema, 110, 1, "Ada", "south", Decimal(6), None)))
    assert (client.zrange("board:north", 0, -1), client.zrange("board:south", 0, -1)) == ([], [b"1"])
    store.apply(work(Rows(schema).partial(120, 1, None, None, Decimal(7), None, unchanged=["name", "region"])))
    assert client.zscore("board:south", "1") == 7.0
    assert contents(store, schema) == {1: ("Ada", "south", Decimal("7.00"), None, 120)}
    for region, points in ((None, Decimal(8)), ("east", None)):
        store.apply(work(player(schema, 130, 1, "Ada", region, points, None)))
        assert users_keys(client) == []
        assert contents(store, schema) == {1: ("Ada", region, points, None, 130)}
    store.apply(work(player(schema, 140, 1, "Ada", "west", Decimal(9), None)))
    store.apply(work(Rows(schema).delete(150, 1)))
    assert users_keys(client) == []


def test_a_row_that_moves_to_another_key_takes_everything_along(store: RedisStore, client: redis.Redis) -> None:
    schema = shaped(*ALL.writes)
    store.migrate(schema)
    store.apply(work(player(schema, 100, 1, "Ada", "north", Decimal(5), '{"a": 1}')))
    move = Rows(schema).partial(
        110, 2, None, None, Decimal(6), None, unchanged=["name", "region", "profile"], origin=(1,)
    )
    moved = work(move.delete(110, 1))
    for _ in range(2):
        store.apply(moved)
        assert contents(store, schema) == {2: ("Ada", "north", Decimal("6.00"), '{"a": 1}', 110)}
        assert users_keys(client) == [b"board", b"board:north", b"player:2", b"player:2:json"]
        assert client.zrange("board:north", 0, -1) == [b"2"]


def test_swapped_rows_of_every_form_are_swapped_once(store: RedisStore) -> None:
    schema = shaped(*ALL.writes)
    store.migrate(schema)
    one, two = ("Ada", "north", Decimal("1.00"), "[1]"), ("Bob", "south", Decimal("2.00"), "[2]")
    store.apply(work(Rows(schema).upsert(100, 1, *one).upsert(100, 2, *two)))
    unchanged = ["name", "region", "points", "profile"]
    nothing = (None, None, None, None)
    swap = work(
        Rows(schema)
        .partial(110, 1, *nothing, unchanged=unchanged, origin=(2,))
        .partial(110, 2, *nothing, unchanged=unchanged, origin=(1,))
    )
    for _ in range(2):
        store.apply(swap)
        assert contents(store, schema) == {1: (*two, 110), 2: (*one, 110)}


@pytest.mark.parametrize(
    "writes", [(Document("v:{id}"),), (Hash("v:{id}", ("bool",)),), (Members("s", "{id}", "int8"),)]
)
def test_every_type_comes_back_from_documents_and_from_entries(store: RedisStore, writes: tuple[Any, ...]) -> None:
    schema = msgspec.structs.replace(VALUES, shape=Keys(writes))
    store.migrate(schema)
    rows = [
        (1, True, -(2**15), 2**63 - 1, 1.5, 5e-324, Decimal("1234567890123456789012345678.0123456789"), b"\x00\xff",
         b"\x01" * 16, 19_000, 86_400_000_000, 10**15, -(10**15), '{"a": 12345678901234567890, "b": [1.50]}',
         "Gr\u00fc\x01\u2028"),
        (2, None, 0, None, float("-inf"), float("inf"), Decimal("-0.0000000001"), b"", b"\0" * 16, -719_892, 0,
         -62_198_755_200_000_000, 2**63 - 1, ' [1,\n 2] ', '"\\'),
        (3, *[None] * 14),
    ]  # fmt: skip
    batch = Rows(schema)
    for row in rows:
        batch.upsert(100, *row)
    store.apply(work(batch))
    assert contents(store, schema) == {row[0]: (*row[1:], 100) for row in rows}


def test_lists_and_vectors_come_back(store: RedisStore, client: redis.Redis) -> None:
    columns = (
        Column("id", "int4", "int4", key=True),
        Column("tags", "texts", "text[]"),
        Column("dense", "vector", "vector"),
        Column("thin", "sparse", "sparsevec"),
    )
    schema = TableSchema("public", "chunk", columns, Keys((Hash("chunk:{id}"), Document("chunk:{id}:json"))))
    store.migrate(schema)
    thin = {"indices": [1, 70_000], "values": [0.5, -2.0]}
    store.apply(work(Rows(schema).upsert(5, 1, ["a", None, '"'], [1.5, -0.25], thin).upsert(5, 2, None, None, None)))
    assert contents(store, schema) == {1: (["a", None, '"'], [1.5, -0.25], thin, 5), 2: (None, None, None, 5)}
    assert client.hget("chunk:1", "dense") == b"\x00\x00\xc0\x3f\x00\x00\x80\xbe"
    assert json.loads(client.get("chunk:1:json"))["dense"] == [1.5, -0.25]
    with pytest.raises(Rejected, match="JSON") as refused:
        store.apply(work(Rows(schema).upsert(6, 1, [], [], None).upsert(6, 3, None, [float("nan")], None)))
    assert refused.value.rows == (1,)


def test_what_a_row_becomes_is_shown_as_commands() -> None:
    schema = shaped(HASH, Document("player:{id}:json", ("name",), ttl_s=60), BOARD)
    assert RedisStore.statements(schema) == [
        "HSET player:{id} id {id} name {name} region {region}",
        "SET player:{id}:json {json of name} KEEPTTL; EXPIRE player:{id}:json 60 NX",
        "ZADD board:{region} {points} {id}",
    ]


# ------------------------------------------------------------------------------------------------- times to live


def test_a_time_to_live_is_set_once_and_kept_on_updates(store: RedisStore, client: redis.Redis) -> None:
    schema = shaped(Hash("player:{id}", ttl_s=1000), Document("player:{id}:json", ttl_s=2000))
    store.migrate(schema)
    store.apply(work(player(schema, 100, 1, "Ada", "north", None, None)))
    assert 990 <= client.ttl("player:1") <= 1000
    assert 1990 <= client.ttl("player:1:json") <= 2000
    client.expire("player:1", 500)
    client.expire("player:1:json", 600)
    store.apply(work(player(schema, 110, 1, "Bob", "north", None, None)))
    assert 490 <= client.ttl("player:1") <= 500
    assert 590 <= client.ttl("player:1:json") <= 600
    client.persist("player:1")
    store.apply(work(player(schema, 120, 1, "Bob", "north", None, None)))
    assert 990 <= client.ttl("player:1") <= 1000


def test_a_users_own_time_to_live_survives_updates(store: RedisStore, client: redis.Redis) -> None:
    store.migrate(ITEM)
    store.apply(work(Rows().upsert(100, 1, "one", None)))
    client.expire("public.item:1", 500)
    store.apply(work(Rows().upsert(110, 1, "two", None)))
    assert 490 <= client.ttl("public.item:1") <= 500


def test_a_changed_time_to_live_reaches_the_keys_that_are_there(store: RedisStore, client: redis.Redis) -> None:
    store.migrate(shaped(Hash("player:{id}", ttl_s=1000)))
    store.apply(work(player(shaped(Hash("player:{id}", ttl_s=1000)), 100, 1, "Ada", None, None, None)))
    for ttl, expected in ((50, range(45, 51)), (0, range(-1, 0))):
        store.migrate(shaped(Hash("player:{id}", ttl_s=ttl)))
        assert client.ttl("player:1") in expected


@pytest.mark.parametrize("others", [(), (BOARD,)])
def test_a_row_that_expired_is_no_row_and_its_partial_change_waits_to_be_healed(
    store: RedisStore, client: redis.Redis, others: tuple[Members, ...]
) -> None:
    schema = shaped(Hash("player:{id}", ttl_s=1000), *others)
    store.migrate(schema)
    store.apply(work(player(schema, 100, 1, "Ada", "north", Decimal(1), None)))
    client.delete("player:1")
    assert contents(store, schema) == {}
    assert store.fetch(schema, key_batch(schema, (1,))).num_rows == 0
    with pytest.raises(Unavailable, match="read again"):
        store.apply(work(Rows(schema).partial(110, 1, None, "south", None, None, unchanged=["name"])))
    store.apply(work(player(schema, 110, 1, "Ada", "south", Decimal(2), None)))
    assert contents(store, schema) == {1: ("Ada", "south", Decimal("2.00"), None, 110)}


def truncated(schema: TableSchema, version: int) -> TableWork:
    return Rows(schema).table(truncated=version)


# --------------------------------------------------------------------------------------- what somebody did by hand


@pytest.mark.parametrize(
    "tamper",
    [
        lambda c: c.delete("player:1"),
        lambda c: c.hset("player:1", "name", "Eve"),
        lambda c: c.hset("player:1", "id", "2"),
        lambda c: c.delete("player:1:json"),
        lambda c: c.set("player:1:json", b'{"id":"1","name":"Ada","region":"south","points":"5.00"}'),
        lambda c: c.set("player:1:json", b"\xff no JSON"),
        lambda c: c.zadd("board", {"1": 6}),
        lambda c: c.zrem("board", "1"),
        lambda c: c.zrem("board:north", "1"),
        lambda c: (c.delete("board"), c.set("board", "text")),
    ],
)
def test_a_row_counts_only_while_all_of_its_keys_agree(
    store: RedisStore, client: redis.Redis, tamper: Callable[[redis.Redis], Any]
) -> None:
    schema = shaped(*ALL.writes)
    store.migrate(schema)
    rows = Rows(schema).upsert(100, 1, "Ada", "north", Decimal(5), None).upsert(100, 2, "Bob", None, None, None)
    store.apply(work(rows))
    assert sorted(contents(store, schema)) == [1, 2]
    tamper(client)
    assert sorted(contents(store, schema)) == [2]


def test_a_value_changed_by_hand_is_seen_and_one_that_is_none_of_its_type_hides_the_row(
    store: RedisStore, client: redis.Redis
) -> None:
    store.migrate(ITEM)
    store.apply(work(Rows().upsert(100, 1, "one", None).upsert(100, 2, "two", None).upsert(100, 3, "three", None)))
    client.hset("public.item:1", "amount", "7.25")
    client.hset("public.item:2", "amount", "much")
    client.hset("public.item:3", "name", b"\xff")
    assert contents(store) == {1: ("one", Decimal("7.25"), 100)}


def test_keys_of_another_type_are_refused_row_by_row_and_never_destroyed(
    store: RedisStore, client: redis.Redis
) -> None:
    schema = shaped(HASH, JSON, BOARD)
    store.migrate(schema)
    client.set("player:2", "mine")
    client.lpush("player:4:json", "mine")
    client.set("board:east", "mine")
    rows = Rows(schema)
    for key, region in ((1, "north"), (2, "north"), (3, "north"), (4, "north"), (5, "east")):
        rows.upsert(100, key, "x", region, Decimal(1), None)
    with pytest.raises(Rejected, match="another type") as refused:
        store.apply(work(rows, n=1))
    assert (refused.value.table, refused.value.rows) == ("game.player", (1, 3, 4))
    assert contents(store, schema) == {}
    assert users_keys(client) == [b"board:east", b"player:2", b"player:4:json"]
    good = Rows(schema).upsert(100, 1, "x", "north", Decimal(1), None).upsert(100, 3, "x", "north", Decimal(1), None)
    store.apply(work(good.delete(100, 2).delete(100, 4), n=1))
    assert sorted(contents(store, schema)) == [1, 3]
    store.apply(work(truncated(schema, 500)))
    assert (client.get("player:2"), client.lrange("player:4:json", 0, -1), client.get("board:east")) == (
        b"mine",
        [b"mine"],
        b"mine",
    )


def test_the_users_other_keys_are_left_alone(store: RedisStore, client: redis.Redis) -> None:
    client.mset({"player": "x", "player:1:more": "x", "public.item": "x"})
    client.zadd("board:north", {"somebody": 3})
    schema = shaped(*ALL.writes)
    store.migrate(schema)
    store.apply(work(player(schema, 100, 1, "Ada", "north", Decimal(5), None)))
    store.apply(work(truncated(schema, 200)))
    assert users_keys(client) == [b"board:north", b"player", b"player:1:more", b"public.item"]
    assert client.zrange("board:north", 0, -1) == [b"somebody"]


# ------------------------------------------------------------------------------------------------------- adoption


def test_keys_that_were_there_are_adopted_as_the_oldest(store: RedisStore, client: redis.Redis) -> None:
    client.hset("public.item:1", mapping={"id": "1", "name": "before", "amount": "1.00"})
    client.hset("public.item:2", mapping={"id": "2", "name": "stale"})
    client.hset("public.item:02", mapping={"id": "2"})
    client.hset("public.item:x", mapping={"id": "x"})
    client.set("public.item:3", "another type")
    assert store.migrate(ITEM) is None
    assert contents(store) == {1: ("before", Decimal("1.00"), 0), 2: ("stale", None, 0)}
    store.apply(work(Rows().partial(5, 1, None, Decimal(2), unchanged=["name"])))
    assert contents(store)[1] == ("before", Decimal("2.00"), 5)
    store.apply(work(truncated_only(4)))
    assert contents(store) == {1: ("before", Decimal("2.00"), 5)}
    assert users_keys(client) == [b"public.item:02", b"public.item:1", b"public.item:3", b"public.item:x"]


def test_members_that_were_there_are_swept_out_by_a_load(store: RedisStore, client: redis.Redis) -> None:
    client.zadd("board:north", {"1": 1, "2": 2, "x": 3})
    schema = shaped(BOARD)
    store.migrate(schema)
    store.apply(work(player(schema, 5, 1, "Ada", "south", Decimal(9), None)))
    store.apply(work(truncated(schema, 4)))
    assert client.zrange("board:north", 0, -1) == [b"x"]
    assert client.zrange("board:south", 0, -1) == [b"1"]


def test_adoption_can_be_declined(server: Server, database: int, client: redis.Redis) -> None:
    client.hset("public.item:2", mapping={"id": "2", "name": "mine"})
    store = server.store(database, adopt=False)
    store.open("orders")
    store.migrate(ITEM)
    assert contents(store) == {}
    store.apply(work(truncated_only(4)))
    assert users_keys(client) == [b"public.item:2"]
    store.close()


# ------------------------------------------------------------------------------------------------ changed mappings


def test_another_place_or_form_leaves_nothing_of_the_former_behind(store: RedisStore, client: redis.Redis) -> None:
    forms = [shaped(HASH, BOARD), shaped(Hash("p:{id}"), BOARD), shaped(Document("p:{id}")), PLAYER, shaped(TOTAL)]
    former = None
    for version, schema in enumerate(forms, 100):
        assert store.migrate(schema) == former
        assert users_keys(client) == []
        store.apply(work(player(schema, version, 1, "Ada", "north", Decimal(1), None).delete(version, 2)))
        assert contents(store, schema) == {1: ("Ada", "north", Decimal("1.00"), None, version)}
        former = schema
    assert store.migrate(forms[-1]) == former
    store.apply(work(player(forms[-1], 100, 2, "late", None, None, None)))
    assert sorted(contents(store, forms[-1])) == [1]


@pytest.mark.parametrize("write", [Hash("player:{id}"), Document("player:{id}"), Members("board", "{id}", "id")])
def test_columns_that_go_or_change_their_type_lose_their_values(
    store: RedisStore, client: redis.Redis, write: Hash | Document | Members
) -> None:
    schema = shaped(write)
    store.migrate(schema)
    store.apply(work(player(schema, 100, 1, "Ada", "north", Decimal(1), "[]")))
    columns = (PLAYER.columns[0], Column("name", "int4", "int4"), PLAYER.columns[2], Column("new", "text", "text"))
    changed = msgspec.structs.replace(schema, columns=columns)
    assert store.migrate(changed) == schema
    assert contents(store, changed) == {1: (None, "north", None, 100)}
    assert store.migrate(schema) == changed
    assert contents(store, schema) == {1: (None, "north", None, None, 100)}


def test_a_field_that_a_hash_no_longer_has_is_removed(store: RedisStore, client: redis.Redis) -> None:
    store.migrate(shaped(HASH))
    store.apply(work(player(shaped(HASH), 100, 1, "Ada", "north", None, None)))
    narrow = shaped(Hash("player:{id}", ("id", "region")))
    store.migrate(narrow)
    assert client.hgetall("player:1") == {b"id": b"1", b"region": b"north"}
    assert contents(store, narrow) == {1: ("Ada", "north", None, None, 100)}


# ----------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("write", "says"),
    [
        (Hash("{id}"), "does not begin with a text"),
        (Hash("player"), "leaves out a column"),
        (Hash("player:{id}:{name}"), "not of the table's key"),
        (Hash("player:{nothing}"), "does not have"),
        (Hash("player:{id"), "brace"),
        (Hash("player:{id}", ("nothing",)), "does not have"),
        (Hash("syncline:{id}"), "Syncline's own keys"),
        (Members("board", "{name}", "points"), "not of the table's key"),
        (Members("board", "{id}", "name"), "no score"),
        (Members("sync{region}", "{id}", "points"), "Syncline's own keys"),
    ],
)
def test_a_wrong_template_is_refused_by_name(store: RedisStore, write: Hash | Document | Members, says: str) -> None:
    with pytest.raises(Misconfigured, match=says) as refused:
        store.migrate(shaped(write))
    assert "game.player" in str(refused.value)


def test_two_tables_that_could_write_one_key_are_refused(store: RedisStore) -> None:
    store.migrate(shaped(HASH))
    other = TableSchema("game", "other", (Column("id", "int8", "bigint", key=True), Column("n", "int4", "int4")))
    for write in (Hash("player:{id}"), Document("player:{id}"), Members("player:{n}", "{id}", "n")):
        with pytest.raises(Misconfigured, match=r"Tables game.player and game.other"):
            store.migrate(shaped(write, table=other))
    text = TableSchema("game", "text", (Column("id", "text", "text", key=True),))
    with pytest.raises(Misconfigured, match=r"game.player and game.text"):
        store.migrate(shaped(Hash("play{id}"), table=text))
    store.migrate(shaped(Hash("player:{id}:other"), table=other))
    with pytest.raises(Misconfigured, match="can be the same"):
        store.migrate(shaped(Hash("p:{id}"), Document("p:{id}"), table=other))


def test_two_tables_may_share_a_set_while_their_members_differ(store: RedisStore, client: redis.Redis) -> None:
    other = TableSchema("game", "team", (Column("id", "int8", "bigint", key=True), Column("points", "int4", "int4")))
    teams = shaped(Members("board", "team {id}", "points"), table=other)
    store.migrate(shaped(TOTAL))
    store.migrate(teams)
    store.apply(work(player(shaped(TOTAL), 5, 1, None, None, Decimal(1), None), Rows(teams).upsert(5, 1, 2)))
    assert client.zrange("board", 0, -1) == [b"1", b"team 1"]
    with pytest.raises(Misconfigured, match=r"game.player"):
        store.migrate(shaped(Members("board", "{id}", "points"), table=other))


def test_shapes_of_other_stores_are_refused(store: RedisStore) -> None:
    with pytest.raises(Misconfigured, match="which Redis does not have"):
        store.migrate(msgspec.structs.replace(ITEM, shape=RowsShape("public", "item")))


def test_two_sources_cannot_fill_one_table(server: Server, database: int, store: RedisStore) -> None:
    store.migrate(ITEM)
    other = server.store(database)
    other.open("people")
    with pytest.raises(Misconfigured, match="already filled by source orders"):
        other.migrate(ITEM)
    other.close()


def test_a_score_that_is_not_a_number_is_refused_and_infinity_is_one(store: RedisStore, client: redis.Redis) -> None:
    table = TableSchema("game", "run", (Column("id", "int4", "int4", key=True), Column("s", "float8", "float8")))
    schema = shaped(Members("runs", "{id}", "s"), table=table)
    store.migrate(schema)
    with pytest.raises(Rejected, match="score") as refused:
        store.apply(work(Rows(schema).upsert(5, 1, 1.5).upsert(5, 2, float("nan"))))
    assert refused.value.rows == (1,)
    store.apply(work(Rows(schema).upsert(5, 1, float("-inf")).upsert(5, 3, 1e300)))
    assert contents(store, schema) == {1: (float("-inf"), 5), 3: (1e300, 5)}
    assert client.zrange("runs", 0, -1) == [b"1", b"3"]


def test_documents_refuse_what_no_reader_of_json_takes(store: RedisStore) -> None:
    schema = shaped(JSON)
    store.migrate(schema)
    deep = "[" * 5_000 + "]" * 5_000
    rows = Rows(schema)
    for key, profile in enumerate(('{"a": 1}', deep, '"\\ud800"', '1,"name":"x"', "nope", " 7 ")):
        rows.upsert(100, key, "n", None, None, profile)
    with pytest.raises(Rejected, match="JSON") as refused:
        store.apply(work(rows))
    assert refused.value.rows == (1, 2, 3, 4)


# ------------------------------------------------------------------------------------------------------ size


def test_a_large_truncation_goes_in_batches_and_a_partial_row_behind_it_still_finds_its_base(
    store: RedisStore, client: redis.Redis
) -> None:
    store.migrate(ITEM)
    n = 25_000
    ids = pa.array(range(n), pa.int64())
    arrays = [ids, ids.cast(pa.string()), pa.nulls(n, pa.decimal128(12, 2)), pa.array([100] * n, pa.int64())]
    batch = pa.RecordBatch.from_arrays(arrays, names=["id", "name", "amount", "version"])
    store.apply(work(TableWork(ITEM, Folded(batch))))
    assert len(contents(store)) == n
    rows = Rows().partial(200, 7, None, Decimal(7), unchanged=["name"]).upsert(200, 8, "eight", None)
    store.apply(work(rows, truncated=150))
    assert contents(store) == {7: ("7", Decimal("7.00"), 200), 8: ("eight", None, 200)}
    assert users_keys(client) == [b"public.item:7", b"public.item:8"]


def test_a_value_of_fifty_megabytes_is_a_value_like_any_other(store: RedisStore, client: redis.Redis) -> None:
    store.migrate(ITEM)
    store.apply(work(Rows().upsert(100, 1, "x" * 50_000_000, None).upsert(100, 2, "two", None)))
    assert client.hstrlen("public.item:1", "name") == 50_000_000
    found = dict(rows_of(ITEM, store.fetch(ITEM, key_batch(ITEM, (2,)))))
    assert found == {2: ("two", None, 100)}


def test_a_row_too_large_for_the_protocol_is_refused_and_its_neighbour_applies(store: RedisStore) -> None:
    schema = TableSchema("public", "blob", (Column("id", "int4", "int4", key=True), Column("data", "bytes", "bytea")))
    store.migrate(schema)
    with pytest.raises(Rejected, match="larger than Redis takes") as refused:
        store.apply(work(Rows(schema).upsert(100, 1, b"small").upsert(100, 2, b"x" * (257 << 20))))
    assert refused.value.rows == (1,)
    store.apply(work(Rows(schema).upsert(100, 1, b"small")))
    assert contents(store, schema) == {1: (b"small", 100)}


def test_versions_up_to_the_greatest_are_compared_exactly(store: RedisStore) -> None:
    store.migrate(ITEM)
    top = MAX_VERSION - 1
    store.apply(work(Rows().upsert(top, 1, "top", None).upsert(top - 1, 2, "below", None)))
    store.apply(work(Rows().upsert(top - 1, 1, "late", None).upsert(top, 2, "top", None)))
    assert contents(store) == {1: ("top", None, top), 2: ("top", None, top)}
