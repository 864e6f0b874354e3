"""The stream of a table of members: what differs from what was last told, run by run.

The place is the number of the state that was told last; a run that finds something makes the next one. Its changes are
one transaction, all of one version, and the state behind it is durable before the first of them is yielded (see
:mod:`~syncline.capture.redis.told`).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

from syncline.capture.redis.hints import Hints
from syncline.capture.redis.reading import Stopped
from syncline.capture.redis.run import Files, Found, Run, kind_of, refuse_unknown
from syncline.capture.redis.settings import RedisSettings, schema_of
from syncline.capture.redis.told import Told
from syncline.capture.runs import RunRecords, RunRow, Wish
from syncline.capture.tables import TableInfo
from syncline.change import MAX_VERSION, Entry, Item, Loaded, Marker, Part
from syncline.errors import Misconfigured, SynclineError, Unavailable, defect

__all__ = ["RedisStream", "Runs"]

_POLL_S = 0.05
_ASKED_S = 0.5
Made = Callable[[Run, Found, int], Iterator[Entry]]
"""How what a run found becomes entries; with the number of the state behind it."""


class Runs:
    """Does runs, one after the other, and records them. ``stop`` ends one between two batches."""

    def __init__(self, settings: RedisSettings, told: Told, records: RunRecords, stop: threading.Event) -> None:
        self._settings, self._told, self._records, self._stop = settings, told, records, stop

    def run(self, asked: int | None, wish: Wish, number: int, made: Made) -> Iterator[Entry]:
        """One run behind the state ``number``; ``made`` turns what it found into entries. Records how it ended.

        Raises:
            Unavailable, Misconfigured: as the server or the records say. Stopped: ``stop`` was set.
        """
        kind = kind_of(self._settings, wish, self._records.runs(self._settings.full_every))
        ident = self._records.begin(kind[0]) if asked is None else asked
        row, hold = RunRow("stopped", kind[0], {}), self._records.hold
        try:
            with (
                self._told.scratch() as scratch,
                Run(self._settings, Files(self._told.path(number), scratch), wish, kind, self._stop, hold) as run,
            ):
                found = run.look()
                behind = number + found.moves
                if found.moves:
                    run.write(self._told.next_path(behind))
                    self._told.keep(behind)
                self._records.hold(surely=True)
                self._records.park(ident, run.set_aside())
                yield from made(run, found, behind)
                row = found.row(self._settings.table, self._settings.delete_share, behind)
        except SynclineError as error:
            row = RunRow("failed", kind[0], {}, code=error.code, message=error.message)
            raise
        except (Stopped, GeneratorExit):
            raise
        except Exception as error:
            failed = defect(f"A run of table {self._settings.table}", error)
            row = RunRow("failed", kind[0], {}, code=failed.code, message=failed.message)
            raise failed from error
        finally:
            with suppress(Unavailable):
                self._records.end(ident, row)


class RedisStream:
    """A :class:`~syncline.capture.Stream` of one table of members."""

    def __init__(
        self, settings: RedisSettings, told: Told, records: RunRecords, *, base: int, incarnation: int
    ) -> None:
        self._settings = settings
        self._table = schema_of(settings).qualified
        self._told = told
        self._records = records
        self._base = base
        self._incarnation = incarnation
        self._stop = threading.Event()
        self._number = 0
        self._asked_at = 0.0

    @property
    def words(self) -> str:
        when = self._settings.cron or f"every {self._settings.every_s:g} s"
        return f"comparing members of {self._table} ({when})"

    def widen(self, tables: list[TableInfo]) -> None:
        """See :class:`~syncline.capture.Stream`: there is one table, and it is what the settings say."""

    def confirm(self, place: int) -> None:
        """See :class:`~syncline.capture.Capture`."""
        self._told.settle(place)

    def close(self) -> None:
        """See :class:`~syncline.capture.Capture`."""
        self._stop.set()

    def entries(self, after: int) -> Iterator[Entry]:
        """See :class:`~syncline.capture.Capture`."""
        with self._told.lock():
            self._records.take()
            hints = Hints(self._settings) if self._settings.hints else None
            try:
                self._told.continue_at(after)
                self._number = after
                yield self._progress()
                yield from self._runs(hints)
            except Stopped:
                return
            finally:
                if hints is not None:
                    hints.close()
                with suppress(Unavailable):
                    self._records.release()

    def _runs(self, hints: Hints | None) -> Iterator[Entry]:
        runs, began = Runs(self._settings, self._told, self._records, self._stop), None
        while not self._stop.is_set():
            asked, wish = self._await_next(hints, began)
            # Who compares wants to know of every member, which a run of some does not say.
            waiting = self._told.asking() if wish.kind == "full" and wish.is_of_all else []
            began = datetime.now(UTC)
            try:
                yield from runs.run(asked, wish, self._number, self._entries)
                self._told.answer(waiting, done=True)
            except Misconfigured:  # recorded, with an alert; tried again at its next time
                self._told.answer(waiting, done=False)

    # ------------------------------------------------------------------------------------------------- between two runs

    def _await_next(self, hints: Hints | None, began: datetime | None) -> tuple[int | None, Wish]:
        """Wait until a run is due, or wished for; which. Raises ``Stopped``."""
        due, told = self._due(began), False
        with suppress(Unavailable):
            self._records.next_at(due)
        while not self._stop.is_set():
            self._records.hold()
            asked = self._asked()
            if asked is not None:
                return asked
            now = datetime.now(UTC)
            if self._told.asking():
                return None, Wish("full")
            if now >= due:
                return None, Wish()
            wait_s = min(_POLL_S, (due - now).total_seconds())
            if hints is None or told or began is None:
                self._stop.wait(wait_s)
            elif hints.heard(wait_s, self._stop):
                sooner = began.timestamp() + self._settings.sooner_s
                due, told = min(due, datetime.fromtimestamp(max(sooner, now.timestamp()), UTC)), True
        raise Stopped

    def _due(self, began: datetime | None) -> datetime:
        """When the next run is, after one of this stream that ``began`` then. The first one is at once, but for one by
        a cron expression, of which none was missed meanwhile."""
        if began is not None:
            return self._settings.due_after(began)
        done = [r for r in self._records.runs(10) if r["state"] == "done" and not r["dry_run"]]
        if self._settings.cron is None or not done:
            return datetime.now(UTC)
        return self._settings.due_after(done[0]["started_at"])

    def _asked(self) -> tuple[int, Wish] | None:
        """What somebody wishes for, now and then. The records may be away while nothing has to be recorded."""
        if time.monotonic() < self._asked_at:
            return None
        self._asked_at = time.monotonic() + _ASKED_S
        with suppress(Unavailable):
            while (asked := self._records.asked()) is not None:
                if self._can_be(*asked):
                    return asked
        return None

    def _can_be(self, ident: int, wish: Wish) -> bool:
        try:
            refuse_unknown(self._settings, wish)
        except Misconfigured as error:
            self._records.end(ident, RunRow("refused", wish.kind, {}, code=error.code, message=error.message))
            return False
        return True

    # ------------------------------------------------------------------------------------------------------- entries

    def _entries(self, run: Run, found: Found, number: int) -> Iterator[Entry]:
        """What was found, as one transaction; where that is nothing, that it is so."""
        if not found.differs:
            self._number = number
            yield self._progress()
            return
        version = self._base + number
        if version >= MAX_VERSION:
            raise Misconfigured(
                f"Versions reached 2**53 at run {number}.", remedy="Start over with a new source incarnation."
            )
        now = time.time_ns() // 1000
        items: list[Item] = [self._backup(version)] if self._wants_backup(found) else []
        index, batches = 0, run.batches(version, now)
        batch = next(batches)
        for following in batches:
            yield Entry((*items, batch), incarnation=self._incarnation, commit_time=now, part=Part(index, False))
            items, index, batch = [], index + 1, following
        part = Part(index, True) if index else None
        self._number = number
        yield self._entry((*items, batch), now, part)

    def _wants_backup(self, found: Found) -> bool:
        counts, share = found.counts, self._settings.backup_share
        return share < 1 and bool(counts.rows) and counts.updated + counts.deleted > share * counts.rows

    def _backup(self, version: int) -> Marker:
        return Marker("backup", self._table, Loaded(str(self._settings.keep_backups), version))

    def _progress(self) -> Entry:
        return self._entry((Marker("progress"),), 0, None)

    def _entry(self, items: tuple[Any, ...], commit_time: int, part: Part | None) -> Entry:
        return Entry(
            items,
            place=self._number,
            through=self._base + self._number + 1,
            incarnation=self._incarnation,
            commit_time=commit_time,
            part=part,
        )
