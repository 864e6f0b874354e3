"""Which keys make up the rows of a table: sorted sets, hashes with a field a member, and a hash for each member."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, ClassVar, Literal
from urllib.parse import quote, urlsplit
from zoneinfo import ZoneInfo, available_timezones

import pyarrow as pa
from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, SecretStr, field_validator, model_validator
from pydantic_core import PydanticCustomError

from syncline.capture.redis.values import parsed
from syncline.capture.schedule import YEAR_S, checked_cron, following
from syncline.capture.settings import SourceSettings
from syncline.change import Column, TableSchema

__all__ = ["Group", "MemberColumn", "MembersConfig", "RedisSettings", "groups_of", "schema_of"]

MEMBER = "{member}"
_TYPES = r"(bool|int2|int4|int8|float4|float8|numeric\(\d{1,2},\d{1,2}\)|text|date|timestamp|timestamptz)"
_SOURCE_TYPES = {
    "bool": "boolean",
    "int2": "smallint",
    "int4": "integer",
    "int8": "bigint",
    "float4": "real",
    "float8": "double precision",
    "timestamp": "timestamp without time zone",
    "timestamptz": "timestamp with time zone",
}


class MemberColumn(BaseModel):
    """Where one column's value is: the member's score, its field in one hash, or a field of the member's own hash."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    sorted_set: str | None = Field(None, description="Key of the sorted set whose score it is.")
    hash: str | None = Field(
        None, description="Key of a hash whose fields are members, or with {member} in it, of one hash for each member."
    )
    field: str | None = Field(None, description="The field, of a hash for each member; null is the column's name.")
    type: str = Field("text", pattern=f"^{_TYPES}$", description="Type of the column.")
    default: str | int | float | bool | None = Field(
        None, description="What a member has that is not in the key; null is NULL."
    )

    @model_validator(mode="after")
    def _is_in_one_place(self) -> MemberColumn:
        if (self.sorted_set is None) == (self.hash is None):
            raise PydanticCustomError("one_place", "give either sorted_set or hash")
        if self.sorted_set is not None and MEMBER in self.sorted_set:
            raise PydanticCustomError("one_set", "a sorted set has many members: its key can't hold {member}")
        if self.hash is not None and self.hash.count(MEMBER) > 1:
            raise PydanticCustomError("one_member", "{member} may stand once in a key")
        if self.field is not None and MEMBER not in (self.hash or ""):
            raise PydanticCustomError("no_field", "field needs a hash for each member: hash: some:{member}")
        return self

    @model_validator(mode="after")
    def _has_a_default_of_its_type(self) -> MemberColumn:
        if self.default is not None and parsed(pa.array([str(self.default).encode()]), self.type, "UTC")[1].any():
            raise PydanticCustomError("default", "default is no {type}", {"type": self.type})
        return self


class MembersConfig(BaseModel):
    """The keys that make up one table's rows, and what is known of them."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", hide_input_in_errors=True, validate_by_name=True, validate_by_alias=True
    )

    url: SecretStr = Field(
        description="redis://[[user]:password@]host[:port][/database], rediss:// for TLS, or unix:///path.",
        examples=["${REDIS_URL}"],
    )
    table: str = Field(
        pattern=r"^[^.]+(\.[^.]+)?$", description="The table that follows; without a schema it is of public."
    )
    member: str = Field("member", description="The table's key column: it holds the member's name.")
    member_type: Literal["text", "int4", "int8"] = Field("text", description="Its type.")
    columns: dict[str, MemberColumn] = Field(min_length=1, description="The other columns, and where their values are.")
    timezone: str = Field("UTC", description="Zone of times that are written without one.")
    deletes: Literal["removed", "gone", "never"] = Field(
        "removed",
        description="removed: a member that was taken out of sorted sets and hashes that are still there is deleted. "
        "gone: also one whose keys are gone (evicted, expired). never: rows stay.",
    )
    expired: Literal["keep", "clear"] = Field(
        "keep", description="What columns are when their whole key is gone: as they were, or their default."
    )
    changed: str | None = Field(
        None,
        description="Key of a sorted set in which the application notes members it changed, by Unix time in seconds; "
        "null makes every run a full diff.",
    )
    changed_overlap_s: float = Field(60.0, ge=0, description="How far back of the last note runs look again.")
    batch_size: int = Field(1000, ge=1, le=100_000, description="Members asked for at once.")
    members_per_s: int | None = Field(None, ge=1, description="Members read a second at most; null is no limit.")
    memory_mb: int = Field(64, ge=64, description="Memory for comparing; what needs more goes through a file.")
    connect_timeout_s: float = Field(10.0, gt=0, le=300, description="Longest wait for a connection.")
    timeout_s: float = Field(60.0, gt=0, le=3600, description="Longest wait for an answer.")

    @field_validator("url")
    @classmethod
    def _is_a_url(cls, url: SecretStr) -> SecretStr:
        if not re.match(r"(rediss?|unix)://", url.get_secret_value()):
            raise PydanticCustomError("redis_url", "must begin with redis://, rediss:// or unix://")
        return url

    @field_validator("timezone")
    @classmethod
    def _is_a_zone(cls, zone: str) -> str:
        if zone not in available_timezones():
            raise PydanticCustomError("no_zone", "there is no time zone of this name")
        return zone

    @model_validator(mode="after")
    def _has_one_key_column(self) -> MembersConfig:
        if self.member in self.columns:
            raise PydanticCustomError("key_column", "columns must not name the key column (member)")
        return self

    @property
    def zone(self) -> ZoneInfo:
        """The zone of times without one."""
        return ZoneInfo(self.timezone)


class RedisSettings(SourceSettings, MembersConfig):
    """Rows that are spread over keys of a Redis or Valkey server, compared again and again with what was last told."""

    address_parts: ClassVar[Mapping[str, str]] = {
        "REDIS_HOST": "host",
        "REDIS_PORT": "port",
        "REDIS_PASSWORD": "password",
    }
    address: ClassVar[str] = "url"
    _base_key: str = PrivateAttr("")
    _table_key: str = PrivateAttr("")
    _buried_key: str = PrivateAttr("")

    type: Literal["redis"] = Field("redis", description="How changes are captured: by comparing members of Redis keys.")
    on_gap: str = Field(
        "resync",
        pattern="^(stop|resync)$",
        description="When changes are known to be missing: stop with an alert, or read everything again.",
    )
    every_s: float = Field(
        3600.0, gt=0, le=YEAR_S, description="Seconds from the beginning of one run to that of the next."
    )
    cron: str | None = Field(
        None, description="A cron expression of five fields in `timezone`, instead of `every_s`: when runs begin."
    )
    full_every: int = Field(24, ge=1, description="Of so many runs one is a full diff, where `changed` is given.")
    delete_share: float = Field(
        0.2, ge=0, le=1, description="A run that would delete more than this share of the table stops and asks."
    )
    backup_share: float = Field(
        0.2,
        ge=0,
        le=1,
        description="Targets that can copy the table first where a run changes more than this share; 1: never.",
    )
    keep_backups: int = Field(3, ge=1, description="So many copies of the table are kept.")
    hints: bool = Field(
        True, description="Run sooner when the server's keyspace notifications, where enabled, tell of a change."
    )
    sooner_s: float = Field(60.0, ge=0, description="Least time between two runs that such a hint makes sooner.")
    both_ways: str | None = Field(
        None,
        description="Name of the redis target that writes these keys: its writes are no changes of Redis, and what "
        "applications write here goes back only where nobody changed the row meanwhile (docs/both-ways.md).",
    )
    lease_s: float = Field(60.0, ge=5, description="An engine that is not heard of for so long loses the run lock.")
    keep_runs: int = Field(1000, ge=10, description="So many runs are kept in sync_periodic_runs.")

    @field_validator("cron")
    @classmethod
    def _is_a_cron_expression(cls, cron: str | None) -> str | None:
        return checked_cron(cron)

    @classmethod
    def address_of(cls, parts: Mapping[str, str]) -> str:
        login = f":{quote(parts['password'], safe='')}@" if "password" in parts else ""
        return f"redis://{login}{parts.get('host', 'localhost')}:{parts.get('port', '6379')}/0"

    @property
    def summary(self) -> str:
        parts = urlsplit(self.url.get_secret_value())
        keys = ", ".join(group.key for group in groups_of(self))
        return f"Redis {parts.hostname or parts.path}, table {self.table} of {keys}"

    @property
    def schemas(self) -> set[str]:
        return {schema_of(self).namespace}

    @property
    def makes_runs(self) -> bool:
        return True

    @property
    def comes_back_to(self) -> str | None:
        return self.both_ways

    @property
    def edits(self) -> tuple[str, str]:
        return schema_of(self).qualified, self.url.get_secret_value()

    def is_written_by(self, mapping: object) -> bool:
        group, rule = groups_of(self)[0], getattr(mapping, "hash", None)
        taken = {*(getattr(mapping, "columns", None) or ()), self.member} == {*self.columns, self.member}
        key = group.key.replace(MEMBER, f"{{{self.member}}}")
        fields = group.columns == tuple(self.columns) == group.fields and set(getattr(rule, "columns", ())) == set(
            self.columns
        )
        return taken and fields and getattr(rule, "key", None) == key

    def meets(self, written: str, table: str, buried: str) -> None:
        self._base_key, self._table_key, self._buried_key = written, table, buried

    @property
    def base_key(self) -> str:
        """The hash in which the target keeps what it last wrote of each row; '' where nothing comes back."""
        return self._base_key

    @property
    def table_key(self) -> str:
        """The hash in which it keeps (as ``gone``) when rows went with a truncation or a load."""
        return self._table_key

    @property
    def buried_key(self) -> str:
        """The hash in which it keeps when each other row went."""
        return self._buried_key

    @model_validator(mode="after")
    def _can_come_back(self) -> RedisSettings:
        if self.both_ways is None:
            return self
        if [group.kind for group in groups_of(self)] != ["hashes"] or self.changed is not None:
            raise PydanticCustomError(
                "both_ways", "both_ways needs all columns in one hash for each member, and no `changed`"
            )
        if self.initial_load:
            raise PydanticCustomError(
                "both_ways", "both_ways needs initial_load: false, because a load would remove rows of the other side"
            )
        return self

    def due_after(self, began: datetime) -> datetime:
        """When the run is due that follows one that began then."""
        return following(began, self.every_s, self.cron, self.zone)


@dataclass(frozen=True, slots=True)
class Group:
    """Columns that are read together.

    ``kind``: ``scores`` of a sorted set, ``fields`` of one hash (a field a member), or ``hashes``, one for each member
    (``key`` then holds ``{member}``). ``columns`` are names of the table's columns, ``fields`` those of their hashes.
    """

    kind: Literal["scores", "fields", "hashes"]
    key: str
    columns: tuple[str, ...]
    fields: tuple[str, ...] = ()

    @property
    def whole(self) -> bool:
        """Whether many members are in one key, so that a member's absence says something."""
        return self.kind != "hashes"

    def key_of(self, member: bytes) -> bytes:
        """The key of one member's hash."""
        before, _, behind = self.key.partition(MEMBER)
        return before.encode() + member + behind.encode()


def groups_of(config: MembersConfig) -> tuple[Group, ...]:
    """The keys to be read, each once, in the order in which the columns name them."""
    found: dict[tuple[str, str], list[str]] = {}
    for name, column in config.columns.items():
        found.setdefault(_place(column), []).append(name)
    return tuple(_group(config.columns, kind, key, names) for (kind, key), names in found.items())


def _place(column: MemberColumn) -> tuple[str, str]:
    if column.sorted_set is not None:
        return "scores", column.sorted_set
    assert column.hash is not None
    return "hashes" if MEMBER in column.hash else "fields", column.hash


def _group(columns: Mapping[str, MemberColumn], kind: Any, key: str, names: list[str]) -> Group:
    fields = tuple(columns[name].field or name for name in names) if kind == "hashes" else ()
    return Group(kind, key, tuple(names), fields)


def schema_of(config: MembersConfig) -> TableSchema:
    """The table as it is kept: the member, then the columns in the order of the configuration."""
    namespace, dot, name = config.table.rpartition(".")
    key = Column(config.member, config.member_type, _source_type(config.member_type), key=True)
    rest = [Column(name, c.type, _source_type(c.type)) for name, c in config.columns.items()]
    return TableSchema(namespace if dot else "public", name, (key, *rest))


def _source_type(logical: str) -> str:
    return _SOURCE_TYPES.get(logical, logical)
