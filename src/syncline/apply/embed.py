"""Making the vectors of points that the target does not have yet, only for rows whose text changed."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from syncline.apply.keys import key_bytes
from syncline.change import TableSchema
from syncline.errors import Rejected
from syncline.mapping import MappedTable
from syncline.mapping.embed import Embedder
from syncline.masks import Bools, packed_masks, unpacked_masks
from syncline.stores import FROM_KEY, UNCHANGED, Folded, Store, TableWork

__all__ = ["embed"]


def embed(work: TableWork, mapped: MappedTable, store: Store | None) -> TableWork:
    """The work with its vectors: rows whose text is what the target's vector was made of leave it alone (so whole rows
    become partial ones), and the others get a new one; all do where ``store`` is None.

    Raises:
        Rejected: an embedder failed on rows; positions count the upserts, then the partials.
        Unavailable: the target can't be read just now.
    """
    for embedder in mapped.embedders:
        work = _embed(work, mapped.schema, embedder, store)
    return work


def _embed(work: TableWork, schema: TableSchema, embedder: Embedder, store: Store | None) -> TableWork:
    names = [c.name for c in schema.columns]
    vector, digest = names.index(embedder.name), names.index(embedder.columns[1].name)
    upserts, partials = work.rows.upserts, work.rows.partials
    offset = upserts.num_rows if upserts is not None else 0
    if store is not None and partials is not None:
        partials = _left_alone(partials, schema, (vector, digest), store)
    if upserts is not None:
        known = np.zeros(offset, np.bool_)
        if store is not None:
            keys = upserts.select(list(schema.key_positions))
            known = _known(keys, upserts.column(digest), schema, (vector, digest), store)
        rest, same = upserts.filter(pa.array(~known)), upserts.filter(pa.array(known))
        upserts = _filled(rest, vector, embedder, schema, np.flatnonzero(~known)) if rest.num_rows else None
        if same.num_rows:
            partials = _with_partials(partials, same, schema, (vector, digest))
    return replace(
        work, rows=Folded(upserts, _new_texts(partials, schema, vector, embedder, offset), work.rows.deletes)
    )


def _known(keys: pa.RecordBatch, digests: pa.Array, schema: TableSchema, pair: tuple[int, int], store: Store) -> Bools:
    """True where the target's row of a key has a vector of this very text."""
    stored = store.fetch(schema, keys)
    if not stored.num_rows:
        return np.zeros(keys.num_rows, np.bool_)
    columns = [stored.column(i).combine_chunks() for i in schema.key_positions]
    at = pc.index_in(key_bytes(keys.columns), value_set=key_bytes(columns))
    vectors, theirs = (stored.column(i).combine_chunks() for i in pair)
    theirs = pc.if_else(vectors.is_valid(), theirs, pa.scalar(None, theirs.type)).take(at)
    return np.asarray(pc.fill_null(pc.equal(theirs, digests), False).to_numpy(zero_copy_only=False))


def _left_alone(partials: pa.RecordBatch, schema: TableSchema, pair: tuple[int, int], store: Store) -> pa.RecordBatch:
    """Partial rows carry every column but the large ones, so their text too: where it is that of the row they rest on,
    vector and digest (``pair``) stay as they are."""
    masks = unpacked_masks(partials.column(UNCHANGED), schema)
    carried = np.flatnonzero(~masks[:, pair[0]])
    if not len(carried):
        return partials
    rows = partials.take(pa.array(carried))
    keys = pa.RecordBatch.from_arrays(rows.column(FROM_KEY).flatten(), names=[c.name for c in schema.key])
    known = carried[_known(keys, rows.column(pair[1]), schema, pair, store)]
    for column in pair:
        masks[known, column] = True
    place = partials.num_columns + UNCHANGED
    return partials.set_column(place, partials.schema.field(place), packed_masks(masks, schema))


def _filled(
    rows: pa.RecordBatch, vector: int, embedder: Embedder, schema: TableSchema, positions: np.ndarray[Any, Any]
) -> pa.RecordBatch:
    """The rows with their vectors, where they have a text."""
    texts = embedder.text_of(rows.columns)
    have = np.flatnonzero(texts.is_valid().to_numpy(zero_copy_only=False))
    try:
        made = embedder.embed(schema.qualified, texts.take(pa.array(have)).to_pylist()) if len(have) else None
    except Rejected as error:
        refused = [int(positions[have[row]]) for row in error.rows]
        raise Rejected(error.table, refused, error.reason) from error
    if made is None:
        return rows
    index = np.full(rows.num_rows, -1, np.int64)
    index[have] = np.arange(len(have))
    vectors = made.take(pa.array(index, mask=index < 0))
    return rows.set_column(vector, rows.schema.field(vector).with_type(vectors.type), vectors)


def _with_partials(
    partials: pa.RecordBatch | None, rows: pa.RecordBatch, schema: TableSchema, unchanged: tuple[int, int]
) -> pa.RecordBatch:
    """Whole rows as partial ones that leave two columns alone, behind those that are there."""
    matrix = np.zeros((rows.num_rows, len(schema.columns)), np.bool_)
    matrix[:, list(unchanged)] = True
    keys = pa.StructArray.from_arrays(
        [rows.column(i) for i in schema.key_positions], names=[c.name for c in schema.key]
    )
    made = pa.RecordBatch.from_arrays(
        [*rows.columns, packed_masks(matrix, schema), keys], names=[*rows.schema.names, "unchanged", "from_key"]
    )
    if partials is None:
        return made
    return (
        pa.concat_tables([pa.Table.from_batches([partials]), pa.Table.from_batches([made])])
        .combine_chunks()
        .to_batches()[0]
    )


def _new_texts(
    partials: pa.RecordBatch | None, schema: TableSchema, vector: int, embedder: Embedder, offset: int
) -> pa.RecordBatch | None:
    """Partial rows that carry a text get its vector."""
    if partials is None:
        return None
    carried = np.flatnonzero(~unpacked_masks(partials.column(UNCHANGED), schema)[:, vector])
    if not len(carried):
        return partials
    rows = _filled(partials.take(pa.array(carried)), vector, embedder, schema, carried + offset)
    index = np.full(partials.num_rows, -1, np.int64)
    index[carried] = np.arange(len(carried))
    vectors = rows.column(vector).take(pa.array(index, mask=index < 0))
    return partials.set_column(vector, partials.schema.field(vector), vectors)
