"""A process that appends until it is killed, and tells through a pipe what was acknowledged."""

from __future__ import annotations

import itertools
from multiprocessing.connection import Connection
from pathlib import Path

from syncline.change import Entry
from syncline.log.embedded import EmbeddedLog, EmbeddedLogConfig
from syncline.testing import example_batch, example_entry
from syncline.testing.log_suite import parts_of


def config(path: Path) -> EmbeddedLogConfig:
    return EmbeddedLogConfig(path=path, disk_reserve_bytes=0)


def transaction(version: int) -> list[Entry]:
    """Transaction number ``version``: small, large (its body has a file), or in parts."""
    match version % 5:
        case 0:
            return parts_of(version, 3, rows=2000, width=40)
        case 1 | 2:
            return [example_entry(rows=1, version=version)]
        case 3:
            return [example_entry(example_batch(4000, version=version, width=60), version=version)]
        case _:
            return [example_entry(rows=20, version=version)]


def write(path: Path, acknowledged: Connection) -> None:
    log = EmbeddedLog(config(path), "main")
    for version in itertools.count(log.status().max_version + 1):
        for entry in transaction(version):
            log.append([entry])
        acknowledged.send(version)
