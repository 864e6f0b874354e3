"""Rows that were read, of a few tables: in memory while they are few, in files from then on, parted so that what
belongs together can be had some at a time.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import ipc

__all__ = ["PART", "Staged"]

PART = "part"  # the column that says which part a row is of; it is not kept
_HELD_BYTES = 8 << 20
_FORMAT = ipc.IpcWriteOptions(compression="lz4")


class Staged:
    """``most_parts`` is how many there are once rows go into files in ``folder``; before, all are one. One thread;
    close it.

    Raises ``OSError``: the disk is full.
    """

    def __init__(self, folder: Path, most_parts: int) -> None:
        self._folder, self.most_parts = folder, most_parts
        self._held: dict[str, list[pa.Table]] = {}
        self._held_bytes = 0
        self._spills = self._settled = False
        self._new: dict[str, list[pa.Table]] = {}
        self._writing: dict[str, _Pieces] = {}
        self._fresh: dict[str, pa.Table | _Pieces] = {}
        self._written: dict[str, list[_Pieces]] = {}

    @property
    def parts(self) -> int:
        """How many parts there are."""
        return self.most_parts if self._spills else 1

    def add(self, table: str, rows: pa.Table) -> None:
        """Take rows in, which have a column :data:`PART` below ``most_parts``."""
        if self._spills:
            self._write(table, rows)
            return
        self._new.setdefault(table, []).append(rows)
        self._held_bytes += rows.nbytes
        if self._held_bytes > _HELD_BYTES and not self._settled:  # later there are fewer
            self._spills = True
            for name, many in self._new.items():
                for some in many:
                    self._write(name, some)
            self._new.clear()

    def _write(self, table: str, rows: pa.Table) -> None:
        if table not in self._writing:
            number = len(self._written.setdefault(table, []))
            self._writing[table] = _Pieces(self._folder / f"{table}-{number}.arrow", rows.schema)
            self._written[table].append(self._writing[table])
        self._writing[table].write(rows)

    def settle(self) -> None:
        """Make all that was added readable; what it was since the last time, ``of`` says without a part."""
        self._settled = True
        for pieces in self._writing.values():
            pieces.settle()
        new = {table: pa.concat_tables(many) for table, many in self._new.items()}
        for table, rows in new.items():
            self._held.setdefault(table, []).append(rows)
        self._fresh = {**new, **self._writing}
        self._new.clear()
        self._writing.clear()

    def of(self, table: str, part: int | None) -> pa.Table | None:
        """The rows of a part, or those that were added last; None where nothing ever was."""
        if part is None:
            fresh = self._fresh.get(table)
            return fresh.of(range(self.parts)) if isinstance(fresh, _Pieces) else fresh
        many = self._held.get(table, []) if not self._spills else self._pieces(table, part)
        return pa.concat_tables(many) if many else None

    def _pieces(self, table: str, part: int) -> list[pa.Table]:
        return [pieces.of([part]) for pieces in self._written.get(table, ())]

    def close(self) -> None:
        """Close the files, which stay."""
        for many in self._written.values():
            for pieces in many:
                pieces.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class _Pieces:
    """One file of record batches, and which of them are of which part."""

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self._schema = schema
        self._path = path
        self._writer = ipc.new_file(str(path), schema, options=_FORMAT)
        self._reader: ipc.RecordBatchFileReader | None = None
        self._places: dict[int, list[int]] = {}
        self._count = 0

    def write(self, rows: pa.Table) -> None:
        ordered = rows.take(pc.sort_indices(rows.column(PART))).combine_chunks()
        (batch,) = ordered.to_batches()
        counts = np.bincount(batch.column(PART).to_numpy(zero_copy_only=False))
        first = 0
        for part, count in enumerate(counts.tolist()):
            if count:
                self._writer.write_batch(batch.slice(first, count))
                self._places.setdefault(part, []).append(self._count)
                self._count += 1
                first += count

    def settle(self) -> None:
        self._writer.close()
        self._reader = ipc.open_file(pa.OSFile(str(self._path)))

    def of(self, parts: Iterable[int]) -> pa.Table:
        assert self._reader is not None  # settled
        found = [self._reader.get_batch(n) for part in parts for n in self._places.get(part, ())]
        return pa.Table.from_batches(found, self._schema)

    def close(self) -> None:
        self._writer.close()
