"""The embedded Valkey: what it answers, what it keeps and what it evicts, and that nothing of it is left behind."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from embedded.owned import gone, owner, using
from servers import eventually
from syncline.embedded import EmbeddedValkey
from syncline.embedded.process import free_port
from syncline.errors import Misconfigured, Unavailable


@pytest.fixture
def short_folder() -> Iterator[Path]:
    """A folder with a path that a socket's name fits behind."""
    folder = Path(tempfile.mkdtemp())
    yield folder
    shutil.rmtree(folder)


def test_a_server_answers_on_its_port_and_on_its_socket(short_folder: Path) -> None:
    with EmbeddedValkey.start(short_folder / "data") as server:
        with redis.Redis.from_url(server.url()) as client:
            client.set("key", b"\x00\xff")
            assert client.info()["valkey_version"].startswith("9.")
        with redis.Redis(unix_socket_path=str(server.socket)) as client:
            assert client.get("key") == b"\x00\xff"


def test_a_folder_too_deep_for_a_socket_has_none(tmp_path: Path) -> None:
    deep = tmp_path / ("deep" * 25)
    with EmbeddedValkey.start(deep) as server, redis.Redis.from_url(server.url()) as client:
        assert server.socket is None
        assert client.ping()


def test_only_this_machine_may_connect(valkey: EmbeddedValkey) -> None:
    with redis.Redis.from_url(valkey.url()) as client:
        assert client.config_get("bind") == {"bind": "127.0.0.1"}


@pytest.mark.parametrize(("appendonly", "kept"), [("yes", 1000), ("no", 0)])
def test_what_was_acknowledged_survives_a_kill_with_the_append_only_file_alone(
    tmp_path: Path, appendonly: str, kept: int
) -> None:
    with EmbeddedValkey.start(tmp_path, settings={"appendonly": appendonly}) as server:
        port = server.port
        with redis.Redis.from_url(server.url()) as client:
            for number in range(1000):
                client.set(f"key {number}", number)
        server.kill()
        assert not server.running
        server.restart()
        assert server.port == port
        with redis.Redis.from_url(server.url()) as client:
            assert client.dbsize() == kept


def test_memory_is_bounded_and_evicted_as_the_settings_say(tmp_path: Path) -> None:
    limits = {"maxmemory": "4mb", "maxmemory-policy": "allkeys-lru"}
    with EmbeddedValkey.start(tmp_path, settings=limits) as server, redis.Redis.from_url(server.url()) as client:
        for number in range(100):
            client.set(f"key {number}", b"x" * 100_000)
        assert client.info()["evicted_keys"] > 50


def test_a_setting_that_is_not_one_is_refused_with_the_servers_own_words(tmp_path: Path) -> None:
    with pytest.raises(Misconfigured, match="maxmemroy"):
        EmbeddedValkey.start(tmp_path, settings={"maxmemroy": "1"})
    assert using(tmp_path) == []


def test_a_server_that_is_not_running_says_so(tmp_path: Path) -> None:
    server = EmbeddedValkey.start(tmp_path)
    server.stop()
    server.stop()
    with pytest.raises(Unavailable, match="not running"):
        server.kill()


def test_a_stopped_server_leaves_no_process_and_no_file_outside_its_folder(tmp_path: Path) -> None:
    with EmbeddedValkey.start(tmp_path / "data") as server:
        pid = server.pid
        assert pid in using(tmp_path)
    assert gone(pid)
    assert using(tmp_path) == []
    assert [p.name for p in tmp_path.iterdir()] == ["data"]
    assert not list(tmp_path.rglob("*.sock"))


def test_a_server_ends_with_its_owner_even_if_that_is_killed(tmp_path: Path) -> None:
    with owner("valkey", tmp_path / "data") as (process, pid):
        assert not gone(pid)
        process.kill()
    eventually(lambda: gone(pid) and using(tmp_path) == [])


def test_a_taken_port_is_left_to_whoever_has_it(
    valkey: EmbeddedValkey, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ports = iter([valkey.port, valkey.port])
    monkeypatch.setattr("syncline.embedded.server.free_port", lambda: next(ports, None) or free_port())
    with EmbeddedValkey.start(tmp_path / "second") as second:
        assert second.port != valkey.port


def test_without_its_wheel_the_command_that_gets_it_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("syncline.embedded.valkey.wheel_folder", lambda package: None)
    with pytest.raises(Misconfigured, match=r"pip install 'syncline\[servers\]'"):
        EmbeddedValkey.start(tmp_path)
