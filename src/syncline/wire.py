"""The bytes of an entry in a log: a head in MessagePack that tells of its items, a body with their Arrow batches."""

from __future__ import annotations

from functools import lru_cache

import msgspec
import pyarrow as pa
from pyarrow import ipc

from syncline.change import SYSTEM, Batch, Entry, Item, Loaded, Marker, Part, TableSchema, Truncate, arrow_type
from syncline.errors import Damaged

__all__ = ["WIRE_FORMAT", "decode_entry", "encode_entry"]

WIRE_FORMAT = 1


class _ItemHead(msgspec.Struct, omit_defaults=True):
    """``kind`` is ``batch`` (an IPC stream), ``bare`` (a record batch message whose schema follows from the table's and
    from ``form``), ``truncate`` or ``marker``."""

    kind: str
    schema: msgspec.Raw = msgspec.Raw(b"")
    size: int = 0
    version: int = 0
    note: str = ""
    form: int = 0


class _Head(msgspec.Struct, omit_defaults=True):
    format: int
    items: list[_ItemHead]
    place: int = 0
    through: int = 0
    incarnation: int = 1
    commit_time: int = 0
    targets: tuple[str, ...] | None = None
    part: tuple[int, bool] | None = None
    origin: str = ""


# Compressing on Arrow's thread pool costs half as much processor time again, and many times as much for a few rows.
_WRITE_OPTIONS = ipc.IpcWriteOptions(compression="lz4", use_threads=False)
_READ_OPTIONS = ipc.IpcReadOptions(use_threads=False)
_head_encoder = msgspec.msgpack.Encoder()
_head_decoder = msgspec.msgpack.Decoder(_Head)
_schema_decoder = msgspec.msgpack.Decoder(TableSchema)

# A batch of a few rows is mostly its own schema and costs more to compress than to write: it is stored bare.
_BARE_ROWS = 64
_BARE_BYTES = 32 * 1024
_PARTIAL, _REKEYS = 1, 2


@lru_cache(maxsize=1024)
def _arrow_schema(schema: TableSchema, form: int) -> pa.Schema:
    """The Arrow schema of a batch whose columns all have their exact types."""
    fields = [(c.name, arrow_type(c.type)) for c in schema.columns]
    old_key = pa.struct([(c.name, arrow_type(c.type)) for c in schema.key])
    system = [
        pa.int8(),
        pa.int64(),
        pa.int64(),
        pa.timestamp("us", "UTC"),
        pa.int64(),
        pa.binary() if form & _PARTIAL else pa.null(),
        old_key if form & _REKEYS else pa.null(),
    ]
    return pa.schema(fields + list(zip(SYSTEM, system, strict=True)))


@lru_cache(maxsize=1024)
def _packed(schema: TableSchema) -> msgspec.Raw:
    return msgspec.Raw(_head_encoder.encode(schema))


@lru_cache(maxsize=1024)
def _unpacked(packed: bytes) -> TableSchema:
    """One object for all entries of a table, so that what is cached on it is computed once."""
    return _schema_decoder.decode(packed)


def _encode_batch(batch: Batch) -> tuple[_ItemHead, pa.Buffer]:
    rows = batch.rows
    if rows.num_rows <= _BARE_ROWS:
        form = (_PARTIAL if batch.partial else 0) | (_REKEYS if batch.rekeys else 0)
        if rows.schema.equals(_arrow_schema(batch.schema, form), check_metadata=True):
            body = rows.serialize()
            if body.size <= _BARE_BYTES:
                return _ItemHead("bare", _packed(batch.schema), size=body.size, form=form), body
    sink = pa.BufferOutputStream()
    with ipc.new_stream(sink, rows.schema, options=_WRITE_OPTIONS) as writer:
        writer.write_batch(rows)
    body = sink.getvalue()
    return _ItemHead("batch", _packed(batch.schema), size=body.size), body


def _marker_note(marker: Marker) -> str:
    known = marker.known
    described = (known.shape, str(known.since), known.columns) if known else ()
    return "\0".join((marker.kind, marker.table, *described))


def encode_entry(entry: Entry) -> tuple[bytes, bytes]:
    """``(head, body)``: a msgpack head and the batches as Arrow IPC (lz4, or bare if small), one behind the other."""
    heads: list[_ItemHead] = []
    bodies: list[pa.Buffer] = []
    for item in entry.items:
        match item:
            case Batch():
                head, body = _encode_batch(item)
                heads.append(head)
                bodies.append(body)
            case Truncate():
                heads.append(_ItemHead("truncate", _packed(item.schema), version=item.version))
            case Marker():
                heads.append(_ItemHead("marker", note=_marker_note(item)))
    part = (entry.part.index, entry.part.last) if entry.part else None
    whole = _Head(WIRE_FORMAT, heads, entry.place, entry.through, entry.incarnation, entry.commit_time, entry.targets)
    whole.part, whole.origin = part, entry.origin
    encoded = _head_encoder.encode(whole)
    return encoded, bodies[0].to_pybytes() if len(bodies) == 1 else b"".join(bodies)


def _decode_item(head: _ItemHead, body: pa.Buffer) -> Item:
    match head.kind:
        case "batch":
            return Batch(_unpacked(bytes(head.schema)), ipc.open_stream(body, options=_READ_OPTIONS).read_next_batch())
        case "bare":
            schema = _unpacked(bytes(head.schema))
            return Batch(schema, ipc.read_record_batch(body, _arrow_schema(schema, head.form)))
        case "truncate":
            return Truncate(_unpacked(bytes(head.schema)), head.version)
        case "marker":
            kind, table, *known = head.note.split("\0")
            return Marker(kind, table, Loaded(known[0], int(known[1]), known[2]) if known else None)
    raise ValueError(f"unknown item kind {head.kind!r}")


def decode_entry(head: bytes, body: bytes) -> Entry:
    """The entry that :func:`encode_entry` wrote. Batches point into ``body`` where their compression allows it.

    Raises:
        Damaged: the bytes are not an entry of a format this version knows.
    """
    try:
        parsed = _head_decoder.decode(head)
        if parsed.format != WIRE_FORMAT:
            raise Damaged(
                f"A log entry has wire format {parsed.format}; this version reads format {WIRE_FORMAT}.",
                remedy="Run the version of Syncline that wrote the log until it is drained, then upgrade.",
            )
        items: list[Item] = []
        buffer, offset = pa.py_buffer(body), 0
        for item in parsed.items:
            if offset + item.size > len(body):
                raise ValueError("its body is cut")
            items.append(_decode_item(item, buffer.slice(offset, item.size)))
            offset += item.size
    except (
        msgspec.DecodeError,
        pa.ArrowException,
        StopIteration,
        LookupError,
        TypeError,
        ValueError,
        EOFError,
        OSError,
    ) as error:
        raise Damaged(f"A log entry cannot be read: {error}.") from error
    return Entry(
        tuple(items),
        parsed.place,
        parsed.through,
        parsed.incarnation,
        parsed.commit_time,
        parsed.targets,
        Part(*parsed.part) if parsed.part else None,
        parsed.origin,
    )
