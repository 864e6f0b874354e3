"""An object store that speaks S3: S3Proxy (Apache-2.0) on a folder, from Maven Central. Never shipped."""

from __future__ import annotations

import http.client
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from neo4j_server import POMS, find_java
from syncline.embedded import maven
from syncline.embedded.account import ourselves
from syncline.embedded.kept import made_once, servers_folder
from syncline.embedded.server import EmbeddedServer

ACCESS_KEY, SECRET_KEY = "syncline-tests", "a secret of the tests"


def fetch_s3proxy() -> Path:
    """The folder with its jars, fetched if they aren't here yet."""
    return made_once(servers_folder(), "s3proxy-4.1.0", lambda work: maven.copy_runtime(POMS / "s3proxy.xml", work))


class S3Proxy(EmbeddedServer):
    """One server with a bucket ``exports``. Use :meth:`start`; leaving its context stops it."""

    name: ClassVar[str] = "S3Proxy"
    port_taken: ClassVar[str] = "Address already in use"
    start_timeout_s: ClassVar[float] = 120.0

    def __init__(self, data_dir: Path) -> None:
        super().__init__(data_dir, ourselves())
        self._jars = fetch_s3proxy()
        self._java = find_java(17)

    @classmethod
    def start(cls, data_dir: Path) -> S3Proxy:
        server = cls(Path(data_dir).absolute())
        (server.data_dir / "buckets" / "exports").mkdir(mode=0o700, parents=True, exist_ok=True)
        server._launch(fresh_ports=5)
        return server

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def _command(self) -> Sequence[str | Path]:
        settings = {
            "s3proxy.endpoint": self.endpoint,
            "s3proxy.authorization": "aws-v2-or-v4",
            "s3proxy.identity": ACCESS_KEY,
            "s3proxy.credential": SECRET_KEY,
            "jclouds.provider": "filesystem-nio2",
            "jclouds.identity": "nobody",  # it asks for a login of the folder, too
            "jclouds.credential": "nothing",
            "jclouds.filesystem.basedir": str(self.data_dir / "buckets"),
        }
        file = self.data_dir / "s3proxy.conf"
        file.write_text("".join(f"{name}={value}\n" for name, value in settings.items()))
        return [self._java, "-Xmx256m", "-cp", f"{self._jars}/*", "org.gaul.s3proxy.Main", "--properties", file]

    def _ready(self) -> bool:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
        try:
            connection.request("GET", "/")
            return connection.getresponse().status == 403  # nobody without a key
        finally:
            connection.close()
