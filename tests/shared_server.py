"""A server that all workers of a test run share, for those that take seconds to start and hundreds of megabytes to run.

The first worker that needs it starts a *keeper*, this file as a program, which starts the server and ends with it when
nobody is left. Who is there is told by a named pipe: each worker holds its writing end, and the keeper reads its end,
by the system's doing, when the last one has closed it or has died, however it died. Coming and leaving hold a lock, so
that nobody gets hold of a server that is about to go.
"""

from __future__ import annotations

import json
import os
import select
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import pytest

from neo4j_server import Neo4j
from servers import eventually
from syncline.embedded import EmbeddedBolt
from syncline.embedded.kept import locked

KINDS: dict[str, Callable[[Path], EmbeddedBolt | Neo4j]] = {
    "bolt": EmbeddedBolt.start,
    "neo4j-5": lambda folder: Neo4j.start(folder, "5"),
    "neo4j-2026": lambda folder: Neo4j.start(folder, "2026"),
}
START_TIMEOUT_S = 240
ENDS, READY, FAILED, TALK = "users", "ready.json", "failed.txt", "keeper.log"

_keepers: list[subprocess.Popen[bytes]] = []  # held, for nobody waits for them: Python would warn of that


@dataclass(frozen=True)
class Address:
    """How to reach a shared server, and the processes that must be gone when nobody uses it any more."""

    uri: str
    auth: tuple[str, str] | None
    database: str
    server: int
    keeper: int


def of_all_workers(factory: pytest.TempPathFactory) -> Path:
    """The folder that all workers of a run have in common."""
    place = factory.getbasetemp()
    return place.parent if "PYTEST_XDIST_WORKER" in os.environ else place


@contextmanager
def shared(kind: str, place: Path) -> Iterator[Address]:
    """The server of a kind, started if it isn't there yet. ``place`` is a folder that all workers of the run know."""
    folder = place / kind
    with locked(place / f"{kind}.lock"):
        end = _join(folder)
        if end is None:
            end = _begin(kind, folder)
    try:
        yield eventually(lambda: _address(folder), START_TIMEOUT_S)
    finally:
        os.close(end)


def _join(folder: Path) -> int | None:
    """The writing end of a keeper's pipe; None without a keeper, whose remains are removed."""
    try:
        return os.open(folder / ENDS, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:  # ENOENT: there never was one, or it has left in order; ENXIO: it was killed
        shutil.rmtree(folder, ignore_errors=True)
        return None


def _begin(kind: str, folder: Path) -> int:
    """Start a keeper; the writing end of its pipe, of which it inherits the reading end: never without us."""
    folder.mkdir(parents=True)
    os.mkfifo(folder / ENDS, mode=0o600)
    reading = os.open(folder / ENDS, os.O_RDONLY | os.O_NONBLOCK)
    try:
        writing = os.open(folder / ENDS, os.O_WRONLY | os.O_CLOEXEC)
        with (folder / TALK).open("wb") as talk:
            keeper = subprocess.Popen(
                [sys.executable, __file__, kind, folder, str(reading)],
                stdin=subprocess.DEVNULL,
                stdout=talk,
                stderr=talk,
                pass_fds=(reading,),
                start_new_session=True,  # it outlives the worker that happens to be first
            )
        _keepers.append(keeper)
    finally:
        os.close(reading)
    return writing


def _address(folder: Path) -> Address | None:
    if (folder / FAILED).exists():
        raise RuntimeError((folder / FAILED).read_text())
    if not (folder / READY).exists():
        return None
    said = json.loads((folder / READY).read_text())
    return Address(**{**said, "auth": said["auth"] and tuple(said["auth"])})


# ----------------------------------------------------------------------------------------------------------- the keeper


def keep(kind: str, folder: Path, reading: int) -> None:
    """Start the server, say where it is, and stop it when the pipe has no writer any more."""
    try:
        server = KINDS[kind](folder / "data")
    except Exception as error:
        _say(folder / FAILED, str(error))
        raise
    with server:
        address = Address(server.uri, server.auth, server.database, server.pid, os.getpid())
        _say(folder / READY, json.dumps(asdict(address)))
        while True:
            select.select([reading], [], [])
            with locked(folder.parent / f"{kind}.lock"):
                if _nobody(reading):
                    server.stop()
                    shutil.rmtree(folder, ignore_errors=True)  # the run may be removing it, too
                    return


def _nobody(reading: int) -> bool:
    try:
        return os.read(reading, 1) == b""
    except BlockingIOError:  # somebody came in between
        return False


def _say(path: Path, text: str) -> None:
    """Write a file that is there as a whole or not at all."""
    with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False) as file:
        file.write(text)
    Path(file.name).rename(path)


if __name__ == "__main__":
    keep(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))
