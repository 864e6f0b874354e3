"""The query door: other processes query a DuckDB file while the engine, its one writer, runs.

DuckDB locks its file for one process. So the engine listens on a Unix socket beside the file (``<file>.sock``, mode
0600, same user only) and runs what comes in: one SELECT, in a read-only transaction on a connection of its own, which
sees whole works and never waits for the writer. :func:`open_reader` uses the door if there is one, else the file.

Wire: the client sends a frame with SQL; the server answers with frames of one Arrow IPC stream, then an end frame; or
with an error frame at any point. A frame is a kind (one byte), a length (4 bytes, big endian) and that many bytes.

A query shares DuckDB's memory_limit and threads with the engine. It cannot write, read or attach other files.
"""

from __future__ import annotations

import contextlib
import io
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, TypeVar

import duckdb
import pyarrow as pa
from pyarrow import ipc

from syncline.errors import Misconfigured, SynclineError, Unavailable
from syncline.stores.doors import LocalDoor, short_socket

__all__ = ["Deadline", "Door", "QueryError", "Reader", "open_reader", "socket_path"]

_HEAD = struct.Struct(">cI")
_DATA, _END, _ERROR, _QUERY = b"A", b"E", b"X", b"Q"
_MAX_QUERY_BYTES = 1 << 20
_ROWS = 20_000
_READING = (duckdb.StatementType.SELECT, duckdb.StatementType.EXPLAIN)

T = TypeVar("T")
Session = Callable[[], AbstractContextManager[duckdb.DuckDBPyConnection]]


class QueryError(SynclineError):
    """A query was refused or failed; the message is DuckDB's own."""

    code = "SL-QUERY"


def socket_path(path: Path) -> Path:
    """Where the door of a DuckDB file is."""
    path = path.expanduser().resolve()
    return short_socket(path, path.with_name(path.name + ".sock"))


def _send(connection: socket.socket, kind: bytes, data: bytes | memoryview = b"") -> None:
    connection.sendall(_HEAD.pack(kind, len(data)))
    if len(data):
        connection.sendall(data)


def _receive_exactly(connection: socket.socket, size: int) -> bytes:
    parts = bytearray()
    while len(parts) < size:
        part = connection.recv(min(size - len(parts), 1 << 20))
        if not part:
            raise EOFError
        parts += part
    return bytes(parts)


def _receive(connection: socket.socket, limit: int = 1 << 31) -> tuple[bytes, bytes]:
    kind, size = _HEAD.unpack(_receive_exactly(connection, _HEAD.size))
    if size > limit:
        raise EOFError
    return kind, _receive_exactly(connection, size)


class _Frames(io.RawIOBase):
    """A writable file whose writes become data frames."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        _send(self._connection, _DATA, view)
        return len(view)


class Door(LocalDoor):
    """The server. Running queries are interrupted when it closes."""

    def __init__(self, path: Path, session: Session, *, timeout_s: float = 300.0) -> None:
        self._session = session
        self._timeout_s = timeout_s
        super().__init__(socket_path(path), "duckdb-door")

    def serve(self, client: socket.socket) -> None:
        # A client that stops reading must not keep its transaction open, which would hold off checkpoints.
        patience = struct.pack("ll", int(self._timeout_s), int(self._timeout_s % 1 * 1e6))
        client.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, patience)
        with contextlib.suppress(UnicodeDecodeError):
            while True:
                kind, data = _receive(client, _MAX_QUERY_BYTES)
                if kind != _QUERY:
                    return
                self._answer(client, data.decode())

    def _answer(self, client: socket.socket, sql: str) -> None:
        try:
            with self._session() as connection:
                self._run(client, connection, sql)
        except (SynclineError, duckdb.Error) as error:
            message = str(error.__cause__ if isinstance(error.__cause__, duckdb.Error) else error)
            _send(client, _ERROR, message.encode())
        else:
            _send(client, _END)

    def _run(self, client: socket.socket, connection: duckdb.DuckDBPyConnection, sql: str) -> None:
        statement = _single_select(connection, sql)
        connection.execute("begin transaction read only")
        with _Watch(client, connection, self._timeout_s):
            reader = connection.sql(statement).to_arrow_reader(_ROWS)
            with ipc.new_stream(pa.PythonFile(_Frames(client), mode="w"), reader.schema) as stream:
                for batch in read_batches(reader):
                    stream.write_batch(batch)


def read_batches(reader: pa.RecordBatchReader) -> Iterator[pa.RecordBatch]:
    """The batches of a streamed result.

    Raises:
        duckdb.Error: the query failed in the middle, which Arrow raises as errors of its own.
    """
    while True:
        try:
            yield reader.read_next_batch()
        except StopIteration:
            return
        except (pa.ArrowException, OSError) as error:
            raise duckdb.Error(str(error)) from error


def _single_select(connection: duckdb.DuckDBPyConnection, sql: str) -> str:
    statements = connection.extract_statements(sql)
    if len(statements) != 1 or statements[0].type not in _READING:
        raise QueryError("The door runs one SELECT at a time.", remedy="Send a single SELECT, FROM, SHOW or EXPLAIN.")
    return sql


class _Watch:
    """Interrupts a query whose client has gone or whose time is up."""

    def __init__(self, client: socket.socket, connection: duckdb.DuckDBPyConnection, timeout_s: float) -> None:
        self._client = client
        self._connection = connection
        self._deadline = time.monotonic() + timeout_s
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="duckdb-door-watch", daemon=True)

    def __enter__(self) -> None:
        self._client.settimeout(None)
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._done.wait(0.05):
            if self._gone() or time.monotonic() > self._deadline:
                self._connection.interrupt()

    def _gone(self) -> bool:
        try:
            return self._client.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) == b""
        except BlockingIOError:
            return False
        except OSError:
            return True


# ------------------------------------------------------------------------------------------------------ the client


class Reader(Protocol):
    """What :func:`open_reader` returns; a context manager."""

    def query(self, sql: str) -> pa.Table:
        """The result of one SELECT.

        Raises:
            QueryError: DuckDB refused it; says why.
            Unavailable: the engine closed the door.
        """

    def batches(self, sql: str) -> Iterator[pa.RecordBatch]:
        """The same, batch by batch, in constant memory. Exhaust it before the next query, or close the reader."""

    def cut(self) -> None:
        """End what another thread reads, with an error there."""

    def close(self) -> None: ...
    def __enter__(self) -> Reader: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class _Closing:
    def close(self) -> None:
        raise NotImplementedError

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _DoorReader(_Closing):
    """Queries through the engine's door."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection

    def query(self, sql: str) -> pa.Table:
        """The result of one SELECT, as the engine's last committed work left it."""
        with self._answered(sql) as stream:
            return stream.read_all()

    def batches(self, sql: str) -> Iterator[pa.RecordBatch]:
        """The result of one SELECT, batch by batch."""
        with self._answered(sql) as stream:
            yield from stream

    @contextlib.contextmanager
    def _answered(self, sql: str) -> Iterator[ipc.RecordBatchStreamReader]:
        answer = _Answer(self._socket)
        try:
            _send(self._socket, _QUERY, sql.encode())
            yield ipc.open_stream(pa.PythonFile(answer, mode="r"))
            answer.finish()
        except (OSError, EOFError, pa.ArrowInvalid) as error:
            if answer.error is not None:
                raise QueryError(answer.error) from None
            raise Unavailable(
                "The engine closed the query door.",
                remedy="Open the reader again; without an engine it reads the file.",
            ) from error

    def cut(self) -> None:
        """End what is being read: the engine sees that nobody listens any more."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Close the socket. Idempotent."""
        self._socket.close()


class _Answer(io.RawIOBase):
    """A readable file of the data frames that come in."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._left = b""
        self._ended = False
        self.error: str | None = None

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1, /) -> bytes:
        parts, missing = [], size if size >= 0 else 1 << 62
        while missing and (self._left or self._next()):
            part, self._left = self._left[:missing], self._left[missing:]
            parts.append(part)
            missing -= len(part)
        return b"".join(parts)

    def _next(self) -> bool:
        if self._ended:
            return False
        kind, data = _receive(self._connection)
        if kind == _ERROR:
            self._ended, self.error = True, data.decode(errors="replace")
            raise EOFError
        self._ended, self._left = kind == _END, data
        return not self._ended

    def finish(self) -> None:
        """Take what is left up to the end frame, so that the next query starts clean."""
        while self._next():
            self._left = b""


class _FileReader(_Closing):
    """Queries the file itself, which no engine has open."""

    def __init__(self, connection: duckdb.DuckDBPyConnection) -> None:
        self._connection = connection

    def query(self, sql: str) -> pa.Table:
        """The result of one SELECT."""
        try:
            statement = _single_select(self._connection, sql)
            return _interruptible(self._connection, lambda: self._connection.sql(statement).to_arrow_table())
        except duckdb.Error as error:
            raise QueryError(str(error)) from error

    def batches(self, sql: str) -> Iterator[pa.RecordBatch]:
        """The result of one SELECT, batch by batch."""
        try:
            yield from read_batches(self._connection.sql(_single_select(self._connection, sql)).to_arrow_reader(_ROWS))
        except duckdb.Error as error:
            raise QueryError(str(error)) from error

    def cut(self) -> None:
        """End what is being read."""
        self._connection.interrupt()

    def close(self) -> None:
        """Close the file, so that an engine can open it. Idempotent."""
        self._connection.close()


class Deadline:
    """Cuts a reader off when ``seconds`` are over before the block is; ``passed`` says whether."""

    def __init__(self, reader: Reader, seconds: float) -> None:
        self._reader, self._seconds = reader, seconds
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="query-deadline", daemon=True)
        self.passed = False

    def _watch(self) -> None:
        if not self._done.wait(self._seconds):
            self.passed = True
            # More than once: DuckDB misses an interrupt that comes between two steps.
            while not self._done.wait(0.05):
                self._reader.cut()

    def __enter__(self) -> Deadline:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()


def _interruptible(connection: duckdb.DuckDBPyConnection, work: Callable[[], T]) -> T:
    """Work done by another thread while this one can hear Ctrl-C: DuckDB itself does not always notice it, and raises
    a RuntimeError where it does. One call of its interrupt() can be missed too, between two steps of a query."""
    with ThreadPoolExecutor(1, thread_name_prefix="duckdb-query") as pool:
        running = pool.submit(work)
        try:
            return running.result()
        except KeyboardInterrupt:
            while not running.done():
                connection.interrupt()
                wait([running], 0.05)
            raise


def open_reader(path: Path | str) -> Reader:
    """A reader of the DuckDB file at ``path``: through the engine's door while one runs, else the file, read-only.

    Close it soon when there is no engine: while the file is open for reading, an engine can't start.

    Raises:
        Misconfigured: there is no such file, it can't be read, or its engine runs without a door.
    """
    path = Path(path).expanduser().resolve()
    door = socket_path(path)
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.connect(str(door))
    except OSError:
        # No engine, or one that was killed and left its socket behind.
        connection.close()
        return _open_file(path)
    return _DoorReader(connection)


def _open_file(path: Path) -> _FileReader:
    if not path.exists():
        raise Misconfigured(f"There is no DuckDB file {path}.", remedy="Correct the path, or start the engine first.")
    try:
        connection = duckdb.connect(str(path), read_only=True, config={"enable_external_access": False})
        connection.execute("set TimeZone = 'UTC'")  # as the engine's sessions, whatever zone this machine is in
        return _FileReader(connection)
    except duckdb.Error as error:
        text = str(error)
        if "lock" in text or "different configuration" in text:
            raise Misconfigured(
                f"The DuckDB file {path} is open in another process that has no query door.",
                remedy="Set the target's door to true, or end that process.",
            ) from error
        raise Misconfigured(f"The DuckDB file {path} cannot be read: {text.splitlines()[0]}") from error
