"""A process that has imported everything and forks an engine for each line it reads, which then starts at once.

It says the engine's process id, and once a line says that it was killed, that it has gone.
"""

from __future__ import annotations

import os
import sys

import duckdb  # noqa: F401 - imported before the fork, as the rest is
import psycopg2  # noqa: F401

import syncline.capture.stream.source
import syncline.stores.duckdb.store
import syncline.stores.postgres.store  # noqa: F401
from syncline.config import load_config
from syncline.pipeline import SyncService


def main() -> None:
    for _ in sys.stdin:
        pid = os.fork()
        if not pid:
            service = SyncService(load_config())
            service.start()
            service.wait()
            os._exit(1)
        print(pid, flush=True)
        sys.stdin.readline()
        os.waitpid(pid, 0)
        print("gone", flush=True)


main()
