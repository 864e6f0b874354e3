"""The columnar decoder against the row-wise reference: any valid batch, and any damage to one."""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from wire import NULL, UNCHANGED, Table, Value, binary, content, copy_row, delete, insert, text, update

from syncline.capture import pgoutput, rowwise
from syncline.capture.messages import Run
from syncline.capture.pgoutput import decode, decode_copy
from syncline.change import Op
from syncline.errors import Damaged
from syncline.pgvalues.values import text_of_binary

# SYNCLINE_FUZZ_EXAMPLES raises it for a long run.
EXAMPLES = int(os.environ.get("SYNCLINE_FUZZ_EXAMPLES", "250"))
SETTINGS = settings(
    max_examples=EXAMPLES,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)

# ------------------------------------------------------------------------- values in both forms: (text, binary)

Forms = tuple[str, bytes]


def integers(layout: str) -> st.SearchStrategy[Forms]:
    top = 2 ** (8 * struct.calcsize(layout) - 1)
    return st.integers(-top, top - 1).map(lambda n: (str(n), struct.pack(layout, n)))


def float_text(value: Any) -> str:
    return {"nan": "NaN", "inf": "Infinity", "-inf": "-Infinity"}.get(str(value), str(value))


def numeric(unscaled: int, scale: int) -> Forms:
    """A numeric as PostgreSQL sends it: groups of four digits on both sides of the point, without zero groups."""
    digits = str(abs(unscaled)).rjust(scale + 1, "0")
    whole, fraction = digits[: len(digits) - scale], digits[len(digits) - scale :]
    left = whole.rjust(-(-len(whole) // 4) * 4, "0")
    right = fraction.ljust(-(-len(fraction) // 4) * 4, "0")
    groups = [int((left + right)[i : i + 4]) for i in range(0, len(left + right), 4)]
    weight = len(left) // 4 - 1
    while groups and groups[0] == 0:
        groups.pop(0)
        weight -= 1
    while groups and groups[-1] == 0:
        groups.pop()
    head = struct.pack(">HhHH", len(groups), weight if groups else 0, 0x4000 if unscaled < 0 else 0, scale)
    sign, point = "-" if unscaled < 0 else "", "." if scale else ""
    return f"{sign}{whole}{point}{fraction}", head + b"".join(struct.pack(">H", g) for g in groups)


def numerics(precision: int, scale: int) -> st.SearchStrategy[Forms]:
    top = 10**precision - 1
    sizes = st.integers(1, precision).flatmap(lambda p: st.integers(-(10**p) + 1, 10**p - 1))
    ordinary = (sizes | st.sampled_from([0, 1, -1, top, -top])).map(lambda n: numeric(n, scale))
    return st.integers(0, 60).flatmap(
        lambda n: ordinary if n else st.just(("NaN", struct.pack(">HhHH", 0, 0, 0xC000, 0)))
    )


def stamps(logical: str) -> st.SearchStrategy[Forms]:
    ordinary = st.integers(-(10**15), 10**15)
    any_time = st.integers(-210_000_000_000_000_000, 9_223_371_331_199_999_999)
    rare = st.sampled_from([2**63 - 1, -(2**63), 0, 1, -1])
    numbers = st.integers(0, 30).flatmap(lambda n: ordinary if n > 1 else rare if n else any_time)
    packed = numbers.map(lambda n: struct.pack(">q", n))
    return packed.map(lambda raw: (text_of_binary(logical, raw), raw))


def dates(text_of: Any = text_of_binary) -> st.SearchStrategy[Forms]:
    def forms(days: int) -> Forms:
        stamp = text_of("timestamp", struct.pack(">q", days * 86_400_000_000))
        return stamp.replace(" 00:00:00", ""), struct.pack(">i", days)

    infinite = [("infinity", struct.pack(">i", 2**31 - 1)), ("-infinity", struct.pack(">i", -(2**31)))]
    rare = st.integers(-2_451_545, 106_751_000).map(forms) | st.sampled_from(infinite)
    return st.integers(0, 20).flatmap(lambda n: st.integers(-20_000, 40_000).map(forms) if n else rare)


def times() -> st.SearchStrategy[Forms]:
    def forms(us: int) -> Forms:
        fraction = f".{us % 1_000_000:06d}".rstrip("0").rstrip(".")
        clock = f"{us // 3_600_000_000:02d}:{us // 60_000_000 % 60:02d}:{us // 1_000_000 % 60:02d}"
        return clock + fraction, struct.pack(">q", us)

    return (st.integers(0, 86_399_999_999) | st.sampled_from([86_400_000_000, 0, 1_000_000])).map(forms)


def strings() -> st.SearchStrategy[str]:
    return st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=12)


def uuid_text(raw: bytes) -> str:
    return "-".join((raw[:4].hex(), raw[4:6].hex(), raw[6:8].hex(), raw[8:10].hex(), raw[10:].hex()))


def numeric_typmod(precision: int, scale: int) -> int:
    return (precision << 16 | scale) + 4


TYPES: dict[tuple[int, int], st.SearchStrategy[Forms]] = {
    (16, -1): st.booleans().map(lambda b: ("t" if b else "f", bytes([b]))),
    (17, -1): st.binary(max_size=9).map(lambda b: ("\\x" + b.hex(), b)),
    (20, -1): integers(">q"),
    (21, -1): integers(">h"),
    (23, -1): integers(">i"),
    (26, -1): st.integers(0, 2**32 - 1).map(lambda n: (str(n), struct.pack(">I", n))),
    (25, -1): strings().map(lambda s: (s, s.encode())),
    (1043, 14): strings().map(lambda s: (s, s.encode())),
    (114, -1): strings().map(lambda s: (f'"{s}"', f'"{s}"'.encode())),
    (3802, -1): strings().map(lambda s: (f'"{s}"', b"\1" + f'"{s}"'.encode())),
    (700, -1): st.floats(width=32).map(lambda f: (float_text(np.float32(f)), struct.pack(">f", f))),
    (701, -1): st.floats().map(lambda f: (float_text(f), struct.pack(">d", f))),
    (1082, -1): dates(),
    (1083, -1): times(),
    (1114, -1): stamps("timestamp"),
    (1184, -1): stamps("timestamptz"),
    (2950, -1): st.binary(min_size=16, max_size=16).map(lambda b: (uuid_text(b), b)),
    (1700, numeric_typmod(12, 2)): numerics(12, 2),
    (1700, numeric_typmod(18, 0)): numerics(18, 0),
    (1700, numeric_typmod(19, 7)): numerics(19, 7),
    (1700, numeric_typmod(20, 20)): numerics(20, 20),
    (1700, numeric_typmod(38, 10)): numerics(38, 10),
}


# ------------------------------------------------------------------------------------------------ batches of both


@dataclass
class Made:
    """A table and messages about it, in both formats."""

    table: Table
    texts: list[bytes] = field(default_factory=list)
    binaries: list[bytes] = field(default_factory=list)


@st.composite
def tables(draw: st.DrawFn) -> Table:
    types = draw(st.lists(st.sampled_from(list(TYPES)), min_size=1, max_size=5))
    keys = draw(st.sets(st.integers(0, len(types) - 1), min_size=1, max_size=2))
    columns = tuple((f"c{i}", oid, typmod, i in keys) for i, (oid, typmod) in enumerate(types))
    return Table(columns, draw(st.sampled_from("dif")))


@st.composite
def messages(draw: st.DrawFn) -> Made:
    made = Made(draw(tables()))
    for shape in draw(st.lists(st.sampled_from(["I", "UN", "UK", "UO", "DK", "DO"]), max_size=8)):
        row = [draw(TYPES[oid, typmod]) for _, oid, typmod, _ in made.table.columns]
        before = [
            draw(TYPES[c[1], c[2]]) if draw(st.booleans()) else v for c, v in zip(made.table.columns, row, strict=True)
        ]
        holes = draw(st.lists(st.sampled_from("vvvnu"), min_size=len(row), max_size=len(row)))
        gone = draw(st.lists(st.sampled_from("vvn"), min_size=len(row), max_size=len(row)))
        for form, target in ((0, made.texts), (1, made.binaries)):
            target.append(message(made.table, shape, row, before, holes, gone, form))
    return made


def message(table: Table, shape: str, row: Any, before: Any, holes: Any, gone: Any, form: int) -> bytes:
    """One message of a shape; ``holes`` and ``gone`` say which values of the new and the old row are missing."""

    def value(forms: Forms) -> Value:
        return binary(forms[1]) if form else text(forms[0])

    keys = [c[3] for c in table.columns]
    null_keys = table.identity == "f"
    old = [NULL if g == "n" and (null_keys or not k) else value(v) for v, g, k in zip(before, gone, keys, strict=True)]
    key = [o if k else NULL for o, k in zip(old, keys, strict=True)]
    new = []
    for v, hole, k in zip(row, holes, keys, strict=True):
        null = hole == "n" and (null_keys or not k)
        unchanged = hole == "u" and shape in (("UN", "UK", "UO") if not k else ("UK", "UO"))
        new.append(NULL if null else UNCHANGED if unchanged else value(v))
    match shape:
        case "I":
            return insert(new)
        case "UN":
            return update(new)
        case "UK":
            return update(new, key=key)
        case "UO":
            return update(new, old=old)
        case "DK":
            return delete(key=key)
        case _:
            return delete(old=old)


def runs_of(count: int) -> list[Run]:
    half = count // 2
    return [Run(800, 10**15, 5, 0, half), Run(900, 10**15 + 1, 6, 10, count - half)]


def both(made: Made, payloads: list[bytes], *, binary: bool) -> tuple[Any, Any]:
    schema, relation, runs = made.table.schema, made.table.relation, runs_of(len(payloads))
    columnar = pgoutput._decode_columnar(schema, relation, payloads, runs, binary)
    return columnar, rowwise.decode(schema, relation, payloads, runs, binary=binary)


@SETTINGS
@given(messages())
def test_valid_batches_decode_like_the_reference_in_text_and_in_binary(made: Made) -> None:
    columnar, reference = both(made, made.texts, binary=False)
    assert content(columnar) == content(reference)
    from_binary, reference = both(made, made.binaries, binary=True)
    assert content(from_binary) == content(reference)
    assert content(from_binary) == content(columnar)


def test_thousands_of_mixed_messages_decode_like_the_reference() -> None:
    """Offsets of a large buffer, most of it from rows of other shapes."""
    rng = np.random.default_rng(7)
    table = Table((("id", 20, -1, True), ("body", 25, -1, False), ("at", 1184, -1, False)), "f")
    made = Made(table)
    for i in range(3000):
        rows = [
            [(str(n), struct.pack(">q", n)), (body, body.encode()), (text_of_binary("timestamptz", at), at)]
            for n in (int(rng.integers(-9, 9)), i)
            for body in ("\u00e9" * int(rng.integers(0, 300)),)
            for at in (struct.pack(">q", int(rng.integers(-(10**15), 10**15))),)
        ]
        shape = ["I", "UN", "UK", "UO", "DK", "DO"][int(rng.integers(0, 6))]
        holes, gone = (list(rng.choice(list(kinds), 3)) for kinds in ("vvvnu", "vvn"))
        holes[0] = gone[0] = "v"
        made.texts.append(message(table, shape, rows[0], rows[1], holes, gone, 0))
        made.binaries.append(message(table, shape, rows[0], rows[1], holes, gone, 1))
    columnar, reference = both(made, made.texts, binary=False)
    assert content(columnar) == content(reference)
    assert content(both(made, made.binaries, binary=True)[0]) == content(columnar)
    assert {"INSERT", "UPDATE", "DELETE", "REKEY"} == {Op(op).name for op in columnar.ints("op")}


@st.composite
def damage(draw: st.DrawFn, payload: bytes) -> bytes:
    at = draw(st.integers(0, max(0, len(payload) - 1)))
    some = draw(st.binary(min_size=1, max_size=4))
    match draw(st.sampled_from(["flip", "set", "cut", "insert", "remove", "repeat"])):
        case "flip":
            return payload[:at] + bytes([payload[at] ^ (1 << draw(st.integers(0, 7)))]) + payload[at + 1 :]
        case "set":
            return payload[:at] + some + payload[at + len(some) :]
        case "cut":
            return payload[:at]
        case "insert":
            return payload[:at] + some + payload[at:]
        case "remove":
            return payload[:at] + payload[at + len(some) :]
        case _:
            return payload + payload[at:]


def check_damaged(columnar: Any, reference: Any, whole: Any) -> None:
    """The columnar decoder refuses, or agrees with the reference; and together they never raise anything else."""
    try:
        expected = content(reference())
    except Damaged:
        with pytest.raises(pgoutput._ODD):
            columnar()
        with pytest.raises(Damaged, match=r"message \d+ of the batch of table public\.t "):
            whole()
        return
    assert content(whole()) == expected


@SETTINGS
@given(st.data())
def test_damaged_messages_are_refused_or_decode_like_the_reference(data: st.DataObject) -> None:
    made = data.draw(messages().filter(lambda m: len(m.texts) > 0))
    in_binary = data.draw(st.booleans())
    payloads = list(made.binaries if in_binary else made.texts)
    for _ in range(data.draw(st.integers(1, 3))):
        i = data.draw(st.integers(0, len(payloads) - 1))
        payloads[i] = data.draw(damage(payloads[i])) if payloads[i] else b"I"
    args = (made.table.schema, made.table.relation, payloads, runs_of(len(payloads)))
    check_damaged(
        lambda: pgoutput._decode_columnar(*args, in_binary),
        lambda: rowwise.decode(*args, binary=in_binary),
        lambda: decode(*args, binary=in_binary),
    )


@st.composite
def copies(draw: st.DrawFn) -> tuple[Table, list[bool], list[bytes], list[bytes]]:
    """A table, which columns are binary, and COPY rows: as flagged, and all in text."""
    table = draw(tables())
    flags = draw(st.lists(st.booleans(), min_size=len(table.columns), max_size=len(table.columns)))
    mixed, texts = [], []
    for _ in range(draw(st.integers(0, 8))):
        row = [None if draw(st.integers(0, 4)) == 0 else draw(TYPES[c[1], c[2]]) for c in table.columns]
        mixed.append(copy_row([v and (v[1] if f else v[0].encode()) for v, f in zip(row, flags, strict=True)]))
        texts.append(copy_row([v and v[0].encode() for v in row]))
    return table, flags, mixed, texts


def copied(table: Table, payloads: list[bytes], flags: list[bool]) -> Any:
    oids = [(c[1], c[2]) for c in table.columns]
    return decode_copy(table.schema, oids, payloads, flags, version=8, commit_time=9, first_ordinal=10)


@SETTINGS
@given(copies())
def test_rows_of_a_copy_decode_alike_in_both_formats(made: tuple[Table, list[bool], list[bytes], list[bytes]]) -> None:
    table, flags, mixed, texts = made
    oids = [(c[1], c[2]) for c in table.columns]
    run = Run(8, 9, 0, 10, len(mixed))
    columnar = pgoutput._decode_copy_columnar(table.schema, oids, mixed, flags, run)
    assert content(columnar) == content(rowwise.decode_copy(table.schema, oids, mixed, flags, run))
    assert content(columnar) == content(copied(table, texts, [False] * len(flags)))


@SETTINGS
@given(st.data())
def test_damaged_rows_of_a_copy_are_refused_or_decode_like_the_reference(data: st.DataObject) -> None:
    table, flags, payloads, _ = data.draw(copies().filter(lambda c: len(c[2]) > 0))
    i = data.draw(st.integers(0, len(payloads) - 1))
    payloads[i] = data.draw(damage(payloads[i]))
    oids = [(c[1], c[2]) for c in table.columns]
    run = Run(8, 9, 0, 10, len(payloads))
    check_damaged(
        lambda: pgoutput._decode_copy_columnar(table.schema, oids, payloads, flags, run),
        lambda: rowwise.decode_copy(table.schema, oids, payloads, flags, run),
        lambda: copied(table, payloads, flags),
    )


def test_the_made_numerics_are_what_they_say() -> None:
    assert numeric(-1234567, 2) == ("-12345.67", bytes.fromhex("0003000140000002" + "0001" + "0929" + "1a2c"))
    assert Decimal(numeric(5, 7)[0]) == Decimal("0.0000005")
    assert pa.scalar(Decimal(numeric(10**38 - 1, 10)[0])).type.precision == 38
