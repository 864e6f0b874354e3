"""Facts of rows as :mod:`syncline.digests` has them: as PostgreSQL's SQL, and of columns that were read.

The two are one definition in two languages, and stand side by side for that. SQL runs in sessions that print dates as
ISO, times in UTC and floats in full, as captures and stores set them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from psycopg import sql

from syncline.change import TableSchema
from syncline.digests import LONG_TEXT, Buckets, Chosen, Form, Ints, digests, form_of, salt, whole_key
from syncline.pgvalues.hashes import hash_bytes, hash_double, hash_int4, hash_int8_folded, hash_words
from syncline.pgvalues.values import INFINITY_DATE, INFINITY_TIME

__all__ = ["DigestColumn", "chosen_rows", "digest_of", "digest_query", "numbers_of"]

_LOW = np.int64(0xFFFFFFFF)
_EPOCH_US = 946_684_800_000_000  # PostgreSQL counts from 2000
_CHUNK = 32_768  # rows whose words stay in the processor's cache


# ----------------------------------------------------------------------------------------------------------------- SQL


@dataclass(frozen=True, slots=True)
class DigestColumn:
    """A column as SQL: its ``value``; ``printed`` is its text where that is not the value itself."""

    logical: str
    key: bool
    value: sql.Composable
    printed: sql.Composable | None


def digest_query(rows: sql.Composable, columns: Sequence[DigestColumn], buckets: Buckets) -> sql.Composed:
    """``bucket``, number of rows and XOR of their facts, all int8; ``rows`` is a FROM clause with what follows it."""
    if any(c.printed is not None and form_of(c.logical) == "text" for c in columns):
        rows, columns = _printed_once(rows, columns)
    seed = _seed(columns)
    facts = [sql.SQL("hashint4extended(0, {})").format(_salted(seed, -1))]
    for position, column in enumerate(columns):
        if not column.key:
            facts.append(sql.SQL("coalesce({}, 0)").format(_hash(column, _salted(seed, position))))
    return sql.SQL("select {bucket}, count(*)::int8, bit_xor({facts}) from {rows} group by 1").format(
        bucket=_bucket(columns, buckets), facts=sql.SQL(" # ").join(facts), rows=rows
    )


def _printed_once(
    rows: sql.Composable, columns: Sequence[DigestColumn]
) -> tuple[sql.Composable, Sequence[DigestColumn]]:
    """The same as a subquery that has printed what is hashed as text, and that the planner does not take apart."""
    values, outer = [], []
    for position, column in enumerate(columns):
        name = sql.Identifier("r", f"c{position}")
        value = column.printed if column.printed is not None and form_of(column.logical) == "text" else column.value
        values.append(sql.SQL("{} as {}").format(value, sql.Identifier(f"c{position}")))
        outer.append(replace(column, value=name, printed=None))
    return sql.SQL("(select {} from {} offset 0) as r").format(sql.SQL(", ").join(values), rows), outer


def chosen_rows(rows: sql.Composable, columns: Sequence[DigestColumn], chosen: Chosen) -> sql.Composed:
    """A FROM clause that leaves the rows of the chosen buckets; ``rows`` is one item of it with its alias."""
    numbers = sql.SQL("'{{{}}}'::int8[]").format(sql.SQL(",".join(map(str, chosen.numbers.to_pylist()))))
    shift = chosen.buckets.shift
    if shift is None:
        return sql.SQL("{} where {} = any({})").format(rows, _bucket(columns, chosen.buckets), numbers)
    # By ranges, so that an index on the key serves.
    return sql.SQL(
        "unnest({numbers}) as chosen(number) join {rows}"
        " on {key} >= (chosen.number << {shift}) and {key} <= (chosen.number << {shift}) + {room}::int8"
    ).format(
        numbers=numbers,
        rows=rows,
        key=next(c.value for c in columns if c.key),
        shift=sql.Literal(shift),
        room=sql.Literal((1 << shift) - 1),
    )


def _bucket(columns: Sequence[DigestColumn], buckets: Buckets) -> sql.Composable:
    if buckets.shift is not None:
        key = next(c.value for c in columns if c.key)
        return sql.SQL("({}::int8 >> {})").format(key, sql.Literal(buckets.shift))
    hashed = sql.SQL("hashint8extended({}, 0)").format(_seed(columns))
    return sql.SQL("({} & {})").format(hashed, sql.Literal((1 << buckets.bits) - 1))


def _seed(columns: Sequence[DigestColumn]) -> sql.Composable:
    keys = [c for c in columns if c.key]
    if len(keys) == 1 and keys[0].logical in ("int2", "int4", "int8"):
        return sql.SQL("{}::int8").format(keys[0].value)
    seed: sql.Composable = sql.SQL("0")
    for key in keys:
        seed = _hash(key, seed)
    return seed


def _salted(seed: sql.Composable, position: int) -> sql.Composable:
    return sql.SQL("{} # ({}::int8)").format(seed, sql.Literal(salt(position)))


_SQL: dict[Form, str] = {
    "bool": "hashint4extended({v}::int4, {s})",
    "int4": "hashint4extended({v}::int4, {s})",
    "int8": "hashint8extended({v} >> 32, hashint8extended({v} & 4294967295, {s}))",
    "float": "case when {v} = 0 then hashtextextended({v}::text, {s}) else hashfloat8extended({v}::float8, {s}) end",
    "uuid": "uuid_hash_extended({v}, {s})",
    "bytes": "hashtextextended(md5({v}), {s})",
}
# The hash of 64 bits folds them to 32; what it folds together differs in seconds.
_MOMENTS = {
    "timestamp": "hashfloat8extended(date_part('epoch', {v}), timestamp_hash_extended({v}, {s}))",
    "timestamptz": "hashfloat8extended(date_part('epoch', {v}), timestamp_hash_extended({v}::timestamp, {s}))",
    "time": "hashfloat8extended(date_part('epoch', {v}), time_hash_extended({v}, {s}))",
}
_SHORT = f"case when octet_length({{v}}) > {LONG_TEXT} then md5({{v}}) else {{v}} end"


def _hash(column: DigestColumn, seed: sql.Composable) -> sql.Composed:
    form = form_of(column.logical)
    if form == "moment":
        return sql.SQL(_MOMENTS[column.logical]).format(v=column.value, s=seed)
    if form != "text":
        assert form is not None
        return sql.SQL(_SQL[form]).format(v=column.value, s=seed)
    text = column.value if column.printed is None else column.printed
    return sql.SQL("hashtextextended({}, {})").format(sql.SQL(_SHORT).format(v=text), seed)


# ------------------------------------------------------------------------------------------------------------- columns


def digest_of(rows: pa.RecordBatch, schema: TableSchema, buckets: Buckets) -> pa.Table:
    """The digests of these rows (:func:`syncline.digests.digests`): the table's columns, then whatever else."""
    parts = [_facts(rows.slice(at, _CHUNK), schema, buckets) for at in range(0, rows.num_rows, _CHUNK)]
    bucket, facts = (np.concatenate([np.empty(0, np.int64), *(p[i] for p in parts)]) for i in range(2))
    return digests(bucket, np.ones(rows.num_rows, np.int64), facts)


def numbers_of(rows: pa.RecordBatch, schema: TableSchema, buckets: Buckets) -> Ints:
    """The bucket of each of the rows."""
    return _numbers(rows, schema, buckets, _seeds(rows, schema))


def _facts(rows: pa.RecordBatch, schema: TableSchema, buckets: Buckets) -> tuple[Ints, Ints]:
    seeds = _seeds(rows, schema)
    facts = hash_int4(np.zeros(rows.num_rows, np.int64), seeds ^ np.int64(salt(-1)))
    for position, column in enumerate(schema.columns):
        if not column.key:
            values = rows.column(position)
            hashed = _hashed(values, column.type, seeds ^ np.int64(salt(position)))
            facts ^= np.where(values.is_valid().to_numpy(zero_copy_only=False), hashed, 0)
    return _numbers(rows, schema, buckets, seeds), facts


def _numbers(rows: pa.RecordBatch, schema: TableSchema, buckets: Buckets, seeds: Ints) -> Ints:
    if buckets.shift is not None:
        return seeds >> np.int64(buckets.shift)
    return hash_int8_folded(seeds, np.zeros(rows.num_rows, np.int64)) & np.int64((1 << buckets.bits) - 1)


def _seeds(rows: pa.RecordBatch, schema: TableSchema) -> Ints:
    only = whole_key(schema)
    if only is not None and pa.types.is_integer(rows.column(only).type):
        return _ints(rows.column(only))
    seeds = np.zeros(rows.num_rows, np.int64)
    for position in schema.key_positions:
        seeds = _hashed(rows.column(position), schema.columns[position].type, seeds)
    return seeds


def _hashed(values: pa.Array, logical: str, seeds: Ints) -> Ints:
    """What :func:`_hash` gives; of nulls anything."""
    form = form_of(logical)
    if pa.types.is_string(values.type) or form == "text":  # the text of values that have no exact form, too
        return hash_bytes(_short(_text(values)), seeds)
    if form in ("bool", "int4"):
        return hash_int4(_ints(values), seeds)
    if form == "int8":
        whole = _ints(values)
        return hash_int8_folded(whole >> np.int64(32), hash_int8_folded(whole & _LOW, seeds))
    if form == "uuid":
        body = np.frombuffer(values.buffers()[1], "<u4").reshape(-1, 4)
        return hash_words(body[values.offset : values.offset + len(values)], seeds)
    if form == "bytes":
        return hash_bytes(pa.array([None if v is None else _md5(v) for v in values.to_pylist()], pa.string()), seeds)
    if form == "float":
        numbers = pc.fill_null(values, 0).to_numpy(zero_copy_only=False).astype(np.float64)
        hashed, zero = hash_double(numbers, seeds), numbers == 0
        if zero.any():
            hashed[zero] = hash_bytes(pa.array(np.where(np.signbit(numbers[zero]), "-0", "0")), seeds[zero])
        return hashed
    return _moments(values, seeds)


def _moments(values: pa.Array, seeds: Ints) -> Ints:
    since = _ints(values.view(pa.int64()))
    seconds = since / 1e6
    if pa.types.is_timestamp(values.type):
        top, least = np.int64(INFINITY_TIME), np.int64(-INFINITY_TIME - 1)
        future, past = since == top, since == -top
        since = np.where(future, top, np.where(past, least, since - np.int64(_EPOCH_US)))
        seconds[future], seconds[past] = np.inf, -np.inf
    return hash_double(seconds, hash_int8_folded(since, seeds))


def _text(values: pa.Array) -> pa.Array:
    """As PostgreSQL prints them: Arrow writes small decimals with an exponent, and knows no infinite dates."""
    if pa.types.is_string(values.type):
        return values
    texts = values.cast(pa.string())
    if pa.types.is_decimal(values.type):
        powers = pc.fill_null(pc.match_substring(texts, "E"), False)
        return pc.replace_with_mask(texts, powers, _plain(values.filter(powers))) if pc.any(powers).as_py() else texts
    if pa.types.is_date(values.type):
        days = values.view(pa.int32())
        for day, text in ((INFINITY_DATE, "infinity"), (-INFINITY_DATE, "-infinity")):
            texts = pc.if_else(pc.fill_null(pc.equal(days, day), False), text, texts)
    return texts


def _plain(values: pa.Array) -> pa.Array:
    """Decimals of a scale that is not 0 with all their digits."""
    scale = values.type.scale
    digits = values.view(pa.decimal128(38, 0)).cast(pa.string())
    negative = pc.starts_with(digits, "-")
    digits = pc.utf8_lpad(pc.utf8_ltrim(digits, "-"), scale + 1, "0")
    point = pc.binary_join_element_wise(
        pc.utf8_slice_codeunits(digits, 0, -scale), pc.utf8_slice_codeunits(digits, -scale), "."
    )
    return pc.binary_join_element_wise(pc.if_else(negative, "-", ""), point, "")


def _ints(values: pa.Array) -> Ints:
    return pc.fill_null(values.cast(pa.int64()), 0).to_numpy(zero_copy_only=False)


def _short(texts: pa.Array) -> pa.Array:
    """Long texts by their MD5: hashing goes block by block, and each is a step for all rows that have one."""
    long = pc.fill_null(pc.greater(pc.binary_length(texts), LONG_TEXT), False)
    if not pc.any(long).as_py():
        return texts
    made = pa.array([_md5(t.encode()) for t in texts.filter(long).to_pylist()], pa.string())
    return pc.replace_with_mask(texts, long, made)


def _md5(value: bytes) -> str:
    return hashlib.md5(value, usedforsecurity=False).hexdigest()
