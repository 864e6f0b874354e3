"""Which columns a target gets, under which names and in which form. Columnar and pure."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import msgspec
import pyarrow as pa
import pyarrow.compute as pc

from syncline.change import Column, TableSchema, arrow_type
from syncline.errors import Misconfigured
from syncline.mapping.settings import ColumnRule, TableMapping
from syncline.nearest import hint

__all__ = ["Inexpressible", "Taken", "converted", "refuse_doubles", "take_columns"]

# Types with text in one form that is easily made; the others have to be written by a transform.
_AS_TEXT = frozenset({"bool", "int2", "int4", "int8", "numeric", "uuid", "bytes"})
# Types of PostgreSQL that vectors are taken from, besides arrays; and what a transform makes.
_OF_VECTORS = frozenset({"vector", "halfvec", "sparsevec", "json", "jsonb", "transform"})
_CONSTANTS: dict[type, str] = {bool: "bool", int: "int8", float: "float8", str: "text"}


class Inexpressible(Exception):
    """Some values have no such form; ``bad`` is true where."""

    def __init__(self, bad: pa.Array, why: str) -> None:
        super().__init__(why)
        self.bad = bad
        self.why = why


@dataclass(frozen=True, slots=True)
class Taken:
    """One column of the target: from the source's column at ``position``, or (-1) with one ``constant`` value."""

    column: Column
    position: int
    form: str | None = None
    constant: str | int | float | bool | None = None


def take_columns(
    source: TableSchema,
    settings: TableMapping,
    extra: Sequence[str] = (),
    forms: Mapping[str, str] = MappingProxyType({}),
) -> tuple[Taken, ...]:
    """The columns of the target: those asked for, the key's, and ``extra`` ones that the shape needs; ``forms`` are
    those that it needs some of them in.

    Raises:
        Misconfigured: a column does not exist, a key is left out or gets another form, the shape needs another form
            than the one asked for, or two have one name.
    """
    known = {c.name: i for i, c in enumerate(source.columns)}
    rules = settings.columns
    for name in (*(rules or ()), *settings.exclude, *extra):
        if name not in known:
            raise Misconfigured(
                f"Table {source.qualified} has no column {name}, which its mapping names.",
                remedy=hint(name, known),
            )
    taken = []
    for position, column in enumerate(source.columns):
        wanted = rules is None or column.name in rules or column.name in extra
        if column.name in settings.exclude and column.name not in extra:
            wanted = False
        if column.key and column.name in settings.exclude:
            raise Misconfigured(
                f"Column {column.name} of table {source.qualified} is part of its key.", remedy="Don't exclude it."
            )
        if wanted or column.key:
            rule = (rules or {}).get(column.name) or ColumnRule()
            form = _form(source, column, rule.form, forms.get(column.name))
            taken.append(_taken(source, column, position, rule.name, form))
    for name, value in settings.constants.items():
        taken.append(Taken(Column(name, _CONSTANTS[type(value)], "constant"), -1, None, value))
    refuse_doubles(source, [t.column for t in taken])
    return tuple(taken)


def refuse_doubles(source: TableSchema, columns: Sequence[Column]) -> None:
    """Raises ``Misconfigured`` where two columns of the target have one name."""
    names = [column.name for column in columns]
    double = sorted({n for n in names if names.count(n) > 1})
    if double:
        raise Misconfigured(
            f"Two columns of table {source.qualified} are called {', '.join(double)} at the target.",
            remedy="Rename or exclude one of them; a vector's name is a column's, too.",
        )


def _form(source: TableSchema, column: Column, asked: str | None, needed: str | None) -> str | None:
    """The form of a column's values; None leaves them as they are."""
    if needed is None:
        return _possible(source, column, asked)
    if asked not in (None, needed):
        raise Misconfigured(
            f"Column {column.name} of table {source.qualified} is a vector of the mapping and can't be `as: {asked}`.",
            remedy=f"Leave `as` out, or say {needed}.",
        )
    if column.type == needed:
        return None
    if not column.source_type.endswith("]") and column.source_type.partition("(")[0] not in _OF_VECTORS:
        raise Misconfigured(
            f"Column {column.name} of table {source.qualified} is a {column.source_type} and holds no vector.",
            remedy="Name a column of arrays, pgvector or JSON.",
        )
    return needed


def _possible(source: TableSchema, column: Column, form: str | None) -> str | None:
    """The form that is asked for, if the column's values have it."""
    plain = column.type.partition("(")[0]
    if form is None or pa.types.is_string(arrow_type(column.type)) or (form == "text" and plain in _AS_TEXT):
        return form
    raise Misconfigured(
        f"Column {column.name} of table {source.qualified} is a {column.source_type} and can't be `as: {form}`.",
        remedy="Leave `as` out, or make another column of it by a `transform`.",
    )


def _taken(source: TableSchema, column: Column, position: int, name: str | None, form: str | None) -> Taken:
    if form is not None and column.key:
        raise Misconfigured(f"Column {column.name} of table {source.qualified} is part of its key and keeps its form.")
    target = msgspec.structs.replace(column, name=name or column.name, type=form or column.type)
    return Taken(target, position, form)


def converted(values: pa.Array, form: str | None) -> pa.Array:
    """The values in another form.

    Raises:
        Inexpressible: some have none.
    """
    match form:
        case None:
            return values
        case "text" | "json":
            return _text(values)
        case "vector":
            return _numbers(values, pa.float32())
        case "texts":
            return _texts(values)
        case _:
            return _sparse(values)


def _text(values: pa.Array) -> pa.Array:
    """PostgreSQL's own text of the values."""
    kind = values.type
    if pa.types.is_string(kind):
        return values
    if pa.types.is_decimal(kind):
        return pa.array([None if v is None else format(v, "f") for v in values.to_pylist()], pa.string())
    if kind == arrow_type("uuid"):
        return pa.array(
            [None if v is None else str(uuid.UUID(bytes=bytes(v))) for v in values.to_pylist()], pa.string()
        )
    if pa.types.is_binary(kind):
        return pa.array([None if v is None else "\\x" + v.hex() for v in values.to_pylist()], pa.string())
    return values.cast(pa.string())


def _numbers(values: pa.Array, kind: pa.DataType) -> pa.Array:
    """``{1,2}`` of an array, or ``[1,2]`` of a pgvector, as lists of numbers; no multidimensional ones, no NULLs."""
    if pa.types.is_list(values.type):
        return values.cast(pa.list_(kind))
    whole = pc.match_substring_regex(values, r"^[\[{][^\[\]{}]*[\]}]$")
    if pc.all(whole, skip_nulls=True).as_py() is False:  # None where there is no value at all
        raise Inexpressible(pc.invert(pc.fill_null(whole, True)), "it is no list of numbers")
    inner = pc.utf8_slice_codeunits(values, 1, -1)
    lists = pc.split_pattern(inner, ",")
    empty = pc.equal(pc.binary_length(inner), 0)
    try:
        parts = lists.flatten()
        if pc.any(empty, skip_nulls=True).as_py():
            return _with_empty(lists, empty, kind)
        numbers = pc.utf8_trim_whitespace(parts).cast(kind)
    except (pa.ArrowInvalid, ValueError) as error:
        bad = pa.array([True]) if len(values) == 1 else _each(values, kind)
        raise Inexpressible(bad, "it is no list of numbers") from error
    return pa.ListArray.from_arrays(_offsets(lists), numbers, mask=lists.is_null() if lists.null_count else None)


def _with_empty(lists: pa.Array, empty: pa.Array, kind: pa.DataType) -> pa.Array:
    """Rare: lists without elements among the others; row by row."""
    rows = zip(lists.to_pylist(), empty.to_pylist(), strict=True)
    return pa.array(
        [None if parts is None else [] if none else [float(p) for p in parts] for parts, none in rows]
    ).cast(pa.list_(kind))


def _offsets(lists: pa.ListArray) -> pa.Array:
    counts = pc.fill_null(pc.list_value_length(lists), 0)
    return pa.concat_arrays([pa.array([0], pa.int32()), pc.cumulative_sum(counts).cast(pa.int32())])


def _texts(values: pa.Array) -> pa.Array:
    """PostgreSQL's text of a one-dimensional array of text, as lists (manual, ch. "Array Input and Output Syntax")."""
    lists, bad = [], []
    for text in values.to_pylist():
        parsed = None if text is None else _elements(text)
        lists.append(parsed)
        bad.append(text is not None and parsed is None)
    if any(bad):
        raise Inexpressible(pa.array(bad), "it is no one-dimensional array without NULLs")
    return pa.array(lists, pa.list_(pa.string()))


def _elements(text: str) -> list[str] | None:
    if not (text.startswith("{") and text.endswith("}")):
        return None
    found: list[str] = []
    at, end = 1, len(text) - 1
    while at < end:
        if text[at] == '"':
            part, at = _quoted(text, at + 1)
        else:
            stop = text.find(",", at, end)
            stop = end if stop < 0 else stop
            part, at = text[at:stop], stop
            if part == "NULL" or "{" in part:
                return None
        found.append(part)
        if at < end and text[at] != ",":
            return None
        at += 1
    return found


def _quoted(text: str, at: int) -> tuple[str, int]:
    """The element that begins behind a quote, and where it ends."""
    part = []
    while text[at] != '"':
        at += text[at] == "\\"
        part.append(text[at])
        at += 1
    return "".join(part), at + 1


_SPARSE = arrow_type("sparse")


def _sparse(values: pa.Array) -> pa.Array:
    """``{"indices": [...], "values": [...]}``, or pgvector's ``{1:0.5,7:2}/100`` (which counts from 1)."""
    rows, bad = [], []
    for text in values.to_pylist():
        parsed = None if text is None else _sparse_value(text)
        rows.append(parsed)
        bad.append(text is not None and parsed is None)
    if any(bad):
        raise Inexpressible(pa.array(bad), "it is no sparse vector")
    return pa.array(rows, _SPARSE)


def _sparse_value(text: str) -> dict[str, list[int] | list[float]] | None:
    try:
        if text.startswith("{") and "}/" in text:
            pairs = [p.split(":") for p in text[1 : text.index("}")].split(",") if p]
            found = sorted((int(i) - 1, float(v)) for i, v in pairs)
        else:
            given = msgspec.json.decode(text)
            found = sorted(zip(map(int, given["indices"]), map(float, given["values"]), strict=True))
    except (ValueError, KeyError, TypeError, msgspec.DecodeError):
        return None
    indices = [i for i, _ in found]
    if len(set(indices)) < len(indices) or any(not 0 <= i < 2**32 for i in indices):
        return None
    return {"indices": indices, "values": [v for _, v in found]}


def _each(values: pa.Array, kind: pa.DataType) -> pa.Array:
    """True where a value alone is no list of numbers."""
    bad = []
    for i in range(len(values)):
        try:
            _numbers(values.slice(i, 1), kind)
            bad.append(False)
        except Inexpressible:
            bad.append(True)
    return pa.array(bad)
