"""The Qdrant store: works applied batch by batch under the version guard, and the cursor behind them.

Qdrant has no transactions. ``apply`` writes the rows of each table, waits until they are durable, and writes the cursor
last; killed in between, the same work comes again and the guard makes that harmless. So readers may see a part of a
work, which :class:`~syncline.stores.Limits` declares.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import msgspec
import pyarrow as pa
from pydantic import BaseModel, ConfigDict, Field, SecretStr, field_validator, model_validator
from pydantic_core import PydanticCustomError

from syncline.change import Cursor, TableSchema
from syncline.errors import Misconfigured
from syncline.stores import Limits, Work
from syncline.stores.qdrant.books import Books, Marker
from syncline.stores.qdrant.names import DELETED, KEY, VERSION, collection_of
from syncline.stores.qdrant.points import Points, Refused, Stored, Which, scroll
from syncline.stores.qdrant.reading import fetch_rows, scan_rows
from syncline.stores.qdrant.rows import key_ids, rows_of
from syncline.stores.qdrant.statements import requests
from syncline.stores.qdrant.tables import TableState, migrate_table, table_state
from syncline.stores.qdrant.writing import Writer

if TYPE_CHECKING:
    from syncline.finding import Finding
    from syncline.stores.qdrant.copy import QdrantCopy

__all__ = ["QdrantConfig", "QdrantStore", "connect"]


_PAGE = 500
_GUARDED = (VERSION, DELETED)


class QdrantConfig(BaseModel):
    """A Qdrant server (``url``), or Qdrant Edge in a folder of this machine (``path``)."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    environment_names: ClassVar[dict[str, str]] = {"QDRANT_URL": "url", "QDRANT_API_KEY": "api_key"}

    url: str | None = Field(None, description="Address of a server, such as http://localhost:6333.")
    api_key: SecretStr | None = Field(None, description="Key of the server.")
    grpc: bool = Field(False, description="Speak gRPC instead of REST for points.")
    grpc_port: int = Field(6334, ge=1, le=65535, description="Port of the server's gRPC.")
    timeout_s: int = Field(60, ge=1, le=3600, description="Seconds after which the server counts as away.")
    path: Path | None = Field(
        None,
        description="Folder of an embedded Qdrant (Qdrant Edge), created if missing.",
        examples=["analytics.qdrant"],
    )
    batch_bytes: int = Field(
        8 * 1024 * 1024, ge=65536, description="About how much is sent in one request; servers take 32 MiB by default."
    )
    door: bool = Field(True, description="Let other processes read the folder while the engine runs (a Unix socket).")

    @field_validator("url", mode="before")
    @classmethod
    def _holds_no_login(cls, url: object) -> object:
        """It is shown in messages (Guarantee 11), and Qdrant takes no login but its key."""
        if "@" in str(url):
            raise PydanticCustomError("login", "must hold no user or password: the server's key is api_key")
        return url

    @model_validator(mode="after")
    def _has_one_place(self) -> QdrantConfig:
        if (self.url is None) == (self.path is None):
            raise ValueError("give either url (a server) or path (a folder of this machine)")
        return self

    def copy_place(self) -> str:
        return os.path.realpath(self.path.expanduser()) if self.path is not None else (self.url or "").rstrip("/")

    @property
    def place(self) -> str:
        """What to call it in messages."""
        return str(self.path) if self.path is not None else self.url or ""


def connect(config: QdrantConfig) -> Points:
    """The points of the configured server or folder.

    Raises:
        Unavailable: the server does not answer.
        Misconfigured: it is too old, it refuses the key, or the folder can't be used.
    """
    if config.path is not None:
        from syncline.stores.qdrant.process import ProcessPoints

        return ProcessPoints.acquire(config.path, door=config.door)
    from syncline.stores.qdrant.server import ServerPoints

    return ServerPoints.connect(config)


class QdrantStore:
    """The contract of :class:`syncline.stores.Store` in collections of Qdrant.

    A table's rows are points of one collection; what else is in there is said in docs/stores/qdrant.md.
    """

    config_class = QdrantConfig
    form = "points"
    limits = Limits(transactional=False, max_rows=20_000, max_bytes=32 * 1024 * 1024, load_rows=20_000)

    def __init__(self, config: QdrantConfig, name: str) -> None:
        self.config = config
        self.name = name
        self._points_: Points | None = None
        self._books_: Books | None = None
        self._source = ""
        self._states: dict[str, TableState] = {}
        self._lock = threading.RLock()

    @staticmethod
    def reader(config: QdrantConfig) -> QdrantCopy:
        """A read-only look, through the engine's door where a folder is open. Raises as :func:`connect`."""
        from syncline.stores.qdrant.copy import QdrantCopy

        return QdrantCopy(config)

    @staticmethod
    def statements(schema: TableSchema) -> list[str]:
        """What a row of the table becomes, to be shown to people. Raises ``Misconfigured`` as :meth:`migrate`."""
        return list(requests(schema))

    @staticmethod
    def check(config: QdrantConfig) -> Iterator[Finding]:
        """What stands in the way of the server or the folder, for `syncline doctor`. Changes nothing."""
        from syncline.stores.qdrant.check import check

        return check(config)

    def _connect(self) -> Points:
        return connect(self.config)

    # ------------------------------------------------------------------------------------------ open and close

    def open(self, source: str) -> Cursor | None:
        """Connect, prepare the bookkeeping, and return the durable cursor of ``source``.

        Where a collection is behind it (put back from a snapshot, or robbed of its last writes by a crash of the
        machine), the cursor is that of the collection.

        Raises:
            Misconfigured, Unavailable: as :func:`connect`.
            Gap: a folder's bookkeeping is damaged.
        """
        self.close()
        self._points_ = self._connect()
        try:
            self._source = source
            with self._writing():
                self._books_ = Books(self._points_, source)
            return self._books_.cursor()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Disconnect. Idempotent."""
        self._states.clear()
        points, self._points_, self._books_ = self._points_, None, None
        if points is not None:
            points.close()

    @property
    def _points(self) -> Points:
        if self._points_ is None:
            raise Misconfigured(f"Target {self.name} is not open.")
        return self._points_

    @property
    def _books(self) -> Books:
        if self._books_ is None:
            raise Misconfigured(f"Target {self.name} is not open.")
        return self._books_

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """One writer at a time.

        Raises:
            Misconfigured: Qdrant refuses a write for which no row is to blame.
        """
        with self._lock:
            try:
                yield
            except Refused as error:
                raise Misconfigured(
                    f"Qdrant at {self.config.place} refuses what Syncline notes there ({error}).",
                    remedy="Undo what was changed by hand, or remove the collections and run `syncline resync`.",
                ) from error

    # ------------------------------------------------------------------------------------------ migrate and apply

    def migrate(self, schema: TableSchema) -> TableSchema | None:
        """Make the table's collection fit; see the contract.

        Raises:
            Misconfigured: a vector does not fit what is there, or another table or source has the collection.
        """
        with self._writing():
            state, former = migrate_table(self._points, self._books, self._source, schema)
            self._states[schema.qualified] = state
        return former

    def apply(self, work: Work) -> None:
        """Write the work, then its cursor; durable on return (a server's own settings say what that means).

        Not atomic: readers may see a part of a work, and where it fails a part stays, until it is applied again.

        Raises:
            Rejected: values that Qdrant can't hold, or that it refused; others of the same work may be written already.
            Unavailable, Misconfigured: as the contract says.
        """
        with self._writing():
            writers = [
                Writer(self._points, self._state(t.schema), t.truncated, self.config.batch_bytes) for t in work.tables
            ]
            # Floods of whole rows are made into points while the ones before are written, all else before anything is.
            rows = [
                None if writer.streams(t.rows) else rows_of(t.schema, t.rows)
                for writer, t in zip(writers, work.tables, strict=True)
            ]
            stamp = self._books.next_stamp()
            settled = {}
            for writer, found, table in zip(writers, rows, work.tables, strict=True):
                notes = (
                    writer.stream(table.rows, work.cursor, stamp)
                    if found is None
                    else writer.write(found, work.cursor, stamp)
                )
                settled[writer.state.collection] = notes
            if writers:
                self._points.sync([writer.state.collection for writer in writers])
            self._books.write_cursor(work.cursor, [t.schema.qualified for t in work.tables])
            for collection, notes in settled.items():
                if notes:
                    # The rows are durable: what they became is needed no more, that they moved is.
                    self._points.put(collection, notes)

    def _state(self, schema: TableSchema) -> TableState:
        state = self._states.get(schema.qualified)
        if state is None or state.schema != schema:
            state = self._states[schema.qualified] = table_state(self._points, self._books, schema)
        return state

    def forget(self, schema: TableSchema, keys: pa.RecordBatch, above: int) -> None:
        """Points of these keys with a version above ``above`` lose it, tombstones go."""
        collection = collection_of(schema)
        ids = [found for found in key_ids(schema, keys) if found is not None]
        with self._writing():
            for begin in range(0, len(ids), _PAGE):
                seen = self._points.retrieve(collection, ids[begin : begin + _PAGE], vectors=False, only=_GUARDED)
                late = [point for point in seen if int(point.payload.get(VERSION) or 0) > above]
                dead = [point.id for point in late if point.payload.get(DELETED)]
                rows = [point.id for point in late if not point.payload.get(DELETED)]
                if dead:
                    self._points.delete(collection, dead)
                whole = self._points.retrieve(collection, rows, vectors=True) if rows else []
                if whole:
                    self._points.put(collection, [_without_version(point) for point in whole])
            self._forget_marks(schema, above)
            self._points.sync([collection])
        self._states.pop(schema.qualified, None)

    def _forget_marks(self, schema: TableSchema, above: int) -> None:
        collection = collection_of(schema)
        marker = Marker.read(self._points, collection, schema.qualified)
        if marker is not None and max(marker.truncated, marker.horizon) > above:
            truncated, horizon = (v if v <= above else 0 for v in (marker.truncated, marker.horizon))
            marker = msgspec.structs.replace(marker, truncated=truncated, horizon=horizon)
            self._points.put(collection, [marker.point()])

    # ------------------------------------------------------------------------------------------ read and purge

    def fetch(self, schema: TableSchema, keys: pa.RecordBatch) -> pa.Table:
        """The stored rows of these keys. A row without a version has version 0."""
        return fetch_rows(self._points, schema, keys)

    def scan(self, schema: TableSchema) -> Iterator[pa.RecordBatch]:
        """All rows, page by page, each as it is when its page is read. A row without a version has version 0."""
        yield from scan_rows(self._points, schema)

    def purge(self, source: str, below: int) -> int:
        """Note the horizon, then forget tombstones below it."""
        with self._writing():
            tables = [table for table in self._books.tables() if table.source == source]
            try:
                return sum(self._purge(table.schema, table.collection, below) for table in tables)
            finally:
                self._states.clear()  # also where it broke off: the next work must not put an older horizon back

    def _purge(self, schema: TableSchema, collection: str, below: int) -> int:
        if self._points.spec(collection) is None:
            return 0
        marker = Marker.read(self._points, collection, schema.qualified)
        if marker is not None and marker.horizon < below:
            self._points.put(collection, [msgspec.structs.replace(marker, horizon=below).point()])
            self._points.sync([collection])
        forgotten = 0
        for page in scroll(self._points, collection, Which(buried=True, since=0, through=below - 1)):
            self._points.delete(collection, [point.id for point in page])
            forgotten += sum(KEY in point.payload for point in page)
        self._points.sync([collection])
        return forgotten


def _without_version(point: Stored) -> Stored:
    return point._replace(payload={name: value for name, value in point.payload.items() if name != VERSION})
