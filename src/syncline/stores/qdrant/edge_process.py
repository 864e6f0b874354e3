"""Qdrant Edge in a process of its own: its work and Python's lock are not the engine's, and it can't take the engine
down with it (decision record 0018).

``python -m syncline.stores.qdrant.edge_process PATH DOOR WRITES READS`` serves the folder over two inherited sockets,
one for writes and one for reads, so that readers do not queue behind writers. Its first message says whether the folder
is open. It ends when a socket does, that is with the engine, however that ends.
"""

from __future__ import annotations

import contextlib
import gc
import signal
import socket
import sys
import threading
from collections.abc import Collection
from pathlib import Path
from typing import Any

from syncline.errors import SynclineError, defect
from syncline.stores.qdrant.edge import EdgePoints
from syncline.stores.qdrant.points import Refused
from syncline.stores.qdrant.wire import READS, answer, failure, frame, receive

__all__ = ["main"]

_WRITES = ("create", "drop", "change", "unindex", "upsert", "overwrite", "put", "delete", "newest", "sync")
# A killed engine's process may still be at what it was asked for.
_PATIENCE_S = 10.0


def _serve(points: EdgePoints, line: socket.socket, methods: Collection[str], other: socket.socket) -> None:
    """Answer until the line ends; the other one ends with it."""
    try:
        while True:
            line.sendall(_said(points, methods, receive(line)))
    except (OSError, EOFError):
        return  # the engine has closed it, or was killed
    finally:
        with contextlib.suppress(OSError):
            other.shutdown(socket.SHUT_RD)  # what it is just answering is still sent


def _said(points: EdgePoints, methods: Collection[str], asked: Any) -> bytes:
    try:
        return frame(answer(points, methods, asked))
    except Refused as error:
        return frame({"refused": str(error)})
    except Exception as error:  # noqa: BLE001 (whatever it is, it is the engine that tells of it)
        return frame(failure(defect("The process of Qdrant Edge", error)))


def main(path: str, door: str, *lines: str) -> None:
    """Serve the folder until the engine lets go of it."""
    for name in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(name, signal.SIG_IGN)  # a service manager sends them to the whole group: the engine ends us
    # Each batch makes some thousands of lists and dictionaries and lets go of them all: nothing to look for cycles in.
    gc.set_threshold(100_000)
    writes, reads = (socket.socket(fileno=int(line)) for line in lines)
    try:
        points = EdgePoints.acquire(Path(path), door=door == "1", patience_s=_PATIENCE_S)
    except SynclineError as error:
        writes.sendall(frame(failure(error)))
        return
    writes.sendall(frame({"found": None}))
    reader = threading.Thread(target=_serve, args=(points, reads, READS, writes), name="qdrant-reads", daemon=True)
    reader.start()
    _serve(points, writes, _WRITES, reads)
    reader.join()
    points.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
