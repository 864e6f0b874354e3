"""Which stream is read, and which table its events are about."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cached_property
from typing import Annotated, ClassVar, Literal
from urllib.parse import quote, urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, SecretStr, field_validator, model_validator
from pydantic_core import PydanticCustomError

from syncline.capture.described import TYPE_OIDS, described
from syncline.capture.settings import SourceSettings
from syncline.capture.tables import TableInfo

__all__ = ["ENTITY", "StreamColumn", "StreamSettings"]

ENTITY = "chunk"
_SHORT = {
    "bool": "boolean",
    "bytes": "bytea",
    "int2": "smallint",
    "int4": "integer",
    "int8": "bigint",
    "float4": "real",
    "float8": "double precision",
    "time": "time without time zone",
    "timestamp": "timestamp without time zone",
    "timestamptz": "timestamp with time zone",
}
_NUMERIC = re.compile(r"numeric\([1-9]\d?,\d{1,2}\)")


def _type(name: str) -> str:
    array = "[]" if name.endswith("[]") else ""
    word = name.removesuffix("[]")
    found = _SHORT.get(word, word) + array
    if found not in TYPE_OIDS and not _NUMERIC.fullmatch(found):
        known = sorted({*_SHORT, *TYPE_OIDS} - {t for t in TYPE_OIDS if " " in t})
        raise PydanticCustomError("column_type", "must be numeric(p,s) or one of {known}", {"known": ", ".join(known)})
    return found


Type = Annotated[str, AfterValidator(_type)]


class StreamColumn(BaseModel):
    """One column of the table, and the field of a chunk that is its value."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    type: Type = Field("text", description="Type of the column, as PostgreSQL calls it; real[] for a vector.")
    field: str | None = Field(
        None, min_length=1, description="The field, with dots into an object (embeddings.dense); null is its name."
    )


class StreamSettings(SourceSettings):
    """One stream of a Redis or Valkey server, whose events tell of the rows of one table."""

    address_parts: ClassVar[Mapping[str, str]] = {
        "REDIS_HOST": "host",
        "REDIS_PORT": "port",
        "REDIS_PASSWORD": "password",
    }
    address: ClassVar[str] = "url"

    type: Literal["stream"] = Field("stream", description="stream: events that applications publish into Redis.")
    url: SecretStr = Field(
        description="redis://[[user]:password@]host[:port][/database], rediss:// for TLS, or unix:///path.",
        examples=["${REDIS_URL}"],
    )
    stream: str = Field("chunk:sync:stream", min_length=1, description="Key of the stream.")
    group: str = Field("sync-workers", min_length=1, description="Consumer group that shows how far the log is.")
    table: str = Field(
        "public.chunks",
        pattern=r"^[^.]+(\.[^.]+)?$",
        description="The table that the events are about; without a schema it is of public.",
    )
    key: str = Field("id", min_length=1, description="Its key column, which holds the chunk's id.")
    key_type: Type = Field("text", description="Type of the key column.")
    columns: dict[str, StreamColumn] = Field(min_length=1, description="The other columns.")
    ignore: tuple[str, ...] = Field((), description="Fields of chunks that no column is for, and none has to be.")
    remember_events: int = Field(
        200_000, ge=1000, description="An event whose id is among so many before it was published twice: it is skipped."
    )
    trim: bool = Field(
        False,
        description="Take entries out of the stream that are durable in the log; only where it has no other group.",
    )
    connect_timeout_s: float = Field(10.0, gt=0, le=300, description="Longest wait for a connection.")
    timeout_s: float = Field(60.0, ge=5, le=3600, description="Longest wait for an answer.")

    @field_validator("url")
    @classmethod
    def _is_a_url(cls, url: SecretStr) -> SecretStr:
        if not re.match(r"(rediss?|unix)://", url.get_secret_value()):
            raise PydanticCustomError("redis_url", "must begin with redis://, rediss:// or unix://")
        return url

    @model_validator(mode="after")
    def _has_its_key_once(self) -> StreamSettings:
        if self.key in self.columns:
            raise PydanticCustomError(
                "key_twice", "columns are those besides the key: leave it out, key_type is its type"
            )
        return self

    @classmethod
    def address_of(cls, parts: Mapping[str, str]) -> str:
        login = f":{quote(parts['password'], safe='')}@" if "password" in parts else ""
        return f"redis://{login}{parts.get('host', 'localhost')}:{parts.get('port', '6379')}/0"

    @property
    def summary(self) -> str:
        parts = urlsplit(self.url.get_secret_value())
        return f"Redis {parts.hostname or parts.path}, events of stream {self.stream} about table {self.info.qualified}"

    @property
    def schemas(self) -> set[str]:
        return {self.info.namespace}

    @property
    def claim(self) -> tuple[str, ...]:
        return (self.url.get_secret_value(), self.stream, f"group {self.group} of stream {self.stream}")

    @property
    def routes(self) -> bool:
        return True

    @property
    def parks_events(self) -> tuple[str, Mapping[str, str]]:
        """A load settles nothing of it: its rows are what the events said."""
        return self.stream, {}

    @cached_property
    def info(self) -> TableInfo:
        """The table, as a catalogue would have it."""
        namespace, dot, name = self.table.rpartition(".")
        columns = [(self.key, self.key_type), *((name, column.type) for name, column in self.columns.items())]
        return described(namespace if dot else "public", name, self.key, columns)

    @cached_property
    def fields(self) -> dict[tuple[str, ...], str]:
        """The column of each field, by the field's path."""
        return {tuple((c.field or name).split(".") if c.field else (name,)): name for name, c in self.columns.items()}
