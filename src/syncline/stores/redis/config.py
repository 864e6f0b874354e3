"""The settings of a Redis or Valkey target."""

from __future__ import annotations

from typing import Literal
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, SecretStr, field_validator
from pydantic_core import PydanticCustomError

__all__ = ["Mode", "RedisConfig", "shown"]

Mode = Literal["store", "cache"]


class RedisConfig(BaseModel):
    """Keys in a Redis or Valkey server (one server, not a cluster)."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    url: SecretStr = Field(
        description="redis://[[user]:password@]host[:port][/database], rediss:// for TLS, or unix:///path.",
        examples=["${REDIS_URL}"],
    )
    mode: Mode = Field(
        "store", description="store: a missing key is a difference. cache: keys may be evicted or expire."
    )
    durability: Literal["disk", "memory"] = Field(
        "disk",
        description="disk: wait until the server's append-only file, if it has one, is synced. memory: do not wait.",
    )
    prefix: str = Field(
        "syncline",
        pattern=r"^[A-Za-z0-9_.-]{1,64}$",
        description="Syncline's own keys begin with this and a colon; give targets that share a database their own.",
    )
    adopt: bool = Field(
        True, description="Take over keys that were there before, when a table is new here; false leaves them alone."
    )
    both_ways: bool = Field(
        False,
        description="Applications edit the rows here too, and a source of type redis takes their edits back: keep what "
        "was last written of each row beside it.",
    )
    connect_timeout_s: float = Field(10.0, gt=0, le=300, description="Longest wait for a connection.")
    timeout_s: float = Field(60.0, gt=0, le=3600, description="Longest wait for an answer.")

    def copy_place(self) -> str:
        return f"{shown(self.url)}, {self.prefix}:"

    def edited_at(self, table: str, url: str) -> tuple[str, str, str] | None:
        """Where a source that reads at ``url`` finds what was last written of each row of a table that is edited here
        too, (in the hash of the table) when all went, and when each did; None where nothing is kept, or if this is
        another server."""
        kept = self.both_ways and not self.adopt and self.serves(url)
        base, all_of_it, each = (f"{self.prefix}:{kind}:{table}" for kind in ("base", "table", "tombstones"))
        return (base, all_of_it, each) if kept else None

    def serves(self, url: str) -> bool:
        """Whether this is the server at ``url``."""
        return shown(SecretStr(url)) == shown(self.url)

    @field_validator("url")
    @classmethod
    def _is_a_url(cls, url: SecretStr) -> SecretStr:
        """A password that is not encoded would be read, and shown, as something else: what is unclear is refused."""
        found = _flaw(url.get_secret_value())
        if found is not None:
            raise PydanticCustomError("redis_url", "{flaw}", {"flaw": found})
        return url


def _flaw(url: str) -> str | None:
    try:
        parts = urlsplit(url)
        unclear = "@" in parts.path + parts.query + parts.fragment or (parts.port or 1) < 1
    except ValueError:  # a port that is none
        parts, unclear = urlsplit(""), True
    if not unclear and parts.scheme not in ("redis", "rediss", "unix"):
        return "must begin with redis://, rediss:// or unix://"
    encoded = "special characters of user and password must be percent-encoded (@ as %40, / as %2F, ? as %3F, # as %23)"
    return f"can't be read: {encoded}, and a port is 1 to 65535" if unclear else None


def shown(url: SecretStr) -> str:
    """The server without user, password and parameters, for messages (Guarantee 11)."""
    parts = urlsplit(url.get_secret_value())
    if parts.scheme == "unix":
        return parts.path
    port = f":{parts.port}" if parts.port else ""
    return f"{parts.hostname or 'localhost'}{port}{parts.path if parts.path != '/' else ''}"
