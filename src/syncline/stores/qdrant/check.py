"""What stands in the way of a Qdrant target, found without changing anything: the contract's optional ``check``."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from syncline.errors import Misconfigured, SynclineError
from syncline.finding import Finding, Severity, size
from syncline.stores.qdrant.books import note_of
from syncline.stores.qdrant.door import socket_path
from syncline.stores.qdrant.names import BOOKS, private_id
from syncline.stores.qdrant.store import QdrantConfig

if TYPE_CHECKING:
    from syncline.stores.qdrant.server import ServerPoints

__all__ = ["check"]

_ROOM = 1 << 30


def check(config: QdrantConfig) -> Iterator[Finding]:
    """The server's reach, version, key and safety, or the folder; findings without a subject."""
    yield from _folder(config, config.path.expanduser().resolve()) if config.path else _server(config)


def _found(code: str, severity: Severity, message: str, remedy: str = "") -> Finding:
    return Finding(code, severity, "", message, remedy)


# ------------------------------------------------------------------------------------------------------------- server


def _server(config: QdrantConfig) -> Iterator[Finding]:
    from syncline.stores.qdrant.server import ServerPoints

    yield from _open_talk(config)
    try:
        points = ServerPoints.connect(config)
    except SynclineError as error:
        yield _found(error.code, "error", error.message, error.remedy)
        return
    try:
        yield from _reached(config, points)
    except SynclineError as error:
        yield _found(error.code, "error", error.message, error.remedy)
    finally:
        points.close()


def _open_talk(config: QdrantConfig) -> Iterator[Finding]:
    if config.api_key and (config.url or "").startswith("http://"):
        yield _found(
            "SL-QDRANT-PLAIN",
            "warning",
            f"The key of Qdrant at {config.place} travels in the clear.",
            "Give the server TLS, and write https:// in the target's url.",
        )


def _reached(config: QdrantConfig, points: ServerPoints) -> Iterator[Finding]:
    note_of(points, BOOKS, private_id("format"))  # whether the key reads at all
    yield _found("SL-QDRANT", "ok", f"Qdrant {points.version()} at {config.place} answers.")
    yield _found(
        "SL-QDRANT-DISK",
        "info",
        "Qdrant acknowledges writes that its operating system has yet to put on the disk: when the server's machine"
        " loses power, the last seconds may be gone. Syncline notices where a collection lost them, and applies them"
        " again from the log.",
    )


# ------------------------------------------------------------------------------------------------------------- folder


def _folder(config: QdrantConfig, path: Path) -> Iterator[Finding]:
    present = next((p for p in (path, *path.parents) if os.path.exists(p)), Path("/"))
    if not os.path.isdir(present):
        yield _found("SL-QDRANT-FOLDER", "error", f"{present} is a file, not a folder.", "Correct the target's path.")
        return
    if not os.access(present, os.W_OK | os.X_OK, effective_ids=True):
        remedy = "Give the user that runs Syncline the right to write there, or set the target's path."
        yield _found("SL-QDRANT-FOLDER", "error", f"The folder {present} can't be written.", remedy)
        return
    free = shutil.disk_usage(present).free
    if free < _ROOM:
        remedy = "Free some space, or set the target's path to another disk."
        yield _found("SL-QDRANT-ROOM", "warning", f"Only {size(free)} are free on the disk of {path}.", remedy)
    yield _state(config, path)


def _state(config: QdrantConfig, path: Path) -> Finding:
    if not (path / "collections").is_dir():
        return _found("SL-QDRANT", "ok", f"{path} is not there yet; `syncline run` creates it.")
    if socket_path(path).exists() and _has_engine(path):
        return _found("SL-QDRANT-OPEN", "info", f"A running engine has {path} open, and lets others read.")
    from syncline.stores.qdrant.edge import EdgePoints

    try:
        EdgePoints.acquire(path).close()
    except Misconfigured as error:
        if error.code == "SL-QDRANT-LOCKED" and not config.door:
            # Without a door nobody can be asked who it is.
            return _found(error.code, "warning", error.message, "If that is not Syncline's engine, end it.")
        return _found(error.code, "error", error.message, error.remedy)
    return _found("SL-QDRANT", "ok", f"{path} can be read and written.")


def _has_engine(path: Path) -> bool:
    from syncline.stores.qdrant.door import DoorPoints

    door = DoorPoints.knock(path)
    if door is None:
        return False
    door.close()
    return True
