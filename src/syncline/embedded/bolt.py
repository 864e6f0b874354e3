"""A graph database that speaks Bolt and Cypher, from the ``arcadedb-embedded`` wheel, which brings its own Java.

It is *compatible with* Neo4j: the official driver talks to it as to a Neo4j 5.26. That is enough to try things; where
the two differ, Neo4j is right.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from syncline.embedded.account import ourselves
from syncline.embedded.kept import wheel_folder
from syncline.embedded.server import EmbeddedServer
from syncline.errors import Misconfigured

__all__ = ["EmbeddedBolt", "answers_cypher"]

INSTALL = "pip install 'syncline[servers]'"
KEY_FILE = "root.key"
# Above what a batch may hold; a message over the server's own limit (16 MB) is never answered.
MAX_MESSAGE_BYTES = 256 << 20

SETTINGS = {
    "server.mode": "development",  # in "production" an error says no more than that there was one
    "txWalFlush": "1",  # and here a commit would not be written to its file
    "server.httpIncomingHost": "127.0.0.1",
    "server.httpIncomingPort": "0",
    "server.plugins": "Bolt:com.arcadedb.bolt.BoltProtocolPlugin",
    "bolt.host": "127.0.0.1",
    "bolt.maxMessageSize": str(MAX_MESSAGE_BYTES),
    "bolt.packstream.maxValueLength": str(MAX_MESSAGE_BYTES),
}
# What its Java code reaches into.
OPENED = ("java.util.concurrent.atomic", "java.nio.channels.spi", "java.lang")


class EmbeddedBolt(EmbeddedServer):
    """One server with one database. Use :meth:`start`; leaving its context stops it.

    ``uri``, ``auth`` and ``database`` are what a driver needs.
    """

    name: ClassVar[str] = "ArcadeDB"
    port_taken: ClassVar[str] = "Address already in use"
    start_timeout_s: ClassVar[float] = 120.0

    def __init__(self, data_dir: Path, heap: str) -> None:
        super().__init__(data_dir, ourselves())
        self.database = "syncline"
        self._heap = heap

    @classmethod
    def start(cls, data_dir: Path, *, heap: str = "512m") -> EmbeddedBolt:
        """Start a server on ``data_dir``, which is made if it is missing or empty, and continued otherwise.

        ``heap`` is the memory for Java's objects, as its ``-Xmx`` takes it.

        Raises:
            Misconfigured: The wheel or the driver is missing, or the server refuses to start.
            Unavailable: It doesn't come up in time.
        """
        _wheel()
        data_dir = Path(data_dir).absolute()
        data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        server = cls(data_dir, heap)
        server._make_password()
        server._launch(fresh_ports=5)
        return server

    @property
    def uri(self) -> str:
        return f"bolt://127.0.0.1:{self.port}"

    @property
    def auth(self) -> tuple[str, str]:
        """User and password. The password is made at the first start, for this server can't do without."""
        return "root", (self.data_dir / KEY_FILE).read_text()

    def _make_password(self) -> None:
        path = self.data_dir / KEY_FILE
        if not path.exists():
            path.touch(mode=0o600)
            path.write_text(secrets.token_urlsafe(24))

    def _command(self) -> Sequence[str | Path]:
        wheel = _wheel()
        settings = {
            **SETTINGS,
            "server.rootPath": str(self.data_dir),
            "server.rootPasswordPath": str(self.data_dir / KEY_FILE),
            "server.defaultDatabases": f"{self.database}[root]",
            "bolt.port": str(self.port),
        }
        return [
            wheel / "jre" / "bin" / "java",
            f"-Xmx{self._heap}",
            "-XX:+UseSerialGC",
            *(f"--add-opens=java.base/{package}=ALL-UNNAMED" for package in OPENED),
            *(f"-Darcadedb.{name}={value}" for name, value in settings.items()),
            "-cp",
            f"{wheel / 'jars'}/*",
            "com.arcadedb.server.ArcadeDBServer",
        ]

    def _ready(self) -> bool:
        return answers_cypher(self.port, self.auth, self.database)


def answers_cypher(port: int, auth: tuple[str, str] | None, database: str) -> bool:
    """Whether a server on a port of this machine answers a Cypher query.

    Raises:
        Misconfigured: Its driver is missing.
    """
    try:
        import neo4j
        from neo4j.exceptions import DriverError, Neo4jError
    except ImportError as error:
        raise Misconfigured("The neo4j driver is missing.", remedy=INSTALL) from error
    try:
        with (
            neo4j.GraphDatabase.driver(f"bolt://127.0.0.1:{port}", auth=auth) as driver,
            driver.session(database=database) as session,
        ):
            session.run("RETURN 1").consume()
    except (Neo4jError, DriverError):
        return False
    return True


def _wheel() -> Path:
    wheel = wheel_folder("arcadedb_embedded")
    if wheel is None or not (wheel / "jre" / "bin" / "java").is_file():
        raise Misconfigured("The wheel of the embedded graph database is missing.", remedy=INSTALL)
    return wheel
