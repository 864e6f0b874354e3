"""An embedded log in a folder of its own, and ways of damaging it as a disk would."""

from __future__ import annotations

import shutil
import sqlite3
from pathlib import Path

from syncline.log.embedded import EmbeddedLog, EmbeddedLogConfig

_BIG = 8 * 1024**3


class EmbeddedPlace:
    def __init__(self, path: Path, **settings: object) -> None:
        self.settings = {"disk_reserve_bytes": 0, **settings}
        self.path = path
        self.folder = self.config().folder("main")
        self.database = self.folder / "log.sqlite"

    def config(self, max_bytes: int = _BIG) -> EmbeddedLogConfig:
        return EmbeddedLogConfig.model_validate({"path": self.path, "max_bytes": max_bytes, **self.settings})

    def open(self, max_bytes: int = _BIG) -> EmbeddedLog:
        return EmbeddedLog(self.config(max_bytes), "main")

    def wipe(self) -> None:
        shutil.rmtree(self.folder)

    def damage(self, n: int) -> None:
        connection = sqlite3.connect(self.database)
        body, file, offset = connection.execute("select body, file, offset from entry where n = ?", (n,)).fetchone()
        connection.close()
        if file is None:
            stored = self.database.read_bytes()
            assert stored.count(body) == 1
            flip(self.database, stored.index(body) + len(body) // 2)
        else:
            flip(self.folder / f"{file:08d}.bodies", offset + 1000)


def flip(path: Path, offset: int) -> None:
    """Flip one bit of a file."""
    with path.open("r+b") as file:
        file.seek(offset)
        (byte,) = file.read(1)
        file.seek(offset)
        file.write(bytes([byte ^ 0x10]))


def as_after_a_power_cut(place: EmbeddedPlace, path: Path) -> EmbeddedPlace:
    """The log as it would be found if the machine stopped now: a copy of the files of an open log."""
    shutil.copytree(place.path, path)
    return EmbeddedPlace(path, **place.settings)
