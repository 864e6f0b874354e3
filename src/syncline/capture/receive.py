"""The receiving thread of a WAL capture: it reads, groups, hands on, and answers the server. Nothing else.

Messages stay raw bytes here; decoding happens in the capture's own thread. A slow log or target only fills the mailbox;
this thread goes on answering, so the server never drops the connection for silence.
"""

from __future__ import annotations

import os
import select
import socket
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any

import psycopg2

from syncline.capture.assemble import ROW_KINDS, Assembler, Chunk
from syncline.capture.source import SourceConfig, translate
from syncline.errors import Gap, SynclineError, defect

__all__ = ["Mailbox", "Receiver"]

_UNDEFINED = "42704"  # SQLSTATE of an object that there is not

# Below the first rate (rows/s) changes are handed on at once; from the second one on, linger_s applies whole.
_CALM_RATE, _FLOOD_RATE = 5_000.0, 50_000.0
_TICK_S = 0.2
# Waking up for every message costs both sides more than the message does: in a flood the socket fills for this long.
_NAP_S = 0.002
# On one machine the server hands every message through the whole network stack at once while the window is open; a
# small window lets them gather. Elsewhere the window must be as large as the way is long: the system decides.
_LOCAL_WINDOW_BYTES = 64 * 1024


def _go_together(one: Chunk, other: Chunk) -> bool:
    return one.part is None and other.part is None and one.origin == other.origin


class Mailbox:
    """Chunks on their way from the receiver to the decoder, bounded in bytes (Guarantee 10)."""

    def __init__(self, max_bytes: int) -> None:
        self._chunks: deque[Chunk] = deque()
        self._bytes = 0
        self._max_bytes = max_bytes
        self._changed = threading.Condition()
        self._error: SynclineError | None = None
        self._closed = False

    def put(self, chunk: Chunk, wait_s: float) -> bool:
        """Hand a chunk on; False when there was no room within ``wait_s``."""
        with self._changed:
            if not self._changed.wait_for(lambda: self._has_room(chunk), wait_s):
                return False
            self._chunks.append(chunk)
            self._bytes += chunk.nbytes
            self._changed.notify_all()
            return True

    def _has_room(self, chunk: Chunk) -> bool:
        return self._closed or not self._bytes or self._bytes + chunk.nbytes <= self._max_bytes

    def take(self, max_bytes: int) -> list[Chunk]:
        """Wait for chunks, then all of one origin that are there up to ``max_bytes`` (a part comes alone). Empty after
        close.

        Raises:
            SynclineError: the receiver failed; everything it had received before has been taken.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._chunks or self._error or self._closed)
            if self._closed:
                return []
            if not self._chunks and self._error:
                raise self._error
            taken = [self._chunks.popleft()]
            size = taken[0].nbytes
            while self._chunks and _go_together(taken[-1], self._chunks[0]):
                size += self._chunks[0].nbytes
                if size > max_bytes:
                    size -= self._chunks[0].nbytes
                    break
                taken.append(self._chunks.popleft())
            self._bytes -= size
            self._changed.notify_all()
            return taken

    def fail(self, error: SynclineError) -> None:
        """Let ``take`` raise once it is empty."""
        with self._changed:
            self._error = error
            self._changed.notify_all()

    def close(self) -> None:
        """Wake everybody; nothing more is taken."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()


class Receiver:
    """Reads one replication stream into a mailbox.

    Confirming (Guarantee 1): the place told to the server stays below the start of the last message received. psycopg2
    moves its flush position to any keepalive's by itself once the last message is confirmed; the server would then hold
    a confirmed place that the log never recorded, and a restart could not tell that from a slot that somebody moved by
    hand. The price is a walsender that never sees itself confirmed to the last byte and would delay the server's
    shutdown; it is paid by hanging up when the source says good-bye (``Heartbeat`` in ``wal``).
    """

    def __init__(self, config: SourceConfig, connection: Any, mailbox: Mailbox, status_s: float) -> None:
        self._config = config
        self._connection = connection
        self._cursor = connection.cursor()
        _narrow_if_local(connection.fileno())
        self._poll = select.poll()  # select() stops at file descriptor 1023, and we may be a guest in a large process
        self._poll.register(connection.fileno(), select.POLLIN)
        self._mailbox = mailbox
        self._status_s = max(1.0, status_s)
        self._assembler = Assembler(config.max_entry_bytes)
        self._posted = time.monotonic()
        self._rate = 0.0
        self._place = 0
        self._confirmed = 0
        self._last_start = 0
        self._stop = threading.Event()
        self._interrupted: SynclineError | None = None
        self._thread = threading.Thread(target=self._run, name="receive", daemon=True)

    def start(self, slot: str, after: int, options: dict[str, str]) -> None:
        """Begin streaming behind ``after`` (a commit boundary that is durable in the log)."""
        self._place = self._confirmed = after
        self._cursor.start_replication(
            slot_name=slot, start_lsn=after, decode=False, options=options, status_interval=self._status_s
        )
        self._thread.start()

    def confirm(self, place: int) -> None:
        """Note what is durable; told to the server with the next status message. Any thread."""
        self._confirmed = max(self._confirmed, place)

    def interrupt(self, error: SynclineError) -> None:
        """End the stream with this error. Any thread."""
        self._interrupted = error
        self._stop.set()

    def close(self) -> None:
        """End the thread and the connection."""
        self._stop.set()
        self._mailbox.close()
        if self._thread.is_alive():
            self._thread.join(10)
        if not self._connection.closed:
            self._connection.close()

    # ---------------------------------------------------------------------------------------------------- the thread

    def _run(self) -> None:
        try:
            while not self._stop.is_set():
                self._idle(received=self._read())
            if self._interrupted:
                self._mailbox.fail(self._interrupted)
        except SynclineError as error:
            self._mailbox.fail(error)
        except (psycopg2.Error, OSError) as error:
            self._mailbox.fail(self._translated(error))
        except Exception as error:  # noqa: BLE001 - the capture must stop on a defect, never wait for a dead thread
            self._mailbox.fail(defect("The receiving thread", error))
        finally:
            self._connection.close()

    def _translated(self, error: BaseException) -> SynclineError:
        """A publication that was dropped can't be put back for what waits in the WAL: it is decoded as of then."""
        failure = translate(error, self._config.replication)
        if getattr(error, "pgcode", None) != _UNDEFINED or "publication" not in failure.message:
            return failure
        return Gap(
            f"Publication {self._config.publication} was dropped, so changes that wait in the WAL can't be decoded.",
            remedy="Run `syncline resync` to read the tables again, or set on_gap: resync.",
        )

    def _read(self) -> bool:
        """Take messages until the socket is empty; False if it was. The loop costs about a microsecond a row: keep it
        bare."""
        read = self._cursor.read_message
        assembler = self._assembler
        append: Callable[[bytes], None]
        head, room, received = b"", assembler.room, False
        while (message := read()) is not None:
            payload = message.payload
            if payload[0] in ROW_KINDS:
                if payload[1:5] != head:
                    head = payload[1:5]
                    append = assembler.switch(head)
                append(payload)
                room -= len(payload)
                if room > 0:
                    continue
                assembler.room = room
                for chunk in assembler.cut():
                    self._post(chunk)
            else:
                assembler.room = room
                self._last_start = message.data_start
                if before := assembler.control(payload):
                    self._post(before)
                if assembler.complete:
                    self._boundary()
            head, room = b"", assembler.room
            received = True
            if self._stop.is_set():
                return True
        assembler.room = room
        if head:
            assembler.pause()
        return received or bool(head)

    def _boundary(self) -> None:
        """Behind a commit: hand on what is full, and every finished large transaction."""
        chunk = self._assembler.chunk
        used = self._config.max_entry_bytes - self._assembler.room
        if chunk.part is not None or used >= self._config.batch_bytes or chunk.rows >= self._config.batch_rows:
            self._post(self._assembler.take())

    def _idle(self, *, received: bool) -> None:
        """The socket is empty: hand on what waited long enough, answer the server, wait for more."""
        self._feedback()
        wait = _TICK_S
        if self._assembler.complete:
            wait = self._linger() - (time.monotonic() - self._posted)
            if wait <= 0:
                self._post(self._assembler.take())
                return
        elif not self._assembler.in_transaction and self._cursor.wal_end > self._place:
            self._progress()
        if received and self._rate >= _FLOOD_RATE:
            time.sleep(min(wait, _NAP_S))
        else:
            self._poll.poll(min(wait, _TICK_S) * 1000)

    def _progress(self) -> None:
        """A keepalive moved on while nothing was in flight: a marker, coalesced (correctness rule 12)."""
        if time.monotonic() - self._posted >= self._config.heartbeat_s:
            self._post(Chunk(place=self._cursor.wal_end))

    def _linger(self) -> float:
        """How long to wait for a fuller chunk: nothing while calm, ``linger_s`` in a flood."""
        share = (self._rate - _CALM_RATE) / (_FLOOD_RATE - _CALM_RATE)
        return self._config.linger_s * min(1.0, max(0.0, share))

    def _post(self, chunk: Chunk) -> None:
        now = time.monotonic()
        rate = chunk.rows / max(now - self._posted, 1e-3)
        self._rate, self._posted = (self._rate + rate) / 2, now
        self._place = max(self._place, chunk.place)
        while not self._mailbox.put(chunk, self._status_s / 2):
            self._feedback(force=True)
            if self._stop.is_set():
                return

    def _feedback(self, *, force: bool = False) -> None:
        flush = min(self._confirmed, self._last_start - 1)
        if flush > 0:
            self._cursor.send_feedback(flush_lsn=flush, force=force)
        elif force:
            self._cursor.send_feedback(force=True)


def _narrow_if_local(descriptor: int) -> None:
    """Make the receive window small where the server is on this machine."""
    with socket.socket(fileno=os.dup(descriptor)) as line:
        try:
            peer = line.getpeername() if line.family in (socket.AF_INET, socket.AF_INET6) else ("",)
        except OSError:
            return  # the server has hung up already: the first thing asked of it says so
        if peer[0] == "::1" or peer[0].startswith("127."):
            line.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _LOCAL_WINDOW_BYTES)
