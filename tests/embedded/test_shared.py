"""The servers that the workers of a run share: one for all, gone with the last of them, however that one ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from embedded.owned import LEAVING_S, TESTS, gone, using
from servers import eventually
from shared_server import shared

pytestmark = pytest.mark.timeout(900)  # a server in Java may take three minutes to start, on a busy machine

WORKER = """
import sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from shared_server import shared
with shared("bolt", Path(sys.argv[2])) as at:
    print(at.server, at.keeper, flush=True)
    sys.stdin.read()
"""


class Worker:
    """A process that uses the shared server until it is told to end, or killed."""

    def __init__(self, place: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", WORKER, str(TESTS), place], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def uses(self) -> tuple[int, ...]:
        """The process ids of the server and its keeper."""
        assert self._process.stdout is not None
        return tuple(int(word) for word in self._process.stdout.readline().split())

    def leave(self) -> None:
        self._process.communicate()
        assert self._process.returncode == 0

    def kill(self) -> None:
        self._process.kill()
        self._process.communicate()


@pytest.mark.slow
def test_workers_at_once_get_one_server_that_goes_with_the_last_however_that_ends(tmp_path: Path) -> None:
    workers = [Worker(tmp_path) for _ in range(3)]
    (used,) = {worker.uses() for worker in workers}
    workers[0].kill()
    workers[1].leave()
    late = Worker(tmp_path)
    assert late.uses() == used
    late.leave()
    assert not any(map(gone, used))
    workers[2].kill()
    eventually(lambda: _nothing_is_left_of(used, tmp_path), LEAVING_S)

    # Whoever comes after that gets a new one.
    with shared("bolt", tmp_path) as at:
        assert not {at.server, at.keeper} & set(used)
        assert not gone(at.server)
    eventually(lambda: _nothing_is_left_of((at.server, at.keeper), tmp_path), LEAVING_S)


def _nothing_is_left_of(processes: tuple[int, ...], place: Path) -> bool:
    """Whether they are gone, and with them the files; says what is there if it isn't so."""
    assert [pid for pid in processes if not gone(pid)] == []
    assert using(place) == []
    assert not (place / "bolt").exists()
    return True


@pytest.mark.slow
def test_a_killed_keeper_takes_its_server_along_and_is_replaced(tmp_path: Path) -> None:
    with shared("bolt", tmp_path) as at:
        os.kill(at.keeper, signal.SIGKILL)
        eventually(lambda: gone(at.server), LEAVING_S)
    with shared("bolt", tmp_path) as another:
        assert not gone(another.server)
    eventually(lambda: gone(another.server), LEAVING_S)
