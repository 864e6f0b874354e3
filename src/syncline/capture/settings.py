"""Settings that sources have in common: those of every kind, and those of all that are read from PostgreSQL."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar

from psycopg import conninfo
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PrivateAttr
from pydantic_core import PydanticCustomError

from syncline.capture.outbox.settings import OutboxConfig
from syncline.capture.patterns import named_schemas
from syncline.dsn import SecretDsn, describe
from syncline.errors import Misconfigured
from syncline.patterns import parse_pattern

__all__ = ["POSTGRES_PARTS", "Dsn", "PostgresSettings", "SourceSettings"]

POSTGRES_PARTS = {
    "POSTGRES_HOST": "host",
    "POSTGRES_PORT": "port",
    "POSTGRES_DB": "dbname",
    "POSTGRES_USER": "user",
    "POSTGRES_PASSWORD": "password",
}


class Dsn(str):
    """A connection string that knows the ``setting`` which gives it, so that an error can name what to correct."""

    setting: str

    def __new__(cls, text: str, setting: str) -> Dsn:
        dsn = super().__new__(cls, text)
        dsn.setting = setting
        return dsn


def _pattern(text: str) -> str:
    try:
        parse_pattern(text)
    except Misconfigured as error:
        raise PydanticCustomError(
            "pattern", "{said}", {"said": f"must be a table name or pattern. {error.remedy}"}
        ) from error
    return text


Pattern = Annotated[str, AfterValidator(_pattern)]


class SourceSettings(BaseModel):
    """What a source of any kind is told."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    type: str

    # Variables of other systems that give its address in parts, and the setting that they make where the file has none.
    address_parts: ClassVar[Mapping[str, str]] = {}
    address: ClassVar[str] = ""

    initial_load: bool = Field(True, description="Read existing rows before streaming.")
    on_gap: str = Field(
        "stop",
        pattern="^(stop|resync)$",
        description="When changes are known to be missing: stop with an alert, or read the tables again.",
    )
    batch_rows: int = Field(20_000, ge=1, description="Rows after which captured changes are handed on.")
    max_entry_bytes: int = Field(8 * 1024 * 1024, ge=65536, description="A transaction above this is stored in parts.")
    heartbeat_s: float = Field(10.0, gt=0, description="How often an idle source is moved on.")

    _section: str = PrivateAttr("source")
    _followers: dict[str, str] = PrivateAttr(default_factory=dict)
    _written_back: set[str] = PrivateAttr(default_factory=set)

    @classmethod
    def address_of(cls, parts: Mapping[str, str]) -> str:
        """The address that these parts make, by the names that :attr:`address_parts` gives them."""
        raise NotImplementedError

    def called(self, section: str) -> None:
        """Say where in the configuration this is: ``source``, or ``sources.<name>``."""
        self._section = section

    def followed_by(self, targets: Mapping[str, str]) -> None:
        """Say which targets follow it: the type of each, by name."""
        self._followers.update(targets)

    @property
    def followers(self) -> Mapping[str, str]:
        """The targets that follow it, and the type of each."""
        return self._followers

    @property
    def database(self) -> SecretDsn | None:
        """Its own PostgreSQL, where the control schema is unless it is told otherwise; None if it has none."""
        return None

    @property
    def summary(self) -> str:
        """What it reads, in words."""
        return self.type

    @property
    def schemas(self) -> set[str]:
        """The schemas that its tables are surely of."""
        return set()

    @property
    def claim(self) -> tuple[str, ...]:
        """What no two sources of a configuration may share, the last part in words; empty for nothing."""
        return ()

    @property
    def events_from(self) -> OutboxConfig | None:
        """The outbox whose events tell of tables, None where there is none."""
        return None

    @property
    def parks_events(self) -> tuple[str, Mapping[str, str]] | None:
        """Where events that are no changes are parked: as of which table, and the tables by kind of entity whose load
        settles what is parked of them. None where there are no events."""
        outbox = self.events_from
        if outbox is None:
            return None
        return outbox.table, {kind: entity.table for kind, entity in outbox.entities.items() if entity is not None}

    @property
    def routes(self) -> bool:
        """Whether its changes name their targets, so that each target has rows of its own (:attr:`Point.target`)."""
        return False

    @property
    def comes_back_to(self) -> str | None:
        """The target that writes what this source reads, where changes go both ways (docs/both-ways.md)."""
        return None

    @property
    def edits(self) -> tuple[str, str]:
        """The table that it reads, and the address of the server that holds it."""
        return "", ""

    @property
    def tells_origins(self) -> bool:
        """Whether its entries say who wrote them."""
        return False

    def is_written_by(self, mapping: object) -> bool:
        """Whether a target with this mapping of the table writes exactly what it reads."""
        return False

    def is_written_back(self, table: str) -> bool:
        """Whether a target writes edits of the other side into this table of it."""
        return table in self._written_back

    def expect_writes(self, table: str) -> None:
        """Hear that one does."""
        self._written_back.add(table)

    def meets(self, written: str, table: str, buried: str) -> None:
        """Hear where that target keeps what it last wrote, and when rows went."""

    @property
    def makes_runs(self) -> bool:
        """Whether its stream is made of runs, which are recorded (:mod:`syncline.capture.runs`)."""
        return False


class PostgresSettings(SourceSettings):
    """What a source is told whose rows are read from a PostgreSQL database, however their changes are captured."""

    address_parts: ClassVar[Mapping[str, str]] = POSTGRES_PARTS
    address: ClassVar[str] = "dsn"

    dsn: SecretDsn = Field(description="Connection to the source: a URL or a libpq keyword string.")
    monitored_tables: tuple[Pattern, ...] = Field(
        ("public.*",), min_length=1, description="Tables to keep in step: schema.table, or patterns with * and ?."
    )
    excluded_tables: tuple[Pattern, ...] = Field((), description="Tables left out, by the same patterns.")
    long_transaction_s: float = Field(
        300.0, gt=0, description="Age of an open transaction that wrote something, from which there is an alert."
    )
    load_chunk_bytes: int = Field(16 * 1024 * 1024, ge=8192, description="Table bytes read by one COPY of a load.")
    connect_timeout_s: int = Field(10, ge=1, description="How long one attempt to connect may take.")
    read_timeout_s: float = Field(
        0.0, ge=0, description="How long one statement that reads a table (a load, a verification) may take; 0: no end."
    )

    @classmethod
    def address_of(cls, parts: Mapping[str, str]) -> str:
        return conninfo.make_conninfo("", **parts)

    @property
    def plain(self) -> Dsn:
        """The connection string for everything but replication and snapshots."""
        return Dsn(self.dsn.get_secret_value(), f"{self._section}.dsn")

    @property
    def replication(self) -> Dsn:
        """The connection string for replication and snapshots."""
        return self.plain

    @property
    def patterns(self) -> tuple[str, ...]:
        """Which tables are meant, as names and patterns."""
        return self.monitored_tables

    @property
    def polls_events(self) -> bool:
        """Whether its outbox is polled: places are transaction ids then, and versions count events."""
        return False

    @property
    def published_by(self) -> str:
        """The publication that says which rows and columns are captured; '' where all of them are."""
        return ""

    @property
    def database(self) -> SecretDsn | None:
        return self.dsn

    @property
    def summary(self) -> str:
        without = f" without {', '.join(self.excluded_tables)}" if self.excluded_tables else ""
        return f"{describe(self.plain)}, tables {', '.join(self.patterns)}{without}"

    @property
    def schemas(self) -> set[str]:
        return named_schemas(self.patterns)
