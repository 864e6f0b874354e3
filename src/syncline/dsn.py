"""Connection strings of PostgreSQL: what is wrong with one, and what of it may be shown (Guarantee 11).

libpq repeats what it can't read, and reads a password that is not encoded as host, port or database. So a string is
looked at before anything of it, or of what libpq says of it, is shown.
"""

from __future__ import annotations

import re
from typing import Annotated

import psycopg
from psycopg import conninfo
from pydantic import AfterValidator, SecretStr
from pydantic_core import PydanticCustomError

__all__ = ["READABLE", "SecretDsn", "describe", "flaw"]

READABLE = "Write a URL, postgresql://user:password@host:port/database, or `host=... dbname=...`"
_ENCODED = (
    "In a URL, special characters of user and password must be percent-encoded (@ as %40, / as %2F, ? as %3F, # as %23,"
    " % as %25, a space as %20)"
)
_UNREADABLE = "(unreadable connection string)"
_URL = re.compile(r"postgres(?:ql)?://(?P<rest>.*)", re.DOTALL)


def flaw(dsn: str) -> str | None:
    """Why a connection string can't be used, without a word of it; None if libpq reads it as it was meant."""
    if not dsn.strip():
        return f"is empty. {READABLE}"
    url = _URL.match(dsn)
    if url and not _is_plain(url["rest"]):
        return f"can't be read: it holds an @ (perhaps behind the ?) that is not the one before the host. {_ENCODED}"
    try:
        parts = conninfo.conninfo_to_dict(dsn)
    except (psycopg.ProgrammingError, UnicodeDecodeError):  # the second for bytes such as %80, which are no UTF-8
        return f"can't be read. {_ENCODED if url else READABLE}"
    ports = str(parts.get("port") or "").split(",")
    if all(not port or (port.isascii() and port.isdecimal() and 0 < int(port) < 65536) for port in ports):
        return None
    return f"names a port that is none: a port is 1 to 65535. {_ENCODED}" if url else "names a port that is none"


def _is_plain(rest: str) -> bool:
    """Whether the only @ is the one that ends user and password. libpq looks for it up to the first slash: a slash
    before it turns the beginning of the password into host and port, a second one its end into a part of the host."""
    before, at, behind = rest.partition("@")
    return not at or ("/" not in before and "@" not in behind)


def describe(dsn: str) -> str:
    """``host:port/database`` of a connection string, never its secrets."""
    if flaw(dsn) is not None:
        return _UNREADABLE
    parts = conninfo.conninfo_to_dict(dsn)
    host = parts.get("host") or parts.get("hostaddr") or "local socket"
    return f"{host}:{parts.get('port') or 5432}/{parts.get('dbname') or parts.get('user') or ''}"


def _checked(dsn: SecretStr) -> SecretStr:
    found = flaw(dsn.get_secret_value())
    if found is not None:
        raise PydanticCustomError("dsn", "{flaw}", {"flaw": found})
    return dsn


# A setting that holds a connection string: what is wrong with it is told with the place where it is written.
SecretDsn = Annotated[SecretStr, AfterValidator(_checked)]
