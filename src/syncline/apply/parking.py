"""Parking: changes that a store refuses are set aside in the dead letters, with everything that depends on them.

Guarantee 7 and correctness rule 26: the dead letter commits before the target's cursor passes it; a partial change of a
parked key parks behind it, in order; a later whole row or delete of the key supersedes what is parked.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
from pyarrow import ipc

from syncline.apply.keys import key_hashes
from syncline.catalog.repository import ControlSchema, DeadLetter
from syncline.change import MAX_VERSION, TableSchema
from syncline.errors import Rejected
from syncline.logs import logger
from syncline.stores import FROM_KEY, PARTIAL_VERSION, VERSION, Folded, TableWork

__all__ = ["Parking"]

_log = logger()
_UPSERT, _UPDATE = "upsert", "update"  # whole rows, and partial ones
_FOLLOWS = "an earlier change of its key is parked"


@dataclass(slots=True)
class _Letter:
    operation: str
    code: str
    reason: str


class Parking:
    """The dead letters of one target, written through the control schema. Used by one worker."""

    def __init__(self, control: ControlSchema, source: str, target: str) -> None:
        self._control = control
        self._source = source
        self._target = target
        self._parked: dict[str, set[bytes]] | None = None

    def follow(self, work: TableWork, incarnation: int) -> TableWork:
        """Park partial rows that would complete a parked key; the work without them."""
        partials = work.rows.partials
        parked = self._keys(work.schema.qualified)
        if partials is None or not parked:
            return work
        hashes = key_hashes(partials.column(FROM_KEY).flatten())
        behind = np.fromiter((h in parked for h in hashes), bool, len(hashes))
        if not behind.any():
            return work
        self._write(
            work.schema, partials.filter(pa.array(behind)), incarnation, _Letter(_UPDATE, "SL-PARKED-KEY", _FOLLOWS)
        )
        rest = partials.filter(pa.array(~behind))
        return replace(work, rows=replace(work.rows, partials=rest if rest.num_rows else None))

    def park(self, works: Sequence[TableWork], rejected: Rejected, incarnation: int) -> list[TableWork]:
        """Park the refused rows (positions count the upserts, then the partials); the works without them."""
        return [
            self._without(work, rejected, incarnation) if work.schema.qualified == rejected.table else work
            for work in works
        ]

    def settle(self, works: Sequence[TableWork], *, older: bool = False) -> None:
        """Whole rows and deletes of parked keys supersede what is parked there: what is ``older`` than they are, or,
        once they are durable, their own change as well."""
        for work in works:
            parked = self._keys(work.schema.qualified)
            if not parked:
                continue
            if older and work.truncated is not None:
                self._supersede_all(work.schema.qualified, work.truncated)
            positions = work.schema.key_positions
            for batch, key in ((work.rows.upserts, positions), (work.rows.deletes, range(len(positions)))):
                if batch is not None:
                    self._supersede(work.schema, batch.select([*key, batch.num_columns + VERSION]), parked, older=older)

    def clear(self, table: str) -> None:
        """Nobody wants changes of the table any more, so what is parked of it is superseded, whatever it is."""
        if self._keys(table):
            self._supersede_all(table, MAX_VERSION)

    def _supersede_all(self, table: str, through: int) -> None:
        self._control.supersede(self._target, table, list(self._keys(table)), through)
        self._parked = None  # what is newer stays

    def _supersede(self, schema: TableSchema, batch: pa.RecordBatch, parked: set[bytes], *, older: bool) -> None:
        """``batch`` holds keys and versions."""
        versions = batch.column(VERSION).to_pylist()
        hashes = key_hashes(batch.columns[:VERSION])
        settled: dict[int, list[bytes]] = {}
        for key, version in zip(hashes, versions, strict=True):
            if key in parked:
                settled.setdefault(version - older, []).append(key)
        for version, keys in settled.items():
            self._control.supersede(self._target, schema.qualified, keys, version)
            if not older:
                parked.difference_update(keys)

    def _without(self, work: TableWork, rejected: Rejected, incarnation: int) -> TableWork:
        refused = set(rejected.rows)
        letter = _Letter(_UPSERT, rejected.code, rejected.reason)
        upserts, offset = work.rows.upserts, 0
        if upserts is not None:
            offset = upserts.num_rows
            upserts = self._split(work.schema, upserts, refused, 0, incarnation, letter)
        partials = work.rows.partials
        if partials is not None:
            letter = _Letter(_UPDATE, rejected.code, rejected.reason)
            partials = self._split(work.schema, partials, refused, offset, incarnation, letter)
        return replace(work, rows=Folded(upserts, partials, work.rows.deletes))

    def _split(
        self,
        schema: TableSchema,
        batch: pa.RecordBatch,
        refused: set[int],
        offset: int,
        incarnation: int,
        letter: _Letter,
    ) -> pa.RecordBatch | None:
        bad = np.fromiter((offset + i in refused for i in range(batch.num_rows)), bool, batch.num_rows)
        if not bad.any():
            return batch
        self._write(schema, batch.filter(pa.array(bad)), incarnation, letter)
        rest = batch.filter(pa.array(~bad))
        return rest if rest.num_rows else None

    def _write(self, schema: TableSchema, rows: pa.RecordBatch, incarnation: int, letter: _Letter) -> None:
        partial = letter.operation == _UPDATE
        hashes = key_hashes([rows.column(i) for i in schema.key_positions])
        versions = rows.column(PARTIAL_VERSION if partial else VERSION).to_pylist()
        self._control.park(
            [
                DeadLetter(
                    source=self._source,
                    target=self._target,
                    table_name=schema.qualified,
                    key_hash=key_hash,
                    incarnation=incarnation,
                    version=version,
                    ordinal=0,  # folding leaves one change per key and version
                    operation=letter.operation,
                    code=letter.code,
                    reason=letter.reason,
                    payload=_payload(rows.slice(i, 1)),
                    partial=partial,
                )
                for i, (key_hash, version) in enumerate(zip(hashes, versions, strict=True))
            ]
        )
        self._keys(schema.qualified).update(hashes)
        _log.warning(
            "changes parked",
            source=self._source,
            target=self._target,
            table=schema.qualified,
            rows=len(hashes),
            code=letter.code,
            reason=letter.reason,
        )

    def _keys(self, table: str) -> set[bytes]:
        if self._parked is None:
            found = self._control.open_dead_letters(self._target)
            self._parked = {table: set(hashes) for table, hashes in found.items()}
        return self._parked.setdefault(table, set())


def _payload(row: pa.RecordBatch) -> bytes:
    sink = pa.BufferOutputStream()
    with ipc.new_stream(sink, row.schema) as writer:
        writer.write_batch(row)
    return bytes(sink.getvalue())
