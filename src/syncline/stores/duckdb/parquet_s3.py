"""The newest export of a DuckDB copy in an object store that speaks S3, beside the folder that it is made in.

An object is named by its content and never written again; ``manifest.json`` names those of the export, is one object,
and is put last. So whoever reads the manifest, and then the objects that it names, has one export, whenever that is.
"""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import msgspec
from pydantic import BaseModel, ConfigDict, Field, SecretStr
from pydantic import model_validator as validates
from pydantic_core import PydanticCustomError

from syncline.errors import Misconfigured, Unavailable
from syncline.stores.duckdb.parquet_versions import MANIFEST, Manifest

if TYPE_CHECKING:
    from pyarrow.fs import S3FileSystem

__all__ = ["Mirror", "S3Config", "probe"]

_CHUNK = 8 * 1024 * 1024
# What an object of an export is called: the table's folder, and its content. Nothing else is ever removed.
_OURS = re.compile(r"[^/]+/[0-9a-f]{32}\.parquet")
_FORGOTTEN_S = 86_400.0  # objects of an export that was cut off, and that nobody took up again
_CODE = re.compile(r"AWS Error ([A-Z_]+)")
_REFUSED = re.compile(r"ACCESS_DENIED|INVALID|SIGNATURE|TOKEN|CLIENT_ID|NO_SUCH_BUCKET|UNRECOGNIZED|FORBIDDEN")


class S3Config(BaseModel):
    """Where the exports go in an object store."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    bucket: str = Field(pattern=r"^[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]$", description="Bucket, which has to be there.")
    prefix: str = Field(
        "", pattern=r"^([^/\s][^\s]*[^/\s]|[^/\s]?)$", description="Folder in it, without slash at its ends."
    )
    endpoint: str | None = Field(
        None, pattern=r"^https?://[^/@\s]+$", description="Address of a store that is not AWS: https://host:port."
    )
    region: str | None = Field(None, description="Region; null: that of AWS's own settings.")
    access_key: SecretStr | None = Field(None, description="Access key; null: the login of AWS's own settings.")
    secret_key: SecretStr | None = Field(None, description="Its secret.")

    @validates(mode="after")
    def _has_both_keys(self) -> S3Config:
        if (self.access_key is None) != (self.secret_key is None):
            raise PydanticCustomError("half_login", "access_key and secret_key go together")
        return self

    @property
    def place(self) -> str:
        """Bucket and prefix."""
        return f"{self.bucket}/{self.prefix}".rstrip("/")

    @property
    def server(self) -> str:
        """Who has the bucket, for messages."""
        return self.endpoint or ("AWS S3" if self.region is None else f"AWS S3 in {self.region}")


class _Published(msgspec.Struct, frozen=True):
    """The manifest there. ``replaced``: objects of exports before, with the time from which on none names them."""

    made: float
    sources: dict[str, int]
    tables: dict[str, list[Any]]
    older: dict[str, float] = {}
    replaced: dict[str, float] = {}


class Mirror:
    """Brings exports to the object store. Used by one thread at a time; ``go_on`` raises what ends it early."""

    def __init__(self, config: S3Config, keep_s: float, go_on: Callable[[], None]) -> None:
        self._config = config
        self._keep_s = keep_s
        self._go_on = go_on
        self._open: S3FileSystem | None = None
        self._names: dict[tuple[str, int, int], str] = {}  # of files by name, size and time: what they hold

    def bring(self, folder: Path, manifest: Manifest) -> bool:
        """Have the export in ``folder`` (its ``current``) there too; whether anything had to be done.

        Raises:
            Unavailable: the store is away.
            Misconfigured: it refuses the login, or has no such bucket.
        """
        with _told(self._config):
            before = self._published()
            if before is not None and before.made == manifest.made:
                return False
            there = self._there()
            objects = {part.file: self._object(folder / part.file) for part in _parts(manifest)}
            kept = set(objects.values())
            self._names = {key: name for key, name in self._names.items() if name in kept}
            for file, name in objects.items():
                if there.get(name, (None, 0.0))[0] != (folder / file).stat().st_size:  # one that was cut off is shorter
                    self._put(name, folder / file)
            replaced = self._replaced(before, set(objects.values()))
            tables = {
                table: [msgspec.structs.replace(part, file=objects[part.file]) for part in parts]
                for table, parts in manifest.tables.items()
            }
            now = _Published(manifest.made, manifest.sources, dict(tables), manifest.older, replaced)
            self._write(MANIFEST, msgspec.json.format(msgspec.json.encode(now)))
            self._expire(there, {*objects.values(), *replaced}, set(before.replaced) if before else set())
        return True

    def _replaced(self, before: _Published | None, current: set[str]) -> dict[str, float]:
        """What readers of an export before may still want."""
        if before is None:
            return {}
        now = time.time()
        gone = {part["file"] for parts in before.tables.values() for part in parts} - current
        kept = {name: at for name, at in before.replaced.items() if name not in current and now - at < self._keep_s}
        return kept | {name: now for name in gone if name not in kept}

    def _expire(self, there: Mapping[str, tuple[int, float]], named: set[str], former: set[str]) -> None:
        """Remove what the manifest does not name any more; objects that none ever named once they are a day old."""
        old = time.time() - max(self._keep_s, _FORGOTTEN_S)
        for name, (_, at) in there.items():
            if name not in named and (name in former or at < old):
                self._go_on()
                self._fs.delete_file(self._path(name))

    def _object(self, file: Path) -> str:
        """The name of the object that holds what the file does."""
        stat = file.stat()
        key = (str(file), stat.st_size, stat.st_mtime_ns)
        if key not in self._names:
            self._go_on()
            with file.open("rb") as opened:
                digest = hashlib.file_digest(opened, "sha256").hexdigest()[:32]
            self._names[key] = f"{file.parent.name}/{digest}.parquet"
        return self._names[key]

    def _put(self, name: str, file: Path) -> None:
        with file.open("rb") as source, self._fs.open_output_stream(self._path(name)) as out:
            while chunk := source.read(_CHUNK):
                self._go_on()
                out.write(chunk)

    def _write(self, name: str, body: bytes) -> None:
        with self._fs.open_output_stream(self._path(name)) as out:
            out.write(body)

    def _published(self) -> _Published | None:
        """The manifest there; None without a readable one."""
        try:
            with self._fs.open_input_stream(self._path(MANIFEST)) as opened:
                found = msgspec.json.decode(opened.read(), type=_Published)
        except (FileNotFoundError, msgspec.DecodeError):
            return None
        return found

    def _there(self) -> dict[str, tuple[int, float]]:
        """The objects of exports there: size, and when they were put."""
        from pyarrow.fs import FileSelector, FileType

        root = self._config.place
        found = self._fs.get_file_info(FileSelector(root, allow_not_found=True, recursive=True))
        files = [(info.path.removeprefix(f"{root}/"), info) for info in found if info.type == FileType.File]
        return {name: (info.size, info.mtime.timestamp()) for name, info in files if _OURS.fullmatch(name)}

    def _path(self, name: str) -> str:
        return f"{self._config.place}/{name}"

    @property
    def _fs(self) -> S3FileSystem:
        if self._open is None:
            self._open = _connected(self._config)
        return self._open


def probe(config: S3Config) -> None:
    """Put a small object beside the exports and remove it again: nothing less tells whether they can be brought.

    Raises:
        Unavailable, Misconfigured: as ``Mirror.bring``.
    """
    name = f"{config.place}/.syncline-{uuid4().hex}"
    with _told(config):
        files = _connected(config)
        with files.open_output_stream(name) as out:
            out.write(b"syncline doctor")
        files.delete_file(name)


def _connected(config: S3Config) -> S3FileSystem:
    from pyarrow.fs import AwsStandardS3RetryStrategy, S3FileSystem

    scheme, _, host = (config.endpoint or "https://").partition("://")
    return S3FileSystem(
        access_key=config.access_key and config.access_key.get_secret_value(),
        secret_key=config.secret_key and config.secret_key.get_secret_value(),
        region=config.region,
        endpoint_override=host or None,
        scheme=scheme,
        background_writes=False,
        connect_timeout=5,
        request_timeout=30,
        retry_strategy=AwsStandardS3RetryStrategy(max_attempts=2),
    )


def _parts(manifest: Manifest) -> Iterator[Any]:
    for parts in manifest.tables.values():
        yield from parts


@contextmanager
def _told(config: S3Config) -> Iterator[None]:
    """Raise what the object store says as ours: its code, without the rest of its text."""
    try:
        yield
    except OSError as error:
        code = _CODE.search(str(error))
        said = code[1] if code else type(error).__name__
        where = f"Parquet files can't be brought to bucket {config.bucket} at {config.server}"
        if _REFUSED.search(said):
            remedy = "See to the bucket, and to the login (parquet.s3) and its right to list, put and delete objects."
            raise Misconfigured(f"{where}: {said}.", remedy=remedy, code="SL-PARQUET") from error
        remedy = (
            "They stay in their folder, and are brought once it answers: see that it runs and can be reached from here,"
            " and that the target's parquet.s3.endpoint (null: AWS, by its region) is right."
        )
        raise Unavailable(f"{where}: {said}.", remedy=remedy, code="SL-PARQUET") from error
