"""Captures turn a source's changes into entries: the contracts, and the lazy table of names.

:class:`Source` is what the engine asks of a way of capturing, :class:`Capture` its stream; both are specifications, and
``syncline.testing`` holds the suite that every stream passes. Adding a way adds one line to :data:`SOURCES`, a class
of settings (of :mod:`~syncline.capture.settings`) and one that keeps to :class:`Source`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, runtime_checkable

from syncline.change import Entry
from syncline.errors import Unavailable

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable

    import pyarrow as pa

    from syncline.capture.outbox.expand import EventParking
    from syncline.capture.runs import RunRecords
    from syncline.capture.settings import SourceSettings
    from syncline.capture.tables import TableInfo
    from syncline.change import Batch, TableSchema
    from syncline.digests import Buckets, Chosen
    from syncline.errors import SynclineError
    from syncline.finding import Finding
    from syncline.mapping import Facts

__all__ = [
    "DEFAULT_SOURCE",
    "IN_USE",
    "LONG_TRANSACTION",
    "PRESSURES",
    "SLOT_BUDGET",
    "SOURCES",
    "SOURCE_OLDER",
    "Again",
    "Capture",
    "Digesting",
    "Identity",
    "LoadProgress",
    "Point",
    "Pressure",
    "Seen",
    "Source",
    "Stream",
]

# type in the configuration -> "module:class"; imported when first used.
SOURCES: dict[str, str] = {
    "postgres": "syncline.capture.postgres:WalSource",
    "triggers": "syncline.capture.triggers.source:TriggerSource",
    "outbox": "syncline.capture.outbox.polled.source:PolledOutboxSource",
    "redis": "syncline.capture.redis.source:RedisSource",
    "stream": "syncline.capture.stream.source:StreamSource",
}
DEFAULT_SOURCE = "postgres"

# Codes that the engine treats in a way of their own: somebody else reads the source's stream; the source was restored
# from a copy that is older than the log.
IN_USE, SOURCE_OLDER = "SL-SLOT-IN-USE", "SL-SOURCE-OLDER"

# Codes of what will hurt before long.
SLOT_BUDGET, LONG_TRANSACTION = "SL-SLOT-BUDGET", "SL-LONG-TRANSACTION"
PRESSURES = (SLOT_BUDGET, LONG_TRANSACTION)


class Again(Unavailable):
    """The stream has to begin again at once, and differently; its source learns of it by :meth:`Source.again`."""


@dataclass(frozen=True, slots=True)
class Identity:
    """Who a source is: a restored, re-initialised or promoted server differs in one of these. ``capture`` tells ways of
    capturing one database apart, and their installations; '' for the WAL."""

    system_identifier: str
    timeline: int
    database: str
    capture: str = ""

    @property
    def stream(self) -> str:
        """Database and way of capturing in one: what a log is of."""
        return f"{self.database} {self.capture}".rstrip()


@dataclass(frozen=True, slots=True)
class Point:
    """A state of the source that can be read, and where it stands among its changes.

    ``number``: what is read contains every change with a native number (a version less its base) below it, and rows
    read there carry ``number - 1`` (correctness rule 3). ``reached``: a target has everything that can be read there
    once its cursor's ``through`` is at ``base + reached``. ``snapshot`` names the state to :meth:`Source.rows`.
    ``target`` is the name of the one that it is read for, where changes name their targets
    (:attr:`SourceSettings.routes`): its rows are those that it was told.
    """

    number: int
    reached: int
    snapshot: str
    target: str = ""


@dataclass(frozen=True, slots=True)
class LoadProgress:
    """How far the load of one table is; ``bytes_total`` is the size of its heap, ``rows`` what was read."""

    table: str
    rows: int
    bytes_done: int
    bytes_total: int


@dataclass(frozen=True, slots=True)
class Seen:
    """How a source's stream looks to somebody beside the engine: ``facts`` as JSON can hold them, their gist in
    ``words``, how many bytes the log is ``behind`` and how many the source retains for it, None if that is unknown."""

    facts: Mapping[str, Any]
    words: str
    behind: int | None = None
    retained: int | None = None


@dataclass(frozen=True, slots=True)
class Pressure:
    """Something at the source that is not wrong yet: its alert's ``code`` (of :data:`PRESSURES`) and ``severity``, the
    ``subject`` below the source, and the words."""

    code: str
    severity: str
    subject: str
    message: str
    remedy: str


class Capture(Protocol):
    """A source's changes as entries, in commit order.

    Order: entries hold whole transactions in the order of their commits (a large one as consecutive parts). Durability:
    the source keeps everything behind the last confirmed place, so a capture that is killed and opened again with
    ``after`` = the last durable place yields every later transaction exactly once. Concurrency: one thread iterates;
    ``confirm`` and ``close`` may be called from any thread.

    Errors: ``Unavailable`` (open it again later), ``Misconfigured`` (a person must act), ``Gap`` (the source no longer
    has what lies behind ``after``), ``Damaged`` (a message is malformed; says at which place).
    """

    def entries(self, after: int) -> Iterator[Entry]:
        """Yield entries behind the place ``after``, blocking for the next; ends only after ``close``."""

    def confirm(self, place: int) -> None:
        """Everything up to ``place`` is durable in the log: the source may forget it (Guarantee 1). Never goes back."""

    def close(self) -> None:
        """Let ``entries`` end soon. Idempotent; confirms nothing."""


class Stream(Capture, Protocol):
    """A capture as the engine runs it: in ``words``, from where it streams and how."""

    @property
    def words(self) -> str: ...

    def widen(self, tables: list[TableInfo]) -> None:
        """Take in tables that came since, or that look different now. Any thread."""


class Source(Protocol):
    """One configured source, as loads, verification, ``doctor`` and ``status`` see it.

    Made of its settings, the name of the control schema, which is never captured, and a folder beside its log for what
    it has to keep itself. Nothing is opened by that; what a method opens, it closes (but :meth:`lag`). Methods may be
    called from any thread, :meth:`lag`, :meth:`pressures` and :meth:`close` from one. All raise ``Unavailable`` while
    the source can't be reached, and ``Misconfigured`` for what a person has to mend. What has no tables in a catalogue
    describes those of its settings as :class:`TableInfo`.
    """

    config_class: ClassVar[type[SourceSettings]]
    seen_as: ClassVar[str]
    """What :meth:`look` looks at, as ``status`` calls it."""

    @property
    def settings(self) -> SourceSettings: ...

    # ------------------------------------------------------------------------------------------------------------- who

    def identify(self) -> Identity:
        """Who it is, to be compared with what a log was captured from."""

    def number(self) -> int:
        """A native number that every change committed up to now is below or at."""

    def preflight(self) -> list[Finding]:
        """What stands in the way of capturing, found without changing anything; ok findings too. Of those of severity
        error, one whose subject is a table leaves that table out."""

    # ---------------------------------------------------------------------------------------------------------- tables

    def names(self) -> list[str]:
        """The tables that its settings choose, by qualified name, whether or not they can be captured."""

    def tables(self) -> list[TableInfo]:
        """The same tables as they are now."""

    def described(self, tables: Sequence[TableInfo]) -> list[TableInfo]:
        """The tables with what :attr:`TableInfo.shape` has of their being captured."""

    def prepare(self, tables: Sequence[TableInfo], talk: Callable[[str], None]) -> list[str]:
        """Have these tables captured; the names of those that were not until now, which have to be read."""

    def facts(self, tables: Sequence[TableInfo]) -> dict[str, Facts]:
        """What mappings want to know of the tables, by qualified name."""

    def passed_over(self) -> set[str]:
        """Tables whose changes are in the stream, wanted or not."""

    def mark(self) -> tuple[Any, ...]:
        """Something that changes when :meth:`tables` or :meth:`described` may have."""

    # ---------------------------------------------------------------------------------------------------------- stream

    def attach(self, identity: Identity, durable: int, talk: Callable[[str], None]) -> int:
        """Make sure that the stream continues behind ``durable``, the log's last place; the place from which it does.
        With 0 (a log that has none) what it needs is made; else nothing is changed.

        Raises:
            Gap: it does not continue there. ``Unavailable`` with code :data:`IN_USE`: somebody else reads it.
        """

    def retire(self, identity: Identity) -> None:
        """Let go of what the stream holds: nothing of it is needed, for every table is read again."""

    def capture(
        self, tables: list[TableInfo], base: int, incarnation: int, lost: Callable[[str, SynclineError], None]
    ) -> Stream:
        """The stream of these tables. A change's version is ``base`` plus its native number (correctness rule 1).
        ``lost`` hears of a table whose changes can't be captured any more; the stream goes on (Guarantee 8)."""

    def park_events(self, parking: EventParking) -> None:
        """Where the streams put events that are no changes; told before the first :meth:`capture` where there are
        events (:attr:`SourceSettings.parks_events`)."""

    def record_runs(self, records: RunRecords) -> None:
        """Where runs are recorded and asked for; told before the first :meth:`attach` where the stream is made of them
        (:attr:`SourceSettings.makes_runs`)."""

    def again(self, error: Again) -> None:
        """What the next :meth:`capture` does differently."""

    # ----------------------------------------------------------------------------------------------------------- rows

    def point(self, purpose: str, talk: Callable[[str], None]) -> AbstractContextManager[Point]:
        """A state to read, held for the block. ``purpose`` is one word that names what is opened for it."""

    def rows(
        self,
        info: TableInfo,
        point: Point,
        version: int,
        stop: threading.Event,
        progress: Callable[[LoadProgress], None],
    ) -> Iterator[Batch]:
        """All rows of one table at the point, as inserts of this version.

        Raises:
            Rewritten: it was truncated or rewritten while it was read (:mod:`syncline.capture.snapshot`).
            Unavailable: ``stop`` was set.
        """

    def rows_of(self, info: TableInfo, point: Point, keys: pa.RecordBatch, version: int) -> Batch:
        """The rows of one table with these keys (its key columns by their names) at the point, as :meth:`rows` gives
        them. Keys that are not there are missing from the result. Raises ``Rewritten`` as :meth:`rows` does, and
        ``Gap`` (:data:`~syncline.errors.SCHEMA_DRIFT`) where the keys are not those of the table."""

    def heal(
        self, schema: TableSchema, keys: pa.RecordBatch, xids: Sequence[int], stop: threading.Event
    ) -> pa.RecordBatch:
        """The rows with these keys, seen after the transactions ``xids``; see :func:`syncline.capture.heal.read_rows`.
        Asked only by streams that have partial rows."""

    def advance(self) -> None:
        """Have the stream yield something soon, so that every cursor passes a :class:`Point` that was taken before
        (correctness rule 12)."""

    # -------------------------------------------------------------------------------------------------------- looking

    def reader(self) -> int | None:
        """The confirmed place of whoever streams from it now, None if nobody does."""

    def refuse_in_use(self) -> None:
        """Raise ``Unavailable`` (:data:`IN_USE`), which says who it is, if somebody streams from it."""

    def look(self, place: int | None) -> Seen:
        """How the stream looks, for a log that ends at ``place``."""

    def unseen(self) -> dict[str, Any]:
        """The facts of :meth:`look` for when it can't be asked."""

    def shown(self, number: int) -> str:
        """A native number as people of this source write it."""

    def lag(self, place: int) -> int | None:
        """How many bytes a log that ends at ``place`` is behind, None if that can't be told. Keeps a connection."""

    def pressures(self) -> list[Pressure]:
        """What goes on there that will hurt before long. On the connection of :meth:`lag`."""

    def close(self) -> None:
        """Let go of what :meth:`lag` keeps."""


@runtime_checkable
class Digesting(Protocol):
    """A source that computes digests where its rows are: an optional capability of a :class:`Source`. Raises as
    :meth:`Source.rows`."""

    def digested(self, info: TableInfo, point: Point, buckets: Buckets) -> tuple[TableSchema, pa.Table] | None:
        """The columns as they are captured, and the digests of the table's rows at the point, as
        :func:`syncline.digests.digests` gives them; None if a column can't be hashed."""

    def chosen(
        self,
        info: TableInfo,
        point: Point,
        chosen: Chosen,
        stop: threading.Event,
        progress: Callable[[LoadProgress], None],
    ) -> Iterator[Batch]:
        """As :meth:`Source.rows`, of some buckets, and of any version."""
