"""A Redis target whose server dies, forgets, goes back, is full, refuses, or is of a kind that can't serve."""

from __future__ import annotations

import multiprocessing
import random
import re
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
import redis
from pydantic import SecretStr

from stores.redis_server import Server
from syncline.change import Cursor, Position
from syncline.errors import Gap, Misconfigured, Rejected, SynclineError, Unavailable
from syncline.stores import Work
from syncline.stores.redis import RedisConfig, RedisStore
from syncline.stores.redis.server import translate
from syncline.testing.store_suite import ITEM, PAIR, Rows, contents, work

_AOF = {"appendonly": "yes", "appendfsync": "always"}
_KEYS = 40
_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["syncline.stores.redis", "syncline.testing.store_suite"])


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Server]]:
    servers: list[Server] = []

    def started(name: str = "valkey", **settings: str) -> Server:
        servers.append(Server(tmp_path / name, **settings))
        return servers[-1]

    yield started
    for server in servers:
        server.stop()


def opened(server: Server, **settings: Any) -> RedisStore:
    store = server.store(**settings)
    store.open("orders")
    store.migrate(ITEM)
    return store


# --------------------------------------------------------------------------------------------------------- killed


def _work(n: int) -> Work:
    """The n-th work: updates, inserts, a delete, a moved row, and now and then a truncation; two tables alike."""
    rows = Rows()
    if n % 50 == 0:
        rows.upsert(n, 1, f"behind {n}", None)
    else:
        for i in range(12):
            rows.upsert(n, (n * 7 + i) % _KEYS, f"work {n}", None)
        rows.delete(n, (n * 7 + 20) % _KEYS)
        rows.partial(n, (n * 7 + 21) % _KEYS, None, None, unchanged=["name"], origin=((n * 7 + 22) % _KEYS,))
    other = Rows(PAIR).upsert(n, "north", n, n.to_bytes(16, "big"), "x")
    table = rows.table(truncated=n - 1 if n % 50 == 0 else None)
    return Work((table, other.table()), Cursor("orders", Position("log", n)))


def _expected(n: int) -> dict[int, tuple[Any, ...]]:
    """What the works 1 to n leave, by the simplest means."""
    state: dict[int, tuple[Any, ...]] = {}
    for k in range(1, n + 1):
        if k % 50 == 0:
            state = {1: (f"behind {k}", None, k)}
            continue
        base = state.get((k * 7 + 22) % _KEYS)
        for i in range(12):
            state[(k * 7 + i) % _KEYS] = (f"work {k}", None, k)
        state.pop((k * 7 + 20) % _KEYS, None)
        if base is not None:
            state[(k * 7 + 21) % _KEYS] = (base[0], None, k)
    return state


def _apply_for_ever(config: RedisConfig, told: Connection) -> None:
    """Apply from the stored cursor on, and tell after each work that is durable; end with the server."""
    store = RedisStore(config, "crash")
    cursor = store.open("orders")
    store.migrate(ITEM)
    store.migrate(PAIR)
    n = cursor.position.n if cursor else 0
    try:
        while True:
            n += 1
            store.apply(_work(n))
            told.send(n)
    except Unavailable:
        return


@pytest.mark.slow
@pytest.mark.parametrize("fsync", ["always", "everysec"])
def test_twenty_kills_of_the_server_leave_data_and_cursor_in_step(start: Callable[..., Server], fsync: str) -> None:
    _kill_and_compare(start, fsync, 20)


@pytest.mark.soak
@pytest.mark.parametrize("fsync", ["always", "everysec"])
def test_two_hundred_kills_of_the_server_leave_data_and_cursor_in_step(
    start: Callable[..., Server], fsync: str
) -> None:
    _kill_and_compare(start, fsync, 200)


def _kill_and_compare(start: Callable[..., Server], fsync: str, kills: int) -> None:
    server = start(appendonly="yes", appendfsync=fsync)
    rng, reached = random.Random(3), 0
    for _ in range(kills):
        here, there = _context.Pipe(duplex=False)
        child = _context.Process(target=_apply_for_ever, args=(server.config(), there), daemon=True)
        child.start()
        there.close()
        assert here.poll(60)
        time.sleep(rng.uniform(0, 0.25))  # the moment of the kill
        server.kill()
        child.join(60)
        assert child.exitcode == 0
        reached = max(reached, _last(here))
        server.start()
        store = server.store()
        cursor = store.open("orders")
        store.migrate(ITEM)
        store.migrate(PAIR)
        assert cursor is not None
        n = cursor.position.n
        assert n >= reached, "a work that was told to be durable is gone"
        assert contents(store) == _expected(n)
        assert len(contents(store, PAIR)) == n
        store.close()
    assert reached > kills


def _last(told: Connection) -> int:
    last = 0
    try:
        while told.poll():
            last = told.recv()
    except EOFError:
        pass  # the child is done, and everything it told has been read
    return last


def test_a_store_goes_on_by_itself_when_its_server_comes_back(start: Callable[..., Server]) -> None:
    server = start(**_AOF)
    store = opened(server)
    store.apply(work(Rows().upsert(100, 1, "one", None), n=1))
    server.kill()
    with pytest.raises(Unavailable):
        store.apply(work(Rows().upsert(110, 1, "two", None), n=2))
    server.start()
    store.apply(work(Rows().upsert(110, 1, "two", None), n=2))
    assert contents(store) == {1: ("two", None, 110)}
    store.close()


def _received(connection: socket.socket) -> bytes:
    try:
        return connection.recv(1 << 20)
    except OSError:
        return b""


class _Cutter:
    """A proxy that passes requests on, and cuts the connection instead of passing on what answers ``swallow``."""

    def __init__(self, port: int) -> None:
        self._target = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self.cut_answers_to: bytes | None = None
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        cut = threading.Event()
        with client, socket.create_connection(("127.0.0.1", self._target)) as server:
            back = threading.Thread(target=self._answer, args=(server, client, cut), daemon=True)
            back.start()
            while request := _received(client):
                if self.cut_answers_to is not None and self.cut_answers_to in request:
                    self.cut_answers_to = None
                    cut.set()
                server.sendall(request)
            server.close()
            back.join()

    def _answer(self, server: socket.socket, client: socket.socket, cut: threading.Event) -> None:
        while answer := _received(server):
            if cut.is_set():
                client.shutdown(socket.SHUT_RDWR)
                return
            client.sendall(answer)

    def close(self) -> None:
        self._listener.close()


@pytest.mark.parametrize("lost", [b"EVALSHA", b"WAITAOF"])
def test_a_lost_answer_is_harmless(start: Callable[..., Server], lost: bytes) -> None:
    server = start(**_AOF)
    proxy = _Cutter(server.port)
    store = RedisStore(RedisConfig(url=SecretStr(f"redis://127.0.0.1:{proxy.port}/0")), "main")
    store.open("orders")
    store.migrate(ITEM)
    store.apply(work(Rows().upsert(100, 1, "a", None).upsert(100, 2, "b", None), n=1))
    swap = work(
        Rows()
        .partial(110, 1, None, None, unchanged=["name"], origin=(2,))
        .partial(110, 2, None, None, unchanged=["name"], origin=(1,)),
        n=2,
    )
    proxy.cut_answers_to = lost
    with pytest.raises(Unavailable):
        store.apply(swap)
    assert proxy.cut_answers_to is None
    store.apply(swap)
    assert contents(store) == {1: ("b", None, 110), 2: ("a", None, 110)}
    store.apply(work(Rows().upsert(120, 1, "c", None), n=3))
    store.close()
    proxy.close()
    again = server.store()
    found = again.open("orders")
    again.close()
    assert found is not None
    assert found.position.n == 3


# ------------------------------------------------------------------------------------------------- data that is lost


def test_a_server_that_was_emptied_is_a_gap_and_then_a_fresh_start(start: Callable[..., Server]) -> None:
    server = start()
    store = opened(server)
    store.apply(work(Rows().upsert(100, 1, "one", None), n=5))
    with server.client() as client:
        client.flushall()
    for _ in range(2):
        with pytest.raises(Gap, match="emptied") as raised:
            store.apply(work(Rows().upsert(110, 2, "two", None), n=6))
        assert raised.value.code == "SL-REDIS-LOST"
    with server.client() as client:
        assert client.dbsize() == 0
    assert store.open("orders") is None
    store.close()


def test_a_restart_without_the_data_is_a_gap_and_never_silence(start: Callable[..., Server]) -> None:
    server = start()
    store = opened(server)
    store.apply(work(Rows().upsert(100, 1, "one", None), n=5))
    server.stop()
    server.start()
    with pytest.raises(Unavailable):  # the connection is gone
        store.apply(work(Rows().upsert(110, 2, "two", None), n=6))
    with pytest.raises(Gap, match="without its data"):
        store.apply(work(Rows().upsert(110, 2, "two", None), n=6))
    store.close()


def test_an_older_copy_of_the_data_is_a_gap_and_tells_its_own_place_when_opened(
    start: Callable[..., Server],
) -> None:
    server = start(**_AOF)
    store = opened(server)
    store.apply(work(Rows().upsert(100, 1, "one", None), n=5))
    server.stop()
    older = server.folder.with_name("older")
    shutil.copytree(server.folder / "appendonlydir", older)
    server.start()
    with pytest.raises(Unavailable):
        store.apply(work(Rows().upsert(110, 2, "two", None), n=6))
    store.apply(work(Rows().upsert(110, 2, "two", None), n=6))
    store.apply(work(Rows().upsert(120, 3, "three", None), n=7))
    server.kill()
    shutil.rmtree(server.folder / "appendonlydir")
    shutil.copytree(older, server.folder / "appendonlydir")
    server.start()
    later = work(Rows().upsert(130, 4, "four", None), n=8)
    with pytest.raises(Unavailable):
        store.apply(later)
    with pytest.raises(Gap, match="older copy"):
        store.apply(later)
    cursor = store.open("orders")
    assert cursor is not None
    assert cursor.position.n == 5
    store.migrate(ITEM)
    assert contents(store) == {1: ("one", None, 100)}
    store.close()


def test_a_replica_that_was_promoted_too_early_is_a_gap(start: Callable[..., Server]) -> None:
    primary, replica = start("primary"), start("replica")
    store = opened(primary)
    store.apply(work(Rows().upsert(100, 1, "one", None), n=1))
    with replica.client() as client:
        client.replicaof("127.0.0.1", str(primary.port))
        deadline = time.monotonic() + 30
        while client.hget("public.item:1", "name") != b"one":
            assert time.monotonic() < deadline
            time.sleep(0.02)
        client.replicaof("no", "one")
        client.save()
    store.apply(work(Rows().upsert(110, 2, "two", None), n=2))
    primary.stop()
    replica.stop()
    replica.valkey.port = primary.port
    with pytest.raises(Unavailable):
        store.apply(work(Rows().upsert(120, 3, "three", None), n=3))
    replica.start()
    with pytest.raises(Gap):
        store.apply(work(Rows().upsert(120, 3, "three", None), n=3))
    cursor = store.open("orders")
    assert cursor is not None
    assert cursor.position.n == 1
    store.close()


def test_a_second_engine_on_one_place_is_refused_and_writes_nothing(start: Callable[..., Server]) -> None:
    server = start()
    first, second = opened(server), opened(server)
    first.apply(work(Rows().upsert(100, 1, "first", None), n=1))
    with pytest.raises(Misconfigured, match="Another engine") as raised:
        second.apply(work(Rows().upsert(200, 1, "second", None), n=2))
    assert raised.value.code == "SL-REDIS-SHARED"
    assert contents(first) == {1: ("first", None, 100)}
    first.close()
    second.close()


def test_scripts_that_somebody_flushed_are_loaded_again(start: Callable[..., Server]) -> None:
    server = start()
    store = opened(server)
    with server.client() as client:
        for n in range(1, 4):
            client.script_flush()
            rows = Rows().upsert(100 + n, n, "x", None)
            store.apply(work(rows.partial(100 + n, n - 1, None, None, unchanged=["name"], origin=(n - 1,)), n=n))
    assert sorted(contents(store)) == [1, 2, 3]
    store.close()


# ------------------------------------------------------------------------------------------------- full and unfit


def test_a_full_memory_waits_and_does_no_harm(start: Callable[..., Server]) -> None:
    server = start(maxmemory="30mb", maxmemory_policy="noeviction")
    store = opened(server)
    n = 1
    while _fits(store, work(Rows().upsert(n, n, "x" * 100_000, None).upsert(n, -n, "twin", None), n=n)):
        n += 1
    found = contents(store)
    assert sorted(found) == sorted([*range(1, n), *range(-n + 1, 0)])
    with server.client() as client:
        client.config_set("maxmemory", "0")
    store.apply(work(Rows().upsert(n, n, "after", None), n=n))
    assert len(contents(store)) == len(found) + 1
    store.close()


def _fits(store: RedisStore, more: Work) -> bool:
    try:
        store.apply(more)
    except Unavailable:
        with pytest.raises(Unavailable, match="OOM"):
            store.apply(more)
        return False
    return True


def test_servers_that_can_lose_the_cursor_are_refused(start: Callable[..., Server]) -> None:
    evicting = start("evicting", maxmemory="100mb", maxmemory_policy="allkeys-lru")
    with pytest.raises(Misconfigured, match="evicts any key") as raised:
        evicting.store(mode="cache").open("orders")
    assert raised.value.code == "SL-REDIS-EVICTION"
    with evicting.client() as client:
        client.config_set("maxmemory-policy", "volatile-lru")
    opened(evicting, mode="cache").close()


def test_a_cluster_is_refused(start: Callable[..., Server]) -> None:
    with socket.socket() as free:  # by itself the server takes its port and 10,000, which may be beyond what there is
        free.bind(("127.0.0.1", 0))
        bus = free.getsockname()[1]
    server = start("cluster", cluster_enabled="yes", cluster_port=str(bus), databases="1")
    with pytest.raises(Misconfigured, match="is a cluster"):
        server.store().open("orders")


def test_a_replica_is_refused_when_opened_and_waited_for_when_it_became_one(start: Callable[..., Server]) -> None:
    other = start("other")
    store = opened(other)
    with socket.socket() as nobody:  # a primary that is there would soon have it emptied
        nobody.bind(("127.0.0.1", 0))
        with other.client() as client:
            client.replicaof("127.0.0.1", str(nobody.getsockname()[1]))
        for _ in range(2):
            with pytest.raises(Unavailable, match="replica"):
                store.apply(work(Rows().upsert(100, 1, "one", None)))
        with pytest.raises(Misconfigured, match="is a replica"):
            other.store().open("orders")
    store.close()


def test_a_wrong_password_is_told_without_it_and_a_right_one_works(start: Callable[..., Server]) -> None:
    server = start(requirepass="right")
    for url in (f"redis://:hunter2@127.0.0.1:{server.port}", f"redis://127.0.0.1:{server.port}"):
        with pytest.raises(Misconfigured, match="refuses this user") as raised:
            RedisStore(RedisConfig(url=SecretStr(url)), "main").open("orders")
        assert "hunter2" not in str(raised.value)
    store = RedisStore(RedisConfig(url=SecretStr(f"redis://:right@127.0.0.1:{server.port}")), "main")
    assert store.open("orders") is None
    store.close()


def test_a_user_with_few_rights_is_told_so(start: Callable[..., Server]) -> None:
    server = start()
    with server.client() as client:
        client.execute_command("ACL", "SETUSER", "weak", "on", ">pw", "~*", "+@connection", "+info", "+hget")
    weak = RedisConfig(url=SecretStr(f"redis://weak:pw@127.0.0.1:{server.port}"))
    with pytest.raises(Misconfigured, match="NOPERM"):
        RedisStore(weak, "main").open("orders")
    assert "SL-REDIS-RIGHTS" in [f.code for f in RedisStore.check(weak)]


def test_the_rights_that_the_page_names_suffice(start: Callable[..., Server]) -> None:
    page = Path(__file__).parents[2] / "docs" / "stores" / "redis.md"
    line = re.search(r"^ACL SETUSER .*$", page.read_text(), re.MULTILINE)
    assert line is not None
    server = start(**_AOF)
    with server.client() as client:
        client.execute_command(*line[0].split())
    config = RedisConfig(url=SecretStr(f"redis://syncline:password@127.0.0.1:{server.port}/3"))
    assert {f.severity for f in RedisStore.check(config)} == {"ok"}
    store = RedisStore(config, "main")
    store.open("orders")
    store.migrate(ITEM)
    store.apply(work(Rows().upsert(100, 1, "one", None).upsert(100, 2, "two", None).delete(100, 3), n=1))
    store.apply(work(Rows().partial(110, 9, None, None, unchanged=["name"], origin=(1,)).delete(110, 1), n=2))
    store.apply(work(Rows(), truncated=105, n=3))
    assert store.purge("orders", 200) == 2
    assert contents(store) == {9: ("one", None, 110)}
    store.close()


def test_a_server_that_is_away_is_unavailable() -> None:
    with socket.create_server(("127.0.0.1", 0)) as nobody:
        port = nobody.getsockname()[1]
    config = RedisConfig(url=SecretStr(f"redis://u:secret@127.0.0.1:{port}/3"))
    with pytest.raises(Unavailable, match=f"127.0.0.1:{port}/3") as raised:
        RedisStore(config, "main").open("orders")
    assert "secret" not in str(raised.value)
    assert [(f.code, f.severity) for f in RedisStore.check(config)] == [("SL-UNAVAILABLE", "error")]


def test_a_newer_format_is_refused(start: Callable[..., Server]) -> None:
    server = start()
    opened(server).close()
    with server.client() as client:
        client.hset("syncline:store", "format", "99")
    with pytest.raises(Misconfigured, match="newer Syncline"):
        server.store().open("orders")


def test_targets_with_other_prefixes_share_a_database(start: Callable[..., Server]) -> None:
    server = start()
    one, two = opened(server), server.store(prefix="other")
    two.open("orders")
    two.migrate(PAIR)
    one.apply(work(Rows().upsert(100, 1, "one", None), n=3))
    two.apply(work(Rows(PAIR).upsert(100, "north", 1, b"\0" * 16, "x"), n=4))
    assert len(contents(two, PAIR)) == len(contents(one)) == 1
    one.close()
    two.close()


@pytest.mark.parametrize(
    ("settings", "mode", "expected"),
    [
        ({}, "store", {"SL-REDIS": "ok", "SL-REDIS-DURABLE": "warning"}),
        ({}, "cache", {"SL-REDIS": "ok"}),
        (_AOF, "store", {"SL-REDIS": "ok", "SL-REDIS-DURABLE": "ok"}),
        ({"appendonly": "yes", "appendfsync": "no"}, "store", {"SL-REDIS": "ok", "SL-REDIS-DURABLE": "info"}),
        (
            {"maxmemory": "50mb", "maxmemory_policy": "noeviction"},
            "cache",
            {"SL-REDIS": "ok", "SL-REDIS-EVICTION": "warning"},
        ),
        (
            {"maxmemory": "50mb", "maxmemory_policy": "volatile-ttl", **_AOF},
            "store",
            {"SL-REDIS": "ok", "SL-REDIS-EVICTION": "warning", "SL-REDIS-DURABLE": "ok"},
        ),
        ({"maxmemory": "50mb", "maxmemory_policy": "allkeys-lfu"}, "cache", {"SL-REDIS-EVICTION": "error"}),
    ],
)
def test_doctor_tells_what_a_server_can_lose(
    start: Callable[..., Server], settings: dict[str, str], mode: str, expected: dict[str, str]
) -> None:
    server = start(**settings)
    found = list(RedisStore.check(server.config(mode=mode)))
    assert {f.code: f.severity for f in found} == expected
    assert all(f.subject == "" and (f.remedy or f.severity == "ok") for f in found)
    with server.client() as client:
        assert client.dbsize() == 0


# ------------------------------------------------------------------------------------------------- errors and values


def test_errors_never_tell_values(start: Callable[..., Server]) -> None:
    server = start()
    store = opened(server)
    with server.client() as client:
        client.set("public.item:7", "hunter2")
    with pytest.raises(Rejected) as refused:
        store.apply(work(Rows().upsert(100, 7, "hunter2", None)))
    shown = [str(refused.value)]
    for kind in (redis.exceptions.ResponseError, redis.exceptions.DataError, redis.exceptions.ConnectionError):
        for said in ("WRONGTYPE key hunter2", "hunter2", "ERR hunter2", "OOM hunter2"):
            shown.append(str(translate(kind(said), server.config())))
    assert not [text for text in shown if "hunter2" in text]
    store.close()


def test_only_named_errors_are_tried_again() -> None:
    config = RedisConfig(url=SecretStr("redis://localhost"))

    def kind(error: Exception) -> type[SynclineError]:
        return type(translate(error, config))

    passing = ["LOADING x", "BUSY x", "MISCONF x", "NOREPLICAS x", "MASTERDOWN x", "READONLY x", "OOM x", "TRYAGAIN x"]
    assert {kind(redis.exceptions.ResponseError(said)) for said in passing} == {Unavailable}
    assert {kind(e("x")) for e in (redis.exceptions.ConnectionError, redis.exceptions.TimeoutError)} == {Unavailable}
    stopping = ["ERR x", "WRONGTYPE x", "NOPERM x", "NOSCRIPT x", "MOVED x", "lower case"]
    assert {kind(redis.exceptions.ResponseError(said)) for said in stopping} == {Misconfigured}
