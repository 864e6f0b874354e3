"""Which type a column has at the target: the source's own where the target's server knows it, and what fits else."""

from __future__ import annotations

import re
from dataclasses import dataclass

import psycopg

from syncline.change import Column
from syncline.pgvalues.pgtypes import logical_type
from syncline.stores.postgres.server import Connection

__all__ = ["Kind", "fits", "kind_of"]

_DEFAULT = {"bytes": "bytea", "texts": "text[]", "vector": "real[]", "sparse": "jsonb"}
_UNKNOWN = (psycopg.errors.ProgrammingError, psycopg.errors.DataError, psycopg.errors.NotSupportedError)
# Their text means something else, or nothing, on another server.
_LOCAL = re.compile(r"_?(reg[a-z]+|money|aclitem|xid|cid|pg_[a-z_]+)")
# Types that hold the lists which mappings make.
_LISTS = {"texts": ("_text", "_varchar"), "vector": ("vector", "_float4"), "sparse": ("jsonb",)}

_TEXT, _VARCHAR, _JSON, _NUMERIC = 25, 1043, 114, 1700
_WIDER = {"int2": ("int4", "int8"), "int4": ("int8",), "float4": ("float8",)}


@dataclass(frozen=True, slots=True)
class Kind:
    """A type: as SQL, and the oid and modifier of what is behind it if it is a domain."""

    sql: str
    oid: int
    typmod: int


def kind_of(connection: Connection, column: Column) -> Kind:
    """The type of a column that is ours to make. It holds every value of the column's logical type exactly."""
    own = _known(connection, column.source_type, column)
    if own is not None:
        return own
    default = _DEFAULT.get(column.type, column.type)
    found = _known(connection, default, column) or _known(connection, "text", column)
    assert found is not None
    return found


def _known(connection: Connection, name: str, column: Column) -> Kind | None:
    """The type of this name if the server has it and it serves; also what comes out of a mapping is no SQL to trust."""
    if not name or "--" in name or "/*" in name:
        return None
    try:
        with connection.transaction():
            row = connection.execute("select to_regtype($1)::text", [name]).fetchone()
            if row is None or row[0] is None:
                return None
            order = f" < null::{name}" if column.key else ""
            connection.execute(f"select null::{name}{order}")
            found = connection.execute(f"select null::{name}").pgresult
            assert found is not None
            kind = Kind(name, found.ftype(0), found.fmod(0))
            internal = connection.execute("select typname from pg_type where oid = $1", [kind.oid]).fetchone()
    except _UNKNOWN:
        return None
    assert internal is not None
    return kind if _serves(kind, str(internal[0]), column) else None


def _serves(kind: Kind, internal: str, column: Column) -> bool:
    if _LOCAL.fullmatch(internal):
        return False
    if column.type in _LISTS:
        return internal in _LISTS[column.type]
    return kind.sql == "text" or logical_type(kind.oid, kind.typmod) == column.type


def fits(actual: Kind, wanted: Kind, column: Column) -> bool:
    """Whether an existing column of type ``actual`` holds every value of a column that would be made as ``wanted``."""
    if actual.oid == wanted.oid and actual.typmod in (wanted.typmod, -1):
        return True
    here = logical_type(actual.oid, actual.typmod)
    if column.type in ("text", "json"):
        return actual.oid == _TEXT or (actual.oid == _VARCHAR and actual.typmod == -1)
    if column.type.startswith("numeric("):
        return _holds_decimals(actual, here, column.type)
    if column.type in ("time", "timestamp", "timestamptz"):
        return here == column.type and actual.typmod in (-1, 6)
    return (here == column.type and actual.typmod == -1) or here in _WIDER.get(column.type, ())


def _holds_decimals(actual: Kind, here: str, wanted: str) -> bool:
    if actual.oid != _NUMERIC:
        return False
    if actual.typmod == -1:
        return True
    digits = [re.findall(r"\d+", logical) for logical in (here, wanted)]
    if not all(digits):  # more digits than a decimal has, or a negative scale
        return False
    (p, s), (precision, scale) = ((int(a), int(b)) for a, b in digits)
    return s >= scale and p - s >= precision - scale
