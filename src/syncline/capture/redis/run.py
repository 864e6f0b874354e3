"""One run: read the members, compare them with what was last told, and look again at what seems to be gone.

Nothing is written here but the state behind the run: what it found goes into the log.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from syncline.capture.redis.connection import Connection
from syncline.capture.redis.difference import Counts, Difference
from syncline.capture.redis.meeting import Meeting
from syncline.capture.redis.reading import KeyReader
from syncline.capture.redis.settings import Group, RedisSettings, groups_of, schema_of
from syncline.capture.runs import DELETES, RunRow, SetAside, Wish
from syncline.change import Batch, Op
from syncline.errors import Misconfigured

__all__ = ["Files", "Found", "Run", "kind_of", "refuse_unknown"]

_NAMELESS = "the member's name is no value of the key column"
_SHOWN = 20


@dataclass(frozen=True, slots=True)
class Files:
    """What was told before (None: nothing), and the folder for what a run puts aside."""

    told: Path | None
    scratch: Path


@dataclass(frozen=True, slots=True)
class Found:
    """What a run found: how many members and rows differ, and whether that may be told without asking.

    ``kept``: rows without a member that stay, since keys are gone as a whole or the configuration says so.
    ``reasons`` counts why members are set aside; ``aside`` names some of them. ``learned``: rows were written here by
    Syncline itself, which is nothing to be told.
    """

    kind: str
    counts: Counts
    kept: int
    missing: tuple[str, ...]
    asks: bool
    changed_up_to: float | None
    reasons: Mapping[str, int] = field(default_factory=dict)
    aside: tuple[tuple[str, str], ...] = ()
    learned: bool = False

    @property
    def moves(self) -> bool:
        """Whether the state behind the run is another one."""
        return self.differs or (self.learned and not self.asks)

    @property
    def differs(self) -> bool:
        """Whether there is something to tell, and it may be."""
        counts = self.counts
        return not self.asks and bool(counts.created or counts.updated or counts.deleted)

    def row(self, table: str, share: float, number: int) -> RunRow:
        """For the records. ``share`` is what may be deleted, ``number`` that of the state behind the run."""
        counts = self.counts
        message = (
            f"{counts.deleted:,} of {counts.rows:,} rows of table {table} have no member any more, more than "
            f"delete_share allows ({share:g}): nothing was changed."
        )
        figures = {n: getattr(counts, n) for n in ("members", "created", "updated", "deleted", "set_aside")}
        return RunRow(
            "asking" if self.asks else "done",
            self.kind,
            figures | {"kept": self.kept},
            number,
            self.changed_up_to,
            self.reasons,
            self.missing,
            DELETES if self.asks else "",
            message if self.asks else "",
        )


def kind_of(settings: RedisSettings, wish: Wish, before: Sequence[Mapping[str, Any]]) -> tuple[str, float | None]:
    """What kind of run it is, and since when changed members are looked at. ``before`` are the latest runs."""
    if wish.members is not None:
        return "members", None
    if settings.changed is None or wish.kind == "full" or wish.columns or wish.dry_run:
        return "full", None
    done = [r for r in before if r["state"] == "done" and not r["dry_run"] and r["kind"] in ("full", "changed")]
    noted = next((r["changed_up_to"] for r in done if r["changed_up_to"] is not None), None)
    recent = any(r["kind"] == "full" for r in done[: settings.full_every - 1])
    if noted is None or (wish.kind == "auto" and not recent):
        return "full", None
    return "changed", noted - settings.changed_overlap_s


def refuse_unknown(settings: RedisSettings, wish: Wish) -> None:
    """Raise ``Misconfigured`` if a run should look at columns or keys that there are not."""
    known = {*settings.columns, *(g.key for g in groups_of(settings))}
    if wish.columns and settings.base_key:
        raise Misconfigured("A table that is edited on both sides is compared whole.", remedy="Name no columns.")
    for name in wish.columns or ():
        if name not in known:
            raise Misconfigured(f"There is no column or key {name}.", remedy=f"There are: {', '.join(sorted(known))}.")


class Run:
    """The parts of one run, in the order in which they are done; a context manager.

    ``hold`` is called again and again while it reads: whoever does runs says so.
    """

    def __init__(
        self,
        settings: RedisSettings,
        files: Files,
        wish: Wish,
        kind: tuple[str, float | None],
        stop: threading.Event,
        hold: Callable[[], None],
    ) -> None:
        self._settings, self._files, self._wish = settings, files, wish
        self._kind, self._since = kind
        self._stop, self._hold = stop, hold
        self._missing: frozenset[str] = frozenset()
        self._looked_at: Sequence[bytes] | None = None
        self._opened = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            connection = stack.enter_context(Connection(self._settings))
            self._reader = KeyReader(self._settings, connection, self._stop)
            made = Meeting if self._settings.base_key else Difference
            self._difference = made(self._settings, self._files.told, self._files.scratch)
            stack.callback(self._difference.close)
            self._opened = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._opened.close()

    def look(self) -> Found:
        """Read and compare.

        Raises:
            Unavailable, Misconfigured: as the server says. Stopped: ``stop`` was set.
        """
        groups = self._difference.groups
        changed = self._settings.changed
        up_to = None if changed is None else self._reader.last_change(changed)  # first: what is noted later counts
        members = self._looked_at = self._members()
        self._missing = self._reader.missing(groups)
        if members is not None:
            self._difference.look_at(members)
        self._read([g for g in groups if self._is_chosen(g)], members)
        counts, kept = self._compared()
        whole = self._kind != "members" and not self._wish.columns
        asks = self._asks(counts)
        aside = self._aside()
        missing = tuple(sorted(self._missing))
        up_to = up_to if whole and not asks else None
        return Found(self._kind, counts, kept, missing, asks, up_to, *_shown(aside), self._difference.learned)

    def set_aside(self) -> SetAside:
        """Who can't be read, after :meth:`look`. A run of some columns says nothing of who can be."""
        aside = self._aside()
        looked_at = () if self._wish.columns is not None else self._looked_at
        return SetAside(
            schema_of(self._settings).qualified, [name for name, _ in aside], [why for _, why in aside], looked_at
        )

    def write(self, path: Path) -> None:
        """Write the rows as they are once what was found is told."""
        self._difference.write(path)

    def batches(self, version: int, commit_time: int) -> Iterator[Batch]:
        """What was found, as changes of one version."""
        settings = self._settings
        for batch in self._difference.batches(version, commit_time, settings.batch_rows):
            rows = max(1, len(batch) * settings.max_entry_bytes // max(1, batch.nbytes))
            for first in range(0, len(batch), rows):
                yield Batch(batch.schema, batch.rows.slice(first, rows))

    def _is_chosen(self, group: Group) -> bool:
        wanted = self._wish.columns
        return wanted is None or group.key in wanted or any(name in wanted for name in group.columns)

    # ------------------------------------------------------------------------------------------------------- reading

    def _members(self) -> list[bytes] | None:
        """The members to be looked at; None is all."""
        if self._wish.members is not None:
            return [name.encode() for name in self._wish.members]
        if self._since is None or self._settings.changed is None:
            return None
        found: set[bytes] = set()
        for some in self._reader.changed(self._settings.changed, self._since):
            found.update(some)
        return sorted(found)

    def _read(self, groups: Sequence[Group], members: Sequence[bytes] | None) -> None:
        if isinstance(self._difference, Meeting):
            self._meet(self._difference, members)
            return
        for group in groups:
            for batch in self._reader.scan(group) if members is None else [self._reader.look(group, members)]:
                self._difference.add(group, batch)
                self._hold()
        self._missing |= self._reader.missing(self._difference.groups)

    def _meet(self, difference: Meeting, members: Sequence[bytes] | None) -> None:
        (group,), settings = difference.groups, self._settings
        keys = settings.base_key, settings.table_key, settings.buried_key
        for some in self._reader.names(group, settings.base_key) if members is None else [members]:
            difference.look(self._reader.meet(group, some, *keys))
            self._hold()

    # ----------------------------------------------------------------------------------------------------- comparing

    def _unknown(self) -> list[str]:
        """Columns that an existing row keeps."""
        keeps = self._settings.expired == "keep"
        groups = [
            g
            for g in self._difference.groups
            if not self._is_chosen(g) or (keeps and g.whole and g.key in self._missing)
        ]
        return [name for group in groups for name in group.columns]

    def _compared(self) -> tuple[Counts, int]:
        """What is to be told, once what seems new or gone was looked at by name (correctness rule 31); and how many
        rows are kept."""
        difference = self._difference
        counts = difference.compare(self._unknown())
        if self._wish.columns is not None:
            return self._completed(counts), 0
        if not counts.deleted:
            return counts, 0
        unknown = self._unknown()
        for some in difference.members(Op.DELETE):
            self._read(difference.groups, some)
        # Where a key went meanwhile, a column of all members is unknown.
        counts = difference.compare_again() if self._unknown() == unknown else difference.compare(self._unknown())
        if self._may_delete():
            return counts, 0
        difference.forget_deletes()
        return difference.counts(), counts.deleted

    def _completed(self, counts: Counts) -> Counts:
        """A run of some columns reads the others of new members too, and says nothing about who is gone."""
        difference = self._difference
        rest = [g for g in difference.groups if not self._is_chosen(g)]
        if counts.created:
            for some in difference.members(Op.INSERT):
                self._read(rest, some)
            difference.compare_again()
        difference.forget_deletes()
        return difference.counts()

    def _may_delete(self) -> bool:
        """An expired or evicted key says nothing about its members, unless the configuration says so."""
        if self._wish.members is not None and self._wish.allow_deletes:
            return True
        if self._settings.deletes == "removed":
            return not self._missing and any(g.whole for g in self._difference.groups)
        return self._settings.deletes == "gone"

    def _asks(self, counts: Counts) -> bool:
        """Whether a person has to allow what would be deleted."""
        if self._wish.allow_deletes or not counts.deleted:
            return False
        return counts.deleted > self._settings.delete_share * counts.rows

    def _aside(self) -> list[tuple[bytes, str]]:
        nameless = [(name, _NAMELESS) for name in self._difference.nameless]
        return [*((name.encode(), why) for name, why in self._difference.set_aside()), *nameless]


def _shown(aside: Sequence[tuple[bytes, str]]) -> tuple[dict[str, int], tuple[tuple[str, str], ...]]:
    """How many there are of each reason, and some that have a readable name."""
    named = [(name.decode(), why) for name, why in aside if why != _NAMELESS]
    return dict(Counter(why for _, why in aside)), tuple(named[:_SHOWN])
