"""What was last told of a table's rows: a Parquet file for each state, named by the number of the run that told it.

A run writes the state behind it, durably, before it yields the first of its changes; the file is ``<n>.next`` until the
log has all of them, and ``<n>.parquet`` from then on. So whatever place the log is found at after a crash, the state
that belongs to it is there, and one that never got into the log is told by its number and forgotten.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO
from uuid import uuid4

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from syncline.capture import IN_USE
from syncline.change import TableSchema, arrow_type
from syncline.errors import Gap, Misconfigured, Unavailable
from syncline.scratch import scratch_folder, sweep

__all__ = ["AWAY", "LOST", "NOTE", "State", "Told", "note_of", "places_in"]

LOST = "SL-TOLD-LOST"
NOTE = "syncline"  # under this name a file says what its columns are
AWAY = "away"  # a column that says which rows are only remembered, where a file has it
_STATE, _NEXT, _ASK, _SCRATCH = ".parquet", ".next", "ask-", "run-"
_POLL_S, _PATIENCE_S = 0.05, 2.0
_ABSENT_S = 10.0  # so long nobody may do runs: an engine that begins anew lets go of the lock for a moment


def note_of(schema: TableSchema) -> str:
    """What a file says of its columns, which are called by their places."""
    return json.dumps({"format": 1, "columns": [[c.name, c.type] for c in schema.columns]})


def places_in(note: str, schema: TableSchema) -> list[int | None]:
    """Where the columns of a table are in a file with this note, None for one that it does not have.

    Raises:
        Gap: its key is another one, so that nothing in it is of use.
    """
    said = json.loads(note)["columns"]
    known = {(name, kind): place for place, (name, kind) in enumerate(said)}
    if said[0][1] != schema.columns[0].type:
        raise Gap(f"What was told of table {schema.qualified} has keys of another type.", code=LOST)
    return [0, *(known.get((c.name, c.type)) for c in schema.columns[1:])]


@dataclass(frozen=True, slots=True)
class State:
    """One state, held open: it can be read whatever becomes of its file."""

    number: int
    file: IO[bytes]

    def batches(self, schema: TableSchema, rows: int) -> Iterator[list[pa.Array]]:
        """The table's columns, so many rows at a time; a column that came since is null."""
        self.file.seek(0)
        found = pq.ParquetFile(self.file)
        places = places_in(found.metadata.metadata[NOTE.encode()].decode(), schema)
        for batch in found.iter_batches(rows):
            if AWAY in batch.schema.names:
                batch = batch.filter(pc.invert(batch.column(AWAY)))
            yield [
                pa.nulls(len(batch), kind) if place is None else batch.column(place).cast(kind)
                for place, kind in zip(places, (arrow_type(c.type) for c in schema.columns), strict=True)
            ]

    @property
    def rows(self) -> int:
        """How many there are."""
        self.file.seek(0)
        return int(pq.read_metadata(self.file).num_rows)


class Told:
    """The states in one folder. Whoever does runs holds :meth:`lock`; all else may be asked from anywhere."""

    def __init__(self, folder: Path, where: str) -> None:
        self._folder = folder
        self._where = where

    # ------------------------------------------------------------------------------------------------- who does runs

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Be the only one on this machine who does runs, for the block.

        Raises:
            Unavailable: with code ``SL-SLOT-IN-USE``, somebody else does. Misconfigured: the folder can't be written.
        """
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            held = os.open(self._folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            raise self._unusable(error) from error
        try:
            self._lock(held)
            sweep(self._folder, _SCRATCH)
            yield
        finally:
            os.close(held)

    def _lock(self, held: int) -> None:
        deadline = time.monotonic() + _PATIENCE_S  # somebody may just be looking whether it is held
        while True:
            try:
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise self.in_use() from None
                time.sleep(_POLL_S)

    def in_use(self) -> Unavailable:
        """The error of finding somebody else at work."""
        return Unavailable(f"Another engine does the runs of {self._where}.", remedy="Stop it first.", code=IN_USE)

    @property
    def is_locked(self) -> bool:
        """Whether somebody does runs now."""
        try:
            looked = os.open(self._folder / "lock", os.O_RDONLY)
        except OSError:
            return False
        try:
            fcntl.flock(looked, fcntl.LOCK_SH | fcntl.LOCK_NB)
            return False
        except BlockingIOError:
            return True
        finally:
            os.close(looked)

    # ---------------------------------------------------------------------------------------------------------- states

    def latest(self) -> int:
        """The number of the newest state that is in the log, 0 without one."""
        return max(self._numbers(_STATE), default=0)

    def next_path(self, number: int) -> Path:
        """Where a run writes the state behind it."""
        return self._folder / f"{number}{_NEXT}"

    def path(self, number: int) -> Path | None:
        """The file of a state, whether or not it is in the log yet; None for number 0, which has no rows."""
        if not number:
            return None
        settled = self._folder / f"{number}{_STATE}"
        return settled if settled.exists() else self.next_path(number)

    def keep(self, number: int) -> None:
        """Make what was written for a state survive a power loss."""
        try:
            for path in (self.next_path(number), self._folder):
                opened = os.open(path, os.O_RDONLY)
                try:
                    os.fsync(opened)
                finally:
                    os.close(opened)
        except OSError as error:
            raise self._unusable(error) from error

    def settle(self, number: int) -> None:
        """The log has all changes up to this state: it is the one, and those before it can go. Idempotent."""
        with suppress(FileNotFoundError):
            self.next_path(number).rename(self._folder / f"{number}{_STATE}")
        for ending in (_STATE, _NEXT):
            for former in self._numbers(ending):
                if former < number:
                    (self._folder / f"{former}{ending}").unlink(missing_ok=True)

    def continue_at(self, number: int) -> None:
        """Go on behind the state that belongs to the log's place; what never got into the log is forgotten.

        Raises:
            Gap: there is no such state.
        """
        self.refuse_lost(number)
        self.settle(number)
        for ending in (_STATE, _NEXT):
            for later in self._numbers(ending):
                if later > number:
                    (self._folder / f"{later}{ending}").unlink(missing_ok=True)

    def refuse_lost(self, number: int) -> None:
        """Raise ``Gap`` if the state that belongs to the log's place is not there."""
        path = self.path(number)
        if path is not None and not path.exists():
            raise Gap(
                f"What was told of {self._where} up to run {number} is gone from {self._folder}.",
                remedy="Run `syncline resync`, which reads everything from Redis again, or set on_gap: resync.",
                code=LOST,
            )

    def clear(self) -> None:
        """Forget all states."""
        for ending in (_STATE, _NEXT):
            for number in self._numbers(ending):
                (self._folder / f"{number}{ending}").unlink(missing_ok=True)

    @contextmanager
    def state(self) -> Iterator[State]:
        """The newest state that is in the log, held for the block. Raises ``Unavailable`` while there is none."""
        while number := self.latest():
            try:
                file = (self._folder / f"{number}{_STATE}").open("rb")
            except FileNotFoundError:
                continue  # a newer one took its place
            with file:
                yield State(number, file)
                return
        raise Unavailable(f"Nothing was read of {self._where} yet.", remedy="Start `syncline run`.")

    def pinned(self, scratch: Path) -> Path | None:
        """The file of the newest state under a name in that folder too, where it stays; None without one."""
        pin = scratch / "told"
        while number := self.latest():
            with suppress(FileNotFoundError):
                os.link(self._folder / f"{number}{_STATE}", pin)
                return pin
        return None

    @contextmanager
    def scratch(self) -> Iterator[Path]:
        """A folder for what one run puts aside, gone behind the block. Of a process that was killed, the next run
        removes it.

        Raises:
            Misconfigured: there is no room for it.
        """
        with ExitStack() as stack:
            try:
                self._folder.mkdir(parents=True, exist_ok=True)
                folder = stack.enter_context(scratch_folder(_SCRATCH, self._folder))
            except OSError as error:
                raise self._unusable(error) from error
            yield folder

    def _numbers(self, ending: str) -> Sequence[int]:
        try:
            found = [entry.name.removesuffix(ending) for entry in os.scandir(self._folder)]
        except FileNotFoundError:
            return []
        except OSError as error:
            raise self._unusable(error) from error
        names = {entry for entry in found if entry.isdecimal()}
        return [int(name) for name in names if (self._folder / f"{name}{ending}").exists()]

    def _unusable(self, error: OSError) -> Misconfigured:
        reason = error.strerror or type(error).__name__
        return Misconfigured(
            f"The folder {self._folder} cannot be used: {reason}.",
            remedy="It must be on a local disk and writable by Syncline's user (log.path).",
            code="SL-TOLD-FOLDER",
        )

    # ---------------------------------------------------------------------------------------------------------- asking

    def have_run(self) -> None:
        """Have a run done that begins from now on, and wait for its end.

        Raises:
            Unavailable: nobody does runs, or not any more.
        """
        asked = self._folder / f"{_ASK}{uuid4().hex}"
        failed = _failed(asked)
        try:
            asked.touch()
            seen = time.monotonic()
            while asked.exists():
                if self.is_locked:
                    seen = time.monotonic()
                if time.monotonic() - seen > _ABSENT_S:
                    raise Unavailable(
                        f"No engine does the runs of {self._where} now.", remedy="`syncline status` says why."
                    )
                time.sleep(_POLL_S)
            if failed.exists():
                raise Unavailable(f"A run of {self._where} failed.", remedy="`syncline periodic status` says why.")
        except OSError as error:
            raise self._unusable(error) from error
        finally:
            asked.unlink(missing_ok=True)
            failed.unlink(missing_ok=True)

    def asking(self) -> list[Path]:
        """Who waits for a run that begins from now on."""
        return [Path(entry.path) for entry in os.scandir(self._folder) if entry.name.startswith(_ASK)]

    def answer(self, asking: Sequence[Path], *, done: bool) -> None:
        """Tell who waited that their run is over."""
        for asked in asking:
            with suppress(FileNotFoundError):  # whoever waited has gone
                if done:
                    asked.unlink()
                else:
                    asked.rename(_failed(asked))


def _failed(asked: Path) -> Path:
    return asked.with_name(asked.name.replace(_ASK, "failed-"))
