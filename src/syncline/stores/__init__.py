"""Stores hold the copies: the contract, and the lazy table of names.

A store is one file here (a folder once it outgrows that), named as its users call it, with its configuration, its
queries and the translation of its driver's errors. :class:`Store` is the specification; ``syncline.testing`` holds the
suite that every implementation passes. Adding a store adds one line to :data:`STORES`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

if TYPE_CHECKING:  # a store's own process may have no use for them
    import pyarrow as pa

    from syncline.change import Cursor, TableSchema
    from syncline.digests import Chosen

__all__ = [
    "FROM_KEY",
    "PARTIAL_VERSION",
    "STORES",
    "UNCHANGED",
    "VERSION",
    "Asking",
    "BackingUp",
    "Choosing",
    "CopyReader",
    "Counting",
    "Exporting",
    "Fetching",
    "Folded",
    "Forgetting",
    "Limits",
    "Meeting",
    "Referring",
    "Store",
    "TableWork",
    "Work",
]

# type in the configuration -> "module:class"; imported when first used. A store that is not of this package is named
# there as "module:class" itself: docs/stores/adding.md.
STORES: dict[str, str] = {
    "memory": "syncline.stores.memory:MemoryStore",
    "duckdb": "syncline.stores.duckdb:DuckDBStore",
    "postgres": "syncline.stores.postgres:PostgresStore",
    "redis": "syncline.stores.redis:RedisStore",
    "qdrant": "syncline.stores.qdrant:QdrantStore",
    "neo4j": "syncline.stores.neo4j:Neo4jStore",
}


@dataclass(frozen=True, slots=True)
class Limits:
    """What a store can take, declared as data.

    ``transactional``: a work and its cursor commit in one transaction. Else the store writes the cursor last, readers
    may see a part of a work while it is applied, and what failed may be there in part until it is applied again.
    ``max_rows`` and ``max_bytes`` bound one :class:`Work`; ``load_rows`` and ``load_bytes`` are the size that it should
    have while a table is loaded, when nobody waits for a single change.
    """

    transactional: bool = True
    max_rows: int = 200_000
    max_bytes: int = 64 * 1024 * 1024
    load_rows: int = 50_000
    load_bytes: int = 16 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Folded:
    """The last state of each key: what is left of a table's changes after folding. Keys are unique.

    ``upserts`` and ``partials`` hold the table's columns, then ``version`` (int64). ``partials`` have two more columns
    behind it: ``unchanged`` (binary mask as in :class:`~syncline.change.Batch`, never null) and ``from_key`` (struct of
    the key columns, never null): the columns masked as unchanged are taken from the row that the store held under
    ``from_key`` *before* this work (normally the row's own key; another one after a rekey). ``deletes`` hold the key
    columns, then ``version``; a key that was moved away by a rekey is among them.
    """

    upserts: pa.RecordBatch | None = None
    partials: pa.RecordBatch | None = None
    deletes: pa.RecordBatch | None = None

    def __len__(self) -> int:
        return sum(b.num_rows for b in (self.upserts, self.partials, self.deletes) if b is not None)


# Where the columns behind a table's own stand: by position, for a table may have columns of the same names.
VERSION = -1  # of upserts and deletes
PARTIAL_VERSION, UNCHANGED, FROM_KEY = -3, -2, -1  # of partials


@dataclass(frozen=True, slots=True)
class TableWork:
    """What one unit of work does to one table: first the truncation (if any), then the folded rows.

    ``truncated``: rows with a version at or below it are gone, and changes with a version *below* it that arrive later
    are superseded (equal versions are rows written behind the TRUNCATE in the same transaction).

    ``bases``: the key columns, then what each change rests on (:attr:`~syncline.change.Batch.bases`). A store that can
    (:class:`Meeting`) writes a change only where the row still is its base.
    """

    schema: TableSchema
    rows: Folded
    truncated: int | None = None
    bases: pa.RecordBatch | None = None


@dataclass(frozen=True, slots=True)
class Work:
    """One atomic step of a target: whole source transactions and the cursor behind them (Guarantee 4).

    ``echo``: they began here, and come back (correctness rule 28).
    """

    tables: tuple[TableWork, ...]
    cursor: Cursor
    echo: bool = False

    @property
    def rows(self) -> int:
        return sum(len(t.rows) for t in self.tables)


class Store(Protocol):
    """A copy of tables under a version guard.

    Three capabilities are optional, as static methods that take the store's configuration and open no store:
    ``reader(config) -> CopyReader``; ``check(config) -> Iterator[Finding]``, which looks at what the configuration
    names for `syncline doctor`, changes nothing, raises nothing, and leaves the subject of its findings empty; and
    ``check_offline(config, schemas)``, the same for `syncline check`, which asks no server and opens no file, and knows
    some of the schemas that the tables come from.

    Optional, for a store that gives its copy to readers in files too: :class:`Exporting`.

    Optional, for a store that can be where a source is: ``source_is(system_identifier, timeline, database)``, called
    once the target is open and before the first ``migrate``. It must never copy a table onto itself. And a static
    ``check_source(config, system_identifier, timeline, database, schemas) -> Iterator[Finding]``, which tells `syncline
    doctor` the tables (as mapped) of which that would come, as ``check`` does.

    One thread applies; ``fetch`` and ``scan`` may run in other threads at the same time and see only whole works.

    The guard (Guarantee 5): a row is written only if ``stored version <= incoming version`` for its key, where a
    tombstone counts as stored, and ``incoming >= truncate version``; otherwise the change is superseded, silently. A
    delete leaves a tombstone with its version (also for a key that was never there). A row without a version (an
    adopted table) is older than everything. A partial whose ``from_key`` row is absent is not written: the engine has
    healed such keys beforehand.

    Errors, and nothing else: ``Unavailable`` (nothing is known to be written; the same work is handed in again, and
    "applied, but the reply was lost" must be harmless), ``Rejected`` (nothing was written; these rows can't be),
    ``Misconfigured``.
    """

    limits: Limits
    form: str
    """What mappings make of a table here: rows, graph, points or keys (:data:`syncline.mapping.FORMS`)."""

    def open(self, source: str) -> Cursor | None:
        """Connect, prepare the store's own tables, and return the durable cursor of this source, None if none."""

    def migrate(self, schema: TableSchema) -> TableSchema | None:
        """Make the table fit the schema: create it, adopt an existing one, add columns, drop columns, change types.

        Idempotent and durable on return; returns the schema that the table had here before, None if it was not ours.
        Called before the first ``apply`` with a schema. A column whose type changed keeps no values (a reload follows).
        Raises ``Misconfigured`` when an existing table can't be adopted.
        """

    def apply(self, work: Work) -> None:
        """Write the work and its cursor in one transaction, durable on return. Idempotent under the guard."""

    def fetch(self, schema: TableSchema, keys: pa.RecordBatch) -> pa.Table:
        """The stored rows of these keys (a batch of the key columns): the table's columns, then ``version``."""

    def scan(self, schema: TableSchema) -> Iterator[pa.RecordBatch]:
        """All rows of one table in one consistent view, any order: the table's columns, then ``version``."""

    def purge(self, source: str, below: int) -> int:
        """Forget tombstones with a version below ``below``, and record that horizon: older changes to absent keys
        are superseded from then on (correctness rule 17). Returns how many were forgotten."""

    def close(self) -> None:
        """Release everything. Idempotent."""


class CopyReader(Protocol):
    """A read-only look at a copy, from any process of this machine, whether or not an engine writes to it meanwhile.

    An optional capability: a store class that has it offers ``reader(config)``. Each method is one consistent look of
    its own. Errors as for :class:`Store`, without ``Rejected``.
    """

    def cursor(self, source: str) -> Cursor | None:
        """The durable cursor of this source, None if nothing was applied for it yet."""

    def recorded(self, table: str) -> TableSchema | None:
        """The schema that the table (``namespace.name``) was last migrated to, None if it never was."""

    def held(self, source: str) -> list[TableSchema]:
        """The schemas that the tables of this source were last migrated to, whether or not they have rows."""

    def scan(self, schema: TableSchema) -> Iterator[pa.RecordBatch]:
        """As :meth:`Store.scan`. Exhaust or close the iterator before the next call."""

    def buried(self, schema: TableSchema, since: int) -> pa.Table:
        """Tombstones with a version at or above ``since``: the key columns, then ``version``."""

    def swept(self, table: str) -> tuple[int, int]:
        """Version of the table's last truncation, and the horizon below which tombstones are forgotten; 0 if none."""

    def close(self) -> None:
        """Release everything. Idempotent."""


@runtime_checkable
class Choosing(Protocol):
    """A reader that finds some rows of a table without reading all of it: an optional capability of a
    :class:`CopyReader`."""

    def spread(self, schema: TableSchema) -> tuple[int, int | None, int | None]:
        """About how many rows the table has, and the least and the greatest key if that is one integer (else None)."""

    def chosen(self, schema: TableSchema, chosen: Chosen) -> Iterator[pa.RecordBatch]:
        """As :meth:`CopyReader.scan`, of some buckets that are ranges of the key, and of rows without a key."""


@runtime_checkable
class Fetching(Protocol):
    """A reader that finds rows by their keys: an optional capability of a :class:`CopyReader`."""

    def fetch(self, schema: TableSchema, keys: pa.RecordBatch) -> pa.Table:
        """As :meth:`Store.fetch`."""


@runtime_checkable
class Counting(Protocol):
    """A reader that counts where the rows are: an optional capability of a :class:`CopyReader`."""

    def counted(self, schema: TableSchema, since: int) -> tuple[int, int]:
        """How many rows :meth:`CopyReader.scan` would give, and how many of them have a version at or above
        ``since``."""


@runtime_checkable
class Asking(Protocol):
    """A reader that people ask in the store's own language: an optional capability of a :class:`CopyReader`."""

    def ask(self, query: str, timeout_s: float) -> Iterator[tuple[Any, ...]]:
        """The rows of a query, of which nothing is kept whatever it does. Exhaust or close the iterator.

        Raises:
            Misconfigured: the store refuses the query; what it says of values is not repeated.
            Unavailable: it takes longer than ``timeout_s``, or the store is away.
        """


@runtime_checkable
class Referring(Protocol):
    """A reader that finds rows which refer to nothing: an optional capability of a :class:`CopyReader`."""

    def dangling(
        self, schema: TableSchema, columns: Sequence[str], to: TableSchema, key: Sequence[str], timeout_s: float
    ) -> Iterator[tuple[Any, ...]] | None:
        """The keys of rows of ``schema`` whose ``columns``, all of them not NULL, are the ``key`` of no row of ``to``;
        None if the copy holds no such reference. Both tables are recorded. Raises as :meth:`Asking.ask`."""


@runtime_checkable
class Exporting(Protocol):
    """A store that gives its copy to readers in files too: an optional capability of a :class:`Store`."""

    @property
    def export_every_s(self) -> float | None:
        """Seconds between two exports; None: never."""

    def export(self) -> bool | None:
        """Bring the files up to date, of everything in the copy that the store is a part of; whether they changed. None
        when there is nothing to be exported now: the store is not open, no table is loaded, or the copy is amid a
        transaction (:class:`~syncline.change.Cursor`). Called by a thread of its own; raises as ``apply`` does, without
        ``Rejected``."""

    def stop_export(self) -> None:
        """Cut off an export that is under way, and let none begin until the store is opened anew; none runs on return.
        Any thread."""


@runtime_checkable
class BackingUp(Protocol):
    """A store that can set a copy of a table aside before much of it is changed: an optional capability of a
    :class:`Store`."""

    def back_up(self, schema: TableSchema, label: int, keep: int) -> str:
        """Copy the table's rows as they are, durable on return, and forget all but the latest ``keep`` such copies; the
        name of this one. ``label`` rises from one to the next; a copy that has it already stays as it is. After
        ``migrate``; raises as ``apply``, without ``Rejected``."""


@runtime_checkable
class Forgetting(Protocol):
    """A store that can let go of versions that the guard would defend for ever: an optional capability of a
    :class:`Store`."""

    def forget(self, schema: TableSchema, keys: pa.RecordBatch, above: int) -> None:
        """Under these keys (a batch of the key columns), take their version from rows that have one above ``above``, so
        that they are older than everything, and remove such tombstones, durable on return; a truncation of the table
        or a horizon above it is forgotten as well. No change ever had such a version (correctness rule 4), so nothing
        that came is lost by it. What ``scan`` shows under a key and ``apply`` would not find goes, too. Idempotent.
        After ``migrate``; raises as ``apply``, without ``Rejected``."""


@runtime_checkable
class Meeting(Protocol):
    """A store whose rows others edit too, and whose edits go back to the source: an optional capability of a
    :class:`Store`. It heeds ``Work.echo`` or ``TableWork.bases`` (docs/both-ways.md)."""

    @property
    def overruled(self) -> int:
        """How many changes met an edit that their writer had not seen: one of the two lost."""


def stored_columns(schema: TableSchema) -> Sequence[str]:
    """Names of what ``fetch`` and ``scan`` return: the table's columns, then ``version``."""
    return [*(c.name for c in schema.columns), "version"]
