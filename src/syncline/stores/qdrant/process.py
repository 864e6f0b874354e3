"""The engine's side of Qdrant Edge's own process: starting it, asking it, and noticing that it died.

Shards have no write-ahead log, so what the process had not flushed dies with it. A writer must therefore never go on
with the next process where it stood: it hears ``Unavailable`` first, and applies its work again from the start.
"""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, ClassVar

from syncline.errors import Unavailable
from syncline.stores.qdrant.points import Batch, PointId, Refused, Spec, Stored, looking
from syncline.stores.qdrant.wire import Asking, answered, frame, receive, request

__all__ = ["ProcessPoints"]

_MODULE = "syncline.stores.qdrant.edge_process"
_FAREWELL_S = 60.0
# Batches that are handed in before the first of them is answered.
_AHEAD = 2


class _Child:
    """One life of the process. ``writes`` and ``reads`` may be used by one thread each at a time, under their locks."""

    def __init__(self, path: Path, *, door: bool) -> None:
        self.writes, its_writes = socket.socketpair()
        self.reads, its_reads = socket.socketpair()
        self.writing, self.reading = threading.Lock(), threading.Lock()
        with its_writes, its_reads:
            inherited = its_writes.fileno(), its_reads.fileno()
            # -P: nothing in the working directory is to be taken for a module.
            command = [sys.executable, "-P", "-m", _MODULE, str(path), str(int(door)), *map(str, inherited)]
            try:
                self._process = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,  # a native crash may quote what it was writing
                    pass_fds=inherited,
                    start_new_session=True,  # the terminal's Ctrl-C is for the engine, which then ends this in order
                )
            except OSError as error:
                self._hang_up()
                raise _away(f"can't be started ({error.strerror})") from error
        self.pid = self._process.pid
        try:
            answered(receive(self.writes))
        except (OSError, EOFError) as error:
            self.end(0)
            raise _away(f"did not start (code {self._process.returncode})") from error
        except BaseException:
            self.end(0)
            raise

    def end(self, patience_s: float) -> None:
        """Let it finish what it is at and flush, for so long; then kill it."""
        self._hang_up()
        try:
            self._process.wait(patience_s)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _hang_up(self) -> None:
        for line in (self.writes, self.reads):
            with contextlib.suppress(OSError):
                line.shutdown(socket.SHUT_RDWR)  # wakes a thread of ours that waits for an answer
            line.close()


class _Shared:
    """The process of one folder, for all stores of this one; started when it is needed, and again when it died."""

    open: ClassVar[dict[Path, _Shared]] = {}
    guard: ClassVar[threading.Lock] = threading.Lock()

    def __init__(self, path: Path, *, door: bool) -> None:
        self.path = path
        self.users = 0
        self._door = door
        self._child: _Child | None = None
        self._lock = threading.Lock()

    def child(self) -> _Child:
        """The living process, as far as is known.

        Raises:
            Misconfigured: the folder can't be used, or another process has it.
            Unavailable: the process ended at once.
        """
        with self._lock:
            if self._child is None:
                if not self.users:
                    raise Unavailable(f"The Qdrant folder {self.path} is closed.")
                self._child = _Child(self.path, door=self._door)
            return self._child

    def lost(self, child: _Child) -> None:
        """It does not answer any more, or in a way that nobody knows what it has done."""
        with self._lock:
            if self._child is child:
                self._child = None
                child.end(0)

    def end(self) -> None:
        """Behind the last user."""
        with self._lock:
            child, self._child = self._child, None
        if child is not None:
            child.end(_FAREWELL_S)


class ProcessPoints(Asking):
    """A store's hold on a folder: :class:`~syncline.stores.qdrant.points.Points` by calls to the folder's process.

    The guard of :meth:`upsert` is exact, as Edge's is.
    """

    def __init__(self, shared: _Shared) -> None:
        self._shared = shared
        self._closed = False
        self._written: _Child | None = None  # the process that has what this store wrote last

    @classmethod
    def acquire(cls, path: Path, *, door: bool = False) -> ProcessPoints:
        """The folder, opened if this is the first store that asks.

        Raises:
            Misconfigured: it can't be used, or another process keeps it.
            Unavailable: the process that serves it did not start.
        """
        path = path.expanduser().resolve()
        with _Shared.guard:
            shared = _Shared.open.setdefault(path, _Shared(path, door=door))
            shared.users += 1
        points = cls(shared)
        try:
            points._written = shared.child()
        except BaseException:
            points.close()
            raise
        return points

    @classmethod
    def share(cls, path: Path) -> ProcessPoints | None:
        """The folder, if a store of this process has it open."""
        with _Shared.guard:
            shared = _Shared.open.get(path)
            if shared is None:
                return None
            shared.users += 1
        return cls(shared)

    def close(self) -> None:
        """End the process when the last store leaves, behind a flush."""
        with _Shared.guard:
            if self._closed:
                return
            self._closed = True
            self._shared.users -= 1
            if self._shared.users:
                return
            _Shared.open.pop(self._shared.path, None)
        self._shared.end()

    @property
    def pid(self) -> int:
        """The process, started if there is none."""
        return self._shared.child().pid

    # ------------------------------------------------------------------------------------------ reading

    def _ask(self, method: str, *arguments: Any, **named: Any) -> Any:
        """A read. Once more by the next process, where one died: what was flushed is what a reader is owed."""
        asked = frame(request(method, *arguments, **named))
        child = self._shared.child()
        try:
            return self._asked(child, asked)
        except Unavailable:
            following = self._shared.child()
            if following is child:
                raise  # it answered, and that is the answer
        return self._asked(following, asked)

    def _asked(self, child: _Child, asked: bytes) -> Any:
        with child.reading:
            try:
                child.reads.sendall(asked)
                said = receive(child.reads)
            except (OSError, EOFError) as error:
                self._shared.lost(child)
                raise _away("ended") from error
            except BaseException:  # the answer may come yet, and would be taken for that of the next call
                self._shared.lost(child)
                raise
        return answered(said)

    # ------------------------------------------------------------------------------------------ writing

    def _writer(self) -> _Child:
        """The process to write to.

        Raises:
            Unavailable: it is another than the one that has what was written before.
        """
        child = self._shared.child()
        former, self._written = self._written, child
        if former is not None and former is not child:
            raise _away("was started again")
        return child

    def _tell(self, method: str, *arguments: Any) -> Any:
        (said,) = self._told([frame(request(method, *arguments))])
        return answered(said)

    def _told(self, frames: Iterable[bytes | None]) -> list[Any]:
        """What is said to each frame, see :func:`_converse`."""
        child = self._writer()
        with child.writing:
            try:
                return _converse(child.writes, frames)
            except (OSError, EOFError) as error:
                self._written = None  # its writer hears of it now
                self._shared.lost(child)
                raise _away("ended") from error
            except BaseException:  # answers may come yet, and would be taken for those of the next call
                self._written = None
                self._shared.lost(child)
                raise

    def create(self, collection: str, spec: Spec) -> None:
        self._tell("create", collection, spec)

    def drop(self, collection: str) -> None:
        self._tell("drop", collection)

    def change(self, collection: str, add: Spec, remove: Sequence[str]) -> None:
        self._tell("change", collection, add, list(remove))

    def unindex(self, collection: str, fields: Sequence[str]) -> None:
        self._tell("unindex", collection, list(fields))

    def upsert(self, collection: str, points: Sequence[Stored], versions: Sequence[int]) -> None:
        self._tell("upsert", collection, list(points), list(versions))

    def upserts(self, collection: str, batches: Iterable[Batch]) -> list[int]:
        """While the process takes in a batch, the next one is packed and handed over."""
        refused = []
        for number, said in enumerate(self._told(_packed(collection, *batch) for batch in batches)):
            try:
                answered(said)
            except Refused:
                refused.append(number)
        return refused

    def overwrite(self, collection: str, points: Sequence[Stored], versions: Sequence[int]) -> None:
        self._tell("overwrite", collection, list(points), list(versions))

    def put(self, collection: str, points: Sequence[Stored]) -> None:
        self._tell("put", collection, list(points))

    def delete(self, collection: str, ids: Sequence[PointId]) -> None:
        self._tell("delete", collection, list(ids))

    def newest(self, collection: str) -> int:
        with looking("The process of Qdrant Edge", collection):
            return int(self._tell("newest", collection))

    def sync(self, collections: Sequence[str]) -> None:
        self._tell("sync", list(collections))


def _packed(collection: str, points: Sequence[Stored], versions: Sequence[int]) -> bytes | None:
    """An upsert as a frame, None where it holds what no frame does."""
    try:
        return frame(request("upsert", collection, list(points), list(versions)))
    except Refused:
        return None


def _converse(line: socket.socket, frames: Iterable[bytes | None]) -> list[Any]:
    """Send frames and collect what is said to each, a few frames behind. Behind an error nothing more is sent."""
    said: list[Any] = []
    waiting: deque[int] = deque()
    for number, one in enumerate(frames):
        said.append({"refused": "it has no form in MessagePack"})
        if one is None:
            continue
        line.sendall(one)
        waiting.append(number)
        if len(waiting) == _AHEAD:
            first = waiting.popleft()
            said[first] = receive(line)
            if "error" in said[first]:
                break
    for number in waiting:
        said[number] = receive(line)
    return said


def _away(what: str) -> Unavailable:
    return Unavailable(
        f"The process of Qdrant Edge {what}.", remedy="It is started again, and what it had not kept is written again."
    )
